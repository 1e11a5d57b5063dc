//! Requests that may have been read and are not seen.

use super::{
    super::{
        connection::{Connection, Cx},
        exchange::Role,
        hidden::{Hidden, When},
    },
    Dialog, Direction, stray,
};
use crate::protocol::visible::Visible;

impl Dialog {
    /// Passes over bytes that belong to no message that is followed. The process may make more of them.
    pub(super) fn stray_from(
        &mut self,
        conn: &mut Connection,
        direction: Direction,
        seen: &mut Visible<'_>,
        now: u64,
        cx: &mut Cx<'_>,
    ) {
        stray(conn, seen, cx);
        if conn.role.map(Direction::of_requests) == Some(direction) {
            self.hide(conn, now, cx);
        }
    }

    /// Requests may have been read that are not seen, since then.
    pub(super) fn hide(&self, conn: &mut Connection, since: u64, cx: &mut Cx<'_>) {
        if conn.role != Some(Role::Server) {
            return;
        }
        conn.blurred = true;
        // Once is enough until another request is seen: those are all answered, if they are, before any of these.
        if conn.told && conn.told_at == conn.requests {
            return;
        }
        conn.told = true;
        conn.told_at = conn.requests;
        cx.counters.requests_hidden += 1;
        cx.hidden.push(Hidden {
            tgid: conn.tgid,
            connection: cx.sock,
            when: When::Since(since),
        });
    }

    /// Requests may stand behind the one that was read last, out of sight.
    pub(super) fn may_hide(&mut self, conn: &mut Connection, now: u64, cx: &mut Cx<'_>) {
        if conn.role != Some(Role::Server) {
            return;
        }
        let number = conn.requests;
        match self.open.back_mut().filter(|open| open.number == number) {
            Some(open) => {
                open.exchange.unseen.behind = true;
                conn.blurred = true;
            }
            None => self.hide(conn, now, cx),
        }
    }

    /// Since when what is dropped now has been read.
    pub(super) fn oldest(&self, conn: &Connection) -> u64 {
        let first = self.open.front().map(|open| open.exchange.start);
        first
            .or_else(|| self.reading_since(conn))
            .unwrap_or(conn.last)
    }
}
