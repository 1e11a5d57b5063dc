//! Messages begin: a request opens an exchange, a response finds the exchange that it answers.

use super::{
    super::{
        connection::{Connection, Cx},
        exchange::{End, Role},
        joins::{ASKED_MAX, Asked},
        open::Open,
        wanted,
    },
    Dialog, Direction, Origin, Side, note_stray,
};
use crate::protocol::http1::{self, Body, Framing, Parsed, Request, Response};

impl Dialog {
    /// A head that did not come to its end: its first line may still tell what it was.
    pub(super) fn head_cut(
        &mut self,
        conn: &mut Connection,
        bytes: &[u8],
        origin: &Origin,
        cx: &mut Cx<'_>,
    ) {
        match http1::parse_cut(bytes) {
            Parsed::Request(request) => {
                cx.counters.heads_cut += 1;
                self.request(conn, &request, origin, cx);
            }
            Parsed::Response(response) => {
                cx.counters.heads_cut += 1;
                self.response(conn, &response, origin, cx);
            }
            Parsed::Http2 => {
                cx.counters.http2_connections += 1;
                self.ignore(conn, cx);
            }
            Parsed::NotHttp | Parsed::Partial => note_stray(conn, origin.len, cx),
        }
    }

    /// A request begins.
    pub(super) fn request(
        &mut self,
        conn: &mut Connection,
        request: &Request<'_>,
        origin: &Origin,
        cx: &mut Cx<'_>,
    ) {
        let role = match origin.direction {
            Direction::Read => Role::Server,
            Direction::Write => Role::Client,
        };
        if !self.assume(conn, role, cx) {
            note_stray(conn, origin.len, cx);
            return;
        }
        if self.open.len() >= cx.limits.pipelined {
            self.give_up(conn, cx);
            return;
        }
        conn.requests = conn.requests.wrapping_add(1);
        let mut open = Open::new(
            request,
            role,
            &self.tuple,
            conn.requests,
            &origin.stamp,
            cx.texts,
        );
        open.exchange.request_bytes = origin.len;
        wanted::take(
            &cx.wanted.request,
            &request.headers,
            &mut open.exchange.headers,
        );
        open.last = origin.now;
        for earlier in &mut self.open {
            earlier.exchange.pipelined = true;
        }
        open.exchange.pipelined = !self.open.is_empty();
        open.exchange.unseen.before = conn.blurred && role == Role::Server;
        if role == Role::Client {
            let connect = conn.connect.take();
            open.exchange.before = connect
                .as_ref()
                .map_or(conn.read, |connect| connect.start.max(conn.read));
            open.exchange.connect = connect.and_then(|connect| connect.took);
            if cx.asked.len() < ASKED_MAX
                && let Some(asked) = Asked::new(&open.exchange)
            {
                cx.asked.push(asked);
            }
        }
        self.open_memory += open.memory();
        self.open.push_back(open);
        if origin.cut {
            self.may_hide(conn, origin.now, cx);
        }
        self.spare_body = false;
        let framing = match request.headers.request_framing() {
            _ if origin.cut => Framing::Unknown,
            framing => framing,
        };
        *self.side_mut(origin.direction) = Body::new(framing).map_or(Side::Between, Side::Body);
        let responses = self.side(Direction::of_responses(role));
        if self.open.len() > 1
            && self.tentative.is_none()
            && matches!(responses, Side::Body(Body::Unknown))
        {
            self.tentative = Some((End::NextRequest, origin.now));
        }
    }

    /// A response begins; whether what stands behind its head is to be followed.
    pub(super) fn response(
        &mut self,
        conn: &mut Connection,
        response: &Response<'_>,
        origin: &Origin,
        cx: &mut Cx<'_>,
    ) -> bool {
        let role = match origin.direction {
            Direction::Read => Role::Client,
            Direction::Write => Role::Server,
        };
        if !self.assume(conn, role, cx) {
            note_stray(conn, origin.len, cx);
            return false;
        }
        if self.open.is_empty() {
            self.open_unfinished(conn, role, cx);
        }
        let Some(first) = self.open.front_mut() else {
            cx.counters.unpaired_responses += 1;
            return false;
        };
        first.exchange.response_bytes += origin.len;
        first.last = origin.now;
        let status = response.status;
        if status < 200 && status != 101 {
            first.waits_for_continue = false;
            return true;
        }
        first.exchange.status = Some(status);
        let before = first.memory();
        wanted::take(
            &cx.wanted.response,
            &response.headers,
            &mut first.exchange.headers,
        );
        let grown = first.memory() - before;
        first.exchange.response_start = Some(origin.stamp.ts.max(first.exchange.start));
        first.exchange.response_context = origin.stamp.context;
        first.exchange.response_tid = origin.stamp.tid;
        self.open_memory += grown;
        conn.proven = true;
        if status == 101 || first.to_connect && status < 300 {
            self.finish_first(conn, End::Upgrade, cx);
            self.ignore(conn, cx);
            return false;
        }
        let framing = match response.headers.response_framing(status, first.to_head) {
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose if origin.cut => {
                Framing::Unknown
            }
            framing => framing,
        };
        match Body::new(framing) {
            Some(body) => *self.side_mut(origin.direction) = Side::Body(body),
            None => self.finish_first(conn, End::Length, cx),
        }
        true
    }

    /// A response comes before the request's head is whole (408, 431, 400): the request is what there
    /// is of it, if that is a whole request line.
    fn open_unfinished(&mut self, conn: &mut Connection, role: Role, cx: &mut Cx<'_>) {
        let direction = Direction::of_requests(role);
        let Side::Head(head) = self.side(direction) else {
            return;
        };
        if !head.line_whole {
            return;
        }
        let Side::Head(head) = std::mem::take(self.side_mut(direction)) else {
            return;
        };
        let origin = Origin {
            direction,
            stamp: head.stamp,
            now: head.stamp.ts,
            len: head.bytes.len() as u64,
            cut: true,
        };
        self.head_cut(conn, &head.bytes, &origin, cx);
    }

    /// Takes the process for this side of the connection; false where it is known to be the other.
    fn assume(&mut self, conn: &mut Connection, role: Role, cx: &mut Cx<'_>) -> bool {
        match conn.role {
            Some(known) if known == role => return true,
            Some(_) if conn.proven => return false,
            // A guess from the middle of a stream, and a wrong one.
            Some(_) => {
                self.drop_open(cx);
                self.read = Side::Between;
                self.write = Side::Between;
            }
            None => {}
        }
        conn.role = Some(role);
        true
    }
}
