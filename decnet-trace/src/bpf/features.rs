//! What this kernel and these privileges allow, found out by trying.

use std::{fmt, fs, io, os::fd::FromRawFd, os::fd::OwnedFd, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{
        BpfHelper, Stats, enable_stats, is_helper_supported, is_map_supported, is_program_supported,
    },
};
use aya_obj::generated::perf_event_attr;
use serde::{Serialize, Serializer};

use super::{
    btf::{KernelBtf, VMLINUX},
    offsets::resolve_offsets,
    tracefs::with_tracefs,
};
use crate::error::Error;

/// The oldest kernel that is served: the first with `bpf_task_pt_regs`.
pub const MIN_KERNEL: (u32, u32) = (5, 15);

/// The inode of the initial pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The system call tracepoints that the fallback needs, one for all.
const SYSCALL_TRACEPOINT: &str = "events/syscalls/sys_exit_recvfrom";

/// Whether something is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is.
    Yes,
    /// It is not; why, where that is known.
    No(String),
    /// It could not be found out, and why.
    Unknown(String),
}

impl Answer {
    /// Whether it is there for sure.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    /// What is known of the reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Yes => "",
            Self::No(reason) | Self::Unknown(reason) => reason,
        }
    }

    fn from_bool(yes: bool, reason: &str) -> Self {
        if yes {
            Self::Yes
        } else {
            Self::No(reason.to_owned())
        }
    }

    /// What a probe answered that may itself fail.
    fn from_probe<E: std::error::Error>(probe: Result<bool, E>) -> Self {
        match probe {
            Ok(yes) => Self::from_bool(yes, ""),
            Err(error) => {
                let root = root_cause(&error);
                Self::Unknown(root)
            }
        }
    }

    fn from_io<T>(result: io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Yes,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Self::Unknown(error.to_string())
            }
            Err(error) => Self::No(error.to_string()),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No(_) => "no",
            Self::Unknown(_) => "unknown",
        })
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How far the kernel is locked down against its own administrator (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lockdown {
    /// Not at all.
    None,
    /// Against changes of the kernel: nothing that is done here.
    Integrity,
    /// Against reading it too, which eBPF programs must.
    Confidentiality,
    /// The kernel does not say.
    Unknown,
}

/// What this kernel and these privileges allow.
#[derive(Clone, Debug, Serialize)]
pub struct Features {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Whether the release is [`MIN_KERNEL`] or later.
    pub kernel: Answer,
    /// The kernel describes its types.
    pub btf: Answer,
    /// Those types have the fields that all hooks need.
    pub offsets: Answer,
    /// Those types have the fields that the fallback hooks need.
    pub fallback_offsets: Answer,
    /// How far the kernel is locked down.
    pub lockdown: Lockdown,
    /// `CAP_BPF`, or `CAP_SYS_ADMIN` in its place.
    pub cap_bpf: Answer,
    /// `CAP_PERFMON`, or `CAP_SYS_ADMIN` in its place.
    pub cap_perfmon: Answer,
    /// `CAP_SYS_PTRACE`.
    pub cap_sys_ptrace: Answer,
    /// `CAP_DAC_READ_SEARCH`, or `CAP_DAC_OVERRIDE` in its place.
    pub cap_dac_read_search: Answer,
    /// `CAP_SYS_ADMIN`.
    pub cap_sys_admin: Answer,
    /// This process is in the initial pid namespace, whose pids the kernel side speaks of.
    pub initial_pid_namespace: Answer,
    /// Programs can be loaded.
    pub programs: Answer,
    /// Ring buffers.
    pub ring_buffer: Answer,
    /// The helper `bpf_task_pt_regs`.
    pub task_pt_regs: Answer,
    /// The tracepoints `sock_send_length` and `sock_recv_length`.
    pub sock_tracepoints: Answer,
    /// The tracepoints of system calls.
    pub syscall_tracepoints: Answer,
    /// The tracepoint `inet_sock_set_state`.
    pub sock_state: Answer,
    /// The tracepoints `sched_process_fork`, `_exec` and `_exit`.
    pub process_tracepoints: Answer,
    /// The perf event `cpu-clock`, on all processes of a CPU.
    pub cpu_clock: Answer,
    /// Uprobes through perf events.
    pub uprobes: Answer,
    /// Run-time statistics of programs.
    pub run_stats: Answer,
}

impl Features {
    /// Probes all of it. Takes some tens of milliseconds; loads tiny programs that are never
    /// attached, and opens perf events that are closed at once.
    pub fn probe() -> Self {
        let release = read_line("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = match parse_release(&release) {
            Some(version) => Answer::from_bool(version >= MIN_KERNEL, ""),
            None => Answer::Unknown(format!("release {release:?} is no version")),
        };
        let btf = KernelBtf::load(Path::new(VMLINUX));
        let tracepoints = |names: &[&str]| match &btf {
            Ok(btf) => {
                let has = |name: &&str| btf.has_typedef(&format!("btf_trace_{name}"));
                Answer::from_bool(names.iter().all(has), "")
            }
            Err(_) => Answer::Unknown("no BTF".to_owned()),
        };
        let (offsets, fallback_offsets) = match btf.as_ref().map(resolve_offsets) {
            Ok(Ok(resolved)) => (
                Answer::Yes,
                Answer::from_bool(
                    resolved.fallback_missing.is_empty(),
                    &resolved.fallback_missing.join(", "),
                ),
            ),
            Ok(Err(missing)) => (
                Answer::No(missing.names.join(", ")),
                Answer::No(String::new()),
            ),
            Err(_) => (
                Answer::Unknown("no BTF".to_owned()),
                Answer::Unknown("no BTF".to_owned()),
            ),
        };
        let capabilities = effective_capabilities();
        let capability = |numbers: &[u32]| match capabilities {
            Some(set) => {
                Answer::from_bool(numbers.iter().any(|&number| set >> number & 1 != 0), "")
            }
            None => Answer::Unknown("/proc/self/status does not say".to_owned()),
        };
        let helper = |program, helper| Answer::from_probe(is_helper_supported(program, helper));
        Self {
            kernel,
            release,
            offsets,
            fallback_offsets,
            lockdown: lockdown(),
            cap_bpf: capability(&[CAP_BPF, CAP_SYS_ADMIN]),
            cap_perfmon: capability(&[CAP_PERFMON, CAP_SYS_ADMIN]),
            cap_sys_ptrace: capability(&[CAP_SYS_PTRACE]),
            cap_dac_read_search: capability(&[CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE]),
            cap_sys_admin: capability(&[CAP_SYS_ADMIN]),
            initial_pid_namespace: match fs::read_link("/proc/self/ns/pid") {
                Ok(link) => Answer::from_bool(link.as_os_str() == INITIAL_PID_NAMESPACE, ""),
                Err(error) => Answer::Unknown(error.to_string()),
            },
            programs: Answer::from_probe(is_program_supported(ProgramType::RawTracePoint)),
            ring_buffer: Answer::from_probe(is_map_supported(MapType::RingBuf)),
            task_pt_regs: helper(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_task_pt_regs),
            sock_tracepoints: tracepoints(&["sock_send_length", "sock_recv_length"]),
            syscall_tracepoints: syscall_tracepoints(),
            sock_state: tracepoints(&["inet_sock_set_state"]),
            process_tracepoints: tracepoints(&[
                "sched_process_fork",
                "sched_process_exec",
                "sched_process_exit",
            ]),
            cpu_clock: Answer::from_io(open_perf_event(
                PERF_TYPE_SOFTWARE,
                PERF_COUNT_SW_CPU_CLOCK,
            )),
            uprobes: Answer::from_bool(
                Path::new("/sys/bus/event_source/devices/uprobe/type").exists(),
                "",
            ),
            run_stats: Answer::from_probe(enable_stats(Stats::RunTime).map(|_| true)),
            btf: match btf {
                Ok(_) => Answer::Yes,
                Err(error) => Answer::No(error.to_string()),
            },
        }
    }

    /// Whether a run works here.
    ///
    /// # Errors
    ///
    /// The first thing that it needs and that is not there, with what to do about it.
    pub fn require(&self) -> Result<(), Error> {
        let (major, minor) = MIN_KERNEL;
        let capability = |answer: &Answer, name: &str| {
            let no = matches!(answer, Answer::No(_));
            no.then(|| {
                format!("this process lacks {name}; run it as root, or with that capability")
            })
        };
        let lacking = |answer: &Answer, what: &str| {
            let reason = match answer.reason() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            (!answer.is_yes()).then(|| format!("{what}{reason}"))
        };
        let has_socket_hooks = self.sock_tracepoints.is_yes()
            || self.syscall_tracepoints.is_yes() && self.fallback_offsets.is_yes();
        let refusal = matches!(self.kernel, Answer::No(_))
            .then(|| {
                format!(
                    "Linux {} is too old; it needs {major}.{minor} or later",
                    self.release
                )
            })
            .or_else(|| capability(&self.cap_bpf, "CAP_BPF"))
            .or_else(|| capability(&self.cap_perfmon, "CAP_PERFMON"))
            .or_else(|| capability(&self.cap_sys_ptrace, "CAP_SYS_PTRACE"))
            .or_else(|| capability(&self.cap_dac_read_search, "CAP_DAC_READ_SEARCH"))
            .or_else(|| {
                matches!(self.initial_pid_namespace, Answer::No(_)).then(|| {
                    "this process is in a pid namespace of its own, where the kernel's pids mean nothing; in a container, give it the host's (--pid=host)".to_owned()
                })
            })
            .or_else(|| {
                (self.lockdown == Lockdown::Confidentiality).then(|| {
                    "the kernel is locked down for confidentiality, so that eBPF may not read it; boot with lockdown=integrity".to_owned()
                })
            })
            .or_else(|| lacking(&self.btf, "the kernel does not describe its types; it needs CONFIG_DEBUG_INFO_BTF=y"))
            .or_else(|| lacking(&self.offsets, "the kernel's structs lack fields that the hooks read"))
            .or_else(|| lacking(&self.programs, "the kernel lets no eBPF program be loaded"))
            .or_else(|| lacking(&self.ring_buffer, "the kernel has no eBPF ring buffers"))
            .or_else(|| lacking(&self.task_pt_regs, "the kernel has no bpf_task_pt_regs"))
            .or_else(|| lacking(&self.process_tracepoints, "the kernel has no tracepoints for the life of processes"))
            .or_else(|| lacking(&self.sock_state, "the kernel has no tracepoint inet_sock_set_state"))
            .or_else(|| {
                (!has_socket_hooks).then(|| {
                    "the kernel has neither the socket tracepoints of Linux 6.3 nor, as a fallback, usable system call tracepoints".to_owned()
                })
            });
        refusal.map_or(Ok(()), |reason| Err(Error::unsupported(reason)))
    }
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Perf events (include/uapi/linux/perf_event.h).
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// The first two numbers of a kernel's release.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The capabilities that this process has in effect, as a set of bits.
fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn lockdown() -> Lockdown {
    read_line("/sys/kernel/security/lockdown")
        .map_or(Lockdown::Unknown, |text| parse_lockdown(&text))
}

/// Parses `none [integrity] confidentiality`, where the brackets mark the state.
fn parse_lockdown(text: &str) -> Lockdown {
    let state = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match state.map(|(state, _)| state) {
        Some("none") => Lockdown::None,
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}

fn syscall_tracepoints() -> Answer {
    let found = with_tracefs(|| {
        Ok(["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .iter()
            .any(|root| Path::new(root).join(SYSCALL_TRACEPOINT).exists()))
    });
    match found {
        Ok(found) => Answer::from_bool(found, "needs CONFIG_FTRACE_SYSCALLS=y"),
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

/// Opens a perf event on all processes of the first CPU, disabled, and closes it again.
fn open_perf_event(kind: u32, config: u64) -> io::Result<OwnedFd> {
    // SAFETY: all-zero bytes are a valid perf_event_attr, a struct of integers.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = kind;
    attr.config = config;
    attr.size = size_of::<perf_event_attr>() as u32;
    attr.set_disabled(1);
    let (all_processes, first_cpu, no_group) = (-1, 0, -1);
    // SAFETY: perf_event_open reads the attributes at the address given, of the size that they say.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            all_processes,
            first_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel just made this descriptor, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The last error of a chain, which says what the kernel said.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Releases of distributions are versions; what is none is not taken for one.
    #[test]
    fn parses_releases() {
        for (release, expected) in [
            ("6.18.44-fc-v669", Some((6, 18))),
            ("5.15.0-127-generic", Some((5, 15))),
            ("5.10-rc1", Some((5, 10))),
            ("6", None),
            ("linux", None),
            ("", None),
        ] {
            assert_eq!(parse_release(release), expected, "{release}");
        }
    }

    /// The state is the word in brackets.
    #[test]
    fn parses_lockdown_states() {
        for (text, expected) in [
            ("[none] integrity confidentiality", Lockdown::None),
            ("none [integrity] confidentiality", Lockdown::Integrity),
            (
                "none integrity [confidentiality]",
                Lockdown::Confidentiality,
            ),
            ("none integrity", Lockdown::Unknown),
            ("[", Lockdown::Unknown),
        ] {
            assert_eq!(parse_lockdown(text), expected, "{text}");
        }
    }

    /// Each thing needed is enough, when it lacks, to refuse a run in one line that names it; what has
    /// a fallback is not.
    #[test]
    fn requires_what_is_needed() {
        let mut all = Features::probe();
        for answer in [
            &mut all.kernel,
            &mut all.btf,
            &mut all.offsets,
            &mut all.fallback_offsets,
            &mut all.cap_bpf,
            &mut all.cap_perfmon,
            &mut all.cap_sys_ptrace,
            &mut all.cap_dac_read_search,
            &mut all.initial_pid_namespace,
            &mut all.programs,
            &mut all.ring_buffer,
            &mut all.task_pt_regs,
            &mut all.sock_tracepoints,
            &mut all.syscall_tracepoints,
            &mut all.sock_state,
            &mut all.process_tracepoints,
        ] {
            *answer = Answer::Yes;
        }
        all.lockdown = Lockdown::Unknown;
        all.require().unwrap();

        let no = || Answer::No("because".to_owned());
        type Break = fn(&mut Features, Answer);
        let needed: [(Break, &str); 12] = [
            (|f, a| f.kernel = a, "5.15"),
            (|f, a| f.btf = a, "CONFIG_DEBUG_INFO_BTF"),
            (|f, a| f.offsets = a, "because"),
            (|f, a| f.cap_bpf = a, "CAP_BPF"),
            (|f, a| f.cap_perfmon = a, "CAP_PERFMON"),
            (|f, a| f.cap_sys_ptrace = a, "CAP_SYS_PTRACE"),
            (|f, a| f.cap_dac_read_search = a, "CAP_DAC_READ_SEARCH"),
            (|f, a| f.initial_pid_namespace = a, "--pid=host"),
            (|f, a| f.programs = a, "because"),
            (|f, a| f.ring_buffer = a, "ring"),
            (|f, a| f.task_pt_regs = a, "bpf_task_pt_regs"),
            (
                |f, a| {
                    f.sock_tracepoints = a.clone();
                    f.syscall_tracepoints = a;
                },
                "6.3",
            ),
        ];
        for (change, named) in needed {
            let mut features = all.clone();
            change(&mut features, no());
            let error = features.require().unwrap_err();
            assert_eq!(error.exit(), crate::error::Exit::Unsupported);
            assert!(error.to_string().contains(named), "{error}");
        }
        let optional: [Break; 3] = [
            |f, a| f.sock_tracepoints = a,
            |f, a| f.syscall_tracepoints = a,
            |f, a| f.run_stats = a,
        ];
        for change in optional {
            let mut features = all.clone();
            change(&mut features, no());
            features.require().unwrap();
        }
    }
}
