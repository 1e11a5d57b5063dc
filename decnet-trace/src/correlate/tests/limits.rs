//! Memory stays bounded, whatever comes.

use super::wire::{Wire, both, ok};
use crate::correlate::{Limits, connection::Connection, exchange::Role};

const GET: &str = "GET /a HTTP/1.1\r\n\r\n";

/// An idle connection is remembered in so little that fifty thousand fit in a few MiB.
#[test]
fn idle_connections_are_small() {
    assert!(size_of::<Connection>() <= 56, "{}", size_of::<Connection>());
}

/// Beyond the limit the connections that were not used for longest are forgotten, idle ones first.
#[test]
fn eviction() {
    let limits = Limits {
        connections: 160,
        ..Limits::default()
    };
    let mut wire = Wire::with_limits(Role::Server, limits);
    wire.sock = 1;
    wire.request(&[GET]);
    for sock in 2..=160 {
        wire.sock = sock;
        wire.request(&[GET]).response(&[ok(0)]);
    }
    wire.out.clear();
    assert_eq!(
        (
            wire.correlator.connections(),
            wire.counter("connections_evicted")
        ),
        (160, 0)
    );
    wire.sock = 161;
    wire.request(&[GET]).response(&[ok(0)]);
    assert_eq!(
        (
            wire.correlator.connections(),
            wire.counter("connections_evicted")
        ),
        (150, 11)
    );
    wire.sock = 1;
    wire.response(&[ok(0)])
        .expect(&["GET /a 200 0+0 length"; 2]);
}

/// An exchange on a connection that must be forgotten is given up, not lost.
#[test]
fn eviction_of_open_exchanges() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let mut wire = Wire::with_limits(Role::Server, limits);
    wire.request(&[GET]);
    wire.sock = 2;
    wire.request(&[GET]).expect(&["GET /a - 0+0 idle"]);
    assert_eq!(wire.correlator.connections(), 1);
}

/// A client that pipelines without end loses its connection.
#[test]
fn endless_pipelines() {
    both(
        |w| {
            w.request(&[GET; 128]);
            assert_eq!(w.counter("connections_lost"), 0);
            w.request(&[GET]).response(&[ok(0)]);
            assert_eq!(
                (w.counter("connections_lost"), w.counter("exchanges_lost")),
                (1, 128)
            );
            assert_eq!(w.correlator.memory(), (0, 0));
        },
        &[],
    );
}

/// A head without end is kept up to its limit and then taken for what it shows.
#[test]
fn endless_heads() {
    both(
        |w| {
            w.request(&["GET /a HTTP/1.1\r\n"]);
            for _ in 0..100 {
                w.request(&["X-Header: ".to_owned() + &"x".repeat(1000) + "\r\n"]);
                assert!(w.correlator.memory().0 <= 200_000);
            }
            assert_eq!(w.counter("heads_cut"), 1);
            w.response(&["HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n"]);
            w.out[0].request_body = 0;
        },
        &["GET /a 431 0+0 length"],
    );
}

/// Many heads in pieces, and many exchanges under way, hold no more together than allowed.
#[test]
fn memory_in_total() {
    let limits = Limits {
        heads_memory: 100_000,
        open_memory: 100_000,
        ..Limits::default()
    };
    let mut wire = Wire::with_limits(Role::Server, limits);
    for sock in 0..1000 {
        wire.sock = sock;
        wire.request(&["GET /a HTTP/1.1\r\nX: ".to_owned() + &"x".repeat(1000)]);
        assert!(wire.correlator.memory().0 <= 100_000);
    }
    assert!(wire.counter("over_memory") > 800);
    let over = wire.counter("over_memory");
    for sock in 1000..2000 {
        wire.sock = sock;
        wire.request(&[GET]);
        assert!(wire.correlator.memory().1 <= 100_000);
    }
    assert!(wire.counter("over_memory") > over + 500);
    wire.finish();
    assert!(wire.out.len() > 100);
}
