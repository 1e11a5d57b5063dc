//! A connection played by script: byte strings become socket operations exactly as the kernel side
//! makes them (`decnet-trace-ebpf/src/hooks/sock_op.rs`), and those go through a [`Correlator`].

use std::collections::HashMap;

use decnet_trace_common::{
    event::{Header, Kind, Proc, ProcWhat, SockOp, SockState, Tuple, flags},
    limits::{HEAD_BUDGET, IOVEC_MAX, PAYLOAD_MAX},
};

use crate::correlate::{
    Correlator, Limits,
    exchange::{Exchange, Role},
};

/// A millisecond.
pub(super) const MS: u64 = 1_000_000;

/// The process of [`Wire`]s that name no other.
pub(super) const TGID: u32 = 700;

/// What the kernel side does.
#[derive(Default)]
pub(super) struct Kernel {
    heads: HashMap<(u64, bool), u32>,
}

impl Kernel {
    /// The record of one operation over these buffers (one: `write`; several: `writev`), and its
    /// payload.
    pub(super) fn operation(
        &mut self,
        sock: u64,
        send: bool,
        unix: bool,
        buffers: &[&[u8]],
    ) -> (SockOp, Vec<u8>) {
        let all = buffers.concat();
        let mut op = SockOp {
            header: Header {
                tgid: TGID,
                tid: TGID + 1,
                kind: Kind::SockOp as u8,
                ..Header::default()
            },
            sock,
            ret: all.len() as i32,
            fd: 9,
            flags: if send { flags::SEND } else { 0 } | if unix { flags::UNIX } else { 0 },
            ..SockOp::default()
        };
        let seen: usize = buffers.iter().take(IOVEC_MAX).map(|b| b.len()).sum();
        let taken = seen.min(PAYLOAD_MAX);
        let first = all.len().min(8);
        op.first[..first].copy_from_slice(&all[..first]);
        let last = buffers.iter().take(IOVEC_MAX).rfind(|b| !b.is_empty());
        let tail = match buffers.len() {
            1 => first,
            _ if seen < all.len() => 0,
            _ if last.is_some_and(|b| b.len() >= 8) || taken == all.len() && taken >= 8 => 8,
            _ => 0,
        };
        op.tail[8 - tail..].copy_from_slice(&all[all.len() - tail..]);
        op.tail_len = tail as u16;
        let mut payload = Vec::new();
        if self.wanted(&mut op, all.len()) {
            payload.extend_from_slice(&all[..taken]);
            op.payload_len = taken as u16;
            if taken < all.len() {
                op.flags |= flags::CUT;
            }
        }
        if op.flags & flags::HEAD != 0 && !unix {
            op.flags |= flags::TUPLE;
            op.tuple = Tuple {
                local: [1; 16],
                remote: [2; 16],
                local_port: 8000,
                remote_port: 40_000,
                family: 2,
                reserved: 0,
            };
        }
        (op, payload)
    }

    fn wanted(&mut self, op: &mut SockOp, moved: usize) -> bool {
        let key = (op.sock, op.flags & flags::SEND != 0);
        if op.first[0].is_ascii_alphabetic() || matches!(op.first[0], b'\r' | b'\n') {
            op.flags |= flags::HEAD;
            if op.tail_len < 4 || op.tail[4..] != *b"\r\n\r\n" {
                self.heads.insert(key, HEAD_BUDGET);
            }
            return true;
        }
        match self.heads.get_mut(&key) {
            None | Some(0) => false,
            Some(budget) => {
                *budget = budget.saturating_sub(moved.min(PAYLOAD_MAX) as u32);
                op.flags |= flags::CONTINUATION;
                true
            }
        }
    }
}

/// One connection, and a correlator that sees it.
pub(super) struct Wire {
    pub(super) correlator: Correlator,
    pub(super) out: Vec<Exchange>,
    pub(super) now: u64,
    pub(super) sock: u64,
    pub(super) unix: bool,
    pub(super) context: u64,
    pub(super) arrived: u64,
    role: Role,
    kernel: Kernel,
}

impl Wire {
    pub(super) fn new(role: Role) -> Self {
        Self::with_limits(role, Limits::default())
    }

    pub(super) fn with_limits(role: Role, limits: Limits) -> Self {
        Self {
            correlator: Correlator::new(limits),
            out: Vec::new(),
            now: 1000 * MS,
            sock: 1,
            unix: false,
            context: 0,
            arrived: 0,
            role,
            kernel: Kernel::default(),
        }
    }

    /// The request's bytes, each piece in an operation of its own.
    pub(super) fn request<B: AsRef<[u8]>>(&mut self, pieces: &[B]) -> &mut Self {
        for piece in pieces {
            self.operation(self.role == Role::Client, &[piece.as_ref()]);
        }
        self
    }

    /// The response's bytes, likewise.
    pub(super) fn response<B: AsRef<[u8]>>(&mut self, pieces: &[B]) -> &mut Self {
        for piece in pieces {
            self.operation(self.role == Role::Server, &[piece.as_ref()]);
        }
        self
    }

    /// The response's bytes in one vectored operation.
    pub(super) fn response_vectored(&mut self, buffers: &[&[u8]]) -> &mut Self {
        self.operation(self.role == Role::Server, buffers)
    }

    /// The request's bytes, in operations of so many.
    pub(super) fn request_by(&mut self, size: usize, bytes: &[u8]) -> &mut Self {
        let pieces: Vec<_> = bytes.chunks(size).collect();
        self.request(&pieces)
    }

