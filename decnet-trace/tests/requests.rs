//! Requests at full speed: every one becomes exactly one span, and each span is true.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::{collections::HashMap, time::Duration};

use support::{Agent, Seen, Span};
use xtask::bed::{
    collector::Collector,
    load::{Load, Request, Truth},
    service::{Http, Loop, Service},
};

const REQUESTS: usize = 20_000;
const CONNECTIONS: usize = 64;

/// A server span, in OTLP's numbering.
const SERVER: u64 = 2;

/// What a client's clock and a server's may differ by when a process is preempted between the last
/// byte's sending and the record of it, on a machine that is saturated on purpose.
const PREEMPTED: u64 = 20_000_000;

/// The same for one request in a thousand, where others want the CPUs too.
const STARVED: u64 = 1_000_000_000;

fn mix() -> Vec<Request> {
    vec![
        Request::get("/"),
        Request::get("/items/7"),
        Request::get("/items/8?verbose=yes"),
        Request::post("/echo", "x".repeat(300)),
        Request::get("/sized/5000"),
        Request::get("/stream/3/100"),
        Request::get("/sync"),
        Request::get("/nocontent"),
        Request::get("/nowhere"),
        Request::get("/notmodified"),
    ]
}

fn service(event_loop: Loop, http: Http, workers: u32) -> Service {
    Service::builder()
        .event_loop(event_loop)
        .http(http)
        .workers(workers)
        .start()
        .unwrap()
}

/// Puts the load on a service that an agent traces; the truth, and what the agent saw.
fn traced(service: &Service, args: &[&str]) -> (Vec<Truth>, Seen) {
    let pid = service.pid.to_string();
    let agent = Agent::start(&[&["--pid", &pid], args].concat());
    let truth = Load::new(service.target.clone(), mix())
        .connections(CONNECTIONS)
        .count(REQUESTS)
        .run()
        .unwrap();
    // The last responses' records lie in the rings for a moment.
    std::thread::sleep(Duration::from_millis(200));
    (truth, agent.stop())
}

/// Compares, connection by connection and in order, what the client knows with what the agent saw.
fn compare(truth: &[Truth], seen: &Seen) {
    assert_eq!(truth.len(), REQUESTS);
    assert!(truth.iter().all(|request| request.complete));
    let lost: Vec<_> = [
        "lost_ring_full",
        "lost_no_ring",
        "exchanges_lost",
        "connections_lost",
    ]
    .into_iter()
    .filter(|name| seen.counter(name) > 0)
    .collect();
    assert!(lost.is_empty(), "lost: {lost:?}\n{}", seen.output);
    let servers: Vec<_> = seen
        .spans
        .iter()
        .filter(|span| span.kind == SERVER)
        .collect();
    assert_eq!(servers.len(), REQUESTS, "{}", seen.output);

    let mut by_port: HashMap<u64, Vec<&Span>> = HashMap::new();
    for span in servers {
        let port = span.int("network.peer.port").unwrap();
        by_port.entry(port).or_default().push(span);
    }
    let mut connections: HashMap<u64, Vec<&Truth>> = HashMap::new();
    for request in truth {
        let port = u64::from(request.local_port);
        connections.entry(port).or_default().push(request);
    }
    let (mut longer, mut preempted) = (0, 0);
    for (port, mut requests) in connections {
        requests.sort_by_key(|request| request.sequence);
        let spans = &by_port[&port];
        assert_eq!(spans.len(), requests.len(), "connection from port {port}");
        for (request, span) in requests.into_iter().zip(spans) {
            let beyond = check(request, span);
            longer += usize::from(beyond > 0);
            preempted += usize::from(beyond > PREEMPTED);
        }
    }
    // A client stops its clock when it reads the last byte, the service when its write returns: on a
    // saturated machine the one may overtake the other.
    assert!(
        longer * 100 < REQUESTS,
        "{longer} spans are longer than their client's time"
    );
    assert!(
        preempted * 1_000 <= REQUESTS,
        "{preempted} spans are far longer than their client's time"
    );
}

/// Checks one span; by how many nanoseconds it is longer than the client's own time.
fn check(truth: &Truth, span: &Span) -> u64 {
    let (path, query) = truth
        .request
        .path
        .split_once('?')
        .unwrap_or((&truth.request.path, ""));
    assert_eq!(span.text("http.request.method"), truth.request.method);
    assert_eq!(span.text("url.path"), path);
    assert_eq!(span.text("url.query").is_empty(), query.is_empty());
    assert_eq!(
        span.int("http.response.status_code"),
        Some(u64::from(truth.status))
    );
    assert_eq!(span.int("http.request.size"), Some(truth.request_bytes));
    assert_eq!(span.int("http.response.size"), Some(truth.response_bytes));
    assert_eq!(
        span.int("http.request.body.size").unwrap_or(0),
        truth.request.body.len() as u64
    );
    if !path.starts_with("/stream") {
        // A chunked body is counted as it is on the wire.
        assert_eq!(
            span.int("http.response.body.size"),
            Some(truth.response_body_bytes),
            "{path}"
        );
    }
    let (took, clients) = (span.end - span.start, truth.end - truth.start);
    assert!(
        took <= clients + STARVED,
        "{path} took {took} ns, and the client's whole time is {clients} ns"
    );
    took.saturating_sub(clients)
}

/// uvloop and httptools, one worker; the collector gets every span, once.
#[test]
fn uvloop_httptools_into_a_real_collector() {
    if !support::can_run() {
        return;
    }
    let collector = Collector::start().unwrap();
    let service = service(Loop::Uvloop, Http::Httptools, 1);
    let endpoint = collector.grpc_endpoint();
    let (truth, seen) = traced(&service, &["--otlp-endpoint", &endpoint]);
    compare(&truth, &seen);
    let collected = collector
        .wait_for_spans(REQUESTS, Duration::from_secs(60))
        .unwrap();
    let mut ids: Vec<_> = collected.iter().map(|span| &span.span_id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((collected.len(), ids.len()), (REQUESTS, REQUESTS));
}

/// asyncio and h11, one worker.
#[test]
fn asyncio_h11() {
    if !support::can_run() {
        return;
    }
    let service = service(Loop::Asyncio, Http::H11, 1);
    let (truth, seen) = traced(&service, &[]);
    compare(&truth, &seen);
}

/// Four workers, which the supervisor named by its pid forked or spawned.
#[test]
fn four_workers() {
    if !support::can_run() {
        return;
    }
    for (event_loop, http) in [(Loop::Uvloop, Http::Httptools), (Loop::Asyncio, Http::H11)] {
        let service = service(event_loop, http, 4);
        let (truth, seen) = traced(&service, &[]);
        compare(&truth, &seen);
    }
}

/// The same through the hooks of older kernels.
#[test]
fn fallback_hooks() {
    if !support::can_run() {
        return;
    }
    for (event_loop, http) in [(Loop::Uvloop, Http::Httptools), (Loop::Asyncio, Http::H11)] {
        let service = service(event_loop, http, 1);
        let (truth, seen) = traced(&service, &["--force-fallback"]);
        assert!(seen.output.contains("system call exits"));
        compare(&truth, &seen);
    }
}
