//! Native code: addresses of processes and of the kernel become frames, by blazesym over the files'
//! symbol tables alone (no DWARF, no inlining: hundreds of MiB for a large binary).
//!
//! blazesym is asked about files, not processes: mappings and perf maps are read here, since there one
//! unreadable file or malformed line fails all addresses of a request, a process that has ended
//! cannot be asked about, and what it opened stays open.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use blazesym::{
    MaybeDefault, Pid,
    symbolize::{Input, Symbolized, Symbolizer, evict, source},
};
use decnet_trace_common::limits::USER_FRAMES_MAX;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    ProcessId,
    functions::Functions,
    intern::Interner,
    maps::{self, Backing, Mapping},
    module::{FileId, address_name, locate},
    perf_map::PerfMap,
    stats::{Reason, Stats},
    truncation,
};
use crate::profile::{
    Frame, FrameKind,
    interpreter::{Role, role},
    merge::NativeFrame,
};

/// How much is kept at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Files open (each costs a file descriptor and a mapping).
    pub(super) modules: usize,
    /// Addresses whose names are remembered.
    pub(super) names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            modules: 256,
            names: 64 * 1024,
        }
    }
}

/// A process's mappings are read again for an address in none of them, but not more often than this:
/// a stack without frame pointers is full of such addresses.
const REREAD: Duration = Duration::from_secs(1);

/// And for any address when they are this old: something may have been unloaded.
const STALE: Duration = Duration::from_secs(30);

/// The longest name kept, in bytes; C++ has longer ones.
const NAME_MAX: usize = 1024;

/// Names addresses. Not `Send`: blazesym's symbolizer is not.
pub(super) struct Native {
    symbolizer: Symbolizer,
    processes: FxHashMap<ProcessId, Mapped>,
    modules: FxHashMap<FileId, Module>,
    vdso: FxHashMap<u64, NativeFrame>,
    kernel: FxHashMap<u64, Arc<Frame>>,
    /// Names in `modules`, `vdso` and `kernel` together.
    names: usize,
    /// Counts up with each use of a module.
    clock: u64,
    own_vdso: Option<Mapping>,
    limits: Limits,
    stats: Arc<Stats>,
}

/// A user stack, named.
pub(super) struct UserStack {
    /// The frames, outermost first.
    pub(super) frames: Vec<NativeFrame>,
    /// Whether outer frames are missing.
    pub(super) cut: bool,
}

/// What is known of a process.
#[derive(Default)]
struct Mapped {
    tgid: u32,
    mappings: Vec<Mapping>,
    /// The files behind the mappings, by the mapping's first address; `None` where not to be found.
    files: FxHashMap<u64, Option<FileId>>,
    /// The files among them that this process counts as a user of.
    uses: FxHashSet<FileId>,
    read: Option<Instant>,
    perf_map: Option<PerfMap>,
    perf_map_read: Option<Instant>,
}

/// A file with code.
struct Module {
    /// Under which the symbolizer has it open; `None` where it could not be read, or was evicted.
    open: Option<PathBuf>,
    unreadable: bool,
    label: Arc<str>,
    functions: Functions,
    names: FxHashMap<u64, NativeFrame>,
    users: usize,
    used: u64,
}

impl Native {
    pub(super) fn new(limits: Limits, stats: Arc<Stats>) -> Self {
        Self {
            symbolizer: Symbolizer::builder()
                .enable_code_info(false)
                .enable_inlined_fns(false)
                // A file is looked up once, by what it is; a process's end must not undo that.
                .enable_auto_reload(false)
                .build(),
            processes: FxHashMap::default(),
            modules: FxHashMap::default(),
            vdso: FxHashMap::default(),
            kernel: FxHashMap::default(),
            names: 0,
            clock: 0,
            own_vdso: maps::read(std::process::id())
                .unwrap_or_default()
                .into_iter()
                .find(|mapping| mapping.backing == Backing::Vdso),
            limits,
            stats,
        }
    }

