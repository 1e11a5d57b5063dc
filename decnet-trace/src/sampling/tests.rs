//! Shares that are what was asked for, rules that let nothing slip, and traces that stay whole.

use proptest::prelude::*;

use super::*;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;

fn candidate<'a>(trace_id: &'a [u8; 16], route: &'a str) -> Candidate<'a> {
    Candidate {
        trace_id,
        trace_state: "",
        parent_sampled: None,
        service: "shop",
        route,
        error: false,
        duration: 1_000_000,
        served: true,
    }
}

fn ids(seed: u64) -> impl Iterator<Item = [u8; 16]> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || rng.u128(..).to_be_bytes())
}

fn keeps<T>(sampling: &mut Sampling<T>, candidate: &Candidate<'_>) -> bool {
    matches!(sampling.decide(candidate, 1), Verdict::Keep(_))
}

fn tail(ratio: f64) -> SamplingConfig {
    SamplingConfig {
        ratio,
        ..SamplingConfig::default()
    }
}

fn head(name: &str, argument: &str) -> SamplingConfig {
    SamplingConfig {
        sampler: Sampler::parse(name, Some(argument)).expect("a sampler"),
        ..SamplingConfig::default()
    }
}

/// By default everything is kept, nothing is remembered, and no span has to say why.
#[test]
fn keeps_everything_by_default() {
    let mut sampling = Sampling::<()>::new(SamplingConfig::default());
    assert!(!sampling.is_choosy());
    for id in ids(1).take(1000) {
        assert!(keeps(&mut sampling, &candidate(&id, "/")));
    }
    assert!(sampling.decided.is_empty());
    assert_eq!(sampling.counts(), (0, 0));
}

/// Of many traces the share that is kept is the one asked for, within three standard deviations, by the
/// sampler and by the tail's rate alike; and each stands for as many as it should.
#[test]
fn ratios_are_within_three_sigma() {
    const N: usize = 60_000;
    for ratio in [0.01, 0.1, 0.5, 0.9] {
        for config in [head("traceidratio", &ratio.to_string()), tail(ratio)] {
            let mut sampling = Sampling::<()>::new(SamplingConfig {
                keep_errors: false,
                ..config
            });
            let mut kept = 0.0;
            let mut stands_for = 0.0;
            for id in ids(7).take(N) {
                if let Verdict::Keep(how) = sampling.decide(&candidate(&id, "/"), 1) {
                    kept += 1.0;
                    stands_for += how.threshold.adjusted_count();
                }
            }
            let n = N as f64;
            let sigma = (n * ratio * (1.0 - ratio)).sqrt();
            assert!((kept - n * ratio).abs() < 3.0 * sigma, "{ratio}: {kept}");
            assert!(
                (stands_for - n).abs() < 3.0 * sigma / ratio,
                "{ratio}: {stands_for}"
            );
        }
    }
}

/// Two agents with the same ratio keep the same traces; one with a lower ratio keeps some of these and
/// no others.
#[test]
fn agents_agree() {
    let mut first = Sampling::<()>::new(head("traceidratio", "0.3"));
    let mut second = Sampling::<()>::new(head("parentbased_traceidratio", "0.3"));
    let mut fewer = Sampling::<()>::new(head("traceidratio", "0.1"));
    for id in ids(3).take(5000) {
        let candidate = candidate(&id, "/");
        let kept = keeps(&mut first, &candidate);
        assert_eq!(kept, keeps(&mut second, &candidate));
        assert!(!keeps(&mut fewer, &candidate) || kept);
    }
}

/// A caller's decision is followed where the sampler is based on it, and only there.
#[test]
fn follows_the_caller() {
    for (name, sampled, want) in [
        ("parentbased_always_on", Some(false), false),
        ("parentbased_always_on", Some(true), true),
        ("parentbased_always_off", Some(true), true),
        ("parentbased_always_off", None, false),
        ("parentbased_traceidratio", Some(true), true),
        ("always_on", Some(false), true),
        ("always_off", Some(true), false),
    ] {
        let mut sampling = Sampling::<()>::new(head(name, "0"));
        let id = [7; 16];
        let candidate = Candidate {
            parent_sampled: sampled,
            ..candidate(&id, "/")
        };
        assert_eq!(keeps(&mut sampling, &candidate), want, "{name} {sampled:?}");
        // What comes later in the trace has no caller outside, and follows.
        let call = Candidate {
            parent_sampled: None,
            served: false,
            ..candidate
        };
        assert_eq!(keeps(&mut sampling, &call), want, "{name} {sampled:?}");
    }
}

