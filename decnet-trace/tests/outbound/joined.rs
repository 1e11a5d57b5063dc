//! Services that call each other: whatever one serves for another stands under the call that the other made,
//! and under no other.

use std::{
    collections::HashMap,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::bed::{
    load::{Load, Request, Target},
    process::Folder,
    service::{Builder, Http, Loop, Service},
};

use super::{
    networks::Cable,
    support::{Agent, Seen, Span, can_run},
};

/// Spans of servers and of clients, in OTLP's numbering.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

const CONNECTIONS: usize = 64;

/// How long an agent may take to follow what it should, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A service that calls this one, if there is one.
fn hop(next: Option<&Service>) -> Builder {
    let app = xtask::paths::workspace().join("xtask/assets/hops.py");
    let builder = Service::builder().app(app);
    match next.map(|next| &next.target) {
        None => builder,
        Some(Target::Tcp(at)) => builder.env("NEXT", format!("http://{at}")),
        Some(Target::Uds(path)) => builder.env("NEXT", "http://next").env("NEXT_SOCKET", path),
    }
}

/// An agent that traces these services.
fn agent(services: &[&Service], args: &[&str]) -> Agent {
    let pids: Vec<String> = services.iter().map(|one| one.pid.to_string()).collect();
    let pids = pids.iter().flat_map(|pid| ["--pid", pid]);
    Agent::start(&[&pids.collect::<Vec<_>>(), args].concat())
}

/// Calls are put under requests from the first on that was seen.
fn warm_up(agent: &Agent, callers: &[&Service]) {
    let since = Instant::now();
    loop {
        let output = agent.output();
        let is_followed =
            |one: &&Service| output.contains(&format!("following the contexts of pid {}", one.pid));
        if callers.iter().all(is_followed) {
            // What was said is done.
            thread::sleep(Duration::from_millis(150));
            return;
        }
        assert!(since.elapsed() < PATIENCE, "not followed\n{output}");
        load(callers[0], &["/hop/warm".to_owned()]);
        thread::sleep(Duration::from_millis(100));
    }
}

fn load(service: &Service, paths: &[String]) {
    let requests = paths.iter().map(Request::get);
    let truth = Load::new(service.target.clone(), requests)
        .connections(CONNECTIONS)
        .run()
        .unwrap();
    assert!(truth.iter().all(|request| request.complete));
}

fn paths(way: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("/{way}/{way}{n}")).collect()
}

/// How many requests and calls stand where they should, nowhere, and where they should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Verdicts {
    right: usize,
    none: usize,
    wrong: usize,
}

/// The path of a span.
fn path(span: &Span) -> &str {
    match span.kind {
        CLIENT => {
            let (_, rest) = span.text("url.full").split_once("://").unwrap();
            &rest[rest.find('/').unwrap()..]
        }
        _ => span.text("url.path"),
    }
}

/// The id in a span's path.
fn id(span: &Span) -> &str {
    path(span).rsplit_once('/').unwrap().1
}

/// Compares the path of everything that `first` caused with that of its parent: requests served for a call
/// have the call's own, calls have their request's with a number behind it.
fn judge(seen: &Seen, first: &Service) -> (Verdicts, Verdicts) {
    let spans: HashMap<&str, &Span> = seen
        .spans
        .iter()
        .map(|span| (span.id.as_str(), span))
        .collect();
    let (mut requests, mut calls) = (Verdicts::default(), Verdicts::default());
    let judged = seen
        .spans
        .iter()
        .filter(|span| !path(span).contains("warm"));
    for span in judged {
        if span.kind == SERVER && span.pid == u64::from(first.pid) {
            assert_eq!(span.parent, "");
            continue;
        }
        let verdicts = if span.kind == SERVER {
            &mut requests
        } else {
            &mut calls
        };
        let parent = spans.get(span.parent.as_str());
        let link = span.text("decnet.link");
        if span.parent.is_empty() {
            assert_eq!(link, "none");
            verdicts.none += 1;
            continue;
        }
        let is_right = parent.is_some_and(|parent| match span.kind {
            SERVER => parent.kind == CLIENT && path(parent) == path(span) && parent.pid != span.pid,
            _ => {
                let cause = id(span).rsplit_once('.').unwrap().0;
                parent.kind == SERVER && id(parent) == cause && parent.pid == span.pid
            }
        });
        assert_eq!(link, "exact");
        let is_one_trace = parent.is_some_and(|parent| parent.trace == span.trace);
        match is_right && is_one_trace {
            true => verdicts.right += 1,
            false => verdicts.wrong += 1,
        }
    }
    println!("requests {requests:?}, calls {calls:?}");
    assert_eq!((requests.wrong, calls.wrong), (0, 0), "{}", seen.output);
    (requests, calls)
}

