//! Symbolizing real processes: programs compiled here, the system's Python, the running kernel.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use decnet_trace::{
    profile::{
        Frame, FrameKind,
        interpreter::{Role, role},
    },
    symbolize::{
        self, Client, Limits, NoPython, ProcessId, PythonFrames, PythonLocation, RawStack, Reason,
        Stack, StackId,
    },
};
use decnet_trace_common::event::PyFrame;

/// A symbolizer, and stacks given to it one at a time.
struct Symbols {
    client: Client,
    next: u64,
}

impl Symbols {
    fn new(limits: Limits) -> Self {
        let (client, _) = symbolize::spawn(limits, Box::new(NoPython)).unwrap();
        Self { client, next: 0 }
    }

    fn stack(&mut self, tgid: u32, user: &[u64], kernel: &[u64]) -> Arc<Stack> {
        let id = StackId(self.next);
        self.next += 1;
        let raw = RawStack {
            id,
            process: ProcessId(u64::from(tgid)),
            tgid,
            tid: Some(tgid),
            flags: 0,
            kernel: kernel.into(),
            user: user.into(),
            python: [].into(),
        };
        assert!(self.client.offer(Box::new(raw)));
        assert!(self.client.flush(Duration::from_secs(60)));
        let stack = self.client.stack(id).unwrap();
        self.client.take(StackId(self.next));
        stack
    }

    /// The frames of a stack of user addresses, innermost first as they are given.
    fn frames(&mut self, tgid: u32, addresses: &[u64]) -> Vec<Arc<Frame>> {
        let stack = self.stack(tgid, addresses, &[]);
        stack.frames.iter().rev().cloned().collect()
    }

    /// The names of a stack of user addresses, innermost first.
    fn names(&mut self, tgid: u32, addresses: &[u64]) -> Vec<String> {
        let frames = self.frames(tgid, addresses);
        frames.iter().map(|frame| frame.name.to_string()).collect()
    }

    /// The name of one user address.
    fn name(&mut self, tgid: u32, address: u64) -> String {
        self.names(tgid, &[address]).remove(0)
    }

    fn count(&self, reason: Reason) -> u64 {
        self.client.stats().get(reason)
    }
}

/// A program that answers on its standard output and waits on its standard input.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Reads a line of hexadecimal numbers.
    fn numbers(&mut self) -> Vec<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.split_ascii_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap())
            .collect()
    }

    fn go_on(&mut self) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(b"\n").unwrap();
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints the addresses of two functions of its own and one of the C library, then waits for the end
/// of its input.
const PLAIN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) int alpha(int x) { return x * 3 + 1; }
static __attribute__((noinline)) int beta(int x) { return alpha(x) ^ 5; }
int main(void) {
    printf("%p %p %p\n", (void *)alpha, (void *)beta, (void *)qsort);
    fflush(stdout);
    while (getchar() != EOF) {}
    return beta(0) & 0;
}
"#;

fn compile(folder: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    compile_with("cc", "c", folder, name, source, flags).unwrap()
}

/// Compiles a program; `None` where there is no such compiler.
fn compile_with(
    compiler: &str,
    extension: &str,
    folder: &Path,
    name: &str,
    source: &str,
    flags: &[&str],
) -> Option<PathBuf> {
    let file = folder.join(format!("{name}.{extension}"));
    fs::write(&file, source).unwrap();
    let program = folder.join(name);
    let output = Command::new(compiler)
        .args(["-O1", "-fno-inline", "-o"])
        .arg(&program)
        .arg(&file)
        .args(flags)
        .output()
        .ok()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Some(program)
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Names and modules are those of the functions whose addresses the program tells of itself; outer
/// addresses are return addresses, which stand behind their call.
#[test]
fn a_programs_functions_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let (alpha, beta) = (addresses[0], addresses[1]);
    let frames = symbols.frames(program.id(), &[alpha, beta + 1, addresses[2] + 1, alpha]);
    let names: Vec<&str> = frames[..3].iter().map(|frame| &*frame.name).collect();
    assert_eq!(names, ["alpha", "beta", "qsort"]);
    // The fourth, as a return address, belongs to whatever ends right before `alpha`.
    assert_ne!(&*frames[3].name, "alpha");
    assert_eq!(&*frames[0].file, path.to_str().unwrap());
    assert!(frames[2].file.contains("libc.so"), "{}", frames[2].file);
    assert!(frames.iter().all(|frame| frame.kind == FrameKind::Native));
    let stack = symbols.stack(program.id(), &[alpha], &[]);
    assert_eq!(&*stack.process.command, path.to_str().unwrap());
    assert_eq!(&*stack.thread.as_ref().unwrap().name, "plain");
}

