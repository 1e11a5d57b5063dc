//! Several requests at once, answered in their order.

use super::wire::{MS, Wire, both, ok};
use crate::correlate::exchange::Role;

const A: &str = "GET /a HTTP/1.1\r\n\r\n";
const B: &str = "POST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz";
const C: &str = "HEAD /c HTTP/1.1\r\n\r\n";

/// Three requests in one operation; responses one by one, in one operation, and by the byte.
#[test]
fn requests_in_one_operation() {
    let requests = [A, B, C].concat();
    let responses = [ok(1) + "1", ok(2) + "22", ok(3)];
    let briefs = [
        "GET /a 200 0+1 length",
        "POST /b 200 3+2 length",
        "HEAD /c 200 0+0 length",
    ];
    both(
        |w| _ = w.request(&[&requests]).response(&responses),
        &briefs,
    );
    both(
        |w| _ = w.request(&[&requests]).response(&[responses.concat()]),
        &briefs,
    );
    both(
        |w| {
            _ = w
                .request_by(1, requests.as_bytes())
                .response_by(1, responses.concat().as_bytes())
        },
        &briefs,
    );
    both(
        |w| {
            let buffers: Vec<_> = responses.iter().map(String::as_bytes).collect();
            w.request(&[&requests]).response_vectored(&buffers);
        },
        &briefs,
    );
}

/// Requests that arrive in one operation start at the same time and end each at its own.
#[test]
fn times_of_pipelined_requests() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&[[A, C].concat()])
        .response(&[ok(0)])
        .wait(5 * MS)
        .response(&[ok(0)]);
    let times: Vec<_> = wire
        .out
        .iter()
        .map(|e| (e.start / MS, e.end / MS))
        .collect();
    assert_eq!(times, [(1001, 1002), (1001, 1008)]);
}

/// A request that comes while the response before it is under way belongs behind it.
#[test]
fn requests_during_a_response() {
    both(
        |w| {
            w.request(&[A]).response(&[&*ok(4), "12"]).request(&[B]);
            w.response(&["34"]).response(&[ok(0)]);
        },
        &["GET /a 200 0+4 length", "POST /b 200 3+0 length"],
    );
}

/// A chunked response whose end is out of sight, with the next one right behind it in the next
/// operation.
#[test]
fn chunked_responses_in_a_row() {
    let chunk = "12c\r\n".to_owned() + &"\u{1}".repeat(300) + "\r\n";
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let body = chunk.repeat(20) + "0\r\n\r\n";
    both(
        |w| {
            w.request(&[[A, B].concat()]);
            w.response(&[&*response, &body[..2000], &body[2000..]]);
            w.response(&[&*response, "0\r\n\r\n"]);
        },
        &["GET /a 200 0+6145 last_chunk", "POST /b 200 3+5 last_chunk"],
    );
}

/// A request out of sight behind a body: what was seen is answered in order, and then the connection
/// is given up, for there are more responses than known requests.
#[test]
fn requests_out_of_sight() {
    let big = format!(
        "POST /big HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{}",
        "\u{1}".repeat(5000)
    );
    let hidden = big + A + A;
    both(
        |w| {
            w.request(&[&hidden]).response(&[ok(0), ok(0), ok(0)]);
            w.request(&[A]).response(&[ok(0)]);
            assert_eq!(w.counter("connections_lost"), 1);
            assert_eq!(w.counter("exchanges_lost"), 0);
        },
        &["POST /big 200 5000+0 length"],
    );
}

/// Only the first letters of a request are in sight, behind the end of a body: its response must not
/// go to the request behind it.
#[test]
fn requests_almost_out_of_sight() {
    let head = "POST /begun HTTP/1.1\r\nContent-Length: 10\r\n\r\n";
    let hidden = ["56789", "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    both(
        |w| {
            w.request(&[A]).response(&[ok(0)]);
            w.request(&[head, "01234", &hidden]).request(&[B]);
            w.response(&[ok(0)]).response(&[ok(0)]).response(&[ok(0)]);
            assert_eq!(w.counter("connections_lost"), 1);
        },
        &["GET /a 200 0+0 length", "POST /begun 200 10+0 length"],
    );
}

/// A response out of sight behind a body: nothing more can be paired with certainty.
#[test]
fn responses_out_of_sight() {
    let hidden = ok(5000) + &"\u{1}".repeat(5000) + &ok(0) + &ok(0);
    both(
        |w| {
            w.request(&[[A, A, A].concat()])
                .response(&[&hidden])
                .response(&[ok(0)]);
            w.request(&[A]).response(&[ok(0)]);
            assert_eq!(w.counter("connections_lost"), 1);
            assert_eq!(w.counter("exchanges_lost"), 2);
        },
        &["GET /a 200 0+5000 length"],
    );
}

/// The server closes after the first response: the others were never answered.
#[test]
fn unanswered_requests() {
    let mut server = Wire::new(Role::Server);
    server
        .request(&[[A, B].concat()])
        .response(&[ok(0)])
        .state(4);
    server.expect(&["GET /a 200 0+0 length", "POST /b - 3+0 aborted"]);
    let mut client = Wire::new(Role::Client);
    client.request(&[[A, B].concat()]).response(&[ok(0)]).eof();
    client.expect(&["GET /a 200 0+0 length", "POST /b - 3+0 peer_gone"]);
}
