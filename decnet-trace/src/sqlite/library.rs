//! The file that SQLite's code is in, and where in it to watch statements.

use std::{
    collections::hash_map::Entry, fs, fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc,
};

use decnet_trace_common::sqlite::SqliteLayout;
use rustc_hash::FxHashMap;

use super::code::field_returned;
use crate::{
    bpf::site::BYTES,
    python::{
        ReadError,
        elf::Elf,
        maps::{MappedFile, executable, mapped_files},
    },
};

/// How many files are remembered.
const FILES_MAX: usize = 1024;

/// The functions that are looked for.
const SYMBOLS: [&str; 8] = [
    "sqlite3_prepare_v2",
    "sqlite3_prepare_v3",
    "sqlite3_bind_parameter_count",
    "sqlite3_reset",
    "sqlite3_finalize",
    "sqlite3_errcode",
    "sqlite3_sql",
    "sqlite3_db_handle",
];

/// A file with SQLite in it. Places are offsets in the file, as uprobes take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// `sqlite3_prepare_v2` and `_v3`, as far as it has them.
    pub prepared: Vec<u64>,
    /// `sqlite3_bind_parameter_count`
    pub begun: u64,
    /// `sqlite3_reset`
    pub ended: u64,
    /// `sqlite3_finalize`
    pub finalized: u64,
    /// `sqlite3_errcode`, for its return.
    pub failed: u64,
    /// Where it keeps what is read of a statement, as far as its code tells.
    pub layout: SqliteLayout,
    elf: Elf,
}

impl Library {
    /// The offset in the file of an address in a process, where the file's addresses are moved by `bias`.
    pub fn file_offset(&self, address: u64, bias: u64) -> Option<u64> {
        self.elf.file_offset(address.wrapping_sub(bias))
    }

    fn read(file: File) -> Option<Self> {
        let bytes = file.try_clone().ok()?;
        let elf = Elf::read(file, &SYMBOLS, &[]).ok()?;
        let place = |name: &str| elf.file_offset(elf.symbol(name)?.value);
        let code = |place: u64| {
            let mut code = [0; BYTES];
            bytes.read_exact_at(&mut code, place).ok()?;
            Some(code)
        };
        let field = |name: &str| field_returned(&code(place(name)?)?);
        // The first field of a statement is its database, or this is nothing that is known.
        if field("sqlite3_db_handle")? != 0 {
            return None;
        }
        Some(Self {
            prepared: ["sqlite3_prepare_v2", "sqlite3_prepare_v3"]
                .into_iter()
                .filter_map(place)
                .collect(),
            begun: place("sqlite3_bind_parameter_count")?,
            ended: place("sqlite3_reset")?,
            finalized: place("sqlite3_finalize")?,
            failed: place("sqlite3_errcode")?,
            layout: SqliteLayout {
                sql: field("sqlite3_sql").unwrap_or(0),
                vars: field("sqlite3_bind_parameter_count").unwrap_or(0),
                ..SqliteLayout::default()
            },
            elf,
        })
    }
}

/// A library in a process.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// The process.
    pub pid: u32,
    /// The file, as this process can open it.
    pub path: PathBuf,
    /// The file's identity: its device and inode.
    pub identity: (String, u64),
    /// What to add to the file's addresses.
    pub bias: u64,
    /// What is in it.
    pub library: Arc<Library>,
}

/// How many pages a process maps (proc_pid_statm(5)): a library that it loads makes them more.
///
/// # Errors
///
/// When the process has gone.
pub fn mapped_pages(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let first = text.split(' ').next().unwrap_or_default();
    first
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Finds SQLite in processes, and remembers the files that it has read.
#[derive(Debug, Default)]
pub struct Finder {
    files: FxHashMap<(String, u64), Option<Arc<Library>>>,
}

impl Finder {
    /// The SQLites that a process maps now: the system's, one bundled with Python's `sqlite3`, or one
    /// within the interpreter itself.
    ///
    /// # Errors
    ///
    /// When the process cannot be read.
    pub fn find(&mut self, pid: u32) -> Result<Vec<Mapped>, ReadError> {
        let program = executable(pid);
        let is_candidate = |file: &&MappedFile| {
            let name = file.name();
            name.contains("sqlite")
                || name.starts_with("libpython")
                || program.as_deref().is_some_and(|program| {
                    program.as_os_str().as_encoded_bytes() == file.path.as_bytes()
                })
        };
        let files = mapped_files(pid)?;
        let found = files.iter().filter(is_candidate).filter_map(|file| {
            let library = self.library(pid, file)?;
            Some(Mapped {
                pid,
                path: file.host_path(pid),
                identity: file.identity.clone(),
                bias: library.elf.bias(file.start, file.offset)?,
                library,
            })
        });
        Ok(found.collect())
    }

    fn library(&mut self, pid: u32, file: &MappedFile) -> Option<Arc<Library>> {
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        match self.files.entry(file.identity.clone()) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => {
                // A file that cannot be opened now may be later: only what was read is remembered.
                let opened = file.open(pid).ok()?;
                new.insert(Library::read(opened).map(Arc::new)).clone()
            }
        }
    }
}
