//! Loads the eBPF object, chooses the hooks that this kernel can carry, and attaches them.

use std::{num::NonZeroU32, os::fd::AsFd as _, path::Path};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, Iter, PerfEvent, ProbeKind, ProgramError, TracePoint, UProbe,
        perf_event::PerfEventLink,
        tp_btf::BtfTracePointLink,
        trace_point::TracePointLink,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
    util::online_cpus,
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use decnet_trace_common::{
    counter::Counter,
    offsets::{ABSENT, KernelOffsets},
    python::{LAYOUTS_MAX, PyLayout},
    sqlite::SqliteLayout,
    target::{Control, Target},
    unwind::{CHUNKS_MAX, UNWOUND_MAX},
};

use super::{
    btf::KernelBtf,
    object,
    offsets::{Resolved, resolve_offsets},
    probes::{ProcessProbes, Undo},
    site::{self, Sight},
    threads::ThreadLister,
    tracefs::with_tracefs,
    unwind::{CHUNK_BYTES, UnwindMaps},
};
use crate::{
    error::{Error, Result},
    python::{LineageProbes, QueueProbes},
};

/// Where the kernel shows its own BTF.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The system calls whose exits stand in for the socket hooks.
const IO_SYSCALLS: [&str; 8] = [
    "read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg",
];

/// The program that takes samples, by frame pointers and by unwind tables.
const SAMPLE: &str = "cpu_sample";
const SAMPLE_UNWIND: &str = "cpu_sample_unwind";

/// How many characters of the kernel's reasons an error shows, from their end.
const REASON_MAX: usize = 400;

/// How to load the programs.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The size of each CPU's ring, in bytes: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Load the hooks that see socket operations. Without them processes are followed, and samples taken.
    pub sockets: bool,
    /// Use the fallback hooks though the better ones are there.
    pub force_fallback: bool,
    /// Load the programs that say what they do.
    pub log: bool,
    /// CPU samples per second and CPU; 0 for none.
    pub rate: u32,
    /// How much of the kernel's memory unwind tables may take, in bytes; 0 for native frames by frame
    /// pointers alone.
    pub unwind_memory: u64,
}

/// Which hooks see socket operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockHooks {
    /// `sock_send_length` and `sock_recv_length`.
    Tracepoints,
    /// The exits of the read and write system calls.
    Syscalls,
}

impl SockHooks {
    /// What logs call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tracepoints => "socket tracepoints",
            Self::Syscalls => "system call exits",
        }
    }
}

/// The programs and maps in the kernel. Dropping it detaches and removes all of them; so does the end
/// of the process, whatever ends it, for nothing is pinned.
pub struct Bpf {
    /// Dropped before the programs they belong to.
    pub(super) links: Vec<Link>,
    pub(super) ebpf: Ebpf,
    sock_hooks: Option<SockHooks>,
    /// Whether the kernel has what [`Self::list_threads`] needs.
    threads_listed: bool,
    rate: u32,
    /// The program that takes samples.
    pub(super) sample: &'static str,
    /// What [`Self::take_unwind`] hands over.
    unwind: Option<Result<Box<UnwindMaps>>>,
    rings: Vec<RingBuf<MapData>>,
    /// Keeps the rings' outer map, whose slots the kernel clears with it.
    _outer: ArrayOfMaps<MapData, RingBuf<MapData>>,
    counts: PerCpuArray<MapData, u64>,
    /// The traced processes, by thread group id.
    pub targets: HashMap<MapData, u32, Target>,
    control: Array<MapData, Control>,
    layouts: Array<MapData, PyLayout>,
    /// The layouts in the map, by index.
    known_layouts: Vec<PyLayout>,
    pub(super) sqlites: Array<MapData, SqliteLayout>,
    pub(super) undo: Undo,
}

/// An attachment, which ends when this is dropped.
#[expect(dead_code, reason = "held for their drop alone")]
pub(super) enum Link {
    Typed(BtfTracePointLink),
    Syscall(TracePointLink),
    Sample(PerfEventLink),
    Probe(UProbeLink),
}