/// All are right.
fn all_right(seen: &Seen, first: &Service, count: usize) {
    let (requests, calls) = judge(seen, first);
    let right = Verdicts {
        right: count,
        ..Verdicts::default()
    };
    assert_eq!((requests, calls), (right, right), "{}", seen.output);
}

/// An agent that starts while connections are in use joins what it has seen from the beginning.
#[test]
fn from_the_middle() {
    if !can_run() {
        return;
    }
    let b = hop(None).start().unwrap();
    let a = hop(Some(&b)).start().unwrap();
    let target = a.target.clone();
    let traffic = thread::spawn(move || {
        let requests = paths("hop", 600).into_iter().map(Request::get);
        Load::new(target, requests)
            .connections(CONNECTIONS)
            .run()
            .unwrap()
    });
    thread::sleep(Duration::from_millis(300));
    let agent = agent(&[&a, &b], &[]);
    traffic.join().unwrap();
    // The same connections again.
    load(&a, &paths("hop", 100));
    thread::sleep(Duration::from_millis(700));
    let seen = agent.stop();
    let (requests, _) = judge(&seen, &a);
    assert!(requests.right >= 300, "{requests:?}");
    // What was under way at that moment, at most: three calls of each.
    assert!(requests.none <= 3 * CONNECTIONS, "{requests:?}");
}

/// Three services over loopback, pools of connections between them: each of 3 + 9 requests is under its
/// own call. A caller that gives up before its answer is there is still the caller. The trees that are
/// stored have all services in them.
#[test]
fn three_hops() {
    if !can_run() {
        return;
    }
    let c = hop(None).start().unwrap();
    let b = hop(Some(&c)).event_loop(Loop::Asyncio).start().unwrap();
    let a = hop(Some(&b)).http(Http::H11).start().unwrap();
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    let agent = agent(&[&a, &b, &c], &["--store", store.to_str().unwrap()]);
    warm_up(&agent, &[&a, &b]);
    load(&a, &paths("hop", 100));
    load(&a, &paths("impatient", 20));
    // The last one's answers that nobody waits for.
    thread::sleep(Duration::from_millis(500));
    load(&a, &paths("slow", 10));
    thread::sleep(Duration::from_millis(500));
    let mut seen = agent.stop();
    for name in ["ambiguous", "late", "overflowed"] {
        assert_eq!(seen.counter(&format!("requests_joins_{name}")), 0);
    }
    let (impatient, others): (Vec<_>, Vec<_>) = seen
        .spans
        .drain(..)
        .partition(|span| id(span).contains("impatient"));
    seen.spans = others;
    all_right(&seen, &a, 1_200 + 20);
    seen.spans = impatient;
    let (requests, calls) = judge(&seen, &a);
    // What the second one calls for a request that is never answered has no parent.
    assert_eq!((requests.right, calls.right + calls.none), (40, 40));
    assert!(calls.right >= 20);
    check_trees(&store, [&a, &b, &c].map(|service| u64::from(service.pid)));

    // Of a trace that goes through several processes, all is kept or nothing is.
    let sampler = ["--sampler", "traceidratio", "--sampler-arg", "0.3"];
    let agent = self::agent(&[&a, &b, &c], &sampler);
    warm_up(&agent, &[&a, &b]);
    load(&a, &paths("hop", 60));
    thread::sleep(Duration::from_millis(500));
    let seen = agent.stop();
    let mut traces: HashMap<&str, usize> = HashMap::new();
    for span in seen.spans.iter().filter(|span| id(span).starts_with("hop")) {
        *traces.entry(&span.trace).or_default() += 1;
    }
    // 1 + 3 + 9 requests, 3 + 9 calls.
    assert!(traces.values().all(|spans| *spans == 25), "{traces:?}");
    assert!((1..60).contains(&traces.len()), "{traces:?}");
}

