//! `decnet-trace record` on living programs, whose work is known.
//!
//! Needs root and an eBPF object; what is not at hand is named in a line that begins with SKIPPED.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tempfile::TempDir;
use xtask::bed::venv::{Venv, default_python};

const AGENT: &str = env!("CARGO_BIN_EXE_decnet-trace");

/// A prime, for many samples in a short time.
const RATE: &str = "997";

/// Whether recording works here. Says why not.
fn can_run() -> bool {
    let doctor = Command::new(AGENT).arg("doctor").output().unwrap();
    if !doctor.status.success() {
        let why = String::from_utf8_lossy(&doctor.stderr);
        let last = why.lines().last().unwrap_or("this machine cannot record");
        println!("SKIPPED: {last}");
    }
    doctor.status.success()
}

/// The programs of the tests take a CPU each: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/record")
        .join(name)
}

/// pyenv's interpreter of a series.
fn pyenv(series: &str) -> Option<PathBuf> {
    let versions = Path::new(&env::var_os("HOME")?).join(".pyenv/versions");
    let prefix = format!("{series}.");
    let found = fs::read_dir(versions)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    Some(found.path().join("bin").join(format!("python{series}")))
}

/// The interpreters at hand: pyenv's and the system's.
fn pythons() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for minor in 8..=13 {
        match pyenv(&format!("3.{minor}")) {
            Some(python) => all.push(python),
            None => println!("SKIPPED CPython 3.{minor}: none at hand"),
        }
    }
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() {
        all.push(system);
    }
    all
}

/// A program at work. It is killed when this is dropped.
struct Running {
    child: Child,
    stdin: ChildStdin,
}

impl Running {
    /// Starts it, and waits until it says that it is ready.
    fn start(python: &Path, name: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(python)
            .arg(program(name))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child.stdout = Some(stdout.into_inner());
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `decnet-trace record`.
fn record(arguments: &[&str]) -> Output {
    Command::new(AGENT)
        .arg("record")
        .args(arguments)
        .output()
        .unwrap()
}

/// Folded stacks, by frames outermost first.
type Stacks = BTreeMap<Vec<String>, u64>;

fn folded(text: &str) -> Stacks {
    let lines = text.lines().map(|line| {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let frames = stack.split(';').map(str::to_owned).collect();
        (frames, count.parse().unwrap())
    });
    lines.collect()
}

/// Records folded stacks.
fn stacks(arguments: &[&str]) -> Stacks {
    let output = record(&[&["-f", "folded", "-o", "-", "-r", RATE], arguments].concat());
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    assert!(report.contains(", 0 lost"), "{report}");
    folded(&String::from_utf8(output.stdout).unwrap())
}

/// A recording of folded stacks under way.
struct Recorder {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Recorder {
    /// Starts it, and waits until it reads the process's Python frames.
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(AGENT)
            .args(["record", "-f", "folded", "-o", "-", "-r", RATE])
            .args(arguments)
            .env("DECNET_TRACE_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("reading CPython") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        Self { child, log }
    }

    /// Waits for its end; what it recorded, and the rest of its log.
    fn finish(mut self) -> (Stacks, String) {
        let (mut out, mut rest) = (String::new(), String::new());
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut out).unwrap();
        self.log.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        (folded(&out), rest)
    }
}

fn total(stacks: &Stacks) -> u64 {
    stacks.values().sum()
}

/// Samples with a function of this name on the stack.
fn with(stacks: &Stacks, name: &str) -> u64 {
    let matching = stacks.iter().filter(|(frames, _)| {
        frames
            .iter()
            .any(|frame| frame.split(" (").next() == Some(name))
    });
    matching.map(|(_, count)| count).sum()
}

/// A share with the error that five standard deviations of sampling leave, and 1 % for the slices'
/// ends.
fn assert_share(part: u64, all: u64, expected: f64, what: &str) {
    let share = part as f64 / all as f64;
    let error = 5.0 * (expected * (1.0 - expected) / all as f64).sqrt() + 0.01;
    assert!(
        (share - expected).abs() < error,
        "{what}: {part} of {all} is not {expected} ± {error:.3}"
    );
}

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
    for python in pythons() {
        let name = python.display().to_string();
        let running = Running::start(&python, "mix.py", &["60"]);
        let stacks = stacks(&["-p", &running.pid(), "-d", "2"]);
        let all = total(&stacks);
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
                assert!(file.ends_with("tests/record/mix.py"), "{name}: {frames:?}");
                let lines = possible.get(&path);
                assert!(
                    lines.is_some_and(|lines| lines.contains(&line.parse().unwrap())),
                    "{name}: impossible stack {frames:?}"
                );
            }
        }
    }
}

