//! Every shape that HTTP/1 takes on a wire, against real servers: each exchange becomes exactly one
//! span, which says what its client knows.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod odd;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;
mod usual;

use std::{
    collections::HashMap,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client::{Book, Client, Truth, pause};
use rustix::process::Signal;
use support::{Agent, Seen, Span};
use xtask::bed::{
    load::Target,
    process::{Folder, Process},
    service::{Builder, Http, Loop, Service},
    venv::Venv,
};

/// A server span, in OTLP's numbering.
const SERVER: u64 = 2;

/// What two clocks' readings may differ by when a process is preempted between an operation and the
/// look at the clock, on a busy machine.
const PREEMPTED: u64 = 30_000_000;

/// More than the wall clock drifts from one look at it to the next, in nanoseconds; less than between
/// two requests that were not sent together.
const DRIFT: u64 = 10_000;

/// A server to be tortured.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) target: Target,
    process: Keep,
}

/// What ends a server when it is dropped.
enum Keep {
    Service(Service),
    Raw(
        Process,
        #[expect(dead_code, reason = "held for its drop")] Folder,
    ),
}

impl Server {
    fn uvicorn(name: &str, builder: Builder) -> Self {
        let service = builder.start().unwrap();
        Self {
            name: name.into(),
            pid: service.pid,
            target: service.target.clone(),
            process: Keep::Service(service),
        }
    }

    /// The server in `raw.py`.
    fn raw() -> Self {
        let folder = Folder::new().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/raw.py");
        let mut command = Command::new(Venv::web().unwrap().program("python"));
        let mut process = Process::start(command.arg(script), &folder.path().join("log")).unwrap();
        let port: u16 = process
            .wait_for(Duration::from_secs(60), |log| {
                log.strip_prefix("port ")?.trim_end().parse().ok()
            })
            .unwrap();
        Self {
            name: "raw".into(),
            pid: process.pid(),
            target: Target::Tcp(([127, 0, 0, 1], port).into()),
            process: Keep::Raw(process, folder),
        }
    }

    fn signal(&self, signal: Signal) {
        match &self.process {
            Keep::Service(service) => service.signal(signal),
            Keep::Raw(process, _) => process.signal(signal),
        }
    }
}

/// Holds every span against the truth, and finds neither too few nor too many.
fn compare(truth: Vec<Truth>, seen: &Seen) {
    let mut spans: HashMap<_, Vec<&Span>> = HashMap::new();
    for span in &seen.spans {
        let port = span.int("network.peer.port");
        spans.entry((span.pid, port)).or_default().push(span);
    }
    let mut connections: HashMap<_, Vec<Truth>> = HashMap::new();
    for one in truth {
        let key = (u64::from(one.pid), one.port.map(u64::from));
        connections.entry(key).or_default().push(one);
    }
    let mut wrong = Vec::new();
    for (key, truths) in connections {
        let mut spans = spans.remove(&key).unwrap_or_default();
        if key.1.is_some() {
            spans.sort_by_key(|span| span.place);
        } else {
            // Many connections: only one is used at a time, and pipelining's equal times are in order.
            spans.sort_by_key(|span| span.start);
            for together in spans.chunk_by_mut(|one, next| next.start - one.start < DRIFT) {
                together.sort_by_key(|span| span.place);
            }
        }
        if spans.len() != truths.len() {
            wrong.push(format!(
                "{}: {} spans instead of {}: {:?}",
                truths[0].case,
                spans.len(),
                truths.len(),
                spans.iter().map(|span| &span.name).collect::<Vec<_>>()
            ));
            continue;
        }
        for (truth, span) in truths.iter().zip(spans) {
            let errors = check(truth, span);
            if !errors.is_empty() {
                let (case, path) = (&truth.case, &truth.path);
                wrong.push(format!("{case}, {path}: {}", errors.join("; ")));
            }
        }
    }
    for ((pid, port), spans) in spans {
        let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
        wrong.push(format!("nothing makes pid {pid}, port {port:?}: {names:?}"));
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), seen.output);
    for counter in ["lost_ring_full", "lost_no_ring", "records_lost_undecoded"] {
        assert_eq!(seen.counter(counter), 0, "{counter}\n{}", seen.output);
    }
}

