//! Two traced processes at the two ends of one connection: the request that one of them serves is the call
//! that the other makes. Exact, or not said; no byte of it is looked at for that.
//!
//! Both ends of a TCP connection have its addresses and ports, mirrored; both ends of a unix socket have the
//! inode number of the client's. On a connection, requests and responses take turns, and so
//!
//! * the server reads a request before the client reads the first byte of its response, and
//! * the client has read the whole response before, when it writes its next request.
//!
//! So a request belongs to the call whose response was read after the request was, and before whose writing
//! nothing was read on the connection since. This holds whatever is not seen: a connection may have been
//! used for long when the agent starts. It does not hold for calls that are pipelined, which are left
//! alone. Times are of one clock, and each is taken after the bytes have moved: a request may be read
//! before its writing is told, a little.
//!
//! A request waits until its call has its place in a trace.

use std::{
    hash::{Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::exchange::{Ends, Exchange, Role};
use crate::span::SpanRef;

/// How many requests that were made are kept until somebody fetches them.
pub(super) const ASKED_MAX: usize = 1 << 14;

/// How many calls are remembered.
const CALLS_MAX: usize = 1 << 14;

/// How many requests wait for their calls.
const WAITING_MAX: usize = 1 << 14;

/// How many addresses that were called are remembered.
const CALLEES_MAX: usize = 1 << 12;

/// How long a request waits for its call after its end, in nanoseconds.
const WAIT_MAX: u64 = 60_000_000_000;

/// How long a call is remembered when it has its place: the server may still be at it.
const KEEP: u64 = 5_000_000_000;

/// The same for a call that did not come to its proper end: the server may not have noticed.
const KEEP_BROKEN: u64 = 60_000_000_000;

/// How long a call is remembered at all when it is over.
const KEEP_MAX: u64 = 600_000_000_000;

/// How long after a request was read its writing may be told, where nothing else shows that the two
/// are the same.
const RACE: u64 = 200_000_000;

/// How much of a target is compared; the rest may be out of sight at one end.
const TARGET_MAX: usize = 256;

/// A connection, as both of its ends name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// TCP.
    Tcp {
        /// The end that asks.
        client: SocketAddr,
        /// The end that answers.
        server: SocketAddr,
    },
    /// A unix socket, by the inode number of the end that asks.
    Unix(u64),
}

impl Wire {
    /// The connection of an exchange, where both of its ends are known.
    pub fn of(exchange: &Exchange) -> Option<Self> {
        match (&exchange.ends, exchange.role) {
            (&Ends::Ip { local, remote }, Role::Client) => Some(Self::Tcp {
                client: local,
                server: remote,
            }),
            (&Ends::Ip { local, remote }, Role::Server) => Some(Self::Tcp {
                client: remote,
                server: local,
            }),
            (Ends::Unix, Role::Client) => Some(Self::Unix(exchange.sock)),
            (Ends::Unix, Role::Server) if exchange.unix_peer != 0 => {
                Some(Self::Unix(exchange.unix_peer))
            }
            (Ends::Unix | Ends::Unknown, _) => None,
        }
    }

    /// Whether both ends are surely in one network namespace.
    fn is_loopback(&self) -> bool {
        let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
        match self {
            Self::Tcp { client, server } => is_loopback(client.ip()) || is_loopback(server.ip()),
            Self::Unix(_) => false,
        }
    }
}

/// A request that a process has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    wire: Wire,
    sock: u64,
    number: u32,
    tgid: u32,
    start: u64,
    before: u64,
    what: u64,
}

impl Asked {
    /// What is to be known of a client's exchange that begins.
    pub(super) fn new(exchange: &Exchange) -> Option<Self> {
        Some(Self {
            wire: Wire::of(exchange)?,
            sock: exchange.sock,
            number: exchange.number,
            tgid: exchange.tgid,
            start: exchange.start,
            before: exchange.before,
            what: what(exchange),
        })
    }
}