/// A stack too deep is cut at its outer end, marked so, and its inner end is right.
#[test]
fn deep_recursion_is_marked() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    for python in pythons() {
        let running = Running::start(&python, "deep.py", &[]);
        let stacks = stacks(&["-p", &running.pid(), "-d", "1"]);
        assert!(total(&stacks) > 100);
        for (frames, count) in &stacks {
            assert_eq!(frames[0], "[truncated]", "{count} × {frames:?}");
            assert!(frames.len() > 128, "{} frames", frames.len());
            let (last, dives) = frames[1..].split_last().unwrap();
            assert!(last.starts_with("spin ("), "{last}");
            assert!(dives.iter().all(|frame| frame.starts_with("dive (")));
        }
    }
}

/// A thread without the GIL is seen, natively where asked for, and left out by `--gil`; threads are
/// kept apart by `--threads`.
#[test]
fn threads_without_the_gil_are_told_apart() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    for python in pythons() {
        let name = python.display().to_string();
        let running = Running::start(&python, "squeeze.py", &[]);
        let pid = running.pid();
        let plain = stacks(&["-p", &pid, "-d", "1", "--threads", "--native"]);
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
        let held = stacks(&["-p", &pid, "-d", "1", "--gil"]);
        assert!(
            total(&held) < all / 4,
            "{name}: {} of {all} held the GIL",
            total(&held)
        );
    }
}

/// Children are sampled only where asked for: forks, and Python programs that are executed.
#[test]
fn children_are_sampled_when_asked_for() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = pythons().pop() else {
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
    let Some(python) = pythons().pop() else {
        return;
    };
    let mut running = Running::start(&python, "mix.py", &["60"]);
    let recorder = Recorder::start(&["-p", &running.pid()]);
    std::thread::sleep(Duration::from_secs(2));
    running.child.kill().unwrap();
    let (stacks, _) = recorder.finish();
    assert!(with(&stacks, "heavy") > 100, "{stacks:?}");
}

/// Ctrl-C ends a recording and the command with it, and the profile is written.
#[test]
fn interrupt_writes_the_profile() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("out.svg");
    let mut recorder = Command::new(AGENT)
        .args(["record", "-o", file.to_str().unwrap(), "--", "python3"])
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
    std::thread::sleep(Duration::from_secs(2));
    // As a terminal does it: to all of the foreground.
    let group = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process_group(group, rustix::process::Signal::INT).unwrap();
    let status = recorder.wait().unwrap();
    let mut report = String::new();
    recorder
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut report)
        .unwrap();
    assert!(status.success(), "{report}");
    assert!(fs::read_to_string(&file).unwrap().contains("heavy ("));
}

/// Every format is chosen by the file's name, written, and opens; with the names in it.
#[test]
fn every_format_opens() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = pythons().pop() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["60"]);
    let folder = TempDir::new().unwrap();
    for name in [
        "a.svg",
        "a.folded",
        "a.pb.gz",
        "a.speedscope.json",
        "a.pstats",
    ] {
        let path = folder.path().join(name);
        let output = record(&[
            "-p",
            &running.pid(),
            "-d",
            "1",
            "-o",
            path.to_str().unwrap(),
        ]);
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{report}");
        assert!(report.starts_with(path.to_str().unwrap()), "{report}");
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let shown = match name {
            "a.pb.gz" => {
                let mut inner = Vec::new();
                flate2::read::GzDecoder::new(&bytes[..])
                    .read_to_end(&mut inner)
                    .unwrap();
                String::from_utf8_lossy(&inner).into_owned()
            }
            "a.speedscope.json" => {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                value["shared"]["frames"].to_string()
            }
            "a.pstats" => {
                let script = "import pstats, sys; pstats.Stats(sys.argv[1]).print_stats()";
                let output = Command::new(&python)
                    .args(["-c", script])
                    .arg(&path)
                    .output()
                    .unwrap();
                String::from_utf8(output.stdout).unwrap()
            }
            _ => text,
        };
        assert!(
            shown.contains("heavy") && shown.contains("mix.py"),
            "{name}: {shown}"
        );
    }
}

