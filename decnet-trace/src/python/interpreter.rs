//! Finds the interpreter in a process: which mapped file it is, its version, and where its data is.

use std::{os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use rustc_hash::FxHashMap;

use super::{
    check::Unsupported,
    elf::Elf,
    maps::{self, MappedFile},
    memory::{Memory, ProcessMemory, ReadError},
    version::{NamedFile, Version},
};

/// What is looked up in the interpreter's file.
const SYMBOLS: &[&str] = &[
    "_PyRuntime",
    "Py_Version",
    "PyCode_Type",
    "PyContext_Type",
    "PyContext_CopyCurrent",
    "PyGILState_GetThisThreadState",
    "_PyThreadState_GetCurrent",
    "PyEval_EvalFrameEx",
    // Debug builds only: Py_REF_DEBUG (3.8 to 3.11; from 3.12 on), and Py_TRACE_REFS.
    "_Py_NegativeRefcount",
    "_Py_RefTotal",
    "_Py_GetGlobalRefTotal",
    "_Py_PrintReferences",
];

const SECTIONS: &[&str] = &[".bss", ASYNCIO_SECTION];

/// Where `_asyncio` publishes its layout from 3.14 on.
pub(super) const ASYNCIO_SECTION: &str = ".AsyncioDebug";

/// How many files' symbols are kept.
const CACHE_MAX: usize = 256;

/// An interpreter in a process.
#[derive(Clone, Debug)]
pub(super) struct Interpreter {
    /// The file, as the process names it.
    pub(super) path: String,
    /// The file, as this process can open it.
    pub(super) host_path: PathBuf,
    /// The version.
    pub(super) version: Version,
    /// What the file says.
    pub(super) elf: Arc<Elf>,
    /// What to add to the file's addresses.
    pub(super) bias: u64,
    /// The address of `_PyRuntime`.
    pub(super) runtime: u64,
    /// The other files that the process maps.
    pub(super) files: Vec<MappedFile>,
}

impl Interpreter {
    /// The address of a symbol in the process.
    pub(super) fn address(&self, symbol: &str) -> Option<u64> {
        let symbol = self
            .elf
            .symbol(symbol)
            .filter(|symbol| !symbol.thread_local)?;
        Some(symbol.value.wrapping_add(self.bias))
    }
}

/// What was found in a process.
pub(super) enum Found {
    /// An interpreter of a supported version.
    Interpreter(Box<Interpreter>),
    /// An interpreter that decnet-trace does not know.
    Unsupported(Unsupported),
    /// An interpreter that has not yet come far enough to tell its version.
    Starting,
    /// No interpreter.
    NotPython,
}

/// A file's identity, which outlives its path.
type Identity = (u64, u64, u64, i64);

/// The most of the interpreter's zero-initialised data that is searched for its version, in bytes.
const BSS_MAX: u64 = 4 << 20;

/// Finds interpreters, and remembers the files that it has read.
#[derive(Default)]
pub(super) struct Finder {
    cache: FxHashMap<Identity, Option<Arc<Elf>>>,
}

impl Finder {
    /// Looks for an interpreter in a process.
    pub(super) fn find(&mut self, pid: u32) -> Result<Found, ReadError> {
        let files = maps::mapped_files(pid)?;
        let executable = maps::executable(pid);
        let named = |file: &MappedFile| NamedFile::of(file.name());
        if files
            .iter()
            .any(|file| named(file) == Some(NamedFile::PyPy))
        {
            return Ok(Found::Unsupported(Unsupported::PyPy));
        }
        // The library first: the program beside it is then a stub.
        let library = files
            .iter()
            .find(|file| matches!(named(file), Some(NamedFile::Library { .. })));
        let program = files.iter().find(|file| {
            executable
                .as_deref()
                .is_some_and(|path| path.as_os_str() == file.path.as_str())
        });
        for file in [library, program].into_iter().flatten() {
            let found = self.examine(pid, file, &files)?;
            if !matches!(found, Found::NotPython) {
                return Ok(found);
            }
        }
        Ok(Found::NotPython)
    }

    /// Judges one mapped file.
    fn examine(
        &mut self,
        pid: u32,
        file: &MappedFile,
        files: &[MappedFile],
    ) -> Result<Found, ReadError> {
        let Some(elf) = self.elf(pid, file) else {
            return Ok(Found::NotPython);
        };
        let Some(bias) = elf.bias(file.start, file.offset) else {
            return Ok(Found::NotPython);
        };
        let unsupported = |version: String| Ok(Found::Unsupported(Unsupported::Version(version)));
        let named = NamedFile::of(file.name()).and_then(NamedFile::version);
        let Some(runtime) = elf.symbol("_PyRuntime") else {
            return match named {
                // Before 3.7 there was none.
                Some((major, minor)) if (major, minor) < (3, 7) => {
                    unsupported(format!("{major}.{minor}"))
                }
                None if elf.symbol("PyEval_EvalFrameEx").is_none() => Ok(Found::NotPython),
                _ => Ok(Found::Unsupported(Unsupported::NoRuntime(
                    file.path.clone(),
                ))),
            };
        };
        let memory = ProcessMemory::new(pid);
        let version = match elf.symbol("Py_Version") {
            Some(symbol) => Some(Version::from_hex(
                memory.u32(symbol.value.wrapping_add(bias))?,
            )),
            None => version_in_bss(&memory, &elf, bias)?,
        };
        let Some(version) = version else {
            return match named {
                Some((major, minor)) if !Version::new(major, minor, 0).is_supported() => {
                    unsupported(format!("{major}.{minor}"))
                }
                _ => Ok(Found::Starting),
            };
        };
        if !version.is_supported() {
            return unsupported(version.to_string());
        }
        if elf.symbol("_Py_PrintReferences").is_some() {
            return Ok(Found::Unsupported(Unsupported::TraceRefs(version)));
        }
        if [
            "_Py_NegativeRefcount",
            "_Py_RefTotal",
            "_Py_GetGlobalRefTotal",
        ]
        .iter()
        .any(|name| elf.symbol(name).is_some())
        {
            return Ok(Found::Unsupported(Unsupported::Debug(version)));
        }
        Ok(Found::Interpreter(Box::new(Interpreter {
            path: file.path.clone(),
            host_path: file.host_path(pid),
            version,
            bias,
            runtime: runtime.value.wrapping_add(bias),
            elf,
            files: files.to_vec(),
        })))
    }

    /// What a mapped file holds, read once. `None` where it is no ELF file for this machine.
    pub(super) fn elf(&mut self, pid: u32, mapped: &MappedFile) -> Option<Arc<Elf>> {
        let file = mapped.open(pid).ok()?;
        let metadata = file.metadata().ok()?;
        let identity = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
        );
        if let Some(known) = self.cache.get(&identity) {
            return known.clone();
        }
        let elf = Elf::read(file, SYMBOLS, SECTIONS).ok().map(Arc::new);
        if self.cache.len() >= CACHE_MAX {
            self.cache.clear();
        }
        self.cache.insert(identity, elf.clone());
        elf
    }

    /// The layout section of `_asyncio` (3.14 on), wherever it is mapped: its address.
    pub(super) fn asyncio_section(&mut self, pid: u32, interpreter: &Interpreter) -> Option<u64> {
        if let Some(section) = interpreter.elf.section(ASYNCIO_SECTION) {
            return Some(section.address.wrapping_add(interpreter.bias));
        }
        let mapped = interpreter
            .files
            .iter()
            .find(|file| file.name().starts_with("_asyncio."))?;
        let elf = self.elf(pid, mapped)?;
        let bias = elf.bias(mapped.start, mapped.offset)?;
        Some(elf.section(ASYNCIO_SECTION)?.address.wrapping_add(bias))
    }
}

/// The version that an interpreter older than 3.11 has put together when it started.
fn version_in_bss(
    memory: &ProcessMemory,
    elf: &Elf,
    bias: u64,
) -> Result<Option<Version>, ReadError> {
    let Some(bss) = elf.section(".bss") else {
        return Ok(None);
    };
    let size = usize::try_from(bss.size.min(BSS_MAX)).unwrap_or(0);
    let data = memory.bytes(bss.address.wrapping_add(bias), size)?;
    Ok(Version::find(&data))
}
