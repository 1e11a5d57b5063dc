//! What the kernel side is told of each traced process: what to record of it, and how to read its Python.

use std::sync::Arc;

use decnet_trace_common::{
    python::ABSENT,
    target::{Target, flags},
};
use tracing::{debug, info, warn};

use super::{
    inheriting::hands_on_contexts,
    joining::network,
    live::{Gap, Python},
    worker::{Worker, monotonic},
};
use crate::{
    discover::{Change, Runtime, TracedProcess, UntraceReason, Why},
    python::{PyProcess, QueueProbes},
};

/// Replace an entry, but don't make one (Linux, include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

impl Worker {
    /// Traces a process, or no longer.
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Trace(process) => {
                let tgid = process.resource.tgid;
                let mut python = python_of(process);
                // What is known of its Python comes first, so that no sample lacks its Python frames.
                let samples = match python {
                    Python::Pending | Python::Read => 0,
                    Python::Absent | Python::Unsupported(_) => self.native_samples(),
                };
                let mut target = Target {
                    flags: self.purposes & !flags::SAMPLES | samples,
                    ..Target::default()
                };
                if let Some(inherited) = self.inherited(tgid) {
                    target = inherited;
                    python = Python::Read;
                }
                // It may have been traced before, and let go: then there is a gap. One that was traced as a child,
                // from its fork on and through what it executed, has none.
                if self.bpf.targets.get(&tgid, 0).is_err() {
                    self.decoder.traced_anew(tgid, monotonic());
                }
                if let Err(error) = self.bpf.targets.insert(tgid, target, 0) {
                    warn!("cannot trace process {tgid}: {error}");
                    self.live.add_gap(tgid, Gap::Process(error.to_string()));
                    return;
                }
                info!("tracing {} (pid {tgid})", process.resource.service_name);
                if let Some(tables) = self.unwinding.tables() {
                    tables.add(tgid);
                }
                self.processes.add(Arc::clone(&process.resource));
                let parent = match process.why {
                    Why::ChildOf(parent) => Some(parent),
                    _ => None,
                };
                self.calls.traced(tgid, parent);
                self.joins.trace(tgid, network(tgid), monotonic());
                self.live.set_python(tgid, python);
            }
            Change::Untrace(tgid, reason) => {
                self.calls.ended(*tgid);
                self.joins.forget_process(*tgid);
                self.sqlites.forget(*tgid);
                match reason {
                    UntraceReason::Executed => self.strip(*tgid),
                    UntraceReason::Exited | UntraceReason::NotSelected => {
                        self.decoder.forget_process(*tgid);
                        // The kernel side has removed one that ended by itself.
                        let _ = self.bpf.targets.remove(tgid);
                    }
                }
                if *reason == UntraceReason::NotSelected {
                    self.processes.drop_waiting(*tgid);
                }
                self.live.forget(*tgid);
                if let Some(tables) = self.unwinding.tables() {
                    tables.remove(*tgid);
                }
                if let Some(measure) = &self.measure {
                    let now = self.clock.to_unix(monotonic());
                    measure.metrics.lock().ended(*tgid, now);
                }
                if let Some(wall) = &self.wall {
                    wall.remove(*tgid);
                }
                if self.processes.resource(*tgid).is_some() {
                    info!("no longer tracing pid {tgid}: {}", reason.as_str());
                    self.processes.end(*tgid, monotonic());
                }
            }
        }
    }

    /// A process has executed another program, which may be traced too. The kernel side has noticed, unless it
    /// was told something of the program before in that very moment.
    fn strip(&mut self, tgid: u32) {
        self.decoder.executed(tgid);
        if let Ok(target) = self.bpf.targets.get(&tgid, 0) {
            let _ = self.bpf.targets.insert(tgid, target.executed(), BPF_EXIST);
        }
    }

    /// What a fork has of a parent whose Python frames are read: all that reading its own takes. The
    /// parent's uprobes it has not.
    pub(super) fn inherited(&self, tgid: u32) -> Option<Target> {
        let mut target = self.bpf.targets.get(&tgid, 0).ok()?;
        if target.flags & flags::INHERITED == 0 || target.python == 0 {
            return None;
        }
        target.flags &= !(flags::LINEAGE | flags::QUEUES);
        Some(target)
    }

    /// Lets the kernel side read a process's Python frames and contexts.
    pub(super) fn arm(&mut self, process: &PyProcess) {
        // It may have ended, and its target with it.
        let Ok(mut target) = self.bpf.targets.get(&process.pid, 0) else {
            return;
        };
        let layout = &process.kernel;
        let index = match self.bpf.add_layout(layout) {
            Ok(index) => index,
            Err(error) => {
                warn!("no Python frames of pid {}: {error}", process.pid);
                let gap = Gap::Frames(error.to_string());
                self.live.add_gap(process.pid, gap);
                return;
            }
        };
        target.flags |= self.purposes & flags::SAMPLES;
        target.python = index + 1;
        target.thread_state = process.thread_state;
        target.context = u32::from(layout.context);
        target.thread_block = match layout.thread_block {
            ABSENT => 0,
            offset => u32::from(offset),
        };
        target.gil_holder = process.gil_holder;
        if let Err(error) = self.bpf.targets.insert(process.pid, target, BPF_EXIST) {
            debug!("pid {} ended before it was armed: {error}", process.pid);
            return;
        }
        self.live.set_python(process.pid, Python::Read);
        info!("reading CPython {} (pid {})", process.version, process.pid);
        if let Some(wall) = &self.wall {
            wall.add(process);
        }
        if hands_on_contexts(process.pid, process.version) {
            warn!(
                "calls of pid {} stay without parents: its threads are told to hand their contexts on to threads",
                process.pid
            );
        } else if self.calls.understood(process) {
            self.watch_lineage(process.pid);
        }
    }

    /// Samples a process that has no Python frames, where native ones were asked for.
    pub(super) fn sample_natively(&mut self, tgid: u32, python: Python) {
        // It may have ended.
        let Ok(mut target) = self.bpf.targets.get(&tgid, 0) else {
            return;
        };
        self.live.set_python(tgid, python);
        target.flags |= self.native_samples();
        if let Err(error) = self.bpf.targets.insert(tgid, target, BPF_EXIST) {
            debug!("pid {tgid} ended before it was sampled: {error}");
        }
    }

    /// The flag by which a process without Python frames is sampled, where it makes sense.
    pub(super) fn native_samples(&self) -> u32 {
        match self.purposes & flags::NATIVE {
            0 => 0,
            _ => self.purposes & flags::SAMPLES,
        }
    }

    /// Watches the descent of a process's contexts: it makes calls, and they have no owner.
    pub(super) fn watch_lineage(&mut self, tgid: u32) {
        let Some((interpreter, probes)) = self.calls.probes_of(tgid) else {
            return;
        };
        let Ok(mut target) = self.bpf.targets.get(&tgid, 0) else {
            return;
        };
        match self
            .bpf
            .watch_lineage(tgid, &interpreter, probes, self.follow_ends)
        {
            Ok(attached) => {
                target.flags |= flags::LINEAGE;
                if self.bpf.targets.insert(tgid, target, BPF_EXIST).is_ok() {
                    info!("following the contexts of pid {tgid}");
                    self.calls.watched(tgid, attached);
                    self.decoder.identities.arm(tgid, monotonic());
                }
            }
            Err(error) => warn!("calls of pid {tgid} stay without parents: {error}"),
        }
    }
}

