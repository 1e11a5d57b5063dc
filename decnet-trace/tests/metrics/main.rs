//! Metrics and sampling of a real service, against what its client counted; and endpoints that fail.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use support::{Agent, Span};
use xtask::bed::{
    collector::{Collector, Point},
    load::{Load, Request, Truth},
    service::Service,
};

const SOON: Duration = Duration::from_secs(60);
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
/// percentiles are those of the spans and no higher than the client's, to within a bucket.
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
    let want = by_status(&truth);
    assert_eq!(scraped(listen), want);
    let seen = agent.stop();
    let (spans, points) = collector.stop().unwrap();
    assert_eq!(spans.len(), 6000, "{}", seen.output);
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

    let root = |point: &&Point| {
        point
            .attributes
            .get("http.route")
            .is_some_and(|r| r == "Str(/)")
    };
    let point = durations.iter().find(root).unwrap();
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
}

/// Of what is sampled all errors are kept and the share of the rest that was asked for, each standing
/// for as many as it should; metrics count all.
#[test]
fn samples_what_was_asked_for() {
    if !support::can_run() {
        return;
    }
    let service = Service::builder().start().unwrap();
    let (pid, listen) = (service.pid.to_string(), free_port());
    let agent = Agent::start(&[
        "--pid",
        &pid,
        "--sample",
        "0.1",
        "--metrics-listen",
        &listen.to_string(),
    ]);
    let mut mix = vec![Request::get("/"); 9];
    mix.push(Request::get("/error"));
    let truth = load(&service, mix, 6000);
    assert_eq!(scraped(listen), by_status(&truth));
    let seen = agent.stop();
    let errors = truth.iter().filter(|truth| truth.status == 500).count();
    let reason = |reason: &str| -> Vec<&Span> {
        let of_reason = |span: &&Span| span.text("decnet.sampling.reason") == reason;
        seen.spans.iter().filter(of_reason).collect()
    };
    let failed = reason("error");
    assert_eq!(failed.len(), errors);
    let stands_for_one = |span: &&Span| span.float("decnet.sampling.adjusted_count") == Some(1.0);
    assert!(failed.iter().all(stands_for_one));
    let kept = reason("rate");
    assert_eq!(failed.len() + kept.len(), seen.spans.len());
    let others = (truth.len() - errors) as f64;
    let sigma = (others * 0.1 * 0.9).sqrt();
    assert!(
        (kept.len() as f64 - others * 0.1).abs() < 4.0 * sigma,
        "{}",
        kept.len()
    );
    let stand_for = |span: &&Span| span.float("decnet.sampling.adjusted_count").unwrap();
    assert!((stand_for(&kept[0]) - 10.0).abs() < 1e-9);
    let dropped = (truth.len() - seen.spans.len()) as u64;
    assert!(seen.counter("spans_sampled_out") <= dropped);
    assert_eq!(seen.counter("spans"), seen.spans.len() as u64);
}

/// A real collector that goes away in mid-load and comes back gets every span.
#[test]
fn a_restarted_collector_misses_nothing() {
    if !support::can_run() {
        return;
    }
    let collector = Collector::start().unwrap();
    let (grpc, http) = collector.addresses();
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let agent = Agent::start(&["--pid", &pid, "--otlp-endpoint", &collector.grpc_endpoint()]);
    let target = service.target.clone();
    let load = std::thread::spawn(move || {
        Load::new(target, [Request::get("/")])
            .connections(4)
            .count(4000)
            .rate(500.0)
            .run()
            .unwrap()
    });
    std::thread::sleep(Duration::from_secs(3));
    let (before, _) = collector.stop().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let collector = Collector::start_at(grpc, http).unwrap();
    let truth = load.join().unwrap();
    assert!(
        !before.is_empty() && before.len() < truth.len(),
        "{}",
        before.len()
    );
    let mut ids: HashSet<String> = before.into_iter().map(|span| span.span_id).collect();
    let begin = std::time::Instant::now();
    while ids.len() < truth.len() {
        assert!(
            begin.elapsed() < SOON,
            "{} of {}\n{}",
            ids.len(),
            truth.len(),
            agent.output()
        );
        std::thread::sleep(Duration::from_millis(500));
        ids.extend(
            collector
                .spans()
                .unwrap()
                .into_iter()
                .map(|span| span.span_id),
        );
    }
    let seen = agent.stop();
    assert_eq!(ids.len(), truth.len());
    assert_eq!(seen.counter("otlp_spans_sent"), truth.len() as u64);
    assert!(seen.counter("otlp_attempts_failed") > 0);
}

