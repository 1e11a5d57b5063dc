//! Finds `queue.SimpleQueue`, through which work passes to threads, and tells the loops that run it.

use std::path::PathBuf;

use super::{
    interpreter::{Finder, Found},
    methods::Module,
};
use crate::symbolize::PythonLocation;

/// `METH_FASTCALL`: the arguments come as an array; with `METH_METHOD`, behind the class.
const METH_FASTCALL: u64 = 0x80;
const METH_METHOD: u64 = 0x200;

/// Where work passes through queues, for uprobes: offsets in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueProbes {
    /// The file: of the module `_queue`, or the interpreter's where that is built in.
    pub file: PathBuf,
    /// `SimpleQueue.put` and `.put_nowait`.
    pub put: [u64; 2],
    /// `SimpleQueue.get` and `.get_nowait`.
    pub get: [u64; 2],
}

/// Looks for the queue's functions in a process. `None` where the module is not loaded or not understood,
/// and in a process with gevent, whose greenlets may leave the stack that a probe waits on.
pub(super) fn find(finder: &mut Finder, pid: u32) -> Option<QueueProbes> {
    let Ok(Found::Interpreter(interpreter)) = finder.find(pid) else {
        return None;
    };
    if interpreter
        .files
        .iter()
        .any(|file| file.path.contains("/gevent/"))
    {
        return None;
    }
    let module = Module::all(finder, pid, &interpreter, "_queue").pop()?;
    let [get_nowait, put_nowait, get, put] =
        module.methods(["get_nowait", "put_nowait", "get", "put"])?;
    for takes_array in [put, put_nowait] {
        if takes_array.flags & (METH_FASTCALL | METH_METHOD) != METH_FASTCALL {
            return None;
        }
    }
    Some(QueueProbes {
        put: [module.offset(&put)?, module.offset(&put_nowait)?],
        get: [module.offset(&get)?, module.offset(&get_nowait)?],
        file: module.file,
    })
}

/// Whether a function is a loop of which it is known that it runs each thing that it takes out of its
/// queue before it takes the next: a pool's of `concurrent.futures`, or that of an aiosqlite connection
/// (from 0.20 on; older ones have another queue).
pub fn is_worker_loop(function: &PythonLocation) -> bool {
    let name = function.name.rsplit('.').next().unwrap_or_default();
    let file = &*function.file;
    match name {
        "_worker" => file.ends_with("/concurrent/futures/thread.py"),
        "run" | "_connection_worker_thread" => file.ends_with("/aiosqlite/core.py"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only loops that are known are trusted.
    #[test]
    fn worker_loops() {
        let location = |name: &str, file: &str| PythonLocation {
            name: name.into(),
            file: file.into(),
            line: 1,
            first_line: 1,
        };
        for (name, file, want) in [
            (
                "_worker",
                "/usr/lib/python3.11/concurrent/futures/thread.py",
                true,
            ),
            ("_worker", "/srv/app/thread.py", false),
            ("Connection.run", "/venv/aiosqlite/core.py", true),
            ("_connection_worker_thread", "/venv/aiosqlite/core.py", true),
            ("run", "/usr/lib/python3.11/threading.py", false),
        ] {
            assert_eq!(is_worker_loop(&location(name, file)), want, "{name} {file}");
        }
    }
}
