//! What a pipeline has seen, for whoever ran it.

use std::time::Duration;

use crate::{
    export::Summary, govern::cost::Bill, profile::Profile, telemetry::usage::Usage, unwind,
};

/// What a pipeline has seen from its start to its end.
#[derive(Debug)]
pub struct Outcome {
    /// For how long it ran.
    pub duration: Duration,
    /// Requests that ended.
    pub requests: Requests,
    /// Routes and slow requests, where a summary was asked for.
    pub summary: Option<Summary>,
    /// The profile, where one was asked for.
    pub profile: Option<Profile>,
    /// What the hooks cost.
    pub bill: Bill,
    /// What the agent's own process used.
    pub usage: Option<Usage>,
    /// How native stacks were followed.
    pub unwinding: Unwinding,
    /// All counters, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// How native stacks are followed.
#[derive(Clone, Debug)]
pub enum Unwinding {
    /// By frame pointers, or not at all: nothing else was asked for.
    FramePointers,
    /// By unwind tables, and by frame pointers where there are none.
    Tables(unwind::Client),
    /// By frame pointers, for the kernel refused the program that uses tables; why.
    Refused(String),
}

impl Unwinding {
    /// The tables, where there are.
    pub const fn tables(&self) -> Option<&unwind::Client> {
        match self {
            Self::Tables(tables) => Some(tables),
            Self::FramePointers | Self::Refused(_) => None,
        }
    }
}

/// Counts of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Requests that traced processes served.
    pub served: u64,
    /// Requests that they made.
    pub made: u64,
    /// Statements that they executed.
    pub statements: u64,
}

impl Outcome {
    /// Everything that was lost on the way: the counters whose names say so.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counters
            .iter()
            .copied()
            .filter(|&(name, value)| value > 0 && is_loss(name))
    }
}

/// Whether a counter counts something lost.
pub fn is_loss(name: &str) -> bool {
    name.split('_').any(|word| word == "lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is lost says so as a word of its own in its counter's name.
    #[test]
    fn losses_are_told_by_name() {
        assert!(is_loss("lost_ring_full"));
        assert!(is_loss("otlp_spans_lost_queue_full"));
        assert!(!is_loss("events"));
    }
}
