//! What is kept of a real service's requests, and what is not.

use std::{collections::HashSet, time::Duration};

use xtask::bed::{
    load::{Load, Request, Truth},
    service::Service,
};

use super::{
    by_status, free_port, load, scraped_all,
    support::{self, Agent, Seen, Span},
};

fn of_reason<'a>(seen: &'a Seen, reason: &str) -> Vec<&'a Span> {
    let is_it = |span: &&Span| span.text("decnet.sampling.reason") == reason;
    seen.spans.iter().filter(is_it).collect()
}

/// Every request is a span, or was counted as one that was not kept.
fn none_is_lost(seen: &Seen, truth: &[Truth]) {
    let all = seen.spans.len() as u64 + seen.counter("spans_sampled_out");
    assert_eq!(all, truth.len() as u64, "{}", seen.output);
    assert_eq!(seen.counter("spans"), seen.spans.len() as u64);
}

/// Of what is sampled all errors are kept and the share of the rest that was asked for, each standing
/// for as many as it should; metrics count all.
#[test]
fn samples_what_was_asked_for() {
    if !support::can_run() {
        return;
    }
    const REQUESTS: usize = 6000;
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
    // Half of the requests bring a trace id, the same ones each time: which of these are kept is known before,
    // and whether their number is within three standard deviations does not depend on the day.
    let mut rng = fastrand::Rng::with_seed(1);
    let mut given = Vec::new();
    let requests: Vec<Request> = (0..REQUESTS)
        .map(|n| {
            let request = Request::get(if n % 10 < 9 { "/" } else { "/error" });
            if n % 2 == 0 {
                return request;
            }
            let id = rng.u128(1..);
            if n % 10 < 9 {
                given.push(id);
            }
            request.header("traceparent", format!("00-{id:032x}-00f067aa0ba902b7-01"))
        })
        .collect();
    // The specification's rule: the low 56 bits are at or above the threshold.
    let threshold = (0.9 * (1u64 << 56) as f64) as u128;
    let low = |id: &u128| id & ((1 << 56) - 1);
    let wanted: HashSet<String> = given
        .iter()
        .filter(|id| low(id) >= threshold)
        .map(|id| format!("{id:032x}"))
        .collect();
    let off = |kept: usize, of: usize| {
        let sigma = (of as f64 * 0.1 * 0.9).sqrt();
        (kept as f64 - of as f64 * 0.1).abs() / sigma
    };
    assert!(off(wanted.len(), given.len()) < 3.0, "{}", wanted.len());

    let truth = load(&service, requests, REQUESTS);
    let want = by_status(&truth);
    assert_eq!(scraped_all(listen, &want), want);
    let seen = agent.stop();
    let errors = truth.iter().filter(|truth| truth.status == 500).count();
    let failed = of_reason(&seen, "error");
    assert_eq!(failed.len(), errors);
    let stands_for_one = |span: &&Span| span.float("decnet.sampling.adjusted_count") == Some(1.0);
    assert!(failed.iter().all(stands_for_one));
    let kept = of_reason(&seen, "rate");
    assert_eq!(failed.len() + kept.len(), seen.spans.len());
    let given: HashSet<String> = given.iter().map(|id| format!("{id:032x}")).collect();
    let (of_given, own): (Vec<&Span>, Vec<&Span>) = kept
        .iter()
        .copied()
        .partition(|span| given.contains(&span.trace));
    let of_given: HashSet<String> = of_given.iter().map(|span| span.trace.clone()).collect();
    assert_eq!(of_given, wanted);
    // The agent's own ids are others each time: beyond five lies one run of 1.7 million.
    let others = truth.len() - errors - given.len();
    assert!(off(own.len(), others) < 5.0, "{} of {others}", own.len());
    let stand_for = |span: &&Span| span.float("decnet.sampling.adjusted_count").unwrap();
    assert!((stand_for(&kept[0]) - 10.0).abs() < 1e-9);
    none_is_lost(&seen, &truth);
}

/// So many traces a second are kept of a flood, all of what is asked for rarely, and of a route all that is
/// slower than 99 of 100.
#[test]
fn keeps_what_is_rare_or_slow() {
    if !support::can_run() {
        return;
    }
    const SECONDS: u64 = 10;
    const SLOW: Duration = Duration::from_millis(700);
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let rate = ["--traces-per-second", "20", "--keep-slow", "p99"];
    let agent = Agent::start(&[&["--pid", &pid], &rate[..]].concat());
    let slow = format!("/slow?ms={}", SLOW.as_millis());
    let mut requests = vec![Request::get("/slow?ms=1"); 300];
    requests[50] = Request::get("/items/7");
    requests[100] = Request::get(&*slow);
    let truth = Load::new(service.target.clone(), requests)
        .connections(8)
        .rate(400.0)
        .duration(Duration::from_secs(SECONDS))
        .run()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let seen = agent.stop();
    let of = |path: &str| truth.iter().filter(|one| one.request.path == path).count();
    let rare = |span: &&Span| span.text("url.path") == "/items/7";
    assert_eq!(seen.spans.iter().filter(rare).count(), of("/items/7"));
    let owed = surely_slow(&truth, &slow, SLOW);
    let kept = of_reason(&seen, "slow").len();
    assert!(owed > 0 && kept >= owed, "{kept}, {owed} owed");
    // Of the flood 18 a second are due; a few hundred more get through at its beginning.
    let flood = of_reason(&seen, "rate").len() - of("/items/7");
    assert!((120..187 + 400).contains(&flood), "{flood}");
    assert!(flood < truth.len() / 4, "{flood} of {}", truth.len());
    none_is_lost(&seen, &truth);
}

/// How many of the route's slow requests were slower than 99 of 100 before them, whatever else took long: a machine
/// that stands still for a moment makes requests slow that were not meant to be. The agent looks once a second, and
/// tells nothing from fewer than a hundred.
fn surely_slow(truth: &[Truth], slow: &str, time: Duration) -> usize {
    const SECOND: u64 = 1_000_000_000;
    let route = || {
        truth
            .iter()
            .filter(|one| one.request.path.starts_with("/slow"))
    };
    let begin = truth.iter().map(|one| one.start).min().unwrap_or(0);
    // What a client waits for is longer than what the service sees, and a bucket is known to within its width.
    let is_long = |one: &&Truth| u128::from(one.end - one.start) > time.as_nanos() * 8 / 10;
    let is_sure = |one: &&Truth| {
        let long = route().filter(is_long).filter(|other| other.end <= one.end);
        let all = route().filter(|other| other.end + 2 * SECOND <= one.end);
        one.start > begin + 3 * SECOND && long.count() * 1000 < all.count() * 9
    };
    route()
        .filter(|one| one.request.path == slow)
        .filter(is_sure)
        .count()
}
