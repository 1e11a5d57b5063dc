//! Which language runtime a process runs, and for CPython, which version and from which file.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use object::{
    Object, ObjectSection, ObjectSymbol, ReadRef,
    read::{ReadCache, elf::ElfFile64},
};
use rustc_hash::FxHashMap;

use super::{process::file_name, procfs};

/// The most executables whose facts are remembered; past it they are found out anew.
const FILES_MAX: usize = 512;
/// The largest executable that is looked into.
const FILE_MAX: u64 = 512 << 20;
/// The most lines of /proc/PID/maps that are read.
const MAPS_MAX: usize = 65_536;
/// The longest text that is taken for a version, in bytes.
const VERSION_MAX: usize = 16;
/// The largest section of constants that is searched for a version.
const CONSTANTS_MAX: u64 = 64 << 20;

/// A version of CPython.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PyVersion {
    /// 3
    pub major: u8,
    /// 11
    pub minor: u8,
    /// 7; `None` where the file does not tell.
    pub micro: Option<u8>,
    /// `a1`, `b2`, `rc3`; empty for a final release.
    pub pre: String,
}

impl PyVersion {
    /// From `PY_VERSION_HEX`.
    fn from_hex(hex: u32) -> Option<Self> {
        let [major, minor, micro, release] = hex.to_be_bytes();
        let pre = match release >> 4 {
            0xa => format!("a{}", release & 15),
            0xb => format!("b{}", release & 15),
            0xc => format!("rc{}", release & 15),
            0xf => String::new(),
            _ => return None,
        };
        Some(Self {
            major,
            minor,
            micro: Some(micro),
            pre,
        })
    }

    /// From the text `PY_VERSION`, as `3.8.20` or `3.15.0b1+`.
    fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('+').unwrap_or(text);
        let mut parts = text.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let last = parts.next()?;
        let digits = last
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(last.len());
        let (micro, pre) = last.split_at(digits);
        let known = ["a", "b", "rc"].iter().any(|level| {
            pre.strip_prefix(level).is_some_and(|serial| {
                !serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_digit())
            })
        });
        (pre.is_empty() || known).then_some(Self {
            major,
            minor,
            micro: Some(micro.parse().ok()?),
            pre: pre.to_owned(),
        })
    }

    /// From a file's name, as `python3.11`, `python3.7m`, `python3.13t`, `libpython3.11.so.1.0`.
    fn from_file_name(name: &str) -> Option<Self> {
        let version = name
            .strip_prefix("libpython")
            .or_else(|| name.strip_prefix("python"))?;
        let (major, rest) = version.split_once('.')?;
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (minor, rest) = rest.split_at(digits);
        let flags = rest.split('.').next()?;
        (flags
            .bytes()
            .all(|flag| matches!(flag, b'd' | b'm' | b'u' | b't')))
        .then_some(Self {
            major: major.parse().ok().filter(|major| (2..=3).contains(major))?,
            minor: minor.parse().ok()?,
            micro: None,
            pre: String::new(),
        })
    }
}

impl fmt::Display for PyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if let Some(micro) = self.micro {
            write!(f, ".{micro}{}", self.pre)?;
        }
        Ok(())
    }
}

/// A process's language runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// CPython.
    CPython {
        /// Its version.
        version: PyVersion,
        /// The file that holds the interpreter, the executable or libpython, as the process sees it.
        file: PathBuf,
    },
    /// Something else, by name: `PyPy`, `node`…, `native` where nothing is known of it.
    Other(&'static str),
}

impl Runtime {
    /// Whether it is an implementation of Python.
    pub fn is_python(&self) -> bool {
        matches!(self, Self::CPython { .. } | Self::Other("PyPy" | "GraalPy"))
    }

