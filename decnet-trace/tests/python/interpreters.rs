//! The interpreters at hand, and the programs that run on them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use decnet_trace::python::{Inspection, Inspector, PyProcess, retry_after};
use serde_json::Value;
use xtask::bed::interpreter::{Interpreter, Program};

/// A program running on an interpreter. It is killed when this is dropped.
pub(crate) struct Running {
    program: Program,
    name: String,
}

/// Starts a program of `programs/` on an interpreter, with these arguments.
pub(crate) fn start(interpreter: &Interpreter, name: &str, arguments: &[&str]) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/python/programs")
        .join(name);
    Running {
        program: interpreter.run(&script, arguments).unwrap(),
        name: interpreter.name(),
    }
}

/// Starts an interpreter with these arguments.
pub(crate) fn start_with(interpreter: &Interpreter, arguments: &[&str]) -> Running {
    Running {
        program: interpreter.start(arguments).unwrap(),
        name: interpreter.name(),
    }
}

impl Running {
    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The interpreter that it runs on.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The next line that it prints, as JSON.
    pub(crate) fn json(&mut self) -> Value {
        let line = self.program.line().unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{}: {error}: {line:?}", self.name))
    }

    /// Inspects it until it has started.
    pub(crate) fn inspect(&self) -> Inspection {
        let mut inspector = Inspector::new();
        let start = Instant::now();
        for attempt in 0.. {
            let inspection = inspector.inspect(self.pid());
            match (&inspection, retry_after(attempt)) {
                (Inspection::Starting(_), Some(wait))
                    if start.elapsed() < Duration::from_secs(20) =>
                {
                    std::thread::sleep(wait);
                }
                _ => return inspection,
            }
        }
        unreachable!("the attempts do not end")
    }

    /// The same, of a process that is supported.
    pub(crate) fn process(&self) -> PyProcess {
        match self.inspect() {
            Inspection::Python(process) => *process,
            other => panic!("{}: {other:?}", self.name),
        }
    }
}
