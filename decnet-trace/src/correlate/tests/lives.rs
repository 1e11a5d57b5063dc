//! Connections and processes that end, properly or not.

use super::wire::{MS, TGID, Wire, both, ok};
use crate::correlate::{CONNECTS_MAX, exchange::Role};

const GET: &str = "GET /a HTTP/1.1\r\n\r\n";
const UNTIL_CLOSE: &str = "HTTP/1.0 200 OK\r\n\r\n";

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const CLOSE: u8 = 7;
const LAST_ACK: u8 = 9;

fn server() -> Wire {
    Wire::new(Role::Server)
}

fn client() -> Wire {
    Wire::new(Role::Client)
}

/// The client resets the connection in the middle of a response, or while one is awaited.
#[test]
fn reset_by_the_client() {
    for (send, errno) in [
        (true, libc::EPIPE),
        (true, libc::ECONNRESET),
        (false, libc::ECONNRESET),
    ] {
        let mut wire = server();
        wire.request(&[GET])
            .response(&[&*ok(9), "abc"])
            .error(send, errno)
            .state(CLOSE);
        wire.expect(&["GET /a 200 0+3 peer_gone"]);
        assert_eq!(wire.out[0].end, 1004 * MS);
        let mut wire = server();
        wire.request(&[GET])
            .error(send, errno)
            .expect(&["GET /a - 0+0 peer_gone"]);
        let mut wire = server();
        wire.request(&[GET])
            .response(&[UNTIL_CLOSE, "abc"])
            .error(send, errno);
        wire.expect(&["GET /a 200 0+3 peer_gone"]);
    }
}

/// A process that was not traced for a while is traced again: the request before that is not paired with the
/// response to a later one, nor is what is told late of the time before.
#[test]
fn a_gap() {
    let mut wire = server();
    wire.request(&[GET]);
    let again = wire.now + 10 * MS;
    wire.correlator.traced_anew(TGID, again);
    wire.request(&["GET /late HTTP/1.1\r\n\r\n"]);
    wire.now = again;
    wire.request(&["GET /b HTTP/1.1\r\n\r\n"])
        .response(&[ok(0)]);
    wire.expect(&["GET /b 200 0+0 length"]);
    assert_eq!(wire.counter("operations_before_a_gap"), 1);
    assert_eq!(wire.counter("exchanges_lost"), 1);
}

/// An error that says nothing about the connection ends nothing.
#[test]
fn harmless_errors() {
    both(
        |w| {
            _ = w
                .request(&[GET])
                .error(true, libc::EFAULT)
                .error(false, libc::ENOMEM)
                .response(&[ok(0)])
        },
        &["GET /a 200 0+0 length"],
    );
}

/// The client says that it will send no more, and still gets its whole response.
#[test]
fn half_closed_client() {
    let mut wire = server();
    wire.request(&[GET])
        .eof()
        .response(&[&*ok(4), "ab"])
        .eof()
        .response(&["cd"]);
    wire.expect(&["GET /a 200 0+4 length"]);
    assert_eq!(wire.correlator.connections(), 0);
    let mut wire = server();
    wire.request(&[GET])
        .eof()
        .response(&[UNTIL_CLOSE, "abcd"])
        .state(LAST_ACK);
    wire.expect(&["GET /a 200 0+4 close"]);
}

/// The client ends the stream in the middle of a response, and the server gives up.
#[test]
fn client_gone_in_a_response() {
    for head in [
        &*ok(9),
        UNTIL_CLOSE,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut wire = server();
        wire.request(&[GET])
            .response(&[head, "5\r\nab"])
            .eof()
            .expect(&[]);
        wire.wait(30 * MS)
            .state(LAST_ACK)
            .expect(&["GET /a 200 0+5 peer_gone"]);
        assert_eq!(wire.out[0].end, 1004 * MS);
    }
    let mut wire = server();
    wire.request(&[GET])
        .eof()
        .state(LAST_ACK)
        .expect(&["GET /a - 0+0 peer_gone"]);
}

/// The server closes before its response is whole, or without one.
#[test]
fn server_closes_early() {
    let mut wire = server();
    wire.request(&[GET])
        .response(&[&*ok(9), "abc"])
        .state(FIN_WAIT1);
    wire.expect(&["GET /a 200 0+3 aborted"]);
    let mut wire = server();
    wire.request(&[GET])
        .state(FIN_WAIT1)
        .expect(&["GET /a - 0+0 aborted"]);
    assert_eq!(wire.out[0].end, wire.now);
    let mut wire = client();
    wire.request(&[GET])
        .response(&[&*ok(9), "abc"])
        .eof()
        .state(LAST_ACK);
    wire.expect(&["GET /a 200 0+3 peer_gone"]);
}

