//! The facts about one process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    command::Command,
    container,
    listen::Listen,
    procfs::{self, Stat},
    redact,
    runtime::{self, Runtime},
};

/// How many parents are climbed to find the command line that says what a `multiprocessing` child runs.
const LINEAGE_MAX: usize = 8;

/// A process, as /proc shows it. Pids are those of the initial pid namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did. With the pid, it names a process for
    /// good: pids are reused.
    pub start: u64,
    /// The parent.
    pub ppid: u32,
    /// The command's name, at most 15 bytes.
    pub comm: String,
    /// The executable, as the process sees it.
    pub exe: PathBuf,
    /// The command line, without its secrets.
    pub arguments: Vec<String>,
    /// The working directory, as the process sees it.
    pub cwd: Option<PathBuf>,
    /// The addresses it listened on when it was looked at.
    pub listening: Vec<Listen>,
    /// What it is written in.
    pub runtime: Runtime,
    /// The id of the container that it runs in.
    pub container: Option<String>,
    /// The name of that container, where Docker tells it.
    pub container_name: Option<String>,
    /// The effective user.
    pub uid: u32,
    /// The pid in the innermost pid namespace; [`Self::pid`] outside containers.
    pub inner_pid: u32,
    /// See [`Stat::image`].
    pub(super) image: u64,
}

impl Process {
    /// A path that the process sees, as this one can open it: the process may live in another mount
    /// namespace.
    pub fn open_path(&self, path: &Path) -> PathBuf {
        if path == self.exe {
            // Works also where the executable was replaced since.
            return procfs::path(self.pid, "exe");
        }
        runtime::under_root(self.pid, path)
    }

    /// The executable's file name.
    pub fn exe_name(&self) -> &str {
        file_name(&self.exe)
    }
}

/// A path's file name; empty where it has none, or none in UTF-8.
pub(super) fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// What the search for a process to trace already found out about one.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) pid: u32,
    pub(super) stat: Stat,
    pub(super) exe: PathBuf,
    pub(super) cmdline: Vec<String>,
    pub(super) listening: Vec<Listen>,
}

/// Collects the facts about a process.
pub(super) fn gather(seen: Seen, runtime: Runtime) -> Process {
    let Seen {
        pid,
        stat,
        exe,
        cmdline,
        listening,
    } = seen;
    let status = procfs::status(pid).unwrap_or_default();
    let container = container::id(pid);
    Process {
        pid,
        start: stat.start,
        ppid: stat.ppid,
        comm: stat.comm,
        exe,
        arguments: redact::arguments(&cmdline),
        cwd: fs::read_link(procfs::path(pid, "cwd")).ok(),
        listening,
        runtime,
        container_name: container.as_deref().and_then(container::docker_name),
        container,
        uid: status.uid,
        inner_pid: status.inner_pid,
        image: stat.image,
    }
}

/// The facts about a child that was forked and executed nothing: its parent's, but for what is its own.
pub(super) fn gather_forked(parent: &Process, pid: u32, stat: Stat) -> Process {
    let status = procfs::status(pid).unwrap_or_default();
    Process {
        pid,
        start: stat.start,
        ppid: stat.ppid,
        comm: stat.comm,
        uid: status.uid,
        inner_pid: status.inner_pid,
        ..parent.clone()
    }
}

/// The command that says what a Python process runs, and the working directory it ran in: for children
/// of `multiprocessing`, that of the first ancestor that is none.
pub(super) fn telling_command(pid: u32, ppid: u32, command: Command) -> (Command, Option<PathBuf>) {
    let (mut telling, mut of, mut parent) = (command, pid, ppid);
    for _ in 0..LINEAGE_MAX {
        if !telling.is_multiprocessing_child() || parent <= 1 {
            break;
        }
        let (Ok(stat), Ok(cmdline)) = (procfs::stat(parent), procfs::cmdline(parent)) else {
            break;
        };
        // A child whose parent died was handed to another process, which tells nothing of it.
        if !procfs::exe(parent).is_ok_and(|exe| runtime::looks_like_python(&exe)) {
            break;
        }
        (telling, of, parent) = (Command::parse(&cmdline), parent, stat.ppid);
    }
    (telling, fs::read_link(procfs::path(of, "cwd")).ok())
}
