//! The bench's own test: the smallest run of each kind gives figures that can be.

use std::{path::PathBuf, process::Command};

use xtask::bench::{self, BenchArgs, Kind, report::Report, services};

/// Whether the agent works here; says why not.
fn can_run() -> bool {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_decnet-trace"));
    let doctor = doctor.arg("doctor").output().expect("the agent");
    let works = doctor.status.success() && rustix::process::geteuid().is_root();
    if !works {
        let why = String::from_utf8_lossy(&doctor.stderr);
        println!(
            "SKIPPED: {}",
            why.lines().last().unwrap_or("the bench needs root")
        );
    }
    works
}

/// The smallest run of a kind, on the agent that the tests are built with; `None` where it cannot run.
fn smallest(kind: Kind) -> Option<Report> {
    if !can_run() {
        return None;
    }
    if let Err(why) = services::venv() {
        println!("SKIPPED: {why:#}");
        return None;
    }
    let json = std::env::temp_dir().join(format!("decnet-bench-{}.json", std::process::id()));
    let args = BenchArgs {
        kind,
        quick: true,
        pairs: Some(1),
        window: Some(0.3),
        scenario: vec!["plain".to_owned()],
        json: Some(json.clone()),
        markdown: None,
        compare: None,
        minutes: Some(0.05),
        agent: Some(PathBuf::from(env!("CARGO_BIN_EXE_decnet-trace"))),
        profile: "dev".to_owned(),
    };
    let report = bench::run(&args).expect("a run");
    let written = Report::read(&json).expect("a file");
    std::fs::remove_file(&json).expect("its removal");
    let ids = |report: &Report| -> Vec<String> {
        let figures = report.figures.iter();
        figures.map(|figure| figure.id.clone()).collect()
    };
    assert_eq!(ids(&written), ids(&report));
    Some(report)
}

/// The value of a figure, which must lie within these bounds.
fn within(report: &Report, id: &str, least: f64, most: f64) {
    let ids = || {
        report
            .figures
            .iter()
            .map(|figure| &figure.id)
            .collect::<Vec<_>>()
    };
    let figure = report
        .get(id)
        .unwrap_or_else(|| panic!("there is no {id} in {:?}", ids()));
    let value = figure.value;
    assert!((least..=most).contains(&value), "{id} is {value}");
}

/// A service that does nothing answers some requests a second, with the agent and without, and the
/// agent neither stops it nor doubles what it can do.
#[test]
fn overhead() {
    let Some(report) = smallest(Kind::Overhead) else {
        return;
    };
    let id = "overhead/plain/saturated";
    within(&report, &format!("{id}/untraced/throughput"), 20.0, 1e6);
    within(&report, &format!("{id}/untraced/p50"), 0.01, 5000.0);
    within(&report, &format!("{id}/untraced/cpu"), 5.0, 1e5);
    for variant in ["noise", "agent"] {
        within(&report, &format!("{id}/{variant}/throughput"), 0.1, 2.0);
        within(&report, &format!("{id}/{variant}/cpu"), 0.3, 5.0);
    }
}

/// A request is a read and two writes of the service, and a write and a read of the load; each hit takes
/// more than nothing, and a trap costs more with its return than without.
#[test]
fn kernel() {
    let Some(report) = smallest(Kind::Kernel) else {
        return;
    };
    let hit = |short: &str, what: &str| format!("kernel/plain/agent/{short}/{what}");
    if report.get(&hit("sock_send_lengt", "hits")).is_some() {
        within(&report, &hit("sock_send_lengt", "hits"), 2.5, 4.0);
        within(&report, &hit("sock_recv_lengt", "hits"), 1.5, 6.0);
        within(&report, &hit("sock_send_lengt", "nanos"), 20.0, 20_000.0);
    }
    within(&report, "kernel/plain/agent/service", 0.1, 500.0);
    within(&report, "kernel/refused", 5.0, 5000.0);
    for trap in ["entry", "return"] {
        within(&report, &format!("kernel/trap/{trap}"), 50.0, 100_000.0);
    }
}

/// A sample takes more than nothing, and less than a millisecond, at each depth; and for how long a process stands
/// still for one is told of the agent and of who stops it.
#[test]
fn samples() {
    let Some(report) = smallest(Kind::Samples) else {
        return;
    };
    for figure in ["10/0", "50/0", "128/0", "50/150"] {
        within(&report, &format!("samples/{figure}/ns"), 100.0, 1e6);
    }
    // Of who does not stop it, only noise is to be seen, to both sides.
    within(&report, "samples/stops/decnet-trace", -1e6, 1e6);
    within(&report, "samples/stops/py-spy", 1.0, 1e6);
}

/// Each stage takes some time, decoding allocates nothing, and spans reach the file.
#[test]
fn pipeline() {
    let Some(report) = smallest(Kind::Pipeline) else {
        return;
    };
    let stage = |name: &str, what: &str| format!("pipeline/plain/to-{name}/{what}");
    within(&report, &stage("decode", "allocations"), 0.0, 0.0);
    for name in ["decode", "correlate", "span", "file"] {
        within(&report, &stage(name, "nanos"), 1.0, 1e6);
    }
    within(&report, "pipeline/start/attached", 0.01, 60.0);
    within(&report, "pipeline/latency/p50", 0.0, 10_000.0);
}

/// The agent holds some memory, and no more than it may, beside processes, connections and requests.
#[test]
fn memory() {
    let Some(report) = smallest(Kind::Memory) else {
        return;
    };
    for state in [
        "processes/1",
        "processes/50",
        "connections/100",
        "connections/2000",
        "rate/1000",
    ] {
        within(&report, &format!("memory/{state}/rss"), 5.0, 500.0);
        within(&report, &format!("memory/{state}/maps"), 0.1, 500.0);
        within(&report, &format!("memory/{state}/cpu"), 0.0, 400.0);
    }
    assert!(report.get("memory/growth").is_some());
}
