//! Services of several processes, which end without warning; and more contexts than there is room for.

use std::{
    collections::HashSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use xtask::bed::{
    load::{Load, Request},
    service::{Http, Loop, Service},
};

use super::{
    Agent, CLIENT, Services, can_run, check_complete, count,
    support::{Span, side_by_side},
    verdicts,
};

/// Ways of `callers.py`, one of each kind, and how many calls a request of each makes.
const WAYS: [(&str, usize); 6] = [
    ("await", 2),
    ("gather", 3),
    ("sync", 1),
    ("executor", 1),
    ("detached", 1),
    ("stream", 3),
];

/// A server span, in OTLP's numbering.
const SERVER: u64 = 2;

/// How many worker processes serve.
const WORKERS: usize = 4;

/// The processes that serve, of those that a supervisor started: not what multiprocessing has beside them.
fn workers(supervisor: u32) -> Vec<u32> {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let is_worker = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("spawn_main")
    };
    let all = fs::read_to_string(children).unwrap();
    let pids = all.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.filter(is_worker).collect()
}

/// Four workers, of which one after the other is killed under load and replaced: nothing hangs, new ones are
/// followed too, what the dead left behind is under its own request or none, and of the requests that were
/// answered none is missing, not even the first of a new worker.
#[test]
fn workers_that_are_killed() {
    if !can_run() {
        return;
    }
    let backend = Service::builder().start().unwrap();
    let callers = Service::builder()
        .app(xtask::paths::workspace().join("xtask/assets/callers.py"))
        .workers(WORKERS as u32)
        .env("BACKEND", format!("http://{}/callees", backend.addr()))
        .start()
        .unwrap();
    let services = Services { backend, callers };
    let port = services.callers.addr().port().to_string();
    let agent = Agent::start(&["--rate", "0", "--port", &port]);
    let warm_up = |way: &'static str| {
        let requests = (0..64).map(|_| Request::get(format!("/{way}/warm")));
        Load::new(services.target(), requests)
            .connections(64)
            .run()
            .unwrap();
    };
    agent.wait_for_all("following the contexts", WORKERS, || warm_up("await"));
    agent.wait_for_all("work off a queue", WORKERS, || warm_up("executor"));
    let load = |rounds: usize, name: &str| {
        let requests = (0..rounds).flat_map(|round| {
            WAYS.iter()
                .map(move |(way, _)| Request::get(format!("/{way}/{name}-{round}")))
        });
        Load::new(services.target(), requests).connections(32)
    };
    let truth = load(80, "calm").run().unwrap();
    assert!(truth.iter().all(|request| request.complete));
    let due = [
        (SERVER, 80 * WAYS.len()),
        (
            CLIENT,
            80 * WAYS.iter().map(|(_, calls)| calls).sum::<usize>(),
        ),
    ];
    agent.wait_until("the spans of the calm", || {
        let spans = agent.spans_so_far();
        due.iter().all(|&(kind, due)| {
            let is_calm = |span: &&Span| {
                let url = if kind == SERVER {
                    "url.path"
                } else {
                    "url.full"
                };
                span.kind == kind && span.text(url).contains("/calm-")
            };
            spans.iter().filter(is_calm).count() >= due
        })
    });
    let seen = super::Seen {
        spans: agent.spans_so_far(),
        output: agent.output(),
    };
    let all = verdicts(&seen);
    println!("calm: {all:#?}");
    check_complete(&all, &WAYS, 80, &seen.output);
    let (right, none, wrong) = count(&all, |_| true);
    assert!(
        right > 0 && none * 1_000 <= right && wrong == 0,
        "{all:#?}\n{}",
        seen.output
    );
    let stop = Arc::new(AtomicBool::new(false));
    let truth = thread::scope(|scope| {
        let load = scope.spawn(|| load(1_000, "killed").rate(300.0).stop_on(&stop).run());
        let mut killed: Vec<u32> = Vec::new();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(400));
            let living = workers(services.callers.pid);
            let next = living.into_iter().find(|pid| !killed.contains(pid));
            if let Some(pid) = next.filter(|_| killed.len() < WORKERS) {
                kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
                killed.push(pid);
            }
        }
        agent.wait_for_all("following the contexts", WORKERS + 1, || {});
        stop.store(true, Ordering::Relaxed);
        assert!(killed.len() >= 3, "{killed:?}");
        let truth = load.join().unwrap().unwrap();
        assert!(truth.len() > 50, "{}", truth.len());
        truth
    });
    thread::sleep(Duration::from_millis(700));
    let seen = agent.stop();
    let all = verdicts(&seen);
    let (answered, broken): (Vec<_>, Vec<_>) = truth.iter().partition(|request| request.complete);
    let served: HashSet<&str> = seen
        .spans
        .iter()
        .filter(|span| span.kind == SERVER)
        .map(|span| span.text("url.path"))
        .collect();
    let missing: Vec<_> = answered
        .iter()
        .filter(|request| !served.contains(&*request.request.path))
        .collect();
    let (right, none, wrong) = count(&all, |_| true);
    println!(
        "killed, {} requests answered, {} broken, {} missing: {right} {none} {wrong} {all:#?}",
        answered.len(),
        broken.len(),
        missing.len()
    );
    assert!(right > 0 && wrong == 0, "{all:#?}\n{}", seen.output);
    let lost = seen.counter("lost_ring_full");
    assert!(
        missing.is_empty() || lost > 0,
        "{missing:?}\n{}",
        seen.output
    );
}

/// Storms of contexts that end at once and pass their addresses on: no identity is mistaken; and where
/// there is no room for all of them, the lost ones are counted, and their calls are nobody's.
#[test]
fn storms() {
    if !can_run() {
        return;
    }
    let cases = [&[][..], &["--identities-max", "16384"][..]];
    side_by_side(&cases, |&args| {
        let services = Services::start(Loop::Uvloop, Http::Httptools, None, &[]);
        let pid = services.callers.pid.to_string();
        let agent = Agent::start(&[&["--rate", "0", "--pid", &pid], args].concat());
        services.warm_up(&agent, args);
        let requests = (0..60).flat_map(|round| {
            ["storm", "await", "gather", "sync"]
                .map(|way| Request::get(format!("/{way}/{way}-{round}")))
        });
        Load::new(services.target(), requests)
            .connections(32)
            .run()
            .unwrap();
        thread::sleep(Duration::from_millis(700));
        let seen = agent.stop();
        let all = verdicts(&seen);
        println!("{args:?}: {all:#?}");
        let (right, none, wrong) = count(&all, |_| true);
        assert_eq!(
            (right + none, wrong),
            (60 * 8, 0),
            "{all:#?}\n{}",
            seen.output
        );
        let evicted = seen.counter("identities_evicted");
        let lost = seen.counter("lost_ring_full");
        if args.is_empty() {
            assert_eq!(evicted, 0);
            assert!(none == 0 || lost > 0, "{all:#?}\n{}", seen.output);
        } else {
            assert!(evicted > 60_000 && none > 0, "{all:#?}\n{}", seen.output);
        }
    });
}
