//! Finds static functions of CPython's modules by their names in Python.
//!
//! They stand in tables of methods (`PyMethodDef`, Include/methodobject.h), each beside its name; so a table is
//! found by the names, in the memory of a process that has relocated it.

use std::{path::PathBuf, sync::Arc};

use super::{
    elf::Elf,
    interpreter::{Finder, Interpreter},
    memory::{Memory, ProcessMemory},
};

/// The largest segment that is searched, in bytes.
const SEGMENT_MAX: u64 = 64 << 20;

/// `sizeof(PyMethodDef)`: a name, a function, flags, a docstring.
const METHOD: usize = 32;

/// The methods of a table that are looked at on either side of one of them.
const NEIGHBOURS: usize = 48;

/// A module in a process's memory.
pub(super) struct Module {
    /// Its file, or the interpreter's where it is built in.
    pub(super) file: PathBuf,
    elf: Arc<Elf>,
    bias: u64,
    segments: Vec<(u64, Vec<u8>)>,
}

/// An entry of a table of methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Method {
    pub(super) name: &'static str,
    /// Its address in the process.
    pub(super) function: u64,
    /// `ml_flags`.
    pub(super) flags: u64,
}

impl Module {
    /// The modules of that name which a process has loaded: those in files of their own, else the interpreter,
    /// which may have it built in.
    pub(super) fn all(
        finder: &mut Finder,
        pid: u32,
        interpreter: &Interpreter,
        name: &str,
    ) -> Vec<Self> {
        let memory = ProcessMemory::new(pid);
        let is_module = |file: &str| {
            let rest = file.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        let mut found = Vec::new();
        for file in &interpreter.files {
            if is_module(file.name())
                && let Some(elf) = finder.elf(pid, file)
                && let Some(bias) = elf.bias(file.start, file.offset)
            {
                found.push(Self::read(&memory, elf, bias, file.host_path(pid)));
            }
        }
        if found.is_empty() {
            let Interpreter {
                elf,
                bias,
                host_path,
                ..
            } = interpreter;
            found.push(Self::read(
                &memory,
                Arc::clone(elf),
                *bias,
                host_path.clone(),
            ));
        }
        found
    }

    fn read(memory: &ProcessMemory, elf: Arc<Elf>, bias: u64, file: PathBuf) -> Self {
        let segments = elf
            .loads
            .iter()
            .filter(|load| load.file_size <= SEGMENT_MAX)
            .filter_map(|load| {
                let address = load.address.wrapping_add(bias);
                let bytes = memory.bytes(address, load.file_size as usize).ok()?;
                Some((address, bytes))
            })
            .collect();
        Self {
            file,
            elf,
            bias,
            segments,
        }
    }

    /// The methods of these names, of the table that has all of them.
    pub(super) fn methods<const N: usize>(&self, names: [&'static str; N]) -> Option<[Method; N]> {
        methods(&self.segments, names)
    }

    /// A function's offset in the file.
    pub(super) fn offset(&self, method: &Method) -> Option<u64> {
        self.elf
            .file_offset(method.function.wrapping_sub(self.bias))
    }
}

/// The methods of these names, in segments of memory at their addresses. The first name is looked for; the
/// others must stand in the same table.
fn methods<const N: usize>(
    segments: &[(u64, Vec<u8>)],
    names: [&'static str; N],
) -> Option<[Method; N]> {
    let mut key = names.first()?.as_bytes().to_vec();
    key.push(0);
    let keys: Vec<u64> = segments
        .iter()
        .flat_map(|(start, bytes)| {
            memchr::memmem::find_iter(bytes, &key).map(move |at| start.wrapping_add(at as u64))
        })
        .collect();
    if keys.is_empty() {
        return None;
    }
    let name_at = |address: u64| {
        let (start, bytes) = segments.iter().find(|(start, bytes)| {
            (*start..start.saturating_add(bytes.len() as u64)).contains(&address)
        })?;
        let rest = bytes.get((address - start) as usize..)?;
        let is_it = |name: &&str| {
            rest.starts_with(name.as_bytes()) && rest.get(name.len()).is_some_and(|end| *end == 0)
        };
        names.into_iter().find(is_it)
    };
    for (_, bytes) in segments {
        for at in (0..bytes.len().saturating_sub(METHOD)).step_by(8) {
            if !word(bytes, at).is_some_and(|word| keys.contains(&word)) {
                continue;
            }
            // A table ends with an entry of zeros.
            let is_entry = |at: &usize| word(bytes, *at).is_some_and(|name| name != 0);
            let before = (1..=NEIGHBOURS)
                .map_while(|nth| at.checked_sub(nth * METHOD))
                .take_while(is_entry);
            let behind = (0..=NEIGHBOURS)
                .map(|nth| at + nth * METHOD)
                .take_while(is_entry);
            let table: Vec<_> = before
                .chain(behind)
                .filter_map(|at| {
                    Some(Method {
                        name: name_at(word(bytes, at)?)?,
                        function: word(bytes, at + 8)?,
                        flags: word(bytes, at + 16)? & u64::from(u32::MAX),
                    })
                })
                .collect();
            let only = |name| {
                let mut found = table.iter().filter(|method| method.name == name);
                found.next().filter(|_| found.next().is_none()).copied()
            };
            let found = names.map(only);
            if found.iter().all(Option::is_some) {
                return Some(found.map(Option::unwrap_or_default));
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

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: [&str; 4] = ["get_nowait", "put_nowait", "get", "put"];

    /// Tables of methods in memory, at 0x1000, and their names, at 0x2000.
    fn tables(tables: &[&[(&str, u64, u64)]]) -> Vec<(u64, Vec<u8>)> {
        let (mut methods, mut names) = (vec![0; 40], Vec::new());
        for table in tables {
            for (name, function, flags) in *table {
                for word in [0x2000 + names.len() as u64, *function, *flags, 0] {
                    methods.extend_from_slice(&word.to_le_bytes());
                }
                names.extend_from_slice(name.as_bytes());
                names.push(0);
            }
            methods.extend_from_slice(&[0; METHOD]);
        }
        vec![(0x1000, methods), (0x2000, names)]
    }

    /// The functions are told by the names beside them, whatever their order.
    #[test]
    fn finds_the_table() {
        let segments = tables(&[&[
            ("empty", 1, 4),
            ("get", 2, 0x282),
            ("get_nowait", 3, 0x282),
            ("put", 4, 0x82),
            ("put_nowait", 5, 0x82),
        ]]);
        let methods = methods(&segments, QUEUE).expect("a table");
        assert_eq!(methods.map(|method| method.function), [3, 5, 2, 4]);
        assert_eq!(
            methods.map(|method| method.flags),
            [0x282, 0x82, 0x282, 0x82]
        );
    }

    /// A table that lacks a method is another type's, even beside one that has it.
    #[test]
    fn refuses_other_tables() {
        let lacks = [("get", 2, 0x82), ("get_nowait", 3, 0x82)];
        assert_eq!(methods(&tables(&[&lacks]), QUEUE), None);
        assert_eq!(methods(&tables(&[&[("put", 2, 0x82)]]), QUEUE), None);
        let others: &[_] = &[("commit", 1, 4), ("executemany", 2, 0x80)];
        let cursors: &[_] = &[("executemany", 3, 0x80), ("fetchone", 4, 4)];
        for both in [[others, cursors], [cursors, others]] {
            let found = methods(&tables(&both), ["fetchone", "executemany"]);
            assert_eq!(found.map(|found| found[1].function), Some(3));
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
            let _ = methods(&[(0x1000, bytes)], QUEUE);
        }
    }
}
