//! Which request caused a call: exact, or not said.
//!
//! A request belongs to the context that its response is sent from, or to the outermost of that
//! context's ancestors that came into being for the request. A call belongs to the request that owns
//! the nearest of its own context's ancestors. Since a request's owner is known only when it has been
//! answered, a call waits until every request of its process that was under way when it began is over,
//! or has begun its response in a context that was made for it; then nothing nearer can turn up.
//!
//! What makes an owner certain:
//! * The context is a copy made after the request's first byte was read: nobody else's. It stays the
//!   request's after the response, for background and detached tasks.
//! * It was first seen after that, and is not the one that the request was read in, though the same
//!   thread answered (a server that gives each request a context that is no copy). It is the request's
//!   until the response ends.
//! * It is no context but the turn of a thread that read the request and answered it, and did nothing
//!   beside. It is the request's until the response ends, and so is what was begun by then.
//!
//! A context in which several requests were answered (a task per connection) is each one's in turn if
//! they are of one connection, and nobody's otherwise. Whatever is not certain has no owner: a wrong
//! one would be worse than none.

mod unanswered;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::identity::{CLIMB_MAX, Identities, Identity, Origin};
use unanswered::Unanswered;

/// A request that a traced process served, as its span is numbered.
pub type RequestId = u64;

/// How many requests of a process are remembered, the youngest ones.
const REQUESTS_MAX: usize = 1 << 14;

/// How many calls of a process wait for their owner.
const WAITING_MAX: usize = 1 << 14;

/// How long a call waits for its owner, in nanoseconds: a request that stays unanswered for longer
/// keeps nobody waiting.
const WAIT_MAX: u64 = 60_000_000_000;

/// A request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Its number.
    pub id: RequestId,
    /// The connection that it came by.
    pub connection: u64,
    /// For whom it was read.
    pub reader: Identity,
    /// For whom its response was begun; unknown where there was none.
    pub responder: Identity,
    /// Whether the thread that read it began its response.
    pub one_thread: bool,
    /// When its first byte was read.
    pub start: u64,
    /// When its response's last byte was written.
    pub end: u64,
    /// Another was under way on its connection at the same time.
    pub pipelined: bool,
    /// Others may have come before it on its connection that were not seen, so that its response may be theirs.
    pub unsure: bool,
    /// Since when another may be served on its connection that stood behind it and was not seen, if one may.
    pub hides: Option<u64>,
}

/// A call of a process, and who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<T> {
    /// For whom.
    pub identity: Identity,
    /// When it began.
    pub at: u64,
    /// What it was.
    pub what: T,
}

/// Requests and the contexts that they own, and calls that wait for their owners, by process.
#[derive(Debug)]
pub struct Attribution<T> {
    processes: FxHashMap<u32, Process<T>>,
    overflowed: u64,
    /// Of processes that ended.
    forgotten: u64,
}

#[derive(Debug)]
struct Process<T> {
    /// What each identity owns.
    owners: FxHashMap<Identity, Vec<Owned>>,
    /// The requests that are owned, oldest first, and by whom.
    order: VecDeque<(Identity, RequestId)>,
    /// Requests whose contexts nobody knows.
    unanswered: Unanswered,
    waiting: VecDeque<Call<T>>,
}

/// A request that an identity owns.
#[derive(Clone, Copy, Debug)]
struct Owned {
    id: RequestId,
    connection: u64,
    start: u64,
    end: u64,
    right: Right,
}

/// What makes the ownership certain, and so how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// The context was made for the request.
    Made,
    /// The context was first seen while the request was open.
    Seen,
    /// A thread served the request, and nothing beside it.
    Turn,
    /// The context is older than the request: one that serves several in turn.
    Shared,
}

