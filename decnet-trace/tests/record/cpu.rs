//! CPU time: whose it is, against programs that know.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use xtask::bed::{
    interpreter::{self, Interpreter},
    venv::default_python,
};

use super::support::{
    AGENT, RATE, Recorder, Running, Stacks, alone, assert_share, can_run, folded, long,
    name as called, on_each, program, py_spy, record, reported, reported_at_once, said, stacks,
    system, total, with,
};

/// On every CPython, the shares of two functions are those of the work that they do, every stack is one
/// that the program can have, with lines of its functions, and the samples are complete.
#[test]
fn shares_are_true() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    // Function, the lines of its body, who calls it.
    let main = "<module>/main";
    let possible = BTreeMap::from([
        ("<module>".to_owned(), 26..=27),
        (main.to_owned(), 17..=23),
        (format!("{main}/heavy"), 7..=9),
        (format!("{main}/light"), 12..=14),
    ]);
    on_each(|python| {
        let name = python.name();
        let running = Running::start(python, "mix.py", &["60"]);
        let (stacks, report) = reported(&["-r", RATE, "-p", &running.pid(), "-d", "2"]);
        let all = total(&stacks);
        // At most one in a thousand, and one at all.
        let outside = said(&report, "outside Python");
        assert!(outside <= 1 + all / 1000, "{name}: {report}");
        assert_eq!(said(&report, "lost"), 0, "{name}: {report}");
        assert!(all > 200, "{name}: {all} samples");
        assert_share(with(&stacks, "heavy"), all, 0.7, &name);
        assert_share(with(&stacks, "light"), all, 0.3, &name);
        for frames in stacks.keys() {
            let mut path = String::new();
            for frame in frames {
                let (function, place) = frame.split_once(" (").unwrap();
                path += if path.is_empty() { "" } else { "/" };
                path += function;
                let (file, line) = place.trim_end_matches(')').rsplit_once(':').unwrap();
                assert!(file.ends_with("mix.py"), "{name}: {frames:?}");
                let lines = possible.get(&path);
                assert!(
                    lines.is_some_and(|lines| lines.contains(&line.parse().unwrap())),
                    "{name}: impossible stack {frames:?}"
                );
            }
        }
    });
}

/// A stack too deep is cut at its outer end, marked so, and its inner end is right.
#[test]
fn deep_recursion_is_marked() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let running = Running::start(python, "deep.py", &[]);
        let stacks = stacks(&["-p", &running.pid(), "-d", "1"]);
        assert!(total(&stacks) > 100);
        for (frames, count) in &stacks {
            assert_eq!(frames[0], "[truncated]", "{count} × {frames:?}");
            assert!(frames.len() >= 256, "{} frames", frames.len());
            let (last, dives) = frames[1..].split_last().unwrap();
            assert!(last.starts_with("spin ("), "{last}");
            assert!(dives.iter().all(|frame| frame.starts_with("dive (")));
        }
    });
}

/// Of calls that all go through C, by turns through `sorted` and `functools.partial`, 126 frames are seen whole on every
/// CPython, also where the interpreter has frames of its own between them; by time as on the CPU.
#[test]
fn deep_calls_through_c_are_whole() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let name = python.name();
        let running = Running::start(python, "through_c.py", &["124"]);
        let pid = running.pid();
        let cpu = ["-p", &pid, "-d", "1", "-r", "199"];
        let wall = [&cpu[..], &["--wall"]].concat();
        for (stacks, report) in reported_at_once([&cpu, &wall]) {
            assert!(total(&stacks) > 20, "{name}: {report}");
            let whole = stacks.keys().filter(|frames| frames.len() == 126);
            assert!(whole.count() > 0, "{name}: {stacks:?}");
            for frames in stacks.keys().filter(|frames| frames.len() > 1) {
                let names: Vec<_> = frames.iter().map(|frame| called(frame)).collect();
                assert_eq!(names[0], "<module>", "{name}: {report}");
                assert_eq!(names.last(), Some(&"spin"), "{name}: {names:?}");
                assert!(names[1..125].iter().all(|name| *name == "dive"), "{name}");
            }
        }
    });
}

/// Code that takes the address of other code while it is recorded counts under its own name.
#[test]
fn reused_addresses_count_under_their_own_names() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    // With versions in code objects, and without.
    let pythons = [interpreter::pyenv("3.13"), system()];
    let record = |python: &Interpreter| {
        let name = python.name();
        let mut running = Running::start(python, "reuse.py", &["3", "2.5"]);
        let recorder = Recorder::start(&["-p", &running.pid()]);
        running.stdin.write_all(b"go\n").unwrap();
        let (stacks, report) = recorder.finish();
        let all = total(&stacks);
        assert!(all > 500, "{name}: {report}");
        for function in ["w000000", "w000001", "w000002"] {
            // What changes is noticed about a second late.
            let seen = 7.5 * with(&stacks, function) as f64 / all as f64;
            assert!(
                (seen - 2.5).abs() < 1.4,
                "{name}: {function} for {seen:.1} s: {report}"
            );
        }
    };
    thread::scope(|scope| {
        for python in pythons.iter().flatten() {
            scope.spawn(|| record(python));
        }
    });
}

