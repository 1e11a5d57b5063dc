//! Statements of SQLite, as real programs execute them, against what the programs say that they did.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod requests;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde_json::Value;
use support::{Agent, Span, can_run};
use xtask::bed::{
    embedded,
    process::{Folder, Process},
    venv::{Venv, default_python, python},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// How long the agent may take to hand on what it has read.
const SETTLE: Duration = Duration::from_millis(700);

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/sqlite/programs/statements.py"
);

/// A program that executes statements.
struct Program {
    process: Process,
    folder: Folder,
    /// Where it writes, where it does not see that folder.
    elsewhere: Option<PathBuf>,
}

impl Program {
    fn start(python: &Path, module: &str) -> Self {
        let folder = Folder::new().unwrap();
        let mut command = Command::new(python);
        command.arg(SCRIPT).arg(folder.path()).env("SQLITE", module);
        let log = folder.path().join("log");
        let process = Process::start(&mut command, &log).unwrap();
        Self {
            process,
            folder,
            elsewhere: None,
        }
    }

    /// On a CPython that runs in a root folder of its own.
    fn start_in(root: &Path, python: &Path) -> Self {
        let folder = Folder::new().unwrap();
        let inner = folder.path();
        let elsewhere = root.join(inner.strip_prefix("/").unwrap());
        fs::create_dir_all(&elsewhere).unwrap();
        fs::copy(SCRIPT, elsewhere.join("statements.py")).unwrap();
        let mut command = Command::new("chroot");
        command
            .args([root, python, &inner.join("statements.py"), inner])
            .env("SQLITE", "sqlite3");
        let process = Process::start(&mut command, &inner.join("log")).unwrap();
        Self {
            process,
            elsewhere: Some(elsewhere),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let folder = self.elsewhere.as_deref();
        folder.unwrap_or(self.folder.path()).join(name)
    }

    /// Waits until it is ready for a phase.
    fn ready_for(&mut self, phase: &str) {
        let ready = format!("ready for {phase}\n");
        self.process
            .wait_for(PATIENCE, |log| log.contains(&ready).then_some(()))
            .unwrap();
    }

    /// Lets it through a phase, and waits until it is ready for the next.
    fn go(&mut self, phase: &str, next: &str) {
        fs::write(self.path(phase), "").unwrap();
        self.ready_for(next);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(elsewhere) = &self.elsewhere {
            let _ = fs::remove_dir_all(elsewhere);
        }
    }
}

/// Waits until the agent watches as many SQLites.
fn wait_until_watched(agent: &Agent, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while agent.output().matches("watching SQLite").count() < count {
        assert!(Instant::now() < deadline, "{}", agent.output());
        thread::sleep(Duration::from_millis(20));
    }
}

/// How often programs on SQLite ran since statistics were switched on, and for how many nanoseconds.
fn hits() -> (u64, u64) {
    loaded_programs()
        .flatten()
        .filter(|program| {
            program
                .name_as_str()
                .is_some_and(|name| name.starts_with("sqlite_"))
        })
        .map(|program| (program.run_count(), program.run_time().as_nanos() as u64))
        .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// A statement as a program tells it, or a span.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    text: String,
    name: String,
    operation: String,
    collection: String,
    database: String,
    rows: Option<u64>,
    error: String,
    code: String,
    batch: Option<u64>,
    waited: bool,
}

fn truth(path: &Path) -> Vec<Told> {
    let all: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter()
        .map(|one| Told {
            text: text(&one["text"]),
            name: text(&one["name"]),
            operation: text(&one["operation"]),
            collection: text(&one["collection"]),
            database: text(&one["database"]),
            rows: one["rows"].as_u64(),
            error: text(&one["error"]),
            code: text(&one["code"]),
            batch: one["batch"].as_u64(),
            waited: one["waited"].as_bool().unwrap(),
        })
        .collect()
}

fn told(span: &Span) -> Told {
    Told {
        text: span.text("db.query.text").to_owned(),
        name: span.name.clone(),
        operation: span.text("db.operation.name").to_owned(),
        collection: span.text("db.collection.name").to_owned(),
        database: span.text("db.namespace").to_owned(),
        rows: span.int("db.response.returned_rows"),
        error: span.text("error.type").to_owned(),
        code: span.text("db.response.status_code").to_owned(),
        batch: span.int("db.operation.batch.size"),
        waited: span.float("decnet.db.lock_wait.duration").is_some(),
    }
}

/// Compares what an agent saw of a process with what the process says; texts with one of `beside` are left
/// out.
fn compare(what: &str, spans: &[&Span], mut truth: Vec<Told>) {
    let mut seen: Vec<_> = spans.iter().map(|span| told(span)).collect();
    for one in seen.iter_mut().chain(&mut truth) {
        // CPython up to 3.10 asks SQLite for a row in advance; and before 3.11 it does not ask for extended
        // codes, which SQLite knows all the same.
        if one.text.contains("first_one") {
            one.rows = None;
        }
    }
    seen.sort();
    truth.sort();
    let missing: Vec<_> = truth.iter().filter(|one| !seen.contains(one)).collect();
    let extra: Vec<_> = seen.iter().filter(|one| !truth.contains(one)).collect();
    assert_eq!(
        seen.len(),
        truth.len(),
        "{what}: missing {missing:#?}, too many {extra:#?}"
    );
    assert_eq!(
        seen, truth,
        "{what}: missing {missing:#?}, too many {extra:#?}"
    );
}

/// The tree of Debian unstable, and that CPython in it, with its path there.
fn debian_tree(version: &str) -> Option<(PathBuf, PathBuf)> {
    let root = xtask::pylayout::debian_tree().ok()?;
    let program = format!("usr/bin/python{version}");
    root.join(&program)
        .exists()
        .then(|| (root, Path::new("/").join(program)))
}

/// Every statement of every kind is told once, with its name, rows, error, batch, database and wait, and without
/// a literal, on each CPython at hand; a query of 100,000 rows costs as many hits as one of one.
#[test]
fn statements_are_told() {
    if !can_run() {
        return;
    }
    let mut programs = BTreeMap::new();
    let system = default_python().unwrap();
    programs.insert("system".to_owned(), Program::start(&system, "sqlite3"));
    // Its own SQLite, 3.51, in the module.
    match Venv::ensure(&system, &["pysqlite3-binary==0.5.4.post2"]) {
        Ok(venv) => {
            let program = Program::start(&venv.program("python"), "pysqlite3");
            programs.insert("bundled".to_owned(), program);
        }
        Err(error) => println!("SKIPPED: a bundled SQLite, which cannot be had: {error:#}"),
    }
    // In the program itself, told by its symbol table; without that, nothing is.
    let mut stripped = None;
    match embedded::ensure() {
        Ok(embedded) => {
            let program = Program::start(&embedded.python, "pysqlite3");
            programs.insert("static".to_owned(), program);
            stripped = Some(Program::start(&embedded.stripped, "pysqlite3"));
        }
        Err(error) => println!("SKIPPED: SQLite within a program: {error:#}"),
    }
    for version in ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"] {
        match python(version) {
            Some(interpreter) => {
                let program = Program::start(&interpreter, "sqlite3");
                programs.insert(version.to_owned(), program);
            }
            None => println!("SKIPPED: SQLite on CPython {version}, which is not installed"),
        }
    }
    for version in ["3.14", "3.15"] {
        match (python(version), debian_tree(version)) {
            (Some(interpreter), _) => {
                let program = Program::start(&interpreter, "sqlite3");
                programs.insert(version.to_owned(), program);
            }
            (None, Some((root, interpreter))) => {
                let program = Program::start_in(&root, &interpreter);
                programs.insert(version.to_owned(), program);
            }
            (None, None) => println!("SKIPPED: SQLite on CPython {version}, which is not at hand"),
        }
    }
    let mut args = vec!["--rate".to_owned(), "0".to_owned()];
    for program in programs.values_mut() {
        program.ready_for("warm-up");
        args.extend(["--pid".to_owned(), program.process.pid().to_string()]);
    }
    if let Some(stripped) = &mut stripped {
        stripped.ready_for("warm-up");
        args.extend(["--pid".to_owned(), stripped.process.pid().to_string()]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let agent = Agent::start(&args);
    wait_until_watched(&agent, programs.len());
    if let Some(stripped) = &mut stripped {
        stripped.go("warm-up", "statements");
    }
    for program in programs.values_mut() {
        program.go("warm-up", "statements");
    }
    thread::sleep(SETTLE);
    for program in programs.values_mut() {
        program.go("statements", "fetch");
    }
    let stats = enable_stats(Stats::RunTime).unwrap();
    for (version, program) in &mut programs {
        let (before, _) = hits();
        program.go("fetch", "single");
        let (between, begin) = hits();
        let fetch = between - before;
        program.go("single", "end");
        let (after, end) = hits();
        let single = after - between;
        let nanos = (end - begin) / single.max(1);
        println!(
            "CPython {version}: {fetch} hits for 100,000 rows, {single} for 1,000 queries of one, {nanos} ns each"
        );
        assert!((1..=20).contains(&fetch), "{version}: {fetch} hits");
        assert!(
            (2_000..=4_010).contains(&single),
            "{version}: {single} hits"
        );
    }
    drop(stats);
    thread::sleep(SETTLE);
    let seen = agent.stop();
    if let Some(stripped) = &stripped {
        let pid = u64::from(stripped.process.pid());
        assert!(seen.spans.iter().all(|span| span.pid != pid));
        let watched = seen.output.matches("watching SQLite").count();
        assert_eq!(watched, programs.len());
    }
    let raw: String = seen
        .spans
        .iter()
        .map(|span| format!("{} {}\n", span.name, span.text("db.query.text")))
        .collect();
    for literal in ["secret", "user-7", "300000"] {
        assert!(!raw.contains(literal), "{literal} leaked");
    }
    for (version, program) in &programs {
        let pid = u64::from(program.process.pid());
        let of_it: Vec<_> = seen.spans.iter().filter(|span| span.pid == pid).collect();
        let with = |mark: &str| {
            let mark = mark.to_owned();
            of_it
                .iter()
                .copied()
                .filter(move |span| span.text("db.query.text").contains(&mark))
                .collect::<Vec<_>>()
        };
        let all = with("all_of_them");
        assert_eq!(all.len(), 1, "{version}");
        assert_eq!(all[0].int("db.response.returned_rows"), Some(100_000));
        assert_eq!(all[0].name, "SELECT users");
        let singles = with("AS single");
        assert_eq!(singles.len(), 1_000, "{version}");
        assert!(
            singles
                .iter()
                .all(|span| span.int("db.response.returned_rows") == Some(1))
        );
        let main: Vec<_> = of_it
            .iter()
            .copied()
            .filter(|span| {
                let text = span.text("db.query.text");
                !["warm_up", "all_of_them", "AS single"]
                    .iter()
                    .any(|mark| text.contains(mark))
            })
            .collect();
        compare(version, &main, truth(&program.path("truth.json")));
        for span in main {
            let Some(waited) = span.float("decnet.db.lock_wait.duration") else {
                continue;
            };
            let lasted = (span.end - span.start) as f64 / 1e9;
            let least = match span.text("error.type") {
                "" => 0.3,
                _ => 0.15,
            };
            assert!(
                (least..=lasted).contains(&waited),
                "{version}: waited {waited} of {lasted} s"
            );
        }
    }
    for counter in [
        "statements_lost_full",
        "statements_lost_busy",
        "lost_ring_full",
    ] {
        assert_eq!(seen.counter(counter), 0, "{counter}");
    }
}
