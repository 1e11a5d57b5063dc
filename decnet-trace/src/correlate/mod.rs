//! Events of sockets and processes become exchanges: requests paired with their responses, in order,
//! across connections, threads and rings. No I/O and no clock: time is what the events say.
//!
//! docs/http.md says what is supported, and how each end is known.

pub mod attribution;
mod connection;
mod counters;
mod dialog;
pub mod exchange;
pub mod hidden;
pub mod identity;
pub mod joins;
mod open;
pub mod outbound;
pub mod statement;
pub mod statements;
pub mod wanted;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, hash_map::Entry},
    sync::Arc,
};

use decnet_trace_common::event::{Proc, ProcWhat, SockOp, SockState, flags, tcp_state};
use rustc_hash::FxHashMap;
use smol_str::{SmolStr, format_smolstr};

pub use connection::Limits;
pub use counters::Counters;

use connection::{Connect, Connection, Cx};
use dialog::{Cause, Dialog};
use exchange::Exchange;
use hidden::{Hidden, HiddenList, When};
use joins::Asked;
use wanted::WantedHeaders;

use crate::text::Texts;

/// How often connections are looked through for idle ones, in nanoseconds.
const SWEEP_EVERY: u64 = 5_000_000_000;

/// How long an exchange waits for its close before someone should look, in nanoseconds.
const QUIET: u64 = 1_000_000_000;

/// The most connections that are remembered before they are used.
const CONNECTS_MAX: usize = 4096;

/// How long operations from before a process was traced may still come, in nanoseconds.
const GAP: u64 = 10_000_000_000;

/// The most dialogs that are kept for the next connections.
const POOL: usize = 256;

/// Pairs requests with responses.
///
/// Feed it the events of all rings in the order of their time. What is finished is pushed to the
/// vector that each method takes, which is never cleared here.
#[derive(Debug)]
pub struct Correlator {
    limits: Limits,
    wanted: Arc<WantedHeaders>,
    /// What the headers of many requests say.
    texts: Texts,
    counters: Counters,
    connections: FxHashMap<u64, Connection>,
    /// How many connections each process has, so that the end of one without any costs nothing.
    processes: FxHashMap<u32, usize>,
    /// Processes that have just begun to be traced, and when.
    anew: FxHashMap<u32, u64>,
    /// Requests that processes made, to be fetched.
    asked: Vec<Asked>,
    /// Requests that were read out of sight, to be fetched.
    hidden: HiddenList,
    /// Connections that processes make and have not used yet.
    connects: FxHashMap<u64, Connect>,
    pool: Pool,
    /// When to look at which connection.
    due: BinaryHeap<Reverse<(u64, u64)>>,
    heads_memory: usize,
    open_memory: usize,
    /// The latest time seen.
    now: u64,
    sweep_at: u64,
}

