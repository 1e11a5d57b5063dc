//! The metrics as the pipeline, which counts, and the sinks, which read, share them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Metrics, MetricsConfig, Snapshot};

/// Metrics that are counted on one thread and read on others.
#[derive(Clone, Debug)]
pub struct SharedMetrics(Arc<Mutex<Metrics>>);

impl SharedMetrics {
    /// Nothing measured yet; `start` is now, in nanoseconds since the Unix epoch.
    pub fn new(config: MetricsConfig, start: u64) -> Self {
        Self(Arc::new(Mutex::new(Metrics::new(config, start))))
    }

    /// The metrics. Every request that is counted waits for who holds them: readers take a
    /// [`Snapshot`] and write that down.
    pub fn lock(&self) -> MutexGuard<'_, Metrics> {
        // Who panicked left counts behind, and they are whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it as it is now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().snapshot()
    }
}
