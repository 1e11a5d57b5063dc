//! What is counted of every request, sampled or not, and what the agent says of itself.

use std::sync::Arc;

use super::worker::Worker;
use crate::{
    error::Result,
    metrics::{Agent, SharedMetrics, agent},
    policy::http,
    span::Resource,
    telemetry::{clock, usage::SelfUsage},
};

/// The metrics, and what the agent's own are taken from.
pub(super) struct Measure {
    pub(super) metrics: SharedMetrics,
    resource: Arc<Resource>,
    usage: Option<SelfUsage>,
}

impl Measure {
    pub(super) fn new(metrics: SharedMetrics) -> Self {
        let started = metrics.lock().start();
        Self {
            metrics,
            resource: agent::resource(started),
            usage: SelfUsage::start().ok(),
        }
    }
}

impl Worker {
    /// Takes down what is true now: requests under way, and the agent's own numbers.
    pub(super) fn measure(&mut self) -> Result<()> {
        if self.measure.is_none() {
            return Ok(());
        }
        let counters = self.all_counters()?;
        let Some(measure) = &mut self.measure else {
            return Ok(());
        };
        let agent = Agent {
            resource: Arc::clone(&measure.resource),
            counters,
            usage: measure.usage.as_mut().and_then(|usage| usage.read().ok()),
            bill: self.meter.bill(),
            processes: self.processes.live(),
            queues: self
                .exporters
                .stats()
                .map(|stats| (stats.name, stats.queued))
                .collect(),
        };
        let mut metrics = measure.metrics.lock();
        let serving = self.decoder.correlator.serving();
        metrics.set_active(serving.map(|(tgid, method)| (tgid, http::method(method))));
        metrics.set_agent(agent);
        let now = clock::read(libc::CLOCK_REALTIME);
        metrics.set_live(|tgid| self.processes.is_live(tgid), now);
        metrics.forget(now);
        Ok(())
    }
}