/// A trace that goes through several services is kept as a whole or not at all: every one with an error in a call
/// that nobody further up minds, every one that is slow, at its end or its beginning, and a share of the others.
#[test]
fn kept_as_a_whole() {
    if !can_run() {
        return;
    }
    let c = hop(None).start().unwrap();
    let b = hop(Some(&c)).start().unwrap();
    let a = hop(Some(&b)).start().unwrap();
    // A busy machine takes some tens of milliseconds for what is quick.
    let rules = ["--sample", "0.3", "--keep-slow", "250"];
    let agent = agent(&[&a, &b, &c], &rules);
    warm_up(&agent, &[&a, &b]);
    let ways = [
        ("fail", 20, 5),
        ("slow", 20, 5),
        ("late", 20, 5),
        ("hop", 60, 25),
    ];
    for (way, count, _) in ways {
        let requests = paths(way, count).into_iter().map(Request::get);
        let load = Load::new(a.target.clone(), requests).connections(4);
        assert!(load.run().unwrap().iter().all(|request| request.complete));
    }
    thread::sleep(Duration::from_millis(500));
    let seen = agent.stop();
    judge(&seen, &a);
    for (way, count, spans) in ways {
        // By the id of the request that all of it began with.
        let mut traces: HashMap<&str, Vec<&Span>> = HashMap::new();
        for span in seen.spans.iter().filter(|span| id(span).starts_with(way)) {
            let first = id(span).split('.').next().unwrap();
            traces.entry(first).or_default().push(span);
        }
        for trace in traces.values() {
            assert_eq!(trace.len(), spans, "{trace:?}");
            assert!(
                trace.iter().all(|span| span.trace == trace[0].trace),
                "{trace:?}"
            );
        }
        match way {
            "hop" => assert!((1..count).contains(&traces.len()), "{}", traces.len()),
            _ => assert_eq!(traces.len(), count, "{way}\n{}", seen.output),
        }
        let reason = |span: &Span| span.text("decnet.sampling.reason").to_owned();
        let is_slow = |span: &&Span| span.kind == SERVER && span.end - span.start > 250_000_000;
        let mut reasons = Vec::new();
        for trace in traces.values() {
            let because = reason(trace[0]);
            let is_true = match &*because {
                "error" => way == "fail",
                "slow" => trace.iter().any(is_slow),
                // It may have been kept before anybody knew what else it is.
                because => because == "rate",
            };
            assert!(is_true, "{way}: {trace:?}");
            let mut all = trace.iter().map(|span| reason(span));
            assert!(all.all(|one| one == because), "{trace:?}");
            reasons.push(because);
        }
        let because = match way {
            "fail" => "error",
            "hop" => "rate",
            _ => "slow",
        };
        assert!(
            reasons.iter().any(|one| one == because),
            "{way}: {reasons:?}"
        );
    }
}

/// In the last traces of a store that begin with `/slow` each of three services serves and, but for the last,
/// calls.
fn check_trees(store: &Path, [a, b, c]: [u64; 3]) {
    let output = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .args(["requests", "--last", "40", "--json", "--store"])
        .arg(store)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let traces = text
        .lines()
        .map(|line| (line, serde_json::from_str(line).unwrap()));
    let slow: Vec<(&str, Value)> = traces
        .filter(|(_, trace): &(&str, Value)| {
            let path = trace["spans"][0]["attributes"]["url.path"].as_str();
            path.is_some_and(|path| path.starts_with("/slow/slow"))
        })
        .collect();
    assert_eq!(slow.len(), 10, "{text}");
    for (line, trace) in slow {
        let spans = trace["spans"].as_array().unwrap().iter();
        let pids: Vec<u64> = spans.map(|span| span["pid"].as_u64().unwrap()).collect();
        assert_eq!(pids, [a, a, b, b, c], "{line}");
    }
}

