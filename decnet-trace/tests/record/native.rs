//! Native frames and the kernel's, against programs whose calls are known.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;
use xtask::bed::interpreter::pyenv;

use super::support::{
    Recorder, Running, alone, can_run, name, on_each, program, reported, stacks, system, total,
    with,
};

/// The native stacks of a C program are its chain of calls, whole, from `main` to the loop: with frame
/// pointers and without them, by unwind tables; and by frame pointers alone only where there are some.
#[test]
fn native_stacks_are_the_programs_calls() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let binary = folder.path().join("chain");
    for (flag, memory, whole) in [
        (KEEP, "64", true),
        (KEEP, "0", true),
        (OMIT, "64", true),
        (OMIT, "0", false),
    ] {
        if !built("chain.c", &[flag], &binary) {
            return;
        }
        let mut child = Command::new(&binary)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let pid = child.id().to_string();
        let stacks = stacks(&["--native", "--unwind-memory", memory, "-p", &pid, "-d", "1"]);
        child.kill().unwrap();
        child.wait().unwrap();
        let all = total(&stacks);
        assert!(all > 50, "{all} samples");
        let chain: Vec<&str> = std::iter::repeat_n("outermost", 21)
            .chain(["middle", "innermost"])
            .collect();
        for (frames, count) in &stacks {
            let names: Vec<&str> = frames.iter().map(|frame| name(frame)).collect();
            // `time` of the C library and of the vDSO come under the loop.
            let main = names.iter().position(|name| *name == "main");
            let found = main.is_some_and(|main| names[main + 1..].starts_with(&chain));
            assert_eq!(found, whole, "{flag} {memory}: {count} × {frames:?}");
        }
    }
}

/// Where Python calls a library without frame pointers, loaded while it is recorded, and that calls back, the
/// stack shows all of it in the order of the calls; by frame pointers alone it does not.
#[test]
fn callbacks_stand_between_native_frames() {
    if !can_run() {
        return;
    }
    // From 3.12 on, and up to 3.10, which Python frames stand under which native ones is certain.
    let series = ["3.12", "3.10"];
    let Some(python) = series.into_iter().find_map(pyenv) else {
        println!("SKIPPED: no CPython 3.12 or 3.10 at hand");
        return;
    };
    let _alone = alone();
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("libcallback.so");
    if !built("callback.c", &[OMIT, "-shared", "-fPIC"], &library) {
        return;
    }
    let chain = [
        "call", "c_outer", "c_outer", "c_outer", "c_outer", "c_inner", "callback",
    ];
    for (memory, shows) in [("64", true), ("0", false)] {
        let arguments = [library.to_str().unwrap(), "2"];
        let mut running = Running::start(&python, "callback.py", &arguments);
        let pid = running.pid();
        let recorder = Recorder::start(&[
            "--native",
            "--unwind-memory",
            memory,
            "-p",
            &pid,
            "-d",
            "20",
        ]);
        writeln!(running.stdin).unwrap();
        let (stacks, report) = recorder.finish();
        let (mut whole, mut all) = (0, 0);
        for (frames, count) in &stacks {
            // The compiler may have made an alias for the calls within: `c_outer.localalias`.
            let names: Vec<&str> = frames
                .iter()
                .map(|frame| name(frame).trim_end_matches(".localalias"))
                .collect();
            if !names.contains(&"callback") {
                continue;
            }
            all += count;
            // What leads from Python to C and back stands in between.
            let mut rest = names.iter();
            whole += count * u64::from(chain.iter().all(|next| rest.any(|name| name == next)));
        }
        assert!(all > 200, "{all} samples: {report}");
        match shows {
            true => assert!(
                whole * 100 > all * 70,
                "{whole} of {all}: {stacks:?}\n{report}"
            ),
            false => assert_eq!(whole, 0, "of {all}: {stacks:?}"),
        }
        assert_eq!(report.contains("unwind tables: "), shows, "{report}");
    }
}

/// Whose tables find no room is told, with what to do; there are samples all the same.
#[test]
fn processes_without_tables_are_named() {
    if !can_run() {
        return;
    }
    let Some(python) = system() else {
        return;
    };
    let _alone = alone();
    let running = Running::start(&python, "mix.py", &["60"]);
    let pid = running.pid();
    let arguments = ["--native", "--unwind-memory", "1", "-p", &pid, "-d", "1"];
    let (stacks, report) = reported(&arguments);
    assert!(with(&stacks, "heavy") > 10, "{stacks:?}");
    let told = format!("frame pointers for code without tables in pid {pid}: the 1.0 MiB for");
    let line = report.lines().find(|line| line.starts_with(&told));
    assert!(
        line.is_some_and(|line| line.contains("--unwind-memory")),
        "{report}"
    );
}

/// How the compiler is told to keep frame pointers, or not to.
const KEEP: &str = "-fno-omit-frame-pointer";
const OMIT: &str = "-fomit-frame-pointer";

/// Compiles a program; whether there is a compiler.
fn built(source: &str, flags: &[&str], to: &Path) -> bool {
    let built = Command::new("cc")
        .args(["-O1", "-fno-optimize-sibling-calls", "-o"])
        .arg(to)
        .args(flags)
        .arg(program(source))
        .status();
    let is_built = built.is_ok_and(|status| status.success());
    if !is_built {
        println!("SKIPPED: no C compiler at hand");
    }
    is_built
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
