//! Metrics and sampling of a real service, against what its client counted; and endpoints that fail.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod outages;
mod sampling;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;
mod web;

use std::{
    collections::{BTreeMap, HashSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use support::{Agent, Span};
use xtask::bed::{
    collector::{Collector, Point},
    load::{Load, Request, Truth},
    service::Service,
};

const DURATION: &str = "http.server.request.duration";

/// What a client's clock and a server's may differ by on a saturated machine, in seconds.
const PREEMPTED: f64 = 0.02;

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn load(service: &Service, requests: Vec<Request>, count: usize) -> Vec<Truth> {
    let truth = Load::new(service.target.clone(), requests)
        .connections(16)
        .count(count)
        .run()
        .unwrap();
    assert!(truth.iter().all(|request| request.complete));
    // The last responses' records lie in the rings for a moment.
    std::thread::sleep(Duration::from_millis(500));
    truth
}

/// How many requests of each status the client had.
fn by_status(truth: &[Truth]) -> BTreeMap<u16, u64> {
    let mut counts = BTreeMap::new();
    for request in truth {
        *counts.entry(request.status).or_default() += 1;
    }
    counts
}

/// The same as Prometheus reads it.
fn scraped(address: SocketAddr) -> BTreeMap<u16, u64> {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with("http_server_request_duration_seconds_count{") {
            let (_, status) = line.split_once("http_response_status_code=\"").unwrap();
            let status = status.split('"').next().unwrap().parse().unwrap();
            let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            *counts.entry(status).or_default() += count;
        }
    }
    counts
}

/// The same, when as many were counted, at the latest after a minute.
fn scraped_all(address: SocketAddr, want: &BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    let begin = Instant::now();
    loop {
        let counts = scraped(address);
        let is_all = counts.values().sum::<u64>() >= want.values().sum();
        if is_all || begin.elapsed() > Duration::from_secs(60) {
            return counts;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The last point of each series: all are cumulative.
fn last(points: Vec<Point>, metric: &str) -> Vec<Point> {
    let mut last = BTreeMap::new();
    for point in points.into_iter().filter(|point| point.metric == metric) {
        last.insert(format!("{:?}", point.attributes), point);
    }
    last.into_values().collect()
}

/// The bucket that holds the q-th value.
fn quantile(point: &Point, q: f64) -> (f64, f64) {
    let rank = ((point.count * q).ceil() as u64).max(1);
    let mut seen = 0;
    for (above, up_to, count) in &point.buckets {
        seen += count;
        if seen >= rank {
            return (*above, *up_to);
        }
    }
    panic!("{point:?}");
}

fn at(sorted: &[f64], q: f64) -> f64 {
    let rank = ((sorted.len() as f64 * q).ceil() as usize).max(1);
    sorted[rank - 1]
}

/// What Prometheus reads and what a real collector gets equals the client's own counts, and histograms'
/// percentiles are those of the spans and no higher than the client's, to within a bucket; where nothing
/// else has to be waited for, no lower either.
#[test]
fn metrics_equal_the_clients_counts() {
    if !support::can_run() {
        return;
    }
    let collector = Collector::start().unwrap();
    let service = Service::builder().start().unwrap();
    let (pid, listen) = (service.pid.to_string(), free_port());
    let agent = Agent::start(&[
        "--pid",
        &pid,
        "--otlp-endpoint",
        &collector.grpc_endpoint(),
        "--metrics-listen",
        &listen.to_string(),
    ]);
    let mix = ["/", "/items/7", "/items/8", "/sync", "/nowhere", "/error"];
    let truth = load(&service, mix.map(Request::get).into(), 6000);
    // One after the other: the client waits for the server's work and nothing else.
    let alone = Load::new(service.target.clone(), [Request::get("/slow?ms=60")])
        .count(40)
        .run()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut want = by_status(&truth);
    *want.entry(200).or_default() += 40;
    assert_eq!(scraped_all(listen, &want), want);
    drop(service);
    let gone = format!("no longer tracing pid {pid}: it ended");
    agent.wait_until(&gone, || agent.output().contains(&gone));
    let seen = agent.stop();
    // The collector prints what it has taken a moment later.
    let (begin, gone) = (Instant::now(), format!("Str({gone})"));
    loop {
        let records = collector.records().unwrap();
        if records.contains(&gone) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{records:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (spans, points) = collector.stop().unwrap();
    assert_eq!(spans.len(), 6040, "{}", seen.output);
    let durations = last(points.clone(), DURATION);
    let mut counted: BTreeMap<u16, u64> = BTreeMap::new();
    for point in &durations {
        let status = &point.attributes["http.response.status_code"];
        let status = status.trim_matches(|c: char| !c.is_ascii_digit());
        *counted.entry(status.parse().unwrap()).or_default() += point.count as u64;
        let buckets: u64 = point.buckets.iter().map(|(_, _, count)| count).sum();
        assert_eq!(buckets, point.count as u64);
    }
    assert_eq!(counted, want);

    let of_route = |route: &str| {
        let route = format!("Str({route})");
        let is_it = |point: &&Point| point.attributes.get("http.route") == Some(&route);
        durations.iter().find(is_it).unwrap()
    };
    let point = of_route("/");
    let seconds = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all
    };
    let of_root = |span: &&Span| span.name == "GET /";
    let spans = seen.spans.iter().filter(of_root);
    let spans = seconds(
        spans
            .map(|span| (span.end - span.start) as f64 / 1e9)
            .collect(),
    );
    let clients = truth.iter().filter(|truth| truth.request.path == "/");
    let clients = seconds(
        clients
            .map(|truth| (truth.end - truth.start) as f64 / 1e9)
            .collect(),
    );
    for q in [0.1, 0.5, 0.9, 0.99] {
        let (above, up_to) = quantile(point, q);
        let span = at(&spans, q);
        assert!(
            above * 0.999_999 <= span && span <= up_to * 1.000_001,
            "{above} {span} {up_to}"
        );
        assert!(above <= at(&clients, q) + PREEMPTED, "{above} {q}");
    }
    let point = of_route("/slow");
    let clients = seconds(
        alone
            .iter()
            .map(|truth| (truth.end - truth.start) as f64 / 1e9)
            .collect(),
    );
    for q in [0.1, 0.5, 0.9] {
        let ((above, up_to), client) = (quantile(point, q), at(&clients, q));
        assert!(
            up_to >= 0.06 && up_to >= client - PREEMPTED && above <= client + PREEMPTED,
            "{above} {up_to} {client}"
        );
    }

    let agents: HashSet<_> = points
        .iter()
        .filter(|point| point.metric.starts_with("decnet.agent."))
        .map(|point| (point.metric.clone(), point.resource["service.name"].clone()))
        .collect();
    for name in ["events", "drops", "cpu.time", "memory.usage", "processes"] {
        let one = (
            format!("decnet.agent.{name}"),
            "Str(decnet-trace)".to_owned(),
        );
        assert!(agents.contains(&one), "{name} in {agents:?}");
    }
    for reason in [
        "metrics_lost_processes_full",
        "metrics_lost_processes_untold",
        "otlp_logs_lost_queue_full",
    ] {
        let text = format!("Str({reason})");
        let mut drops = points
            .iter()
            .filter(|point| point.metric == "decnet.agent.drops");
        let told = drops.any(|point| point.attributes.get("decnet.reason") == Some(&text));
        assert!(told, "{reason}");
    }
}

/// What cannot be meant is refused in one line before anything is attached.
#[test]
fn refuses_nonsense() {
    for args in [
        ["--otlp-endpoint", "nonsense"],
        ["--otlp-endpoint", "ftp://collector"],
        ["--sampler", "sometimes"],
        ["--sample", "2"],
        ["--traces-per-second", "0"],
        ["--keep-slow", "often"],
        ["--metrics-listen", "9464"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
            .arg("run")
            .args(args)
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(args[1]), "{args:?}: {text}");
    }
}
