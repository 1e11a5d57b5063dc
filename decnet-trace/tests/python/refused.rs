//! What is refused, with which reason.

use std::{ffi::OsString, process::Command};

use decnet_trace::python::{Inspection, Inspector, Unsupported};

use super::interpreters;

fn sleeping() -> [OsString; 2] {
    [
        "-c".into(),
        "import time; print('null'); time.sleep(100)".into(),
    ]
}

/// CPythons older than 3.8 are refused by name.
#[test]
fn old_versions() {
    for series in ["2.7", "3.6", "3.7"] {
        let Some(interpreter) = interpreters::pyenv(series) else {
            eprintln!("SKIPPED CPython {series}: none at hand");
            continue;
        };
        let running = interpreter.start_with(&sleeping());
        std::thread::sleep(std::time::Duration::from_millis(300));
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