    /// Names the native frames of a user stack: addresses innermost first in, frames outermost first
    /// out.
    ///
    /// An address in no executable mapping ends the stack: it was no return address (frames without
    /// frame pointers lead anywhere), so that what follows it are no callers.
    pub(super) fn user(
        &mut self,
        process: ProcessId,
        tgid: u32,
        addresses: &[u64],
        interner: &mut Interner,
    ) -> UserStack {
        self.trim();
        let mut frames = Vec::with_capacity(addresses.len());
        for address in calls(addresses) {
            match self.user_address(process, tgid, address, interner) {
                Some(frame) => frames.push(frame),
                None if frames.is_empty() => {
                    frames.push(unnamed(interner, "[unknown]".into(), "".into()));
                    break;
                }
                None => break,
            }
        }
        let cut = frames.len() < addresses.len() || addresses.len() >= USER_FRAMES_MAX;
        frames.reverse();
        UserStack { frames, cut }
    }

    /// Names the frames of a kernel stack: addresses innermost first in, frames outermost first out.
    pub(super) fn kernel(&mut self, addresses: &[u64], interner: &mut Interner) -> Vec<Arc<Frame>> {
        self.trim();
        let mut frames: Vec<_> = calls(addresses)
            .map(|address| self.kernel_address(address, interner))
            .collect();
        frames.reverse();
        frames
    }

    /// Lets go of a process, and of the files that no other maps.
    pub(super) fn forget(&mut self, process: ProcessId) {
        let Some(mapped) = self.processes.remove(&process) else {
            return;
        };
        for file in mapped.uses {
            if let Some(module) = self.modules.get_mut(&file) {
                module.users -= 1;
                if module.users == 0
                    && let Some(module) = self.modules.remove(&file)
                {
                    self.names -= module.names.len();
                    close(&mut self.symbolizer, module.open);
                }
            }
        }
    }

    fn user_address(
        &mut self,
        process: ProcessId,
        tgid: u32,
        address: u64,
        interner: &mut Interner,
    ) -> Option<NativeFrame> {
        let mapped = self.processes.entry(process).or_insert_with(|| Mapped {
            tgid,
            ..Mapped::default()
        });
        let Some(at) = mapped.find(address, &self.stats) else {
            self.stats.add(Reason::Unmapped);
            return None;
        };
        let mapping = &mapped.mappings[at];
        let offset = address - mapping.range.start + mapping.offset;
        Some(match &mapping.backing {
            Backing::Anonymous => mapped.anonymous(address, interner, &self.stats),
            Backing::Vdso => self.vdso_offset(offset, interner),
            Backing::File { path, .. } => {
                let path = path.clone();
                match self.file(process, at) {
                    Some(file) => self.file_offset(file, offset, interner),
                    None => unnamed(interner, address_name(&path, offset), path),
                }
            }
        })
    }

    /// The file behind a mapping of a process, with its module open if it can be.
    fn file(&mut self, process: ProcessId, at: usize) -> Option<FileId> {
        let mapped = self.processes.get_mut(&process)?;
        let mapping = &mapped.mappings[at];
        let Backing::File { path, .. } = &mapping.backing else {
            return None;
        };
        self.clock += 1;
        let known = mapped.files.get(&mapping.range.start).copied();
        if let Some(file) = known {
            let file = file?;
            let module = self.modules.get_mut(&file)?;
            module.used = self.clock;
            if module.open.is_some() || module.unreadable {
                return Some(file);
            }
        }
        let Ok((file, location)) = locate(mapped.tgid, mapping) else {
            if known.is_none() {
                mapped.files.insert(mapping.range.start, None);
                self.stats.add(Reason::ModuleUnreadable);
            }
            return known.flatten();
        };
        mapped.files.insert(mapping.range.start, Some(file));
        let module = self.modules.entry(file).or_insert_with(|| Module {
            open: None,
            unreadable: false,
            label: path.clone(),
            functions: Functions::default(),
            names: FxHashMap::default(),
            users: 0,
            used: 0,
        });
        module.users += usize::from(mapped.uses.insert(file));
        module.used = self.clock;
        if module.open.is_none() && !module.unreadable {
            // The symbolizer goes by path, and a new process may have an ended one's id and layout.
            let in_the_way = self
                .modules
                .values_mut()
                .find(|other| other.open.as_ref() == Some(&location));
            if let Some(other) = in_the_way {
                close(&mut self.symbolizer, other.open.take());
            }
            if let Some(module) = self.modules.get_mut(&file) {
                module.functions = Functions::read(&location);
                module.open = Some(location);
            }
        }
        Some(file)
    }

