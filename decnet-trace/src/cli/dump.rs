//! `decnet-trace dump`: what every thread and every asyncio task of a Python process runs, now.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use clap::Args;
use serde::Serialize;

use crate::{
    error::{Error, Exit, Result},
    python::{
        End, Inspection, Inspector, PyProcess, PythonResolver, ReadError, Task, TaskState,
        ThreadStack, retry_after, stacks, tasks,
    },
    symbolize::PythonLocation,
};

/// Shows the stack of every thread and the awaits of every asyncio task of a Python process, once.
///
/// The process is read while it runs: it is neither stopped nor changed.
#[derive(Args, Debug)]
#[command(after_help = "Example: sudo decnet-trace dump -p 1234\n\n\
    Exit codes: 0 done, 1 failed at work, 2 usage, 3 not permitted, \
    4 no such process, or none that can be read.")]
pub(super) struct DumpArgs {
    /// The process
    #[arg(long, short, value_name = "PID")]
    pid: u32,
    /// Print JSON, one object
    #[arg(long, short)]
    json: bool,
}

/// Does it.
///
/// # Errors
///
/// The process is none, may not be read, or is no Python that is supported.
pub(super) fn run(args: &DumpArgs) -> Result<Exit> {
    let dump = Dump::take(args.pid)?;
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&dump)
            .map_err(|error| Error::failed(format!("cannot write the dump: {error}")))?;
        text.push('\n');
        text
    } else {
        dump.text()
    };
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|error| Error::failed(format!("cannot write the dump: {error}")))?;
    Ok(Exit::Done)
}

/// A process at one moment.
#[derive(Debug, Serialize)]
struct Dump {
    pid: u32,
    python: String,
    interpreter: String,
    threads: Vec<ThreadRow>,
    tasks: Vec<TaskRow>,
}

#[derive(Debug, Serialize)]
struct ThreadRow {
    tid: Option<u32>,
    name: String,
    /// The number of its interpreter; 0 is the main one's.
    interpreter: i64,
    active: bool,
    holds_gil: bool,
    /// False where the thread ran on so fast that frames of two moments may be mixed.
    consistent: bool,
    /// False where the outermost frames are missing.
    complete: bool,
    frames: Vec<FrameRow>,
}

#[derive(Debug, Serialize)]
struct TaskRow {
    name: String,
    state: &'static str,
    awaits: String,
    awaited_task: Option<String>,
    frames: Vec<FrameRow>,
}

/// A frame, the innermost first in its list; all empty where it could not be read.
#[derive(Debug, Serialize)]
struct FrameRow {
    name: String,
    filename: String,
    line: u32,
}