/// What one program has cost since it was loaded, while run-time statistics were on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program's name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// For how long in all, in nanoseconds.
    pub nanos: u64,
}

impl Bpf {
    /// Loads the programs, without attaching any.
    ///
    /// # Errors
    ///
    /// When the kernel, its BTF or the privileges don't allow it.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        let object = object::get(options.log)?;
        let kernel = KernelBtf::load(Path::new(KERNEL_BTF)).map_err(|error| {
            Error::unsupported(format!(
                "cannot read the kernel's type information: {error}; it needs a kernel built with CONFIG_DEBUG_INFO_BTF"
            ))
        })?;
        let Resolved {
            offsets,
            fallback_missing,
        } = resolve_offsets(&kernel).map_err(Error::unsupported)?;
        let sock_hooks = match options.sockets {
            true => Some(choose_sock_hooks(
                &kernel,
                options.force_fallback,
                &fallback_missing,
            )?),
            false => None,
        };

        let wake = u64::from(options.ring_bytes / 4);
        // What these maps have slots for costs memory, wanted or not.
        let (chunks, processes) = match options.unwind_memory {
            0 => (1, 1),
            bytes => {
                let chunks = (bytes / CHUNK_BYTES).clamp(1, CHUNKS_MAX.into());
                (chunks as u32, UNWOUND_MAX)
            }
        };
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("UNWIND_CHUNKS", chunks)
            .map_max_entries("UNWIND_SEGMENTS", processes)
            .override_global("KERNEL_OFFSETS", &offsets, true)
            .override_global("RING_WAKE_BYTES", &wake, true)
            .override_global("TICK_NANOS", &tick_nanos(), true)
            .load(object)
            .map_err(|error| refused("load the eBPF object", &error))?;

        let btf = Btf::from_sys_fs()
            .map_err(|error| refused("read the kernel's type information", &error))?;
        for name in [
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
        ] {
            load_btf_tracepoint(&mut ebpf, name, &btf)?;
        }
        if sock_hooks.is_some() {
            load_btf_tracepoint(&mut ebpf, "inet_sock_set_state", &btf)?;
        }
        match sock_hooks {
            None => {}
            Some(SockHooks::Tracepoints) => {
                for name in ["sock_send_length", "sock_recv_length"] {
                    load_btf_tracepoint(&mut ebpf, name, &btf)?;
                }
            }
            Some(SockHooks::Syscalls) => {
                program::<TracePoint>(&mut ebpf, "sys_exit_io")?
                    .load()
                    .map_err(|error| refused("load the hook sys_exit_io", &error))?;
            }
        }
        let mut unwind = None;
        if options.rate > 0 && options.unwind_memory > 0 {
            let loaded = program::<PerfEvent>(&mut ebpf, SAMPLE_UNWIND)?.load();
            unwind = Some(match loaded {
                Ok(()) => UnwindMaps::take(&mut ebpf).map(Box::new),
                Err(error) => Err(refused("load the hook cpu_sample_unwind", &error)),
            });
        }
        let sample = match unwind {
            Some(Ok(_)) => SAMPLE_UNWIND,
            _ => SAMPLE,
        };
        if options.rate > 0 && sample == SAMPLE {
            program::<PerfEvent>(&mut ebpf, sample)?
                .load()
                .map_err(|error| refused("load the hook cpu_sample", &error))?;
        }

