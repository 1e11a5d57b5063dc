//! Endpoints that fail, and what that costs.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::TcpListener,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use xtask::bed::{
    collector::Collector,
    load::{Load, Request},
    service::Service,
};

use super::{
    DURATION, last, load,
    support::{self, Agent},
    web::Web,
};

const SOON: Duration = Duration::from_secs(60);

/// What an endpoint that takes nothing may cost, in KiB: the queue's 8 MiB and a request's 1.3 MiB (1 MiB and
/// the batch of 256 spans by which it may be more), each twice, for what is counted of a span is rough, and for
/// the allocator's gaps; and that request as it is sent, encoded and in the connection's buffer.
const QUEUE_KIB: u64 = 2 * (8 * 1024 + 1300) + 2 * 1300;

/// The most memory that it has had.
fn peak_kib(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.unwrap().trim().trim_end_matches("kB").trim();
    peak.parse().unwrap()
}

/// A real collector that is killed in mid-load and comes back gets every span. What was under way at that
/// moment may come twice, or have gone with the one that was killed after it was taken; nothing else. Metrics
/// have all of it.
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
    let load = thread::spawn(move || {
        Load::new(target, [Request::get("/")])
            .connections(4)
            .count(4000)
            .rate(500.0)
            .run()
            .unwrap()
    });
    thread::sleep(Duration::from_secs(3));
    let killed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = collector.kill().unwrap();
    thread::sleep(Duration::from_secs(2));
    let collector = Collector::start_at(grpc, http).unwrap();
    let truth = load.join().unwrap();
    assert!(
        !before.is_empty() && before.len() < truth.len(),
        "{}",
        before.len()
    );
    let begin = Instant::now();
    let newest = || {
        let spans = collector.spans().unwrap();
        spans.into_iter().map(|span| span.end).max().unwrap_or(0)
    };
    // One request goes after the other: with the newest all are there.
    let mut arrived = 0;
    loop {
        thread::sleep(Duration::from_millis(1500));
        let now = newest();
        if now > 0 && now == arrived {
            break;
        }
        arrived = now;
        assert!(begin.elapsed() < SOON, "{}", agent.output());
    }
    let seen = agent.stop();
    let (after, points) = collector.stop().unwrap();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for span in before.iter().chain(&after) {
        *times.entry(&span.span_id).or_default() += 1;
    }
    assert_eq!(seen.spans.len(), truth.len(), "the file has all");
    // Spans are sent within a second or two.
    let killed = killed.as_nanos() as u64;
    let under_way = killed - 3_000_000_000..killed;
    let (mut missing, mut doubled) = (0, 0);
    for span in &seen.spans {
        match times.remove(&*span.id).unwrap_or(0) {
            1 => {}
            n @ (0 | 2) => {
                assert!(under_way.contains(&span.end), "{n} times: {span:?}");
                *(if n == 0 { &mut missing } else { &mut doubled }) += 1;
            }
            n => panic!("{n} times: {span:?}"),
        }
    }
    println!("{doubled} came twice, {missing} went with the collector");
    assert_eq!(times, HashMap::new(), "nobody else sends there");
    // A request has as many at the most.
    assert!(missing.max(doubled) <= 1024 + 256, "{missing} {doubled}");
    assert_eq!(seen.counter("otlp_spans_sent"), truth.len() as u64);
    assert!(seen.counter("otlp_attempts_failed") > 0);
    let counted: f64 = last(points, DURATION).iter().map(|point| point.count).sum();
    assert_eq!(counted as usize, truth.len());
}

/// Endpoints that take connections and never answer, that nobody listens at, and that are always busy: each costs
/// as much memory as the queue may hold and no more, and the service nothing.
#[test]
fn a_failing_endpoint_costs_bounded_memory() {
    if !support::can_run() {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let busy = Web::start("503 Service Unavailable");
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let without = Agent::start(&["--pid", &pid]);
    let agents = [
        (silent.local_addr().unwrap(), "grpc"),
        (nobody, "grpc"),
        (busy.address, "http/protobuf"),
    ]
    .map(|(address, protocol)| {
        let endpoint = format!("http://{address}");
        let to = ["--otlp-endpoint", &endpoint, "--otlp-protocol", protocol];
        Agent::start(&[&["--pid", &pid], &to[..]].concat())
    });
    // More than the queue takes.
    let truth = load(&service, vec![Request::get("/")], 14_000);
    let base = peak_kib(&without);
    assert_eq!(without.stop().spans.len(), truth.len());
    for agent in agents {
        let peak = peak_kib(&agent);
        println!("{peak} KiB, {base} KiB without");
        assert!(peak < base + QUEUE_KIB, "{peak} KiB, {base} KiB without");
        let seen = agent.stop();
        assert_eq!(seen.spans.len(), truth.len(), "the file has all");
        let lost = ["queue_full", "at_stop", "gave_up"]
            .map(|reason| seen.counter(&format!("otlp_spans_lost_{reason}")));
        assert_eq!(lost.iter().sum::<u64>(), truth.len() as u64, "{lost:?}");
        assert!(lost[0] > 0, "{lost:?}");
    }
}

/// What a span takes on the wire: a request's and that of its statement, plain and compressed. Says what came of
/// it, for docs/fleet.md.
#[test]
#[ignore = "a measurement"]
fn bytes_per_span() {
    if !support::can_run() {
        return;
    }
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    for path in ["/", "/db"] {
        let mut sizes = Vec::new();
        for compression in ["none", "gzip"] {
            let web = Web::start("200 OK");
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("config.toml");
            let text = format!(
                "[otlp]\nendpoint = \"http://{}\"\nprotocol = \"http/protobuf\"\ncompression = \"{compression}\"\n",
                web.address
            );
            fs::write(&file, text).unwrap();
            let agent = Agent::start(&["--pid", &pid, "--config", file.to_str().unwrap()]);
            Load::new(service.target.clone(), [Request::get(path)])
                .connections(4)
                .rate(400.0)
                .count(4000)
                .run()
                .unwrap();
            thread::sleep(Duration::from_secs(1));
            let sent = agent.stop().counter("otlp_spans_sent");
            let size = web.spans.load(Ordering::Relaxed) as f64 / sent as f64;
            println!(
                "{path}: {size:.0} bytes a span with compression {compression}, of {sent} spans"
            );
            sizes.push(size);
        }
        assert!((300.0..1100.0).contains(&sizes[0]), "{sizes:?}");
        assert!(sizes[1] * 4.0 < sizes[0], "{sizes:?}");
    }
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
    let at_first = peak_kib(&agent);
    let (before, _) = collector.stop().unwrap();
    std::thread::sleep(Duration::from_secs(seconds));
    let peak = peak_kib(&agent);
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
         peak {at_first} KiB before, {peak} KiB away; first {:.0?} after it was back",
        truth.len(),
        before.len(),
        after.len(),
        first.unwrap_or_default()
    );
    assert!(peak < at_first + QUEUE_KIB, "{at_first} {peak}");
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
