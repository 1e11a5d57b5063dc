//! Stacks as read from outside, against `sys._current_frames`.

use decnet_trace::python::{End, PyProcess, PythonResolver, ThreadStack, stacks};
use serde_json::Value;

use super::interpreters::{self, Running};
use xtask::bed::interpreter;

/// A frame as both sides tell it: the function's name, its file, the line.
type Frame = (String, String, u32);

fn read(process: &PyProcess) -> Vec<ThreadStack> {
    let mut resolver = PythonResolver::new();
    resolver.add(process);
    stacks(process, &mut resolver).unwrap()
}

fn frames(stack: &ThreadStack) -> Vec<Frame> {
    stack
        .frames
        .iter()
        .map(|frame| {
            let frame = frame
                .as_ref()
                .unwrap_or_else(|| panic!("a frame is not resolved: {stack:?}"));
            (frame.name.to_string(), frame.file.to_string(), frame.line)
        })
        .collect()
}

fn truth(frames: &Value) -> Vec<Frame> {
    frames
        .as_array()
        .unwrap()
        .iter()
        .map(|frame| {
            let text = |index: usize| frame[index].as_str().unwrap().to_owned();
            (
                text(0),
                text(1),
                u32::try_from(frame[2].as_u64().unwrap()).unwrap(),
            )
        })
        .collect()
}

/// The stack of every thread, wherever it is, is the one that the interpreter tells, frame by frame:
/// recursion, generators, coroutines, callbacks from C, decorators, class bodies, executed text,
/// names of every width, work without the GIL, lines far apart.
#[test]
fn stacks_are_the_interpreters_own() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "stacks.py", &[]);
        let told = running.json();
        let process = running.process();
        let read = read(&process);
        let told = told.as_object().unwrap();
        assert!(told.len() >= 15);
        for (tid, told) in told {
            let tid: u32 = tid.parse().unwrap();
            let stack = read.iter().find(|stack| stack.tid == Some(tid));
            let stack =
                stack.unwrap_or_else(|| panic!("{}: no thread {tid} in {read:?}", running.name()));
            assert_eq!(frames(stack), truth(told), "{}", running.name());
            assert_eq!((stack.end, stack.consistent), (End::Complete, true));
            assert!(!stack.holds_gil, "{}: {stack:?}", running.name());
        }
        // And the main thread waits for its input.
        assert_eq!(read.len(), told.len() + 1);
        assert_eq!(read[0].tid, Some(running.pid()));
        assert_eq!(frames(&read[0]).last().unwrap().0, "<module>");
    }
}

/// How often threads that run are looked at until enough of their stacks came back whole.
const LOOKS_MAX: usize = 5000;

/// Of a process whose threads run all the time, stacks come back whole, also of the thread that holds the
/// GIL; none of them is one that the program never has.
///
/// How many are torn depends on how the threads' time and the looks fall together, and on the machine; that a torn
/// one is told, and none passes for whole, is what counts.
#[test]
fn running_threads_are_read_whole() {
    for interpreter in interpreter::all() {
        let mut running = interpreters::start(&interpreter, "busy.py", &[]);
        let _ready = running.json();
        let process = running.process();
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let (mut looks, mut whole, mut torn, mut gil) = (0, 0, 0, 0);
        while whole < 200 || gil < 20 {
            looks += 1;
            assert!(
                looks <= LOOKS_MAX,
                "{}: {whole} whole, {gil} with the GIL, {torn} torn",
                running.name()
            );
            let read = stacks(&process, &mut resolver)
                .unwrap_or_else(|error| panic!("{}: {error}", running.name()));
            for stack in read.iter().filter(|stack| stack.tid != Some(running.pid())) {
                if !stack.consistent {
                    torn += 1;
                    continue;
                }
                whole += 1;
                gil += usize::from(stack.holds_gil);
                assert_outermost(stack, &running);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let counts = resolver.counts();
        assert!(
            counts.hits > counts.misses,
            "{}: {counts:?}",
            running.name()
        );
    }
}

/// A stack of `busy.py` ends with the frames that each of its threads has, or with as many of them as the thread had
/// entered.
fn assert_outermost(stack: &ThreadStack, running: &Running) {
    let names: Vec<_> = frames(stack).into_iter().map(|frame| frame.0).collect();
    let names: Vec<_> = names
        .iter()
        .map(|name| name.rsplit('.').next().unwrap())
        .collect();
    let outer = names
        .iter()
        .position(|name| matches!(*name, "work" | "run" | "_bootstrap_inner"));
    let outer = &names[outer.unwrap_or_else(|| panic!("{}: {names:?}", running.name()))..];
    assert!(
        ["work", "run", "_bootstrap_inner", "_bootstrap"].ends_with(outer),
        "{}: {names:?}",
        running.name()
    );
}
