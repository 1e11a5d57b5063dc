//! The messages under way on one connection: requests, and their responses in the same order.

mod ends;
mod hiding;
mod messages;

use std::collections::VecDeque;

use decnet_trace_common::event::{SockOp, Tuple, flags};

use super::{
    connection::{Connection, Cx},
    exchange::{End, Exchange, Role},
    open::{Open, Stamp},
};
use crate::protocol::{
    http1::{self, Body, Parsed},
    visible::{Scratch, Visible},
};

pub(super) use ends::Cause;

/// So many bytes of a first line in pieces are enough to have seen what it is; the rest of it is
/// judged when it is whole.
const LINE_JUDGED: usize = 64;

/// Two directions of a connection, as the process sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    /// The direction that requests travel in.
    const fn of_requests(role: Role) -> Self {
        match role {
            Role::Server => Self::Read,
            Role::Client => Self::Write,
        }
    }

    /// The direction that responses travel in.
    const fn of_responses(role: Role) -> Self {
        match role {
            Role::Server => Self::Write,
            Role::Client => Self::Read,
        }
    }
}

/// Where one direction stands.
#[derive(Debug, Default)]
enum Side {
    /// Between messages, or where no message is followed.
    #[default]
    Between,
    /// In a head that arrives in pieces.
    Head(Box<PartialHead>),
    /// In a message's body.
    Body(Body),
}

/// A head that arrives in pieces.
#[derive(Debug)]
struct PartialHead {
    bytes: Vec<u8>,
    stamp: Stamp,
    /// Its first line is whole, and is one.
    line_whole: bool,
}

/// Where a head stood.
struct Origin {
    direction: Direction,
    /// The operation of its first byte.
    stamp: Stamp,
    /// When its last byte was moved.
    now: u64,
    /// Its bytes.
    len: u64,
    /// Not all of it was seen.
    cut: bool,
}

/// What is under way on a connection.
///
/// Invariant: the side of responses is in a body only while the first open exchange's response is.
#[derive(Debug, Default)]
pub(super) struct Dialog {
    read: Side,
    write: Side,
    /// Requests that are not answered in full, oldest first.
    open: VecDeque<Open>,
    /// The ends of the connection, from the last operation that told them.
    tuple: Tuple,
    /// The first open exchange seems to be over, in this way, since then.
    tentative: Option<(End, u64)>,
    /// The peer will send no more, since then.
    eof: Option<u64>,
    /// The process closed the connection, or its own half of it, at that time.
    closing: Option<u64>,
    /// The request's body is announced, but a client may withhold it: it was answered without a
    /// `100 Continue`.
    spare_body: bool,
    /// About how many bytes the open exchanges hold.
    open_memory: usize,
}

impl Dialog {
    /// Whether there is an exchange under way.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether the exchange with this number is under way.
    pub(super) fn has_open(&self, number: u32) -> bool {
        self.open.iter().any(|open| open.number == number)
    }

    /// The youngest exchange under way.
    pub(super) fn last_open(&mut self) -> Option<&mut Exchange> {
        self.open.back_mut().map(|open| &mut open.exchange)
    }

    /// Requests that the process serves here and has not ended.
    pub(super) fn serving(&self, conn: &Connection) -> impl Iterator<Item = &Exchange> {
        let serves = conn.role == Some(Role::Server);
        let open = self.open.iter().filter(move |_| serves);
        open.map(|open| &open.exchange)
    }

    /// When a request began that is still being read, in pieces.
    pub(super) fn reading_since(&self, conn: &Connection) -> Option<u64> {
        match &self.read {
            Side::Head(head) if conn.role != Some(Role::Client) => Some(head.stamp.ts),
            _ => None,
        }
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
            && matches!(self.read, Side::Between)
            && matches!(self.write, Side::Between)
    }

    /// A new one; as a rule, one exchange is open at a time.
    pub(super) fn new() -> Self {
        Self {
            open: VecDeque::with_capacity(1),
            ..Self::default()
        }
    }

    /// Makes it as good as new, for another connection; false where it has grown too much for that.
    pub(super) fn recycle(&mut self) -> bool {
        const CAPACITY_MAX: usize = 8;
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        let keep = open.capacity() <= CAPACITY_MAX;
        *self = Self {
            open,
            ..Self::default()
        };
        keep
    }

    /// About how many bytes the open exchanges hold.
    pub(super) const fn open_memory(&self) -> usize {
        self.open_memory
    }