/// An address in no mapping is unknown and counted; one in a file without symbols says where the
/// function begins, so that all addresses of one function read the same.
#[test]
fn what_has_no_name_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "stripped", PLAIN, &["-s"]);
    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    assert_eq!(symbols.name(program.id(), 0x10), "[unknown]");
    assert_eq!(symbols.count(Reason::Unmapped), 1);
    let (alpha, beta) = (addresses[0], addresses[1]);
    let name = symbols.name(program.id(), alpha);
    let offset = name
        .strip_prefix("[stripped+0x")
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap();
    let offset = u64::from_str_radix(offset, 16).unwrap();
    assert_eq!(offset & 0xfff, alpha & 0xfff, "{name}");
    assert_eq!(symbols.count(Reason::NoSymbol), 1);
    for inside in [1, 3] {
        assert_eq!(symbols.name(program.id(), alpha + inside), name);
    }
    let other = symbols.name(program.id(), beta + 1);
    assert_eq!(other, format!("[stripped+{:#x}]", offset + beta - alpha));
}

/// A stack ends at an address in no mapping: what follows was never called from anywhere.
#[test]
fn a_stack_ends_where_it_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let (alpha, beta, qsort) = (addresses[0], addresses[1] + 1, addresses[2] + 1);
    let whole = symbols.names(program.id(), &[alpha, beta, qsort]);
    assert_eq!(whole, ["alpha", "beta", "qsort"]);
    let broken = symbols.names(program.id(), &[alpha, beta, 0x1234, qsort]);
    assert_eq!(broken, ["alpha", "beta", "[truncated]"]);
    assert_eq!(symbols.count(Reason::Unmapped), 1);
}

/// Rust's and C++'s names are shown as in the source.
#[test]
fn names_are_demangled() {
    let mut symbols = Symbols::new(Limits::default());
    let own = names_are_demangled as *const () as u64;
    let name = symbols.name(std::process::id(), own);
    assert_eq!(name, "symbolize::names_are_demangled");

    let folder = tempfile::tempdir().unwrap();
    let source = r#"
#include <cstdio>
namespace shop { struct Basket { int add(int n, char c); }; int Basket::add(int n, char c) { return n + c; } }
int main() {
    auto add = &shop::Basket::add;
    std::printf("%p\n", *(void **)&add);
    std::fflush(stdout);
    while (std::getchar() != EOF) {}
}
"#;
    let Some(path) = compile_with("c++", "cc", folder.path(), "basket", source, &[]) else {
        eprintln!("SKIPPED: the C++ half of names_are_demangled: there is no c++");
        return;
    };
    let mut program = Program::start(&mut Command::new(path));
    let address = program.numbers()[0];
    let name = symbols.name(program.id(), address);
    assert_eq!(name, "shop::Basket::add(int, char)");
}

/// A library that is cut short after it was read costs its own names, and nothing else.
#[test]
fn a_library_cut_short_costs_its_own_names() {
    let folder = tempfile::tempdir().unwrap();
    // Names far apart, so that they are not on one page.
    let library: String = (0..2_000)
        .map(|at| format!("int a_function_with_number_{at}(int x) {{ return x + {at}; }}\n"))
        .collect();
    let library = compile(folder.path(), "libcut.so", &library, &["-shared", "-fPIC"]);
    let source = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    printf("%p %p %p\n", dlsym(library, "a_function_with_number_1"),
           dlsym(library, "a_function_with_number_1999"), (void *)main);
    fflush(stdout);
    while (getchar() != EOF) {}
}
"#;
    let path = compile(folder.path(), "loader", source, &["-ldl"]);
    let mut program = Program::start(Command::new(path).arg(&library));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let id = program.id();
    assert_eq!(symbols.name(id, addresses[0]), "a_function_with_number_1");
    fs::OpenOptions::new()
        .write(true)
        .open(&library)
        .unwrap()
        .set_len(0)
        .unwrap();
    let name = symbols.name(id, addresses[1]);
    assert!(name.starts_with("[libcut.so+0x"), "{name}");
    assert_eq!(symbols.count(Reason::ModuleUnreadable), 1);
    // What was named before is remembered, and other files are read as ever.
    assert_eq!(symbols.name(id, addresses[0]), "a_function_with_number_1");
    assert_eq!(symbols.name(id, addresses[2]), "main");
}

