//! Who runs: the addresses of Python contexts become identities that are never reused.
//!
//! A context (`PyContext*`) is known by its address, and CPython reuses addresses within microseconds.
//! An identity is a number of its own: a copy makes a new one at its address, an end leaves the
//! address to the next. Work that a thread takes out of a queue keeps the identity of who put it in,
//! and a thread that reads and answers requests one by one has an identity for each.

mod threads;

use decnet_trace_common::event::{
    Header, Lineage, LineageWhat, Proc, ProcWhat, SockOp, SockState, flags, tcp_state,
};
use rustc_hash::FxHashMap;

use threads::Threads;

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
    /// A copy of another, made at the time [`Node::since`]; or work that it put into a queue then.
    Copied,
    /// A thread that began to serve a request, and nothing beside it, at that time.
    Turn,
    /// Work that a thread took out of a queue, at that time: it is being found out whether the thread runs it
    /// before it takes the next.
    Unjudged,
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

/// How many ancestors are climbed.
pub(super) const CLIMB_MAX: usize = 64;

/// How long to wait until it is known what a function is, in nanoseconds.
const VERDICT_MAX: u64 = 5_000_000_000;

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
    /// Functions that took something out of a queue and are not known.
    callers: Vec<(u32, u64)>,
}

/// The most unknown functions that wait to be looked at.
const CALLERS_MAX: usize = 256;