/// Two services over a unix socket. A `traceparent` names the parent, whatever connection it comes by, and
/// its `tracestate` is kept; one that cannot be read is as good as none.
#[test]
fn unix_socket_and_named_parents() {
    if !can_run() {
        return;
    }
    let b = hop(None).uds().start().unwrap();
    let a = hop(Some(&b)).start().unwrap();
    let agent = agent(&[&a, &b], &[]);
    warm_up(&agent, &[&a]);
    load(&a, &paths("hop", 200));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let good = format!("00-{trace}-00f067aa0ba902b7-01");
    let bad = format!("00-{trace}-00f067aa0ba902b7");
    let send = |id: &str, parent: &str| {
        let request = Request::get(format!("/named/{id}"))
            .header("traceparent", parent)
            .header("tracestate", "rojo=1,congo=2");
        Load::new(a.target.clone(), [request]).run().unwrap();
    };
    send("good", &good);
    send("bad", &bad);
    thread::sleep(Duration::from_millis(500));
    let mut seen = agent.stop();
    let (named, others): (Vec<_>, Vec<_>) = seen
        .spans
        .drain(..)
        .partition(|span| path(span).starts_with("/named/"));
    seen.spans = others;
    all_right(&seen, &a, 600);
    let find = |pid: u32, kind: u64, name: &str| {
        let is_it =
            |span: &&Span| span.pid == u64::from(pid) && span.kind == kind && id(span) == name;
        named.iter().find(is_it).unwrap()
    };
    for (pid, id) in [(a.pid, "good"), (b.pid, "good.0")] {
        let span = find(pid, SERVER, id);
        assert_eq!((&*span.trace, &*span.parent), (trace, "00f067aa0ba902b7"));
        assert_eq!(span.trace_state, "rojo=1,congo=2");
        assert_eq!(span.text("decnet.link"), "exact");
    }
    let call = find(a.pid, CLIENT, "good.0");
    assert_eq!(call.trace, trace);
    assert_eq!(call.parent, find(a.pid, SERVER, "good").id);

    let first = find(a.pid, SERVER, "bad");
    assert_eq!((&*first.parent, &*first.trace_state), ("", ""));
    assert_ne!(first.trace, trace);
    let call = find(a.pid, CLIENT, "bad.0");
    assert_eq!((&call.parent, &call.trace), (&first.id, &first.trace));
    let second = find(b.pid, SERVER, "bad.0");
    assert_eq!((&second.parent, &second.trace), (&call.id, &first.trace));
}

/// Services in network namespaces of their own; and another pair of them that uses the same addresses and
/// ports at the same time, so that nobody can tell from outside which is which: whoever might be another's
/// is nobody's.
#[test]
fn across_namespaces() {
    if !can_run() {
        return;
    }
    // So few that both pairs use the same.
    let ports = "40000 40099";
    let (Some(one), Some(two)) = (Cable::new("y", ports), Cable::new("z", ports)) else {
        return;
    };
    let pairs = [&one, &two].map(|cable| {
        let [host_a, host_b] = Cable::ADDRESSES;
        let [a, b] = &cable.ends;
        let b = hop(None).network(b).host(host_b).port(8093);
        let b = b.start().unwrap();
        let a = hop(Some(&b)).network(a).host(host_a).uds();
        (a.start().unwrap(), b)
    });
    let [(a1, b1), (a2, b2)] = &pairs;
    let agent = agent(&[a1, b1, a2, b2], &[]);
    warm_up(&agent, &[a1]);
    warm_up(&agent, &[a2]);
    // One alone, then both, which ask for the same.
    load(a1, &paths("hop", 100));
    let both: Vec<_> = vec!["/hop/both".to_owned(); 100];
    thread::scope(|scope| {
        for (a, _) in &pairs {
            scope.spawn(|| load(a, &both));
        }
    });
    thread::sleep(Duration::from_millis(500));
    let seen = agent.stop();
    let mine = |way: &str, (a, b): &(Service, Service)| Seen {
        spans: seen
            .spans
            .iter()
            .filter(|span| [a.pid, b.pid].map(u64::from).contains(&span.pid))
            .filter(|span| id(span).starts_with(way))
            .cloned()
            .collect(),
        output: seen.output.clone(),
    };
    all_right(&mine("hop", &pairs[0]), a1, 300);
    for pair in &pairs {
        let (requests, calls) = judge(&mine("both", pair), &pair.0);
        let all = requests.right + requests.none;
        assert_eq!((all, calls.right), (300, 300), "{}", seen.output);
    }
}