/// A close by reset (unread data) may be the peer's doing as well: what is read next tells, and if
/// nothing is, it was the process's own.
#[test]
fn closed_at_once() {
    let mut wire = server();
    wire.request(&[GET])
        .response(&[&*ok(9), "abc"])
        .state(CLOSE)
        .expect(&[]);
    wire.wait(999 * MS)
        .expect(&[])
        .wait(MS)
        .expect(&["GET /a 200 0+3 aborted"]);
    assert_eq!(wire.out[0].end, 1004 * MS);
    let mut wire = server();
    wire.request(&[GET])
        .response(&[UNTIL_CLOSE, "abc"])
        .state(CLOSE)
        .wait(1000 * MS);
    wire.expect(&["GET /a 200 0+3 close"]);
    let mut wire = server();
    wire.request(&[GET])
        .response(&[UNTIL_CLOSE, "abc"])
        .state(CLOSE);
    wire.error(false, libc::ECONNRESET)
        .wait(1000 * MS)
        .expect(&["GET /a 200 0+3 peer_gone"]);
    let mut wire = server();
    wire.request(&[GET])
        .state(CLOSE)
        .finish()
        .expect(&["GET /a - 0+0 aborted"]);
}

/// A change of state while another process runs says nothing about the owner.
#[test]
fn states_in_foreign_processes() {
    let mut wire = server();
    wire.request(&[GET])
        .state_by(TGID + 7, CLOSE)
        .state_by(TGID + 7, FIN_WAIT1)
        .wait(2000 * MS);
    wire.expect(&[])
        .response(&[ok(0)])
        .expect(&["GET /a 200 0+0 length"]);
}

/// A client that closes its half after its request still reads the response; one that closes gives up.
#[test]
fn client_closes() {
    let mut wire = client();
    wire.request(&[GET])
        .state(FIN_WAIT1)
        .expect(&[])
        .response(&[ok(2) + "ab"]);
    wire.expect(&["GET /a 200 0+2 length"]);
    let mut wire = client();
    wire.request(&[GET])
        .response(&[&*ok(9), "abc"])
        .state(FIN_WAIT1)
        .wait(1000 * MS);
    wire.expect(&["GET /a 200 0+3 aborted"]);
    assert_eq!(wire.out[0].end, 1004 * MS);
}

/// The end of a process ends its exchanges, and no other's.
#[test]
fn process_exit() {
    let mut wire = server();
    wire.request(&[GET])
        .response(&[&*ok(9), "abc"])
        .exit(TGID + 1)
        .expect(&[]);
    wire.exit(TGID).expect(&["GET /a 200 0+3 process_exit"]);
    assert_eq!(
        (wire.out[0].end, wire.correlator.connections()),
        (wire.now, 0)
    );
    wire.exit(TGID).expect(&["GET /a 200 0+3 process_exit"]);
}

/// The agent stops: what is under way is handed out; a response that seems whole is whole.
#[test]
fn agent_stop() {
    both(
        |w| _ = w.request(&[GET]).response(&[&*ok(9), "abc"]).finish(),
        &["GET /a 200 0+3 agent_stop"],
    );
    both(
        |w| _ = w.request(&["GET /a HTTP/1.1\r\nHost"]).finish(),
        &[],
    );
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "\u{1}".repeat(20) + "\r\n0\r\n\r\n";
    both(
        |w| _ = w.request(&[GET]).response(&[head, &body]).finish(),
        &["GET /a 200 0+27 last_chunk"],
    );
}

/// A response cut off in its head: the status is told if it was seen.
#[test]
fn cut_off_in_the_response_head() {
    let mut wire = server();
    wire.request(&[GET])
        .response(&["HTTP/1.1 503 No\r\nConte"])
        .state(FIN_WAIT1);
    wire.expect(&["GET /a 503 0+0 aborted"]);
    assert_eq!(
        (wire.out[0].response_start, wire.out[0].response_bytes),
        (Some(1002 * MS), 22)
    );
    let mut wire = client();
    wire.request(&[GET])
        .response(&["HTTP/1.1 5"])
        .eof()
        .expect(&["GET /a - 0+0 peer_gone"]);
}