    /// About how many bytes the heads that arrive in pieces hold.
    pub(super) fn heads_memory(&self) -> usize {
        [&self.read, &self.write]
            .into_iter()
            .map(|side| match side {
                Side::Head(head) => size_of::<PartialHead>() + head.bytes.capacity(),
                _ => 0,
            })
            .sum()
    }

    /// Takes a socket operation.
    pub(super) fn operation(
        &mut self,
        conn: &mut Connection,
        op: &SockOp,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let send = op.flags & flags::SEND != 0;
        match op.ret {
            1.. => {
                let direction = if send {
                    Direction::Write
                } else {
                    Direction::Read
                };
                self.bytes(conn, direction, op, payload, cx);
            }
            0 if send => {}
            0 => self.end_of_stream(conn, op.header.ts, cx),
            _ if ends::breaks_connection(-op.ret) => {
                self.end_all(conn, Cause::Broken, op.header.ts, cx);
            }
            _ => {}
        }
    }

    /// Takes the bytes of an operation.
    fn bytes(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        op: &SockOp,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) {
        self.closing = None;
        if op.flags & flags::TUPLE != 0 {
            self.tuple = op.tuple;
        }
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(op, payload, &mut scratch);
        if conn.role.is_none() && !conn.noted && is_tls(seen.front()) {
            cx.counters.tls_connections += 1;
            self.ignore(conn, cx);
            return;
        }
        if conn.draining && !self.is_responses(conn, direction) {
            return;
        }
        self.resync(conn, direction, seen.front(), cx);
        let stamp = Stamp::new(op);
        let whole = seen.len();
        while !seen.is_empty() && !conn.ignored {
            match self.side(direction) {
                Side::Between if seen.len() == whole && seen.front().is_empty() => {
                    self.unread(conn, direction, &mut seen, &stamp, cx);
                }
                Side::Between => {
                    let is_first = seen.len() == whole;
                    self.begin(conn, direction, &mut seen, is_first, &stamp, cx);
                }
                Side::Head(_) => self.continue_head(conn, direction, &mut seen, &stamp, cx),
                Side::Body(_) => self.continue_body(conn, direction, &mut seen, &stamp, cx),
            }
        }
        if self.is_responses(conn, direction)
            && let Side::Body(Body::Tail(tail)) = self.side(direction)
            && tail.may_be_end()
        {
            self.tentative = Some((End::LastChunk, stamp.ts));
        }
    }

    /// Where a body's end is out of sight, an operation that begins with a head may show that it is
    /// over. Only at the beginning of an operation: within one, a body may hold anything.
    fn resync(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        front: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let Side::Body(body) = self.side(direction) else {
            return;
        };
        let body = *body;
        let front = http1::skip_empty_lines(front);
        if self.is_responses(conn, direction) {
            let tentative = self.tentative.take();
            let next = http1::may_begin_response(front)
                && match tentative {
                    // Even one letter of a head will do.
                    Some((End::LastChunk, _)) => true,
                    _ => {
                        matches!(body, Body::Tail(_) | Body::Unknown)
                            && self.open.len() > 1
                            && front.len() >= b"HTTP/1.".len()
                    }
                };
            if next {
                let end = tentative.map_or(End::NextRequest, |(end, _)| end);
                self.finish_first(conn, end, cx);
            }
            return;
        }
        let current = self.current_request(conn);
        let answered = current.is_none();
        let answer_begun = current.is_none_or(|open| open.exchange.response_start.is_some());
        let may_be_over = match body {
            Body::Tail(tail) => tail.may_be_end() || answered,
            Body::Unknown => answer_begun,
            // The body may be withheld, but it may also come: only a whole head is believed.
            Body::Length(_) | Body::Chunks(_) => {
                self.spare_body && answered && matches!(http1::parse(front), Parsed::Request(_))
            }
            Body::UntilClose => false,
        };
        if may_be_over && http1::may_begin_request(front) {
            *self.side_mut(direction) = Side::Between;
        }
    }