impl Dump {
    fn take(pid: u32) -> Result<Self> {
        let process = inspect(pid)?;
        let mut resolver = PythonResolver::new();
        resolver.add(&process);
        let unreadable = |error| unreadable(pid, error);
        let threads = stacks(&process, &mut resolver).map_err(unreadable)?;
        let tasks = tasks(&process, &mut resolver).map_err(unreadable)?;
        Ok(Self {
            pid,
            python: process.version.to_string(),
            interpreter: process.path,
            threads: threads.into_iter().map(ThreadRow::from).collect(),
            tasks: task_rows(tasks),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "Process {}: CPython {} ({})",
            self.pid, self.python, self.interpreter
        )?;
        for thread in &self.threads {
            let tid = thread
                .tid
                .map_or_else(|| "?".to_owned(), |tid| tid.to_string());
            let state = if thread.active { "active" } else { "idle" };
            let gil = if thread.holds_gil { "+gil" } else { "" };
            write!(text, "\nThread {tid} ({state}{gil}): \"{}\"", thread.name)?;
            if thread.interpreter != 0 {
                write!(text, " in interpreter {}", thread.interpreter)?;
            }
            if !thread.consistent {
                text.push_str(" [ran on while it was read]");
            }
            text.push('\n');
            write_frames(text, &thread.frames)?;
            if !thread.complete {
                text.push_str("    [more]\n");
            }
        }
        for task in &self.tasks {
            write!(text, "\nTask ({}): \"{}\"", task.state, task.name)?;
            match &task.awaited_task {
                Some(name) => write!(text, " awaits task \"{name}\"")?,
                None if !task.awaits.is_empty() => write!(text, " awaits {}", task.awaits)?,
                None => {}
            }
            text.push('\n');
            write_frames(text, &task.frames)?;
        }
        Ok(())
    }
}

fn write_frames(text: &mut String, frames: &[FrameRow]) -> std::fmt::Result {
    for frame in frames {
        if frame.name.is_empty() {
            writeln!(text, "    [unreadable]")?;
        } else {
            writeln!(
                text,
                "    {} ({}:{})",
                frame.name, frame.filename, frame.line
            )?;
        }
    }
    Ok(())
}

impl From<ThreadStack> for ThreadRow {
    fn from(stack: ThreadStack) -> Self {
        Self {
            tid: stack.tid,
            name: stack.name,
            interpreter: stack.interpreter,
            active: !stack.idle,
            holds_gil: stack.holds_gil,
            consistent: stack.consistent,
            complete: stack.end == End::Complete,
            frames: stack.frames.into_iter().map(FrameRow::from).collect(),
        }
    }
}

impl From<Option<PythonLocation>> for FrameRow {
    fn from(location: Option<PythonLocation>) -> Self {
        match location {
            Some(location) => Self {
                name: location.name.to_string(),
                filename: location.file.to_string(),
                line: location.line,
            },
            None => Self {
                name: String::new(),
                filename: String::new(),
                line: 0,
            },
        }
    }
}

fn task_rows(tasks: Vec<Task>) -> Vec<TaskRow> {
    let names: Vec<(u64, String)> = tasks
        .iter()
        .map(|task| (task.address, task.name.clone()))
        .collect();
    let name = |address| {
        names
            .iter()
            .find(|(known, _)| *known == address)
            .map(|(_, name)| name.clone())
    };
    tasks
        .into_iter()
        .map(|task| TaskRow {
            name: task.name,
            state: match task.state {
                TaskState::Running => "running",
                TaskState::Suspended => "suspended",
                TaskState::Created => "created",
                TaskState::Finished => "finished",
            },
            awaits: task.awaits,
            awaited_task: task.awaited_task.and_then(name),
            frames: task.frames.into_iter().map(FrameRow::from).collect(),
        })
        .collect()
}

/// Inspects the process, and waits a little for one that has just started.
fn inspect(pid: u32) -> Result<PyProcess> {
    let mut inspector = Inspector::new();
    let mut attempt = 0;
    loop {
        match inspector.inspect(pid) {
            Inspection::Python(process) => return Ok(*process),
            Inspection::Starting(why) => match retry_after(attempt).filter(|_| attempt < 20) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(Error::failed(format!("process {pid} is not ready: {why}"))),
            },
            Inspection::Unsupported(why) => {
                return Err(Error::no_target(format!(
                    "process {pid} cannot be read: {why}; `decnet-trace record --native` profiles it without its Python frames"
                )));
            }
            Inspection::NotPython => {
                return Err(Error::no_target(format!(
                    "process {pid} is not a Python process; `decnet-trace record --native` profiles it all the same"
                )));
            }
            Inspection::Unreadable(error) => return Err(unreadable(pid, error)),
        }
        attempt += 1;
    }
}

fn unreadable(pid: u32, error: ReadError) -> Error {
    match error {
        ReadError::Gone => Error::no_target(format!("there is no process {pid}")),
        ReadError::Denied => Error::unsupported(format!("process {pid}: {error}; run it as root")),
        ReadError::Unmapped(_) => Error::failed(format!("process {pid}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text: a line for each thread and task, its frames under it as py-spy's.
    #[test]
    fn text() {
        let frame = |name: &str, line| FrameRow {
            name: name.into(),
            filename: "a.py".into(),
            line,
        };
        let dump = Dump {
            pid: 7,
            python: "3.11.2".into(),
            interpreter: "/usr/bin/python3.11".into(),
            threads: vec![ThreadRow {
                tid: Some(7),
                name: "python3".into(),
                interpreter: 0,
                active: true,
                holds_gil: true,
                consistent: true,
                complete: false,
                frames: vec![frame("f", 3), FrameRow::from(None)],
            }],
            tasks: vec![TaskRow {
                name: "Task-1".into(),
                state: "suspended",
                awaits: "_asyncio.Task".into(),
                awaited_task: Some("worker".into()),
                frames: vec![frame("main", 9)],
            }],
        };
        assert_eq!(
            dump.text(),
            "Process 7: CPython 3.11.2 (/usr/bin/python3.11)\n\n\
             Thread 7 (active+gil): \"python3\"\n    f (a.py:3)\n    [unreadable]\n    [more]\n\n\
             Task (suspended): \"Task-1\" awaits task \"worker\"\n    main (a.py:9)\n"
        );
    }

    /// Each way to fail has its exit code.
    #[test]
    fn failures() {
        let exit = |pid| Dump::take(pid).map_or_else(|error| error.exit(), |_| Exit::Done);
        assert_eq!(exit(u32::MAX), Exit::NoTarget);
        assert_eq!(exit(std::process::id()), Exit::NoTarget);
    }
}
