//! The interpreters at hand, programs at work on them, and recordings of those.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use xtask::bed::venv::{Venv, default_python};

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_decnet-trace");

/// A prime, for many samples in a short time.
pub(crate) const RATE: &str = "997";

/// Whether recording works here. Says why not.
pub(crate) fn can_run() -> bool {
    let doctor = Command::new(AGENT).arg("doctor").output().unwrap();
    if !doctor.status.success() {
        let why = String::from_utf8_lossy(&doctor.stderr);
        let last = why.lines().last().unwrap_or("this machine cannot record");
        println!("SKIPPED: {last}");
    }
    doctor.status.success()
}

/// The programs of the tests take a CPU each: one test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/record/programs")
        .join(name)
}

/// An interpreter.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    /// The program.
    pub(crate) program: PathBuf,
    /// The root folder that it runs in, where that is not this process's own.
    root: Option<PathBuf>,
}

impl Python {
    pub(crate) fn at(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            root: None,
        }
    }

    pub(crate) fn name(&self) -> String {
        self.program.display().to_string()
    }
}

/// pyenv's interpreter of a series.
pub(crate) fn pyenv(series: &str) -> Option<Python> {
    let versions = Path::new(&env::var_os("HOME")?).join(".pyenv/versions");
    let prefix = format!("{series}.");
    let found = fs::read_dir(versions)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    Some(Python::at(
        found.path().join("bin").join(format!("python{series}")),
    ))
}

/// The interpreter of a series in the tree of Debian unstable, which `cargo xtask pylayout --debootstrap`
/// makes.
fn debian(series: &str) -> Option<Python> {
    let root = xtask::pylayout::debian_tree().ok()?;
    let program = format!("usr/bin/python{series}");
    root.join(&program).exists().then(|| Python {
        program: Path::new("/").join(program),
        root: Some(root),
    })
}

/// The interpreters at hand: pyenv's, Debian unstable's and the system's.
pub(crate) fn pythons() -> Vec<Python> {
    let mut all = Vec::new();
    for minor in 8..=15 {
        let series = format!("3.{minor}");
        match pyenv(&series).or_else(|| debian(&series)) {
            Some(python) => all.push(python),
            None => println!("SKIPPED CPython {series}: none at hand"),
        }
    }
    let system = Path::new("/usr/bin/python3");
    if system.exists() {
        all.push(Python::at(system));
    }
    all
}

/// A program at work. It is killed when this is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// A copy of the program in another root.
    copy: Option<PathBuf>,
}

impl Running {
    /// Starts it, and waits until it says that it is ready.
    pub(crate) fn start(python: &Python, name: &str, arguments: &[&str]) -> Self {
        let (mut command, copy) = match &python.root {
            None => {
                let mut command = Command::new(&python.program);
                command.arg(program(name));
                (command, None)
            }
            // Another root has no path to the program.
            Some(root) => {
                let inner = Path::new("/tmp").join(format!("{}-{name}", std::process::id()));
                let copy = root.join(inner.strip_prefix("/").unwrap());
                fs::copy(program(name), &copy).unwrap();
                let mut command = Command::new("chroot");
                command.arg(root).arg(&python.program).arg(inner);
                (command, Some(copy))
            }
        };
        let mut child = command
            .args(arguments)
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            copy,
        };
        assert_eq!(running.line(), "ready");
        running
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(copy) = &self.copy {
            let _ = fs::remove_file(copy);
        }
    }
}

/// Runs `decnet-trace record`.
pub(crate) fn record(arguments: &[&str]) -> Output {
    Command::new(AGENT)
        .arg("record")
        .args(arguments)
        .output()
        .unwrap()
}

/// Folded stacks, by frames outermost first.
pub(crate) type Stacks = BTreeMap<Vec<String>, u64>;

pub(crate) fn folded(text: &str) -> Stacks {
    let lines = text.lines().map(|line| {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let frames = stack.split(';').map(str::to_owned).collect();
        (frames, count.parse().unwrap())
    });
    lines.collect()
}

/// Records folded stacks at [`RATE`]; none may be lost.
pub(crate) fn stacks(arguments: &[&str]) -> Stacks {
    let (stacks, report) = reported(&[&["-r", RATE], arguments].concat());
    assert!(report.contains(", 0 lost"), "{report}");
    stacks
}

/// Records folded stacks, and what the report says of them.
pub(crate) fn reported(arguments: &[&str]) -> (Stacks, String) {
    let output = record(&[&["-f", "folded", "-o", "-"], arguments].concat());
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{report}");
    (folded(&String::from_utf8(output.stdout).unwrap()), report)
}

/// The number before a word of a report's first line: `12 lost`.
pub(crate) fn said(report: &str, word: &str) -> u64 {
    let end = report
        .find(&format!(" {word}"))
        .unwrap_or_else(|| panic!("{word}: {report}"));
    let number = report[..end].rsplit(' ').next().unwrap();
    number.parse().unwrap()
}

/// A recording of folded stacks under way.
pub(crate) struct Recorder {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Recorder {
    /// Starts it, and waits until it reads the process's Python frames.
    pub(crate) fn start(arguments: &[&str]) -> Self {
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
    pub(crate) fn finish(mut self) -> (Stacks, String) {
        let (mut out, mut rest) = (String::new(), String::new());
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut out).unwrap();
        self.log.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        (folded(&out), rest)
    }
}

pub(crate) fn total(stacks: &Stacks) -> u64 {
    stacks.values().sum()
}

/// The name in a frame.
pub(crate) fn name(frame: &str) -> &str {
    frame.split(" (").next().unwrap()
}

/// Samples with a function of this name on the stack.
pub(crate) fn with(stacks: &Stacks, function: &str) -> u64 {
    let matching = stacks
        .iter()
        .filter(|(frames, _)| frames.iter().any(|frame| name(frame) == function));
    matching.map(|(_, count)| count).sum()
}

/// A share with the error that five standard deviations of sampling leave, and 1 % for the slices'
/// ends.
pub(crate) fn assert_share(part: u64, all: u64, expected: f64, what: &str) {
    let share = part as f64 / all as f64;
    let error = 5.0 * (expected * (1.0 - expected) / all as f64).sqrt() + 0.01;
    assert!(
        (share - expected).abs() < error,
        "{what}: {part} of {all} is not {expected} ± {error:.3}"
    );
}

/// Where py-spy is, if it can be had. Says why not.
pub(crate) fn py_spy() -> Option<PathBuf> {
    match default_python().and_then(|python| Venv::ensure(&python, &["py-spy"])) {
        Ok(venv) => Some(venv.program("py-spy")),
        Err(error) => {
            println!("SKIPPED: py-spy cannot be had: {error:#}");
            None
        }
    }
}

/// For how long to record where that decides how sharp a comparison is: `DECNET_TRACE_TEST_SECS`.
pub(crate) fn long(default: u64) -> u64 {
    env::var("DECNET_TRACE_TEST_SECS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(default)
}
