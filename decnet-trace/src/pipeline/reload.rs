//! What a pipeline at work can be told to do otherwise.

use std::sync::Arc;

use tracing::warn;

use super::worker::Worker;
use crate::{discover::Selector, policy::PolicyConfig, sampling::SamplingConfig};

/// What changes while a pipeline works.
#[derive(Debug)]
pub struct Reload {
    /// What becomes of a request on its way to a span.
    pub policy: PolicyConfig,
    /// Which traces are kept.
    pub sampling: SamplingConfig,
    /// Samples per second and CPU, where that changes; only of a pipeline that began with some, and
    /// makes no one profile of all of them.
    pub rate: Option<u32>,
    /// Which processes, where that changes.
    pub selector: Option<Selector>,
    /// Read the routes that services declare, where that changes.
    pub learn_routes: Option<bool>,
}

impl Worker {
    /// Works otherwise from now on.
    pub(super) fn reload(&mut self, reload: Reload) {
        let wanted = Arc::clone(&reload.policy.headers);
        self.decoder.correlator.want_headers(wanted);
        self.policy.reconfigure(reload.policy);
        self.sampling.reconfigure(reload.sampling);
        if let Some(rate) = reload.rate.filter(|rate| *rate != self.rate) {
            // A profile has one rate: what was sampled until now goes with the old one.
            self.cut_profile();
            match self.bpf.sample(rate) {
                Ok(()) => self.rate = rate,
                Err(error) => warn!("still sampling at {} Hz: {error}", self.rate),
            }
        }
        let Some(discovery) = &self.discovery else {
            return;
        };
        let selected = reload
            .selector
            .is_none_or(|selector| discovery.select(selector));
        let learning = reload
            .learn_routes
            .is_none_or(|learn| discovery.learn_routes(learn));
        if !(selected && learning) {
            warn!("the targets were not changed: too much is happening; send SIGHUP again");
        }
    }
}