/// What a span says wrongly.
fn check(truth: &Truth, span: &Span) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut equal = |what: &str, have: String, want: String| {
        if have != want {
            wrong.push(format!("{what} is {have}, not {want}"));
        }
    };
    let path = truth.path.split('?').next().unwrap();
    equal("kind", span.kind.to_string(), SERVER.to_string());
    equal(
        "method",
        span.text("http.request.method").into(),
        truth.method.clone(),
    );
    equal("path", span.text("url.path").into(), path.into());
    let status = span.int("http.response.status_code");
    equal(
        "status",
        format!("{status:?}"),
        format!("{:?}", truth.status.map(u64::from)),
    );
    equal("end", span.text("decnet.end").into(), truth.end.into());
    for (name, want) in [
        ("http.request.size", truth.sent),
        ("http.response.size", truth.received),
        ("http.response.body.size", truth.body),
    ] {
        if want.is_some() {
            equal(name, format!("{:?}", span.int(name)), format!("{want:?}"));
        }
    }
    let (began, ended) = truth.took;
    if span.start + PREEMPTED < began || span.end > ended + PREEMPTED || span.end < span.start {
        let (start, end) = (span.start.wrapping_sub(began), span.end.wrapping_sub(began));
        let whole = ended - began;
        wrong.push(format!(
            "it lasts from {start} to {end} ns of the client's {whole}"
        ));
    }
    let queue = span.float("decnet.queue.duration");
    match (truth.queue, queue) {
        (None, Some(_)) if truth.port.is_some() => {}
        (None, None) => {}
        (Some((low, high)), Some(seconds)) if within(seconds, low, high) => {}
        (bounds, queue) => wrong.push(format!("it waited {queue:?} s, not {bounds:?} ns")),
    }
    wrong
}

fn within(seconds: f64, low: u64, high: u64) -> bool {
    let nanos = (seconds * 1e9) as u64;
    (low.saturating_sub(PREEMPTED)..=high + PREEMPTED).contains(&nanos)
}

/// One torture at a time: each needs the machine.
static ALONE: Mutex<()> = Mutex::new(());

/// Everything, through one agent.
fn torture(args: &[&str], fallback: bool) {
    if !support::can_run() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Its own timeout is 5 s.
    let builder = || Service::builder().arg("--timeout-keep-alive=600");
    let asyncio = || builder().event_loop(Loop::Asyncio).http(Http::H11);
    let tcp = [
        Server::uvicorn("uvloop", builder()),
        Server::uvicorn("asyncio", asyncio()),
    ];
    let others = [
        Server::uvicorn("IPv6", builder().host("::1")),
        Server::uvicorn("unix, uvloop", builder().uds()),
        Server::uvicorn("unix, asyncio", asyncio().uds()),
    ];
    let (raw, victim, cut_short) = (Server::raw(), Server::raw(), Server::raw());

    let book = Book::default();
    let early: Vec<_> = tcp
        .iter()
        .chain(&others)
        .map(|server| usual::before_the_agent(&book, server))
        .collect();
    let held = odd::held_before_the_agent(&book, &raw);
    let all = tcp.iter().chain(&others).chain([&raw, &victim, &cut_short]);
    let pids: Vec<_> = all.map(|server| format!("--pid={}", server.pid)).collect();
    let mut command: Vec<_> = pids.iter().map(String::as_str).collect();
    command.extend(args);
    let agent = Agent::start(&command);

    early.into_iter().for_each(usual::after_the_agent);
    odd::release(&book, &raw, held);
    let idle: Vec<_> = tcp
        .iter()
        .chain(&others)
        .map(|server| usual::before_idleness(&book, server))
        .collect();
    let since = std::time::Instant::now();
    for server in &tcp {
        usual::on_any(&book, server);
        usual::on_tcp(&book, server);
    }
    for server in &others {
        usual::on_any(&book, server);
    }
    odd::all(&book, &raw, fallback);
    std::thread::sleep(Duration::from_secs(3).saturating_sub(since.elapsed()));
    idle.into_iter().for_each(usual::after_idleness);

    // Killed in the middle of a request, and in the middle of a response.
    let mut client = Client::connect(&book, "killed", &victim);
    client.request("GET", "/never");
    pause();
    victim.signal(Signal::KILL);
    assert!(client.is_closed());
    client.fails("process_exit", None);
    drop(client);
    let mut client = Client::connect(&book, "killed in between", &cut_short);
    client.request("GET", "/partial");
    assert_eq!(client.part(100), 200);
    cut_short.signal(Signal::KILL);
    assert!(client.is_closed());
    client.fails("process_exit", Some(200));
    drop(client);

    // Closes of unix sockets are looked for once a second.
    std::thread::sleep(Duration::from_millis(2500));
    let seen = agent.stop();
    assert_eq!(seen.output.contains("system call exits"), fallback);
    compare(book.into_inner(), &seen);
    assert_eq!(
        seen.counter("tls_connections"),
        usual::TLS * tcp.len() as u64
    );
}

/// Through the socket tracepoints.
#[test]
fn socket_tracepoints() {
    torture(&[], false);
}

/// Through the hooks of older kernels.
#[test]
fn fallback_hooks() {
    torture(&["--force-fallback"], true);
}