/// Every error and every slow request is kept, and none of them is counted for more than itself.
#[test]
fn errors_and_slow_requests_are_kept() {
    let mut sampling = Sampling::<()>::new(SamplingConfig {
        keep_slow: Some(Slow::Over(Duration::from_millis(500))),
        ..tail(0.01)
    });
    let (mut others, mut kept) = (0, 0);
    for (n, id) in ids(9).take(20_000).enumerate() {
        let (error, slow) = (n % 10 == 0, n % 10 == 1);
        let candidate = Candidate {
            error,
            duration: if slow { 500_000_001 } else { 500_000_000 },
            ..candidate(&id, "/")
        };
        let verdict = sampling.decide(&candidate, n as u64);
        let reason = match verdict {
            Verdict::Keep(how) => Some((how.reason, how.threshold)),
            _ => None,
        };
        match (error, slow) {
            (true, _) => assert_eq!(reason, Some((Reason::Error, Threshold::KEEP))),
            (_, true) => assert_eq!(reason, Some((Reason::Slow, Threshold::KEEP))),
            _ => {
                others += 1;
                kept += usize::from(reason.is_some());
            }
        }
    }
    assert!(kept < others / 50, "{kept} of {others}");
}

/// What is slow for a route is told by the route's own durations: one in a hundred, and what is usual
/// for a slow route is not slow.
#[test]
fn slow_is_what_is_slow_for_the_route() {
    let mut sampling = Sampling::<()>::new(SamplingConfig {
        keep_slow: Some(Slow::RouteP99),
        ..tail(0.0)
    });
    let mut rng = fastrand::Rng::with_seed(4);
    let mut kept = [0; 2];
    for (n, id) in ids(5).take(40_000).enumerate() {
        let route = n % 2;
        let usual = [1e6, 1e9][route];
        let candidate = Candidate {
            duration: (usual * (1.0 + rng.f64())) as u64,
            ..candidate(&id, ["/fast", "/slow"][route])
        };
        let now = n as u64 * SECOND / 1000;
        kept[route] += usize::from(matches!(sampling.decide(&candidate, now), Verdict::Keep(_)));
    }
    for kept in kept {
        assert!((100..400).contains(&kept), "1 % of 20,000 are slow: {kept}");
    }
}

/// With a target, a flood on one route keeps near it, and leaves a rare route whole.
#[test]
fn rare_routes_survive_a_flood() {
    let mut sampling = Sampling::<()>::new(SamplingConfig {
        traces_per_second: Some(50.0),
        keep_errors: false,
        ..SamplingConfig::default()
    });
    let mut ids = ids(6);
    let mut seen = |sampling: &mut Sampling<()>, route: &str, now: u64| {
        let id = ids.next().expect("one more");
        match sampling.decide(&candidate(&id, route), now) {
            Verdict::Keep(how) => how.threshold.adjusted_count(),
            _ => 0.0,
        }
    };
    let (mut rare, mut flood, mut flood_stands_for) = (0, Vec::new(), 0.0);
    for second in 0..30u64 {
        let mut kept = 0;
        for n in 0..5000 {
            let now = second * SECOND + n * SECOND / 5000;
            let stands_for = seen(&mut sampling, "/flood", now);
            kept += u64::from(stands_for > 0.0);
            flood_stands_for += stands_for;
            if n % 1000 == 999 {
                rare += u64::from(seen(&mut sampling, "/rare", now) > 0.0);
            }
        }
        flood.push(kept);
    }
    assert_eq!(rare, 150, "five a second, all of them");
    assert!(flood[0] < 500, "the flood's first second: {flood:?}");
    let steady: u64 = flood[2..].iter().sum();
    let expected = 45.0 * 28.0;
    assert!(
        (steady as f64 - expected).abs() < 0.25 * expected,
        "{flood:?}"
    );
    assert!(
        (flood_stands_for / 150_000.0 - 1.0).abs() < 0.2,
        "{flood_stands_for}"
    );
}

