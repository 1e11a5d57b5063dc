//! The HTTP clients that services use, and what is told of their calls: whom they asked, how long connecting
//! took and the first byte, also where a proxy stands between.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use xtask::bed::{
    load::{Load, Request},
    process::{Folder, Process},
    service::{Loop, Service},
    venv::{CLIENTS, Venv, default_python, python},
};

use super::support::{Agent, Seen, Span, can_run, side_by_side};

const CLIENT: u64 = 3;

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const WAYS: [&str; 4] = ["httpx", "aiohttp", "requests", "urllib3"];

/// Requests of each way, and the calls of each request.
const REQUESTS: usize = 50;
const CALLS: usize = 4;

fn venv(python: &Path) -> Venv {
    let packages = [
        &["fastapi", "httptools", "httpx", "uvicorn", "uvloop"],
        CLIENTS,
    ]
    .concat();
    Venv::ensure(python, &packages).unwrap()
}

/// A service with every client, and what it calls.
fn callers(venv: &Venv, event_loop: Loop, backend: &Service, proxy: Option<u16>) -> Service {
    let app = xtask::paths::workspace().join("xtask/assets/clients.py");
    let mut builder = Service::builder()
        .app(app)
        .venv(venv)
        .event_loop(event_loop)
        .env("BACKEND", format!("http://{}", backend.addr()));
    if let Some(port) = proxy {
        builder = builder.env("PROXY", format!("http://127.0.0.1:{port}"));
    }
    builder.start().unwrap()
}

fn backend() -> Service {
    let app = xtask::paths::workspace().join("xtask/assets/hops.py");
    Service::builder().app(app).start().unwrap()
}

/// Requests of every way, 32 at a time, of which every call is to be known.
fn traced(callers: &Service, others: &[&Service], more: &[String]) -> Seen {
    let pids: Vec<String> = [callers]
        .iter()
        .chain(others)
        .flat_map(|service| ["--pid".to_owned(), service.pid.to_string()])
        .collect();
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    let agent = Agent::start(&pids);
    let load = |paths: &[String]| {
        let requests = paths.iter().map(Request::get);
        let load = Load::new(callers.target.clone(), requests).connections(32);
        let truth = load.run().unwrap();
        assert!(truth.iter().all(|one| one.complete && one.status == 200));
    };
    let since = Instant::now();
    while !agent
        .output()
        .contains(&format!("following the contexts of pid {}", callers.pid))
    {
        assert!(since.elapsed() < PATIENCE, "{}", agent.output());
        load(&["/httpx/warm".to_owned()]);
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_millis(150));
    let paths: Vec<_> = (0..REQUESTS)
        .flat_map(|n| WAYS.map(|way| format!("/{way}/{way}{n}")))
        .collect();
    load(&paths);
    load(more);
    thread::sleep(Duration::from_millis(500));
    agent.stop()
}

/// The id in a span's path.
fn id(span: &Span) -> &str {
    let path = match span.kind {
        CLIENT => span.text("url.full"),
        _ => span.text("url.path"),
    };
    let path = path.split('?').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

/// The calls of a service that are no warming up, each under its own request; of what was called before,
/// the contexts are not all known.
fn calls<'a>(seen: &'a Seen, callers: &Service) -> Vec<&'a Span> {
    let ids: HashMap<&str, &Span> = seen.spans.iter().map(|s| (s.id.as_str(), s)).collect();
    let is_call = |span: &&Span| {
        span.kind == CLIENT
            && span.pid == u64::from(callers.pid)
            && span.text("http.request.method") == "GET"
            && !id(span).starts_with("warm")
    };
    let calls: Vec<_> = seen.spans.iter().filter(is_call).collect();
    let mut by_way: HashMap<&str, usize> = HashMap::new();
    for call in &calls {
        let cause = id(call).rsplit_once('.').unwrap().0;
        let parent = ids.get(call.parent.as_str()).map(|parent| id(parent));
        assert_eq!(parent, Some(cause), "{}\n{}", id(call), seen.output);
        let way = WAYS.into_iter().find(|way| cause.starts_with(way));
        *by_way.entry(way.unwrap()).or_default() += 1;
    }
    assert_eq!(by_way, WAYS.map(|way| (way, REQUESTS * CALLS)).into());
    calls
}

/// What every call tells, wherever it goes.
fn check(call: &Span, origin: &Service, peer: u16) {
    let origin = origin.addr();
    assert_eq!(call.text("server.address"), origin.ip().to_string());
    assert_eq!(call.int("server.port"), Some(u64::from(origin.port())));
    let url = format!("http://{origin}/hop/{}?", id(call));
    let shown = call.text("url.full");
    assert!(
        shown.starts_with(&url) && shown.ends_with("?page=REDACTED&token=REDACTED"),
        "{shown}"
    );
    assert!(!shown.contains("s3cr3t"), "{shown}");
    assert_eq!(call.int("http.response.status_code"), Some(200));
    assert_eq!(call.text("network.peer.address"), "127.0.0.1");
    assert_eq!(call.int("network.peer.port"), Some(u64::from(peer)));
    let first = call.float("decnet.ttfb.duration").unwrap();
    let whole = (call.end - call.start) as f64 / 1e9;
    assert!((0.0..=whole + 1e-6).contains(&first), "{first} of {whole}");
}

