//! The modules of an application: from the one that is served, along its imports.

use std::{
    fs::File,
    hash::{Hash, Hasher},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustc_hash::{FxHashMap, FxHasher};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::source::Source;

/// The most files that are read of one application.
const FILES_MAX: usize = 2000;

/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The most bytes that are read of one application.
const BYTES_MAX: u64 = 32 << 20;

/// The longest that reading one application takes.
const TIME_MAX: Duration = Duration::from_millis(1500);

/// The most levels of folders that are searched where it is not known what is served.
const LEVELS_MAX: usize = 6;

/// A file system as a process sees it.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl Root {
    /// The root of a process, or any directory.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?.into()))
    }

    /// The names in a directory below this root.
    pub(super) fn list(&self, path: &Path) -> Vec<String> {
        let Ok(directory) = self.file(path, OFlags::DIRECTORY) else {
            return Vec::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .take(FILES_MAX)
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .collect()
    }

    /// Reads a small text file below this root.
    pub(super) fn text(&self, path: &Path) -> Option<String> {
        let file = self.file(path, OFlags::empty()).ok()?;
        let mut bytes = Vec::new();
        file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Opens a file below this root: links in its path, absolute ones too, stay below it.
    fn file(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let fd = openat2(
            self.0.as_fd(),
            path,
            flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        Ok(fd.into())
    }
}

/// A module that was read.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with dots.
    pub(super) name: String,
    pub(super) is_package: bool,
    pub(super) source: Source,
}

/// A directory of modules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// The one package that is looked for in it; all without one.
    pub(super) only: Option<String>,
}

/// Whether a module is a package, or in it.
fn is_in(name: &str, package: &str) -> bool {
    name.strip_prefix(package)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What makes a file the one it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    ino: u64,
    size: u64,
    modified: (i64, i64),
}

/// The modules of an application.
pub(super) struct Modules {
    root: Root,
    /// Where modules are searched for, in this order.
    directories: Vec<Directory>,
    list: Vec<Module>,
    by_name: FxHashMap<String, Option<usize>>,
    /// The order in which the interpreter executes them: what is imported first.
    order: Vec<usize>,
    files: usize,
    bytes: u64,
    deadline: Instant,
    stamp: FxHasher,
}

impl Modules {
    pub(super) fn new(root: Root, directories: Vec<Directory>) -> Self {
        Self {
            root,
            directories,
            list: Vec::new(),
            by_name: FxHashMap::default(),
            order: Vec::new(),
            files: 0,
            bytes: 0,
            deadline: Instant::now() + TIME_MAX,
            stamp: FxHasher::default(),
        }
    }

    /// All modules, by their ids.
    pub(super) fn all(&self) -> &[Module] {
        &self.list
    }

    /// The ids of all modules, in the order in which they are executed.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The files that were read, as they were: equal for equal ones.
    pub(super) fn stamp(&self) -> u64 {
        self.stamp.finish()
    }

    /// A module that was read.
    pub(super) fn get(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().flatten()
    }

    /// Reads a module, and what it imports.
    pub(super) fn load(&mut self, name: &str) -> Option<usize> {
        let mut open = Vec::new();
        let first = self.enter(name, &mut open);
        self.follow(open);
        first
    }

    /// Reads a file as a module, and what it imports.
    pub(super) fn load_file(&mut self, name: &str, path: &Path) -> Option<usize> {
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let mut open = Vec::new();
        let id = self.read(name, path, false);
        self.by_name.insert(name.to_owned(), id);
        open.extend(id.map(|id| (id, 0)));
        self.follow(open);
        id
    }

