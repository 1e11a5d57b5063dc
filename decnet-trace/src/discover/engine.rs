//! Keeps track of which processes are traced, as they come, change and go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use decnet_trace_common::limits::TARGETS_MAX;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    judge::{Effort, Judge, Judgement, Parent, Why, WhyNot},
    listen::NetTables,
    process::{self, Process, Seen},
    procfs,
    resource::{self, Host, Overrides},
    runtime::{Runtime, Runtimes, looks_like_python},
    select::{Children, Selector},
};
use crate::span::Resource;

/// How long after each look at a Python process the next one follows: interpreters take a moment to load,
/// and services a while to listen. Kernels tell of TCP sockets that begin to listen, not of unix ones.
const LOOKS: [Duration; 7] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// How long a forked child is left alone: most that execute a program do it at once, and need not be
/// traced for that moment.
const FORK_DELAY: Duration = Duration::from_millis(20);
/// How long after the end of a process its pid is looked at, in case it was another's already.
const EXIT_DELAY: Duration = Duration::from_secs(1);
/// How long after a process began to be traced its children are looked at, in case that it forked one while the
/// kernel side did not know of it yet: servers do so as soon as they listen.
const CHILDREN_DELAYS: [Duration; 2] = [FORK_DELAY, Duration::from_millis(500)];
/// How often all processes are looked through, in case a record was lost.
const SCAN_EVERY: Duration = Duration::from_secs(30);
/// The most processes waiting for a look. What does not fit is found by the next scan.
const WAITING_MAX: usize = 16_384;
/// The most processes remembered as not worth a look.
const SETTLED_MAX: usize = 131_072;

/// A process that is traced.
#[derive(Clone, Debug)]
pub struct TracedProcess {
    /// The facts.
    pub process: Process,
    /// Why it is traced.
    pub why: Why,
    /// What its telemetry is said to come from.
    pub resource: Arc<Resource>,
}

/// Why a process is no longer traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UntraceReason {
    /// It ended.
    Exited,
    /// It executed a program: what was known of it is void. The kernel side goes on with its sockets until a
    /// [`Change::Trace`] or another [`Change::Untrace`] says what becomes of it.
    Executed,
    /// It is not asked for, though the kernel side may trace it: as the child of a traced process, or since it
    /// was one that executed another program.
    NotSelected,
}

impl UntraceReason {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "it ended",
            Self::Executed => "it executed another program",
            Self::NotSelected => "it is not asked for any more",
        }
    }
}

/// What to do about a process.
#[derive(Clone, Debug)]
pub enum Change {
    /// Trace it.
    Trace(Arc<TracedProcess>),
    /// Trace it no longer. May name a process that was never in a [`Change::Trace`]: the kernel side
    /// takes over children of traced processes by itself.
    Untrace(u32, UntraceReason),
}

/// What discovery did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Processes judged.
    pub judged: u64,
    /// Scans of all processes.
    pub scans: u64,
    /// Processes traced later than they should have been: found by a scan, or let go and taken up again. What
    /// they did meanwhile was not seen.
    pub late: u64,
    /// Looks not taken because too many were waiting.
    pub dropped: u64,
    /// Processes not traced because too many were.
    pub refused: u64,
}

/// A look to be taken at a process.
struct Look {
    due: Due,
    /// How many were taken since something happened to it.
    taken: usize,
    /// The traced process that forked it, as long as it has executed nothing since.
    forked_by: Option<Arc<TracedProcess>>,
    /// Whether the kernel side may trace it already: it took it over from its parent, or had it before it
    /// executed its program.
    inherited: bool,
    /// Whether it was let go.
    let_go: bool,
}

/// What has become of a process since it was last looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Now {
    /// It is traced, and still the one, with the program, that was judged.
    Traced,
    /// It was traced, and has executed another program.
    Executed,
    /// It is not traced.
    Untraced,
}

/// When to take a look. Events carry no time that [`Instant`] could be compared with, so a delay
/// counts from the tick that follows.
#[derive(Clone, Copy)]
enum Due {
    After(Duration),
    At(Instant),
}