/// Of each connection the first call has the time that connecting took, and no other.
fn check_connects(seen: &Seen, callers: &Service) {
    let mut connections: HashSet<u64> = HashSet::new();
    let (mut made, mut used) = (0, 0);
    for call in &seen.spans {
        if call.kind != CLIENT || call.pid != u64::from(callers.pid) {
            continue;
        }
        let is_first = connections.insert(call.int("network.local.port").unwrap());
        match call.float("decnet.connect.duration") {
            Some(took) => {
                assert!(is_first && (0.0..1.0).contains(&took), "{call:?}");
                made += 1;
            }
            // Before the agent was there.
            None if is_first => assert!(id(call).starts_with("warm"), "{call:?}"),
            None => used += 1,
        }
    }
    println!("{made} connections, used again {used} times");
    assert!(made >= WAYS.len() && used > made);
}

/// Each client, on pools of connections that many requests use in turn: every call is under its request,
/// what it asked of a traced service is under it, and it tells whom it asked, and the times; on either loop, on
/// the system's CPython and on a newer one.
#[test]
fn clients() {
    if !can_run() {
        return;
    }
    let newer = python("3.13").or_else(|| python("3.12"));
    if newer.is_none() {
        println!("SKIPPED: clients on CPython 3.12 and later, of which there is none");
    }
    let mut cases = vec![(default_python().unwrap(), Loop::Uvloop)];
    cases.extend(newer.map(|python| (python, Loop::Asyncio)));
    side_by_side(&cases, |(python, event_loop)| {
        let venv = venv(python);
        let backend = backend();
        let callers = callers(&venv, *event_loop, &backend, None);
        println!("{}, {event_loop}", python.display());
        let seen = traced(&callers, &[&backend], &[]);
        let calls = calls(&seen, &callers);
        let ids: HashMap<&str, &Span> =
            calls.iter().map(|call| (call.id.as_str(), *call)).collect();
        for call in &calls {
            check(call, &backend, backend.addr().port());
        }
        check_connects(&seen, &callers);
        let joined = seen.spans.iter().filter(|span| {
            let parent = ids.get(span.parent.as_str());
            parent.is_some_and(|parent| {
                assert_eq!(id(parent), id(span), "{}", seen.output);
                span.pid == u64::from(backend.pid)
            })
        });
        assert_eq!(joined.count(), calls.len());
    });
}

/// Through a proxy: a call names its origin, and its peer is the proxy; of a tunnel, its making is told, and
/// nothing of what is in it.
#[test]
fn through_a_proxy() {
    if !can_run() {
        return;
    }
    let venv = venv(&default_python().unwrap());
    let folder = Folder::new().unwrap();
    let file = folder.path().join("port");
    let mut command = Command::new(venv.program("proxy"));
    command
        .args(["--hostname", "127.0.0.1", "--port", "0", "--port-file"])
        .arg(&file)
        .args(["--num-workers", "1", "--num-acceptors", "1"]);
    let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
    let port: u16 = process
        .wait_for(PATIENCE, |_| {
            fs::read_to_string(&file).ok()?.trim().parse().ok()
        })
        .unwrap();
    let backend = backend();
    let callers = callers(&venv, Loop::Uvloop, &backend, Some(port));
    let tunnels: Vec<_> = (0..5).map(|n| format!("/tunnel/tunnel{n}")).collect();
    let seen = traced(&callers, &[&backend], &tunnels);
    for call in calls(&seen, &callers) {
        check(call, &backend, port);
    }
    check_connects(&seen, &callers);
    let connects: Vec<_> = seen
        .spans
        .iter()
        .filter(|span| span.text("http.request.method") == "CONNECT")
        .collect();
    assert_eq!(connects.len(), tunnels.len());
    for connect in connects {
        assert_eq!(connect.text("server.address"), "127.0.0.1");
        let origin = u64::from(backend.addr().port());
        assert_eq!(connect.int("server.port"), Some(origin));
        assert_eq!(connect.int("network.peer.port"), Some(u64::from(port)));
        let parent = seen.spans.iter().find(|span| span.id == connect.parent);
        assert!(id(parent.unwrap()).starts_with("tunnel"));
    }
    // What reaches the backend comes from the proxy, which is not traced.
    for span in seen
        .spans
        .iter()
        .filter(|span| span.pid == u64::from(backend.pid))
    {
        assert_eq!((&*span.parent, span.text("decnet.link")), ("", "none"));
    }
}