    /// At a place where a message begins, the first of its operation or not.
    fn begin(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        is_first: bool,
        stamp: &Stamp,
        cx: &mut Cx<'_>,
    ) {
        // Empty lines before a request are to be ignored (RFC 9112 §2.2).
        while let [b'\r' | b'\n', ..] = seen.front() {
            seen.skip(1);
        }
        if seen.is_empty() {
            return;
        }
        let front = seen.front();
        if front.is_empty() {
            self.out_of_sight(conn, direction, seen, cx);
            return;
        }
        let expected = match self.is_responses(conn, direction) {
            true => http1::may_begin_response(front),
            false => !front.starts_with(b"HTTP/"),
        };
        if conn.proven && !expected {
            // A body that nobody announced.
            self.stray_from(conn, direction, seen, stamp.ts, cx);
            return;
        }
        let parsed = http1::parse(front);
        if matches!(parsed, Parsed::Partial) {
            if seen.is_whole() {
                *self.side_mut(direction) = Side::Head(Box::new(PartialHead {
                    bytes: front.to_vec(),
                    stamp: *stamp,
                    line_whole: memchr::memchr(b'\n', front).is_some(),
                }));
                seen.skip(front.len() as u64);
            } else if conn.proven && matches!(http1::parse_cut(front), Parsed::NotHttp) {
                // A few bytes of a head are in sight, and they do not tell which it is.
                self.out_of_sight(conn, direction, seen, cx);
            } else {
                // The rest of the operation is taken for the rest of the head.
                let origin = Origin {
                    direction,
                    stamp: *stamp,
                    now: stamp.ts,
                    len: seen.skip_all(),
                    cut: true,
                };
                self.head_cut(conn, front, &origin, cx);
                if !is_first && conn.role.map(Direction::of_requests) == Some(direction) {
                    // Who sends several requests at once does not stop at this one.
                    self.hide(conn, stamp.ts, cx);
                    conn.draining = true;
                    if self.open.is_empty() {
                        self.give_up(conn, cx);
                    }
                }
            }
            return;
        }
        let origin = |len| Origin {
            direction,
            stamp: *stamp,
            now: stamp.ts,
            len,
            cut: false,
        };
        match parsed {
            Parsed::Request(request) => {
                let len = seen.skip(request.len as u64);
                self.request(conn, &request, &origin(len), cx);
            }
            Parsed::Response(response) => {
                let len = seen.skip(response.len as u64);
                if !self.response(conn, &response, &origin(len), cx) {
                    seen.skip_all();
                }
            }
            Parsed::Http2 => {
                cx.counters.http2_connections += 1;
                self.ignore(conn, cx);
            }
            Parsed::NotHttp | Parsed::Partial => {
                self.stray_from(conn, direction, seen, stamp.ts, cx);
            }
        }
    }

    /// In a head that arrives in pieces.
    fn continue_head(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        now: &Stamp,
        cx: &mut Cx<'_>,
    ) {
        let Side::Head(mut head) = std::mem::take(self.side_mut(direction)) else {
            return;
        };
        let front = seen.front();
        let before = head.bytes.len();
        let take = front.len().min(cx.limits.head.saturating_sub(before));
        let mut origin = Origin {
            direction,
            stamp: head.stamp,
            now: now.ts,
            len: before as u64,
            cut: true,
        };
        if take == 0 {
            // The next piece is out of sight, or there is no more room.
            origin.len += seen.skip_all();
            self.head_cut(conn, &head.bytes, &origin, cx);
            return;
        }
        head.bytes.extend_from_slice(&front[..take]);
        let rest = *seen;
        let Some(end) = http1::head_end(&head.bytes, before) else {
            seen.skip(take as u64);
            let judge = !head.line_whole
                && (before < LINE_JUDGED || memchr::memchr(b'\n', &front[..take]).is_some());
            if judge {
                match http1::parse(&head.bytes) {
                    Parsed::Http2 => {
                        cx.counters.http2_connections += 1;
                        self.ignore(conn, cx);
                        return;
                    }
                    Parsed::NotHttp => {
                        // What came before was no head; this may begin one.
                        note_stray(conn, before as u64, cx);
                        *seen = rest;
                        return;
                    }
                    _ => head.line_whole = memchr::memchr(b'\n', &head.bytes).is_some(),
                }
            }
            *self.side_mut(direction) = Side::Head(head);
            return;
        };
        seen.skip((end - before) as u64);
        origin.len = end as u64;
        origin.cut = false;
        match http1::parse(&head.bytes[..end]) {
            Parsed::Request(request) => self.request(conn, &request, &origin, cx),
            Parsed::Response(response) => {
                if !self.response(conn, &response, &origin, cx) {
                    seen.skip_all();
                }
            }
            Parsed::Http2 => {
                cx.counters.http2_connections += 1;
                self.ignore(conn, cx);
            }
            Parsed::NotHttp | Parsed::Partial => {
                note_stray(conn, before as u64, cx);
                *seen = rest;
            }
        }
    }