/// What cannot be recorded is refused in one line, with its exit code, before anything is recorded.
#[test]
fn refusals_are_one_line() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
    let native = sleep.id().to_string();
    let mut old = Vec::new();
    for series in ["2.7", "3.7"] {
        match pyenv(series) {
            None => println!("SKIPPED CPython {series}: none at hand"),
            Some(python) => {
                let code = "import time; time.sleep(600)";
                old.push(Command::new(python).args(["-c", code]).spawn().unwrap());
            }
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let olds: Vec<String> = old.iter().map(|child| child.id().to_string()).collect();
    let mut cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["-p", &native], 4, "is not a Python process; --native"),
        (vec!["-p", "4194304"], 4, "there is no process 4194304"),
        (
            vec!["-p", &native, "-o", "/nowhere/x.svg"],
            2,
            "cannot write /nowhere/x.svg",
        ),
        (
            vec!["-d", "1", "--", "/no/such"],
            2,
            "cannot start /no/such",
        ),
        (
            vec!["-d", "1", "--", "sleep", "5"],
            4,
            "sleep ran no Python",
        ),
        (
            vec!["-o", "-", "--", "true"],
            2,
            "name a file with --output",
        ),
    ];
    for pid in &olds {
        cases.push((vec!["-p", pid], 4, "is not supported (3.8 to 3.15 are)"));
    }
    for (arguments, code, message) in cases {
        let folder = TempDir::new().unwrap();
        let output = Command::new(AGENT)
            .arg("record")
            .args(&arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    let output = record(&["-p", &native, "-r", "1000"]);
    assert_eq!(output.status.code(), Some(2));
    // Without Python, what is asked for natively works; it sleeps, so there is nothing to see.
    let output = record(&["-p", &native, "-n", "-d", "1", "-f", "folded", "-o", "-"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("no samples"),
        "{said}"
    );
    // The privileges are what is missing, whatever the process is.
    let unprivileged = Command::new(AGENT)
        .args(["record", "-p", &native, "-o", "/dev/null"])
        .uid(65_534)
        .gid(65_534)
        .output();
    match unprivileged {
        Err(error) => println!("SKIPPED: another user cannot run the program: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    for child in old.iter_mut().chain([&mut sleep]) {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// py-spy, at the same time on the same process, sees the same shares.
#[test]
fn agrees_with_py_spy() {
    if !can_run() {
        return;
    }
    let venv = match default_python().and_then(|python| Venv::ensure(&python, &["py-spy"])) {
        Ok(venv) => venv,
        Err(error) => {
            println!("SKIPPED: py-spy cannot be had: {error:#}");
            return;
        }
    };
    let _alone = alone();
    let python = default_python().unwrap();
    let running = Running::start(&python, "mix.py", &["90"]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("spy");
    let mut spy = Command::new(venv.program("py-spy"))
        .args([
            "record",
            "-r",
            "100",
            "-d",
            "15",
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
    let ours = stacks(&["-p", &running.pid(), "-d", "15"]);
    assert!(spy.wait().unwrap().success());
    let theirs = folded(&fs::read_to_string(file).unwrap());
    let share = |stacks: &Stacks| with(stacks, "heavy") as f64 / total(stacks) as f64;
    let few = total(&ours).min(total(&theirs)) as f64;
    assert!(few > 300.0, "{few} samples");
    // Five standard deviations of the one with fewer samples, and 1 %.
    let error = 5.0 * (0.21 / few).sqrt() + 0.01;
    let (ours, theirs) = (share(&ours), share(&theirs));
    println!("heavy: {ours:.3}, as py-spy sees it {theirs:.3}, ± {error:.3}");
    assert!((ours - theirs).abs() < error, "{ours} {theirs}");
}