    /// The name that OpenTelemetry's `process.runtime.name` asks for.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CPython { .. } => "cpython",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CPython { version, .. } => write!(f, "CPython {version}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Whether an executable of this name is likely to run Python: interpreters, and uWSGI, which holds one.
pub(super) fn looks_like_python(exe: &Path) -> bool {
    exe.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| {
            ["python", "pypy", "graalpy", "uwsgi"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
}

/// Runtimes that are told by their executable's name.
fn other(exe: &Path) -> Option<&'static str> {
    const NAMES: &[(&str, &str)] = &[
        ("pypy", "PyPy"),
        ("graalpy", "GraalPy"),
        ("node", "node"),
        ("bun", "bun"),
        ("deno", "deno"),
        ("java", "java"),
        ("ruby", "ruby"),
        ("php", "php"),
        ("perl", "perl"),
        ("dotnet", "dotnet"),
        ("beam.smp", "beam"),
    ];
    let name = exe.file_name()?.to_str()?;
    NAMES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map(|&(_, runtime)| runtime)
}

/// A file by what does not change while it is the same file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
}

/// What a file says about CPython.
#[derive(Clone, Default)]
struct FileFacts {
    /// Whether it holds the interpreter, not just a stub that loads libpython.
    interpreter: bool,
    version: Option<PyVersion>,
}

/// Finds out runtimes, remembering what files said.
#[derive(Default)]
pub(super) struct Runtimes {
    files: FxHashMap<FileId, FileFacts>,
}

impl Runtimes {
    /// The runtime of a process that has this executable. `None` where it looks like Python but no
    /// interpreter is mapped, as just after exec, before the loader mapped its libraries.
    pub(super) fn find(&mut self, pid: u32, exe: &Path) -> Option<Runtime> {
        if let Some(name) = other(exe) {
            return Some(Runtime::Other(name));
        }
        if looks_like_python(exe) {
            let facts = self.facts(&procfs::path(pid, "exe"), exe);
            if let Some(runtime) = cpython(facts, exe) {
                return Some(runtime);
            }
        }
        for file in mapped_libpythons(pid) {
            let path = under_root(pid, &file);
            if let Some(runtime) = cpython(self.facts(&path, &file), &file) {
                return Some(runtime);
            }
        }
        (!looks_like_python(exe)).then_some(Runtime::Other("native"))
    }

    /// What the file at `path` says, whose name is `name`.
    fn facts(&mut self, path: &Path, name: &Path) -> FileFacts {
        // What stands at a path that another process named may be a pipe, or without end.
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        let Ok((file, metadata)) = opened else {
            return FileFacts::default();
        };
        if !metadata.is_file() || metadata.size() > FILE_MAX {
            return FileFacts::default();
        }
        let id = FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: metadata.mtime(),
        };
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        self.files
            .entry(id)
            .or_insert_with(|| {
                let cache = ReadCache::new(file);
                let named = PyVersion::from_file_name(file_name(name));
                read_elf(&cache, named.as_ref()).unwrap_or_default()
            })
            .clone()
    }
}

fn cpython(facts: FileFacts, file: &Path) -> Option<Runtime> {
    if !facts.interpreter {
        return None;
    }
    let version = facts
        .version
        .or_else(|| PyVersion::from_file_name(file_name(file)))?;
    Some(Runtime::CPython {
        version,
        file: file.to_owned(),
    })
}

/// A path that the process sees, as this process can open it.
pub(super) fn under_root(pid: u32, path: &Path) -> PathBuf {
    let mut rooted = procfs::path(pid, "root").into_os_string();
    rooted.push("/");
    rooted.push(path.strip_prefix("/").unwrap_or(path));
    PathBuf::from(rooted)
}

/// The libpythons that the process has mapped executable.
fn mapped_libpythons(pid: u32) -> Vec<PathBuf> {
    let Ok(file) = File::open(procfs::path(pid, "maps")) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = BufReader::new(file)
        .lines()
        .take(MAPS_MAX)
        .map_while(Result::ok)
        .filter_map(|line| parse_mapping(&line).map(PathBuf::from))
        .collect();
    files.dedup();
    files
}

/// The path of an executable mapping of a libpython.
fn parse_mapping(line: &str) -> Option<&str> {
    // address perms offset dev inode path; the path begins at the first slash.
    let permissions = line.split_ascii_whitespace().nth(1)?;
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let path = &line[line.find('/')?..];
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next()?;
    PyVersion::from_file_name(name).and(Some(path))
}

/// Reads of an ELF file whether it holds CPython, and which.
fn read_elf<'a, R: ReadRef<'a>>(data: R, named: Option<&PyVersion>) -> Option<FileFacts> {
    let elf: ElfFile64<'a, object::Endianness, R> = ElfFile64::parse(data).ok()?;
    let mut interpreter = false;
    let mut version_at = None;
    for symbol in elf
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
    {
        match symbol.name_bytes() {
            Ok(b"Py_GetVersion") => interpreter = true,
            Ok(b"Py_Version") => version_at = Some(symbol.address()),
            _ => {}
        }
    }
    let version = match version_at {
        // Since 3.11 the version is exported as a constant.
        Some(address) => elf.sections().find_map(|section| {
            let bytes = section.data_range(address, 4).ok()??;
            PyVersion::from_hex(u32::from_ne_bytes(bytes.try_into().ok()?))
        }),
        None if interpreter => elf
            .section_by_name(".rodata")
            .filter(|section| section.size() <= CONSTANTS_MAX)
            .and_then(|section| find_version(section.data().ok()?, named)),
        None => None,
    };
    Some(FileFacts {
        interpreter,
        version,
    })
}

