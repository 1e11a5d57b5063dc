//! What is counted, by what it is told apart, and where it ends.

use proptest::prelude::*;

use super::*;
use crate::correlate::exchange::Exchange;
use crate::policy::{
    Policy, PolicyConfig,
    tests::{resource, served},
};

fn policy() -> Policy {
    Policy::new(PolicyConfig::default(), Arc::default()).expect("random numbers")
}

fn metrics(series_max: usize) -> Metrics {
    let config = MetricsConfig {
        series_max,
        total_max: 3 * series_max,
        processes_max: 2,
    };
    Metrics::new(config, 5)
}

fn count(
    metrics: &mut Metrics,
    policy: &mut Policy,
    resource: &Arc<Resource>,
    exchange: &Exchange,
) {
    let seen = policy.observe(exchange, resource);
    metrics.exchange(resource, &seen, 100, Some(([1; 16], [2; 8])));
}

/// The values of a family's series by one attribute's text.
fn counts(metrics: &Metrics, instrument: Instrument, name: &str) -> Vec<(String, u64)> {
    let series = metrics
        .processes()
        .iter()
        .flat_map(|p| p.family(instrument).iter());
    let mut all: Vec<_> = series
        .map(|series| {
            let value = series.attributes.iter().find(|(n, _)| *n == name);
            let value = value.map_or("-".to_owned(), |(_, kept)| match kept.value() {
                Value::Text(text) => text.to_owned(),
                Value::Int(n) => n.to_string(),
                Value::Bool(b) => b.to_string(),
            });
            (value, series.histogram.count())
        })
        .collect();
    all.sort();
    all
}

/// Requests are told apart by method, route and status, as the conventions have it, and counted in
/// seconds.
#[test]
fn tells_requests_apart() {
    let (mut metrics, mut policy, resource) = (metrics(100), policy(), resource());
    for (target, status, times) in [
        ("/a/1", 200, 3),
        ("/a/2", 200, 2),
        ("/a/3", 500, 4),
        ("/b", 200, 1),
    ] {
        for _ in 0..times {
            let exchange = Exchange {
                target: target.into(),
                status: Some(status),
                start: 1_000_000_000,
                end: 1_250_000_000,
                queued: Some(1_000_000),
                ..served()
            };
            count(&mut metrics, &mut policy, &resource, &exchange);
        }
    }
    let server = Instrument::ServerDuration;
    let of = |text: &str, n| (text.to_owned(), n);
    assert_eq!(
        counts(&metrics, server, "http.route"),
        [of("/a/{id}", 4), of("/a/{id}", 5), of("/b", 1)]
    );
    assert_eq!(
        counts(&metrics, server, "error.type"),
        [of("-", 1), of("-", 5), of("500", 4)]
    );
    assert_eq!(
        counts(&metrics, Instrument::QueueDuration, "x"),
        [of("-", 10)]
    );
    let family = metrics.processes()[0].family(server);
    let sum: f64 = family.iter().map(|series| series.histogram.sum()).sum();
    assert!((sum - 2.5).abs() < 1e-9, "{sum}");
    for series in family.iter() {
        // 0.25 s belongs to the bucket up to 0.25.
        assert_eq!(series.explicit[6], series.histogram.count());
        let exemplars: Vec<_> = series.exemplars(99).collect();
        assert_eq!(exemplars.len() as u64, series.histogram.count().min(4));
        assert!((exemplars[0].value - 0.25).abs() < 1e-9);
        assert_eq!(series.exemplars(100).count(), 0, "they were read");
    }
}

/// Calls are told apart by whom they go to; without a name that is an address.
#[test]
fn tells_calls_apart() {
    let (mut metrics, mut policy, resource) = (metrics(100), policy(), resource());
    for host in [Some("a.example"), Some("a.example:81"), None] {
        let exchange = Exchange {
            role: Role::Client,
            host: host.map(Into::into),
            ..served()
        };
        count(&mut metrics, &mut policy, &resource, &exchange);
    }
    let client = Instrument::ClientDuration;
    let of = |text: &str| (text.to_owned(), 1);
    assert_eq!(
        counts(&metrics, client, "server.address"),
        [of("192.0.2.4"), of("a.example"), of("a.example")]
    );
    assert_eq!(
        counts(&metrics, client, "server.port"),
        [of("51000"), of("80"), of("81")]
    );
}