/// A thread without the GIL is seen, natively where asked for, and left out by `--gil`; threads are
/// kept apart by `--threads`.
#[test]
fn threads_without_the_gil_are_told_apart() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let name = python.name();
        let running = Running::start(python, "squeeze.py", &[]);
        let pid = running.pid();
        let [(plain, report), (held, held_report)] = reported_at_once([
            &["-r", RATE, "-p", &pid, "-d", "1", "--threads", "--native"],
            &["-r", RATE, "-p", &pid, "-d", "1", "--gil"],
        ]);
        for report in [report, held_report] {
            assert_eq!(said(&report, "lost"), 0, "{name}: {report}");
        }
        let all = total(&plain);
        assert!(all > 100, "{name}: {all} samples");
        assert_share(with(&plain, "squeeze"), all, 1.0, &name);
        assert!(
            plain.keys().all(|frames| frames[0].starts_with("thread (")),
            "{name}"
        );
        // The names of the library's functions are there unless it is stripped.
        let native = plain.keys().filter(|frames| {
            let last = frames.last().unwrap();
            !last.contains(".py:")
        });
        assert!(native.count() > 0, "{name}: {plain:?}");
        assert!(
            total(&held) < all / 4,
            "{name}: {} of {all} held the GIL",
            total(&held)
        );
    });
}

/// Children are sampled only where asked for: forks, and Python programs that are executed.
#[test]
fn children_are_sampled_when_asked_for() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    for follow in [false, true] {
        let mut running = Running::start(&python, "family.py", &[]);
        let pid = running.pid();
        let mut arguments = vec!["-p", &pid];
        if follow {
            arguments.push("--subprocesses");
        }
        let recorder = Recorder::start(&arguments);
        running.stdin.write_all(b"go\n").unwrap();
        let (stacks, rest) = recorder.finish();
        assert!(with(&stacks, "parent") > 50, "{stacks:?}\n{rest}");
        for child in ["forked", "executed"] {
            assert_eq!(
                with(&stacks, child) > 50,
                follow,
                "{child}: {stacks:?}\n{rest}"
            );
        }
    }
}

/// A command is recorded to its own end: the samples are the CPU time that it used, but for the start of
/// its interpreter, and an exit status that is not zero is told.
#[test]
fn a_command_is_recorded_to_its_end() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("out.folded");
    let script = program("mix.py");
    let output = record(&[
        "-r",
        RATE,
        "-o",
        file.to_str().unwrap(),
        "--",
        "python3",
        script.to_str().unwrap(),
        "2",
        "7",
    ]);
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    assert!(
        report.contains("python3 ended with exit status: 7"),
        "{report}"
    );
    assert!(report.contains("heavy ("), "{report}");
    let said = String::from_utf8(output.stdout).unwrap();
    let used: f64 = said.lines().last().unwrap()["used ".len()..]
        .parse()
        .unwrap();
    let stacks = folded(&fs::read_to_string(file).unwrap());
    let expected = used * 997.0;
    let seen = total(&stacks) as f64;
    assert!(
        seen > 0.75 * expected && seen < 1.1 * expected + 10.0,
        "{seen} samples of {expected}"
    );
}

/// Where the target ends, recording does, and what was recorded is written.
#[test]
fn ends_with_its_target() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let mut running = Running::start(&python, "mix.py", &["60"]);
    let recorder = Recorder::start(&["-p", &running.pid()]);
    thread::sleep(Duration::from_secs(1));
    running.child.kill().unwrap();
    let (stacks, _) = recorder.finish();
    assert!(with(&stacks, "heavy") > 100, "{stacks:?}");
}

/// Ctrl-C ends a recording and the command with it, and so does the end of the terminal; the profile is
/// written.
#[test]
fn interrupt_and_hangup_write_the_profile() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    for signal in [Signal::INT, Signal::HUP] {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("out.svg");
        // Whoever started this test may have it ignore a hangup, as nohup does.
        let mut recorder = Command::new("env")
            .args(["--default-signal=INT,HUP", AGENT, "record", "-o"])
            .arg(&file)
            .args(["--", "python3"])
            .arg(program("mix.py"))
            .arg("60")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(recorder.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        thread::sleep(Duration::from_secs(1));
        // As a terminal does it: to all of the foreground.
        let group = rustix::process::Pid::from_child(&recorder);
        rustix::process::kill_process_group(group, signal).unwrap();
        let status = recorder.wait().unwrap();
        let mut report = String::new();
        recorder
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut report)
            .unwrap();
        assert!(status.success(), "{signal:?}: {status}: {report}");
        let written = fs::read_to_string(&file).unwrap();
        assert!(written.contains("heavy ("), "{signal:?}: {report}");
    }
}

/// py-spy, at the same time on the same process, sees the same shares.
#[test]
fn agrees_with_py_spy() {
    if !can_run() {
        return;
    }
    let Some(py_spy) = py_spy() else {
        return;
    };
    let _alone = alone();
    let seconds = long(6).to_string();
    let python = Interpreter::at(default_python().unwrap());
    let running = Running::start(&python, "mix.py", &["600"]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("spy");
    let mut spy = Command::new(py_spy)
        .args([
            "record",
            "-r",
            "100",
            "-d",
            &seconds,
            "-f",
            "raw",
            "-p",
            &running.pid(),
            "-o",
        ])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ours = stacks(&["-p", &running.pid(), "-d", &seconds]);
    assert!(spy.wait().unwrap().success());
    let theirs = folded(&fs::read_to_string(file).unwrap());
    let share = |stacks: &Stacks| with(stacks, "heavy") as f64 / total(stacks) as f64;
    let few = total(&ours).min(total(&theirs)) as f64;
    assert!(few > 100.0, "{few} samples");
    // Five standard deviations of the one with fewer samples, and 1 %.
    let error = 5.0 * (0.21 / few).sqrt() + 0.01;
    let (ours, theirs) = (share(&ours), share(&theirs));
    println!("heavy: {ours:.3}, as py-spy sees it {theirs:.3}, ± {error:.3}");
    assert!((ours - theirs).abs() < error, "{ours} {theirs}");
}