impl Correlator {
    /// One that has seen nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            wanted: Arc::default(),
            texts: Texts::default(),
            counters: Counters::default(),
            connections: FxHashMap::default(),
            processes: FxHashMap::default(),
            anew: FxHashMap::default(),
            asked: Vec::new(),
            hidden: HiddenList::default(),
            connects: FxHashMap::default(),
            pool: Pool::default(),
            due: BinaryHeap::new(),
            heads_memory: 0,
            open_memory: 0,
            now: 0,
            sweep_at: 0,
        }
    }

    /// Keeps these headers of messages that begin from now on, beside those that are always read.
    pub fn want_headers(&mut self, wanted: Arc<WantedHeaders>) {
        self.wanted = wanted;
    }

    /// What was counted so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many connections are remembered.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// About how many bytes are held by heads that arrive in pieces, and by exchanges under way.
    pub const fn memory(&self) -> (usize, usize) {
        (self.heads_memory, self.open_memory)
    }

    /// Since when the oldest request is under way that each process serves and that `matters`. Looks
    /// through all connections: not for every event.
    pub fn oldest_open(&self, mut matters: impl FnMut(&Exchange) -> bool) -> FxHashMap<u32, u64> {
        let mut oldest = FxHashMap::default();
        for conn in self.connections.values() {
            let Some(dialog) = &conn.dialog else {
                continue;
            };
            let serving = dialog
                .serving(conn)
                .filter(|exchange| matters(exchange))
                .map(|exchange| exchange.start);
            if let Some(start) = serving.chain(dialog.reading_since(conn)).min() {
                oldest
                    .entry(conn.tgid)
                    .and_modify(|known: &mut u64| *known = start.min(*known))
                    .or_insert(start);
            }
        }
        oldest
    }

    /// The requests that processes serve now: process and method of each. Looks through all
    /// connections: not for every event.
    pub fn serving(&self) -> impl Iterator<Item = (u32, &str)> {
        self.connections.values().flat_map(|conn| {
            let dialog = conn.dialog.as_ref();
            let open = dialog.map(|dialog| dialog.serving(conn));
            open.into_iter()
                .flatten()
                .map(|exchange| (conn.tgid, &*exchange.method))
        })
    }

    /// The requests that processes made since this was last called. Whoever never calls it has few of them
    /// kept.
    pub fn asked(&mut self) -> impl Iterator<Item = Asked> {
        self.asked.drain(..)
    }

    /// What is known, since this was last called, of requests that were read out of sight; and up to which
    /// time any others may have been, of any process, where there were too many. Whoever never calls it has
    /// few of them kept.
    pub fn hidden(&mut self) -> (Vec<Hidden>, Option<u64>) {
        self.hidden.take()
    }

    /// Whether this exchange is under way.
    pub fn is_open(&self, sock: u64, number: u32) -> bool {
        let conn = self.connections.get(&sock);
        conn.and_then(|conn| conn.dialog.as_ref())
            .is_some_and(|dialog| dialog.has_open(number))
    }

    /// Takes a read or a write.
    pub fn on_sock_op(&mut self, op: &SockOp, payload: &[u8], out: &mut Vec<Exchange>) {
        let ts = op.header.ts;
        self.now = self.now.max(ts);
        if !self.anew.is_empty()
            && let Some(&since) = self.anew.get(&op.header.tgid)
            && ts < since
        {
            self.counters.operations_before_a_gap += 1;
            return;
        }
        if self.connections.len() >= self.limits.connections
            && op.ret > 0
            && !self.connections.contains_key(&op.sock)
        {
            self.evict(out);
        }
        let conn = match self.connections.entry(op.sock) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if op.ret <= 0 => return,
            Entry::Vacant(entry) => {
                *self.processes.entry(op.header.tgid).or_default() += 1;
                let connect = match self.connects.is_empty() {
                    true => None,
                    false => self.connects.remove(&op.sock),
                };
                entry.insert(Connection::new(op, connect.map(Box::new)))
            }
        };
        if op.ret > 0 {
            conn.last = ts;
        }
        if conn.ignored {
            return;
        }
        if conn.tgid != op.header.tgid {
            // It was handed on: to a worker, as a rule.
            leave(&mut self.processes, conn.tgid);
            *self.processes.entry(op.header.tgid).or_default() += 1;
            conn.tgid = op.header.tgid;
        }
        if op.fd >= 0 {
            conn.fd = op.fd;
        }
        let mut cx = Cx {
            sock: op.sock,
            hidden: &mut self.hidden,
            out,
            asked: &mut self.asked,
            counters: &mut self.counters,
            limits: &self.limits,
            wanted: &self.wanted,
            texts: &mut self.texts,
        };
        let mut dialog = conn.dialog.take().unwrap_or_else(|| self.pool.take());
        let before = (dialog.heads_memory(), dialog.open_memory());
        dialog.operation(conn, op, payload, &mut cx);
        if op.ret > 0 && op.flags & flags::SEND == 0 {
            conn.read = ts;
        }
        let after = (dialog.heads_memory(), dialog.open_memory());
        self.heads_memory = self.heads_memory + after.0 - before.0;
        self.open_memory = self.open_memory + after.1 - before.1;
        let heads_grew = after.0 > before.0 && self.heads_memory > self.limits.heads_memory;
        let open_grew = after.1 > before.1 && self.open_memory > self.limits.open_memory;
        if heads_grew || open_grew {
            cx.counters.over_memory += 1;
            self.heads_memory -= after.0;
            self.open_memory -= after.1;
            dialog.give_up(conn, &mut cx);
        }
        let peer_is_gone = dialog.peer_is_gone();
        if let Some(at) = dialog.due(&cx)
            && !conn.due
        {
            conn.due = true;
            self.due.push(Reverse((at, op.sock)));
        }
        if dialog.is_idle() {
            self.pool.give(dialog);
            if peer_is_gone
                && !conn.ignored
                && let Some(conn) = self.remove(op.sock)
            {
                self.tell_end(op.sock, &conn, ts);
            }
        } else {
            conn.dialog = Some(dialog);
        }
    }

    /// Takes the address of the unix socket that the last request on this socket went to.
    pub fn on_unix_path(&mut self, sock: u64, address: &[u8]) {
        let open = self
            .connections
            .get_mut(&sock)
            .and_then(|conn| conn.dialog.as_mut())
            .and_then(|dialog| dialog.last_open());
        if let Some(exchange) = open {
            exchange.unix_path = unix_path(address);
        }
    }

    /// Takes a change of a socket's state.
    ///
    /// A peer's reset may be recorded while its owner happens to run; it shows as [`tcp_state::CLOSE`],
    /// as some closes of the process itself do, and as half a close by a client looks like a whole one.
    /// In these cases what is read next decides, or that nothing is.
    pub fn on_sock_state(&mut self, state: &SockState, out: &mut Vec<Exchange>) {
        self.now = self.now.max(state.header.ts);
        let surely = match state.new {
            tcp_state::SYN_SENT | tcp_state::ESTABLISHED => {
                self.connect(state);
                return;
            }
            tcp_state::LAST_ACK => true,
            tcp_state::FIN_WAIT1 => self
                .connections
                .get(&state.sock)
                .is_none_or(|conn| conn.role != Some(exchange::Role::Client)),
            tcp_state::CLOSE => false,
            _ => return,
        };
        // In a softirq, the process named is just the one that ran.
        let own = |conn: &Connection| conn.tgid == state.header.tgid;
        if self.connections.get(&state.sock).is_some_and(own) {
            self.close(state.sock, surely, state.header.ts, out);
        }
    }

    /// A process connects a socket, or has connected it.
    fn connect(&mut self, state: &SockState) {
        let ts = state.header.ts;
        if state.new == tcp_state::ESTABLISHED {
            if let Some(connect) = self.connects.get_mut(&state.sock) {
                connect.took = Some(ts.saturating_sub(connect.start));
            }
            return;
        }
        if self.connects.len() >= CONNECTS_MAX {
            self.counters.connects_forgotten += self.connects.len() as u64;
            self.connects.clear();
        }
        // A number may be another socket's by now, whose end went unseen.
        if let Some(conn) = self.connections.get_mut(&state.sock) {
            conn.connect = None;
        }
        let connect = Connect {
            start: ts,
            took: None,
        };
        self.connects.insert(state.sock, connect);
    }

    /// Takes an event of a process: the end of one ends what is under way in it.
    pub fn on_proc(&mut self, proc: &Proc, out: &mut Vec<Exchange>) {
        self.now = self.now.max(proc.header.ts);
        let tgid = proc.header.tgid;
        if proc.what != ProcWhat::Exit as u32 || self.processes.remove(&tgid).is_none() {
            return;
        }
        self.forget(Cause::Exit, proc.header.ts, out, |_, conn| {
            conn.tgid == tgid
        });
    }

    /// The process closed this socket, as found out by other means than an event.
    pub fn closed(&mut self, sock: u64, now: u64, out: &mut Vec<Exchange>) {
        self.close(sock, true, now, out);
    }

    /// Exchanges that only a close can end, that have been quiet for over a second: process, file
    /// descriptor (-1 where unknown) and socket. The kernel does not tell when a process closes a
    /// unix-domain socket, so the caller should look whether the descriptor still is that socket, and
    /// call [`Self::closed`] if it is not. Looks through all connections: not to be called more than
    /// about once a second.
    pub fn quiet_close_delimited(&self) -> impl Iterator<Item = (u32, i32, u64)> {
        self.connections.iter().filter_map(|(sock, conn)| {
            let waits = conn
                .dialog
                .as_ref()
                .is_some_and(|dialog| dialog.waits_for_close(conn));
            (waits && self.now.saturating_sub(conn.last) > QUIET)
                .then_some((conn.tgid, conn.fd, *sock))
        })
    }

    /// Lets time pass: all events before `now` were fed. Cheap where nothing is due.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Exchange>) {
        self.now = self.now.max(now);
        while let Some(&Reverse((at, sock))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            self.settle(sock, now, out);
        }
        if now >= self.sweep_at {
            self.anew.retain(|_, since| now < *since + GAP);
            self.sweep_at = now.saturating_add(SWEEP_EVERY);
            let idle = self.limits.idle;
            self.forget(Cause::Idle, now, out, |_, conn| {
                now.saturating_sub(conn.last) > idle
            });
        }
    }

    /// Events were lost before those that are fed next: exchanges under way may lack any part, so
    /// they are dropped and counted rather than paired wrongly.
    pub fn events_lost(&mut self) {
        self.lose(|_| true);
    }

    /// A process is traced from `now` on, and was not until then, though it may have been before: what is
    /// half-seen of it is dropped, as where events were lost.
    pub fn traced_anew(&mut self, tgid: u32, now: u64) {
        self.anew.insert(tgid, now);
        if self.processes.contains_key(&tgid) {
            self.lose(|conn| conn.tgid == tgid);
        }
    }

    /// Drops what is under way on these connections.
    fn lose(&mut self, which: impl Fn(&Connection) -> bool) {
        let mut out = Vec::new();
        let mut cx = Cx {
            sock: 0,
            hidden: &mut self.hidden,
            out: &mut out,
            asked: &mut self.asked,
            counters: &mut self.counters,
            limits: &self.limits,
            wanted: &self.wanted,
            texts: &mut self.texts,
        };
        for (sock, conn) in &mut self.connections {
            if !which(conn) {
                continue;
            }
            cx.sock = *sock;
            conn.blurred = true;
            if let Some(mut dialog) = conn.dialog.take() {
                self.heads_memory -= dialog.heads_memory();
                self.open_memory -= dialog.open_memory();
                dialog.lose(conn, &mut cx);
                self.pool.give(dialog);
            }
        }
    }

    /// The agent stops: hands out what is under way and forgets everything.
    pub fn finish(&mut self, now: u64, out: &mut Vec<Exchange>) {
        self.tick(now, out);
        self.forget(Cause::Stop, now, out, |_, _| true);
    }

    /// Settles what is due on a connection.
    fn settle(&mut self, sock: u64, now: u64, out: &mut Vec<Exchange>) {
        let Some(conn) = self.connections.get_mut(&sock) else {
            return;
        };
        conn.due = false;
        let Some(mut dialog) = conn.dialog.take() else {
            return;
        };
        let mut cx = Cx {
            sock,
            hidden: &mut self.hidden,
            out,
            asked: &mut self.asked,
            counters: &mut self.counters,
            limits: &self.limits,
            wanted: &self.wanted,
            texts: &mut self.texts,
        };
        let before = (dialog.heads_memory(), dialog.open_memory());
        dialog.settle(conn, now, &mut cx);
        self.heads_memory = self.heads_memory + dialog.heads_memory() - before.0;
        self.open_memory = self.open_memory + dialog.open_memory() - before.1;
        if let Some(at) = dialog.due(&cx) {
            conn.due = true;
            self.due.push(Reverse((at, sock)));
        }
        if dialog.is_idle() {
            self.pool.give(dialog);
        } else {
            conn.dialog = Some(dialog);
        }
    }

    /// The process closed a connection, surely or perhaps.
    fn close(&mut self, sock: u64, surely: bool, now: u64, out: &mut Vec<Exchange>) {
        let Some(conn) = self.connections.get_mut(&sock) else {
            return;
        };
        if !surely && conn.is_open() {
            let cx = Cx {
                sock,
                hidden: &mut self.hidden,
                out,
                asked: &mut self.asked,
                counters: &mut self.counters,
                limits: &self.limits,
                wanted: &self.wanted,
                texts: &mut self.texts,
            };
            if let Some(dialog) = &mut conn.dialog {
                dialog.closing(now);
                if let Some(at) = dialog.due(&cx).filter(|_| !conn.due) {
                    conn.due = true;
                    self.due.push(Reverse((at, sock)));
                }
            }
            return;
        }
        if let Some(conn) = self.remove(sock) {
            self.end(sock, conn, Cause::Closed, now, out);
        }
    }

    /// Forgets the oldest connections, idle ones first: a sixteenth of them at once, so that the
    /// search for them is paid for by many.
    fn evict(&mut self, out: &mut Vec<Exchange>) {
        let key = |sock: &u64, conn: &Connection| (conn.is_open(), conn.last, *sock);
        let mut keys: Vec<_> = self.connections.iter().map(|(s, c)| key(s, c)).collect();
        if keys.is_empty() {
            return;
        }
        let nth = keys.len() / 16;
        let (_, &mut last, _) = keys.select_nth_unstable(nth);
        self.counters.connections_evicted += nth as u64 + 1;
        self.forget(Cause::Idle, self.now, out, |sock, conn| {
            key(sock, conn) <= last
        });
    }

    /// Forgets the connections that `which` names, ending what is under way on them.
    fn forget(
        &mut self,
        cause: Cause,
        now: u64,
        out: &mut Vec<Exchange>,
        which: impl Fn(&u64, &Connection) -> bool,
    ) {
        let gone: Vec<_> = self
            .connections
            .extract_if(|sock, conn| which(sock, conn))
            .collect();
        for (sock, conn) in gone {
            leave(&mut self.processes, conn.tgid);
            self.end(sock, conn, cause, now, out);
        }
    }

    fn remove(&mut self, sock: u64) -> Option<Connection> {
        let conn = self.connections.remove(&sock)?;
        leave(&mut self.processes, conn.tgid);
        Some(conn)
    }

    /// Where requests on a connection were out of sight, it matters when it ends.
    fn tell_end(&mut self, sock: u64, conn: &Connection, now: u64) {
        if conn.told {
            self.hidden.push(Hidden {
                tgid: conn.tgid,
                connection: sock,
                when: When::Closed(now),
            });
        }
    }

    /// Ends what is under way on a connection that was taken out.
    fn end(
        &mut self,
        sock: u64,
        mut conn: Connection,
        cause: Cause,
        now: u64,
        out: &mut Vec<Exchange>,
    ) {
        self.tell_end(sock, &conn, now);
        let Some(mut dialog) = conn.dialog.take() else {
            return;
        };
        self.heads_memory -= dialog.heads_memory();
        self.open_memory -= dialog.open_memory();
        let mut cx = Cx {
            sock,
            hidden: &mut self.hidden,
            out,
            asked: &mut self.asked,
            counters: &mut self.counters,
            limits: &self.limits,
            wanted: &self.wanted,
            texts: &mut self.texts,
        };
        dialog.end_all(&mut conn, cause, now, &mut cx);
        self.pool.give(dialog);
    }
}