/// What was asked for, as a number: a sign, and no proof.
fn what(exchange: &Exchange) -> u64 {
    let mut hasher = FxHasher::default();
    exchange.method.hash(&mut hasher);
    let target = exchange.target.as_bytes();
    target[..target.len().min(TARGET_MAX)].hash(&mut hasher);
    hasher.finish()
}

/// A call that is remembered.
#[derive(Debug)]
struct Call {
    asked: Asked,
    over: Option<Over>,
    /// Its place in its trace, and since when it has it.
    span: Option<(SpanRef, u64)>,
}

/// What is known of a call that is over.
#[derive(Clone, Copy, Debug)]
struct Over {
    /// By when its request had been read: the first byte of the response was, or it ended without.
    read_by: u64,
    end: u64,
    status: Option<u16>,
    sizes: Option<(u64, u64)>,
    is_complete: bool,
}

/// The bytes of a request and of its response, where both were whole.
fn sizes(exchange: &Exchange) -> Option<(u64, u64)> {
    let is_whole = exchange.ended_by.is_complete() && exchange.status.is_some();
    is_whole.then_some((exchange.request_bytes, exchange.response_bytes))
}

/// A request that was served, and what is to become of it.
#[derive(Debug)]
struct Waiting<T> {
    exchange: Exchange,
    what: T,
    /// It has been looked for in vain once: its call may be told a little later than its end.
    looked: bool,
}

/// What is counted of requests that came from traced processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Put under their calls.
    pub joined: u64,
    /// Several calls might be theirs.
    pub ambiguous: u64,
    /// Their calls took too long to find their places.
    pub late: u64,
    /// Calls that were not remembered and requests that did not wait, for want of room.
    pub overflowed: u64,
}

/// Calls, and requests that may be theirs.
#[derive(Debug)]
pub struct Joins<T> {
    calls: FxHashMap<Wire, Vec<Call>>,
    count: usize,
    /// The addresses that were called.
    callees: FxHashSet<SocketAddr>,
    waiting: FxHashMap<Wire, Vec<Waiting<T>>>,
    waiting_count: usize,
    /// Connections of which something new is known.
    touched: Vec<Wire>,
    processes: FxHashMap<u32, Process>,
    /// What was not read after this time is not known to be seen.
    since: u64,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    since: u64,
    /// The inode number of its network namespace; 0 where unknown.
    network: u64,
}

impl<T> Default for Joins<T> {
    fn default() -> Self {
        Self {
            calls: FxHashMap::default(),
            count: 0,
            callees: FxHashSet::default(),
            waiting: FxHashMap::default(),
            waiting_count: 0,
            touched: Vec::new(),
            processes: FxHashMap::default(),
            since: 0,
            counts: Counts::default(),
        }
    }
}

/// What becomes of a request.
enum Verdict {
    /// It is the call's with this index.
    Of(usize),
    Wait,
    /// It is no call's that is known.
    Unknown,
    Ambiguous,
}

impl<T> Joins<T> {
    /// All that a process reads is seen from `now` on. `network` is the inode number of its network
    /// namespace, 0 where unknown.
    pub fn trace(&mut self, tgid: u32, network: u64, now: u64) {
        let since = now;
        self.processes.insert(tgid, Process { since, network });
    }

    /// A process has ended. What it did before may still be on its way.
    pub fn forget_process(&mut self, tgid: u32) {
        if self.processes.len() > CALLEES_MAX {
            self.processes.remove(&tgid);
        }
    }

    /// Of what was moved before `now`, something may not have been seen.
    pub fn events_lost(&mut self, now: u64) {
        self.since = self.since.max(now);
    }

    /// A process has made a request.
    pub fn asked(&mut self, asked: Asked) {
        if self.count >= CALLS_MAX {
            self.counts.overflowed += 1;
            return;
        }
        if let Wire::Tcp { server, .. } = asked.wire
            && self.callees.len() < CALLEES_MAX
        {
            self.callees.insert(server);
        }
        self.count += 1;
        self.calls.entry(asked.wire).or_default().push(Call {
            asked,
            over: None,
            span: None,
        });
    }