/// A library loaded after the first look at a process is found when an address in it comes up.
#[test]
fn a_library_loaded_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let library = "__attribute__((noinline)) int late_arrival(int x) { return x + 42; }\n";
    let library = compile(folder.path(), "liblate.so", library, &["-shared", "-fPIC"]);
    let source = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    printf("%p\n", (void *)main);
    fflush(stdout);
    getchar();
    void *library = dlopen(argv[1], RTLD_NOW);
    printf("%p\n", dlsym(library, "late_arrival"));
    fflush(stdout);
    while (getchar() != EOF) {}
}
"#;
    let path = compile(folder.path(), "loader", source, &["-ldl"]);
    let mut program = Program::start(Command::new(path).arg(library));
    let mut symbols = Symbols::new(Limits::default());
    let main = program.numbers()[0];
    assert_eq!(symbols.name(program.id(), main), "main");
    program.go_on();
    let late = program.numbers()[0];
    // Mappings are read again at most once a second.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(symbols.name(program.id(), late), "late_arrival");
}

/// A process that ended after it was first looked at is named still, in files seen and not yet seen;
/// one that ended before is unknown, and counted.
#[test]
fn an_ended_process_is_named_if_it_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let id = program.id();
    assert_eq!(symbols.name(id, addresses[0]), "alpha");
    program.end();
    // Past the time after which mappings are read again for an address in none of them.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(symbols.name(id, addresses[1]), "beta");
    assert_eq!(symbols.name(id, addresses[2]), "qsort");
    assert_eq!(symbols.name(id, 0x10), "[unknown]");
    assert_eq!(symbols.count(Reason::ProcessGone), 0);

    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    program.end();
    assert_eq!(symbols.name(program.id(), addresses[0]), "[unknown]");
    assert_eq!(symbols.count(Reason::ProcessGone), 1);
}

/// A program deleted, or replaced, after it was started is read as it is mapped.
#[test]
fn a_replaced_program_is_read_as_mapped() {
    if !is_root() {
        eprintln!("SKIPPED: a_replaced_program_is_read_as_mapped: needs root for map_files");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let mut program = Program::start(&mut Command::new(&path));
    let addresses = program.numbers();
    fs::remove_file(&path).unwrap();
    compile(
        folder.path(),
        "plain",
        &PLAIN.replace("alpha", "omega"),
        &[],
    );
    let mut symbols = Symbols::new(Limits::default());
    let frames = symbols.frames(program.id(), &addresses[..1]);
    assert_eq!(&*frames[0].name, "alpha");
    assert_eq!(&*frames[0].file, path.to_str().unwrap());
}

/// A program that stands in a mount namespace of its own is read there.
#[test]
fn another_mount_namespace_is_looked_into() {
    if !is_root() {
        eprintln!("SKIPPED: another_mount_namespace_is_looked_into: needs root for unshare");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let hidden = folder.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let script = format!(
        "mount -t tmpfs none {hidden} && cp {path} {hidden}/inner && exec {hidden}/inner",
        hidden = hidden.display(),
        path = path.display()
    );
    let mut program = Program::start(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    let addresses = program.numbers();
    assert!(!hidden.join("inner").exists());
    let mut symbols = Symbols::new(Limits::default());
    let frames = symbols.frames(program.id(), &[addresses[0], addresses[1] + 1]);
    let names: Vec<&str> = frames.iter().map(|frame| &*frame.name).collect();
    assert_eq!(names, ["alpha", "beta"]);
    assert!(frames[0].file.ends_with("/hidden/inner"));
}

/// Code made at run time is named by the process's perf map, lines that are none left out and
/// counted.
#[test]
fn a_malformed_perf_map_names_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let source = r#"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    long code = (long)mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    FILE *map = fopen(path, "w");
    fprintf(map, "%lx 40 jit_one\nthis is no line\n%lx 40 py::handler:/srv/app.py\n%lx",
            code, code + 64, code + 128);
    fclose(map);
    printf("%lx %p\n", code, (void *)main);
    fflush(stdout);
    while (getchar() != EOF) {}
    unlink(path);
}
"#;
    let path = compile(folder.path(), "jit", source, &[]);
    let mut program = Program::start(&mut Command::new(path));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let (id, code) = (program.id(), addresses[0]);
    assert_eq!(symbols.name(id, code + 8), "jit_one");
    assert_eq!(symbols.name(id, code + 64), "py::handler:/srv/app.py");
    assert_eq!(symbols.name(id, code + 128), "[anonymous]");
    assert_eq!(symbols.name(id, addresses[1]), "main");
    assert_eq!(symbols.count(Reason::PerfMapLine), 2);
    program.end();
}

/// The vDSO's functions are named, by an independent reading of its symbol table.
#[test]
fn the_vdso_is_named() {
    use object::{Object, ObjectSymbol};
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let Some(line) = maps.lines().find(|line| line.ends_with("[vdso]")) else {
        eprintln!("SKIPPED: the_vdso_is_named: this kernel maps none");
        return;
    };
    let (start, rest) = line.split_once('-').unwrap();
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = (hex(start), hex(rest.split_once(' ').unwrap().0));
    // SAFETY: the kernel maps the vDSO readable, whole, for the life of the process.
    let image = unsafe { std::slice::from_raw_parts(start as *const u8, (end - start) as usize) };
    let elf = object::File::parse(image).unwrap();
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok("__vdso_getcpu"))
        .unwrap();
    let mut symbols = Symbols::new(Limits::default());
    let name = symbols.name(std::process::id(), start + symbol.address());
    assert!(name.ends_with("getcpu"), "{name}");
}

