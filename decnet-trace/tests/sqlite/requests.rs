//! Statements under the requests that caused them: each names its request in the name of a column, so that
//! right and wrong are known.

use std::{
    collections::{BTreeMap, HashMap},
    thread,
    time::{Duration, Instant},
};

use xtask::bed::{
    load::{Load, Request},
    service::{Loop, Service},
    venv::{Venv, WEB, default_python, python},
};

use super::{
    PATIENCE,
    support::{Agent, Seen, can_run, side_by_side},
    wait_until_watched,
};

/// How many statements are right, none and wrong, by way.
type Verdicts = BTreeMap<String, [usize; 3]>;

fn program(name: &str) -> String {
    format!(
        "{}/tests/sqlite/programs/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn request(service: &Service, paths: impl IntoIterator<Item = String>) {
    let truth = Load::new(service.target.clone(), paths.into_iter().map(Request::get))
        .connections(32)
        .run()
        .unwrap();
    assert!(truth.iter().all(|request| request.complete));
}

/// Waits until the agent's log says this.
fn wait_for(agent: &Agent, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !agent.output().contains(words) {
        assert!(Instant::now() < deadline, "{words}?\n{}", agent.output());
        thread::sleep(Duration::from_millis(20));
    }
}

/// `rounds` requests of every way.
fn paths(ways: &[&str], rounds: usize) -> Vec<String> {
    (0..rounds)
        .flat_map(|round| ways.iter().map(move |way| format!("/{way}/{round}")))
        .collect()
}

/// Judges every statement of requests that are no warm-up.
fn verdicts(seen: &Seen) -> Verdicts {
    let parents: HashMap<_, _> = seen
        .spans
        .iter()
        .map(|span| (span.id.as_str(), span.text("url.path")))
        .collect();
    let mut verdicts = Verdicts::new();
    for span in &seen.spans {
        let text = span.text("db.query.text");
        let Some((_, alias)) = text.split_once(" AS ") else {
            continue;
        };
        let mut parts = alias.split('_');
        let (way, request) = (parts.next().unwrap(), parts.next().unwrap());
        if request.starts_with("warm") {
            continue;
        }
        let own = format!("/{way}/{request}");
        let verdict = match parents.get(span.parent.as_str()) {
            None => 1,
            Some(path) if *path == own => 0,
            Some(_) => 2,
        };
        let link = span.text("decnet.link");
        assert_eq!(link == "none", verdict == 1, "{link}");
        verdicts.entry(way.to_owned()).or_default()[verdict] += 1;
    }
    println!("right, none, wrong: {verdicts:#?}");
    verdicts
}

/// Statements that `def` and `async def` routes execute, and those of aiosqlite's thread, are put under
/// their requests, on the system's CPython and on a newer one. What is lost are the first ones: one before contexts are followed, and one that
/// aiosqlite's thread waited for when its queue began to be.
#[test]
fn statements_have_requests() {
    if !can_run() {
        return;
    }
    let newer = python("3.13").or_else(|| python("3.12"));
    if newer.is_none() {
        println!(
            "SKIPPED: statements of requests on CPython 3.12 and later, of which there is none"
        );
    }
    let cases: Vec<_> = [default_python().unwrap()]
        .into_iter()
        .chain(newer)
        .collect();
    side_by_side(&cases, |python| {
        let service = Service::builder()
            .app(program("service.py"))
            .venv(&Venv::ensure(python, WEB).unwrap())
            .start()
            .unwrap();
        let agent = Agent::start(&["--rate", "0", "--pid", &service.pid.to_string()]);
        wait_until_watched(&agent, 1);
        request(&service, ["/sync/warm".to_owned()]);
        wait_for(&agent, "through the queues");
        let ways = ["sync", "cursor", "loop", "aiosqlite"];
        request(&service, paths(&ways, 400));
        thread::sleep(Duration::from_millis(1_200));
        let seen = agent.stop();
        println!("{}", python.display());
        let verdicts = verdicts(&seen);
        assert_eq!(verdicts["sync"], [800, 0, 0]);
        assert_eq!(verdicts["loop"], [400, 0, 0]);
        assert_eq!(verdicts["cursor"], [400, 0, 0]);
        let [right, none, wrong] = verdicts["aiosqlite"];
        assert_eq!((right + none, wrong), (400, 0));
        assert!(none <= 1, "{verdicts:#?}\n{}", seen.output);
    });
}

/// SQLAlchemy's async engine runs its statements in greenlets, for which aiosqlite's threads execute them:
/// they are put under their requests, and the probes harm no greenlet.
#[test]
fn sqlalchemy_in_greenlets() {
    if !can_run() {
        return;
    }
    let packages = [WEB, &["sqlalchemy==2.1.9", "greenlet==3.5.6"]].concat();
    let venv = match default_python().and_then(|python| Venv::ensure(&python, &packages)) {
        Ok(venv) => venv,
        Err(error) => {
            println!("SKIPPED: SQLAlchemy cannot be installed: {error:#}");
            return;
        }
    };
    for event_loop in [Loop::Uvloop, Loop::Asyncio] {
        let mut service = Service::builder()
            .app(program("alchemy.py"))
            .venv(&venv)
            .event_loop(event_loop)
            .start()
            .unwrap();
        let agent = Agent::start(&["--rate", "0", "--pid", &service.pid.to_string()]);
        wait_until_watched(&agent, 1);
        request(&service, ["/orm/warm".to_owned()]);
        wait_for(&agent, "through the queues");
        request(&service, ["/orm/warm".to_owned()]);
        let ways = ["orm", "gathered", "within", "greenlets"];
        request(&service, paths(&ways, 200));
        thread::sleep(Duration::from_millis(1_200));
        let seen = agent.stop();
        assert!(service.is_running().unwrap(), "{:?}", service.output());
        println!("{event_loop}");
        let verdicts = verdicts(&seen);
        for (way, each) in [("orm", 2), ("gathered", 2), ("within", 3), ("greenlets", 1)] {
            let [right, none, wrong] = verdicts[way];
            assert_eq!((right + none, wrong), (200 * each, 0), "{way}");
            assert!(none * 1_000 <= right, "{way}\n{}", seen.output);
        }
    }
}
