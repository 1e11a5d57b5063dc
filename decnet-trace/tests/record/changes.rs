//! Processes that become, or start, what they were not when recording began.

use std::{io::Write as _, thread, time::Duration};

use xtask::bed::interpreter::{self, Interpreter};

use super::support::{Recorder, Running, alone, can_run, name, program, system, total, with};

/// The interpreters that can be executed by their path: those of this root.
fn executable() -> Vec<Interpreter> {
    let mut pythons = interpreter::all();
    pythons.retain(|python| !python.name().contains(" in "));
    pythons
}

/// Tells `becomes.py` what to do.
fn tell(running: &mut Running, how: &str, command: &[&str]) {
    let line = serde_json::to_string(&(how, command)).unwrap();
    writeln!(running.stdin, "{line}").unwrap();
}

/// A process that executes another script on another CPython goes on being recorded, with the stacks of each of
/// its lives; no stack has frames of both.
#[test]
fn another_cpython_of_the_same_pid_is_read() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let pythons = executable();
    let script = program("mix.py");
    // Each takes some seconds.
    for (at, python) in pythons.iter().enumerate().step_by(3) {
        let next = &pythons[(at + 1) % pythons.len()];
        let what = format!("{} becomes {}", python.name(), next.name());
        let mut running = Running::start(python, "becomes.py", &[]);
        let recorder = Recorder::start(&["-p", &running.pid()]);
        thread::sleep(Duration::from_millis(400));
        let other = next.program.to_str().unwrap();
        tell(
            &mut running,
            "exec",
            &[other, script.to_str().unwrap(), "1.5"],
        );
        let (stacks, report) = recorder.finish();
        let all = total(&stacks);
        assert!(with(&stacks, "before") > 10, "{what}: {report}");
        assert!(with(&stacks, "heavy") > 10, "{what}: {report}");
        assert!(
            with(&stacks, "[unknown]") <= 2 + all / 50,
            "{what}: {stacks:?}"
        );
        for frames in stacks.keys() {
            let has = |function: &str| frames.iter().any(|frame| name(frame) == function);
            assert!(!(has("before") && has("main")), "{what}: {frames:?}");
        }
    }
}

/// A Python that is not read is named in the report with the reason: a child of a process that is recorded with
/// its children, and what a process has become.
#[test]
fn what_cannot_be_read_is_told() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let old = match interpreter::old("2.7") {
        Ok(old) => old.program,
        Err(why) => {
            println!("SKIPPED: CPython 2.7: {why:#}");
            return;
        }
    };
    // For a second, without a library, which it would have to be told the place of.
    let busy = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass";
    let command = [old.to_str().unwrap(), "-S", "-c", busy];
    for (how, options) in [("start", &["--subprocesses"][..]), ("exec", &[])] {
        let mut running = Running::start(&python, "becomes.py", &[]);
        let pid = running.pid();
        let recorder = Recorder::start(&[&["-p", &pid], options].concat());
        thread::sleep(Duration::from_millis(400));
        tell(&mut running, how, &command);
        let (stacks, report) = recorder.finish();
        assert!(with(&stacks, "before") > 10, "{how}: {report}");
        let told = report
            .lines()
            .filter_map(|line| line.strip_prefix("no Python frames of pid "))
            .collect::<Vec<_>>();
        let [line] = told[..] else {
            panic!("{how}: {report}");
        };
        let (whom, why) = line.split_once(": ").unwrap();
        assert_eq!(whom == pid, how == "exec", "{report}");
        assert!(why.starts_with("CPython 2.7"), "{report}");
        assert!(why.contains("is not supported"), "{report}");
    }
}
