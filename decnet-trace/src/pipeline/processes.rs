//! The traced processes as the pipeline knows them, and exchanges of those that it does not know yet.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::{
    correlate::exchange::Exchange,
    span::{Resource, Value},
};

/// How long an exchange waits for its process to be known, in nanoseconds: a child is traced from its first
/// instruction, and looked at a little later; as long as its interpreter is not mapped, again and again.
const PATIENCE: u64 = 20_000_000_000;

/// How many exchanges may wait.
const WAITING_MAX: usize = 10_000;

/// How long a process that ended is remembered, for what is still under way from it, in nanoseconds.
const REMEMBER: u64 = 60_000_000_000;

/// How many processes may be nameless, before those are forgotten.
const NAMELESS_MAX: usize = 256;

/// The traced processes.
#[derive(Debug, Default)]
pub(super) struct Processes {
    resources: FxHashMap<u32, Known>,
    /// Those of which nothing could be learnt.
    nameless: FxHashMap<u32, Arc<Resource>>,
    waiting: Vec<(u64, Exchange)>,
    /// Exchanges whose processes never became known.
    lost: u64,
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

    /// What is said of a process of which nothing could be learnt before it was gone.
    pub(super) fn nameless(&mut self, tgid: u32) -> Arc<Resource> {
        if self.nameless.len() >= NAMELESS_MAX && !self.nameless.contains_key(&tgid) {
            self.nameless.clear();
        }
        let describe = || {
            Arc::new(Resource {
                tgid,
                service_name: "unknown_service".into(),
                attributes: vec![("service.name".into(), Value::Str("unknown_service".into()))],
            })
        };
        Arc::clone(self.nameless.entry(tgid).or_insert_with(describe))
    }

    /// Whether it is traced now.
    pub(super) fn is_live(&self, tgid: u32) -> bool {
        let known = self.resources.get(&tgid);
        known.is_some_and(|known| known.ended.is_none())
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
    pub(super) fn wait(&mut self, now: u64, exchange: Exchange) {
        if self.waiting.len() >= WAITING_MAX {
            self.lost += 1;
            return;
        }
        self.waiting.push((now, exchange));
    }

    /// Exchanges whose process is known by now; at the end, all. Those that have waited for too long are lost.
    pub(super) fn ready(&mut self, now: u64, all: bool) -> Vec<Exchange> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let resources = &self.resources;
        let ready = self
            .waiting
            .extract_if(.., |(_, exchange)| {
                all || resources.contains_key(&exchange.tgid)
            })
            .map(|(_, exchange)| exchange)
            .collect();
        let before = self.waiting.len();
        self.waiting
            .retain(|(since, _)| now.saturating_sub(*since) <= PATIENCE);
        self.lost += (before - self.waiting.len()) as u64;
        ready
    }

    /// A process that is not known turned out to be none that was asked for: its exchanges are nobody's.
    pub(super) fn drop_waiting(&mut self, tgid: u32) {
        if !self.resources.contains_key(&tgid) {
            self.waiting.retain(|(_, exchange)| exchange.tgid != tgid);
        }
    }

    /// Exchanges that were lost since their processes never became known.
    pub(super) fn lost(&self) -> u64 {
        self.lost
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
    use crate::policy::tests::served;

    fn known(tgid: u32) -> Arc<Resource> {
        Arc::new(Resource {
            tgid,
            service_name: "a".into(),
            attributes: Vec::new(),
        })
    }

    /// An exchange waits for its process, is forgotten where that was not asked for, and is counted where it is
    /// never known.
    #[test]
    fn exchanges_wait() {
        let mut processes = Processes::default();
        for tgid in [7, 8, 9] {
            processes.wait(1_000, Exchange { tgid, ..served() });
        }
        assert!(processes.ready(1_000, false).is_empty());
        processes.add(known(7));
        processes.drop_waiting(8);
        let ready = processes.ready(1_000 + PATIENCE, false);
        assert_eq!(ready.iter().map(|one| one.tgid).collect::<Vec<_>>(), [7]);
        assert_eq!(processes.lost(), 0);
        assert!(processes.ready(1_001 + PATIENCE, false).is_empty());
        assert_eq!(processes.lost(), 1);
        assert!(processes.ready(u64::MAX, true).is_empty());
    }

    /// Whatever is said of a process that nobody knows is said of the same, and how many of these are
    /// remembered is bounded.
    #[test]
    fn the_nameless_are_told_apart() {
        let mut processes = Processes::default();
        let first = processes.nameless(7);
        assert!(Arc::ptr_eq(&first, &processes.nameless(7)));
        assert!(!first.is_same(&processes.nameless(8)));
        for tgid in 0..10 * NAMELESS_MAX as u32 {
            assert_eq!(processes.nameless(tgid).tgid, tgid);
            assert!(processes.nameless.len() <= NAMELESS_MAX);
        }
        assert!(!processes.is_live(7));
    }

    /// A process that ended after the round began is remembered, and forgotten a minute later.
    #[test]
    fn remembers_for_a_while() {
        let mut processes = Processes::default();
        processes.add(known(7));
        processes.end(7, 1_000);
        processes.sweep(999);
        assert!(processes.resource(7).is_some());
        processes.sweep(1_000 + REMEMBER);
        assert!(processes.resource(7).is_none());
    }
}
