//! Programs of several interpreters in one process.

use std::collections::HashMap;

use super::support::{Running, alone, can_run, name, on_each, reported_at_once, said, with};

/// The minor version that an interpreter's name tells: `python3.12`.
fn minor(name: &str) -> u32 {
    let at = name.rfind("python3.").map(|at| at + "python3.".len());
    let digits = name[at.unwrap()..].split(|c: char| !c.is_ascii_digit());
    digits.into_iter().next().unwrap().parse().unwrap()
}

/// A thread that runs in a sub-interpreter has that one's stack and no other thread has; where nothing tells
/// (up to 3.9), its samples have no Python stack rather than a wrong one, and are counted.
#[test]
fn sub_interpreters_are_not_confused() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let version = python.name();
        let mut running = Running::start(python, "others.py", &[]);
        let told = running.line();
        if told == "none" {
            println!("SKIPPED: {version}: it has no module for sub-interpreters");
            return;
        }
        let tids: HashMap<String, u32> = serde_json::from_str(&told).unwrap();
        let pid = running.pid();
        let arguments = ["-p", &pid, "-d", "1", "-r", "499", "--threads"];
        let gil = [&arguments[..], &["--gil"]].concat();
        for (stacks, report) in reported_at_once([&arguments, &gil]) {
            for frames in stacks.keys() {
                for (thread, function) in [
                    ("main", "work_in_main"),
                    ("other", "work_in_other"),
                    ("squeeze", "squeeze"),
                ] {
                    let is_here = frames.iter().any(|frame| name(frame) == function);
                    let own = frames[0].starts_with(&format!("thread ({})", tids[thread]));
                    assert!(!is_here || own, "{version}: {tids:?}: {frames:?}");
                }
            }
            let other = with(&stacks, "work_in_other");
            let main = with(&stacks, "work_in_main");
            assert!(main > 5, "{version}: {stacks:?}\n{report}");
            if minor(&version) >= 10 {
                assert!(other > 5, "{version}: {stacks:?}\n{report}");
            } else {
                assert_eq!(other, 0, "{version}: {stacks:?}");
            }
            assert_eq!(said(&report, "lost"), 0, "{version}: {report}");
        }
    });
}