        let mut control: Array<_, Control> = take_map(&mut ebpf, "CONTROL")?;
        let own = Control {
            kill: 0,
            own_tgid: std::process::id(),
        };
        control
            .set(0, own, 0)
            .map_err(|error| refused("set the control map", &error))?;
        let (outer, rings) = make_rings(&mut ebpf, options.ring_bytes)?;
        Ok(Self {
            links: Vec::new(),
            sock_hooks,
            threads_listed: lists_threads(&offsets),
            rate: options.rate,
            sample,
            unwind,
            rings,
            _outer: outer,
            counts: take_map(&mut ebpf, "COUNTS")?,
            targets: take_map(&mut ebpf, "TARGETS")?,
            control,
            layouts: take_map(&mut ebpf, "PY_LAYOUTS")?,
            known_layouts: Vec::new(),
            sqlites: take_map(&mut ebpf, "SQLITE_LAYOUTS")?,
            undo: Undo::start(),
            ebpf,
        })
    }

    /// Attaches the hooks that were loaded: processes first, so that no child of a target is missed, sockets
    /// next, samples last.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one.
    pub fn attach(&mut self) -> Result<()> {
        let mut names = vec![
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
        ];
        let Self { ebpf, links, .. } = self;
        if self.sock_hooks.is_some() {
            names.push("inet_sock_set_state");
        }
        match self.sock_hooks {
            None => {}
            Some(SockHooks::Tracepoints) => {
                names.extend(["sock_send_length", "sock_recv_length"]);
            }
            Some(SockHooks::Syscalls) => {
                let program = program::<TracePoint>(ebpf, "sys_exit_io")?;
                with_tracefs(|| {
                    IO_SYSCALLS.iter().try_for_each(|syscall| {
                        let name = format!("sys_exit_{syscall}");
                        let link = program
                            .attach("syscalls", &name)
                            .and_then(|id| program.take_link(id))
                            .map_err(|error| {
                                refused(&format!("attach to syscalls/{name}"), &error)
                            })?;
                        links.push(Link::Syscall(link));
                        Ok(())
                    })
                })?;
            }
        }
        for name in names {
            let program = program::<BtfTracePoint>(ebpf, name)?;
            let link = program
                .attach()
                .and_then(|id| program.take_link(id))
                .map_err(|error| refused(&format!("attach to {name}"), &error))?;
            links.push(Link::Typed(link));
        }
        self.sample(self.rate)
    }

    /// Watches the descent of contexts in one process, by probes at these offsets of its interpreter's
    /// file. Without `ends`, contexts that end go unnoticed, and identities are wrong: for tests alone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_lineage(
        &mut self,
        pid: u32,
        interpreter: &Path,
        probes: LineageProbes,
        ends: bool,
    ) -> Result<ProcessProbes> {
        // Ends first: a copy whose end is missed would pass its identity on.
        let mut wanted = vec![
            ("py_context_ended", probes.ended),
            ("py_context_copied", probes.copied),
        ];
        wanted.retain(|(name, _)| ends || *name != "py_context_ended");
        self.probe(pid, interpreter, wanted, None)
    }

    /// Watches work that passes through queues in one process.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the process may be gone.
    pub fn watch_queues(&mut self, pid: u32, probes: &QueueProbes) -> Result<ProcessProbes> {
        let [put, put_nowait] = probes.put;
        let [get, get_nowait] = probes.get;
        // What is taken out first: then whatever was put in is seen to leave.
        let wanted = [
            ("py_queue_taken", get),
            ("py_queue_taken", get_nowait),
            ("py_queue_put", put),
            ("py_queue_put", put_nowait),
        ];
        self.probe(pid, &probes.file, wanted, None)
    }

    /// Attaches programs to one process, on functions at these offsets of a file that it maps; the programs
    /// get the cookie.
    pub(super) fn probe<'a>(
        &mut self,
        pid: u32,
        file: &Path,
        wanted: impl IntoIterator<Item = (&'a str, u64)>,
        cookie: Option<u64>,
    ) -> Result<ProcessProbes> {
        let scope = NonZeroU32::new(pid)
            .map(UProbeScope::OneProcess)
            .ok_or_else(|| Error::failed("process 0 runs no program"))?;
        let mut links = Vec::new();
        for (name, function) in wanted {
            let program = program::<UProbe>(&mut self.ebpf, name)?;
            if program.fd().is_err() {
                program
                    .load()
                    .map_err(|error| refused(&format!("load the probe {name}"), &error))?;
            }
            let sight = match program.kind() {
                ProbeKind::Entry => Sight::Arguments,
                ProbeKind::Return => Sight::Return,
            };
            let place = site::place(file, function, sight)
                .map_err(|error| refused(&format!("read {}", file.display()), &error))?;
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(place),
                cookie,
            };
            let link = program
                .attach(point, file, scope)
                .and_then(|id| program.take_link(id))
                .map_err(|error| refused(&format!("attach {name} to process {pid}"), &error))?;
            links.push(Link::Probe(link));
        }
        Ok(self.undo.of(links))
    }

    /// A lister of the traced processes' threads.
    ///
    /// # Errors
    ///
    /// When the kernel cannot list them, or refuses.
    pub fn list_threads(&mut self) -> Result<ThreadLister> {
        if !self.threads_listed {
            return Err(Error::unsupported(
                "this kernel does not say which threads are on a CPU; leave --wall and --idle out",
            ));
        }
        let btf = Btf::from_sys_fs()
            .map_err(|error| refused("read the kernel's type information", &error))?;
        let program = program::<Iter>(&mut self.ebpf, "list_threads")?;
        program
            .load("task", &btf)
            .map_err(|error| refused("load the iterator list_threads", &error))?;
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?))
            .map_err(|error| refused("use the iterator list_threads", &error))?;
        Ok(ThreadLister::new(fd))
    }

    /// Detaches every hook; the maps stay until this is dropped.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// Which hooks see socket operations; `None` where none were asked for.
    pub const fn sock_hooks(&self) -> Option<SockHooks> {
        self.sock_hooks
    }

    /// The rings, one per CPU, for the one reader that they can have.
    pub fn take_rings(&mut self) -> Vec<RingBuf<MapData>> {
        std::mem::take(&mut self.rings)
    }

    /// The maps for unwind tables, or why the kernel refused the program that uses them; `None` where
    /// none were asked for.
    pub fn take_unwind(&mut self) -> Option<Result<Box<UnwindMaps>>> {
        self.unwind.take()
    }

    /// Makes every hook return at once, or work again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the write.
    pub fn set_kill(&mut self, kill: bool) -> Result<()> {
        let control = Control {
            kill: u32::from(kill),
            own_tgid: std::process::id(),
        };
        self.control
            .set(0, control, 0)
            .map_err(|error| refused("set the kill bit", &error))
    }

    /// Tells the kernel side where a CPython keeps things; the index that a target names it by.
    ///
    /// # Errors
    ///
    /// When there are more builds of CPython than fit.
    pub fn add_layout(&mut self, layout: &PyLayout) -> Result<u32> {
        if let Some(index) = self.known_layouts.iter().position(|known| known == layout) {
            return Ok(index as u32);
        }
        let index = self.known_layouts.len() as u32;
        if index >= LAYOUTS_MAX {
            return Err(Error::failed(format!(
                "more than {LAYOUTS_MAX} builds of CPython run on this machine"
            )));
        }
        self.layouts
            .set(index, *layout, 0)
            .map_err(|error| refused("set a CPython layout", &error))?;
        self.known_layouts.push(*layout);
        Ok(index)
    }

    /// One of the kernel side's counters, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the read.
    pub fn count(&self, counter: Counter) -> Result<u64> {
        let values = self
            .counts
            .get(&(counter as u32), 0)
            .map_err(|error| refused("read the kernel side's counters", &error))?;
        Ok(values.iter().sum())
    }

    /// All of the kernel side's counters, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the read.
    pub fn counts(&self) -> Result<Vec<(Counter, u64)>> {
        Counter::ALL
            .iter()
            .map(|&counter| Ok((counter, self.count(counter)?)))
            .collect()
    }

    /// What each loaded program has cost.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to tell.
    pub fn costs(&self) -> Result<Vec<ProgramCost>> {
        self.ebpf
            .programs()
            .filter(|(_, program)| program.fd().is_ok())
            .map(|(name, program)| {
                let info = program
                    .info()
                    .map_err(|error| refused("read a program's statistics", &error))?;
                Ok(ProgramCost {
                    name: name.to_owned(),
                    runs: info.run_count(),
                    nanos: info.run_time().as_nanos() as u64,
                })
            })
            .collect()
    }

    /// The programs' logger, where they were loaded with one; its lines go to `tracing`.
    ///
    /// # Errors
    ///
    /// When the programs say nothing.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
            .map_err(|error| Error::failed(format!("cannot read the eBPF programs' log: {error}")))
    }
}