impl Due {
    /// Whether it has come at this tick, from which a delay counts that has not begun.
    fn has_come(&mut self, now: Instant) -> bool {
        let at = match *self {
            Self::At(at) => at,
            Self::After(delay) => now + delay,
        };
        *self = Self::At(at);
        at <= now
    }
}

impl Look {
    fn after(delay: Duration) -> Self {
        Self {
            due: Due::After(delay),
            taken: 0,
            forked_by: None,
            inherited: false,
            let_go: false,
        }
    }
}

/// Decides which processes are traced.
pub struct Discovery {
    selector: Selector,
    own_tgid: u32,
    overrides: Overrides,
    host: Host,
    runtimes: Runtimes,
    traced: FxHashMap<u32, Arc<TracedProcess>>,
    looks: FxHashMap<u32, Look>,
    /// Processes that have just begun to be traced, and when to look at their children.
    parents: Vec<(Due, u32)>,
    /// Processes that a scan found not worth another look: pid, start, program executed.
    settled: FxHashSet<(u32, u64, u64)>,
    /// What is to be said with the next tick.
    changes: Vec<Change>,
    next_scan: Option<Instant>,
    counts: Counts,
}

impl Discovery {
    /// Discovery of what `selector` asks for; `own_tgid`, the agent's own process, is never traced.
    pub fn new(selector: Selector, own_tgid: u32) -> Self {
        Self {
            selector,
            own_tgid,
            overrides: Overrides::default(),
            host: Host::read(),
            runtimes: Runtimes::default(),
            traced: FxHashMap::default(),
            looks: FxHashMap::default(),
            parents: Vec::new(),
            settled: FxHashSet::default(),
            changes: Vec::new(),
            next_scan: None,
            counts: Counts::default(),
        }
    }

    /// Adds what the agent's own configuration says about every process.
    #[must_use]
    pub fn with_overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// Looks through all processes: to be called at the start, after the hooks were attached, so that
    /// no process comes in between unseen.
    pub fn scan_all(&mut self) -> Vec<Change> {
        self.scan();
        std::mem::take(&mut self.changes)
    }

    /// Goes by another selector from now on, and says what that changes.
    pub fn select(&mut self, selector: Selector) -> Vec<Change> {
        self.selector = selector;
        self.settled.clear();
        let mut tables = NetTables::default();
        // A child stays by its parent: again until nobody goes.
        loop {
            let mut pids: Vec<u32> = self.traced.keys().copied().collect();
            // Parents mostly have lower pids than their children.
            pids.sort_unstable();
            let mut has_changed = false;
            for pid in pids {
                if self.is_traced_still(pid)
                    && let Judgement::Leave(..) = self.judge(pid, None, &mut tables, Effort::Final)
                {
                    self.traced.remove(&pid);
                    self.changes
                        .push(Change::Untrace(pid, UntraceReason::NotSelected));
                    has_changed = true;
                }
            }
            if !has_changed {
                return self.scan_all();
            }
        }
    }

    /// A process executed a program. Of a program that is not Python this costs one `readlink`.
    pub fn on_exec(&mut self, pid: u32) {
        if pid == self.own_tgid {
            return;
        }
        let mut look = Look::after(Duration::ZERO);
        let inherited = self.looks.get(&pid).is_some_and(|look| look.inherited);
        if inherited && let Some(before) = self.looks.remove(&pid) {
            // The kernel side took it over from its parent. It keeps it until it is known what it runs now: a
            // worker must lose nothing.
            look.inherited = true;
            if self.selector.children() == Children::All {
                look.forked_by = before.forked_by;
            }
        }
        if look.forked_by.is_some()
            || self.traced.contains_key(&pid)
            || self.selector.has_names()
            || self.selector.pids().contains(&pid)
            || procfs::exe(pid).is_ok_and(|exe| looks_like_python(&exe))
        {
            self.look_at(pid, look);
        } else if inherited {
            self.let_go(pid);
        }
    }

    /// A traced process forked a child, which the kernel side traces already.
    pub fn on_fork(&mut self, parent: u32, child: u32) {
        let forked_by = self.traced.get(&parent).cloned().or_else(|| {
            let look = self.looks.get(&parent)?;
            look.forked_by.clone()
        });
        let look = Look {
            forked_by,
            inherited: true,
            ..Look::after(FORK_DELAY)
        };
        self.look_at(child, look);
    }

