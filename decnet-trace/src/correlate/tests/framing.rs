//! Where a message ends, for every way that HTTP/1 has to say so, on both sides of a connection.

use super::wire::{MS, Wire, both, ok};
use crate::correlate::exchange::{Ends, Role};

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

/// A request without a body and a response with a length, in one operation and in two.
#[test]
fn length() {
    let whole = ok(2) + "hi";
    both(
        |w| _ = w.request(&[GET]).response(&[&whole]),
        &["GET /a 200 0+2 length"],
    );
    both(
        |w| _ = w.request(&[GET]).response(&[&*ok(2), "hi"]),
        &["GET /a 200 0+2 length"],
    );
    both(
        |w| _ = w.request(&[GET]).response(&[ok(0)]),
        &["GET /a 200 0+0 length"],
    );
}

/// Everything that an exchange tells, of a request in two reads and a response in three writes.
#[test]
fn every_field() {
    let mut wire = Wire::new(Role::Server);
    wire.arrived = 1000 * MS - 5;
    wire.context = 0xaaa;
    let head = "POST /p?q HTTP/1.0\r\nHost: example.org\r\nUser-Agent: curl\r\ntraceparent: tp\r\n\
        tracestate: ts\r\nContent-Length: 4\r\n\r\n";
    wire.request(&[head]);
    wire.context = 0xbbb;
    wire.request(&["body"]);
    wire.context = 0xccc;
    wire.response(&[ok(3)]);
    wire.context = 0xddd;
    wire.response(&["1", "23"]);
    let exchange = wire.out.pop().expect("an exchange");
    assert_eq!(
        (exchange.tgid, exchange.tid, exchange.sock, exchange.fd),
        (700, 701, 1, 9)
    );
    assert_eq!(
        (exchange.request_context, exchange.response_context),
        (0xaaa, 0xccc)
    );
    assert_eq!(exchange.start, 1001 * MS);
    assert_eq!(exchange.queued, Some(MS + 5));
    assert_eq!(exchange.response_start, Some(1003 * MS));
    assert_eq!(exchange.end, 1005 * MS);
    assert_eq!(exchange.minor_version, 0);
    assert_eq!(exchange.host.as_deref(), Some("example.org"));
    assert_eq!(exchange.user_agent.as_deref(), Some("curl"));
    assert_eq!(exchange.traceparent.as_deref(), Some("tp"));
    assert_eq!(exchange.tracestate.as_deref(), Some("ts"));
    assert_eq!(exchange.request_bytes, head.len() as u64 + 4);
    assert_eq!(exchange.response_bytes, ok(3).len() as u64 + 3);
    let Ends::Ip { local, remote } = exchange.ends else {
        panic!("no ends");
    };
    assert_eq!((local.port(), remote.port()), (8000, 40_000));
}

/// What the peer's clock cannot have said is not believed, and a client's request waits for nobody.
#[test]
fn queueing_is_only_a_servers() {
    for (role, arrived, queued) in [
        (Role::Server, 0, None),
        (Role::Server, 2000 * MS, None),
        (Role::Server, 1001 * MS, Some(0)),
        (Role::Client, 1000 * MS, None),
    ] {
        let mut wire = Wire::new(role);
        wire.arrived = arrived;
        wire.request(&[GET]).response(&[ok(0)]);
        assert_eq!(wire.out[0].queued, queued);
    }
}

/// Several exchanges on one connection, HTTP/1.0 with keep-alive among them.
#[test]
fn keep_alive() {
    both(
        |w| {
            for i in 0..3 {
                let head = format!(
                    "GET /{i} HTTP/1.{}\r\nConnection: keep-alive\r\n\r\n",
                    i % 2
                );
                w.request(&[head]).response(&[&*ok(1), "x"]);
            }
        },
        &[
            "GET /0 200 0+1 length",
            "GET /1 200 0+1 length",
            "GET /2 200 0+1 length",
        ],
    );
}

/// Bodies of gigabytes are counted in full.
#[test]
fn huge_bodies() {
    both(
        |w| {
            w.request(&[GET])
                .response(&["HTTP/1.1 200 OK\r\nContent-Length: 8000000000\r\n\r\n"]);
            for _ in 0..4 {
                w.response_huge(2_000_000_000);
            }
        },
        &["GET /a 200 0+8000000000 length"],
    );
}

