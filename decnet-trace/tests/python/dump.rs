//! `decnet-trace dump`, from its command line to what it prints.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::bed::interpreter;

use super::interpreters::{self, Running};

/// What `dump` prints of a program.
fn dump(running: &Running, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_decnet-trace"))
        .args(["dump", "-p", &running.pid().to_string()])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", running.name());
    assert!(said.is_empty(), "{}: {said}", running.name());
    String::from_utf8(output.stdout).unwrap()
}

fn json(running: &Running) -> Value {
    serde_json::from_str(&dump(running, &["--json"])).unwrap()
}

/// The name, the file and the line of a frame.
fn place(frame: &Value) -> [&Value; 3] {
    ["name", "filename", "line"].map(|key| &frame[key])
}

/// The threads of a process, each with the frames that the interpreter tells of it, innermost first; as text, a
/// line for each frame, under the thread's.
#[test]
fn threads() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "stacks.py", &[]);
        let told = running.json();
        let told = told.as_object().unwrap();
        let name = running.name().to_owned();
        let (read, text) = (json(&running), dump(&running, &[]));
        assert_eq!(read["pid"], running.pid(), "{name}");
        let version = read["python"].as_str().unwrap();
        assert!(
            text.starts_with(&format!("Process {}: CPython {version} (", running.pid())),
            "{name}: {text}"
        );
        let threads = read["threads"].as_array().unwrap();
        assert_eq!(threads.len(), told.len() + 1, "{name}: {read}");
        assert_eq!(threads[0]["tid"], running.pid(), "{name}");
        for (tid, frames) in told {
            let thread = threads
                .iter()
                .find(|thread| thread["tid"].as_u64() == tid.parse().ok())
                .unwrap_or_else(|| panic!("{name}: no thread {tid}: {read}"));
            let found = thread["frames"].as_array().unwrap();
            let found: Vec<_> = found.iter().map(place).collect();
            let frames = frames.as_array().unwrap();
            let frames: Vec<_> = frames
                .iter()
                .map(|frame| [&frame[0], &frame[1], &frame[2]])
                .collect();
            assert_eq!(found, frames, "{name}: thread {tid}");
            assert_eq!(thread["holds_gil"], false, "{name}: {thread}");
            for key in ["consistent", "complete"] {
                assert_eq!(thread[key], true, "{name}: {thread}");
            }
            let lines: String = frames
                .iter()
                .map(|[name, file, line]| {
                    let (name, file) = (name.as_str().unwrap(), file.as_str().unwrap());
                    format!("    {name} ({file}:{line})\n")
                })
                .collect();
            let title = format!("\nThread {tid} (");
            let at = text
                .find(&title)
                .unwrap_or_else(|| panic!("{name}: {text}"));
            let own = text[at + title.len()..].split_once('\n').unwrap().1;
            assert!(own.starts_with(&lines), "{name}: {lines}\n{own}");
        }
    }
}

/// The tasks of a process, by their names, with the functions that they wait in.
#[test]
fn tasks() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "tasks.py", &[]);
        let told = running.json();
        let name = running.name().to_owned();
        let (read, text) = (json(&running), dump(&running, &[]));
        let tasks = read["tasks"].as_array().unwrap();
        // One more is of another thread's loop.
        assert_eq!(
            Some(tasks.len() as u64),
            told["count"].as_u64().map(|count| count + 1),
            "{name}: {read}"
        );
        let task = |wanted: &str| {
            let found = tasks.iter().find(|task| task["name"] == wanted);
            found.unwrap_or_else(|| panic!("{name}: no {wanted}: {read}"))
        };
        assert_eq!(task("chain")["state"], "suspended", "{name}");
        assert_eq!(task("created")["state"], "created", "{name}");
        assert_eq!(task("waits")["awaited_task"], "chain", "{name}");
        let frames = task("größe λ 🦀")["frames"].as_array().unwrap();
        let outermost: Vec<_> = frames.iter().rev().map(|frame| &frame["name"]).collect();
        assert!(
            outermost.starts_with(&["chain", "middle", "leaf"].map(Value::from).each_ref()),
            "{name}: {frames:?}"
        );
        assert!(
            text.contains("\nTask (suspended): \"waits\" awaits task \"chain\"\n"),
            "{name}: {text}"
        );
    }
}

/// Waits until a process's main thread sleeps, as the kernel says.
fn wait_until_asleep(pid: u32) {
    let begin = Instant::now();
    let sleeps = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].map(|call| call.to_string());
    loop {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        let number = call.split_whitespace().next().unwrap_or_default();
        if sleeps.iter().any(|sleep| sleep == number) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{pid}: {call}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is stuck in C with the GIL, in which nothing of Python could answer, is read at once: who has
/// the GIL, and from where.
#[test]
fn a_process_that_is_stuck_with_the_gil() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "stuck.py", &[]);
        let name = running.name().to_owned();
        if running.json() != true {
            println!("SKIPPED: {name}: it has no ctypes");
            continue;
        }
        wait_until_asleep(running.pid());
        let start = Instant::now();
        let read = json(&running);
        assert!(start.elapsed() < Duration::from_secs(10), "{name}");
        let threads = read["threads"].as_array().unwrap();
        assert_eq!(threads.len(), 2, "{name}: {read}");
        let functions = |thread: &Value| -> Vec<String> {
            let frames = thread["frames"].as_array().unwrap().iter();
            let names = frames.map(|frame| frame["name"].as_str().unwrap().to_owned());
            names.collect()
        };
        assert_eq!(threads[0]["tid"], running.pid(), "{name}: {read}");
        assert_eq!(threads[0]["holds_gil"], true, "{name}: {read}");
        assert_eq!(
            functions(&threads[0]),
            ["keeps_the_gil", "<module>"],
            "{name}"
        );
        assert_eq!(threads[1]["holds_gil"], false, "{name}: {read}");
        assert_eq!(functions(&threads[1])[0], "waits", "{name}: {read}");
    }
}
