//! Finds `queue.SimpleQueue`, through which work passes to threads, and tells the loops that run it.
//!
//! Its functions are static. They stand in a table of methods (`PyMethodDef`, Include/methodobject.h),
//! each beside its name; so the table is found by the names, in the memory of a process that has
//! relocated it.

use std::path::PathBuf;

use super::{
    elf::Elf,
    interpreter::{Finder, Found},
    memory::{Memory, ProcessMemory},
};
use crate::symbolize::PythonLocation;

/// The largest segment that is searched, in bytes.
const SEGMENT_MAX: u64 = 64 << 20;

/// `sizeof(PyMethodDef)`: a name, a function, flags, a docstring.
const METHOD: usize = 32;

/// The methods of a table that are looked at on either side of one of them.
const NEIGHBOURS: usize = 12;

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
    let memory = ProcessMemory::new(pid);
    let module = interpreter
        .files
        .iter()
        .find(|file| file.name().starts_with("_queue."));
    let (elf, bias, file) = match module {
        Some(module) => {
            let elf = finder.elf(pid, module)?;
            let bias = elf.bias(module.start, module.offset)?;
            (elf, bias, module.host_path(pid))
        }
        None => (interpreter.elf, interpreter.bias, interpreter.host_path),
    };
    let segments: Vec<_> = elf
        .loads
        .iter()
        .filter(|load| load.file_size <= SEGMENT_MAX)
        .filter_map(|load| {
            let address = load.address.wrapping_add(bias);
            let bytes = memory.bytes(address, load.file_size as usize).ok()?;
            Some((address, bytes))
        })
        .collect();
    let methods = methods(&segments)?;
    let offset = |name| {
        let method = methods.iter().find(|method| method.name == name)?;
        file_offset(&elf, bias, method.function)
    };
    let takes_array = |name: &str| {
        methods.iter().any(|method| {
            method.name == name && method.flags & (METH_FASTCALL | METH_METHOD) == METH_FASTCALL
        })
    };
    if !takes_array("put") || !takes_array("put_nowait") {
        return None;
    }
    Some(QueueProbes {
        put: [offset("put")?, offset("put_nowait")?],
        get: [offset("get")?, offset("get_nowait")?],
        file,
    })
}

fn file_offset(elf: &Elf, bias: u64, address: u64) -> Option<u64> {
    elf.file_offset(address.wrapping_sub(bias))
}

/// An entry of a table of methods.
struct Method {
    name: &'static str,
    function: u64,
    flags: u64,
}

/// The queue's methods, in segments of memory at their addresses.
fn methods(segments: &[(u64, Vec<u8>)]) -> Option<Vec<Method>> {
    const NAMES: [&str; 4] = ["get_nowait", "put_nowait", "get", "put"];
    let names: Vec<u64> = segments
        .iter()
        .flat_map(|(start, bytes)| {
            memchr::memmem::find_iter(bytes, b"get_nowait\0").map(move |at| start + at as u64)
        })
        .collect();
    if names.is_empty() {
        return None;
    }
    let text = |address: u64| {
        let (start, bytes) = segments
            .iter()
            .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&address))?;
        let rest = bytes.get((address - start) as usize..)?;
        NAMES
            .into_iter()
            .find(|name| rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0))
    };
    for (_, bytes) in segments {
        for at in (0..bytes.len().saturating_sub(METHOD)).step_by(8) {
            if !word(bytes, at).is_some_and(|word| names.contains(&word)) {
                continue;
            }
            let first = at.saturating_sub(NEIGHBOURS * METHOD).max(at % METHOD);
            let table: Vec<_> = (0..2 * NEIGHBOURS)
                .filter_map(|nth| {
                    let at = first + nth * METHOD;
                    Some(Method {
                        name: text(word(bytes, at)?)?,
                        function: word(bytes, at + 8)?,
                        flags: word(bytes, at + 16)? & u64::from(u32::MAX),
                    })
                })
                .collect();
            let is_whole = NAMES
                .iter()
                .all(|name| table.iter().filter(|method| method.name == *name).count() == 1);
            if is_whole {
                return Some(table);
            }
        }
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
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

    /// A table of methods in memory, at 0x1000, and its names, at 0x2000.
    fn table(entries: &[(&str, u64, u64)]) -> Vec<(u64, Vec<u8>)> {
        let (mut methods, mut names) = (vec![0; 40], Vec::new());
        for (name, function, flags) in entries {
            for word in [0x2000 + names.len() as u64, *function, *flags, 0] {
                methods.extend_from_slice(&word.to_le_bytes());
            }
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        methods.extend_from_slice(&[0; METHOD]);
        vec![(0x1000, methods), (0x2000, names)]
    }

    /// The functions are told by the names beside them, whatever their order.
    #[test]
    fn finds_the_table() {
        let segments = table(&[
            ("empty", 1, 4),
            ("get", 2, 0x282),
            ("get_nowait", 3, 0x282),
            ("put", 4, 0x82),
            ("put_nowait", 5, 0x82),
        ]);
        let methods = methods(&segments).expect("a table");
        let function = |name| {
            methods
                .iter()
                .find(|method| method.name == name)
                .map(|m| m.function)
        };
        assert_eq!(
            ["get", "get_nowait", "put", "put_nowait"].map(function),
            [Some(2), Some(3), Some(4), Some(5)]
        );
    }

    /// A table that lacks a method is another type's.
    #[test]
    fn refuses_other_tables() {
        assert!(methods(&table(&[("get", 2, 0x82), ("get_nowait", 3, 0x82)])).is_none());
        assert!(methods(&table(&[("put", 2, 0x82)])).is_none());
    }

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

    proptest::proptest! {
        /// Any memory is searched without a panic.
        #[test]
        fn survives_anything(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let mut bytes = bytes;
            bytes.extend_from_slice(b"get_nowait\0");
            let at = 0x1000u64 + bytes.len() as u64 - 11;
            bytes.extend_from_slice(&at.to_le_bytes());
            let _ = methods(&[(0x1000, bytes)]);
        }
    }
}