/// A body that the kernel sends from a file is never read by the hook, and needs not be.
#[test]
fn unread_bodies() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&[GET])
        .response(&[ok(5000)])
        .unread(true, 5000);
    wire.request(&[GET]).response(&[ok(0)]);
    wire.expect(&["GET /a 200 0+5000 length", "GET /a 200 0+0 length"]);
    assert_eq!(wire.out[0].fd, 9);
}

/// Statuses and methods whose response has no body, whatever its headers say.
#[test]
fn no_body_in_spite_of_headers() {
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)] {
        for header in ["Content-Length: 100", "Transfer-Encoding: chunked", "X: y"] {
            let request = format!("{method} / HTTP/1.1\r\n\r\n");
            let response = format!("HTTP/1.1 {status} X\r\n{header}\r\n\r\n");
            let line = format!("{method} / {status} 0+0 length");
            both(
                |w| {
                    w.request(&[&request]).response(&[&response]);
                    w.request(&[&request]).response(&[&response]);
                },
                &[&line, &line],
            );
        }
    }
}

/// Interim responses count to the exchange but do not end it; the final one tells start and status.
#[test]
fn interim_responses() {
    let mut wire = Wire::new(Role::Server);
    wire.request(&["PUT /u HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"]);
    wire.response(&[
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    ]);
    wire.request(&["body"]).response(&[ok(2) + "hi"]);
    wire.request(&[GET])
        .response(&["HTTP/1.1 103 E\r\n\r\n".to_owned() + &ok(0)]);
    wire.expect(&["PUT /u 200 4+2 length", "GET /a 200 0+0 length"]);
    let put = &wire.out[0];
    assert_eq!(put.response_start, Some(1005 * MS));
    assert_eq!(put.response_bytes, 25 + 37 + ok(2).len() as u64 + 2);
}

/// `Expect: 100-continue` answered at once: the client may send its body, or withhold it and send the
/// next request instead.
#[test]
fn expectation_failed() {
    let head = "PUT /u HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n";
    let no = "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n";
    both(
        |w| {
            _ = w
                .request(&[head])
                .response(&[no])
                .request(&[GET])
                .response(&[ok(0)])
        },
        &["PUT /u 417 0+0 length", "GET /a 200 0+0 length"],
    );
    both(
        |w| {
            w.request(&[head])
                .response(&[no])
                .request(&["GET / and so forth: 40 bytes of a body!."]);
            w.request(&[GET]).response(&[ok(0)]);
        },
        &["PUT /u 417 0+0 length", "GET /a 200 0+0 length"],
    );
}

/// A response without a length ends with its connection.
#[test]
fn until_close() {
    for head in [
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ] {
        let mut server = Wire::new(Role::Server);
        server
            .request(&[GET])
            .response(&[head, "some", "GET / HTTP/1.1\r\n\r\n"]);
        server.expect(&[]).wait(5 * MS).state(4);
        server.expect(&["GET /a 200 0+22 close"]);
        assert_eq!(server.out[0].end, 1004 * MS);
        let mut client = Wire::new(Role::Client);
        client
            .request(&[GET])
            .response(&[head, "some", "HTTP/1.1 200 OK\r\n\r\n"]);
        client.wait(5 * MS).eof().expect(&["GET /a 200 0+23 close"]);
    }
}

/// Chunked requests and responses, by the operation, by the byte, and in between.
#[test]
fn chunked() {
    let request = "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n\
        5\r\nHTTP/\r\n14\r\n01234567890123456789\r\n0\r\nTrailer: x\r\n\r\n";
    for size in [1, 2, 3, 7, 17, 4000] {
        both(
            |w| {
                w.request_by(size, request.as_bytes())
                    .response_by(size, response.as_bytes());
                w.request(&[GET]).response(&[ok(0)]).wait(60 * MS);
            },
            &["POST /c 200 16+53 last_chunk", "GET /a 200 0+0 length"],
        );
    }
}

