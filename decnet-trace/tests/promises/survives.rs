//! What happens to the agent, or around it, stops nothing but itself.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use xtask::bed::{
    load::{Load, Request, monotonic_ns},
    process::{Folder, Process},
    service::Service,
};

use crate::{
    PATIENCE, get,
    support::{self, Agent},
};

/// How long the agent may take to end: what its sinks get to flush, and some for a busy machine.
const END: Duration = Duration::from_secs(15);

/// A collector that is not there, and one that takes connections and never answers: the agent says so
/// once, whatever it sends there, goes on, and ends in time.
#[test]
fn collectors_that_fail() {
    if !support::can_run() {
        return;
    }
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = [&hanging, &absent].map(|l| format!("http://{}", l.local_addr().unwrap()));
    drop(absent);
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    for (endpoint, protocol) in [
        (&endpoints[0], "grpc"),
        (&endpoints[0], "http/protobuf"),
        (&endpoints[1], "grpc"),
        (&endpoints[1], "http/protobuf"),
    ] {
        let args = [
            "--pid",
            &pid,
            "--otlp-endpoint",
            endpoint,
            "--otlp-protocol",
            protocol,
        ];
        let agent = Agent::start(&args);
        for _ in 0..20 {
            assert_eq!(get(service.addr(), "/"), 200);
        }
        sleep(Duration::from_millis(1500));
        if endpoint == &endpoints[1] {
            agent.wait_until("that it fails", || agent.output().contains("fails"));
        }
        let began = Instant::now();
        let seen = agent.stop();
        assert!(began.elapsed() < END, "{endpoint}: {:?}", began.elapsed());
        assert_eq!(seen.spans.len(), 20, "{}", seen.output);
        let lost: u64 = ["otlp_spans_lost_at_stop", "otlp_spans_lost_gave_up"]
            .iter()
            .map(|name| seen.counter(name))
            .sum();
        assert_eq!(lost, 20, "{endpoint} {protocol}: {}", seen.output);
        if endpoint == &endpoints[1] {
            let warnings = seen.output.lines().filter(|line| line.contains(" WARN "));
            let warnings: Vec<_> = warnings.filter(|line| line.contains("fails")).collect();
            // One for spans, metrics and log records together.
            assert_eq!(warnings.len(), 1, "{}", seen.output);
        }
    }
}

/// A file system of its own, of so many KiB; unmounted when it is dropped.
struct Tmpfs(
    PathBuf,
    #[expect(dead_code, reason = "held for its drop")] Folder,
);

impl Tmpfs {
    fn new(kib: u32) -> Self {
        let folder = Folder::new().unwrap();
        let path = folder.path().join("small");
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "small"]);
        assert!(mount.arg(&path).status().unwrap().success());
        Self(path, folder)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The disk is full, and then is not: tracing goes on, what was lost is counted, and no line of the file
/// is broken.
#[test]
fn full_disk() {
    if !support::can_run() {
        return;
    }
    const REQUESTS: usize = 400;
    let disk = Tmpfs::new(128);
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, [0; 100 << 10]).unwrap();
    let file = disk.0.join("spans");
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let folder = Folder::new().unwrap();
    let mut command = crate::agent(&["--pid", &pid, "--spans-file", file.to_str().unwrap()]);
    let mut agent = Process::start(&mut command, &folder.path().join("log")).unwrap();
    agent
        .wait_for(PATIENCE, |log| log.contains("attached:").then_some(()))
        .unwrap();
    let load = Load::new(service.target.clone(), vec![Request::get("/")]);
    assert_eq!(load.count(REQUESTS).run().unwrap().len(), REQUESTS);
    agent
        .wait_for(PATIENCE, |log| log.contains("No space left").then_some(()))
        .unwrap();
    assert_eq!(get(service.addr(), "/"), 200);
    assert!(agent.try_wait().unwrap().is_none());
    // Still full at the end: it ends all the same, and says how much it could not write.
    agent.signal(Signal::TERM);
    let status = agent.wait(END).unwrap();
    let output = agent.output().unwrap();
    assert!(status.success(), "{output}");
    assert!(output.contains("file_spans_lost_at_stop=+"), "{output}");
    // Lines that are not whole would not parse.
    assert!(support::spans(&file).len() < REQUESTS);
}

/// A target that ends is no reason to end.
#[test]
fn target_gone() {
    if !support::can_run() {
        return;
    }
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let agent = Agent::start(&["--pid", &pid]);
    assert_eq!(get(service.addr(), "/items/1"), 200);
    service.signal(Signal::KILL);
    drop(service);
    sleep(Duration::from_millis(500));
    let seen = agent.stop();
    assert_eq!(seen.spans.len(), 1, "{}", seen.output);
}

/// SIGTERM under load: of the requests that were over when it came, none is missing, and none is there
/// that had not begun when the agent ended.
#[test]
fn stopped_under_load() {
    if !support::can_run() {
        return;
    }
    let service = Service::builder().start().unwrap();
    let pid = service.pid.to_string();
    let target = service.target.clone();
    let mut agent = Agent::start(&["--pid", &pid]);
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let load = thread::spawn(move || {
        Load::new(target, vec![Request::get("/"), Request::get("/items/1")])
            .connections(16)
            .duration(PATIENCE)
            .stop_on(&stop)
            .run()
            .unwrap()
    });
    sleep(Duration::from_secs(2));
    let stopped = monotonic_ns();
    agent.signal(Signal::TERM);
    assert!(agent.wait().success(), "{}", agent.output());
    let ended = monotonic_ns();
    // The load outlives it.
    sleep(Duration::from_millis(500));
    over.store(true, Ordering::Relaxed);
    let truth = load.join().unwrap();
    let over = truth.iter().filter(|one| one.end < stopped).count();
    let begun = truth.iter().filter(|one| one.start < ended).count();
    assert!(over > 100, "{over}");
    assert!(begun < truth.len(), "the load was over first");
    let spans = support::spans(&agent.path("spans.jsonl")).len();
    assert!(
        (over..=begun).contains(&spans),
        "{over}..={begun}: {spans}\n{}",
        agent.output()
    );
}

/// The agent's memory at its peak, in KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// A hundred thousand processes come and go while everything is watched: the agent stays small, and what
/// comes then is still seen.
#[test]
fn many_processes() {
    if !support::can_run() {
        return;
    }
    let agent = Agent::start(&[]);
    let folder = Folder::new().unwrap();
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        // Four that only fork for each that executes a program: those take longest.
        "i=0; while [ $i -lt 20000 ]; do /bin/true; (:); (:); (:); (:); i=$((i+1)); done",
    ]);
    let mut loops = Process::start(&mut shell, &folder.path().join("log")).unwrap();
    assert!(loops.wait(Duration::from_secs(600)).unwrap().success());
    let service = Service::builder().start().unwrap();
    let pid = u64::from(service.pid);
    // Found at the latest now, however much there was to look at.
    sleep(Duration::from_secs(1));
    assert_eq!(get(service.addr(), "/items/7"), 200);
    let peak = peak(agent.pid());
    assert!(peak < 100 << 10, "{peak} KiB");
    sleep(Duration::from_millis(300));
    let seen = agent.stop();
    // Without the statements of its start.
    let ours = seen
        .spans
        .iter()
        .filter(|span| span.pid == pid && span.text("url.path") == "/items/7");
    assert_eq!(ours.count(), 1, "{}", seen.output);
    for name in ["targets_full", "records_lost_undecoded"] {
        assert_eq!(seen.counter(name), 0, "{}", seen.output);
    }
}
