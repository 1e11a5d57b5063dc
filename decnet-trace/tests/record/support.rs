//! The interpreters at hand, programs at work on them, and recordings of those.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Read as _},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use xtask::bed::{
    interpreter::{self, Interpreter, Program},
    venv::{Venv, default_python},
};

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_decnet-trace");

/// A prime, for many samples in a short time.
pub(crate) const RATE: &str = "997";

/// The most programs that are recorded at once, each by a recorder of its own.
const MOST_AT_ONCE: usize = 4;

/// Whether recording works here. Says why not.
pub(crate) fn can_run() -> bool {
    static OBSTACLE: LazyLock<Option<String>> = LazyLock::new(|| {
        let doctor = Command::new(AGENT).arg("doctor").output().unwrap();
        let why = String::from_utf8_lossy(&doctor.stderr);
        let last = why.lines().last().unwrap_or("this machine cannot record");
        (!doctor.status.success()).then(|| last.to_owned())
    });
    if let Some(why) = &*OBSTACLE {
        println!("SKIPPED: {why}");
    }
    OBSTACLE.is_none()
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

/// Does something on every CPython at hand, one for each CPU at a time.
pub(crate) fn on_each(work: impl Fn(&Interpreter) + Sync) {
    let pythons = interpreter::all();
    let next = AtomicUsize::new(0);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cpus.min(MOST_AT_ONCE) {
            scope.spawn(|| {
                while let Some(python) = pythons.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(python);
                }
            });
        }
    });
}

/// The system's interpreter, which is Debian's where this is one.
pub(crate) fn system() -> Option<Interpreter> {
    let found = interpreter::system();
    if found.is_none() {
        println!("SKIPPED: there is no /usr/bin/python3");
    }
    found
}

/// A program at work. It is killed when this is dropped.
pub(crate) struct Running(Program);

impl Running {
    /// Starts it, and waits until it says that it is ready.
    pub(crate) fn start(python: &Interpreter, name: &str, arguments: &[&str]) -> Self {
        let mut running = Self(python.run(&program(name), arguments).unwrap());
        assert_eq!(running.line(), "ready", "{}", python.name());
        running
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        self.0.line().unwrap()
    }

    pub(crate) fn pid(&self) -> String {
        self.0.pid().to_string()
    }
}

impl Deref for Running {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.0
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

/// The same, of several recorders at once, in their order.
pub(crate) fn reported_at_once<const N: usize>(all: [&[&str]; N]) -> [(Stacks, String); N] {
    thread::scope(|scope| {
        let recorders = all.map(|arguments| scope.spawn(move || reported(arguments)));
        recorders.map(|recorder| recorder.join().unwrap())
    })
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
