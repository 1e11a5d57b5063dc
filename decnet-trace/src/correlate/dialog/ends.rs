//! How exchanges end.

use super::{
    super::{
        connection::{Connection, Cx},
        exchange::{End, Role},
    },
    Dialog, Direction, Side,
};
use crate::protocol::http1::{self, Body, Parsed};

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Cause {
    /// The process closed the connection.
    Closed,
    /// The peer did, in good order.
    PeerClosed,
    /// The connection broke.
    Broken,
    /// The process ended.
    Exit,
    /// The agent stops.
    Stop,
    /// Nothing was seen for too long.
    Idle,
}

/// Whether this error says that the connection is no more (include/uapi/asm-generic/errno.h).
pub(super) const fn breaks_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::EPIPE
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENETRESET
            | libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::ENOTCONN
            | libc::ESHUTDOWN
            | libc::ETIMEDOUT
            | libc::ECONNREFUSED
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
    )
}

impl Dialog {
    /// The peer sends no more. A client may do so after its request and still wait for the response;
    /// from a server nothing more comes.
    pub(super) fn end_of_stream(&mut self, conn: &mut Connection, now: u64, cx: &mut Cx<'_>) {
        if conn.role == Some(Role::Client) {
            self.end_all(conn, Cause::PeerClosed, now, cx);
            return;
        }
        if let Side::Head(_) = self.read {
            cx.counters.heads_unfinished += 1;
            self.read = Side::Between;
        }
        self.eof.get_or_insert(now);
    }

    /// The process closed the connection, or only one half of it, or the peer reset it: what is read
    /// next will tell, or that nothing is.
    pub(in super::super) const fn closing(&mut self, now: u64) {
        self.closing = Some(now);
    }

    /// Whether the connection could be forgotten if nothing is under way: its peer is gone.
    pub(in super::super) const fn peer_is_gone(&self) -> bool {
        self.eof.is_some()
    }

    /// Whether only a close that may go unseen can end the first exchange.
    pub(in super::super) fn waits_for_close(&self, conn: &Connection) -> bool {
        self.is_open()
            && (self.eof.is_some()
                || self.closing.is_some()
                || matches!(
                    self.responses(conn),
                    Some(Side::Body(Body::UntilClose | Body::Unknown))
                ))
    }

    /// When there is something to settle, if nothing happens until then.
    pub(in super::super) fn due(&self, cx: &Cx<'_>) -> Option<u64> {
        let tentative = self
            .tentative
            .map(|(_, at)| at.saturating_add(cx.limits.settle));
        let closing = self.closing.map(|at| at.saturating_add(cx.limits.linger));
        match (tentative, closing) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Settles what is due.
    pub(in super::super) fn settle(&mut self, conn: &mut Connection, now: u64, cx: &mut Cx<'_>) {
        if let Some((end, at)) = self.tentative
            && at.saturating_add(cx.limits.settle) <= now
        {
            self.finish_first(conn, end, cx);
        }
        if let Some(at) = self.closing
            && at.saturating_add(cx.limits.linger) <= now
        {
            self.end_all(conn, Cause::Closed, at, cx);
        }
    }

    /// Ends everything that is under way.
    pub(in super::super) fn end_all(
        &mut self,
        conn: &mut Connection,
        cause: Cause,
        now: u64,
        cx: &mut Cx<'_>,
    ) {
        let (cause, now) = match (cause, self.closing) {
            (Cause::Exit | Cause::Stop | Cause::Idle, Some(at)) => (Cause::Closed, at),
            known => (known.0, now),
        };
        self.take_response_head(conn, cx);
        let proper = self
            .tentative
            .map(|(end, _)| end)
            .or_else(|| self.proper_end(conn, cause));
        if let Some(end) = proper {
            self.finish_first(conn, end, cx);
        }
        let (end, now) = match (cause, self.eof) {
            (Cause::Closed, Some(eof)) => (End::PeerGone, eof),
            (Cause::Closed, None) => (End::Aborted, now),
            (Cause::PeerClosed | Cause::Broken, _) => (End::PeerGone, now),
            (Cause::Exit, _) => (End::ProcessExit, now),
            (Cause::Stop, _) => (End::AgentStop, now),
            (Cause::Idle, _) => (End::Idle, 0),
        };
        while let Some(first) = self.open.front_mut() {
            first.last = first.last.max(now);
            self.finish_first(conn, end, cx);
        }
        for side in [&mut self.read, &mut self.write] {
            if let Side::Head(_) = std::mem::take(side) {
                cx.counters.heads_unfinished += 1;
            }
        }
        self.eof = None;
        self.closing = None;
        self.spare_body = false;
    }

    /// The first exchange is over: hands it out.
    pub(super) fn finish_first(&mut self, conn: &mut Connection, end: End, cx: &mut Cx<'_>) {
        self.tentative = None;
        if let Some(role) = conn.role {
            *self.side_mut(Direction::of_responses(role)) = Side::Between;
        }
        let Some(open) = self.open.pop_front() else {
            return;
        };
        self.open_memory = self.open_memory.saturating_sub(open.memory());
        self.spare_body = open.waits_for_continue && open.number == conn.requests;
        let mut exchange = open.exchange;
        // Rings are merged by time, but what is told here must hold even if they were not.
        exchange.end = open.last.max(exchange.start);
        exchange.ended_by = end;
        cx.counters.exchanges += 1;
        cx.out.push(exchange);
        if conn.draining && self.open.is_empty() && !conn.ignored {
            self.give_up(conn, cx);
        }
    }

    /// The end that a response comes to by the end of the connection, if it does.
    fn proper_end(&self, conn: &Connection, cause: Cause) -> Option<End> {
        let role = conn.role?;
        let Some(Side::Body(body)) = self.responses(conn) else {
            return None;
        };
        let by_sender = match (cause, role) {
            (Cause::Closed, Role::Server) => {
                // A client that went away in the middle is no proper end; one that had said before
                // that it would send no more, or that took more bytes after it, is.
                let last = self.open.front()?.last;
                self.eof.is_none_or(|eof| eof < last)
            }
            (Cause::PeerClosed, Role::Client) => true,
            _ => false,
        };
        match body {
            Body::UntilClose if by_sender => Some(End::Close),
            // It may have been over for long.
            Body::Unknown if matches!(cause, Cause::Closed | Cause::PeerClosed) => Some(End::Close),
            _ => None,
        }
    }

    /// A response's head that did not come to its end still tells that it began, and perhaps its
    /// status.
    fn take_response_head(&mut self, conn: &Connection, cx: &mut Cx<'_>) {
        let Some(role) = conn.role else {
            return;
        };
        let side = self.side_mut(Direction::of_responses(role));
        let Side::Head(_) = side else {
            return;
        };
        let (Side::Head(head), Some(first)) = (std::mem::take(side), self.open.front_mut()) else {
            return;
        };
        let exchange = &mut first.exchange;
        exchange.response_bytes += head.bytes.len() as u64;
        if let Parsed::Response(response) = http1::parse_cut(&head.bytes) {
            cx.counters.heads_cut += 1;
            if response.status >= 200 {
                exchange.status = Some(response.status);
                exchange.response_start = Some(head.stamp.ts.max(exchange.start));
                exchange.response_context = head.stamp.context;
                exchange.response_tid = head.stamp.tid;
            }
        }
    }

    fn responses(&self, conn: &Connection) -> Option<&Side> {
        conn.role
            .map(|role| self.side(Direction::of_responses(role)))
    }
}
