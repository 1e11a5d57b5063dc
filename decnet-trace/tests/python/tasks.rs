//! Asyncio tasks as read from outside, against what the program knows of them.

use decnet_trace::python::{PythonResolver, Task, TaskState, tasks};

use super::interpreters;
use xtask::bed::interpreter;

/// The functions and lines of a task's chain of awaits, outermost first, down to where the
/// program's own code ends.
fn chain(task: &Task) -> Vec<(String, u64)> {
    task.frames
        .iter()
        .rev()
        .map(|frame| {
            let frame = frame.as_ref().unwrap();
            (frame.name.to_string(), u64::from(frame.line))
        })
        .collect()
}

/// Every task is found, with its name and its chain of awaits, in every version; the running one is
/// known as running, one that has not begun as created, and the tasks of another loop are there too.
#[test]
fn tasks_are_the_programs_own() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "tasks.py", &[]);
        let told = running.json();
        let name = running.name().to_owned();
        let process = running.process();
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let read = tasks(&process, &mut resolver).unwrap();
        // The other thread's loop runs one task.
        assert_eq!(
            read.len() as u64,
            told["count"].as_u64().unwrap() + 1,
            "{name}: {read:#?}"
        );
        for (task, told) in told["tasks"].as_object().unwrap() {
            let Some(found) = read.iter().find(|found| found.name == *task) else {
                assert_eq!(task, "unnamed", "{name}: {read:#?}");
                continue;
            };
            let found_chain = chain(found);
            for (index, frame) in told.as_array().unwrap().iter().enumerate() {
                let function = frame[0].as_str().unwrap();
                // Before 3.11 a code object does not know its qualified name.
                let function = match process.version.minor {
                    ..=10 => function.rsplit('.').next().unwrap(),
                    _ => function,
                };
                let (read_function, read_line) = &found_chain[index];
                assert_eq!(read_function, function, "{name}: {task}: {found:#?}");
                let line = frame[1].as_u64().unwrap();
                assert!(
                    line == 0 || line == *read_line,
                    "{name}: {task}: {line}, {found:#?}"
                );
            }
            assert_eq!(found.state, TaskState::Suspended, "{name}: {found:#?}");
        }
        let state = |task: &str| {
            read.iter()
                .find(|found| found.name == task)
                .map(|found| found.state)
        };
        assert_eq!(
            state(told["running"].as_str().unwrap()),
            Some(TaskState::Running),
            "{name}"
        );
        assert_eq!(state("created"), Some(TaskState::Created), "{name}");
        assert_eq!(state("finished"), None, "{name}");
        let unnamed = read
            .iter()
            .filter(|task| task.name.starts_with("Task-"))
            .count();
        // The fifty, both loops' main tasks, and gather's two.
        assert_eq!(unnamed, 54, "{name}");
        let waits = read.iter().find(|task| task.name == "waits").unwrap();
        let awaited = read
            .iter()
            .find(|task| Some(task.address) == waits.awaited_task);
        assert_eq!(
            awaited.map(|task| task.name.as_str()),
            Some("chain"),
            "{name}: {waits:?}"
        );
    }
}
