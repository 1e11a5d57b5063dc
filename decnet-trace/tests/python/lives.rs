//! Processes and code objects that come and go while they are read.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use decnet_trace::python::{Inspection, Inspector, PythonResolver, ThreadStack, stacks};
use decnet_trace_common::event::PyFrame;

use super::interpreters;
use xtask::bed::interpreter;

fn names(stack: &ThreadStack) -> Vec<String> {
    stack
        .frames
        .iter()
        .flatten()
        .map(|frame| frame.name.to_string())
        .collect()
}

/// A forked child is a process of its own, although its memory tells of its parent's threads; the
/// resolver learns of it by itself.
#[test]
fn forked_children() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lives.py", &["fork"]);
        let child = u32::try_from(running.json()["pid"].as_u64().unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let inspection = Inspector::new().inspect(child);
        let read = match &inspection {
            Inspection::Python(process) => stacks(process, &mut PythonResolver::new()),
            other => panic!("{}: {other:?}", running.name()),
        };
        let read = read.unwrap();
        // SAFETY: a signal to the child of the process that this test started.
        unsafe { libc::kill(child.cast_signed(), libc::SIGKILL) };
        assert_eq!(read.len(), 1, "{}: {read:?}", running.name());
        assert_eq!(read[0].tid, Some(child));
        assert_eq!(
            names(&read[0]),
            ["in_child", "fork", "<module>"],
            "{}",
            running.name()
        );
    }
}

/// Inspecting and reading a process whose threads start and end all the time never fails and never
/// says that it is unsupported.
#[test]
fn threads_come_and_go() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lives.py", &["churn"]);
        assert!(running.json().is_null());
        let mut inspector = Inspector::new();
        let mut resolver = PythonResolver::new();
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let process = match inspector.inspect(running.pid()) {
                Inspection::Python(process) => process,
                other => panic!("{}: {other:?}", running.name()),
            };
            for stack in stacks(&process, &mut resolver).unwrap() {
                seen.extend(names(&stack).last().cloned());
            }
        }
        assert!(seen.contains("<module>"), "{}: {seen:?}", running.name());
    }
}

/// A process whose threads call and return all the time is supported, whenever it is looked at.
#[test]
fn busy_threads() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "busy.py", &[]);
        let _ready = running.json();
        let mut inspector = Inspector::new();
        for look in 0..300 {
            let inspection = inspector.inspect(running.pid());
            assert!(
                matches!(inspection, Inspection::Python(_)),
                "{}, look {look}: {inspection:?}",
                running.name()
            );
        }
    }
}

/// A thread that runs in another interpreter of the process is read too, and told apart.
#[test]
fn sub_interpreters() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lives.py", &["sub"]);
        if running.json() != true {
            eprintln!(
                "SKIPPED: {}: it has no module for sub-interpreters",
                running.name()
            );
            continue;
        }
        let process = running.process();
        let read = stacks(&process, &mut PythonResolver::new()).unwrap();
        let other = read
            .iter()
            .find(|stack| names(stack).iter().any(|name| name == "in_sub_interpreter"));
        let other = other.unwrap_or_else(|| panic!("{}: {read:#?}", running.name()));
        assert_ne!(other.interpreter, 0);
        // Until 3.11 nothing tells which thread runs it; it is never taken for the one that made it.
        let known = process.version.minor >= 12;
        assert!(
            other.tid.is_some() == known && other.tid != Some(running.pid()),
            "{}: {read:#?}",
            running.name()
        );
        let main = read
            .iter()
            .find(|stack| stack.tid == Some(running.pid()) && stack.interpreter == 0);
        assert_eq!(names(main.unwrap()).last().unwrap(), "<module>");
    }
}

/// A code object that another has taken the place of is noticed: the names that come back are those
/// that run, never one that ran at that address before.
#[test]
fn addresses_are_used_again() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lives.py", &["reuse"]);
        assert!(running.json().is_null());
        let process = running.process();
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let (mut last, mut whole) = (0, 0);
        let start = Instant::now();
        while (whole <= 50 || resolver.counts().reused <= 5)
            && start.elapsed() < Duration::from_secs(20)
        {
            let read = stacks(&process, &mut resolver).unwrap();
            let stack = &read[0];
            let Some(Some(frame)) = stack.frames.first().filter(|_| stack.consistent) else {
                continue;
            };
            let number = frame.name.strip_prefix('f').map(str::parse::<u64>);
            let Some(Ok(number)) = number else { continue };
            // Functions run in the order of their numbers, each in a file named after it.
            assert!(number >= last, "{}: {number} after {last}", running.name());
            assert_eq!(*frame.file, *frame.name, "{}", running.name());
            let first_line = u64::from(frame.first_line);
            assert_eq!(first_line, number % 50 + 1, "{}", running.name());
            last = number;
            whole += 1;
        }
        let counts = resolver.counts();
        assert!(
            whole > 50 && counts.reused > 5,
            "{}: {whole}, {counts:?}",
            running.name()
        );
    }
}

/// So is one that has nothing else of its own but the characters of its name, at the address where the last
/// one's were.
#[test]
fn names_are_told_by_their_characters() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "lives.py", &["alike"]);
        assert!(running.json().is_null());
        let process = running.process();
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let mut numbers = Vec::new();
        let start = Instant::now();
        while numbers.len() < 200 && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_micros(700));
            let read = stacks(&process, &mut resolver).unwrap();
            let stack = &read[0];
            let Some(Some(frame)) = stack.frames.first().filter(|_| stack.consistent) else {
                continue;
            };
            let number = frame.name.strip_prefix('f').map(str::parse::<u64>);
            if let Some(Ok(number)) = number {
                numbers.push(number);
            }
        }
        assert!(numbers.is_sorted(), "{}: {numbers:?}", running.name());
        numbers.dedup();
        assert!(numbers.len() > 20, "{}: {numbers:?}", running.name());
    }
}

/// A frame of an address that holds no code object is unknown, and spoils none of its stack.
#[test]
fn what_is_no_code_is_unknown() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "stacks.py", &[]);
        running.json();
        let process = running.process();
        let mut resolver = PythonResolver::new();
        let good = stacks(&process, &mut resolver).unwrap()[0].frames.len();
        assert!(good > 0);
        let bad = [
            PyFrame {
                code: 0x10,
                instr: 0,
            },
            PyFrame {
                code: process.runtime,
                instr: 0,
            },
        ];
        let mut found = Vec::new();
        resolver.resolve_stack(running.pid(), &bad, &mut found);
        assert_eq!(found, [None, None]);
    }
}