    fn file_offset(&mut self, file: FileId, offset: u64, interner: &mut Interner) -> NativeFrame {
        let Some(module) = self.modules.get_mut(&file) else {
            return unnamed(interner, "[unknown]".into(), "".into());
        };
        if let Some(known) = module.names.get(&offset) {
            return known.clone();
        }
        let mut name = None;
        if let Some(path) = &module.open {
            let mut elf = source::Elf::new(path);
            elf.debug_syms = false;
            let source = source::Source::Elf(elf);
            let gone = truncation::faults();
            let found = self
                .symbolizer
                .symbolize_single(&source, Input::FileOffset(offset));
            match found {
                // Cut short while it was mapped: what was found is made of zeros.
                _ if truncation::faults() != gone => {
                    self.stats.add(Reason::ModuleUnreadable);
                    module.unreadable = true;
                    close(&mut self.symbolizer, module.open.take());
                }
                Ok(Symbolized::Sym(symbol)) => name = shortened(&symbol.name),
                Ok(Symbolized::Unknown(_)) => self.stats.add(Reason::NoSymbol),
                Err(_) => {
                    // No ELF file, or not to be read; it will not become one.
                    self.stats.add(Reason::ModuleUnreadable);
                    module.unreadable = true;
                    close(&mut self.symbolizer, module.open.take());
                }
            }
        }
        let role = role(name.as_deref(), &module.label);
        let name =
            name.unwrap_or_else(|| address_name(&module.label, module.functions.start(offset)));
        let frame = NativeFrame {
            frame: interner.intern(native(name, module.label.clone())),
            role,
        };
        module.names.insert(offset, frame.clone());
        self.names += 1;
        frame
    }

    /// The vDSO is the same in every process (of our word size).
    fn vdso_offset(&mut self, offset: u64, interner: &mut Interner) -> NativeFrame {
        if let Some(known) = self.vdso.get(&offset) {
            return known.clone();
        }
        let own = self
            .own_vdso
            .as_ref()
            .map(|mapping| mapping.range.start + offset)
            .filter(|address| {
                self.own_vdso
                    .as_ref()
                    .is_some_and(|m| m.range.contains(address))
            });
        let name = own.and_then(|address| {
            let mut process = source::Process::new(Pid::Slf);
            process.debug_syms = false;
            process.perf_map = false;
            let source = source::Source::Process(process);
            match self
                .symbolizer
                .symbolize_single(&source, Input::AbsAddr(address))
            {
                Ok(Symbolized::Sym(symbol)) => shortened(&symbol.name),
                _ => None,
            }
        });
        if name.is_none() {
            self.stats.add(Reason::NoSymbol);
        }
        let name = name.unwrap_or_else(|| address_name("vdso", offset));
        let frame = NativeFrame {
            frame: interner.intern(native(name, "[vdso]".into())),
            role: Role::Other,
        };
        self.vdso.insert(offset, frame.clone());
        self.names += 1;
        frame
    }

    fn kernel_address(&mut self, address: u64, interner: &mut Interner) -> Arc<Frame> {
        if let Some(known) = self.kernel.get(&address) {
            return known.clone();
        }
        let source = source::Source::Kernel(source::Kernel {
            kallsyms: MaybeDefault::Default,
            // kallsyms has every symbol, modules' and BPF programs' too, at its true address.
            vmlinux: MaybeDefault::None,
            kaslr_offset: Some(0),
            debug_syms: false,
            ..source::Kernel::default()
        });
        let frame = match self
            .symbolizer
            .symbolize_single(&source, Input::AbsAddr(address))
        {
            Ok(Symbolized::Sym(symbol)) if !symbol.name.is_empty() => Frame {
                file: symbol
                    .module
                    .as_ref()
                    .map_or_else(|| "".into(), |module| module.to_string_lossy().into()),
                ..Frame::marker(
                    FrameKind::Kernel,
                    &shortened(&symbol.name).unwrap_or_default(),
                )
            },
            _ => {
                self.stats.add(Reason::KernelUnknown);
                Frame::marker(FrameKind::Kernel, "[unknown]")
            }
        };
        let frame = interner.intern(frame);
        self.kernel.insert(address, frame.clone());
        self.names += 1;
        frame
    }

