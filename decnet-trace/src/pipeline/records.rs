//! Where each record from the rings goes.

use std::sync::Arc;

use decnet_trace_common::event::{self, StatementWhat, flags, sample_flags};
use rustc_hash::FxHashSet;

use super::{Overlooked, discovery::DiscoveryThread, live::Live, statements::Sighting};
use crate::{
    correlate::{
        Correlator,
        exchange::Exchange,
        identity::{Identities, Identity},
        statement::Statement,
        statements::Statements,
    },
    decode::{Event, decode},
    profile::aggregate::Aggregator,
    unwind,
};

/// How many databases are noted in a round, to be looked at.
const SIGHTINGS_MAX: usize = 4;

/// The part of the state that each record goes through; apart from the rest so that the rings can be
/// read meanwhile.
pub struct Decoder {
    pub(super) identities: Identities,
    pub(super) correlator: Correlator,
    pub(super) profile: Option<Aggregator>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) statements: Statements,
    /// Statements that are over.
    pub(super) executed: Vec<Statement>,
    /// The libraries, as bits, of which a database should be looked at.
    pub(super) wanted: u64,
    pub(super) sightings: Vec<Sighting>,
    /// Processes that called `executemany`.
    pub(super) batching: FxHashSet<u32>,
    pub(super) live: Arc<Live>,
    /// Who loads unwind tables, where there are any.
    unwind: Option<unwind::Client>,
    overlooked: Overlooked,
    pub(super) undecoded: u64,
}

impl Decoder {
    /// One that has seen nothing. Samples are counted by `profile`, where there is one.
    pub fn new(
        identities: Identities,
        correlator: Correlator,
        profile: Option<Aggregator>,
        live: Arc<Live>,
    ) -> Self {
        Self {
            identities,
            correlator,
            profile,
            exchanges: Vec::new(),
            statements: Statements::new(),
            executed: Vec::new(),
            wanted: 0,
            sightings: Vec::new(),
            batching: FxHashSet::default(),
            live,
            unwind: None,
            overlooked: Overlooked::default(),
            undecoded: 0,
        }
    }

    /// The same, which asks `unwind` for the tables that samples call for.
    pub(super) fn with_unwinding(mut self, unwind: Option<unwind::Client>) -> Self {
        self.unwind = unwind;
        self
    }

    /// The same, which overlooks something of socket operations.
    pub(super) const fn overlooking(mut self, overlooked: Overlooked) -> Self {
        self.overlooked = overlooked;
        self
    }

    /// Sends one record where it belongs, as it was taken from a ring. For replays: nobody looks for
    /// processes.
    pub fn replay(&mut self, bytes: &[u8]) {
        self.record(bytes, None);
    }

    /// Takes out the requests and calls that are over.
    pub fn finished(&mut self) -> impl Iterator<Item = Exchange> {
        self.executed.clear();
        self.exchanges.drain(..)
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: u64) {
        self.correlator.tick(now, &mut self.exchanges);
        self.statements.flush(now, &mut self.executed);
    }

    /// Records were lost: what is half-seen must not be paired wrongly.
    pub(super) fn events_lost(&mut self) {
        self.correlator.events_lost();
        self.statements.events_lost(&mut self.executed);
    }

    /// A process has ended.
    pub(super) fn forget_process(&mut self, tgid: u32) {
        self.identities.forget_process(tgid);
        self.statements.forget_process(tgid, &mut self.executed);
    }

    /// A process has executed another program, and is traced on.
    pub(super) fn executed(&mut self, tgid: u32) {
        // That was told in its time, unless the record was lost; what was seen since is the new program's.
        if self.identities.armed(tgid).is_some() {
            self.identities.forget_process(tgid);
        }
        self.statements.forget_process(tgid, &mut self.executed);
    }

    /// A process is traced from `now` on, and was not until then.
    pub(super) fn traced_anew(&mut self, tgid: u32, now: u64) {
        self.forget_process(tgid);
        self.correlator.traced_anew(tgid, now);
    }

    /// A step of a statement.
    fn statement(&mut self, step: &event::Statement, text: &[u8], file: &[u8]) {
        let tgid = step.header.tgid;
        let begins = step.db != 0 && !text.is_empty();
        let is_many = step.what == StatementWhat::Many as u16;
        if is_many {
            self.batching.insert(tgid);
        }
        let identity = match begins || is_many {
            true => self.identities.resolve(&step.header, step.context),
            false => Identity::UNKNOWN,
        };
        self.statements
            .on_step(step, text, file, identity, &mut self.executed);
        let library = step.library;
        if begins
            && self.wanted.unbounded_shr(u32::from(library)) & 1 != 0
            && self.sightings.len() < SIGHTINGS_MAX
        {
            self.sightings.push(Sighting {
                library,
                tgid,
                db: step.db,
            });
        }
    }

    /// Sends one record where it belongs.
    pub(super) fn record(&mut self, bytes: &[u8], discovery: Option<&DiscoveryThread>) {
        match decode(bytes) {
            Ok(Event::SockOp(mut op, payload, path)) => {
                if self.overlooked.contexts {
                    op.context = 0;
                }
                if self.overlooked.blocking {
                    op.flags &= !flags::BLOCKING;
                }
                // From here on the context's address, which is reused, is a number that is not.
                op.context = self.identities.on_sock_op(&op).to_bits();
                self.correlator
                    .on_sock_op(&op, payload, &mut self.exchanges);
                if !path.is_empty() {
                    self.correlator.on_unix_path(op.sock, path);
                }
            }
            Ok(Event::SockState(state)) => {
                self.identities.on_sock_state(&state);
                self.correlator.on_sock_state(&state, &mut self.exchanges);
                if let Some(discovery) = discovery {
                    discovery.on_sock_state(&state);
                }
            }
            Ok(Event::Proc(event)) => {
                self.identities.on_proc(&event);
                self.correlator.on_proc(&event, &mut self.exchanges);
                if let Some(profile) = &mut self.profile {
                    profile.process(&event);
                }
                if let Some(discovery) = discovery {
                    discovery.on_proc(&event);
                }
            }
            Ok(Event::Sample(sample, frames)) => {
                self.live.count(&sample);
                if let Some(unwind) = &self.unwind
                    && sample.flags & sample_flags::NATIVE_UNMAPPED != 0
                {
                    unwind.look(sample.header.tgid);
                }
                if let Some(profile) = &mut self.profile {
                    profile.sample(&sample, &frames);
                }
            }
            Ok(Event::Lineage(step)) => self.identities.on_lineage(&step),
            Ok(Event::Statement(step, text, file)) => self.statement(&step, text, file),
            Err(_) => self.undecoded += 1,
        }
    }
}