/// Kernel addresses are named as in the kernel's own table.
#[test]
fn kernel_functions_are_named() {
    let table = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let address = |name: &str| {
        let name = format!(" {name}");
        let line = table.lines().find(|line| line.ends_with(&name))?;
        let address = u64::from_str_radix(line.split(' ').next()?, 16).ok();
        address.filter(|&address| address != 0)
    };
    let (Some(schedule), Some(wake)) = (address("schedule"), address("wake_up_process")) else {
        eprintln!("SKIPPED: kernel_functions_are_named: /proc/kallsyms needs root");
        return;
    };
    let mut symbols = Symbols::new(Limits::default());
    let id = std::process::id();
    let stack = symbols.stack(id, &[], &[schedule + 4, wake + 5]);
    let frames: Vec<_> = stack
        .frames
        .iter()
        .map(|frame| (&*frame.name, frame.kind))
        .collect();
    assert_eq!(
        frames,
        [
            ("wake_up_process", FrameKind::Kernel),
            ("schedule", FrameKind::Kernel)
        ]
    );
    assert_eq!(symbols.count(Reason::KernelUnknown), 0);
    let stack = symbols.stack(id, &[], &[0x10]);
    assert_eq!(&*stack.frames[0].name, "[unknown]");
    assert_eq!(symbols.count(Reason::KernelUnknown), 1);
}

/// The system's Python, stripped or not, and a library it loaded are named by what they export, and
/// the interpreter's machinery is known as such.
#[test]
fn a_python_is_named_by_its_exports() {
    let python = "/usr/bin/python3";
    if !Path::new(python).exists() {
        eprintln!("SKIPPED: a_python_is_named_by_its_exports: no {python}");
        return;
    }
    let script = "
import ctypes, sys, zlib
address = lambda function: ctypes.cast(function, ctypes.c_void_p).value
api = ctypes.pythonapi
print('%x %x %x' % (address(api._PyEval_EvalFrameDefault), address(api.PyEval_EvalCode),
                    address(ctypes.CDLL('libz.so.1').deflate)), flush=True)
sys.stdin.read()
";
    let mut program = Program::start(Command::new(python).args(["-c", script]));
    let addresses = program.numbers();
    let mut symbols = Symbols::new(Limits::default());
    let stack = [addresses[2], addresses[0] + 1, addresses[1] + 1];
    let frames = symbols.frames(program.id(), &stack);
    let names: Vec<&str> = frames.iter().map(|frame| &*frame.name).collect();
    assert_eq!(
        names,
        ["deflate", "_PyEval_EvalFrameDefault", "PyEval_EvalCode"]
    );
    let module = &*frames[1].file;
    assert_eq!(role(Some(names[1]), module), Role::Evaluation);
    assert_eq!(role(None, module), Role::Interpreter, "{module}");
}

