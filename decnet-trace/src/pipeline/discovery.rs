//! The thread that reads /proc: told by the kernel side what happened, it says which processes to trace,
//! and where a CPython among them keeps what the kernel side reads.

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use decnet_trace_common::event::{Proc, ProcWhat, PyFrame, SockState, tcp_state};
use rustc_hash::{FxBuildHasher, FxHashMap};
use tracing::debug;

use crate::{
    discover::{Change, Discovery, RouteReader, Runtime, Selector, TracedProcess},
    error::{Error, Result},
    govern::memory::Giveback,
    policy::template::Template,
    python::{
        BatchProbes, Inspection, Inspector, PyProcess, PythonResolver, QueueProbes, Unsupported,
        is_worker_loop, retry_after,
    },
    sqlite::{Finder, Mapped, mapped_pages},
};

/// How many notices may wait. One that does not fit makes the thread look through all processes.
const NOTICES_MAX: usize = 8192;

/// How many findings may wait for the pipeline; it takes them every round.
const FINDINGS_MAX: usize = 4096;

/// The longest that the thread sleeps.
const NAP_MAX: Duration = Duration::from_secs(1);

/// How long after its start a service's source files are read again: what it serves may have been
/// written, or mounted, a moment later than the process came up.
const ROUTES_AGAIN: Duration = Duration::from_secs(5);

/// The most services whose routes are looked after.
const ROUTES_MAX: usize = 1024;

/// How often an interpreter is looked at that does not pass its self-check.
const CHECKS: u32 = 8;

/// How often an interpreter is looked at that does not come up, once it is given up: one that its program embeds
/// may run nothing until the first request comes.
const IDLE_EVERY: Duration = Duration::from_secs(15);

/// The number of such a look.
const IDLE: u32 = u32::MAX;

/// How often a process is looked at that may load SQLite yet.
const SQLITE_EVERY: Duration = Duration::from_secs(20);

/// What the thread found out.
#[derive(Debug)]
pub(super) enum Finding {
    /// A process is to be traced, or no longer.
    Change(Change),
    /// A traced process's CPython was understood, and checked.
    Python(Box<PyProcess>),
    /// A traced process's CPython is not supported, for this reason.
    Unsupported(u32, String),
    /// A traced process runs no CPython.
    NotPython(u32),
    /// Where work passes through queues in a process.
    Queues(u32, QueueProbes),
    /// Whether the function with this code object is a loop that does one thing after the other; `None` where it
    /// could not be read.
    Caller {
        tgid: u32,
        code: u64,
        is_loop: Option<bool>,
    },
    /// The routes that a service declares.
    Routes(Box<str>, Vec<Template>),
    /// A traced process maps SQLite.
    Sqlite(Box<Mapped>),
    /// A process can execute a statement of SQLite many times, here.
    Batches(u32, BatchProbes),
}

/// Something happened to a process.
#[derive(Debug)]
enum Notice {
    Exec(u32),
    Fork { parent: u32, child: u32 },
    Listen(u32),
    Exit(u32),
    Queues(u32),
    Caller { tgid: u32, code: u64 },
    Select(Box<Selector>),
    LearnRoutes(bool),
}

/// The pipeline's end of the discovery thread.
pub(super) struct DiscoveryThread {
    notices: Sender<Notice>,
    findings: Receiver<Finding>,
    shared: Arc<Shared>,
    lost: AtomicU64,
}

/// What both ends see.
#[derive(Default)]
struct Shared {
    /// Whether notices did not fit.
    overflowed: AtomicBool,
    /// See [`crate::discover::Counts::late`].
    late: AtomicU64,
}