impl Worker {
    /// Follows work through a process's queues: some of its calls are made by threads that have entered
    /// no context.
    pub(super) fn watch_queues(&mut self, tgid: u32, probes: &QueueProbes) {
        // It may have been asked for twice.
        if self.calls.is_followed(tgid) {
            return;
        }
        let Ok(mut target) = self.bpf.targets.get(&tgid, 0) else {
            return;
        };
        match self.bpf.watch_queues(tgid, probes) {
            Ok(attached) => {
                target.flags |= flags::QUEUES;
                if self.bpf.targets.insert(tgid, target, BPF_EXIST).is_ok() {
                    info!("following work through the queues of pid {tgid}");
                    self.calls.followed(tgid, attached);
                }
            }
            Err(error) => warn!("calls of threads of pid {tgid} stay without parents: {error}"),
        }
    }

    /// Asks the discovery thread for what takes reading a process's memory.
    pub(super) fn ask(&mut self, now: u64) {
        let Some(discovery) = &self.discovery else {
            return;
        };
        for tgid in self.calls.needs_queues(now) {
            discovery.find_queues(tgid);
        }
        let identities = &mut self.decoder.identities;
        let unknown: Vec<_> = identities.unknown_callers().collect();
        for (tgid, code) in unknown {
            if !discovery.judge_caller(tgid, code) {
                identities.set_loop(tgid, code, None);
            }
        }
    }
}

/// What is known of a process's Python from its file alone.
fn python_of(process: &TracedProcess) -> Python {
    match &process.process.runtime {
        Runtime::CPython { .. } => Python::Pending,
        Runtime::Other(_) if process.process.runtime.is_python() => Python::Unsupported(format!(
            "{} is not supported (CPython is)",
            process.process.runtime.name()
        )),
        Runtime::Other(_) => Python::Absent,
    }
}