/// A database's statements are counted by what they do and to what, and by their errors; one whose span
/// is kept is an exemplar.
#[test]
fn counts_database_calls() {
    let mut metrics = metrics(100);
    let seen = statement::Observed {
        system: "sqlite",
        namespace: None,
        collection: None,
        operation: Some("SELECT"),
        error: None,
        duration: 2_000_000,
    };
    metrics.statement(&resource(), &seen, 9, None);
    let family = metrics.processes()[0].family(Instrument::DbDuration);
    let series: Vec<_> = family.iter().collect();
    assert_eq!(series.len(), 1);
    assert_eq!(
        *series[0].attributes,
        [
            ("db.system.name", series::Kept::Text("sqlite".into())),
            ("db.operation.name", series::Kept::Text("SELECT".into())),
        ]
    );
    assert_eq!(series[0].explicit[1], 1, "{:?}", series[0].explicit);
    assert_eq!(series[0].exemplars(0).count(), 0, "its span is not kept");
}

/// Beyond the bound all share one series that says so, nothing goes uncounted, and what has a series
/// keeps it; processes are bounded as well.
#[test]
fn is_bounded() {
    let (mut metrics, mut policy) = (metrics(5), policy());
    let all: Vec<_> = (0..3)
        .map(|_| resource())
        .enumerate()
        .map(|(n, resource)| {
            let tgid = n as u32;
            Arc::new(Resource {
                tgid,
                ..(*resource).clone()
            })
        })
        .collect();
    for resource in &all {
        for n in 0..50 {
            let exchange = Exchange {
                status: Some(200 + n % 25),
                ..served()
            };
            count(&mut metrics, &mut policy, resource, &exchange);
        }
    }
    for process in metrics.processes() {
        let family = process.family(Instrument::ServerDuration);
        assert_eq!(family.len(), 5);
        assert_eq!(family.iter().map(|s| s.histogram.count()).sum::<u64>(), 50);
        let shared = family
            .iter()
            .last()
            .map(|s| (s.attributes[0].0, s.histogram.count()));
        assert_eq!(shared, Some((series::OVERFLOW, 40)));
    }
    assert_eq!(metrics.processes().len(), 2);
    assert_eq!(
        metrics.counters(),
        [
            ("metrics_lost_processes_full", 50),
            ("metrics_lost_processes_untold", 0),
            ("metrics_series_overflowed", 80)
        ]
    );
}

/// A process that ended is reported for a while and then forgotten, and its pid may come again.
#[test]
fn forgets_processes() {
    let (mut metrics, mut policy) = (metrics(5), policy());
    let (first, second) = (resource(), instance("another"));
    count(&mut metrics, &mut policy, &first, &served());
    metrics.ended(7, 100);
    metrics.forget(100 + REMEMBER);
    count(&mut metrics, &mut policy, &second, &served());
    count(&mut metrics, &mut policy, &second, &served());
    assert_eq!(metrics.processes().len(), 2);
    metrics.set_active([(7, "GET"), (7, "POST"), (7, "GET"), (8, "GET")].into_iter());
    metrics.forget(101 + REMEMBER);
    assert_eq!(metrics.processes().len(), 1);
    count(&mut metrics, &mut policy, &second, &served());
    let process = &metrics.processes()[0];
    assert_eq!(
        counts(&metrics, Instrument::ServerDuration, "x"),
        [("-".to_owned(), 3)]
    );
    assert_eq!(process.active(), [("GET", 2), ("POST", 1)]);
    metrics.set_active([(7, "POST")].into_iter());
    assert_eq!(metrics.processes()[0].active(), [("GET", 0), ("POST", 1)]);
}

/// The process of [`resource`] with an instance's name.
fn instance(id: &str) -> Arc<Resource> {
    let mut resource = (*resource()).clone();
    let name = "service.instance.id";
    resource.attributes.retain(|(known, _)| known != name);
    let id = crate::span::Value::Str(id.into());
    resource.attributes.push((name.into(), id));
    Arc::new(resource)
}

/// A process that is traced again, or of which more is known by now, goes on where it was, as it is known
/// now; another one with its pid, or what it executed under another name, begins anew.
#[test]
fn knows_a_process_again() {
    let (mut metrics, mut policy) = (metrics(5), policy());
    count(&mut metrics, &mut policy, &instance("a"), &served());
    metrics.ended(7, 100);
    let mut more = (*instance("a")).clone();
    more.attributes
        .push(("b".into(), crate::span::Value::Int(1)));
    let more = Arc::new(more);
    count(&mut metrics, &mut policy, &more, &served());
    assert_eq!(metrics.processes().len(), 1);
    assert!(Arc::ptr_eq(&metrics.processes()[0].resource, &more));
    let all = ("-".to_owned(), 2);
    assert_eq!(counts(&metrics, Instrument::ServerDuration, "x"), [all]);
    metrics.forget(u64::MAX);
    assert_eq!(metrics.processes().len(), 1, "it is alive");
    let other = Arc::new(Resource {
        service_name: "other".into(),
        ..(*more).clone()
    });
    count(&mut metrics, &mut policy, &other, &served());
    assert_eq!(metrics.processes().len(), 2);
    // And back.
    count(&mut metrics, &mut policy, &more, &served());
    assert_eq!(metrics.processes().len(), 2);
}

