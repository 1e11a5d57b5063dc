//! Native frames and the kernel's, against programs whose calls are known.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::support::{Running, alone, can_run, name, on_each, program, stacks, total};

/// The native stacks of a C program are its chain of calls, whole, from `main` to the loop.
#[test]
fn native_stacks_are_the_programs_calls() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let binary = folder.path().join("chain");
    let built = Command::new("cc")
        .args([
            "-O1",
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
            "-o",
        ])
        .arg(&binary)
        .arg(program("chain.c"))
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no C compiler at hand");
        return;
    }
    let mut child = Command::new(binary).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let stacks = stacks(&["--native", "-p", &child.id().to_string(), "-d", "1"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let all = total(&stacks);
    assert!(all > 50, "{all} samples");
    let chain: Vec<&str> = std::iter::repeat_n("outermost", 21)
        .chain(["middle", "innermost"])
        .collect();
    for (frames, count) in &stacks {
        let names: Vec<&str> = frames.iter().map(|frame| name(frame)).collect();
        let main = names.iter().position(|name| *name == "main");
        let main = main.unwrap_or_else(|| panic!("{count} × {frames:?}"));
        // `time` of the C library and of the vDSO come under the loop.
        assert!(
            names[main + 1..].starts_with(&chain),
            "{count} × {frames:?}"
        );
    }
}

/// With `--kernel`, the kernel's functions stand under the Python function that called it, and most of
/// the time is theirs where the kernel does the work.
#[test]
fn kernel_frames_stand_under_python() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    on_each(|python| {
        let running = Running::start(python, "kernel.py", &[]);
        let stacks = stacks(&["--kernel", "-p", &running.pid(), "-d", "1"]);
        let all = total(&stacks);
        let mut writes = 0;
        for (frames, count) in &stacks {
            let kernel = frames.iter().position(|frame| frame.ends_with("_[k]"));
            let (python_frames, kernel_frames) = frames.split_at(kernel.unwrap_or(frames.len()));
            assert!(
                python_frames[0].starts_with("<module> ("),
                "{}: {frames:?}",
                python.name()
            );
            assert!(
                kernel_frames.iter().all(|frame| frame.ends_with("_[k]")),
                "{frames:?}"
            );
            // What else interrupts it may come anywhere.
            if kernel_frames.iter().any(|frame| frame.contains("write")) {
                assert!(
                    python_frames.last().unwrap().starts_with("store ("),
                    "{frames:?}"
                );
                writes += count;
            }
        }
        assert!(
            writes * 2 > all,
            "{}: {writes} of {all}: {stacks:?}",
            python.name()
        );
    });
}
