//! The store at work: what a load's client knows is in it, whatever happens to agent, disk and file.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[expect(dead_code, reason = "other tests need more of it")]
mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use decnet_trace::telemetry::clock;
use rustix::process::Signal;
use serde_json::Value;
use support::Agent;
use xtask::bed::{
    load::{Load, Request, Truth},
    process::Folder,
    service::Service,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `decnet-trace requests ARGS` on a store.
fn requests(store: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .arg("requests")
        .args(args)
        .arg("--store")
        .arg(store)
        .output()
        .unwrap()
}

/// The traces that it prints.
fn traces(store: &Path, args: &[&str]) -> Vec<Value> {
    let output = requests(store, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(output: &Output) -> (Option<i32>, String) {
    let all = [&*output.stdout, &*output.stderr].concat();
    (output.status.code(), String::from_utf8(all).unwrap())
}

fn all() -> [&'static str; 2] {
    ["--last", "1000000"]
}

/// An agent that stores what a service does, and nothing of anything else.
fn agent(service: &Service, store: &Path, args: &[&str]) -> Agent {
    let pid = service.pid.to_string();
    let store = store.to_str().unwrap();
    Agent::start(&[&["--pid", &pid, "--store", store], args].concat())
}

fn mix() -> Vec<Request> {
    vec![
        Request::get("/"),
        Request::get("/items/7"),
        Request::get("/items/8?verbose=yes"),
        Request::get("/sized/300"),
        Request::get("/sync"),
        Request::get("/nowhere"),
        Request::get("/error"),
    ]
}

/// Waits until that many requests are in the store.
fn wait_for(store: &Path, count: usize) -> Vec<Value> {
    let begin = Instant::now();
    loop {
        let output = requests(store, &[&all()[..], &["--json"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        if text.lines().count() >= count {
            return text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{} of {count} requests",
            text.lines().count()
        );
        thread::sleep(Duration::from_millis(200));
    }
}

fn matching<'a>(truth: &'a [Truth], path: &str) -> impl Iterator<Item = &'a Truth> {
    truth.iter().filter(move |one| {
        let own = &one.request.path;
        own.split_once('?').map_or(&**own, |(path, _)| path) == path
    })
}

/// What the store says of a load is what its client counted: by path, status and size, the failed ones,
/// the slowest; read while the agent writes, and again after it has gone, and samples are there.
#[test]
fn agrees_with_the_client() {
    if !support::can_run() {
        return;
    }
    const REQUESTS: usize = 7000;
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    let service = Service::builder().start().unwrap();
    let agent = agent(&service, &store, &["--rate", "199"]);
    let target = service.target.clone();
    let load = thread::spawn(move || {
        Load::new(target, mix())
            .connections(16)
            .count(REQUESTS)
            .run()
            .unwrap()
    });
    // Whoever reads meanwhile gets whole traces.
    while !load.is_finished() {
        for trace in traces_or_none(&store) {
            let first = &trace["spans"][0];
            assert!(first["attributes"]["url.path"].is_string(), "{trace}");
        }
    }
    let truth = load.join().unwrap();
    let during = wait_for(&store, REQUESTS);
    assert_eq!(during.len(), REQUESTS);
    let seen = agent.stop();
    assert_eq!(seen.counter("store_spans_written"), REQUESTS as u64);
    assert!(seen.counter("store_samples_written") > 0, "{}", seen.output);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store), 0o700);
    assert_eq!(mode(&store.join("traces.db")), 0o600);

    let after = traces(&store, &all());
    assert_eq!(after.len(), REQUESTS);
    for path in [
        "/",
        "/items/7",
        "/items/8",
        "/sized/300",
        "/sync",
        "/nowhere",
        "/error",
    ] {
        let expected: Vec<_> = matching(&truth, path)
            .map(|one| (i64::from(one.status), one.request_bytes, one.response_bytes))
            .collect();
        let mut found: Vec<_> = after
            .iter()
            .map(|trace| &trace["spans"][0])
            .filter(|span| span["attributes"]["url.path"] == path)
            .map(|span| {
                let size = |name: &str| span["attributes"][name].as_u64().unwrap();
                let status = span["status"].as_i64().unwrap();
                (
                    status,
                    size("http.request.size"),
                    size("http.response.size"),
                )
            })
            .collect();
        let mut expected = expected;
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{path}");
    }
    let failed = matching(&truth, "/error").count();
    assert_eq!(
        traces(&store, &["--errors", "--last", "1000000"]).len(),
        failed
    );
    let items = matching(&truth, "/items/7").count() + matching(&truth, "/items/8").count();
    let by_route = traces(&store, &["--route", "/items/*", "--last", "1000000"]);
    assert_eq!(by_route.len(), items);
    assert!(traces(&store, &["--service", "somebody-else"]).is_empty());
    assert_eq!(traces(&store, &["--since", "1h"]).len(), 10);

    let mut durations: Vec<f64> = after.iter().map(duration_of_request).collect();
    durations.sort_unstable_by(|a, b| b.total_cmp(a));
    let slowest: Vec<f64> = traces(&store, &["--slowest", "20"])
        .iter()
        .map(duration_of_request)
        .collect();
    assert_eq!(slowest, durations[..20]);
}

fn duration_of_request(trace: &Value) -> f64 {
    trace["spans"][0]["duration"].as_f64().unwrap()
}

/// The traces that there are, while there may be none yet.
fn traces_or_none(store: &Path) -> Vec<Value> {
    match store.join("traces.db").exists() {
        true => {
            let output = requests(store, &["--last", "50", "--json"]);
            let (code, said) = text(&output);
            assert!(matches!(code, Some(0 | 4)), "{said}");
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        }
        false => Vec::new(),
    }
}

/// A request's statement stands under it, as `--last` draws it, and `show` finds the trace by its first
/// digits; unknown and ambiguous ones end with the codes that scripts rely on.
#[test]
fn shows_a_trace() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    let missing = requests(&store, &[]);
    assert_eq!(text(&missing).0, Some(4), "{}", text(&missing).1);
    let service = Service::builder().start().unwrap();
    let agent = agent(&service, &store, &[]);
    let request = |count: usize| {
        Load::new(service.target.clone(), vec![Request::get("/db?user=7")])
            .connections(2)
            .count(count)
            .run()
            .unwrap();
    };
    // The first statements come before it is known for whom aiosqlite's thread works.
    let begin = Instant::now();
    while !agent.output().contains("work off a queue") {
        assert!(begin.elapsed() < PATIENCE, "{}", agent.output());
        request(1);
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_millis(200));
    request(40);
    // The last are in the store when nothing more comes.
    let mut stored = wait_for(&store, 40).len();
    loop {
        thread::sleep(Duration::from_millis(1_500));
        let before = stored;
        stored = traces(&store, &all()).len();
        if stored == before {
            break;
        }
    }
    let (code, last) = text(&requests(&store, &["--last", "40"]));
    assert_eq!(code, Some(0), "{last}");
    let drawn: Vec<_> = last.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(drawn.len(), 40 * 3, "{last}");
    for trace in drawn.chunks(3) {
        let [head, request, statement] = trace else {
            panic!("{last}");
        };
        assert!(
            head.contains("  trace ") && head.contains("  2 spans, "),
            "{head}"
        );
        assert!(
            request.starts_with("GET /db ") && request.contains(" 200 "),
            "{request}"
        );
        assert!(
            statement.starts_with("└─ → SELECT users  sqlite "),
            "{statement}"
        );
    }
    let all = traces(&store, &["--last", "40"]);
    let id = all[3]["trace_id"].as_str().unwrap();
    let shown = text(&requests(&store, &["show", &id[..12], "--attributes"]));
    assert_eq!(shown.0, Some(0), "{}", shown.1);
    for part in [
        "GET /db ",
        "└─ → SELECT users",
        "200",
        "█",
        id,
        "http.response.status_code",
        "db.query.text",
    ] {
        assert!(shown.1.contains(part), "{part}: {}", shown.1);
    }
    assert!(!shown.1.contains('\x1b'), "{}", shown.1);
    assert!(shown.1.lines().all(|line| line.chars().count() <= 110));
    for (prefix, code) in [("", 2), ("zz", 4), ("no-id", 4)] {
        let output = text(&requests(&store, &["show", prefix]));
        assert_eq!(output.0, Some(code), "{prefix:?}: {}", output.1);
        assert_eq!(output.1.lines().count(), 1, "{}", output.1);
    }
    for (args, code) in [
        (&["--since", "soon"][..], 2),
        (&["--last", "0"], 2),
        (&["--last", "--slowest"], 2),
        (&["--route", "["], 2),
    ] {
        let output = text(&requests(&store, args));
        assert_eq!(output.0, Some(code), "{args:?}: {}", output.1);
    }
    agent.stop();
}

/// Killed in mid-write, again and again: the store is whole, and each request in it too; what ended two seconds
/// before is there, once; and the next agent goes on with it.
#[test]
fn survives_being_killed() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    let service = Service::builder().start().unwrap();
    let mut before = 0;
    for round in 0..3_u64 {
        let mut agent = agent(&service, &store, &["--rate", "99"]);
        let target = service.target.clone();
        let load = thread::spawn(move || {
            Load::new(target, mix())
                .connections(8)
                .duration(Duration::from_secs(4))
                .run()
                .unwrap()
        });
        // Somewhere between one batch and the next.
        thread::sleep(Duration::from_millis(2800 + 371 * round));
        let killed = clock::read(libc::CLOCK_MONOTONIC);
        agent.signal(Signal::KILL);
        assert!(!agent.wait().success());
        let dead = clock::read(libc::CLOCK_MONOTONIC);
        let truth = load.join().unwrap();
        let found = traces(&store, &all());
        let ended = |by: u64| truth.iter().filter(|one| one.end < by).count();
        let (stored, due) = (found.len() - before, ended(killed - 2_000_000_000));
        println!(
            "round {round}: {stored} stored, {due} were due, {} ended",
            ended(dead)
        );
        assert!(
            due > 0 && stored >= due,
            "{stored} of {due} in round {round}"
        );
        // The client learns of an end after the service.
        assert!(stored <= ended(dead) + 8, "{stored} in round {round}");
        before = found.len();
        for trace in &found {
            let span = &trace["spans"][0]["attributes"];
            for name in [
                "url.path",
                "http.request.method",
                "network.peer.port",
                "decnet.end",
            ] {
                assert!(!span[name].is_null(), "{name}: {trace}");
            }
        }
    }
    let connection = rusqlite::Connection::open(store.join("traces.db")).unwrap();
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

/// A file system of its own, of so many KiB; unmounted when it is dropped.
struct Tmpfs {
    path: PathBuf,
    _folder: Folder,
}

impl Tmpfs {
    fn new(kib: u32) -> Self {
        let folder = Folder::new().unwrap();
        let path = folder.path().join("small");
        fs::create_dir(&path).unwrap();
        mount(
            &["-t", "tmpfs", "-o", &format!("size={kib}k"), "small"],
            &path,
        );
        Self {
            path,
            _folder: folder,
        }
    }
}

fn mount(args: &[&str], path: &Path) {
    let status = Command::new("mount").args(args).arg(path).status();
    assert!(status.unwrap().success());
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

/// The disk fills up: tracing goes on and says so once; when there is room again, what comes then is
/// stored. After the agent has gone, what is there can be read though nothing can be written.
#[test]
fn full_disk() {
    if !support::can_run() {
        return;
    }
    let disk = Tmpfs::new(4096);
    let store = disk.path.join("store");
    let service = Service::builder().start().unwrap();
    let agent = agent(&service, &store, &["--rate", "0"]);
    let send = |count| {
        Load::new(service.target.clone(), mix())
            .connections(8)
            .count(count)
            .run()
            .unwrap();
    };
    send(700);
    wait_for(&store, 700);
    let ballast = disk.path.join("ballast");
    // As much as there is room for.
    let _ = fs::write(&ballast, vec![0; 4 << 20]);
    send(7000);
    let begin = Instant::now();
    while !agent.output().contains("full") {
        assert!(begin.elapsed() < PATIENCE, "{}", agent.output());
        thread::sleep(Duration::from_millis(100));
    }
    fs::remove_file(&ballast).unwrap();
    while !agent.output().contains("works again") {
        assert!(begin.elapsed() < PATIENCE, "{}", agent.output());
        thread::sleep(Duration::from_millis(100));
    }
    send(70);
    wait_for(&store, 7770);
    let seen = agent.stop();
    let said = seen.output.lines().filter(|line| line.contains("full"));
    assert_eq!(said.count(), 1, "{}", seen.output);
    assert_eq!(seen.counter("store_spans_written"), 7770, "{}", seen.output);
    mount(&["-o", "remount,ro"], &disk.path);
    assert_eq!(traces(&store, &all()).len(), 7770);
}

/// A broken file is moved aside and said so, a second agent goes on without, and a folder that cannot be
/// written to ends the agent before it begins, in one line.
#[test]
fn odd_folders() {
    if !support::can_run() {
        return;
    }
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(store.join("traces.db"), "x".repeat(10_000)).unwrap();
    let service = Service::builder().start().unwrap();
    let first = agent(&service, &store, &[]);
    assert!(
        first.output().contains("was broken: moved to"),
        "{}",
        first.output()
    );
    let second = agent(&service, &store, &[]);
    assert!(
        second
            .output()
            .contains("another decnet-trace writes to it"),
        "{}",
        second.output()
    );
    Load::new(service.target.clone(), mix())
        .count(14)
        .run()
        .unwrap();
    wait_for(&store, 14);
    assert_eq!(second.stop().spans.len(), 14);
    assert_eq!(first.stop().counter("store_spans_written"), 14);

    let disk = Tmpfs::new(1024);
    mount(&["-o", "remount,ro"], &disk.path);
    let pid = service.pid.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .args(["run", "--pid", &pid, "--duration", "1", "--store"])
        .arg(disk.path.join("store"))
        .output()
        .unwrap();
    let (code, said) = text(&output);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
}

/// The CPU time of a process's threads with that name, or of all of them, in seconds.
fn cpu(pid: u32, name: Option<&str>) -> f64 {
    let ticks: u64 = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter(|stat| name.is_none_or(|name| stat.contains(&format!("({name})"))))
        .map(|stat| {
            let (_, fields) = stat.rsplit_once(')').unwrap();
            // Fields 14 and 15 of proc_pid_stat(5), counted from 3.
            let fields = fields.split_whitespace().skip(11).take(2);
            fields
                .map(|ticks| ticks.parse::<u64>().unwrap())
                .sum::<u64>()
        })
        .sum();
    // SAFETY: the call takes a number and cannot fail for this one.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// 1,000 requests a second for ten minutes: every one is stored; says what that costs. It takes too long
/// to be run with the others.
#[test]
#[ignore = "takes ten minutes"]
fn thousand_a_second() {
    if !support::can_run() {
        return;
    }
    let seconds = std::env::var("DECNET_TRACE_STORE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(600);
    let folder = Folder::new().unwrap();
    let store = folder.path().join("store");
    let service = Service::builder().start().unwrap();
    let agent = agent(&service, &store, &[]);
    let pid = agent.pid();
    let before = (cpu(pid, None), cpu(pid, Some("store")));
    let truth = Load::new(service.target.clone(), mix())
        .connections(32)
        .rate(1000.0)
        .duration(Duration::from_secs(seconds))
        .run()
        .unwrap();
    let count = truth.len();
    let (all, own) = (
        cpu(pid, None) - before.0,
        cpu(pid, Some("store")) - before.1,
    );
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory: Vec<_> = status
        .lines()
        .filter(|line| line.starts_with("VmHWM"))
        .collect();
    // The spans file of the tests is a sink like any other, and part of the agent's CPU time.
    let share = |cpu: f64| 100.0 * cpu / seconds as f64;
    println!("{count} requests in {seconds} s");
    println!(
        "agent {:.2} % of a core, its store {:.2} %, {}",
        share(all),
        share(own),
        memory.join("")
    );
    thread::sleep(Duration::from_secs(3));
    for args in [
        &["--last", "10"][..],
        &["--slowest", "10"],
        &["--errors", "--last", "10"],
        &["--route", "/items/*"],
        &["--since", "1m", "--slowest", "10"],
    ] {
        let began = Instant::now();
        assert!(requests(&store, args).status.success());
        println!("requests {}: {:.0?}", args.join(" "), began.elapsed());
    }
    let seen = agent.stop();
    assert_eq!(
        seen.counter("store_spans_written"),
        count as u64,
        "{}",
        seen.output
    );
    assert_eq!(seen.counter("store_spans_lost_queue_full"), 0);
    let size: u64 = fs::read_dir(&store)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    println!(
        "{size} bytes: {:.0} per request",
        size as f64 / count as f64
    );
}
