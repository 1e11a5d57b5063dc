//! `decnet-trace doctor`: whether a run works here, and with what.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use clap::Args;
use serde::Serialize;

use crate::{
    bpf::features::{Answer, Features, Lockdown},
    error::{Error, Exit, Result},
};

/// Shows what this kernel and these privileges allow, and whether `run` works here.
#[derive(Args, Debug)]
#[command(after_help = "Example: sudo decnet-trace doctor\n\n\
    Exit codes: 0 run works here, 1 failed at work, 3 it does not.")]
pub(super) struct DoctorArgs {
    /// Print JSON, one object.
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
///
/// When a run would not work here.
pub(super) fn run(args: &DoctorArgs) -> Result<Exit> {
    let features = Features::probe();
    let refusal = features.require().err();
    let mut out = io::stdout().lock();
    let printed = if args.json {
        let report = Report {
            works: refusal.is_none(),
            refusal: refusal.as_ref().map(Error::to_string),
            checks: checks(&features),
            features: &features,
        };
        serde_json::to_writer_pretty(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut text = text(&features, coloured);
        if refusal.is_none() {
            text.push_str("\n`decnet-trace run` works here.\n");
        }
        out.write_all(text.as_bytes())
    };
    printed.map_err(|error| Error::failed(format!("cannot write the report: {error}")))?;
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(Exit::Done),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    works: bool,
    refusal: Option<String>,
    checks: Vec<Check<'a>>,
    features: &'a Features,
}

/// Whether a run can do without something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Need {
    /// It cannot.
    Required,
    /// It can, with less, or with something else.
    Optional,
}

/// A line of the report.
#[derive(Debug, Serialize)]
struct Check<'a> {
    what: &'static str,
    answer: &'a Answer,
    need: Need,
    /// What it is for, or what happens without it.
    means: &'static str,
    /// Why the answer is not yes, where that is known.
    reason: &'a str,
}

/// Each thing probed: what it is for, and what happens without it.
fn checks(features: &Features) -> Vec<Check<'_>> {
    let f = features;
    // The fallback is needed only where what it stands in for is not there.
    let fallback = if f.sock_tracepoints.is_yes() {
        Need::Optional
    } else {
        Need::Required
    };
    vec![
        required(
            "Linux 5.15 or later",
            &f.kernel,
            "older kernels lack helpers that every hook calls",
        ),
        required(
            "the kernel's BTF",
            &f.btf,
            "tells where the kernel's structs keep their fields",
        ),
        required(
            "fields of the kernel's structs",
            &f.offsets,
            "all that the hooks read",
        ),
        required(
            "initial pid namespace",
            &f.initial_pid_namespace,
            "the kernel speaks of its pids",
        ),
        required("CAP_BPF", &f.cap_bpf, "loads programs"),
        required("CAP_PERFMON", &f.cap_perfmon, "attaches them, and samples"),
        required(
            "CAP_SYS_PTRACE",
            &f.cap_sys_ptrace,
            "reads what services and interpreters are",
        ),
        required(
            "CAP_DAC_READ_SEARCH",
            &f.cap_dac_read_search,
            "reads what other users' processes have open",
        ),
        required("eBPF programs", &f.programs, "one was loaded to try"),
        required(
            "ring buffer",
            &f.ring_buffer,
            "brings records out of the kernel",
        ),
        required(
            "bpf_task_pt_regs",
            &f.task_pt_regs,
            "finds the bytes that a system call moves",
        ),
        required(
            "tracepoints sched_process_*",
            &f.process_tracepoints,
            "tell of processes that come and go",
        ),
        required(
            "tracepoint inet_sock_set_state",
            &f.sock_state,
            "tells of connections that open and close",
        ),
        optional(
            "tracepoints sock_{send,recv}_length",
            &f.sock_tracepoints,
            [
                "socket operations, at no cost for other processes",
                "since Linux 6.3; the system call tracepoints stand in, and slow all system calls a little",
            ],
        ),
        Check::new(
            "system call tracepoints",
            &f.syscall_tracepoints,
            fallback,
            ["the fallback for the above", "no fallback for the above"],
        ),
        Check::new(
            "fields for the fallback",
            &f.fallback_offsets,
            fallback,
            ["all that the fallback reads", "no fallback for the above"],
        ),
        optional(
            "perf event cpu-clock",
            &f.cpu_clock,
            ["CPU samples by the clock", "no CPU profiles; spans work"],
        ),
        optional(
            "uprobes",
            &f.uprobes,
            [
                "follow requests across tasks and threads of Python",
                "needs CONFIG_UPROBE_EVENTS=y; calls get no parent",
            ],
        ),
        optional(
            "run-time statistics",
            &f.run_stats,
            [
                "what the programs cost can be shown",
                "need CAP_SYS_ADMIN; what the programs cost is not shown",
            ],
        ),
        optional(
            "CAP_SYS_ADMIN",
            &f.cap_sys_admin,
            [
                "turns on the statistics, and mounts tracefs where the fallback needs it",
                "no statistics; tracefs must be mounted where the fallback needs it",
            ],
        ),
    ]
}

