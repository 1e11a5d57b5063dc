//! A look at all processes at once, for people: what `decnet-trace ps` shows.

use rustc_hash::FxHashMap;

use super::{
    container,
    judge::{Effort, Judge, Judgement, Parent, Why, WhyNot},
    listen::{Listen, NetTables},
    process::{self, Process},
    procfs, redact,
    resource::{self, Host, Overrides},
    runtime::{Runtime, Runtimes},
    select::Selector,
};

/// A process, and what was decided about it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The process.
    pub pid: u32,
    /// The command's name.
    pub comm: String,
    /// The command line, without its secrets.
    pub arguments: Vec<String>,
    /// The addresses it listens on.
    pub listening: Vec<Listen>,
    /// What it is written in, where that could be found out.
    pub runtime: Option<Runtime>,
    /// The id of the container that it runs in.
    pub container: Option<String>,
    /// The name of its service; of traced processes only.
    pub service: Option<String>,
    /// Why it is traced, or why not.
    pub verdict: Result<Why, WhyNot>,
    /// Whether it runs Python.
    pub is_python: bool,
}

/// Judges all processes as a run with this selector would now, in the order of their pids.
pub fn survey(selector: &Selector, own_tgid: u32) -> Vec<Judged> {
    let mut survey = Survey {
        selector,
        own_tgid,
        tables: NetTables::default(),
        runtimes: Runtimes::default(),
        host: Host::read(),
        traced: FxHashMap::default(),
    };
    let mut pids: Vec<u32> = procfs::pids().map(Iterator::collect).unwrap_or_default();
    pids.sort_unstable();
    let mut judged: FxHashMap<u32, Judged> = FxHashMap::default();
    let mut pending = pids;
    // Children are traced for their parents' sake, which may come later in the order.
    loop {
        let before = survey.traced.len();
        for &pid in &pending {
            if let Some(one) = survey.judge(pid) {
                judged.insert(pid, one);
            }
        }
        if survey.traced.len() == before {
            break;
        }
        pending = judged
            .values()
            .filter(|one| one.verdict.is_err())
            .filter(|one| {
                procfs::stat(one.pid).is_ok_and(|stat| survey.traced.contains_key(&stat.ppid))
            })
            .map(|one| one.pid)
            .collect();
    }
    let mut judged: Vec<Judged> = judged.into_values().collect();
    judged.sort_unstable_by_key(|one| one.pid);
    judged
}

struct Survey<'a> {
    selector: &'a Selector,
    own_tgid: u32,
    tables: NetTables,
    runtimes: Runtimes,
    host: Host,
    traced: FxHashMap<u32, (Parent, String)>,
}

impl Survey<'_> {
    /// Judges a process; `None` where it has gone.
    fn judge(&mut self, pid: u32) -> Option<Judged> {
        let judgement = Judge {
            selector: self.selector,
            own_tgid: self.own_tgid,
            tables: &mut self.tables,
            runtimes: &mut self.runtimes,
        }
        .judge(
            pid,
            |ppid| self.traced.get(&ppid).map(|&(parent, _)| parent),
            Effort::Full,
        );
        match judgement {
            Judgement::Leave(WhyNot::Gone, _) => None,
            Judgement::Leave(why_not, None) => Some(Judged {
                pid,
                comm: procfs::stat(pid).ok()?.comm,
                arguments: redact::arguments(&procfs::cmdline(pid).unwrap_or_default()),
                listening: Vec::new(),
                runtime: None,
                container: None,
                service: None,
                verdict: Err(why_not),
                is_python: false,
            }),
            Judgement::Leave(why_not, Some((seen, runtime))) => Some(Judged {
                pid,
                is_python: runtime.as_ref().is_some_and(Runtime::is_python),
                comm: seen.stat.comm,
                arguments: redact::arguments(&seen.cmdline),
                listening: seen.listening,
                runtime,
                container: container::id(pid),
                service: None,
                verdict: Err(why_not),
            }),
            Judgement::Trace(seen, why, runtime) => {
                let cmdline = seen.cmdline.clone();
                let process = process::gather(seen, runtime);
                Some(self.trace(process, &cmdline, why))
            }
        }
    }

    fn trace(&mut self, process: Process, cmdline: &[String], why: Why) -> Judged {
        let parent_name = match why {
            Why::ChildOf(parent) => self.traced.get(&parent).map(|(_, name)| name.as_str()),
            _ => None,
        };
        let overrides = Overrides::default();
        let resource = resource::describe(&process, cmdline, parent_name, &self.host, &overrides);
        let parent = Parent {
            pid: process.pid,
            image: process.image,
        };
        self.traced
            .insert(process.pid, (parent, resource.service_name.clone()));
        Judged {
            pid: process.pid,
            is_python: process.runtime.is_python(),
            comm: process.comm,
            arguments: process.arguments,
            listening: process.listening,
            runtime: Some(process.runtime),
            container: process.container,
            service: Some(resource.service_name),
            verdict: Ok(why),
        }
    }
}