impl DiscoveryThread {
    /// Starts the thread. It ends when this is dropped.
    ///
    /// `first` has been applied already; of these processes, the interpreters remain to be looked at.
    /// `routes`: read what services declare; `sqlite`: look for SQLite.
    pub(super) fn start(
        discovery: Discovery,
        first: Vec<Change>,
        routes: bool,
        sqlite: bool,
    ) -> Result<Self> {
        let (notices, inbox) = bounded(NOTICES_MAX);
        let (outbox, findings) = bounded(FINDINGS_MAX);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("discover".into())
            .spawn(move || work(discovery, &inbox, &outbox, &theirs, first, routes, sqlite))
            .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            notices,
            findings,
            shared,
            lost: AtomicU64::new(0),
        })
    }

    /// Passes on what happened to a process.
    pub(super) fn on_proc(&self, event: &Proc) {
        let tgid = event.header.tgid;
        let notice = match ProcWhat::from_u32(event.what) {
            Some(ProcWhat::Exec) => Notice::Exec(tgid),
            Some(ProcWhat::Fork) => Notice::Fork {
                parent: event.parent,
                child: tgid,
            },
            Some(ProcWhat::Exit) => Notice::Exit(tgid),
            Some(ProcWhat::ThreadExit) | None => return,
        };
        self.tell(notice);
    }

    /// Passes on that a process began to listen.
    pub(super) fn on_sock_state(&self, event: &SockState) {
        if event.new == tcp_state::LISTEN {
            self.tell(Notice::Listen(event.header.tgid));
        }
    }

    /// Asks where work passes through queues in a process: [`Finding::Queues`], if it is found.
    pub(super) fn find_queues(&self, tgid: u32) {
        self.tell(Notice::Queues(tgid));
    }

    /// Asks what a function is: [`Finding::Caller`]; whether that could be asked.
    pub(super) fn judge_caller(&self, tgid: u32, code: u64) -> bool {
        self.tell(Notice::Caller { tgid, code })
    }

    /// Traces what this selector asks for from now on, and nothing else; whether that was passed on.
    pub(super) fn select(&self, selector: Selector) -> bool {
        self.notices
            .try_send(Notice::Select(Box::new(selector)))
            .is_ok()
    }

    /// Reads the routes that services declare from now on, or no longer; whether that was passed on.
    pub(super) fn learn_routes(&self, learn: bool) -> bool {
        self.notices.try_send(Notice::LearnRoutes(learn)).is_ok()
    }

    /// What was found since the last call.
    pub(super) fn findings(&self) -> impl Iterator<Item = Finding> {
        self.findings.try_iter()
    }

    /// Notices that did not fit.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Processes that were traced later than they should have been.
    pub(super) fn late(&self) -> u64 {
        self.shared.late.load(Ordering::Relaxed)
    }

    fn tell(&self, notice: Notice) -> bool {
        let is_told = self.notices.try_send(notice).is_ok();
        if !is_told {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.shared.overflowed.store(true, Ordering::Relaxed);
        }
        is_told
    }
}

/// Looks into the CPythons of traced processes.
#[derive(Default)]
struct Looks {
    inspector: Inspector,
    resolver: PythonResolver,
    /// Processes whose interpreter is still starting: when to look again, and how often that was done.
    waiting: Vec<(Instant, u32, u32)>,
    /// Finds SQLite, where that is wanted.
    sqlite: Option<Finder>,
    /// Processes without SQLite as yet.
    without: Vec<Without>,
    /// Processes with SQLite whose module for it is not found yet: when to look again, and how often that was
    /// done.
    modules: Vec<(Instant, u32, u32)>,
    routes: Routes,
}

/// A process without SQLite as yet.
#[derive(Clone, Copy)]
struct Without {
    pid: u32,
    /// When to look again, and how often that was done.
    due: Instant,
    attempt: u32,
    /// How many pages it mapped then.
    pages: Option<u64>,
}

/// Reads the routes of services.
#[derive(Default)]
struct Routes {
    reader: RouteReader,
    /// Whether they are wanted.
    wanted: bool,
    /// What to read: the newest process of each service and command line, and when.
    due: FxHashMap<u64, (Instant, Arc<TracedProcess>)>,
}

