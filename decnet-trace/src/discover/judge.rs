//! Whether a process is to be traced, and why, or why not.

use std::{fmt, io};

use super::{
    command::Command,
    listen::NetTables,
    process::{Seen, file_name},
    procfs::{self, Stat},
    runtime::{Runtime, Runtimes, looks_like_python},
    select::{Children, Selector},
};

/// Why a process is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `--pid` names it.
    Pid,
    /// `--name` matches it.
    Name,
    /// It listens on a port of `--port`.
    Port(u16),
    /// It runs Python, and its command line names this web server.
    Server(&'static str),
    /// It runs Python and listens on a stream socket.
    Listens,
    /// A traced process started it: by fork, or as a worker by `multiprocessing`.
    ChildOf(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid => f.write_str("named by --pid"),
            Self::Name => f.write_str("matches --name"),
            Self::Port(port) => write!(f, "listens on --port {port}"),
            Self::Server(server) => write!(f, "runs {server}"),
            Self::Listens => f.write_str("Python that listens"),
            Self::ChildOf(parent) => write!(f, "child of {parent}"),
        }
    }
}

/// Why a process is not traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It has gone.
    Gone,
    /// It has ended, and waits for its parent.
    Zombie,
    /// It is a thread of the kernel.
    Kernel,
    /// It is decnet-trace itself.
    Agent,
    /// This user may not look at it.
    Unreadable,
    /// None of the options asks for it.
    NotSelected,
    /// `--exclude` matches it.
    Excluded,
    /// It does not run Python.
    NotPython,
    /// It runs Python, but listens nowhere (yet).
    NotListening,
    /// It just started, and its interpreter is not mapped yet.
    Loading,
    /// As many processes are traced as can be.
    TooMany,
}

impl WhyNot {
    /// Whether another look a moment later may end otherwise.
    pub(super) fn may_change(self) -> bool {
        matches!(self, Self::NotListening | Self::Loading)
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Zombie => "ended",
            Self::Kernel => "kernel thread",
            Self::Agent => "decnet-trace itself",
            Self::Unreadable => "may not be read by this user",
            Self::NotSelected => "not asked for",
            Self::Excluded => "matches --exclude",
            Self::NotPython => "not Python",
            Self::NotListening => "does not listen",
            Self::Loading => "just starting",
            Self::TooMany => "too many are traced",
        })
    }
}

/// A traced process, as far as it matters for its children.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent {
    pub(super) pid: u32,
    pub(super) image: u64,
}

/// A judgement, with what was seen on the way. The runtime of a process that is not traced is looked
/// for only when everything is asked about (`ps`).
#[derive(Debug)]
pub(super) enum Judgement {
    Trace(Seen, Why, Runtime),
    Leave(WhyNot, Option<(Seen, Option<Runtime>)>),
}

/// How a process is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// While it starts: what is not known yet will be asked again.
    Early,
    /// For good.
    Final,
    /// To show everything about it.
    Full,
}

/// What judging needs.
pub(super) struct Judge<'a> {
    pub(super) selector: &'a Selector,
    pub(super) own_tgid: u32,
    pub(super) tables: &'a mut NetTables,
    pub(super) runtimes: &'a mut Runtimes,
}