impl<T> Default for Process<T> {
    fn default() -> Self {
        Self {
            owners: FxHashMap::default(),
            order: VecDeque::new(),
            unanswered: Unanswered::default(),
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Default for Attribution<T> {
    fn default() -> Self {
        Self {
            processes: FxHashMap::default(),
            overflowed: 0,
            forgotten: 0,
        }
    }
}

impl<T> Attribution<T> {
    /// Takes note of a request of a process that is over.
    pub fn served(&mut self, identities: &Identities, tgid: u32, request: &Served) {
        let process = self.processes.entry(tgid).or_default();
        process.hide(request);
        let owner = match request.responder.is_unknown() || is_stale(identities, tgid, request) {
            true => None,
            false => process.owner_of(identities, request),
        };
        match owner {
            Some((owner, right)) => process.own(owner, request, right),
            None => process
                .unanswered
                .add(request.connection, request.start, request.end),
        }
    }

    /// Requests came by a connection of a process, since this time at the earliest, that were not seen.
    pub fn hidden(&mut self, tgid: u32, connection: u64, since: u64) {
        let process = self.processes.entry(tgid).or_default();
        process.unanswered.add(connection, since, u64::MAX);
    }

    /// A connection is no more on which requests were not seen.
    pub fn closed(&mut self, tgid: u32, connection: u64, at: u64) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.unanswered.closed(connection, at);
        }
    }

    /// Requests of any process may have been that are not known, until then.
    pub fn any_hidden(&mut self, until: u64) {
        for process in self.processes.values_mut() {
            process.unanswered.forget(until, until);
        }
    }

    /// Takes note of a request whose response has begun and is not over ([`Served::end`] is not looked at),
    /// if who owns it is certain by now: [`Self::ended`] should tell when it is over. Otherwise
    /// [`Self::served`] should, as if this had not been called.
    pub fn begun(&mut self, identities: &Identities, tgid: u32, request: &Served) -> bool {
        let request = Served {
            end: u64::MAX,
            ..*request
        };
        if is_stale(identities, tgid, &request) {
            return false;
        }
        let process = self.processes.entry(tgid).or_default();
        match process.owner_of(identities, &request) {
            Some((owner, Right::Made)) => {
                process.hide(&request);
                process.own(owner, &request, Right::Made);
                true
            }
            _ => false,
        }
    }

    /// Since then another may be served on the connection of a request that has [begun](Self::begun), which stood
    /// behind it and was not seen.
    pub fn hides(&mut self, tgid: u32, connection: u64, since: u64) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.unanswered.add(connection, since, since);
        }
    }

    /// A request that had [begun](Self::begun) is over.
    pub fn ended(&mut self, tgid: u32, id: RequestId, end: u64) {
        let Some(process) = self.processes.get_mut(&tgid) else {
            return;
        };
        // Among the youngest, as a rule.
        let owner = process.order.iter().rev().find(|(_, known)| *known == id);
        if let Some((owner, _)) = owner
            && let Some(owned) = process.owners.get_mut(owner)
        {
            for owned in owned.iter_mut().filter(|owned| owned.id == id) {
                owned.end = end;
            }
        }
    }

    /// Takes a call of a process; [`Self::decide`] hands it out again.
    pub fn call(&mut self, tgid: u32, call: Call<T>) {
        let process = self.processes.entry(tgid).or_default();
        process.waiting.push_back(call);
    }

    /// Whether a call waits for its owner.
    pub fn is_waiting(&self) -> bool {
        self.processes
            .values()
            .any(|process| !process.waiting.is_empty())
    }

    /// Hands out every call for which nothing more can turn up, with the request that caused it if that
    /// is certain; one whose thread is looked at still waits for that. `oldest_open` is the time of the oldest request of a process that is not over; `now`
    /// is the time up to which all events have been seen.
    pub fn decide(
        &mut self,
        identities: &Identities,
        now: u64,
        oldest_open: impl Fn(u32) -> Option<u64>,
        mut each: impl FnMut(Call<T>, Option<RequestId>),
    ) {
        for (&tgid, process) in &mut self.processes {
            if process.waiting.is_empty() {
                continue;
            }
            let oldest = oldest_open(tgid).unwrap_or(u64::MAX);
            let patience = now.saturating_sub(WAIT_MAX);
            let mut rest = VecDeque::with_capacity(process.waiting.len());
            for call in process.waiting.drain(..) {
                let certain = call.at < oldest && !identities.is_unjudged(call.identity, now);
                if certain || call.at < patience {
                    let owner = certain
                        .then(|| owner(&process.owners, &process.unanswered, identities, &call))
                        .flatten();
                    each(call, owner);
                } else {
                    rest.push_back(call);
                }
            }
            while rest.len() > WAITING_MAX {
                self.overflowed += 1;
                if let Some(call) = rest.pop_front() {
                    each(call, None);
                }
            }
            process.waiting = rest;
        }
    }

    /// Forgets a process that has ended, once its calls have been handed out; whether they have.
    pub fn forget_process(&mut self, tgid: u32) -> bool {
        let is_done = self
            .processes
            .get(&tgid)
            .is_none_or(|process| process.waiting.is_empty());
        if is_done && let Some(process) = self.processes.remove(&tgid) {
            self.forgotten += process.unanswered.forgotten();
        }
        is_done
    }

    /// Calls whose owners were given up for want of room.
    pub const fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// Requests without a response that were forgotten for want of room.
    pub fn forgotten(&self) -> u64 {
        let living = self.processes.values();
        self.forgotten
            + living
                .map(|process| process.unanswered.forgotten())
                .sum::<u64>()
    }
}

impl<T> Process<T> {
    /// Takes note of what may stand behind a request, out of sight.
    fn hide(&mut self, request: &Served) {
        if let Some(since) = request.hides {
            // It tells of descent alone, and nothing of what went on at the time on other connections.
            self.unanswered.add(request.connection, since, since);
        }
    }

    /// The identity that a request belongs to, and by what right.
    fn owner_of(&self, identities: &Identities, request: &Served) -> Option<(Identity, Right)> {
        let (owner, right) = self.responder_of(identities, request)?;
        // Where a response may be that of an earlier request which was not seen, its context is older than the
        // request that it seems to answer: the server has begun that one when it was done with what came before,
        // and that was seen before this one was read. Nothing is known of those read earlier.
        let is_sure = !request.unsure || right == Right::Made && !request.pipelined;
        is_sure.then_some((owner, right))
    }