/// A chunked response of big chunks whose sizes are out of sight ends by its tail: not at once, for
/// it may go on, but soon, and with the time of its last byte.
#[test]
fn chunked_out_of_sight() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = "3e8\r\n".to_owned() + &"\u{1}".repeat(1000) + "\r\n";
    let bodies = chunk.repeat(20);
    both(
        |w| {
            w.request(&[GET]).response(&[head, &bodies]);
            // This looks like the end, but more comes.
            w.response(&["\u{1}".repeat(30) + "\r\n0\r\n\r\n", bodies.clone()])
                .wait(60 * MS);
            w.expect(&[]);
            w.response(&[bodies.clone() + "0\r\n\r\n"]);
            let end = w.now;
            w.expect(&[]).wait(49 * MS).expect(&[]).wait(MS);
            assert_eq!(w.out[0].end, end);
            w.request(&[GET])
                .response(&[head, &(bodies.clone() + "0\r\n\r\n")]);
            // The next response shows it before the time is up.
            w.request(&[GET]).response(&[ok(0)]);
        },
        &[
            "GET /a 200 0+60462 last_chunk",
            "GET /a 200 0+20145 last_chunk",
            "GET /a 200 0+0 length",
        ],
    );
}

/// A vectored write (head, chunk, last chunk) whose tail could not be read ends by what its length
/// says.
#[test]
fn chunked_in_a_vectored_write() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let data = [1; 6000];
    let mut wire = Wire::new(Role::Server);
    wire.request(&[GET]);
    wire.response_vectored(&[head, b"1770\r\n", &data, b"\r\n", b"0\r\n\r\n"]);
    wire.expect(&["GET /a 200 0+6013 last_chunk"]);
}

/// An early response: what remains of the request's body belongs to the exchange while it is open, and
/// to nobody afterwards; it is never a request.
#[test]
fn early_response() {
    let post = "POST /up HTTP/1.1\r\nContent-Length: 50\r\n\r\n";
    let body = GET.repeat(2);
    assert!(body.len() > 50);
    let (body, rest) = (&body[..25], &body[25..50]);
    both(
        |w| {
            w.request(&[post, &body[..10]]).response(&[&*ok(4), "ab"]);
            w.request(&[&body[10..]]).response(&["cd"]).request(&[rest]);
            w.request(&[GET]).response(&[ok(0)]);
        },
        &["POST /up 200 25+4 length", "GET /a 200 0+0 length"],
    );
}

/// A contradictory length: the exchange is seen, its body's end is not, and the next one is right.
#[test]
fn contradictory_lengths() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n";
    both(
        |w| {
            w.request(&[GET]).response(&[head, "hello"]).request(&[GET]);
            // The response might go on.
            w.response(&["!"])
                .wait(60 * MS)
                .expect(&[])
                .response(&[ok(0)]);
        },
        &["GET /a 200 0+6 next_request", "GET /a 200 0+0 length"],
    );
    both(
        |w| {
            _ = w
                .request(&[GET])
                .response(&[head])
                .request(&[GET])
                .wait(60 * MS)
        },
        &["GET /a 200 0+0 next_request"],
    );
    let post = "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: x\r\n\r\n";
    both(
        |w| {
            w.request(&[post, "GET /not HTTP/1.1\r\n\r\n"])
                .response(&[ok(0)]);
            w.request(&[GET]).response(&[ok(0)]);
        },
        &["POST / 200 21+0 length", "GET /a 200 0+0 length"],
    );
}

/// Protocol switches end the exchange at the response's head; what follows is somebody else's.
#[test]
fn upgrades() {
    let upgrade = "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let connect = "CONNECT a:443 HTTP/1.1\r\n\r\n";
    let success = "HTTP/1.1 200 Connection established\r\n\r\n";
    for (request, response, brief) in [
        (upgrade, switch, "GET /ws 101 0+0 upgrade"),
        (connect, success, "CONNECT a:443 200 0+0 upgrade"),
    ] {
        both(
            |w| {
                w.request(&[request])
                    .response(&[response.to_owned() + "frames"]);
                w.request(&[GET])
                    .response(&[ok(0)])
                    .response(&["\u{81}\u{5}hello"]);
                assert_eq!(w.counter("stray_bytes"), 0);
                assert_eq!(w.counter("not_http_connections"), 0);
            },
            &[brief],
        );
    }
    both(
        |w| {
            w.request(&[connect])
                .response(&["HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno"]);
            w.request(&[GET]).response(&[ok(0)]);
        },
        &["CONNECT a:443 407 0+2 length", "GET /a 200 0+0 length"],
    );
}