/// How many of this process's descriptors are this file.
fn descriptors_of(path: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target == path)
        .count()
}

/// Workers of one program share the file; it is let go with the last of them.
#[test]
fn workers_share_a_file_until_the_last_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "plain", PLAIN, &[]);
    let mut symbols = Symbols::new(Limits::default());
    let mut workers: Vec<_> = (0..3)
        .map(|_| Program::start(&mut Command::new(&path)))
        .collect();
    for worker in &mut workers {
        let addresses = worker.numbers();
        assert_eq!(symbols.name(worker.id(), addresses[0]), "alpha");
    }
    assert_eq!(descriptors_of(&path), 1);
    for (ended, worker) in workers.iter_mut().enumerate() {
        worker.end();
        let process = ProcessId(u64::from(worker.id()));
        symbols.client.process_ended(process, worker.id());
        assert!(symbols.client.flush(Duration::from_secs(60)));
        assert_eq!(descriptors_of(&path), usize::from(ended < 2));
    }
}

/// With room for few files and few names, old ones are let go, and named rightly again when they come
/// up.
#[test]
fn what_is_let_go_is_named_again() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        modules: 2,
        names: 3,
        processes: 4,
        ..Limits::default()
    };
    let mut symbols = Symbols::new(limits);
    let paths: Vec<_> = (0..6)
        .map(|at| {
            let source = PLAIN.replace("alpha", &format!("alpha{at}"));
            compile(folder.path(), &format!("plain{at}"), &source, &[])
        })
        .collect();
    let mut programs: Vec<_> = paths
        .iter()
        .map(|path| Program::start(&mut Command::new(path)))
        .collect();
    let addresses: Vec<_> = programs.iter_mut().map(Program::numbers).collect();
    for _ in 0..3 {
        for (at, program) in programs.iter().enumerate() {
            let stack = [addresses[at][0], addresses[at][1] + 1, addresses[at][2] + 1];
            let names = symbols.names(program.id(), &stack);
            assert_eq!(names, [&format!("alpha{at}"), "beta", "qsort"]);
            let open: usize = paths.iter().map(|path| descriptors_of(path)).sum();
            assert!(open <= 4, "{open} files open");
        }
    }
    assert!(symbols.count(Reason::Evicted) > 0);
    assert!(symbols.count(Reason::CacheEmptied) > 0);
}

/// Knows no frame, and does not say so before the other end is dropped.
struct Slow(Receiver<()>);

impl PythonFrames for Slow {
    fn resolve(&mut self, _tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>) {
        let _ = self.0.recv();
        found.resize(frames.len(), None);
    }

    fn process_ended(&mut self, _tgid: u32) {}
}

/// A queue that is full refuses at once, and counts it; what it took is named.
#[test]
fn a_full_queue_refuses() {
    let limits = Limits {
        queue: 2,
        ..Limits::default()
    };
    let (let_go, held) = mpsc::channel();
    let (client, thread) = symbolize::spawn(limits, Box::new(Slow(held))).unwrap();
    let offered = (0..6)
        .filter(|&id| {
            client.offer(Box::new(RawStack {
                id: StackId(id),
                process: ProcessId(1),
                tgid: std::process::id(),
                tid: None,
                flags: 0,
                kernel: [].into(),
                user: [].into(),
                python: [PyFrame { code: 8, instr: 0 }].into(),
            }))
        })
        .count();
    assert!((2..=4).contains(&offered), "{offered} were taken");
    drop(let_go);
    let refused = client.stats().get(Reason::QueueFull);
    assert_eq!(refused, 6 - offered as u64);
    assert!(client.flush(Duration::from_secs(60)));
    assert_eq!(client.take(StackId(6)).len(), offered);
    assert_eq!(client.stats().get(Reason::PythonUnknown), offered as u64);
    drop(client);
    thread.join().unwrap();
}
