//! A connection between events.
//!
//! What is under way on a connection stands in a [`Dialog`], which an idle connection does without:
//! there may be tens of thousands of idle ones.

use decnet_trace_common::event::SockOp;

use super::{
    counters::Counters,
    dialog::Dialog,
    exchange::{Exchange, Role},
    hidden::HiddenList,
    joins::Asked,
    wanted::WantedHeaders,
};
use crate::text::Texts;

/// How a process made a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connect {
    /// When it began to.
    pub(super) start: u64,
    /// How long it took; `None` while it goes on.
    pub(super) took: Option<u64>,
}

/// What is remembered of every connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The process that last moved bytes on it.
    pub(super) tgid: u32,
    /// The process's file descriptor, as last seen; -1 where never seen.
    pub(super) fd: i32,
    /// When bytes were last moved on it.
    pub(super) last: u64,
    /// When bytes were last read on it; 0 where never.
    pub(super) read: u64,
    /// How it was made, until its first request; few wait for one.
    pub(super) connect: Option<Box<Connect>>,
    /// The requests seen on it; wraps.
    pub(super) requests: u32,
    /// The side that the process is on, once a head told.
    pub(super) role: Option<Role>,
    /// A response was paired with a request: the role is beyond doubt.
    pub(super) proven: bool,
    /// Stray bytes were seen before any head, and counted.
    pub(super) noted: bool,
    /// Nothing more on it is looked at: another protocol, or no certainty.
    pub(super) ignored: bool,
    /// No more requests are taken: some were out of sight. Responses to those seen may still come.
    pub(super) draining: bool,
    /// Requests on it may have been out of sight.
    pub(super) blurred: bool,
    /// It was said of it that requests are.
    pub(super) told: bool,
    /// How many requests had been seen by then.
    pub(super) told_at: u32,
    /// It stands in the queue of those with something to settle.
    pub(super) due: bool,
    /// What is under way on it.
    pub(super) dialog: Option<Box<Dialog>>,
}

impl Connection {
    pub(super) const fn new(op: &SockOp, connect: Option<Box<Connect>>) -> Self {
        Self {
            tgid: op.header.tgid,
            fd: op.fd,
            last: op.header.ts,
            read: 0,
            connect,
            requests: 0,
            role: None,
            proven: false,
            noted: false,
            ignored: false,
            draining: false,
            blurred: false,
            told: false,
            told_at: 0,
            due: false,
            dialog: None,
        }
    }

    /// Whether there is an exchange under way.
    pub(super) fn is_open(&self) -> bool {
        self.dialog.as_ref().is_some_and(|dialog| dialog.is_open())
    }
}

/// How much is kept, and for how long. Times are in nanoseconds of the events' own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections remembered at once; beyond it, those not used for longest are forgotten.
    pub connections: usize,
    /// Requests under way on one connection; a client that pipelines more loses its connection.
    pub pipelined: usize,
    /// Bytes of one head, while it arrives in pieces.
    pub head: usize,
    /// Bytes of all heads that arrive in pieces.
    pub heads_memory: usize,
    /// Bytes of all exchanges under way.
    pub open_memory: usize,
    /// How long a response that may be over is waited for, in case that it goes on.
    pub settle: u64,
    /// How long after a close the end of the stream, or an error, may still say more.
    pub linger: u64,
    /// After how long without any byte a connection is forgotten, and an exchange given up.
    pub idle: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MS: u64 = 1_000_000;
        Self {
            connections: 50_000,
            pipelined: 128,
            head: 64 * 1024,
            heads_memory: 8 << 20,
            open_memory: 32 << 20,
            settle: 50 * MS,
            linger: 1_000 * MS,
            idle: 600_000 * MS,
        }
    }
}

/// Where the results of an event go.
pub(super) struct Cx<'a> {
    /// The socket that it is about.
    pub(super) sock: u64,
    pub(super) hidden: &'a mut HiddenList,
    pub(super) out: &'a mut Vec<Exchange>,
    pub(super) asked: &'a mut Vec<Asked>,
    pub(super) counters: &'a mut Counters,
    pub(super) limits: &'a Limits,
    pub(super) wanted: &'a WantedHeaders,
    pub(super) texts: &'a mut Texts,
}