    /// A process began to listen on a TCP socket.
    pub fn on_listen(&mut self, pid: u32) {
        if pid != self.own_tgid && !self.traced.contains_key(&pid) {
            match self.looks.get_mut(&pid) {
                Some(look) => look.due = Due::After(Duration::ZERO),
                None => self.look_at(pid, Look::after(Duration::ZERO)),
            }
        }
    }

    /// A traced process ended.
    pub fn on_exit(&mut self, pid: u32) {
        let inherited = self.looks.remove(&pid).is_some_and(|look| look.inherited);
        if self.traced.remove(&pid).is_some() || inherited {
            self.changes
                .push(Change::Untrace(pid, UntraceReason::Exited));
            self.look_at(pid, Look::after(EXIT_DELAY));
        }
    }

    /// Takes the looks that are due, and says what changed since the last call. To be called after
    /// each batch of events, and when [`Self::next_due`] has come.
    pub fn tick(&mut self, now: Instant) -> Vec<Change> {
        let mut due = Vec::new();
        for (&pid, look) in &mut self.looks {
            if look.due.has_come(now) {
                due.push(pid);
            }
        }
        let mut tables = NetTables::default();
        // Parents mostly have lower pids than their children, which are judged by them.
        due.sort_unstable();
        for pid in due {
            if let Some(look) = self.looks.remove(&pid) {
                self.take(pid, look, now, &mut tables);
            }
        }
        let parents: Vec<_> = self
            .parents
            .extract_if(.., |(due, _)| due.has_come(now))
            .collect();
        for (_, pid) in parents {
            self.look_at_children(pid, now, &mut tables);
        }
        let next_scan = *self.next_scan.get_or_insert(now + SCAN_EVERY);
        if next_scan <= now {
            self.next_scan = Some(now + SCAN_EVERY);
            let found = self.scan();
            self.counts.late += found;
        }
        std::mem::take(&mut self.changes)
    }

    /// When the next tick is due, were nothing to happen; `None`: at once.
    pub fn next_due(&self) -> Option<Instant> {
        let mut next = self.next_scan?;
        let parents = self.parents.iter().map(|(due, _)| due);
        for due in self.looks.values().map(|look| &look.due).chain(parents) {
            match *due {
                Due::At(at) => next = next.min(at),
                Due::After(_) => return None,
            }
        }
        Some(next)
    }

    /// The processes traced now.
    pub fn traced(&self) -> impl ExactSizeIterator<Item = &Arc<TracedProcess>> {
        self.traced.values()
    }