    /// Reads the modules that lie in a directory; `start` is where it lies outside the root.
    pub(super) fn load_below(&mut self, start: &Path) {
        let mut folders = vec![(start.to_owned(), String::new(), 0)];
        while let Some((folder, package, level)) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            let mut entries: Vec<_> = entries.flatten().take(FILES_MAX).collect();
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                if self.is_full() {
                    return;
                }
                let name = entry.file_name();
                let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else {
                    continue;
                };
                if kind.is_dir() && level < LEVELS_MAX && is_application(name, &entry.path()) {
                    folders.push((entry.path(), format!("{package}{name}."), level + 1));
                } else if let Some(stem) = name.strip_suffix(".py")
                    && kind.is_file()
                    && !stem.starts_with("test_")
                    && !stem.ends_with("_test")
                    && stem != "conftest"
                {
                    let module = match stem {
                        "__init__" => package.trim_end_matches('.').to_owned(),
                        stem => format!("{package}{stem}"),
                    };
                    if !module.is_empty() {
                        self.load(&module);
                    }
                }
            }
        }
    }

    /// The module that an import names, seen from another.
    pub(super) fn absolute(&self, from: usize, name: &str) -> Option<String> {
        let dots = name.bytes().take_while(|b| *b == b'.').count();
        if dots == 0 {
            return Some(name.to_owned());
        }
        let module = &self.list[from];
        let mut package: Vec<&str> = module.name.split('.').collect();
        let up = dots - usize::from(module.is_package);
        if up > package.len() {
            return None;
        }
        package.truncate(package.len() - up);
        package.extend(name[dots..].split('.').filter(|part| !part.is_empty()));
        Some(package.join("."))
    }

    /// Follows imports, those of the newest module first, as the interpreter does.
    fn follow(&mut self, mut open: Vec<(usize, usize)>) {
        while let Some((id, next)) = open.pop() {
            let import = self.list[id].source.imports.get(next).cloned();
            let Some((module, name)) = import else {
                self.order.push(id);
                continue;
            };
            open.push((id, next + 1));
            let Some(module) = self.absolute(id, &module) else {
                continue;
            };
            self.enter(&module, &mut open);
            if let Some(name) = name {
                self.enter(&format!("{module}.{name}"), &mut open);
            }
        }
    }

    /// Reads a module and the packages that it lies in, where that was not done yet.
    fn enter(&mut self, name: &str, open: &mut Vec<(usize, usize)>) -> Option<usize> {
        let mut last = None;
        let ends = name.match_indices('.').map(|(at, _)| at);
        for end in ends.chain([name.len()]) {
            let part = &name[..end];
            last = match self.by_name.get(part) {
                Some(known) => *known,
                None => {
                    let found = self.find(part);
                    self.by_name.insert(part.to_owned(), found);
                    open.extend(found.map(|id| (id, 0)));
                    found
                }
            };
        }
        last
    }

    fn find(&mut self, name: &str) -> Option<usize> {
        let is_name =
            |part: &str| !part.is_empty() && part.chars().all(|c| c == '_' || c.is_alphanumeric());
        if self.is_full() || name.len() > 256 || !name.split('.').all(is_name) {
            return None;
        }
        let relative = name.replace('.', "/");
        for directory in self.directories.clone() {
            if directory
                .only
                .as_ref()
                .is_some_and(|only| !is_in(name, only))
            {
                continue;
            }
            let directory = directory.path;
            let package = directory.join(&relative).join("__init__.py");
            if let Some(id) = self.read(name, &package, true) {
                return Some(id);
            }
            let file = directory.join(format!("{relative}.py"));
            if let Some(id) = self.read(name, &file, false) {
                return Some(id);
            }
        }
        None
    }

    fn is_full(&self) -> bool {
        self.files >= FILES_MAX || self.bytes >= BYTES_MAX || Instant::now() >= self.deadline
    }

    fn read(&mut self, name: &str, path: &Path, is_package: bool) -> Option<usize> {
        let file = self.root.file(path, OFlags::empty()).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > FILE_MAX {
            return None;
        }
        let stamp = Stamp {
            ino: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        (name, stamp).hash(&mut self.stamp);
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
        self.files += 1;
        self.bytes += bytes.len() as u64;
        let id = self.list.len();
        self.list.push(Module {
            name: name.to_owned(),
            is_package,
            source: Source::read(&String::from_utf8_lossy(&bytes)),
        });
        Some(id)
    }
}

/// Whether a folder may hold modules of an application.
fn is_application(name: &str, path: &Path) -> bool {
    const OTHERS: &[&str] = &[
        "__pycache__",
        "build",
        "dist-packages",
        "node_modules",
        "site-packages",
        "test",
        "tests",
    ];
    !name.starts_with('.') && !OTHERS.contains(&name) && !path.join("pyvenv.cfg").exists()
}