    /// The response's bytes, in operations of so many.
    pub(super) fn response_by(&mut self, size: usize, bytes: &[u8]) -> &mut Self {
        let pieces: Vec<_> = bytes.chunks(size).collect();
        self.response(&pieces)
    }

    /// An operation whose bytes were not read: `sendfile`, for one.
    pub(super) fn unread(&mut self, send: bool, len: i32) -> &mut Self {
        let (mut op, _) = self.kernel.operation(self.sock, send, self.unix, &[]);
        op.ret = len;
        op.fd = -1;
        op.flags |= flags::UNREAD;
        self.feed(&mut op, &[])
    }

    /// A response's body of which only the length is played.
    pub(super) fn response_huge(&mut self, len: i32) -> &mut Self {
        let (mut op, _) =
            self.kernel
                .operation(self.sock, self.role == Role::Server, self.unix, &[&[1; 16]]);
        op.ret = len;
        self.feed(&mut op, &[])
    }

    /// The peer's end of stream, read.
    pub(super) fn eof(&mut self) -> &mut Self {
        self.result(false, 0)
    }

    /// An operation that failed.
    pub(super) fn error(&mut self, send: bool, errno: i32) -> &mut Self {
        self.result(send, -errno)
    }

    /// The socket's state became this, by the process itself.
    pub(super) fn state(&mut self, new: u8) -> &mut Self {
        self.state_by(TGID, new)
    }

    /// The socket's state became this, while that process ran.
    pub(super) fn state_by(&mut self, tgid: u32, new: u8) -> &mut Self {
        self.now += MS;
        let state = SockState {
            header: Header {
                ts: self.now,
                tgid,
                kind: Kind::SockState as u8,
                ..Header::default()
            },
            sock: self.sock,
            new,
            ..SockState::default()
        };
        self.correlator.on_sock_state(&state, &mut self.out);
        self
    }

    /// A process ended.
    pub(super) fn exit(&mut self, tgid: u32) -> &mut Self {
        self.now += MS;
        let proc = Proc {
            header: Header {
                ts: self.now,
                tgid,
                kind: Kind::Proc as u8,
                ..Header::default()
            },
            what: ProcWhat::Exit as u32,
            ..Proc::default()
        };
        self.correlator.on_proc(&proc, &mut self.out);
        self
    }

    /// Time passes, and the correlator is told.
    pub(super) fn wait(&mut self, time: u64) -> &mut Self {
        self.now += time;
        self.correlator.tick(self.now, &mut self.out);
        self
    }

    /// The agent stops.
    pub(super) fn finish(&mut self) -> &mut Self {
        self.now += MS;
        self.correlator.finish(self.now, &mut self.out);
        assert_eq!(self.correlator.connections(), 0);
        assert_eq!(self.correlator.memory(), (0, 0));
        self
    }

    /// The exchanges so far, in short.
    pub(super) fn briefs(&self) -> Vec<String> {
        self.out.iter().map(brief).collect()
    }

    /// Asserts what the exchanges so far are.
    #[track_caller]
    pub(super) fn expect(&mut self, briefs: &[&str]) -> &mut Self {
        assert_eq!(self.briefs(), briefs, "as {:?}", self.role);
        self
    }

    /// A counter, by name.
    pub(super) fn counter(&self, name: &str) -> u64 {
        let mut all = self.correlator.counters().iter();
        all.find(|(counter, _)| *counter == name).unwrap().1
    }

    fn operation(&mut self, send: bool, buffers: &[&[u8]]) -> &mut Self {
        let (mut op, payload) = self.kernel.operation(self.sock, send, self.unix, buffers);
        self.feed(&mut op, &payload)
    }

    fn result(&mut self, send: bool, ret: i32) -> &mut Self {
        let mut op = SockOp {
            ret,
            sock: self.sock,
            fd: 9,
            flags: if send { flags::SEND } else { 0 } | if self.unix { flags::UNIX } else { 0 },
            ..SockOp::default()
        };
        op.header.tgid = TGID;
        self.feed(&mut op, &[])
    }

    fn feed(&mut self, op: &mut SockOp, payload: &[u8]) -> &mut Self {
        self.now += MS;
        op.header.ts = self.now;
        op.context = self.context;
        op.arrived = self.arrived;
        self.correlator.on_sock_op(op, payload, &mut self.out);
        self
    }
}

/// Method, target, status, bytes of both bodies, and the end.
pub(super) fn brief(exchange: &Exchange) -> String {
    format!(
        "{} {} {} {}+{} {}",
        exchange.method,
        exchange.target,
        exchange.status.map_or("-".into(), |s| s.to_string()),
        exchange.request_body,
        exchange.response_body,
        exchange.ended_by.as_str(),
    )
}

/// Plays a script on both sides of a connection.
#[track_caller]
pub(super) fn both(script: impl Fn(&mut Wire), briefs: &[&str]) {
    for role in [Role::Server, Role::Client] {
        let mut wire = Wire::new(role);
        script(&mut wire);
        wire.expect(briefs);
        assert!(wire.out.iter().all(|exchange| exchange.role == role));
        for exchange in &wire.out {
            assert!(exchange.end >= exchange.start && exchange.end <= wire.now);
            assert!(
                exchange
                    .response_start
                    .is_none_or(|at| at >= exchange.start)
            );
        }
        wire.finish();
    }
}

/// A response head with this length.
pub(super) fn ok(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}