/// Whether the fields that the iterator reads are all there.
fn lists_threads(offsets: &KernelOffsets) -> bool {
    [
        offsets.task_state,
        offsets.task_on_cpu,
        offsets.task_nvcsw,
        offsets.task_nivcsw,
    ]
    .iter()
    .all(|&offset| offset != ABSENT)
}

/// How long a tick of the kernel's clock is, in nanoseconds: the resolution of the clocks that it
/// drives. 0 where the kernel does not tell.
fn tick_nanos() -> u64 {
    let mut tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `tick` is a timespec of ours to write to; if the call failed it would stay zero.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    u64::try_from(tick.tv_nsec).unwrap_or(0)
}

/// The best socket hooks that this kernel has.
fn choose_sock_hooks(
    kernel: &KernelBtf,
    force_fallback: bool,
    fallback_missing: &[String],
) -> Result<SockHooks> {
    let has_tracepoints = kernel.has_typedef("btf_trace_sock_send_length")
        && kernel.has_typedef("btf_trace_sock_recv_length");
    if has_tracepoints && !force_fallback {
        return Ok(SockHooks::Tracepoints);
    }
    if fallback_missing.is_empty() {
        return Ok(SockHooks::Syscalls);
    }
    Err(Error::unsupported(format!(
        "no socket hook fits this kernel: it lacks the tracepoints of Linux 6.3, and for the fallback its BTF lacks {}",
        fallback_missing.join(", ")
    )))
}