fn required<'a>(what: &'static str, answer: &'a Answer, means: &'static str) -> Check<'a> {
    Check::new(what, answer, Need::Required, [means; 2])
}

/// Of the two texts, the first is what it is for, the second what happens without it.
fn optional<'a>(what: &'static str, answer: &'a Answer, means: [&'static str; 2]) -> Check<'a> {
    Check::new(what, answer, Need::Optional, means)
}

impl<'a> Check<'a> {
    fn new(
        what: &'static str,
        answer: &'a Answer,
        need: Need,
        [with, without]: [&'static str; 2],
    ) -> Self {
        Self {
            what,
            answer,
            need,
            means: match answer {
                Answer::No(_) => without,
                Answer::Yes | Answer::Unknown(_) => with,
            },
            reason: answer.reason(),
        }
    }
}

/// What lockdown means here.
fn lockdown_line(lockdown: Lockdown) -> &'static str {
    match lockdown {
        Lockdown::None => "not locked down",
        Lockdown::Integrity => "locked down for integrity: nothing that is done here is forbidden",
        Lockdown::Confidentiality => {
            "locked down for confidentiality: eBPF may not read the kernel"
        }
        Lockdown::Unknown => "lockdown unknown (/sys/kernel/security is not there)",
    }
}

fn text(features: &Features, coloured: bool) -> String {
    let mut text = format!(
        "Linux {} {}, {}\n\n",
        features.release,
        std::env::consts::ARCH,
        lockdown_line(features.lockdown)
    );
    let checks = checks(features);
    let width = checks
        .iter()
        .map(|check| check.what.len())
        .max()
        .unwrap_or_default();
    for check in checks {
        let answer = check.answer.to_string();
        // SGR 32 is green, 31 red, 33 yellow.
        let style = match (check.answer, check.need) {
            (Answer::Yes, _) => "32",
            (_, Need::Required) => "31",
            (_, Need::Optional) => "33",
        };
        let (on, off) = if coloured {
            (format!("\x1b[{style}m"), "\x1b[0m")
        } else {
            (String::new(), "")
        };
        let _ = write!(
            text,
            "{on}{answer:7}{off}  {:width$}  {}",
            check.what, check.means
        );
        if !check.reason.is_empty() {
            let _ = write!(text, " ({})", check.reason);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// The report has a line for everything, says what is required, and what stands in for what lacks.
    #[test]
    fn explains_itself() {
        let mut features = Features::probe();
        features.sock_tracepoints = Answer::No(String::new());
        features.run_stats = Answer::No("No such call".to_owned());
        let shown = text(&features, false);
        assert!(
            shown.contains("the system call tracepoints stand in"),
            "{shown}"
        );
        assert!(
            shown.contains("what the programs cost is not shown (No such call)"),
            "{shown}"
        );
        assert!(!shown.contains('\x1b') && text(&features, true).contains('\x1b'));
        let need = |features: &Features| {
            let checks = checks(features);
            checks
                .iter()
                .find(|check| check.what == "system call tracepoints")
                .unwrap()
                .need
        };
        assert_eq!(need(&features), Need::Required);
        features.sock_tracepoints = Answer::Yes;
        assert_eq!(need(&features), Need::Optional);
    }

    /// Every probe is shown, and JSON carries them all.
    #[test]
    fn shows_every_probe() {
        let features = Features::probe();
        let probes = serde_json::to_value(&features).unwrap();
        // Release and lockdown stand in the heading.
        assert_eq!(
            checks(&features).len(),
            probes.as_object().unwrap().len() - 2
        );
        for answer in probes.as_object().unwrap().values() {
            assert!(answer.is_string());
        }
    }
}
