//! Requests that came from traced processes, put under the calls that they are.

use std::{fs, os::unix::fs::MetadataExt as _, sync::Arc};

use super::worker::Worker;
use crate::{
    correlate::{attribution::RequestId, exchange::Exchange},
    span::{Resource, SpanRef},
};

/// What is known of a request that was served, beside its exchange.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) resource: Arc<Resource>,
    /// Its number, where calls may belong to it.
    pub(super) request: Option<RequestId>,
}

/// The inode number of a process's network namespace; 0 where it cannot be read, as the process is gone.
pub(super) fn network(tgid: u32) -> u64 {
    let link = fs::metadata(format!("/proc/{tgid}/ns/net"));
    link.map_or(0, |found| found.ino())
}

impl Worker {
    /// A request was served: it gets its span, or waits for its call.
    pub(super) fn served(&mut self, now: u64, exchange: Exchange, resource: Arc<Resource>) {
        self.requests.served += 1;
        let request = self.calls.served(&self.decoder.identities, &exchange);
        let served = Served { resource, request };
        let is_named = || self.policy.names_parent(&exchange);
        if !self.joins.may_be_called(&exchange) || is_named() {
            self.place(now, exchange, served, None);
        } else if let Some((exchange, served)) = self.joins.wait(exchange, served) {
            self.place(now, exchange, served, None);
        }
    }

    /// Gives a request its place: under its call, if it is known to be one.
    fn place(&mut self, now: u64, exchange: Exchange, served: Served, call: Option<SpanRef>) {
        let identity = match &call {
            Some(call) => self.policy.join(&exchange, call),
            None => self.policy.identify(&exchange, None),
        };
        if let Some(request) = served.request {
            self.calls.placed(request, identity.reference());
        }
        self.handing(now)
            .served(exchange, served.resource, identity);
    }

    /// Gives requests their places whose calls have theirs; whether there were any.
    fn join(&mut self, now: u64, last: bool) -> bool {
        if self.joins.waiting() == 0 {
            return false;
        }
        let mut joined = Vec::new();
        self.joins.decide(now, last, |exchange, served, call| {
            joined.push((exchange, served, call));
        });
        let any = !joined.is_empty();
        for (exchange, served, call) in joined {
            self.place(now, exchange, served, call);
        }
        any
    }

    /// Puts calls under the requests that caused them, and requests under the calls that they are, as
    /// far as that is known by now. `all`: nothing comes after this.
    pub(super) fn link_and_join(&mut self, now: u64, all: bool) {
        let asked = self.decoder.correlator.asked();
        asked.for_each(|asked| self.joins.asked(asked));
        self.link(now, all);
        // One may hang under the other, and so on.
        while self.join(now, false) {
            match all {
                true => self.link(now, true),
                false => self.release(now),
            }
        }
        if all {
            while self.join(now, true) {
                self.link(now, true);
            }
        }
    }

    /// What is done about once a second.
    pub(super) fn sweep_joins(&mut self, now: u64) {
        let Self { joins, decoder, .. } = self;
        joins.sweep(now, |sock, number| decoder.correlator.is_open(sock, number));
        let evicted = decoder.correlator.counters().connections_evicted;
        if evicted > self.evicted {
            // What was read on those connections before is not known any more.
            self.evicted = evicted;
            self.joins.events_lost(now);
        }
    }

    /// The counters of joining, by name.
    pub(super) fn join_counters(&self) -> [(&'static str, u64); 4] {
        let counts = self.joins.counts();
        [
            ("requests_joined", counts.joined),
            ("requests_joins_ambiguous", counts.ambiguous),
            ("requests_joins_late", counts.late),
            ("requests_joins_overflowed", counts.overflowed),
        ]
    }
}
