//! Everything that the user side counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters once: the enum, their number and their names.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// A counter of the user side.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count {
            $($(#[$doc])* $name,)+
        }

        impl Count {
            /// All counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name that logs and metrics use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

counters! {
    /// Spans made.
    Spans = "spans",
    /// Requests whose `traceparent` was not valid; they began a trace of their own.
    TraceparentInvalid = "traceparent_invalid",
    /// Spans without a route of their own because their service has too many.
    RouteOverflow = "route_overflow",

    /// Spans that the OTLP endpoint accepted.
    OtlpSent = "otlp_spans_sent",
    /// Attempts to send to the OTLP endpoint that failed, retries included.
    OtlpFailedAttempts = "otlp_attempts_failed",
    /// Spans dropped, oldest first, because the OTLP queue was full.
    OtlpQueueFull = "otlp_spans_lost_queue_full",
    /// Spans dropped because the OTLP endpoint refused their request for good.
    OtlpRefused = "otlp_spans_lost_refused",
    /// Spans that the OTLP endpoint rejected from a request that it accepted (partial success).
    OtlpRejected = "otlp_spans_lost_rejected",
    /// Spans dropped because the OTLP endpoint failed for too long.
    OtlpGaveUp = "otlp_spans_lost_gave_up",
    /// Spans still unsent when the agent stopped.
    OtlpStopped = "otlp_spans_lost_at_stop",

    /// Points of metrics that the OTLP endpoint accepted.
    OtlpPointsSent = "otlp_points_sent",
    /// Points of metrics that did not get through; the next ones tell what they told.
    OtlpPointsFailed = "otlp_points_failed",
    /// Log records that the OTLP endpoint accepted.
    OtlpLogsSent = "otlp_logs_sent",
    /// Log records that did not get through.
    OtlpLogsLost = "otlp_logs_lost",

    /// Spans written to the spans file.
    FileWritten = "file_spans_written",
    /// Writes to the spans file that failed.
    FileFailedWrites = "file_writes_failed",
    /// Spans dropped, oldest first, because the file's queue was full.
    FileQueueFull = "file_spans_lost_queue_full",
    /// Spans still unwritten when the agent stopped.
    FileStopped = "file_spans_lost_at_stop",

    /// Spans written to the store.
    StoreWritten = "store_spans_written",
    /// Samples written to the store.
    StoreSamplesWritten = "store_samples_written",
    /// Writes to the store that failed.
    StoreFailedWrites = "store_writes_failed",
    /// Spans dropped, oldest first, because the store's queue was full.
    StoreQueueFull = "store_spans_lost_queue_full",
    /// Spans dropped because the store broke and could not be begun anew.
    StoreBroken = "store_spans_lost_broken",
    /// Spans still unwritten when the agent stopped.
    StoreStopped = "store_spans_lost_at_stop",
    /// Samples dropped because profiles came faster than they could be stored, or could not be at all.
    StoreSamplesLost = "store_samples_lost",
}

/// The values of all counters; shared by the threads that count.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Count::ALL.len()],
}

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; Count::ALL.len()],
        }
    }

    /// Adds to a counter.
    pub fn add(&self, count: Count, n: u64) {
        // Each counter stands alone: nothing is ordered by it.
        self.values[count as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// A counter's value.
    pub fn get(&self, count: Count) -> u64 {
        self.values[count as usize].load(Ordering::Relaxed)
    }

    /// All counters by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Count::ALL.iter().map(|&c| (c.name(), self.get(c)))
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each counter has a name of its own, so that no two share a line in a log or a metric.
    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Count::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    /// A counter counts itself and no other.
    #[test]
    fn adds_to_its_own_value() {
        let counters = Counters::new();
        counters.add(Count::OtlpSent, 2);
        counters.add(Count::OtlpSent, 3);
        for (name, value) in counters.iter() {
            assert_eq!(
                value,
                if name == "otlp_spans_sent" { 5 } else { 0 },
                "{name}"
            );
        }
    }
}