/// Finds `PY_VERSION` among an interpreter's constants.
///
/// It stands there as a string of its own, or, as linkers merge strings, as the end of another one
/// (`/opt/python/3.8.20`). That is believed only where `named`, what the file's name says, agrees.
fn find_version(constants: &[u8], named: Option<&PyVersion>) -> Option<PyVersion> {
    let mut found = None;
    let begin = match named {
        Some(PyVersion { major, minor, .. }) => format!("{major}.{minor}."),
        None => "\x003.".to_owned(),
    };
    for at in memchr::memmem::find_iter(constants, &begin) {
        let at = if named.is_some() { at } else { at + 1 };
        let before = at.checked_sub(1).map_or(0, |before| constants[before]);
        if before.is_ascii_alphanumeric() || before == b'.' {
            continue;
        }
        let rest = &constants[at..constants.len().min(at + VERSION_MAX)];
        let Some(end) = memchr::memchr(0, rest) else {
            continue;
        };
        let Some(version) = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(PyVersion::from_text)
        else {
            continue;
        };
        match &found {
            None => found = Some(version),
            Some(other) if *other == version => {}
            // Of two, which is the interpreter's is not known.
            Some(_) => return None,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(version: Option<PyVersion>) -> Option<String> {
        version.map(|version| version.to_string())
    }

    /// Versions are read from names, from `PY_VERSION` and from its hexadecimal form.
    #[test]
    fn reads_versions() {
        for (name, expected) in [
            ("python3.11", Some("3.11")),
            ("python3.7m", Some("3.7")),
            ("python3.13t", Some("3.13")),
            ("python2.7", Some("2.7")),
            ("libpython3.11.so.1.0", Some("3.11")),
            ("libpython3.6m.so.1.0", Some("3.6")),
            ("libpython3.so", None),
            ("python3", None),
            ("python", None),
            ("python3.11-config", None),
        ] {
            assert_eq!(
                shown(PyVersion::from_file_name(name)).as_deref(),
                expected,
                "{name}"
            );
        }
        for (text, expected) in [
            ("3.8.20", Some("3.8.20")),
            ("3.15.0b1+", Some("3.15.0b1")),
            ("3.9.0rc2", Some("3.9.0rc2")),
            ("3.9", None),
            ("3.9.x", None),
            ("3.9.1-2", None),
            ("3.900.1", None),
        ] {
            assert_eq!(
                shown(PyVersion::from_text(text)).as_deref(),
                expected,
                "{text}"
            );
        }
        assert_eq!(
            shown(PyVersion::from_hex(0x030b_07f0)).as_deref(),
            Some("3.11.7")
        );
        assert_eq!(
            shown(PyVersion::from_hex(0x030f_00a3)).as_deref(),
            Some("3.15.0a3")
        );
        assert_eq!(PyVersion::from_hex(0), None);
    }

    /// A version among constants is taken only where it is the only one.
    #[test]
    fn finds_versions_among_constants() {
        let constants = b"x\x003.8.20\x00 3.9.1\x00expat_2.4\x003.8.20\x00";
        assert_eq!(
            shown(find_version(constants, None)).as_deref(),
            Some("3.8.20")
        );
        let two = b"\x003.8.20\x003.45.1\x00";
        assert_eq!(find_version(two, None), None);
        let named = PyVersion::from_file_name("python3.8");
        assert_eq!(
            shown(find_version(two, named.as_ref())).as_deref(),
            Some("3.8.20")
        );
        let merged = b"/opt/python/3.8.20\0lib/python3.8.1\0\x003.8.20";
        assert_eq!(
            shown(find_version(merged, named.as_ref())).as_deref(),
            Some("3.8.20")
        );
        assert_eq!(find_version(merged, None), None);
    }

    /// Only executable mappings of a versioned interpreter count.
    #[test]
    fn parses_mappings() {
        let line = "7f00-7f10 r-xp 00001000 fe:01 123   /opt/a b/libpython3.9.so.1.0";
        assert_eq!(parse_mapping(line), Some("/opt/a b/libpython3.9.so.1.0"));
        assert_eq!(
            parse_mapping("1-2 r-xp 0 0:0 1 /x/libpython3.9.so.1.0 (deleted)"),
            Some("/x/libpython3.9.so.1.0")
        );
        for line in [
            "7f00-7f10 r--p 00001000 fe:01 123   /opt/libpython3.9.so.1.0",
            "7f00-7f10 r-xp 00001000 fe:01 123   /opt/libpython3.so",
            "7f00-7f10 r-xp 00000000 00:00 0 [vdso]",
            "",
        ] {
            assert_eq!(parse_mapping(line), None, "{line}");
        }
    }

    proptest! {
        /// Nothing that another process maps, names or holds makes the readers panic.
        #[test]
        fn survives_anything(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,40}") {
            let _ = read_elf(bytes.as_slice(), None);
            let _ = find_version(&bytes, None);
            let _ = (parse_mapping(&text), PyVersion::from_text(&text));
            let _ = PyVersion::from_file_name(&text);
        }
    }
}