    /// A call is over.
    pub fn over(&mut self, exchange: &Exchange) {
        let Some((wire, calls, at)) = self.find(exchange) else {
            return;
        };
        if exchange.pipelined {
            calls.swap_remove(at);
            self.count -= 1;
        } else {
            calls[at].over = Some(Over {
                read_by: exchange.response_start.unwrap_or(exchange.end),
                end: exchange.end,
                status: exchange.status,
                sizes: sizes(exchange),
                is_complete: exchange.ended_by.is_complete(),
            });
        }
        self.touch(wire);
    }

    /// A call has its place in its trace.
    pub fn placed(&mut self, exchange: &Exchange, span: impl FnOnce() -> SpanRef, now: u64) {
        let Some((wire, calls, at)) = self.find(exchange) else {
            return;
        };
        calls[at].span = Some((span(), now));
        self.touch(wire);
    }

    /// The call that an exchange is.
    fn find(&mut self, exchange: &Exchange) -> Option<(Wire, &mut Vec<Call>, usize)> {
        let wire = Wire::of(exchange)?;
        let calls = self.calls.get_mut(&wire)?;
        let at = calls.iter().position(|call| {
            call.asked.sock == exchange.sock && call.asked.number == exchange.number
        })?;
        Some((wire, calls, at))
    }

    /// Somebody may wait for news of a connection.
    fn touch(&mut self, wire: Wire) {
        if self.waiting_count > 0 && self.waiting.contains_key(&wire) {
            self.touched.push(wire);
        }
    }

    /// Whether a request that was served may be a call of a traced process: then it should
    /// [wait](Self::wait).
    pub fn may_be_called(&self, exchange: &Exchange) -> bool {
        if self.callees.is_empty() && self.count == 0 {
            return false;
        }
        match Wire::of(exchange) {
            Some(Wire::Tcp { server, .. }) => self.callees.contains(&server),
            // A call on a unix socket is not named by where it goes.
            Some(Wire::Unix(_)) => self.count > 0,
            None => false,
        }
    }

    /// Keeps a request until its call is known. Handed back where there is no room.
    pub fn wait(&mut self, exchange: Exchange, what: T) -> Option<(Exchange, T)> {
        let Some(wire) = Wire::of(&exchange) else {
            return Some((exchange, what));
        };
        if self.waiting_count >= WAITING_MAX || exchange.pipelined {
            self.counts.overflowed += u64::from(!exchange.pipelined);
            return Some((exchange, what));
        }
        self.waiting_count += 1;
        self.waiting.entry(wire).or_default().push(Waiting {
            exchange,
            what,
            looked: false,
        });
        self.touched.push(wire);
        None
    }

    /// Hands out the requests whose calls have their places, with these, and those that are no call's.
    /// `last`: nothing comes after this. Whether there were any.
    pub fn decide(
        &mut self,
        now: u64,
        last: bool,
        mut each: impl FnMut(Exchange, T, Option<SpanRef>),
    ) -> bool {
        let before = self.waiting_count;
        let touched = match last {
            true => self.waiting.keys().copied().collect(),
            false => std::mem::take(&mut self.touched),
        };
        for wire in touched {
            let Some(mut waiting) = self.waiting.remove(&wire) else {
                continue;
            };
            for mut one in std::mem::take(&mut waiting) {
                let verdict = self.verdict(&wire, &one.exchange);
                let is_late = now.saturating_sub(one.exchange.end) > WAIT_MAX;
                match verdict {
                    Verdict::Wait if !last && !is_late => {
                        waiting.push(one);
                        continue;
                    }
                    Verdict::Unknown if !last && !one.looked => {
                        one.looked = true;
                        waiting.push(one);
                        self.touched.push(wire);
                        continue;
                    }
                    Verdict::Wait => self.counts.late += 1,
                    Verdict::Ambiguous => self.counts.ambiguous += 1,
                    Verdict::Of(_) => self.counts.joined += 1,
                    Verdict::Unknown => {}
                }
                self.waiting_count -= 1;
                let span = match verdict {
                    Verdict::Of(at) => self.take(&wire, at),
                    _ => None,
                };
                each(one.exchange, one.what, span);
            }
            if !waiting.is_empty() {
                self.waiting.insert(wire, waiting);
            }
        }
        self.waiting_count < before
    }

