//! What is refused, with which reason.

use std::process::Command;

use decnet_trace::python::{Inspection, Inspector, Unsupported};

use super::interpreters;
use xtask::bed::interpreter;

/// For Python 2 and 3.
const PRINT_AND_SLEEP: &str =
    "import sys, time; sys.stdout.write('null\\n'); sys.stdout.flush(); time.sleep(100)";

/// CPythons older than 3.8 are refused by name.
#[test]
fn old_versions() {
    for series in ["2.7", "3.6", "3.7"] {
        let interpreter = match interpreter::old(series) {
            Ok(interpreter) => interpreter,
            Err(why) => {
                println!("SKIPPED: CPython {series}: {why:#}");
                continue;
            }
        };
        let mut running = interpreters::start_with(&interpreter, &["-c", PRINT_AND_SLEEP]);
        assert!(running.json().is_null());
        match running.inspect() {
            Inspection::Unsupported(reason @ Unsupported::Version(_)) => {
                let reason = reason.to_string();
                assert!(reason.starts_with(&format!("CPython {series}")), "{reason}");
                assert!(
                    reason.ends_with("is not supported (3.8 to 3.15 are)"),
                    "{reason}"
                );
            }
            other => panic!("{series}: {other:?}"),
        }
    }
}

/// A program that is no interpreter is none, and a process that has ended is gone.
#[test]
fn no_python() {
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let mut inspector = Inspector::new();
    let inspection = inspector.inspect(child.id());
    child.kill().unwrap();
    assert!(
        matches!(inspection, Inspection::NotPython),
        "{inspection:?}"
    );
    child.wait().unwrap();
    let inspection = inspector.inspect(child.id());
    assert!(
        matches!(inspection, Inspection::Unreadable(_)),
        "{inspection:?}"
    );
}

/// Debug builds and PyPy are refused, each with its reason.
#[test]
fn other_builds() {
    let cases = [
        (
            "python3.14-dbg",
            "is a debug build, which is not supported (release builds are)",
        ),
        ("pypy3", "PyPy is not supported (CPython is)"),
    ];
    for (name, reason) in cases {
        let Some(interpreter) = interpreter::debian(name) else {
            eprintln!("SKIPPED: {name}: not at hand");
            continue;
        };
        let mut running = interpreters::start_with(&interpreter, &["-c", PRINT_AND_SLEEP]);
        assert!(running.json().is_null());
        match running.inspect() {
            Inspection::Unsupported(why) => assert!(why.to_string().ends_with(reason), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}
