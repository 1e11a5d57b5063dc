//! The traced processes as the pipeline knows them, and exchanges of those that it does not know yet.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::{correlate::exchange::Exchange, span::Resource};

/// How long an exchange waits for its process to be known, in nanoseconds: a forked child is traced
/// from its first instruction, and looked at a little later.
const PATIENCE: u64 = 2_000_000_000;

/// How many exchanges may wait.
const WAITING_MAX: usize = 10_000;

/// How long a process that ended is remembered, for what is still under way from it, in nanoseconds.
const REMEMBER: u64 = 60_000_000_000;

/// The traced processes.
#[derive(Debug, Default)]
pub(super) struct Processes {
    resources: FxHashMap<u32, Known>,
    waiting: Vec<(u64, Exchange)>,
}

#[derive(Debug)]
struct Known {
    resource: Arc<Resource>,
    ended: Option<u64>,
}

impl Processes {
    /// A process is traced.
    pub(super) fn add(&mut self, resource: Arc<Resource>) {
        let tgid = resource.tgid;
        self.resources.insert(
            tgid,
            Known {
                resource,
                ended: None,
            },
        );
    }

    /// A process is no longer traced.
    pub(super) fn end(&mut self, tgid: u32, now: u64) {
        if let Some(known) = self.resources.get_mut(&tgid) {
            known.ended = Some(now);
        }
    }

    /// What an exchange's telemetry comes from.
    pub(super) fn resource(&self, tgid: u32) -> Option<&Arc<Resource>> {
        self.resources.get(&tgid).map(|known| &known.resource)
    }

    /// How many are traced now.
    pub(super) fn live(&self) -> usize {
        self.resources
            .values()
            .filter(|known| known.ended.is_none())
            .count()
    }

    /// The names of all that were traced, for a title.
    pub(super) fn names(&self) -> String {
        let mut names: Vec<_> = self
            .resources
            .values()
            .map(|known| known.resource.service_name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// Keeps an exchange until its process is known.
    pub(super) fn wait(&mut self, now: u64, exchange: Exchange) -> Option<Exchange> {
        if self.waiting.len() >= WAITING_MAX {
            return Some(exchange);
        }
        self.waiting.push((now, exchange));
        None
    }

    /// Exchanges whose process is known by now, and those that have waited for too long.
    pub(super) fn ready(&mut self, now: u64, all: bool) -> Vec<Exchange> {
        let resources = &self.resources;
        self.waiting
            .extract_if(.., |(since, exchange)| {
                all || resources.contains_key(&exchange.tgid)
                    || now.saturating_sub(*since) > PATIENCE
            })
            .map(|(_, exchange)| exchange)
            .collect()
    }

    /// Forgets processes that ended long ago. (One may have ended after the round's `now`.)
    pub(super) fn sweep(&mut self, now: u64) {
        self.resources.retain(|_, known| {
            known
                .ended
                .is_none_or(|ended| now.saturating_sub(ended) < REMEMBER)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that ended after the round began is remembered, and forgotten a minute later.
    #[test]
    fn remembers_for_a_while() {
        let mut processes = Processes::default();
        processes.add(Arc::new(Resource {
            tgid: 7,
            service_name: "a".into(),
            attributes: Vec::new(),
        }));
        processes.end(7, 1_000);
        processes.sweep(999);
        assert!(processes.resource(7).is_some());
        processes.sweep(1_000 + REMEMBER);
        assert!(processes.resource(7).is_none());
    }
}