/// Unknown methods, unusual targets, bare line feeds, folded headers and leading empty lines.
#[test]
fn unusual_requests() {
    for (request, brief) in [
        ("PROPFIND /x HTTP/1.1\r\n\r\n", "PROPFIND /x"),
        ("get / HTTP/1.1\r\n\r\n", "get /"),
        ("GET http://h/x HTTP/1.1\r\n\r\n", "GET http://h/x"),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "OPTIONS *"),
        ("GET /lf HTTP/1.1\nHost: h\n\n", "GET /lf"),
        ("\r\n\r\nGET /crlf HTTP/1.1\r\n\r\n", "GET /crlf"),
        ("GET /f HTTP/1.1\r\nX: a\r\n b: c\r\n\r\n", "GET /f"),
    ] {
        let line = brief.to_owned() + " 200 0+0 length";
        both(|w| _ = w.request(&[request]).response(&[ok(0)]), &[&line]);
        both(
            |w| _ = w.request_by(1, request.as_bytes()).response(&[ok(0)]),
            &[&line],
        );
    }
    both(
        |w| {
            _ = w
                .request(&[&b"GET /\xff\xc3\xa9 HTTP/1.1\r\n\r\n"[..]])
                .response(&[ok(0)])
        },
        &["GET /\u{fffd}\u{e9} 200 0+0 length"],
    );
}

/// Heads by the byte, on both sides: the first operation is a single letter.
#[test]
fn heads_byte_by_byte() {
    let response = ok(3) + "abc";
    both(
        |w| {
            for _ in 0..2 {
                let start = w.now + MS;
                w.request_by(1, GET.as_bytes())
                    .response_by(1, response.as_bytes());
                let last = w.out.last().expect("an exchange");
                assert_eq!((last.start, last.end), (start, w.now));
            }
            // The first letter might be a response's.
            w.request_by(1, b"HEAD /b HTTP/1.1\r\n\r\n")
                .response(&[ok(3)]);
        },
        &[
            "GET /a 200 0+3 length",
            "GET /a 200 0+3 length",
            "HEAD /b 200 0+0 length",
        ],
    );
}

/// A head longer than a capture: its beginning is told, its body's end is not known, and the next
/// exchange is right.
#[test]
fn long_heads() {
    let long = format!(
        "GET /long HTTP/1.1\r\nHost: h\r\nCookie: {}\r\n\r\n",
        "c".repeat(6000)
    );
    both(
        |w| {
            w.request(&[&long]).response(&[&*ok(1), "x"]);
            w.request(&[GET]).response(&[ok(0)]);
            assert_eq!(w.counter("heads_cut"), 1);
            assert_eq!(w.out[0].request_bytes, long.len() as u64);
            assert_eq!(w.out[0].host.as_deref(), Some("h"));
        },
        &["GET /long 200 0+1 length", "GET /a 200 0+0 length"],
    );
    // In pieces, it is whole.
    both(
        |w| {
            w.request_by(1000, long.as_bytes()).response(&[ok(0)]);
            assert_eq!(w.counter("heads_cut"), 0);
        },
        &["GET /long 200 0+0 length"],
    );
    // A few bytes longer than a capture: they are seen, as the last of the operation.
    let edge = format!(
        "GET /edge HTTP/1.1\r\nCookie: {}\r\n\r\n",
        "c".repeat(4100 - 32)
    );
    both(
        |w| {
            w.request(&[&edge]).response(&[ok(0)]);
            assert_eq!((edge.len(), w.counter("heads_cut")), (4100, 0));
        },
        &["GET /edge 200 0+0 length"],
    );
    let response = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "c".repeat(6000));
    both(
        |w| {
            _ = w
                .request(&[GET])
                .response(&[&*response, "x"])
                .request(&[GET])
                .response(&[ok(0)])
        },
        &["GET /a 200 0+1 next_request", "GET /a 200 0+0 length"],
    );
}

/// A target longer than a capture is kept as far as it was seen.
#[test]
fn long_targets() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "t".repeat(9000));
    both(
        |w| {
            w.request(&[&long])
                .response(&[ok(0)])
                .request(&[GET])
                .response(&[ok(0)]);
            assert_eq!(w.out[0].target.len(), 4092);
            w.out.remove(0);
        },
        &["GET /a 200 0+0 length"],
    );
    both(
        |w| {
            w.request_by(3000, long.as_bytes()).response(&[ok(0)]);
            assert_eq!(w.out[0].target.len(), 4096);
            w.out.clear();
        },
        &[],
    );
}
