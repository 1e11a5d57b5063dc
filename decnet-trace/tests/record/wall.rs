//! Time: threads that wait are sampled as often as those that run.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use tempfile::TempDir;
use xtask::bed::{
    interpreter::{self, Interpreter},
    venv::default_python,
};

use super::support::{
    Running, Stacks, alone, can_run, folded, long, py_spy, reported_at_once, said, total, with,
};

/// Samples per second: those of threads that wait are read from outside, and take time.
const RATE: u64 = 97;

/// Seconds.
const LONG: u64 = 2;

/// Records by time in this way; what was seen, and how many samples were lost: of threads that ran on while they
/// were read, and where this machine had no CPU for the recorder when it was time, which is no fault of its own.
fn wall<const N: usize>(pid: &str, seconds: u64, ways: [&[&str]; N]) -> [(Stacks, u64); N] {
    let (rate, seconds) = (RATE.to_string(), seconds.to_string());
    let arguments = ["-p", pid, "-r", &rate, "-d", &seconds, "--function"];
    let all = ways.map(|way| [&arguments, way].concat());
    let all = reported_at_once(std::array::from_fn(|at| all[at].as_slice()));
    all.map(|(stacks, report)| (stacks, said(&report, "lost")))
}

/// On every CPython, each thread has as many samples as the rate says, whatever it does: a sleep, a wait
/// for a lock, work, and both in turns; and of the latter, each has its share of the time. Without `--idle`,
/// threads that wait for something to happen are left out, and those that work are not; `--gil` leaves one
/// thread at a time.
#[test]
fn threads_are_sampled_by_time() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    for python in interpreter::all() {
        let name = python.name();
        let mut running = Running::start(&python, "idle.py", &["spin"]);
        let ways: [&[&str]; 3] = [&["--idle"], &["--wall"], &["--idle", "--gil"]];
        let [(all, lost), (active, _), (gil, _)] = wall(&running.pid(), LONG, ways);
        running.stdin.write_all(b"\n").unwrap();
        assert_at_the_rate(&name, &all, lost as f64, &running.line());
        assert_no_idle(&name, &active);
        assert_one_at_a_time(&name, &gil);
    }
}

/// `told` is for how long the thread that works and sleeps in turns did each.
fn assert_at_the_rate(name: &str, stacks: &Stacks, lost: f64, told: &str) {
    let due = (RATE * LONG) as f64;
    for function in ["sleeps", "waits_for_a_lock"] {
        let seen = with(stacks, function) as f64;
        assert!(
            seen + lost > 0.9 * due && seen < 1.1 * due + 3.0,
            "{name}: {function} has {seen} of {due}, {lost} lost: {stacks:?}"
        );
    }
    // Whether these are on a CPU is told by two samplers that do not tick together: five standard
    // deviations.
    let error = 5.0 * (due / 2.0).sqrt();
    for function in ["spin", "turns"] {
        let seen = with(stacks, function) as f64;
        assert!(
            (seen - due).abs() < error + 0.1 * due + lost,
            "{name}: {function} has {seen} of {due}, {lost} lost: {stacks:?}"
        );
    }
    let (work, nap) = told.split_once(' ').unwrap();
    let (work, nap): (f64, f64) = (work.parse().unwrap(), nap.parse().unwrap());
    let (worked, napped) = (with(stacks, "work"), with(stacks, "nap"));
    let expected = work / (work + nap);
    let share = worked as f64 / (worked + napped) as f64;
    let error = 5.0 * (expected * (1.0 - expected) / due).sqrt() + 0.03 + lost / due / 2.0;
    assert!(
        (share - expected).abs() < error,
        "{name}: {worked} and {napped} samples; {work} s and {nap} s"
    );
}

fn assert_no_idle(name: &str, active: &Stacks) {
    let due = RATE * LONG;
    assert_eq!(with(active, "waits_for_a_lock"), 0, "{name}: {active:?}");
    // It wakes five times a second, and may wait for a CPU then.
    assert!(with(active, "sleeps") < due / 4, "{name}: {active:?}");
    assert!(with(active, "spin") > due / 4, "{name}: {active:?}");
}

fn assert_one_at_a_time(name: &str, gil: &Stacks) {
    let due = RATE * LONG;
    assert_eq!(with(gil, "waits_for_a_lock"), 0, "{name}: {gil:?}");
    // Where CPUs are scarce, nobody holds it much of the time: who is to have it next waits for one.
    let all = total(gil);
    assert!(
        all > 10 && all < due + due / 5,
        "{name}: {all} of {due} held the GIL"
    );
}

/// py-spy, at the same time on the same process, sees each function for the same share of the time.
#[test]
fn shares_of_time_agree_with_py_spy() {
    if !can_run() {
        return;
    }
    let Some(py_spy) = py_spy() else {
        return;
    };
    let _alone = alone();
    let python = Interpreter::at(default_python().unwrap());
    let running = Running::start(&python, "idle.py", &[]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("spy");
    let seconds = long(6);
    // Stopping the process, as py-spy does by default, makes its sleeps longer.
    let mut spy = Command::new(py_spy)
        .args([
            "record",
            "--idle",
            "--nonblocking",
            "-r",
            "100",
            "-f",
            "raw",
            "-d",
        ])
        .args([&seconds.to_string(), "-p", &running.pid(), "-o"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let [(ours, _)] = wall(&running.pid(), seconds, [&["--idle"]]);
    assert!(spy.wait().unwrap().success());
    let theirs = folded(&fs::read_to_string(file).unwrap());
    for function in ["sleeps", "waits_for_a_lock", "turns"] {
        let share = |stacks: &Stacks| with(stacks, function) as f64 / total(stacks) as f64;
        let few = total(&ours).min(total(&theirs)) as f64;
        assert!(few > 100.0, "{few} samples");
        let (ours, theirs) = (share(&ours), share(&theirs));
        let error = 5.0 * (2.0 * theirs * (1.0 - theirs) / few).sqrt() + 0.01;
        println!("{function}: {ours:.3}, as py-spy sees it {theirs:.3}, ± {error:.3}");
        assert!((ours - theirs).abs() < error, "{function}: {ours} {theirs}");
    }
}
