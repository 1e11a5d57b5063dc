//! What cannot be recorded, and what ends while it is.

use std::{
    fs,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use decnet_trace::python::{Inspection, Inspector};

use tempfile::TempDir;

use xtask::bed::interpreter::{self, Program};

use super::support::{AGENT, Running, alone, can_run, program, record, reported, stacks, with};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// What cannot be recorded is refused in one line, with its exit code, before anything is recorded.
#[test]
fn refusals_are_one_line() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let mut sleep = Command::new("sleep").arg("600").spawn().unwrap();
    let native = sleep.id().to_string();
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["-p", &native], 4, "is not a Python process; --native"),
        (vec!["-p", "4194304"], 4, "there is no process 4194304"),
        (
            vec!["-p", &native, "-o", "/nowhere/x.svg"],
            2,
            "cannot write /nowhere/x.svg",
        ),
        (vec!["-p", &native, "-o", "/"], 2, "cannot write /: is a"),
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
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}

/// A Python that runs for long, of a version that is not read.
fn start_old(series: &str) -> Option<Program> {
    let code =
        "import sys, time; sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(600)";
    let started = interpreter::old(series).and_then(|python| {
        let mut program = python.start(&["-c", code])?;
        program.line()?;
        Ok(program)
    });
    started
        .inspect_err(|why| println!("SKIPPED: CPython {series}: {why:#}"))
        .ok()
}

/// CPythons that are too old are refused by each verb that reads them, in one line that says which are not;
/// `ps` lists them with that reason.
#[test]
fn old_pythons_are_refused() {
    if !can_run() {
        return;
    }
    for series in ["2.7", "3.7"] {
        let Some(program) = start_old(series) else {
            continue;
        };
        let pid = program.pid().to_string();
        let reason = |said: &str| {
            said.contains(&format!("CPython {series}"))
                && said.contains("is not supported (3.8 to 3.15 are)")
        };
        for arguments in [vec!["record", "-d", "1", "-o", "/dev/null"], vec!["dump"]] {
            let output = Command::new(AGENT)
                .args(&arguments)
                .args(["-p", &pid])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{arguments:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
            assert!(reason(&said), "{arguments:?}: {said}");
            assert!(said.contains("--native"), "{arguments:?}: {said}");
        }
        let output = Command::new(AGENT).arg("ps").output().unwrap();
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = listed.lines();
        let line = lines.find(|line| line.split_whitespace().next() == Some(&pid));
        assert!(line.is_some_and(reason), "{listed}");
    }
}

/// Without the privileges, nothing of another user's process is recorded or read: exit code 3, and one line.
#[test]
fn other_users_are_refused() {
    if !can_run() {
        return;
    }
    let Some(python) = interpreter::system() else {
        println!("SKIPPED: there is no /usr/bin/python3");
        return;
    };
    let running = Running::start(&python, "mix.py", &["60"]);
    // Where this is built, others may not look.
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let agent = folder.path().join("decnet-trace");
    fs::copy(AGENT, &agent).unwrap();
    for arguments in [vec!["record", "-o", "/dev/null"], vec!["dump"]] {
        let output = Command::new(&agent)
            .args(&arguments)
            .args(["-p", &running.pid()])
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains("root"), "{arguments:?}: {said}");
    }
}

/// A process in pid and mount namespaces of its own, with another /proc, is recorded by the number that it
/// has outside.
#[test]
fn other_namespaces_are_no_obstacle() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let mut outer = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg("/usr/bin/python3")
        .arg(program("mix.py"))
        .arg("60")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(outer.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    if line != "ready\n" {
        println!("SKIPPED: no new namespaces can be had here");
        outer.wait().unwrap();
        return;
    }
    let children = format!("/proc/{0}/task/{0}/children", outer.id());
    let inner = fs::read_to_string(children).unwrap();
    let cpu = stacks(&["-p", inner.trim(), "-d", "1"]);
    let (wall, _) = reported(&["-p", inner.trim(), "-d", "1", "--wall"]);
    outer.kill().unwrap();
    outer.wait().unwrap();
    assert!(with(&cpu, "heavy") > 50, "{cpu:?}");
    assert!(with(&wall, "heavy") > 20, "{wall:?}");
}

/// What a process says of its own layout is not believed: one whose `_Py_DebugOffsets` are garbage is
/// refused in one line that says so.
#[test]
fn corrupt_debug_offsets_are_refused() {
    if !can_run() {
        return;
    }
    let Some(python) = interpreter::pyenv("3.13") else {
        println!("SKIPPED: CPython 3.13: none at hand");
        return;
    };
    let _alone = alone();
    let running = Running::start(&python, "mix.py", &["60"]);
    let Inspection::Python(process) = Inspector::new().inspect(running.child.id()) else {
        panic!("it is one that is read");
    };
    // The process is this test's own; decnet-trace itself writes to none.
    let path = format!("/proc/{}/mem", running.child.id());
    let mut memory = fs::OpenOptions::new().write(true).open(path).unwrap();
    // Behind the cookie, the version and the flag of free threading: the first offsets.
    memory.seek(SeekFrom::Start(process.runtime + 24)).unwrap();
    memory.write_all(&[0xff; 64]).unwrap();
    let output = record(&["-p", &running.pid(), "-d", "1", "-o", "/dev/null"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("CPython 3.13"), "{said}");
    assert!(said.contains("debug offsets"), "{said}");
}
