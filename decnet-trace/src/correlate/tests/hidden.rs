//! Requests that a server reads and that are not seen: that they may have been there is told.

use super::wire::{MS, Wire, both, ok};
use crate::correlate::{
    exchange::{Role, Unseen},
    hidden::{Hidden, When},
};

const A: &str = "GET /a HTTP/1.1\r\n\r\n";

impl Wire {
    /// What was told since the last call, in milliseconds.
    fn hidden(&mut self) -> Vec<When> {
        let (all, lost) = self.correlator.hidden();
        assert_eq!(lost, None);
        let at = |hidden: Hidden| {
            assert_eq!(
                (hidden.tgid, hidden.connection),
                (super::wire::TGID, self.sock)
            );
            match hidden.when {
                When::Since(at) => When::Since(at / MS),
                When::Closed(at) => When::Closed(at / MS),
            }
        };
        all.into_iter().map(at).collect()
    }

    fn unseen(&self) -> Vec<(bool, bool)> {
        let each = |unseen: Unseen| (unseen.before, unseen.behind);
        self.out
            .iter()
            .map(|exchange| each(exchange.unseen))
            .collect()
    }
}

/// Of many requests in one operation some are seen and answered; that there are more is known at once, and that
/// their connection closed.
#[test]
fn a_long_pipeline() {
    // Of the last one seen there are 96 bytes in one case, and in the other too few to tell what it is.
    for (length, seen) in [(100, 41), (102, 40)] {
        let mut wire = Wire::new(Role::Server);
        let head = "GET /a HTTP/1.1\r\nX: ";
        let request = format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4));
        wire.request(&[A]).response(&[ok(0)]);
        assert_eq!(wire.hidden(), []);
        wire.request(&[request.repeat(100)]);
        assert_eq!(wire.hidden(), [When::Since(1003)]);
        for _ in 0..100 {
            wire.response(&[ok(0)]);
        }
        wire.request(&[A]).response(&[ok(0)]);
        assert_eq!(wire.out.len(), 1 + seen);
        assert_eq!(wire.unseen()[seen], (false, length == 100));
        assert_eq!(wire.counter("connections_lost"), 1);
        assert_eq!(wire.hidden(), []);
        wire.state(4);
        assert_eq!(wire.hidden(), [When::Closed(wire.now / MS)]);
    }
}

/// Of a single request whose head is long, or whose body comes in chunks that are, it cannot be said whether
/// another stands behind it; those after it on its connection go on being seen.
#[test]
fn behind_a_single_one() {
    let head = format!("GET /a HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(5000));
    let chunk = "12c\r\n".to_owned() + &"\u{1}".repeat(300) + "\r\n";
    let body = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
        + &chunk.repeat(20)
        + "0\r\n\r\n";
    for long in [head, body] {
        let mut wire = Wire::new(Role::Server);
        wire.request(&[A]).response(&[ok(0)]);
        wire.request(&[long]).response(&[ok(0)]);
        wire.request(&[A]).response(&[ok(0)]);
        let unseen = [(false, false), (false, true), (true, false)];
        assert_eq!(wire.unseen(), unseen);
        assert_eq!(wire.counter("connections_lost"), 0);
        assert_eq!(wire.hidden(), []);
    }
}

/// A long body of known length hides nothing, nor does a head in pieces.
#[test]
fn nothing_hidden() {
    both(
        |w| {
            let body = "\u{1}".repeat(9000);
            let head = format!("POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
            w.request(&[head.clone() + &body]).response(&[ok(0)]);
            w.request_by(20, head.as_bytes())
                .request(&[body])
                .response(&[ok(0)]);
            assert_eq!(w.unseen(), [(false, false); 2]);
            assert_eq!(w.hidden(), []);
        },
        &["POST /a 200 9000+0 length", "POST /a 200 9000+0 length"],
    );
}

/// What is dropped was there: more requests under way than are followed, and one whose operation was not read.
#[test]
fn what_is_dropped() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&[A; 129]);
    assert_eq!(wire.hidden(), [When::Since(1001)]);
    let mut wire = Wire::new(Role::Server);
    wire.request(&[A]).response(&[ok(0)]);
    wire.unread(false, 300);
    assert_eq!(wire.hidden(), [When::Since(1003)]);
    wire.response(&[ok(0)]).request(&[A]).response(&[ok(0)]);
    assert_eq!(wire.unseen(), [(false, false), (true, false)]);
    wire.request(&[A]).correlator.events_lost();
    assert_eq!(wire.hidden(), [When::Since(1007)]);
}

/// However much comes that is not understood, it is said once, until another request is seen: what is remembered of
/// this is bounded.
#[test]
fn said_once() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&["POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"]);
    wire.response(&[ok(0)]);
    assert_eq!(wire.hidden(), []);
    for _ in 0..100 {
        wire.request(&["\u{1}".repeat(9000)]);
    }
    assert_eq!(wire.hidden(), [When::Since(1003)]);
    wire.unread(false, 300).unread(false, 300);
    assert_eq!(wire.hidden(), []);
    wire.request(&[A]).response(&[ok(0)]).unread(false, 300);
    assert_eq!(wire.hidden().len(), 1);
}

/// Clients hide nothing, and what follows an upgrade is no request.
#[test]
fn clients_and_upgrades() {
    let mut wire = Wire::new(Role::Client);
    wire.request(&[A; 129]);
    assert_eq!(wire.hidden(), []);
    let mut wire = Wire::new(Role::Server);
    wire.request(&["GET /a HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"]);
    wire.response(&["HTTP/1.1 101 Switching Protocols\r\n\r\n"]);
    wire.request(&[[0x81, 0x81, 0, 0, 0, 0, b'0']]);
    assert_eq!(wire.hidden(), []);
}