/// A request whose head never ended is no exchange, unless it was answered.
#[test]
fn unfinished_requests() {
    let mut wire = server();
    wire.request(&["GET /a HTTP/1.1\r\nHo"])
        .eof()
        .state(LAST_ACK)
        .expect(&[]);
    assert_eq!(wire.counter("heads_unfinished"), 1);
    let mut wire = server();
    wire.request(&["GET /slow HTTP/1.1\r\nHo"]);
    wire.response(&["HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n"])
        .state(FIN_WAIT1);
    wire.expect(&["GET /slow 408 0+0 length"]);
    let mut wire = server();
    wire.request(&["GET /slow HT"])
        .response(&["HTTP/1.1 408 Timeout\r\n\r\n"])
        .state(FIN_WAIT1);
    wire.expect(&[]);
    assert_eq!(wire.counter("unpaired_responses"), 1);
}

/// A unix-domain socket's close is not seen: after a second of quiet the caller is asked to look.
#[test]
fn quiet_closes() {
    let mut wire = server();
    wire.unix = true;
    wire.request(&[GET])
        .response(&[UNTIL_CLOSE, "abc"])
        .wait(1000 * MS);
    assert_eq!(wire.correlator.quiet_close_delimited().count(), 0);
    wire.wait(MS);
    let quiet: Vec<_> = wire.correlator.quiet_close_delimited().collect();
    assert_eq!(quiet, [(TGID, 9, 1)]);
    let now = wire.now;
    wire.correlator.closed(1, now, &mut wire.out);
    wire.expect(&["GET /a 200 0+3 close"]);
    assert_eq!(
        (wire.out[0].end, wire.correlator.connections()),
        (1003 * MS, 0)
    );
    // The peer is gone and the server says nothing more.
    let mut wire = server();
    wire.unix = true;
    wire.request(&[GET]).eof().wait(1001 * MS);
    assert_eq!(wire.correlator.quiet_close_delimited().count(), 1);
    // A response with a length needs no close.
    let mut wire = server();
    wire.unix = true;
    wire.request(&[GET])
        .response(&[&*ok(4), "abc"])
        .wait(1001 * MS);
    assert_eq!(wire.correlator.quiet_close_delimited().count(), 0);
}

/// An exchange without a byte for ten minutes is given up, with the time of its last byte; an idle
/// connection is forgotten without one; slow ones live on.
#[test]
fn idleness() {
    const MINUTE: u64 = 60_000 * MS;
    both(
        |w| {
            w.request(&[GET]).response(&[&*ok(9), "a"]);
            for _ in 0..4 {
                w.wait(9 * MINUTE).response(&["b"]);
            }
            let last = w.now;
            w.wait(11 * MINUTE);
            assert_eq!((w.out[0].end, w.correlator.connections()), (last, 0));
            w.request(&[GET]).response(&[ok(0)]).wait(9 * MINUTE);
            assert_eq!(w.correlator.connections(), 1);
            w.wait(2 * MINUTE);
            assert_eq!(w.correlator.connections(), 0);
        },
        &["GET /a 200 0+5 idle", "GET /a 200 0+0 length"],
    );
}

/// The first request on a connection that the process made tells how long that took, and since when the
/// connection is there; the next one does not.
#[test]
fn connects() {
    let mut wire = client();
    wire.state(SYN_SENT).wait(3).state(ESTABLISHED);
    wire.request(&[GET]).response(&[ok(0)]);
    wire.request(&[GET]).response(&[ok(0)]);
    let [first, second] = &wire.out[..] else {
        panic!("two exchanges");
    };
    assert_eq!(first.connect, Some(first.start - first.before - MS));
    assert!(first.before > 0 && first.before < first.start);
    assert_eq!(second.connect, None);
    assert_eq!(second.before, first.end);
    // One whose begin was not seen, and one that serves.
    for mut wire in [client(), server()] {
        wire.state(ESTABLISHED).request(&[GET]).response(&[ok(0)]);
        assert_eq!((wire.out[0].connect, wire.out[0].before), (None, 0));
    }
}

/// Connections that are made and say nothing do not pile up: they are counted and forgotten, and of one among them it is
/// not told how long it took.
#[test]
fn silent_connects() {
    let mut wire = client();
    for sock in 1..=CONNECTS_MAX as u64 + 1 {
        wire.sock = sock;
        wire.state(SYN_SENT).wait(3).state(ESTABLISHED);
    }
    assert_eq!(wire.counter("connects_forgotten"), CONNECTS_MAX as u64);
    wire.sock = 1;
    wire.request(&[GET]).response(&[ok(0)]);
    wire.sock = CONNECTS_MAX as u64 + 1;
    wire.request(&[GET]).response(&[ok(0)]);
    assert_eq!(wire.out[0].connect, None);
    assert!(wire.out[1].connect.is_some());
}