#[derive(Debug, Default)]
struct Process {
    /// Since when copies and ends of contexts are told.
    armed: Option<u64>,
    /// Who lives at an address now.
    contexts: FxHashMap<u64, Identity>,
    threads: Threads,
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
            callers: Vec::new(),
        }
    }

    /// Takes note of a step in the descent of contexts, or in the way of work through a queue.
    pub fn on_lineage(&mut self, step: &Lineage) {
        let Header { tgid, tid, ts, .. } = step.header;
        if self.is_stale(tgid, ts) {
            return;
        }
        match LineageWhat::from_u32(step.what) {
            Some(LineageWhat::Copied) => {
                let parent = self.resolve(&step.header, step.context);
                let child = self.add(Node {
                    parent,
                    since: ts,
                    origin: Origin::Copied,
                });
                self.make_room(tgid, ts);
                self.process(tgid).contexts.insert(step.object, child);
            }
            Some(LineageWhat::Ended) => {
                self.process(tgid).contexts.remove(&step.object);
            }
            Some(LineageWhat::Put) => {
                let parent = self.resolve(&step.header, step.context);
                let work = (!parent.is_unknown()).then(|| {
                    self.add(Node {
                        parent,
                        since: ts,
                        origin: Origin::Copied,
                    })
                });
                self.process(tgid).threads.put(step.object, work);
            }
            Some(LineageWhat::Taken) => {
                let took = self
                    .process(tgid)
                    .threads
                    .took(tid, step.object, step.caller);
                if took.is_new {
                    match self.callers.len() < CALLERS_MAX {
                        true => self.callers.push((tgid, step.caller)),
                        false => self.process(tgid).threads.not_asked(step.caller),
                    }
                }
                if let Some(who) = took.who {
                    let meanwhile = self.add(Node {
                        parent: Identity::UNKNOWN,
                        since: ts,
                        origin: Origin::Unjudged,
                    });
                    let threads = &mut self.process(tgid).threads;
                    threads.await_verdict(tid, step.caller, meanwhile, who);
                }
            }
            None => {}
        }
    }

    /// Functions (process and code object) that took something out of a queue, of which
    /// [`Self::set_loop`] should tell.
    pub fn unknown_callers(&mut self) -> impl Iterator<Item = (u32, u64)> {
        self.callers.drain(..)
    }

    /// Whether a function that takes objects out of a queue is a loop that runs each before it takes the
    /// next. What was done meanwhile for what it took is done for who put that in, if it is. `None` where that
    /// could not be found out: then it is asked again.
    pub fn set_loop(&mut self, tgid: u32, caller: u64, is_loop: Option<bool>) {
        let Some(process) = self.processes.get_mut(&tgid) else {
            return;
        };
        let Some(is_loop) = is_loop else {
            process.threads.not_asked(caller);
            return;
        };
        let judged = process.threads.set_loop(caller, is_loop);
        for unjudged in judged {
            let slot = self.slot(unjudged.meanwhile);
            let Some((_, node)) = self
                .nodes
                .get_mut(slot)
                .filter(|(holder, _)| *holder == unjudged.meanwhile)
            else {
                continue;
            };
            if is_loop {
                node.parent = unjudged.who;
                node.origin = Origin::Copied;
            } else {
                node.origin = Origin::Seen;
            }
        }
    }

    /// Takes note of a socket operation, which may show that a thread serves one request at a time; for
    /// whom it was done, if it moved a head.
    pub fn on_sock_op(&mut self, op: &SockOp) -> Identity {
        let Header { tgid, tid, ts, .. } = op.header;
        let is_head = op.flags & flags::HEAD != 0;
        let send = op.flags & flags::SEND != 0;
        if is_head && op.flags & flags::BLOCKING != 0 && begins_request(op.first) {
            if !self.is_stale(tgid, ts)
                && self.process(tgid).threads.begins_request(tid, op.sock, ts)
            {
                let turn = self.add(Node {
                    parent: Identity::UNKNOWN,
                    since: ts,
                    origin: Origin::Turn,
                });
                self.process(tgid).threads.set_base(tid, turn);
            }
        } else if send
            && (op.ret <= 0 || op.first.starts_with(b"HTTP/"))
            && let Some(process) = self.processes.get_mut(&tgid)
        {
            process.threads.answered(op.sock);
        }
        if !is_head {
            return Identity::UNKNOWN;
        }
        self.resolve(&op.header, op.context)
    }

    /// Takes note of a socket that closed.
    pub fn on_sock_state(&mut self, state: &SockState) {
        if state.new != tcp_state::LISTEN
            && let Some(process) = self.processes.get_mut(&state.header.tgid)
        {
            process.threads.answered(state.sock);
        }
    }

    /// Takes note of a thread that ended, or a process that executed another program: what was thought of its
    /// addresses is void.
    pub fn on_proc(&mut self, proc: &Proc) {
        let tgid = proc.header.tgid;
        match ProcWhat::from_u32(proc.what) {
            Some(ProcWhat::ThreadExit) => {
                if let Some(process) = self.processes.get_mut(&tgid) {
                    process.threads.ended(proc.header.tid);
                }
            }
            Some(ProcWhat::Exec) => self.forget_process(tgid),
            Some(ProcWhat::Fork | ProcWhat::Exit) | None => {}
        }
    }

    /// For whom a thread runs that has entered `context` (0: none), at the time of the header. A context
    /// that is a copy tells by itself. Another may be the thread's own, or a new one; then it counts what
    /// the thread has taken upon itself.
    pub fn resolve(&mut self, header: &Header, context: u64) -> Identity {
        let Header { tgid, tid, ts, .. } = *header;
        // An address seen before its ends are told may have been another's since.
        if self.is_stale(tgid, ts) {
            return Identity::UNKNOWN;
        }
        let process = self.process(tgid);
        let base = process.threads.base(tid);
        if context == 0 {
            return base.unwrap_or(Identity::UNKNOWN);
        }
        let origin = match process.armed {
            Some(_) => Origin::Seen,
            None => Origin::Unsure,
        };
        let known = process.contexts.get(&context).copied();
        match (known, base) {
            (Some(known), base) => {
                let is_own = self
                    .node(known)
                    .is_none_or(|node| node.origin == Origin::Copied);
                base.filter(|_| !is_own).unwrap_or(known)
            }
            (None, Some(base)) => base,
            (None, None) => {
                let seen = self.add(Node {
                    parent: Identity::UNKNOWN,
                    since: ts,
                    origin,
                });
                self.make_room(tgid, ts);
                self.process(tgid).contexts.insert(context, seen);
                seen
            }
        }
    }

    /// Whether an event is older than what is thought of its process.
    fn is_stale(&self, tgid: u32, ts: u64) -> bool {
        self.armed(tgid).is_some_and(|armed| ts < armed)
    }

    /// Since when copies and ends of a process's contexts are told.
    pub fn armed(&self, tgid: u32) -> Option<u64> {
        self.processes.get(&tgid)?.armed
    }

    /// Whether someone is a thread rather than a copy of a context: it may run for another who is not
    /// known.
    pub fn is_rootless(&self, identity: Identity) -> bool {
        self.node(identity)
            .is_none_or(|node| !matches!(node.origin, Origin::Copied | Origin::Turn))
    }

    /// Whether it is being found out whose work someone does, or an ancestor: at `now`, soon.
    pub fn is_unjudged(&self, identity: Identity, now: u64) -> bool {
        let mut next = identity;
        for _ in 0..CLIMB_MAX {
            let Some(node) = self.node(next) else {
                return false;
            };
            if node.origin == Origin::Unjudged {
                return now.saturating_sub(node.since) < VERDICT_MAX;
            }
            next = node.parent;
        }
        false
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
        if let Some(process) = self.processes.remove(&tgid) {
            self.evicted += process.threads.forgotten();
        }
    }

    /// Since `now`, copies and ends of the process's contexts are told. What was thought of its addresses
    /// before is void.
    pub fn arm(&mut self, tgid: u32, now: u64) {
        let process = self.processes.entry(tgid).or_default();
        *process = std::mem::take(process).restart(now);
    }

    /// Events were lost: what is thought of any address may be wrong from here on, and is void.
    pub fn events_lost(&mut self, now: u64) {
        for process in self.processes.values_mut() {
            if process.armed.is_some() {
                *process = std::mem::take(process).restart(now);
            } else {
                *process = Process::default();
            }
        }
    }

    /// Identities forgotten for want of room.
    pub fn evicted(&self) -> u64 {
        let threads: u64 = self
            .processes
            .values()
            .map(|process| process.threads.forgotten())
            .sum();
        self.evicted + threads
    }

    fn process(&mut self, tgid: u32) -> &mut Process {
        self.processes.entry(tgid).or_default()
    }

    /// Keeps a process's state within its bounds: where too many contexts live, all of them are
    /// forgotten together, and what was under way has no owner.
    fn make_room(&mut self, tgid: u32, now: u64) {
        let process = self.processes.entry(tgid).or_default();
        if process.contexts.len() < CONTEXTS_MAX {
            return;
        }
        self.evicted += process.contexts.len() as u64;
        if process.armed.is_some() {
            *process = std::mem::take(process).restart(now);
        } else {
            process.contexts.clear();
        }
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

impl Process {
    /// The same process, of which nothing is known of before `now`.
    fn restart(self, now: u64) -> Self {
        Self {
            armed: Some(now),
            contexts: FxHashMap::default(),
            threads: self.threads.restart(),
        }
    }
}

/// Whether a request may begin with these bytes: three capital letters at least, and a space behind them
/// if there is room for it.
fn begins_request(first: [u8; 8]) -> bool {
    let letters = first.iter().take_while(|b| b.is_ascii_uppercase()).count();
    letters >= 3 && first.get(letters).is_none_or(|&next| next == b' ')
}

#[cfg(test)]
#[path = "tests/identity.rs"]
mod tests;