    /// The identity that the context of a response belongs to, and by what right.
    fn responder_of(&self, identities: &Identities, request: &Served) -> Option<(Identity, Right)> {
        let node = identities.node(request.responder)?;
        let was_made = node.origin == Origin::Copied && node.since >= request.start;
        if was_made {
            return Some((self.outermost(identities, request), Right::Made));
        }
        if node.origin == Origin::Turn && request.reader == request.responder {
            return Some((request.responder, Right::Turn));
        }
        if request.reader.is_unknown() || request.reader == request.responder || !request.one_thread
        {
            // What is read and answered in one context may be anyone's: an event loop's, as a rule.
            return None;
        }
        match node.origin {
            Origin::Seen if node.since > request.start => Some((request.responder, Right::Seen)),
            Origin::Copied | Origin::Seen => Some((request.responder, Right::Shared)),
            Origin::Turn | Origin::Unjudged | Origin::Unsure => None,
        }
    }

    /// The outermost of the responder's ancestors that was made after the request began and is no
    /// other request's.
    fn outermost(&self, identities: &Identities, request: &Served) -> Identity {
        let mut found = request.responder;
        for _ in 0..CLIMB_MAX {
            let Some(node) = identities.node(found) else {
                break;
            };
            let Some(parent) = identities.node(node.parent) else {
                break;
            };
            let is_made_for_it = parent.origin == Origin::Copied && parent.since >= request.start;
            if !is_made_for_it || self.owners.contains_key(&node.parent) {
                break;
            }
            found = node.parent;
        }
        found
    }

    fn own(&mut self, identity: Identity, request: &Served, right: Right) {
        self.owners.entry(identity).or_default().push(Owned {
            id: request.id,
            connection: request.connection,
            start: request.start,
            end: request.end,
            right,
        });
        self.order.push_back((identity, request.id));
        if self.order.len() > REQUESTS_MAX
            && let Some((identity, id)) = self.order.pop_front()
            && let Some(owned) = self.owners.get_mut(&identity)
        {
            owned.retain(|owned| owned.id != id);
            if owned.is_empty() {
                self.owners.remove(&identity);
            }
        }
    }
}

/// Whether who a request belonged to is void, for its process is watched from a later time on.
fn is_stale(identities: &Identities, tgid: u32, request: &Served) -> bool {
    identities
        .armed(tgid)
        .is_some_and(|armed| request.start < armed)
}

/// The request that certainly caused a call, if one did.
fn owner<T>(
    owners: &FxHashMap<Identity, Vec<Owned>>,
    unanswered: &Unanswered,
    identities: &Identities,
    call: &Call<T>,
) -> Option<RequestId> {
    let mut identity = call.identity;
    // When the youngest of the ancestors so far was made, which is the one that made the call; and the oldest.
    let mut made: Option<(u64, u64)> = None;
    for _ in 0..CLIMB_MAX {
        if let Some(owned) = owners.get(&identity) {
            let oldest = made.map(|(_, oldest)| oldest);
            let (found, at) = among(owned, call.at, oldest)?;
            let is_anothers = match made {
                Some((youngest, _)) => {
                    unanswered.may_descend(found.connection, found.start, youngest)
                }
                None => false,
            };
            // A context that was not made for this request may have worked for any other at the time.
            let is_shared = matches!(found.right, Right::Seen | Right::Shared);
            let is_anothers = is_anothers || is_shared && unanswered.overlap(at);
            return (!is_anothers).then_some(found.id);
        }
        let node = identities.node(identity)?;
        made = Some((
            made.map_or(node.since, |(youngest, _)| youngest),
            node.since,
        ));
        identity = node.parent;
    }
    None
}

/// Which of an identity's requests a call at this time belongs to, and when the identity did what led to it.
/// `made` is when the ancestor below the identity was made, if there is one: that is when the identity did it.
fn among(owned: &[Owned], at: u64, made: Option<u64>) -> Option<(&Owned, u64)> {
    let first = owned.first()?;
    if owned.len() == 1 && first.right == Right::Made {
        return (at >= first.start).then_some((first, at));
    }
    let at = made.unwrap_or(at);
    // On one connection requests are served in turn: one begins to be when the one before it is over,
    // even if it was read earlier.
    let in_turn = owned
        .iter()
        .all(|owned| owned.connection == first.connection && owned.right != Right::Made);
    if !in_turn {
        return None;
    }
    let mut open = owned
        .iter()
        .filter(|owned| at >= owned.start && at <= owned.end);
    let found = match first.right {
        Right::Turn => open.min_by_key(|owned| owned.end),
        // A response's last bytes may have waited to be written while the next request was served, if that had
        // been read by then.
        _ => open.next().filter(|_| open.next().is_none()),
    };
    found.map(|found| (found, at))
}

#[cfg(test)]
#[path = "tests/attribution.rs"]
mod tests;