/// Makes a ring for each possible CPU and puts it into its slot.
#[expect(
    clippy::type_complexity,
    reason = "a pair of maps, taken apart at the only call"
)]
fn make_rings(
    ebpf: &mut Ebpf,
    bytes: u32,
) -> Result<(
    ArrayOfMaps<MapData, RingBuf<MapData>>,
    Vec<RingBuf<MapData>>,
)> {
    let mut outer: ArrayOfMaps<MapData, RingBuf<MapData>> = take_map(ebpf, "RINGS")?;
    let cpus = online_cpus().map_err(|(path, error)| {
        Error::failed(format!("cannot list the online CPUs from {path}: {error}"))
    })?;
    let mut rings = Vec::with_capacity(cpus.len());
    for cpu in cpus {
        let shape = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
        let ring = MapData::create(shape, "RING", None)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(|error| refused(&format!("make the ring of CPU {cpu}"), &error))?;
        outer
            .set(cpu, &ring, 0)
            .map_err(|error| refused(&format!("place the ring of CPU {cpu}"), &error))?;
        rings.push(ring);
    }
    Ok((outer, rings))
}

fn load_btf_tracepoint(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<()> {
    program::<BtfTracePoint>(ebpf, name)?
        .load(name, btf)
        .map_err(|error| refused(&format!("load the hook {name}"), &error))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| Error::failed(format!("the eBPF object has no program {name}")))?
        .try_into()
        .map_err(|error| refused(&format!("use the program {name}"), &error))
}

pub(super) fn take_map<M>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    ebpf.take_map(name)
        .ok_or_else(|| Error::failed(format!("the eBPF object has no map {name}")))?
        .try_into()
        .map_err(|error| refused(&format!("use the map {name}"), &error))
}

/// What the kernel refused, with the whole chain of reasons on one line.
pub(super) fn refused(what: &str, error: &dyn std::error::Error) -> Error {
    let mut reasons = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !reasons.contains(&reason) {
            reasons = format!("{reasons}: {reason}");
        }
        source = error.source();
    }
    // The verifier's log can run to megabytes; its end says why.
    if let Some((cut, _)) = reasons.char_indices().rev().nth(REASON_MAX) {
        reasons = format!("…{}", &reasons[cut..]);
    }
    Error::unsupported(format!(
        "the kernel refused to {what}: {reasons}; `decnet-trace doctor` says what it can"
    ))
}
