//! The gate: every call that a service makes is put under the request that caused it, or under none;
//! under another, never.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod hidden;
mod lives;
mod odd;
mod servers;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use support::{Agent, Seen, can_run, side_by_side};
use xtask::bed::{
    load::{Load, Request, Target},
    service::{Http, Loop, Service},
    tree,
    venv::{Venv, WEB, python},
};

/// A client span, in OTLP's numbering.
const CLIENT: u64 = 3;

const CONNECTIONS: usize = 64;

/// What the services need, all of it wheels.
const IN_TREE: [&str; 5] = ["fastapi", "httptools", "httpx", "uvicorn", "uvloop"];

/// How long an agent may take to follow what it should, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The ways in which `callers.py` makes calls, and how many a request of each makes.
const WAYS: [(&str, usize); 17] = [
    ("await", 2),
    ("task", 1),
    ("gather", 3),
    ("wait_for", 1),
    ("shield", 1),
    ("nested", 2),
    ("detached", 1),
    ("descendant", 2),
    ("call_later", 1),
    ("sync", 1),
    ("to_thread", 1),
    ("executor", 1),
    ("generator", 2),
    ("stream", 3),
    ("background", 2),
    ("variable", 2),
    ("middleware", 3),
];

/// Ways that make calls when their request is over.
const AFTERWARDS: [&str; 4] = ["detached", "descendant", "call_later", "background"];

/// Verdicts on the calls of a service, by way.
type All = BTreeMap<String, Verdicts>;

/// Verdicts on the calls of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Verdicts {
    right: usize,
    none: usize,
    wrong: usize,
}

/// A service that makes calls, and the one that it calls.
struct Services {
    backend: Service,
    callers: Service,
}

impl Services {
    fn start(event_loop: Loop, http: Http, venv: Option<&Venv>, args: &[&str]) -> Self {
        Self::start_with(event_loop, http, venv, args, &[])
    }

    fn start_with(
        event_loop: Loop,
        http: Http,
        venv: Option<&Venv>,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        // Longer than clients keep connections: none is closed in the moment in which it is used again.
        let backend = Service::builder()
            .arg("--timeout-keep-alive")
            .arg("60")
            .start()
            .unwrap();
        let assets = xtask::paths::workspace().join("xtask/assets/callers.py");
        let mut builder = Service::builder()
            .app(assets)
            .event_loop(event_loop)
            .http(http)
            .env("BACKEND", format!("http://{}/callees", backend.addr()))
            .env("MIDDLEWARE", "1");
        if let Some(venv) = venv {
            builder = builder.venv(venv);
        }
        for arg in args {
            builder = builder.arg(arg);
        }
        for (name, value) in env {
            builder = builder.env(name, value);
        }
        let callers = builder.start().unwrap();
        Self { backend, callers }
    }

    /// Sends `rounds` requests of every way, all at once as far as connections go.
    fn load(&self, rounds: usize) {
        let requests = (0..rounds).flat_map(|round| {
            WAYS.iter()
                .map(move |(way, _)| Request::get(format!("/{way}/{way}-{round}")))
        });
        let truth = Load::new(self.target(), requests)
            .connections(CONNECTIONS)
            .run()
            .unwrap();
        let broken: Vec<_> = truth.iter().filter(|request| !request.complete).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// Contexts are followed from the first call on; queues from the first that a thread made without a
    /// context; a pool's loop is known once it was seen.
    fn warm_up(&self, agent: &Agent, args: &[&str]) {
        let request = |way: &str| {
            let warm_up = Request::get(format!("/{way}/warm"));
            Load::new(self.target(), [warm_up]).run().unwrap();
        };
        request("await");
        if !args.contains(&"--no-lineage") {
            // A call that came before its interpreter was read does not tell.
            agent.wait_for("following the contexts", || request("await"));
        }
        if args.is_empty() {
            agent.wait_for("work off a queue", || request("executor"));
        }
    }

    fn target(&self) -> Target {
        self.callers.target.clone()
    }

    /// Traces the service under load, and judges every call of it.
    fn judge(&self, rounds: usize, args: &[&str]) -> (All, Seen) {
        let pid = self.callers.pid.to_string();
        let agent = Agent::start(&[&["--pid", &pid], args].concat());
        self.warm_up(&agent, args);
        Load::new(self.target(), [Request::get("/nobody")])
            .run()
            .unwrap();
        self.load(rounds);
        thread::sleep(Duration::from_millis(700));
        let seen = agent.stop();
        assert!(self.backend.pid != self.callers.pid);
        (verdicts(&seen), seen)
    }
}

impl Agent {
    /// Does something every now and then until the log says this.
    fn wait_for(&self, words: &str, meanwhile: impl FnMut()) {
        self.wait_for_all(words, 1, meanwhile);
    }