    /// Keeps to the limits.
    fn trim(&mut self) {
        if self.names > self.limits.names {
            self.stats.add(Reason::CacheEmptied);
            self.names = 0;
            self.vdso = FxHashMap::default();
            self.kernel = FxHashMap::default();
            for module in self.modules.values_mut() {
                module.names = FxHashMap::default();
            }
        }
        let open = || self.modules.values().filter(|module| module.open.is_some());
        if open().count() > self.limits.modules {
            // A quarter at once, so that this is not done again for the next one.
            let mut used: Vec<u64> = open().map(|module| module.used).collect();
            used.sort_unstable();
            let before = used[used.len() / 4];
            for module in self.modules.values_mut() {
                if module.used <= before && module.open.is_some() {
                    self.stats.add(Reason::Evicted);
                    module.functions = Functions::default();
                    close(&mut self.symbolizer, module.open.take());
                }
            }
        }
    }
}

impl Mapped {
    /// The mapping that holds an address, read anew where that may help.
    fn find(&mut self, address: u64, stats: &Stats) -> Option<usize> {
        let found = maps::find(&self.mappings, address);
        let age = self.read.map(|read| read.elapsed());
        let fresh = match found {
            Some(_) => age.is_some_and(|age| age < STALE),
            None => age.is_some_and(|age| age < REREAD),
        };
        if fresh {
            return found;
        }
        let first = self.read.is_none();
        self.read = Some(Instant::now());
        match maps::read(self.tgid) {
            // An ended process has no mappings, until it has no such file; what was known stands.
            Ok(mappings) if !mappings.is_empty() => self.remap(mappings),
            _ if first => stats.add(Reason::ProcessGone),
            _ => {}
        }
        maps::find(&self.mappings, address)
    }

    /// Takes new mappings; the files behind those that stayed are known still.
    fn remap(&mut self, mappings: Vec<Mapping>) {
        let old = std::mem::replace(&mut self.mappings, mappings);
        let new = &self.mappings;
        self.files.retain(|&start, _| {
            let at =
                |mappings: &[Mapping]| maps::find(mappings, start).map(|at| mappings[at].clone());
            at(&old) == at(new)
        });
    }

    /// Code made at run time: by its perf map, if the process keeps one.
    fn anonymous(&mut self, address: u64, interner: &mut Interner, stats: &Stats) -> NativeFrame {
        let name = |map: &Option<PerfMap>| map.as_ref()?.find(address).and_then(shortened);
        let mut found = name(&self.perf_map);
        let fresh = self
            .perf_map_read
            .is_some_and(|read| read.elapsed() < REREAD);
        if found.is_none() && !fresh {
            self.perf_map_read = Some(Instant::now());
            if let Ok(Some(map)) = PerfMap::read(self.tgid, self.perf_map.as_ref()) {
                stats.add_many(Reason::PerfMapLine, map.malformed);
                self.perf_map = Some(map);
                found = name(&self.perf_map);
            }
        }
        let role = role(found.as_deref(), "");
        if found.is_none() {
            stats.add(Reason::NoSymbol);
        }
        let name = found.unwrap_or_else(|| "[anonymous]".into());
        NativeFrame {
            frame: interner.intern(native(name, "".into())),
            role,
        }
    }
}

/// The addresses to look up for a stack, innermost first: all but the innermost are return addresses,
/// which stand behind the call, and behind the function where the call was its last instruction.
fn calls(addresses: &[u64]) -> impl Iterator<Item = u64> {
    addresses
        .iter()
        .enumerate()
        .map(|(at, address)| address.saturating_sub(u64::from(at > 0)))
}

fn close(symbolizer: &mut Symbolizer, open: Option<PathBuf>) {
    if let Some(path) = open {
        // Cannot fail for a file; and what is not cached any more is no mistake.
        let _ = symbolizer.evict(&evict::Evict::Elf(evict::Elf::new(path)));
    }
}

fn unnamed(interner: &mut Interner, name: Arc<str>, module: Arc<str>) -> NativeFrame {
    let role = role(None, &module);
    NativeFrame {
        frame: interner.intern(native(name, module)),
        role,
    }
}

fn native(name: Arc<str>, module: Arc<str>) -> Frame {
    Frame {
        kind: FrameKind::Native,
        name,
        file: module,
        line: 0,
        first_line: 0,
    }
}

fn shortened(name: &str) -> Option<Arc<str>> {
    if name.len() <= NAME_MAX {
        return (!name.is_empty()).then(|| name.into());
    }
    Some(format!("{}…", &name[..name.floor_char_boundary(NAME_MAX)]).into())
}