/// What is counted of a process after its end does not keep it for ever.
#[test]
fn what_comes_late_ends_too() {
    let (mut metrics, mut policy) = (metrics(5), policy());
    metrics.ended(7, 100);
    count(&mut metrics, &mut policy, &instance("a"), &served());
    metrics.set_live(|_| true, 200);
    metrics.forget(u64::MAX);
    assert_eq!(metrics.processes().len(), 1);
    metrics.set_live(|tgid| tgid != 7, 300);
    metrics.set_live(|tgid| tgid != 7, 400);
    metrics.forget(300 + REMEMBER);
    assert_eq!(metrics.processes().len(), 1);
    metrics.forget(301 + REMEMBER);
    assert!(metrics.processes().is_empty());
}

/// Where metrics are exported, a process that ended stays until what it counted got through, for an hour at
/// most; where another one needs its place, it goes, and that is counted.
#[test]
fn tells_all_before_it_forgets() {
    let (mut metrics, mut policy) = (metrics(50), policy());
    metrics.expect_exports(Duration::from_secs(600));
    count(&mut metrics, &mut policy, &instance("a"), &served());
    let failed = metrics.export(50);
    metrics.ended(7, 100);
    metrics.forget(101 + REMEMBER);
    assert_eq!(metrics.processes().len(), 1, "nothing got through yet");
    // Late, and after the export.
    count(&mut metrics, &mut policy, &instance("a"), &served());
    metrics.ended(7, 100);
    metrics.delivered(failed.number);
    metrics.forget(101 + REMEMBER);
    assert_eq!(metrics.processes().len(), 1, "not all got through");
    let told = metrics.export(60);
    assert_eq!(told.processes.len(), 1);
    metrics.delivered(told.number);
    metrics.forget(101 + REMEMBER);
    assert!(metrics.processes().is_empty());
    let untold = |metrics: &Metrics| metrics.counters()[1].1;
    assert_eq!(untold(&metrics), 0);

    count(&mut metrics, &mut policy, &instance("b"), &served());
    metrics.ended(7, 100);
    metrics.forget(100 + UNTOLD_MAX);
    assert_eq!((metrics.processes().len(), untold(&metrics)), (1, 0));
    metrics.forget(101 + UNTOLD_MAX);
    assert_eq!((metrics.processes().len(), untold(&metrics)), (0, 1));

    // Two places.
    for (id, end) in [("c", 200), ("d", 100), ("e", 300)] {
        count(&mut metrics, &mut policy, &instance(id), &served());
        metrics.ended(7, end);
    }
    let left: Vec<_> = metrics
        .processes()
        .iter()
        .map(|p| p.resource.instance())
        .collect();
    assert_eq!(left, [Some("c"), Some("e")]);
    assert_eq!(untold(&metrics), 2);
    assert_eq!(metrics.counters()[0].1, 0, "nothing went uncounted");
}

/// Every exemplar that was offered is as likely to stay as any other.
#[test]
fn exemplars_are_fair() {
    let mut first = 0;
    for seed in 0..4000 {
        let mut family = Family::default();
        let series = family.find(&[], true);
        let mut rng = fastrand::Rng::with_seed(seed);
        for n in 0..20u8 {
            let exemplar = Exemplar {
                value: f64::from(n),
                time: 1,
                trace_id: [n; 16],
                span_id: [0; 8],
            };
            series.offer(exemplar, &mut rng);
        }
        first += series.exemplars(0).filter(|e| e.value < 10.0).count();
    }
    // Four of twenty stay: 8000 of 16000 are of the first half, with a deviation of about 57.
    assert!((7830..8170).contains(&first), "{first}");
}

proptest! {
    /// Whatever a request says, it is counted once.
    #[test]
    fn counts_anything_once(
        method in "\\PC{0,8}",
        target in "\\PC{0,40}",
        host in proptest::option::of("\\PC{0,20}"),
        status in proptest::option::of(any::<u16>()),
        server in any::<bool>(),
        (start, end) in any::<(u64, u64)>(),
    ) {
        let (mut metrics, mut policy, resource) = (metrics(5), policy(), resource());
        let exchange = Exchange {
            role: if server { Role::Server } else { Role::Client },
            method: method.into(),
            target: target.into(),
            host: host.map(Into::into),
            status,
            start,
            end,
            ..served()
        };
        count(&mut metrics, &mut policy, &resource, &exchange);
        let all: u64 = Instrument::ALL[..2]
            .iter()
            .flat_map(|&i| metrics.processes()[0].family(i).iter())
            .map(|s| s.histogram.count())
            .sum();
        prop_assert_eq!(all, 1);
    }
}