    /// Takes a call out: it is found.
    fn take(&mut self, wire: &Wire, at: usize) -> Option<SpanRef> {
        let calls = self.calls.get_mut(wire)?;
        let call = calls.swap_remove(at);
        if calls.is_empty() {
            self.calls.remove(wire);
        }
        self.count -= 1;
        call.span.map(|(span, _)| span)
    }

    fn verdict(&self, wire: &Wire, served: &Exchange) -> Verdict {
        let Some(calls) = self.calls.get(wire) else {
            return Verdict::Unknown;
        };
        let what = what(served);
        let mut found = None;
        let mut several = false;
        for (at, call) in calls.iter().enumerate() {
            if !self.fits(call, served, what) {
                continue;
            }
            if call.over.is_none() || call.span.is_none() {
                // It may turn out not to be, when it is over.
                return Verdict::Wait;
            }
            several |= found.replace(at).is_some();
        }
        match found {
            Some(_) if several => Verdict::Ambiguous,
            Some(at) => Verdict::Of(at),
            None => Verdict::Unknown,
        }
    }

    /// Whether a request may be this call.
    fn fits(&self, call: &Call, served: &Exchange, what: u64) -> bool {
        let Asked {
            tgid,
            start,
            before,
            ..
        } = call.asked;
        let Some(caller) = self.processes.get(&tgid) else {
            return false;
        };
        let read = served.start;
        let is_after = read > before.max(caller.since).max(self.since)
            && (before != 0 || read.saturating_add(RACE) >= start);
        if !is_after || call.asked.what != what {
            return false;
        }
        let network = self.processes.get(&served.tgid).map(|known| known.network);
        let is_near = caller.network != 0 && network == Some(caller.network);
        if !is_near && call.asked.wire.is_loopback() {
            return false;
        }
        let Some(over) = call.over else {
            return true;
        };
        if read >= over.read_by || over.status.is_some() && over.status != served.status {
            return false;
        }
        // Two namespaces may use the same addresses: there, everything has to be the same.
        let is_unix = matches!(call.asked.wire, Wire::Unix(_));
        is_near || is_unix || over.sizes.is_some() && over.sizes == sizes(served)
    }

    /// Forgets what nobody will ask for; about once a second. `is_open` tells whether the exchange of a
    /// socket with this number is under way.
    pub fn sweep(&mut self, now: u64, is_open: impl Fn(u64, u32) -> bool) {
        let mut count = 0;
        self.calls.retain(|_, calls| {
            calls.retain(|call| match (call.over, &call.span) {
                (None, _) => {
                    now.saturating_sub(call.asked.start) < KEEP
                        || is_open(call.asked.sock, call.asked.number)
                }
                (Some(over), None) => now.saturating_sub(over.end) < KEEP_MAX,
                (Some(over), Some((_, placed))) => {
                    let keep = match over.is_complete {
                        true => KEEP,
                        false => KEEP_BROKEN,
                    };
                    now.saturating_sub(*placed.max(&over.end)) < keep
                }
            });
            count += calls.len();
            !calls.is_empty()
        });
        self.count = count;
        if self.callees.len() >= CALLEES_MAX {
            self.callees.clear();
        }
        self.touched.extend(self.waiting.keys().copied());
    }

    /// What was counted so far.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How many requests wait.
    pub const fn waiting(&self) -> usize {
        self.waiting_count
    }
}

#[cfg(test)]
#[path = "tests/joins.rs"]
mod tests;
