//! What the agent's own process may use of the machine. Whoever watches is told when it uses more.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::telemetry::usage::SelfUsage;

/// Over which time its use is looked at.
const WINDOW: Duration = Duration::from_secs(60);

/// Within its budget again is who stays below this share of it: who is at the limit would be told of each
/// minute.
const AGAIN: f64 = 0.8;

/// Watches the CPU time of the agent's process.
#[derive(Debug)]
pub struct Budget {
    limit: Limit,
    usage: SelfUsage,
    next: Instant,
}

impl Budget {
    /// Begins now; `percent` of one core are allowed.
    ///
    /// # Errors
    ///
    /// When `/proc/self` cannot be read.
    pub fn start(percent: f64) -> io::Result<Self> {
        Ok(Self {
            limit: Limit {
                percent,
                is_over: false,
            },
            usage: SelfUsage::start()?,
            next: Instant::now() + WINDOW,
        })
    }

    /// Once a minute, looks at what was used in it, and says in the log when that went over the budget, and when
    /// it is within again.
    pub fn tick(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        self.next = now + WINDOW;
        let Ok(usage) = self.usage.read() else { return };
        let (used, allowed) = (usage.cpu_percent, self.limit.percent);
        match self.limit.judge(used) {
            Some(Ruling::Over) => tracing::warn!(
                "the agent used {used:.1} % of a core in the last minute, more than its budget of {allowed} %; trace fewer \
                 processes, or allow more with --cpu-budget"
            ),
            Some(Ruling::Within) => tracing::info!(
                "the agent is within its budget of {allowed} % of a core again: {used:.1} % in the last minute"
            ),
            None => {}
        }
    }
}

#[derive(Debug)]
struct Limit {
    percent: f64,
    is_over: bool,
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ruling {
    Over,
    Within,
}

impl Limit {
    fn judge(&mut self, used: f64) -> Option<Ruling> {
        let (is_over, ruling) = match self.is_over {
            false if used > self.percent => (true, Ruling::Over),
            true if used < AGAIN * self.percent => (false, Ruling::Within),
            _ => return None,
        };
        self.is_over = is_over;
        Some(ruling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is said once that the budget is exceeded, however long that lasts, and once that it is not any more; who
    /// stays about the limit is not told each minute.
    #[test]
    fn says_it_once() {
        let mut limit = Limit {
            percent: 5.0,
            is_over: false,
        };
        let minutes = [1.0, 5.0, 5.1, 9.0, 4.9, 5.2, 4.1, 3.9, 1.0, 6.0];
        let said: Vec<_> = minutes.map(|used| limit.judge(used)).into();
        let mut want = [None; 10];
        (want[2], want[7], want[9]) =
            (Some(Ruling::Over), Some(Ruling::Within), Some(Ruling::Over));
        assert_eq!(said, want);
    }
}