/// An endpoint that takes connections and never answers costs bounded memory, and the service nothing.
#[test]
fn a_hanging_endpoint_costs_bounded_memory() {
    if !support::can_run() {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let agent = Agent::start(&["--pid", &pid, "--otlp-endpoint", &endpoint]);
    // More than the queue takes.
    let truth = load(&service, vec![Request::get("/")], 20_000);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak < 150 * 1024, "{peak} KiB");
    let seen = agent.stop();
    assert_eq!(seen.spans.len(), truth.len(), "the file has all");
    let lost = ["queue_full", "at_stop", "gave_up"]
        .map(|reason| seen.counter(&format!("otlp_spans_lost_{reason}")));
    assert_eq!(lost.iter().sum::<u64>(), truth.len() as u64, "{lost:?}");
    assert!(lost[0] > 0, "{lost:?}");
}

/// The collector is away for longer than the queue can hold, under load: what is kept is the newest, what
/// is lost is counted, and memory stays bounded. Says what came of it. It takes too long to be run with the
/// others.
#[test]
#[ignore = "takes minutes"]
fn an_outage() {
    if !support::can_run() {
        return;
    }
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let seconds: u64 = number("DECNET_TRACE_OUTAGE_SECONDS", 120);
    let rate: u64 = number("DECNET_TRACE_OUTAGE_RATE", 400);
    let (lead, pause) = (5, Duration::from_secs(1));
    let collector = Collector::start().unwrap();
    let (grpc, http) = collector.addresses();
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let agent = Agent::start(&["--pid", &pid, "--otlp-endpoint", &collector.grpc_endpoint()]);
    let target = service.target.clone();
    let load = std::thread::spawn(move || {
        Load::new(target, [Request::get("/")])
            .connections(8)
            .rate(rate as f64)
            .duration(Duration::from_secs(seconds + 2 * lead))
            .run()
            .unwrap()
    });
    std::thread::sleep(Duration::from_secs(lead));
    let (before, _) = collector.stop().unwrap();
    std::thread::sleep(Duration::from_secs(seconds));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let collector = Collector::start_at(grpc, http).unwrap();
    let back = std::time::Instant::now();
    let truth = load.join().unwrap();
    // The next attempt may be half a minute away.
    let (mut arrived, mut since, mut first) = (0, back, None);
    while first.is_none() || since.elapsed() < 5 * pause {
        assert!(back.elapsed() < SOON + 2 * SOON, "{}", agent.output());
        std::thread::sleep(pause);
        let now = collector.spans().unwrap().len();
        if now > arrived {
            first.get_or_insert(back.elapsed());
            (arrived, since) = (now, std::time::Instant::now());
        }
    }
    let after = collector.spans().unwrap();
    let seen = agent.stop();
    let counter = |name: &str| seen.counter(&format!("otlp_spans_{name}"));
    let lost: Vec<_> = ["queue_full", "gave_up", "refused", "at_stop"]
        .iter()
        .map(|reason| (*reason, counter(&format!("lost_{reason}"))))
        .collect();
    println!(
        "{seconds} s away at {rate} requests/s: {} requests, {} spans before, {} after; lost {lost:?}; \
         {peak}; first {:.0?} after it was back",
        truth.len(),
        before.len(),
        after.len(),
        first.unwrap_or_default()
    );
    let all_lost: u64 = lost.iter().map(|(_, count)| count).sum();
    assert_eq!(
        counter("sent") + all_lost,
        truth.len() as u64,
        "{}",
        seen.output
    );
    // The newest are there: those of the last second before the end.
    let last = seen.spans.iter().map(|span| span.end).max().unwrap();
    let newest = seen
        .spans
        .iter()
        .filter(|span| span.end + 1_000_000_000 > last);
    let ids: HashSet<&str> = after.iter().map(|span| span.span_id.as_str()).collect();
    assert!(newest.clone().count() > 0);
    for span in newest {
        assert!(ids.contains(span.id.as_str()), "{}", span.id);
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
