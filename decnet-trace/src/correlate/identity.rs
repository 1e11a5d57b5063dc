//! Who runs: the addresses of Python contexts become identities that are never reused.
//!
//! A context (`PyContext*`) is known by its address, and CPython reuses addresses within microseconds.
//! An identity is a number of its own: a copy makes a new one at its address, an end leaves the
//! address to the next. Work that a thread takes out of a queue keeps the identity of who put it in.

use decnet_trace_common::event::{Header, Lineage, LineageWhat};
use rustc_hash::FxHashMap;

/// Someone for whom code runs: a context in one life of its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(u64);

impl Identity {
    /// Nobody that is known.
    pub const UNKNOWN: Self = Self(0);

    /// Whether nothing is known.
    pub const fn is_unknown(self) -> bool {
        self.0 == 0
    }

    /// As the number that stands in the place of a context's address from here on.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The identity with this number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// How an identity came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A copy of another, made at the time [`Node::since`].
    Copied,
    /// Seen first at that time; it may be older. From then on it is one and the same.
    Seen,
    /// The same, but its process is not watched closely enough to tell when its address passes on to
    /// another.
    Unsure,
}

/// What is known of an identity.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Whose copy it is.
    pub parent: Identity,
    /// Since when it is known, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// How it came to be known.
    pub origin: Origin,
}

/// The most identities that are remembered; the oldest are forgotten first, and what they did
/// afterwards has no owner.
pub const IDENTITIES_MAX: usize = 1 << 18;

/// The most live contexts of a process that are remembered.
const CONTEXTS_MAX: usize = 1 << 17;

/// All identities of all processes.
#[derive(Debug)]
pub struct Identities {
    processes: FxHashMap<u32, Process>,
    /// Identity `n` is in slot `n % max`, unless a later one is.
    nodes: Vec<(Identity, Node)>,
    max: usize,
    next: u64,
    evicted: u64,
}

#[derive(Debug, Default)]
struct Process {
    /// Since when copies and ends of contexts are told.
    armed: Option<u64>,
    /// Who lives at an address now.
    contexts: FxHashMap<u64, Identity>,
}

impl Default for Identities {
    fn default() -> Self {
        Self::new(IDENTITIES_MAX)
    }
}

impl Identities {
    /// Remembers at most `max` identities.
    pub fn new(max: usize) -> Self {
        Self {
            processes: FxHashMap::default(),
            nodes: Vec::new(),
            max: max.max(1),
            next: 1,
            evicted: 0,
        }
    }

    /// Takes note of a step in the descent of contexts.
    pub fn on_lineage(&mut self, step: &Lineage) {
        let Header { tgid, ts, .. } = step.header;
        match LineageWhat::from_u32(step.what) {
            Some(LineageWhat::Copied) => {
                let parent = self.resolve(tgid, step.context, ts);
                let child = self.add(Node {
                    parent,
                    since: ts,
                    origin: Origin::Copied,
                });
                self.process(tgid).contexts.insert(step.object, child);
            }
            Some(LineageWhat::Ended) => {
                self.process(tgid).contexts.remove(&step.object);
            }
            None => {}
        }
    }

    /// The identity for which a thread that has entered `context` (0: none) runs at `ts`.
    pub fn resolve(&mut self, tgid: u32, context: u64, ts: u64) -> Identity {
        let process = self.process(tgid);
        // An address seen before its ends are told may have been another's since.
        if context == 0 || process.armed.is_some_and(|armed| ts < armed) {
            return Identity::UNKNOWN;
        }
        let armed = process.armed.is_some();
        if let Some(&known) = process.contexts.get(&context) {
            return known;
        }
        let seen = self.add(Node {
            parent: Identity::UNKNOWN,
            since: ts,
            origin: if armed { Origin::Seen } else { Origin::Unsure },
        });
        self.process(tgid).contexts.insert(context, seen);
        seen
    }

    /// What is known of an identity, if it has not been forgotten.
    pub fn node(&self, identity: Identity) -> Option<&Node> {
        if identity.is_unknown() {
            return None;
        }
        let (holder, node) = self.nodes.get(self.slot(identity))?;
        (*holder == identity).then_some(node)
    }

    /// The process has ended, or executes another program: its addresses are void.
    pub fn forget_process(&mut self, tgid: u32) {
        self.processes.remove(&tgid);
    }

    /// Since `now`, copies and ends of the process's contexts are told. What was thought of its addresses
    /// before is void.
    pub fn arm(&mut self, tgid: u32, now: u64) {
        let process = Process {
            armed: Some(now),
            ..Process::default()
        };
        self.processes.insert(tgid, process);
    }

    /// Identities forgotten for want of room.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The process's state, kept within its bounds: where addresses are never said to end, all of them
    /// are forgotten together.
    fn process(&mut self, tgid: u32) -> &mut Process {
        let process = self.processes.entry(tgid).or_default();
        if process.contexts.len() >= CONTEXTS_MAX {
            self.evicted += process.contexts.len() as u64;
            process.contexts.clear();
        }
        process
    }

    fn slot(&self, identity: Identity) -> usize {
        (identity.0 % self.max as u64) as usize
    }

    fn add(&mut self, node: Node) -> Identity {
        let identity = Identity(self.next);
        self.next += 1;
        let slot = self.slot(identity);
        if slot < self.nodes.len() {
            self.nodes[slot] = (identity, node);
            self.evicted += 1;
        } else {
            // The first round fills the slots in order; slot 0 belongs to the last of it.
            while self.nodes.len() < slot {
                self.nodes.push((
                    Identity::UNKNOWN,
                    Node {
                        parent: Identity::UNKNOWN,
                        since: 0,
                        origin: Origin::Unsure,
                    },
                ));
            }
            self.nodes.push((identity, node));
        }
        identity
    }
}