impl Judge<'_> {
    /// Judges a process; `parent` describes its parent where that is traced.
    pub(super) fn judge(
        &mut self,
        pid: u32,
        parent: impl Fn(u32) -> Option<Parent>,
        effort: Effort,
    ) -> Judgement {
        let stat = match procfs::stat(pid) {
            Ok(stat) => stat,
            Err(_) => return Judgement::Leave(WhyNot::Gone, None),
        };
        if let Some(why_not) = self.hopeless(pid, &stat) {
            return Judgement::Leave(why_not, None);
        }
        let exe = match procfs::exe(pid) {
            Ok(exe) => exe,
            Err(error) => {
                let why_not = match error.kind() {
                    io::ErrorKind::PermissionDenied => WhyNot::Unreadable,
                    _ => WhyNot::Gone,
                };
                return Judgement::Leave(why_not, None);
            }
        };
        let parent = parent(stat.ppid);
        let mut seen = Seen {
            pid,
            stat,
            exe,
            cmdline: Vec::new(),
            listening: Vec::new(),
        };
        let looks_like_python = looks_like_python(&seen.exe);
        let full = effort == Effort::Full;
        if looks_like_python
            || full
            || self.selector.has_names()
            || self.selector.pids().contains(&pid)
        {
            seen.cmdline = procfs::cmdline(pid).unwrap_or_default();
        }
        let command = looks_like_python.then(|| Command::parse(&seen.cmdline));
        let exe = file_name(&seen.exe);
        if self
            .selector
            .excludes(pid, &seen.stat.comm, exe, command.as_ref())
        {
            return Judgement::Leave(WhyNot::Excluded, Some((seen, None)));
        }

        let mut verdict = self.verdict_unheard(&seen, command.as_ref(), parent);
        if full || verdict.is_some() || self.listening_matters(&seen) {
            seen.listening = self.tables.listening(pid);
        }
        if verdict.is_none() {
            verdict = self.verdict_heard(&seen);
        }
        let is_candidate =
            verdict.is_some() || full || (self.selector.is_default() && !seen.listening.is_empty());
        if !is_candidate {
            let why_not = if !self.selector.is_default() {
                WhyNot::NotSelected
            } else if looks_like_python {
                WhyNot::NotListening
            } else {
                WhyNot::NotPython
            };
            return Judgement::Leave(why_not, Some((seen, None)));
        }
        match self.runtimes.find(pid, &seen.exe) {
            Some(runtime) => self.conclude(seen, verdict, runtime),
            None if effort == Effort::Early => Judgement::Leave(WhyNot::Loading, None),
            // It is called like Python, and that is all.
            None => self.conclude(seen, verdict, Runtime::Other("native")),
        }
    }

    /// Why a process cannot be traced, whatever it is.
    fn hopeless(&self, pid: u32, stat: &Stat) -> Option<WhyNot> {
        if pid == self.own_tgid {
            Some(WhyNot::Agent)
        } else if stat.kernel_thread {
            Some(WhyNot::Kernel)
        } else if stat.is_dead() {
            Some(WhyNot::Zombie)
        } else {
            None
        }
    }

    /// Why it is traced, so far as that does not depend on where it listens.
    fn verdict_unheard(
        &self,
        seen: &Seen,
        command: Option<&Command>,
        parent: Option<Parent>,
    ) -> Option<Why> {
        let selector = self.selector;
        if selector.pids().contains(&seen.pid) {
            return Some(Why::Pid);
        }
        if selector.has_names()
            && selector.matches_name(&seen.stat.comm, file_name(&seen.exe), command)
        {
            return Some(Why::Name);
        }
        if selector.is_default()
            && let Some(server) = command.and_then(Command::server)
        {
            return Some(Why::Server(server));
        }
        let is_worker = command.is_some_and(Command::is_multiprocessing_child);
        parent
            .filter(|parent| match selector.children() {
                Children::None => false,
                Children::Workers => parent.image == seen.stat.image || is_worker,
                Children::All => true,
            })
            .map(|parent| Why::ChildOf(parent.pid))
    }

    /// Whether where it listens can decide.
    fn listening_matters(&mut self, seen: &Seen) -> bool {
        if self.selector.is_default() {
            return true;
        }
        // Descriptors need not be gone through where nobody listens on such a port.
        let ports = self.selector.ports();
        !ports.is_empty() && self.tables.has_port(seen.pid, ports)
    }

    /// Why it is traced, by where it listens.
    fn verdict_heard(&self, seen: &Seen) -> Option<Why> {
        let mut ports = seen.listening.iter().filter_map(|listen| listen.port());
        ports
            .find(|port| self.selector.ports().contains(port))
            .map(Why::Port)
    }

    fn conclude(&self, seen: Seen, verdict: Option<Why>, runtime: Runtime) -> Judgement {
        let by_default = self.selector.is_default();
        let is_python = runtime.is_python();
        let listens = !seen.listening.is_empty();
        let verdict =
            verdict.or_else(|| (by_default && is_python && listens).then_some(Why::Listens));
        match verdict {
            Some(why) => Judgement::Trace(seen, why, runtime),
            None => {
                let why_not = if !by_default {
                    WhyNot::NotSelected
                } else if is_python {
                    WhyNot::NotListening
                } else {
                    WhyNot::NotPython
                };
                Judgement::Leave(why_not, Some((seen, Some(runtime))))
            }
        }
    }
}
