//! Traces that their callers do not sample: flag 00 of `traceparent`.

use std::{
    thread,
    time::{Duration, Instant},
};

use xtask::bed::{
    load::{Load, Request},
    service::{Builder, Service},
};

use super::support::{Agent, Seen, Span, can_run, side_by_side};

const CLIENT: u64 = 3;

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests of each kind.
const COUNT: usize = 20;

/// Calls of a request for `/hop/`, and of one for `/named/`.
const CALLS: [(&str, usize); 2] = [("hop", 3), ("named", 1)];

fn hop() -> Builder {
    Service::builder().app(xtask::paths::workspace().join("xtask/assets/hops.py"))
}

/// The trace that a request names: its kind and number are in it.
fn trace(kind: u8, flag: &str, n: usize) -> String {
    let sampled = u8::from(flag == "01");
    format!("abcd{kind:04x}{sampled:04x}{:020x}", n + 1)
}

/// The spans of requests and calls with that flag.
fn spans_of<'a>(seen: &'a Seen, flag: &str) -> Vec<&'a Span> {
    let mark = format!("x{flag}x");
    let is_of = |span: &&Span| match span.kind {
        CLIENT => span.text("url.full").contains(&mark),
        _ => span.text("url.path").contains(&mark),
    };
    seen.spans.iter().filter(is_of).collect()
}

/// Requests of a trace that its caller does not sample leave no span, nor do their calls and what other
/// services serve for those, whether the header is passed on or not; all is counted. Beside them the
/// sampled ones are whole. `always_on` keeps both, in the traces that their callers named.
#[test]
fn callers_that_do_not_sample() {
    if !can_run() {
        return;
    }
    let cases = [&[][..], &["--sampler", "always_on"][..]];
    side_by_side(&cases, |&args| {
        let b = hop().start().unwrap();
        let a = hop()
            .env("NEXT", format!("http://{}", b.addr()))
            .start()
            .unwrap();
        let pids = [a.pid.to_string(), b.pid.to_string()];
        let pids = ["--pid", &pids[0], "--pid", &pids[1], "--rate", "0"];
        let agent = Agent::start(&[&pids, args].concat());
        let since = Instant::now();
        let words = format!("following the contexts of pid {}", a.pid);
        while !agent.output().contains(&words) {
            assert!(since.elapsed() < PATIENCE, "{}", agent.output());
            Load::new(a.target.clone(), [Request::get("/hop/warm")])
                .run()
                .unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_millis(150));
        let requests = (0..COUNT).flat_map(|n| {
            CALLS.iter().zip(0..).flat_map(move |((way, _), kind)| {
                ["00", "01"].map(|flag| {
                    let parent = format!("00-{}-00f067aa0ba902b7-{flag}", trace(kind, flag, n));
                    Request::get(format!("/{way}/{way}x{flag}x{n}")).header("traceparent", &parent)
                })
            })
        });
        let truth = Load::new(a.target.clone(), requests).connections(16).run();
        assert!(truth.unwrap().iter().all(|one| one.status == 200));
        // What is dropped is kept back for two seconds before.
        thread::sleep(Duration::from_millis(3_000));
        let seen = agent.stop();
        // A request, and for each call that and another request.
        let spans: usize = CALLS.iter().map(|(_, calls)| (1 + 2 * calls) * COUNT).sum();
        let dropped = usize::try_from(seen.counter("spans_sampled_out")).unwrap();
        let expected = match args {
            [] => (0, spans),
            _ => (spans, 0),
        };
        let unsampled = spans_of(&seen, "00");
        println!("{args:?}: {} unsampled, {dropped} dropped", unsampled.len());
        assert_eq!((unsampled.len(), dropped), expected, "{}", seen.output);
        let sampled = spans_of(&seen, "01");
        assert_eq!(sampled.len(), spans, "{}", seen.output);
        for (spans, flag) in [(unsampled, "00"), (sampled, "01")] {
            for span in spans {
                let of_them = (0..COUNT).any(|n| {
                    let whole = match span.kind {
                        CLIENT => span.text("url.full"),
                        _ => span.text("url.path"),
                    };
                    let id = whole.rsplit('/').next().unwrap();
                    let id = id.split('.').next().unwrap();
                    (0..).zip(CALLS).any(|(kind, (way, _))| {
                        id == format!("{way}x{flag}x{n}") && span.trace == trace(kind, flag, n)
                    })
                });
                assert!(of_them, "{span:?}");
                assert_eq!(span.text("decnet.link"), "exact", "{span:?}");
            }
        }
    });
}