    /// The same, so many times.
    fn wait_for_all(&self, words: &str, count: usize, mut meanwhile: impl FnMut()) {
        let since = Instant::now();
        while self.output().matches(words).count() < count {
            assert!(since.elapsed() < PATIENCE, "{words}?\n{}", self.output());
            meanwhile();
            thread::sleep(Duration::from_millis(200));
        }
        // What was said is done.
        thread::sleep(Duration::from_millis(100));
    }
}

/// Compares the request's id in each call's path with that in its parent's.
fn verdicts(seen: &Seen) -> All {
    let parents: HashMap<&str, &str> = seen
        .spans
        .iter()
        .map(|span| (span.id.as_str(), span.text("url.path")))
        .collect();
    let mut all: All = BTreeMap::new();
    for span in seen.spans.iter().filter(|span| span.kind == CLIENT) {
        let url = span.text("url.full");
        let Some((_, path)) = url.split_once("/callees/") else {
            continue;
        };
        let (way, rest) = path.split_once('/').unwrap();
        let (request, _) = rest.split_once('/').unwrap();
        if request.starts_with("warm") {
            continue;
        }
        let verdicts = all.entry(way.to_owned()).or_default();
        let link = span.text("decnet.link");
        if span.parent.is_empty() {
            assert_eq!(link, "none");
            verdicts.none += 1;
        } else if parents.get(span.parent.as_str()) == Some(&&*format!("/{way}/{request}")) {
            assert_eq!(link, "exact");
            verdicts.right += 1;
        } else {
            let parent = parents.get(span.parent.as_str());
            println!("wrong: {url} of pid {} is under {parent:?}", span.pid);
            verdicts.wrong += 1;
        }
    }
    all
}

/// How many are right, none and wrong in the ways that are asked for.
fn count(all: &All, wanted: impl Fn(&str) -> bool) -> (usize, usize, usize) {
    all.iter().filter(|(way, _)| wanted(way)).fold(
        (0, 0, 0),
        |(right, none, wrong), (_, verdicts)| {
            (
                right + verdicts.right,
                none + verdicts.none,
                wrong + verdicts.wrong,
            )
        },
    )
}

/// Every call was seen, once: of each way as many as so many requests make.
fn check_complete(all: &All, ways: &[(&str, usize)], rounds: usize, output: &str) {
    for (way, calls) in ways {
        let seen = all.get(*way).copied().unwrap_or_default();
        let seen = seen.right + seen.none + seen.wrong;
        assert_eq!(seen, calls * rounds, "{way}: {all:#?}\n{output}");
    }
}

/// No call is missing and none under a wrong request; calls of open requests are known but for one in a
/// thousand; nobody's are nobody's.
fn check(all: &All, rounds: usize, afterwards_too: bool, seen: &Seen) {
    println!("{all:#?}");
    check_complete(all, &WAYS, rounds, &seen.output);
    let (_, _, wrong) = count(all, |_| true);
    assert_eq!(wrong, 0, "{all:#?}\n{}", seen.output);
    let (right, none, _) = count(all, |way| {
        way != "nobody" && (afterwards_too || !AFTERWARDS.contains(&way))
    });
    assert!(
        right > 0 && none * 1_000 <= right,
        "{all:#?}\n{}",
        seen.output
    );
    assert_eq!(all["nobody"].right, 0);
    assert!(all["nobody"].none > 0);
}

/// Rounds of all ways that make 20,000 calls and more.
const MANY: usize = 700;

/// uvloop and httptools, 20,000 calls and more: on Debian's stripped interpreter, and on one of pyenv's.
#[test]
fn uvloop_httptools() {
    if can_run() {
        many_calls(Loop::Uvloop, Http::Httptools);
    }
}

/// asyncio and h11, likewise.
#[test]
fn asyncio_h11() {
    if can_run() {
        many_calls(Loop::Asyncio, Http::H11);
    }
}

fn many_calls(event_loop: Loop, http: Http) {
    let newer = python("3.13").or_else(|| python("3.12"));
    let newer = newer.map(|python| Venv::ensure(&python, WEB).unwrap());
    if newer.is_none() {
        println!("SKIPPED: {event_loop} on a CPython beside the system's, of which there is none");
    }
    let mut cases = vec![None];
    cases.extend(newer.map(Some));
    side_by_side(&cases, |venv| {
        let services = Services::start(event_loop, http, venv.as_ref(), &[]);
        let (all, seen) = services.judge(MANY, &[]);
        println!(
            "{event_loop}, {http}, {:?}",
            venv.as_ref().map(Venv::version)
        );
        check(&all, MANY, true, &seen);
    });
}

/// Each request in a fresh context that is no copy: calls after the response have no owner then.
#[test]
fn reset_contextvars() {
    if !can_run() {
        return;
    }
    let args = ["--reset-contextvars"];
    let services = Services::start(Loop::Uvloop, Http::Httptools, None, &args);
    let (all, seen) = services.judge(80, &[]);
    check(&all, 80, false, &seen);
}

/// Other CPythons at hand than those that make many calls on both loops, each on one of them.
#[test]
fn other_pythons() {
    if !can_run() {
        return;
    }
    let mut at_hand = Vec::new();
    for version in ["3.9", "3.10", "3.12", "3.14", "3.15"] {
        let venv = match python(version) {
            Some(interpreter) => Venv::ensure(&interpreter, WEB),
            None => tree::ensure(version, &IN_TREE),
        };
        match venv {
            Ok(venv) => at_hand.push((version, venv)),
            Err(error) => println!("SKIPPED: identity on CPython {version}: {error:#}"),
        }
    }
    let cases: Vec<_> = at_hand
        .iter()
        .zip([Loop::Asyncio, Loop::Uvloop].into_iter().cycle())
        .map(|((version, venv), event_loop)| (version, venv, event_loop))
        .collect();
    side_by_side(&cases, |&(version, venv, event_loop)| {
        let services = Services::start(event_loop, Http::Httptools, Some(venv), &[]);
        let (all, seen) = services.judge(40, &[]);
        println!("CPython {version}, {event_loop}");
        check(&all, 40, true, &seen);
    });
}

/// The gate notices when a rung is missing: without contexts, or their lineage, nothing is known, without queues nothing of
/// threads that are handed work, and without the ends of contexts links go wrong or missing.
#[test]
fn a_missing_rung_shows() {
    if !can_run() {
        return;
    }
    // Without ends alone addresses are to be used again, by many requests.
    let cases = [
        ("--no-context-ends", 60),
        ("--no-lineage", 30),
        ("--no-socket-contexts", 20),
        ("--no-queues", 20),
    ];
    side_by_side(&cases, |&(missing, rounds)| {
        let args = ["--reset-contextvars"];
        let services = Services::start(Loop::Uvloop, Http::Httptools, None, &args);
        let (all, seen) = services.judge(rounds, &[missing]);
        check_complete(&all, &WAYS, rounds, &seen.output);
        match missing {
            "--no-lineage" | "--no-socket-contexts" => {
                let (right, _, wrong) = count(&all, |_| true);
                assert_eq!((right, wrong), (0, 0), "{all:#?}");
            }
            "--no-queues" => {
                let executor = all["executor"];
                assert_eq!((executor.right, executor.none, executor.wrong), (0, 20, 0));
            }
            _ => {
                let (right, none, wrong) = count(&all, |way| {
                    !AFTERWARDS.contains(&way) && way != "nobody" && way != "executor"
                });
                let (bad, good) = (wrong + none, right);
                assert!(bad * 20 > good, "the missing ends did not show: {all:#?}");
            }
        }
    });
}