    /// The processes asked for by pid that are not traced.
    pub fn missing(&self) -> Vec<u32> {
        let pids = self.selector.pids().iter().copied();
        pids.filter(|pid| !self.traced.contains_key(pid)).collect()
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn look_at(&mut self, pid: u32, look: Look) {
        if self.looks.len() >= WAITING_MAX && !self.looks.contains_key(&pid) {
            self.counts.dropped += 1;
            if look.inherited {
                self.let_go(pid);
            }
            return;
        }
        self.looks.insert(pid, look);
    }

    /// Tells the kernel side, which may trace a process, not to.
    fn let_go(&mut self, pid: u32) {
        self.changes
            .push(Change::Untrace(pid, UntraceReason::NotSelected));
    }

    /// Takes one look at a process.
    fn take(&mut self, pid: u32, mut look: Look, now: Instant, tables: &mut NetTables) {
        match self.check(pid) {
            Now::Traced => return,
            Now::Executed => look.inherited = true,
            Now::Untraced => {}
        }
        let is_last = look.taken >= LOOKS.len();
        let effort = if is_last {
            Effort::Final
        } else {
            Effort::Early
        };
        let why_not = match self.judge(pid, look.forked_by.as_deref(), tables, effort) {
            Judgement::Trace(seen, why, runtime) => {
                let parent = seen.stat.ppid;
                match self.admit(seen, why, runtime, look.forked_by.as_ref()) {
                    Ok(()) => {
                        self.counts.late += u64::from(look.let_go);
                        if matches!(why, Why::Listens | Why::Port(_)) {
                            self.look_at_kin(parent);
                        }
                        return;
                    }
                    Err(why_not) => why_not,
                }
            }
            Judgement::Leave(why_not, _) => why_not,
        };
        let next = LOOKS.get(look.taken).filter(|_| why_not.may_change());
        // Whether it is a worker is not known before its interpreter is mapped.
        let is_kept = look.inherited && why_not == WhyNot::Loading && next.is_some();
        if look.inherited && !is_kept {
            let reason = match why_not {
                WhyNot::Gone | WhyNot::Zombie => UntraceReason::Exited,
                _ => UntraceReason::NotSelected,
            };
            self.changes.push(Change::Untrace(pid, reason));
        }
        if let Some(&delay) = next {
            let next = Look {
                due: Due::At(now + delay),
                taken: look.taken + 1,
                forked_by: look.forked_by.filter(|_| is_kept),
                inherited: is_kept,
                let_go: look.let_go || look.inherited && !is_kept,
            };
            self.look_at(pid, next);
        }
    }

    /// Looks at the parent of a process that listens, and so at its other children. Workers may share one
    /// socket that their parent made, and the kernel tells of the first alone that listens on it.
    fn look_at_kin(&mut self, parent: u32) {
        let may_listen = !self.selector.ports().is_empty()
            || procfs::exe(parent).is_ok_and(|exe| looks_like_python(&exe));
        if parent > 1 && may_listen {
            self.on_listen(parent);
        }
    }

    /// Looks at those children of a traced process of which nothing is known.
    fn look_at_children(&mut self, pid: u32, now: Instant, tables: &mut NetTables) {
        if !self.traced.contains_key(&pid) {
            return;
        }
        for child in procfs::children(pid) {
            if self.traced.contains_key(&child) {
                continue;
            }
            match self.looks.get_mut(&child) {
                // One that began before its parent was known is not waited for any longer.
                Some(look) if !look.inherited => look.due = Due::After(Duration::ZERO),
                Some(_) => {}
                None => self.take(child, Look::after(Duration::ZERO), now, tables),
            }
        }
    }

    /// Looks at a process that is traced; says so where it is no more.
    fn check(&mut self, pid: u32) -> Now {
        let Some(traced) = self.traced.get(&pid) else {
            return Now::Untraced;
        };
        let reason = match procfs::stat(pid) {
            Ok(stat) if stat.is_dead() || stat.start != traced.process.start => {
                UntraceReason::Exited
            }
            Ok(stat) if stat.image != traced.process.image => UntraceReason::Executed,
            Ok(_) => return Now::Traced,
            Err(_) => UntraceReason::Exited,
        };
        self.traced.remove(&pid);
        self.changes.push(Change::Untrace(pid, reason));
        match reason {
            UntraceReason::Executed => Now::Executed,
            _ => Now::Untraced,
        }
    }

    /// Whether a process is traced, and still the one, with the program, that was judged. What it runs if it
    /// has executed another is looked at with the next tick.
    fn is_traced_still(&mut self, pid: u32) -> bool {
        let now = self.check(pid);
        if now == Now::Executed {
            let look = Look {
                inherited: true,
                ..Look::after(Duration::ZERO)
            };
            self.look_at(pid, look);
        }
        now == Now::Traced
    }

    fn judge(
        &mut self,
        pid: u32,
        forked_by: Option<&TracedProcess>,
        tables: &mut NetTables,
        effort: Effort,
    ) -> Judgement {
        self.counts.judged += 1;
        let traced = &self.traced;
        let parent = |ppid: u32| {
            // The one that forked it may have ended since.
            let parent = forked_by.or_else(|| traced.get(&ppid).map(Arc::as_ref))?;
            Some(Parent {
                pid: parent.process.pid,
                image: parent.process.image,
            })
        };
        Judge {
            selector: &self.selector,
            own_tgid: self.own_tgid,
            tables,
            runtimes: &mut self.runtimes,
        }
        .judge(pid, parent, effort)
    }

    /// Begins to trace a process.
    fn admit(
        &mut self,
        seen: Seen,
        why: Why,
        runtime: Runtime,
        forked_by: Option<&Arc<TracedProcess>>,
    ) -> Result<(), WhyNot> {
        if self.traced.len() >= TARGETS_MAX as usize {
            self.counts.refused += 1;
            return Err(WhyNot::TooMany);
        }
        let pid = seen.pid;
        let parent = match why {
            Why::ChildOf(parent) => forked_by.or_else(|| self.traced.get(&parent)),
            _ => None,
        };
        let (process, resource) = match parent {
            Some(parent) if parent.process.image == seen.stat.image => {
                let process = process::gather_forked(&parent.process, pid, seen.stat);
                let resource = resource::describe_forked(
                    &process,
                    &parent.process,
                    &parent.resource,
                    &self.host,
                );
                (process, resource)
            }
            _ => {
                let name = parent.map(|parent| parent.resource.service_name.as_str());
                let cmdline = seen.cmdline.clone();
                let process = process::gather(seen, runtime);
                let resource =
                    resource::describe(&process, &cmdline, name, &self.host, &self.overrides);
                (process, resource)
            }
        };
        // All of it must have been read of one process that ran one program.
        match procfs::stat(pid) {
            Ok(stat) if stat.start != process.start => return Err(WhyNot::Loading),
            Ok(stat) if stat.image != process.image => return Err(WhyNot::Loading),
            Ok(_) => {}
            Err(_) => return Err(WhyNot::Gone),
        }
        let traced = Arc::new(TracedProcess {
            process,
            why,
            resource: Arc::new(resource),
        });
        self.traced.insert(pid, Arc::clone(&traced));
        self.changes.push(Change::Trace(traced));
        let delays = CHILDREN_DELAYS.map(Due::After);
        self.parents.extend(delays.map(|due| (due, pid)));
        Ok(())
    }

    /// Looks through all processes for what no event told, and gives how many more are traced.
    fn scan(&mut self) -> u64 {
        self.counts.scans += 1;
        let Ok(pids) = procfs::pids() else { return 0 };
        let pids: FxHashSet<u32> = pids.collect();
        let known: Vec<u32> = self.traced.keys().copied().collect();
        for pid in known {
            self.is_traced_still(pid);
        }
        let mut tables = NetTables::default();
        let mut settled = FxHashSet::default();
        // Those left, by their parents: they are judged anew where those turn out to be traced.
        let mut left: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        let mut parents = Vec::new();
        for &pid in &pids {
            if self.traced.contains_key(&pid) || self.looks.contains_key(&pid) {
                continue;
            }
            let Ok(stat) = procfs::stat(pid) else {
                continue;
            };
            let key = (pid, stat.start, stat.image);
            if self.settled.contains(&key) {
                settled.insert(key);
                continue;
            }
            match self.judge(pid, None, &mut tables, Effort::Final) {
                Judgement::Trace(seen, why, runtime) => {
                    if self.admit(seen, why, runtime, None).is_ok() {
                        parents.push(pid);
                    }
                }
                Judgement::Leave(why_not, _) => {
                    if self.is_settled(why_not) && settled.len() < SETTLED_MAX {
                        settled.insert(key);
                    }
                    left.entry(stat.ppid).or_default().push(pid);
                }
            }
        }
        self.settled = settled;
        let mut found = parents.len() as u64;
        while let Some(parent) = parents.pop() {
            for pid in left.remove(&parent).unwrap_or_default() {
                if let Judgement::Trace(seen, why, runtime) =
                    self.judge(pid, None, &mut tables, Effort::Final)
                    && self.admit(seen, why, runtime, None).is_ok()
                {
                    found += 1;
                    parents.push(pid);
                }
            }
        }
        found
    }

    /// Whether a process left for this reason stays so until an event tells otherwise.
    fn is_settled(&self, why_not: WhyNot) -> bool {
        match why_not {
            WhyNot::Kernel | WhyNot::Agent | WhyNot::NotPython => true,
            // A process may change its name, or listen, at any time.
            WhyNot::NotSelected => !self.selector.has_names() && self.selector.ports().is_empty(),
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