/// An error in a call makes the whole trace stay, the request that was kept back and its calls before;
/// after the hold it is too late, and nothing of the trace is kept.
#[test]
fn a_late_error_keeps_the_whole_trace() {
    let mut sampling = Sampling::new(tail(0.0));
    let (early, late) = ([1; 16], [2; 16]);
    for id in [&early, &late] {
        assert_eq!(sampling.decide(&candidate(id, "/"), 1), Verdict::Hold);
        sampling.hold(id, "request");
        let call = Candidate {
            served: false,
            ..candidate(id, "/")
        };
        assert_eq!(sampling.decide(&call, 2), Verdict::Hold);
        sampling.hold(id, "call");
    }
    let failed = |id| Candidate {
        served: false,
        error: true,
        ..candidate(id, "/")
    };
    let failed_early = failed(&early);
    let verdict = sampling.decide(&failed_early, SECOND);
    let threshold = Threshold::KEEP;
    assert_eq!(
        verdict,
        Verdict::Keep(Kept {
            reason: Reason::Error,
            threshold
        })
    );
    assert_eq!(sampling.release(&early), ["request", "call"]);
    let failed_late = failed(&late);
    assert_eq!(sampling.decide(&failed_late, 3 * SECOND), Verdict::Drop);
    assert_eq!(sampling.release(&late), Vec::<&str>::new());
    assert_eq!(sampling.counts(), (3, 0));
}

/// At the end what is still kept back is dropped and counted: nothing goes without a word.
#[test]
fn the_end_decides() {
    let mut sampling = Sampling::new(tail(0.0));
    for id in ids(5).take(20) {
        assert_eq!(sampling.decide(&candidate(&id, "/"), 1), Verdict::Hold);
        sampling.hold(&id, ());
        sampling.hold(&id, ());
    }
    assert_eq!(sampling.counts(), (0, 0));
    sampling.finish();
    assert_eq!(sampling.counts(), (40, 0));
    assert!(sampling.held.is_empty() && sampling.due.is_empty());
}

/// What is kept back, and what is remembered, stay bounded; the oldest go first, and are counted.
#[test]
fn is_bounded() {
    let mut sampling = Sampling::new(SamplingConfig {
        held_max: 10,
        ..tail(0.0)
    });
    let all: Vec<_> = ids(8).take(2 * DECIDED_MAX).collect();
    for id in &all {
        assert_eq!(sampling.decide(&candidate(id, "/"), 1), Verdict::Hold);
        sampling.hold(id, ());
    }
    assert_eq!(sampling.held_items, 10);
    assert_eq!(sampling.decided.len(), DECIDED_MAX);
    assert_eq!(sampling.order.len(), DECIDED_MAX);
    let (dropped, hastened) = sampling.counts();
    assert_eq!(
        (dropped, hastened),
        (all.len() as u64 - 10, all.len() as u64 - 10)
    );
    sampling.tick(10 * SECOND);
    assert_eq!(sampling.counts().0, all.len() as u64);
    assert!(sampling.held.is_empty() && sampling.due.is_empty());
}

/// Routes without end share what is known of them.
#[test]
fn routes_are_bounded() {
    let mut sampling = Sampling::<()>::new(SamplingConfig {
        traces_per_second: Some(1e6),
        ..SamplingConfig::default()
    });
    for (n, id) in ids(2).take(5000).enumerate() {
        assert!(keeps(&mut sampling, &candidate(&id, &format!("/{n}"))));
    }
}

proptest! {
    /// Whatever comes in which order, all that comes of a trace within the hold is kept or nothing is;
    /// and all of it is, where there was an error.
    #[test]
    fn traces_are_whole(
        ratio in 0.0..1.0f64,
        spans in proptest::collection::vec((0usize..8, any::<bool>(), 0u8..12), 1..60),
        seed in any::<u64>(),
    ) {
        let all: Vec<_> = ids(seed).take(8).collect();
        let mut sampling = Sampling::new(tail(ratio));
        let mut kept: Vec<Vec<usize>> = vec![Vec::new(); 8];
        for (n, (trace, served, error)) in spans.iter().enumerate() {
            let id = &all[*trace];
            let candidate = Candidate {
                served: *served,
                error: *error == 0,
                ..candidate(id, "/")
            };
            match sampling.decide(&candidate, n as u64) {
                Verdict::Keep(_) => {
                    kept[*trace].extend(sampling.release(id));
                    kept[*trace].push(n);
                }
                Verdict::Hold => sampling.hold(id, n),
                Verdict::Drop => {}
            }
        }
        sampling.tick(u64::MAX);
        for (trace, kept) in kept.iter().enumerate() {
            let of_trace = spans.iter().enumerate().filter(|(_, (t, ..))| *t == trace);
            let all: Vec<_> = of_trace.clone().map(|(n, _)| n).collect();
            let failed = of_trace.clone().any(|(_, (_, _, error))| *error == 0);
            prop_assert!(kept.is_empty() && !failed || *kept == all, "{kept:?} of {all:?}");
        }
    }
}
