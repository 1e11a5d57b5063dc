//! What is not HTTP/1, and what began before the agent did.

use super::wire::{Wire, both, ok};
use crate::correlate::exchange::Role;

const GET: &str = "GET /a HTTP/1.1\r\n\r\n";

/// TLS is counted once, on whichever side it is seen first, and then ignored.
#[test]
fn tls() {
    both(
        |w| {
            w.request(&[&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefghijklmnop"[..]]);
            w.response(&[&b"\x16\x03\x03\x00\x7a\x02"[..]])
                .request(&[GET])
                .response(&[ok(0)]);
            assert_eq!(
                (w.counter("tls_connections"), w.counter("stray_bytes")),
                (1, 0)
            );
        },
        &[],
    );
}

/// So is a TLS connection that is met in its middle.
#[test]
fn tls_under_way() {
    both(
        |w| {
            w.response(&[&b"\x17\x03\x03\x00\x20abcdefghijklmnopqrstuvwxyz"[..]]);
            w.request(&[GET]).response(&[ok(0)]);
            assert_eq!(
                (w.counter("tls_connections"), w.counter("stray_bytes")),
                (1, 0)
            );
        },
        &[],
    );
}

/// HTTP/2 with prior knowledge is counted once and then ignored.
#[test]
fn http2() {
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for size in [1, 5, 100] {
        both(
            |w| {
                w.request_by(size, preface.as_bytes())
                    .response(&["\0\0\0"])
                    .request(&[GET]);
                assert_eq!(
                    (w.counter("http2_connections"), w.counter("stray_bytes")),
                    (1, 0)
                );
            },
            &[],
        );
    }
}

/// Other protocols are counted, once per connection and by the byte.
#[test]
fn other_protocols() {
    both(
        |w| {
            w.request(&["*1\r\n$4\r\nPING\r\n", "PING\r\n", "Q\0\0\0\x0eSELECT 1\0"]);
            w.response(&["+PONG\r\n", "HTTP\0"]);
            assert_eq!(w.counter("not_http_connections"), 1);
            assert_eq!(w.counter("stray_bytes"), 14 + 6 + 14 + 7 + 5);
        },
        &[],
    );
}

/// A stranger's text in pieces is held only until it is known to be none.
#[test]
fn text_in_pieces() {
    both(
        |w| {
            w.request(&["hello ", "world, how are", " you\r\n", "fine\r\n"]);
            w.request(&[GET]).response(&[ok(0)]);
            assert_eq!(w.counter("stray_bytes"), 32);
        },
        &["GET /a 200 0+0 length"],
    );
}

/// Garbage on an HTTP connection, answered with 400: there is no exchange, and none before suffers.
#[test]
fn garbage_request() {
    both(
        |w| {
            w.request(&[GET])
                .response(&[ok(0)])
                .request(&["\u{1}\u{2}garbage"]);
            w.response(&["HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno"]);
            assert_eq!(w.counter("unpaired_responses"), 1);
            w.request(&[GET]).response(&[ok(0)]);
        },
        &["GET /a 200 0+0 length", "GET /a 200 0+0 length"],
    );
}

/// The agent starts in the middle: of a request's body, of a response's, between the two, in a head.
#[test]
fn started_in_the_middle() {
    let then = |w: &mut Wire| _ = w.request(&[GET]).response(&[ok(2) + "hi"]);
    both(
        |w| {
            w.request(&["\u{1}".repeat(50)]).response(&[ok(3) + "abc"]);
            then(w);
            assert_eq!(w.counter("unpaired_responses"), 1);
        },
        &["GET /a 200 0+2 length"],
    );
    both(
        |w| {
            w.response(&[
                "\u{1}".repeat(50),
                "text".into(),
                "more text of a body".repeat(500),
            ]);
            then(w);
        },
        &["GET /a 200 0+2 length"],
    );
    both(
        |w| {
            w.response(&[&*ok(3), "abc"]);
            then(w);
            assert_eq!(w.counter("unpaired_responses"), 1);
        },
        &["GET /a 200 0+2 length"],
    );
    both(
        |w| {
            w.request(&["ser-Agent: x\r\n", "Accept: */*\r\n\r\n"])
                .response(&[ok(0)]);
            then(w);
        },
        &["GET /a 200 0+2 length"],
    );
}

/// A body that looks like the other side's head misleads only until a real exchange is seen.
#[test]
fn mistaken_role() {
    let mut wire = Wire::new(Role::Server);
    wire.response(&[GET])
        .request(&["GET /b HTTP/1.1\r\n\r\n"])
        .response(&[ok(0)]);
    wire.expect(&["GET /b 200 0+0 length"]);
    assert_eq!(wire.counter("exchanges_lost"), 1);
    // From now on it does not mislead at all.
    wire.response(&[GET])
        .request(&["GET /c HTTP/1.1\r\n\r\n"])
        .response(&[ok(0)]);
    wire.expect(&["GET /b 200 0+0 length", "GET /c 200 0+0 length"]);
}

/// More body than was announced belongs to nobody.
#[test]
fn excess_body() {
    both(
        |w| {
            w.request(&[GET])
                .response(&[ok(2) + "hi, and more", "and more".repeat(20)]);
            w.request(&[GET]).response(&[ok(0)]);
            assert_eq!(w.counter("connections_lost"), 0);
        },
        &["GET /a 200 0+2 length", "GET /a 200 0+0 length"],
    );
}

/// Bytes that were not read where a head should be: the exchange is dropped, not paired with the next
/// response.
#[test]
fn unread_heads() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&[GET]).unread(true, 500);
    wire.request(&["GET /b HTTP/1.1\r\n\r\n"])
        .response(&[ok(0)]);
    wire.expect(&["GET /b 200 0+0 length"]);
    assert_eq!(wire.counter("exchanges_lost"), 1);
    wire.unread(false, 100)
        .response(&[ok(0)])
        .request(&[GET])
        .response(&[ok(0)]);
    wire.expect(&["GET /b 200 0+0 length", "GET /a 200 0+0 length"]);
    assert_eq!(wire.counter("unpaired_responses"), 1);
}

/// After a loss of events nothing that was under way is paired, and what begins after it is.
#[test]
fn lost_events() {
    both(
        |w| {
            w.request(&[GET]);
            w.correlator.events_lost();
            assert_eq!(w.counter("exchanges_lost"), 1);
            // The response was lost, and so is not seen.
            w.request(&["GET /b HTTP/1.1\r\n\r\n"])
                .response(&[&*ok(4), "ab"]);
            w.correlator.events_lost();
            w.response(&["cd"])
                .request(&["GET /c HTTP/1.1\r\n\r\n"])
                .response(&[ok(0)]);
        },
        &["GET /c 200 0+0 length"],
    );
    both(
        |w| {
            w.request(&[GET.repeat(2)]);
            w.correlator.events_lost();
            w.response(&[ok(0)]).request(&[GET]).response(&[ok(0)]);
            assert_eq!(
                (w.counter("connections_lost"), w.counter("exchanges_lost")),
                (1, 2)
            );
        },
        &[],
    );
}