impl Routes {
    /// Reads those of a new process, now if it is the first of its kind, and once more later.
    fn on_trace(&mut self, traced: &Arc<TracedProcess>, out: &mut Vec<Finding>) {
        if !self.wanted || !traced.process.runtime.is_python() {
            return;
        }
        let kind = (&traced.resource.service_name, &traced.process.arguments);
        let kind = FxBuildHasher.hash_one(kind);
        // Of workers that start together, one is enough.
        let is_first = !self.due.contains_key(&kind);
        if is_first && self.due.len() >= ROUTES_MAX {
            return;
        }
        let again = Instant::now() + ROUTES_AGAIN;
        self.due.insert(kind, (again, Arc::clone(traced)));
        if is_first {
            self.read(traced, out);
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Finding>) {
        let due: Vec<_> = self.due.extract_if(|_, (due, _)| *due <= now).collect();
        for (_, (_, traced)) in due {
            self.read(&traced, out);
        }
    }

    fn read(&mut self, traced: &TracedProcess, out: &mut Vec<Finding>) {
        if let Some(templates) = self.reader.read(traced) {
            let service = traced.resource.service_name.as_str().into();
            out.push(Finding::Routes(service, templates));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.values().map(|(due, _)| *due).min()
    }
}

impl Looks {
    /// Follows what became of a process.
    fn on_change(&mut self, change: &Change, out: &mut Vec<Finding>) {
        match change {
            Change::Trace(traced) => {
                let TracedProcess { process, .. } = traced.as_ref();
                if matches!(process.runtime, Runtime::CPython { .. }) {
                    self.look(process.pid, 0, out);
                    // With the next tick: the interpreters of all that are new come first, for calls wait for
                    // them.
                    self.without.push(Without {
                        pid: process.pid,
                        due: Instant::now(),
                        attempt: 0,
                        pages: None,
                    });
                }
            }
            Change::Untrace(pid, _) => {
                self.waiting.retain(|(_, waiting, _)| waiting != pid);
                self.without.retain(|without| without.pid != *pid);
                self.modules.retain(|(_, module, _)| module != pid);
                self.resolver.remove(*pid);
            }
        }
    }

    /// Judges a function by its name and file.
    fn judge(&mut self, tgid: u32, code: u64) -> Finding {
        let found = self.resolver.resolve_one(tgid, PyFrame { code, instr: 0 });
        Finding::Caller {
            tgid,
            code,
            is_loop: found.map(|function| is_worker_loop(&function)),
        }
    }

    /// Looks again where it is time.
    fn tick(&mut self, now: Instant, out: &mut Vec<Finding>) {
        let due: Vec<_> = self
            .waiting
            .extract_if(.., |(due, _, _)| *due <= now)
            .collect();
        for (_, pid, attempt) in due {
            self.look(pid, attempt, out);
        }
        self.routes.tick(now, out);
        let due: Vec<_> = self
            .without
            .extract_if(.., |without| without.due <= now)
            .collect();
        for without in due {
            self.look_for_sqlite(without.pid, without.attempt, without.pages, out);
        }
        let due: Vec<_> = self
            .modules
            .extract_if(.., |(due, _, _)| *due <= now)
            .collect();
        for (_, pid, attempt) in due {
            self.look_for_batches(pid, attempt, out);
        }
    }

    /// Looks for SQLite in a process. Programs load it when they import `sqlite3`, which may be at any
    /// time: until they do, they are looked at again and again, though ever less often.
    fn look_for_sqlite(
        &mut self,
        pid: u32,
        attempt: u32,
        pages: Option<u64>,
        out: &mut Vec<Finding>,
    ) {
        let Some(finder) = &mut self.sqlite else {
            return;
        };
        let now = mapped_pages(pid).ok();
        // All that it maps is a long list, and most processes load nothing any more.
        let found = match now.is_some() && now == pages {
            true => Ok(Vec::new()),
            false => finder.find(pid),
        };
        match found {
            Ok(found) if found.is_empty() => {
                let delay = Duration::from_millis(250 << attempt.min(7)).min(SQLITE_EVERY);
                self.without.push(Without {
                    pid,
                    due: Instant::now() + delay,
                    attempt: attempt.saturating_add(1),
                    pages: now,
                });
            }
            Ok(found) => {
                out.extend(found.into_iter().map(|at| Finding::Sqlite(Box::new(at))));
                self.look_for_batches(pid, 0, out);
            }
            // Its end will be told, where it has ended.
            Err(error) => debug!("no statements of pid {pid}: {error}"),
        }
    }

    /// Looks for the module that calls SQLite. It is loaded together with it, and may not be ready yet.
    fn look_for_batches(&mut self, pid: u32, attempt: u32, out: &mut Vec<Finding>) {
        let found = self.inspector.batch_probes(pid);
        match (found.is_empty(), retry_after(attempt)) {
            (false, _) => out.extend(found.into_iter().map(|at| Finding::Batches(pid, at))),
            (true, Some(delay)) => self
                .modules
                .push((Instant::now() + delay, pid, attempt + 1)),
            (true, None) => debug!("each execution of pid {pid}'s executemany stands apart"),
        }
    }

    /// When to wake up at the latest. What is looked at seldom waits until something else wakes the thread, for
    /// no more than [`NAP_MAX`].
    fn next_due(&self) -> Option<Instant> {
        let without = self.without.iter().filter(|without| without.attempt < 3);
        self.waiting
            .iter()
            .chain(&self.modules)
            .map(|(due, _, _)| *due)
            .chain(without.map(|without| without.due))
            .chain(self.routes.next_due())
            .min()
    }

    /// Looks at an interpreter again after a while, unless that was done often enough.
    fn look_again(&mut self, pid: u32, attempt: u32) -> bool {
        let delay = retry_after(attempt);
        self.waiting
            .extend(delay.map(|delay| (Instant::now() + delay, pid, attempt + 1)));
        delay.is_some()
    }

    fn look(&mut self, pid: u32, attempt: u32, out: &mut Vec<Finding>) {
        match self.inspector.inspect(pid) {
            Inspection::Python(process) => out.push(Finding::Python(process)),
            Inspection::Starting(why) => {
                if self.look_again(pid, attempt) {
                    return;
                }
                if attempt != IDLE {
                    let why = format!("its interpreter has not come up: {why}");
                    out.push(Finding::Unsupported(pid, why));
                }
                self.waiting.push((Instant::now() + IDLE_EVERY, pid, IDLE));
            }
            // What does not fit together may be half-made: it is being started.
            Inspection::Unsupported(Unsupported::SelfCheck(..))
                if attempt < CHECKS && self.look_again(pid, attempt) => {}
            Inspection::Unsupported(why) => out.push(Finding::Unsupported(pid, why.to_string())),
            Inspection::NotPython => out.push(Finding::NotPython(pid)),
            Inspection::Unreadable(error) => {
                out.push(Finding::Unsupported(pid, error.to_string()));
            }
        }
    }
}

fn work(
    mut discovery: Discovery,
    notices: &Receiver<Notice>,
    findings: &Sender<Finding>,
    shared: &Shared,
    first: Vec<Change>,
    routes: bool,
    sqlite: bool,
) {
    let mut looks = Looks {
        sqlite: sqlite.then(Finder::default),
        ..Looks::default()
    };
    looks.routes.wanted = routes;
    let mut giveback = Giveback::new(Instant::now());
    let mut found = Vec::new();
    let send = |found: &mut Vec<Finding>| {
        let mut found = found.drain(..);
        found.all(|finding| findings.send(finding).is_ok())
    };
    let mut changes = first;
    loop {
        for change in &changes {
            looks.on_change(change, &mut found);
        }
        if !send(&mut found) {
            return;
        }
        for change in &changes {
            if let Change::Trace(traced) = change {
                looks.routes.on_trace(traced, &mut found);
            }
        }
        looks.tick(Instant::now(), &mut found);
        if !send(&mut found) {
            return;
        }
        let now = Instant::now();
        giveback.tick(now);
        // Where discovery names no time, it is due at once.
        let due = discovery.next_due().unwrap_or(now);
        let due = looks.next_due().map_or(due, |looks| due.min(looks));
        let nap = due.saturating_duration_since(now).min(NAP_MAX);
        changes.clear();
        match notices.recv_timeout(nap) {
            Ok(first) => {
                for notice in std::iter::once(first).chain(notices.try_iter()) {
                    match notice {
                        Notice::Exec(pid) => discovery.on_exec(pid),
                        Notice::Fork { parent, child } => discovery.on_fork(parent, child),
                        Notice::Listen(pid) => discovery.on_listen(pid),
                        Notice::Exit(pid) => discovery.on_exit(pid),
                        Notice::Queues(pid) => {
                            let probes = looks.inspector.queue_probes(pid);
                            found.extend(probes.map(|probes| Finding::Queues(pid, probes)));
                        }
                        Notice::Caller { tgid, code } => found.push(looks.judge(tgid, code)),
                        Notice::Select(selector) => changes.extend(discovery.select(*selector)),
                        Notice::LearnRoutes(learn) => {
                            let is_new = learn && !looks.routes.wanted;
                            looks.routes.wanted = learn;
                            for traced in discovery.traced().filter(|_| is_new) {
                                looks.routes.on_trace(traced, &mut found);
                            }
                        }
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        changes.extend(if shared.overflowed.swap(false, Ordering::Relaxed) {
            discovery.scan_all()
        } else {
            discovery.tick(Instant::now())
        });
        shared
            .late
            .store(discovery.counts().late, Ordering::Relaxed);
        // Reading what processes run may take long. Which are traced is told first.
        found.extend(changes.iter().cloned().map(Finding::Change));
        if !send(&mut found) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        process::{Command, Stdio},
    };

    use super::*;

    /// An interpreter that runs nothing is given up in a while, with the reason, said once; it is understood as soon
    /// as it runs something.
    #[test]
    fn idle_interpreters_come_up() {
        let Some(python) = xtask::bed::interpreter::system() else {
            println!("SKIPPED: there is no /usr/bin/python3");
            return;
        };
        // Between two lines that it is given, no code runs.
        let mut child = Command::new(python.program)
            .args(["-i", "-q"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut stdin = child.stdin.take().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        stdin.write_all(b"print('up', flush=True)\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "up");

        let mut looks = Looks::default();
        let mut found = Vec::new();
        let last = (0..).take_while(|&attempt| retry_after(attempt).is_some());
        let last = u32::try_from(last.count()).unwrap();
        loop {
            looks.look(pid, last, &mut found);
            // It may not have returned yet from what it was given.
            if !matches!(found[..], [Finding::Python(_)]) {
                break;
            }
            found.clear();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(
            matches!(&found[..], [Finding::Unsupported(it, why)] if *it == pid && why.contains("runs no Python")),
            "{found:?}"
        );
        let again = looks.waiting.pop().unwrap();
        assert_eq!((again.1, again.2), (pid, IDLE));
        found.clear();
        looks.look(pid, IDLE, &mut found);
        assert!(found.is_empty() && looks.waiting.len() == 1, "{found:?}");

        stdin
            .write_all(b"print('up', flush=True) or __import__('time').sleep(1000)\n")
            .unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "up");
        looks.look(pid, IDLE, &mut found);
        assert!(
            matches!(&found[..], [Finding::Python(process)] if process.pid == pid),
            "{found:?}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