/// Dialogs kept for the next connections, so that a request allocates none.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
struct Pool(Vec<Box<Dialog>>);

impl Pool {
    fn take(&mut self) -> Box<Dialog> {
        self.0.pop().unwrap_or_else(|| Box::new(Dialog::new()))
    }

    fn give(&mut self, mut dialog: Box<Dialog>) {
        if self.0.len() < POOL && dialog.recycle() {
            self.0.push(dialog);
        }
    }
}

/// A unix socket's address as `ss` shows it: a path, or a name with `@` before it; `None` where it has
/// none.
fn unix_path(address: &[u8]) -> Option<SmolStr> {
    let text = String::from_utf8_lossy;
    match address {
        [] => None,
        [0, name @ ..] => Some(format_smolstr!("@{}", text(name))),
        path => {
            let end = memchr::memchr(0, path).unwrap_or(path.len());
            Some(text(&path[..end]).into())
        }
    }
}

/// A process has one connection less.
fn leave(processes: &mut FxHashMap<u32, usize>, tgid: u32) {
    if let Entry::Occupied(mut entry) = processes.entry(tgid) {
        match entry.get() {
            0 | 1 => _ = entry.remove(),
            _ => *entry.get_mut() -= 1,
        }
    }
}

#[cfg(test)]
mod tests;