    /// In a body.
    fn continue_body(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        now: &Stamp,
        cx: &mut Cx<'_>,
    ) {
        let now = now.ts;
        let responses = self.is_responses(conn, direction);
        let number = conn.requests;
        let Side::Body(body) = self.side_mut(direction) else {
            return;
        };
        let progress = body.advance(seen);
        let end = match body {
            Body::Length(_) => End::Length,
            _ => End::LastChunk,
        };
        let end_is_in_sight = matches!(body, Body::Length(_) | Body::Chunks(_));
        if progress.ended {
            *self.side_mut(direction) = Side::Between;
        }
        if !responses && !end_is_in_sight {
            self.may_hide(conn, now, cx);
        }
        if responses {
            if let Some(open) = self.open.front_mut() {
                open.exchange.response_bytes += progress.bytes;
                open.exchange.response_body += progress.bytes;
                open.last = now;
            }
            if progress.ended {
                self.finish_first(conn, end, cx);
            }
            return;
        }
        self.spare_body = false;
        if let Some(open) = self.open.back_mut().filter(|open| open.number == number) {
            open.exchange.request_bytes += progress.bytes;
            open.exchange.request_body += progress.bytes;
            open.waits_for_continue = false;
            if open.exchange.response_start.is_none() {
                open.last = now;
            }
        }
    }

    /// The bytes of a whole operation were not read, where a message should begin. (In a body they
    /// need not be.)
    fn unread(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        stamp: &Stamp,
        cx: &mut Cx<'_>,
    ) {
        self.lose(conn, cx);
        self.stray_from(conn, direction, seen, stamp.ts, cx);
    }

    /// A message ended and another began within one operation, out of sight: there are more messages
    /// than were seen, so their order tells nothing any more.
    fn out_of_sight(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        cx: &mut Cx<'_>,
    ) {
        stray(conn, seen, cx);
        if !self.is_responses(conn, direction) {
            self.hide(conn, conn.last, cx);
            // What was seen is answered first, and in order.
            conn.draining = true;
            if self.open.is_empty() {
                self.give_up(conn, cx);
            }
        } else if !self.open.is_empty() {
            self.give_up(conn, cx);
        }
    }

    /// Operations may be missing, or cannot be told apart: exchanges under way are dropped. With one
    /// request at a time the next one is paired rightly again; a connection with several under way is
    /// given up.
    pub(super) fn lose(&mut self, conn: &mut Connection, cx: &mut Cx<'_>) {
        if self.open.len() > 1 {
            self.give_up(conn, cx);
            return;
        }
        if self.is_open() {
            self.hide(conn, self.oldest(conn), cx);
        }
        self.drop_open(cx);
        self.read = Side::Between;
        self.write = Side::Between;
        self.spare_body = false;
    }

    /// Gives the connection up for good.
    pub(super) fn give_up(&mut self, conn: &mut Connection, cx: &mut Cx<'_>) {
        cx.counters.connections_lost += 1;
        if !conn.draining || self.is_open() {
            self.hide(conn, self.oldest(conn), cx);
        }
        self.ignore(conn, cx);
    }

    /// Looks at nothing more on the connection.
    fn ignore(&mut self, conn: &mut Connection, cx: &mut Cx<'_>) {
        conn.ignored = true;
        self.drop_open(cx);
        self.read = Side::Between;
        self.write = Side::Between;
    }

    fn drop_open(&mut self, cx: &mut Cx<'_>) {
        cx.counters.exchanges_lost += self.open.len() as u64;
        self.open.clear();
        self.open_memory = 0;
        self.tentative = None;
        self.closing = None;
    }

    /// The exchange of the request that is arriving, or arrived last; none where it is over.
    fn current_request(&self, conn: &Connection) -> Option<&Open> {
        self.open.back().filter(|open| open.number == conn.requests)
    }

    fn is_responses(&self, conn: &Connection, direction: Direction) -> bool {
        conn.role.map(Direction::of_responses) == Some(direction)
    }

    const fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }

    const fn side_mut(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }
}

/// Passes over bytes that belong to no message that is followed.
fn stray(conn: &mut Connection, seen: &mut Visible<'_>, cx: &mut Cx<'_>) {
    let len = seen.skip_all();
    note_stray(conn, len, cx);
}

fn note_stray(conn: &mut Connection, len: u64, cx: &mut Cx<'_>) {
    cx.counters.stray_bytes += len;
    if conn.role.is_none() && !conn.noted {
        conn.noted = true;
        cx.counters.not_http_connections += 1;
    }
}

/// Whether a TLS record begins here (RFC 8446 §5.1): of a handshake, or of a connection that began
/// before the agent did.
const fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x14..=0x17, 0x03, 0x00..=0x04, ..])
}
