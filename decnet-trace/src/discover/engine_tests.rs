//! Discovery of real processes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    slice::from_ref,
};

use super::*;
use crate::{
    discover::{Listen, survey},
    span::Value,
};

/// The start of every script: `tell` writes a line to the test, `wait` reads one from it.
const PRELUDE: &str = "
import os, socket, sys
def tell(*words): sys.stdout.write(' '.join(map(str, words)) + '\\n'); sys.stdout.flush()
def wait():
    if not sys.stdin.readline(): os._exit(0)
def listen():
    s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(5); return s
";

/// A running program, killed with its process group when the test lets go of it.
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _dir: tempfile::TempDir,
}

impl Running {
    /// Starts a script under an interpreter, with `front` as the words before its path.
    fn script(program: &Path, front: &[&str], script: &str) -> Self {
        Self::script_with(program, front, script, |_| {})
    }

    /// Starts a script of this name under the interpreter.
    fn named(name: &str, program: &Path, script: &str) -> Self {
        Self::start(name, program, &[], script, |_| {})
    }

    fn script_with(
        program: &Path,
        front: &[&str],
        script: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        Self::start("serve", program, front, script, prepare)
    }

    fn start(
        name: &str,
        program: &Path,
        front: &[&str],
        script: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{name}.py"));
        std::fs::write(&path, format!("{PRELUDE}{script}")).unwrap();
        let mut command = Command::new(program);
        command
            .args(front)
            .arg(&path)
            .current_dir(dir.path())
            .env_remove("OTEL_SERVICE_NAME")
            .env_remove("OTEL_RESOURCE_ATTRIBUTES")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            _dir: dir,
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it tells.
    fn told(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn told_pid(&mut self) -> u32 {
        self.told().parse().unwrap()
    }

    /// Lets it go on.
    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    fn end(&mut self) {
        let group = i32::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes two integers; the group was made for this child, which is not reaped yet.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// The system's own Python.
fn system_python() -> Option<PathBuf> {
    let found = ["/usr/bin/python3", "/usr/local/bin/python3"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        println!("SKIPPED: no system Python");
    }
    found
}

/// Every Python to be found: the system's and pyenv's.
fn pythons() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = system_python().into_iter().collect();
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = pyenv.and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    for version in versions.into_iter().flatten().flatten() {
        let python = version.path().join("bin/python");
        if python.exists() {
            found.push(python);
        }
    }
    if found.len() < 2 {
        println!("SKIPPED: no Python of pyenv to look at");
    }
    found
}

/// A name that no process has but those of one test in this run of it: all processes of the machine are looked
/// through, and other tests run programs meanwhile.
fn own_name(test: &str) -> String {
    format!("{test}_{}", std::process::id())
}

/// Waits until a process has executed its program and has its interpreter mapped: whoever started it may hear
/// of its exec before it has a command line.
fn wait_until_loaded(pid: u32) {
    let begin = Instant::now();
    while procfs::cmdline(pid).unwrap().is_empty()
        || Runtimes::default()
            .find(pid, &procfs::exe(pid).unwrap())
            .is_none()
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "{pid} starts");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn everything() -> Discovery {
    Discovery::new(Selector::default(), std::process::id())
}

/// What is said about one process.
fn about(changes: &[Change], pid: u32) -> Vec<Result<Arc<TracedProcess>, UntraceReason>> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::Trace(traced) if traced.process.pid == pid => Some(Ok(Arc::clone(traced))),
            Change::Untrace(other, reason) if *other == pid => Some(Err(*reason)),
            _ => None,
        })
        .collect()
}

/// The process, where it is said to be traced and nothing else.
fn traced(changes: &[Change], pid: u32) -> Arc<TracedProcess> {
    match about(changes, pid).as_slice() {
        [Ok(traced)] => Arc::clone(traced),
        other => panic!("expected {pid} to be traced: {other:?}"),
    }
}

fn attribute<'a>(traced: &'a TracedProcess, key: &str) -> Option<&'a Value> {
    let mut attributes = traced.resource.attributes.iter();
    attributes
        .find(|(other, _)| other == key)
        .map(|(_, value)| value)
}

/// Every interpreter that listens is traced, with the version that it says it has, and a file that
/// can be opened.
#[test]
fn tells_versions() {
    for python in pythons() {
        let mut server = Running::script(
            &python,
            &[],
            "import platform; s = listen(); tell(platform.python_version(), s.getsockname()[1]); wait()",
        );
        let told = server.told();
        let (version, port) = told.split_once(' ').unwrap();
        let changes = everything().scan_all();
        let traced = traced(&changes, server.pid());
        assert_eq!(traced.why, Why::Listens, "{version}");
        let Runtime::CPython {
            version: found,
            file,
        } = &traced.process.runtime
        else {
            panic!("{version}: {:?}", traced.process.runtime);
        };
        assert_eq!(found.to_string(), version);
        assert!(
            traced.process.open_path(file).exists(),
            "{}",
            file.display()
        );
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        assert_eq!(traced.process.listening, [Listen::Tcp(address)]);
        assert_eq!(traced.resource.service_name, "serve");
    }
}

/// A process that listens later is traced when the kernel tells of it; one that listens on a unix
/// socket, of which it does not tell, at one of the looks.
#[test]
fn waits_for_listeners() {
    let Some(python) = system_python() else {
        return;
    };
    let mut server = Running::script(
        &python,
        &[],
        "tell('up'); wait(); s = listen(); tell('listening'); wait()",
    );
    let mut unix = Running::script(
        &python,
        &[],
        "tell('up'); wait()
s = socket.socket(socket.AF_UNIX); s.bind('here.sock'); s.listen(5); tell('listening'); wait()",
    );
    server.told();
    unix.told();
    let mut discovery = everything();
    let start = Instant::now();
    discovery.on_exec(server.pid());
    discovery.on_exec(unix.pid());
    let changes = discovery.tick(start);
    assert!(about(&changes, server.pid()).is_empty());
    assert!(about(&changes, unix.pid()).is_empty());

    server.go_on();
    server.told();
    discovery.on_listen(server.pid());
    assert_eq!(discovery.next_due(), None);
    let changes = discovery.tick(start + Duration::from_millis(1));
    assert_eq!(traced(&changes, server.pid()).why, Why::Listens);

    unix.go_on();
    unix.told();
    let changes = discovery.tick(start + Duration::from_millis(2));
    assert!(about(&changes, unix.pid()).is_empty(), "not due yet");
    // The server's children come first.
    let due = start + LOOKS[0];
    assert!(discovery.next_due().unwrap() < due);
    let changes = discovery.tick(start + CHILDREN_DELAYS[0] + Duration::from_millis(2));
    assert!(about(&changes, unix.pid()).is_empty(), "not due yet");
    assert_eq!(discovery.next_due(), Some(due));
    let changes = discovery.tick(due);
    let traced = traced(&changes, unix.pid());
    assert_eq!(traced.process.listening, [Listen::Unix("here.sock".into())]);
    assert_eq!(discovery.traced().len(), 2);
}

/// The looks at a process that never listens end.
#[test]
fn stops_looking() {
    let Some(python) = system_python() else {
        return;
    };
    let mut idle = Running::script(&python, &[], "tell('up'); wait()");
    idle.told();
    let mut discovery = everything();
    discovery.on_exec(idle.pid());
    let mut now = Instant::now();
    discovery.tick(now);
    for taken in 1..=LOOKS.len() {
        assert_eq!(discovery.looks[&idle.pid()].taken, taken);
        now = discovery.next_due().unwrap();
        assert!(about(&discovery.tick(now), idle.pid()).is_empty());
    }
    assert!(discovery.looks.is_empty());
    assert_eq!(discovery.counts().judged, 1 + LOOKS.len() as u64);
}

/// A server is traced from its exec on, and no longer when it executes something else.
#[test]
fn follows_exec() {
    let Some(python) = system_python() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("uvicorn.py"),
        format!("{PRELUDE}tell('up'); wait(); os.execvp('sleep', ['sleep', '600'])"),
    )
    .unwrap();
    let arguments = [
        "-m",
        "uvicorn",
        "shop.main:app",
        "--token",
        "hunter2",
        "--port",
    ];
    let mut server = Running::script_with(&python, &arguments, "", |command| {
        command.env("PYTHONPATH", dir.path());
    });
    server.told();
    let mut discovery = everything();
    let now = Instant::now();
    discovery.on_exec(server.pid());
    let changes = discovery.tick(now);
    let process = traced(&changes, server.pid());
    assert_eq!(process.why, Why::Server("uvicorn"));
    assert_eq!(process.resource.service_name, "shop");
    assert_eq!(process.process.listening, []);
    assert!(!format!("{process:?}").contains("hunter2"));
    assert_eq!(
        attribute(&process, "process.runtime.name"),
        Some(&Value::Str("cpython".into()))
    );
    // Of the same program, told of twice, nothing more is said.
    discovery.on_exec(server.pid());
    assert!(about(&discovery.tick(now), server.pid()).is_empty());

    server.go_on();
    while !procfs::exe(server.pid()).unwrap().ends_with("sleep") {
        std::thread::sleep(Duration::from_millis(1));
    }
    discovery.on_exec(server.pid());
    let said = about(&discovery.tick(now), server.pid());
    let let_go = [UntraceReason::Executed, UntraceReason::NotSelected];
    assert!(
        matches!(said[..], [Err(first), Err(then)] if [first, then] == let_go),
        "{said:?}"
    );
    assert_eq!(discovery.traced().len(), 0);
}

/// A forked worker is traced for its parent's sake, described as itself; a forked child that executes
/// a program is let go.
#[test]
fn follows_forks() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import signal
s = listen()
worker = os.fork()
if worker == 0: s.close(); sys.stdin.close(); signal.pause()
other = os.fork()
if other == 0: s.close(); os.execvp('sleep', ['sleep', '600'])
tell(worker); tell(other); wait()";
    let mut server = Running::script_with(&python, &[], script, |command| {
        command.env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=shop,service.version=7",
        );
    });
    let (worker, other) = (server.told_pid(), server.told_pid());
    while !procfs::exe(other).unwrap().ends_with("sleep") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut discovery = Discovery::new(
        Selector::new(&[server.pid()], &[], &[]).unwrap(),
        std::process::id(),
    );
    let start = Instant::now();
    discovery.on_exec(server.pid());
    traced(&discovery.tick(start), server.pid());

    discovery.on_fork(server.pid(), worker);
    discovery.on_fork(server.pid(), other);
    assert!(
        about(&discovery.tick(start), worker).is_empty(),
        "too early"
    );
    let changes = discovery.tick(start + FORK_DELAY);
    let child = traced(&changes, worker);
    assert_eq!(child.why, Why::ChildOf(server.pid()));
    assert_eq!(child.resource.service_name, "shop");
    assert_eq!(child.resource.tgid, worker);
    assert_eq!(
        attribute(&child, "process.pid"),
        Some(&Value::Int(worker.into()))
    );
    assert_eq!(
        attribute(&child, "service.version"),
        Some(&Value::Str("7".into()))
    );
    let said = about(&changes, other);
    assert!(
        matches!(said[..], [Err(UntraceReason::NotSelected)]),
        "{said:?}"
    );

    // Where the exec is told of before the look, it is let go at once.
    discovery.on_fork(server.pid(), other);
    discovery.on_exec(other);
    let said = about(&discovery.tick(start), other);
    assert!(
        matches!(said[..], [Err(UntraceReason::NotSelected)]),
        "{said:?}"
    );
    assert!(discovery.looks.is_empty());

    // A scan from nothing finds the worker by its parent as well.
    let mut anew = Discovery::new(
        Selector::new(&[server.pid()], &[], &[]).unwrap(),
        std::process::id(),
    );
    let changes = anew.scan_all();
    assert_eq!(traced(&changes, worker).why, Why::ChildOf(server.pid()));
    assert!(about(&changes, other).is_empty());
    assert_eq!(anew.traced().len(), 2);
}

/// A worker that a server forks right after it began to listen, before the kernel side could know of the
/// server, is found among its children.
#[test]
fn finds_children_that_nobody_told_of() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import signal
s = listen()
tell('up'); wait()
worker = os.fork()
if worker == 0: s.close(); sys.stdin.close(); signal.pause()
tell(worker); wait()";
    let mut server = Running::script(&python, &[], script);
    server.told();
    let mut discovery = everything();
    let start = Instant::now();
    discovery.on_listen(server.pid());
    traced(&discovery.tick(start), server.pid());
    server.go_on();
    let worker = server.told_pid();
    assert!(about(&discovery.tick(start), worker).is_empty());
    let changes = discovery.tick(discovery.next_due().unwrap());
    assert_eq!(traced(&changes, worker).why, Why::ChildOf(server.pid()));
}

/// The child of a process that has ended since is known by the one that forked it.
#[test]
fn follows_forks_of_the_gone() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import signal
s = listen()
tell('up'); wait()
child = os.fork()
if child: tell(child); s.close(); os._exit(0)
s.close(); signal.pause()";
    let mut server = Running::script(&python, &[], script);
    server.told();
    let mut discovery = everything();
    let start = Instant::now();
    discovery.on_exec(server.pid());
    traced(&discovery.tick(start), server.pid());
    server.go_on();
    let child = server.told_pid();
    server.child.wait().unwrap();
    discovery.on_fork(server.pid(), child);
    discovery.on_exit(server.pid());
    let changes = discovery.tick(start);
    assert!(matches!(
        about(&changes, server.pid())[..],
        [Err(UntraceReason::Exited)]
    ));
    let changes = discovery.tick(start + FORK_DELAY);
    assert_eq!(traced(&changes, child).why, Why::ChildOf(server.pid()));
}

/// A worker that multiprocessing spawned is traced, though its own command line says nothing, under
/// its parent's name; the resource tracker beside it is not.
#[test]
fn follows_multiprocessing() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import multiprocessing, signal
def work(up): up.send('up'); signal.pause()
if __name__ == '__main__':
    s = listen()
    multiprocessing.set_start_method('spawn')
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()
    hear, up = multiprocessing.Pipe(False)
    worker = multiprocessing.Process(target=work, args=(up,)); worker.start()
    hear.recv()
    tell(worker.pid); tell(resource_tracker._resource_tracker._pid); wait()";
    let mut server = Running::script(&python, &[], script);
    let (worker, tracker) = (server.told_pid(), server.told_pid());
    wait_until_loaded(tracker);
    let changes = everything().scan_all();
    assert_eq!(traced(&changes, server.pid()).why, Why::Listens);
    let child = traced(&changes, worker);
    assert_eq!(child.why, Why::ChildOf(server.pid()));
    assert_eq!(child.resource.service_name, "serve");
    assert!(about(&changes, tracker).is_empty());

    let judged = survey(&Selector::default(), std::process::id());
    let find = |pid| judged.iter().find(|one| one.pid == pid).unwrap();
    assert_eq!(find(worker).verdict, Ok(Why::ChildOf(server.pid())));
    assert_eq!(find(worker).service.as_deref(), Some("serve"));
    assert_eq!(find(tracker).verdict, Err(WhyNot::NotListening));
}

/// A worker that is spawned, by fork and exec, is never let go on the way, whether its fork was looked at before
/// it executed its program or not; what else a server runs is let go at once.
#[test]
fn keeps_spawned_workers() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import multiprocessing, signal, subprocess
def work(up): up.send('up'); signal.pause()
if __name__ == '__main__':
    s = listen()
    multiprocessing.set_start_method('spawn')
    hear, up = multiprocessing.Pipe(False)
    worker = multiprocessing.Process(target=work, args=(up,)); worker.start()
    code = 'import time; print(flush=True); time.sleep(600)'
    python = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
    other = subprocess.Popen(['sleep', '600'])
    hear.recv(); python.stdout.readline()
    for pid in (worker.pid, python.pid, other.pid): tell(pid)
    wait()";
    let mut server = Running::script(&python, &[], script);
    let [worker, script, other] = std::array::from_fn(|_| server.told_pid());
    let mut discovery = everything();
    let start = Instant::now();
    discovery.on_listen(server.pid());
    let parent = traced(&discovery.tick(start), server.pid());
    for pid in [worker, script, other] {
        discovery.on_fork(server.pid(), pid);
        discovery.on_exec(pid);
    }
    let changes = discovery.tick(start);
    let child = traced(&changes, worker);
    assert_eq!(child.why, Why::ChildOf(server.pid()));
    for pid in [script, other] {
        let said = about(&changes, pid);
        assert!(
            matches!(said[..], [Err(UntraceReason::NotSelected)]),
            "{said:?}"
        );
    }

    // As if the fork had been looked at before.
    let mut discovery = everything();
    discovery.on_listen(server.pid());
    traced(&discovery.tick(start), server.pid());
    let mut fork = child.process.clone();
    fork.image = parent.process.image;
    let fork = TracedProcess {
        process: fork,
        ..child.as_ref().clone()
    };
    discovery.traced.insert(worker, Arc::new(fork));
    discovery.on_exec(worker);
    let said = about(&discovery.tick(start), worker);
    assert!(
        matches!(said[..], [Err(UntraceReason::Executed), Ok(_)]),
        "{said:?}"
    );
    assert_eq!(discovery.counts().late, 0);
}

/// Of workers that share a socket, the kernel tells of the first that listens on it: the others are found by
/// their parent, which made it, though both were looked at before in vain.
#[test]
fn finds_those_who_share_a_socket() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "
import subprocess
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.set_inheritable(True)
code = 'import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); print(flush=True); sys.stdin.readline(); s.listen(5); print(flush=True); sys.stdin.readline()'
start = lambda: subprocess.Popen([sys.executable, '-c', code, str(s.fileno())], pass_fds=[s.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
workers = [start(), start()]
for worker in workers: worker.stdout.readline()
tell(*[worker.pid for worker in workers]); wait()
workers[0].stdin.write(b'\\n'); workers[0].stdin.flush(); workers[0].stdout.readline()
tell('listening'); wait()";
    let mut server = Running::script(&python, &[], script);
    let told = server.told();
    let pids: Vec<u32> = told.split(' ').map(|pid| pid.parse().unwrap()).collect();
    let mut discovery = everything();
    let start = Instant::now();
    for pid in [server.pid(), pids[0], pids[1]] {
        discovery.on_exec(pid);
    }
    let changes = discovery.tick(start);
    assert!(about(&changes, server.pid()).is_empty());
    server.go_on();
    server.told();
    discovery.on_listen(pids[0]);
    let changes = discovery.tick(start);
    assert_eq!(traced(&changes, pids[0]).why, Why::Listens);
    assert_eq!(discovery.next_due(), None, "at once");
    assert_eq!(
        traced(&discovery.tick(start), server.pid()).why,
        Why::Listens
    );
    let soon = start + CHILDREN_DELAYS[0];
    discovery.tick(start);
    let mut changes = discovery.tick(soon);
    changes.extend(discovery.tick(soon));
    traced(&changes, pids[1]);
}

/// Any process that listens on a port asked for is traced, whatever it runs, but for the agent.
#[test]
fn selects_ports() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let me = std::process::id();
    let selector = Selector::new(&[], &[], &[port]).unwrap();
    let mut discovery = Discovery::new(selector.clone(), 1);
    let changes = discovery.scan_all();
    let traced = traced(&changes, me);
    assert_eq!(traced.why, Why::Port(port));
    assert_eq!(traced.process.runtime, Runtime::Other("native"));
    // A program that another test starts right now is a fork of this process until it is executed, and has the
    // socket.
    let mut found = discovery.traced().map(|traced| &traced.process);
    assert!(found.all(|process| process.pid == me || process.ppid == me));

    let mut agent = Discovery::new(selector, me);
    agent.on_listen(me);
    agent.on_exec(me);
    assert!(about(&agent.scan_all(), me).is_empty());
    assert!(about(&agent.tick(Instant::now()), me).is_empty());
}

/// A process asked for by name is traced without listening; nothing else is.
#[test]
fn selects_names() {
    let Some(python) = system_python() else {
        return;
    };
    let mut other = Running::script(&python, &[], "s = listen(); tell('up'); wait()");
    let name = own_name("peculiar");
    let mut wanted = Running::named(&format!("{name}_shop"), &python, "tell('up'); wait()");
    other.told();
    wanted.told();
    let selector = Selector::new(&[], &[format!("{name}_*")], &[]).unwrap();
    let mut discovery = Discovery::new(selector, std::process::id());
    let changes = discovery.scan_all();
    assert_eq!(traced(&changes, wanted.pid()).why, Why::Name);
    assert_eq!(changes.len(), 1);
}

/// What another selector does not ask for is traced no longer, with its children; what it asks for is
/// traced from then on, and what it leaves alone is not.
#[test]
fn goes_by_another_selector() {
    let Some(python) = system_python() else {
        return;
    };
    let name = own_name("another");
    let mut parent = Running::named(
        &name,
        &python,
        "pid = os.fork()
if pid == 0: wait()
tell('up', pid); wait()",
    );
    let told = parent.told();
    let child: u32 = told.split(' ').nth(1).unwrap().parse().unwrap();
    let mut other = Running::named(&name, &python, "s = listen(); tell('up'); wait()");
    other.told();
    let by_pid = |pid| Selector::new(&[pid], &[], &[]).unwrap();
    let mut discovery = Discovery::new(by_pid(parent.pid()), std::process::id());
    assert_eq!(discovery.scan_all().len(), 2);

    let changes = discovery.select(by_pid(other.pid()));
    for pid in [parent.pid(), child] {
        let is_left = |change: &Change| matches!(change, Change::Untrace(left, UntraceReason::NotSelected) if *left == pid);
        assert!(changes.iter().any(is_left), "{changes:?}");
    }
    assert_eq!(traced(&changes, other.pid()).why, Why::Pid);
    assert_eq!(changes.len(), 3);
    assert!(discovery.select(by_pid(other.pid())).is_empty());

    let ours = || Selector::new(&[], from_ref(&name), &[]).unwrap();
    let changes = discovery.select(ours());
    assert_eq!(traced(&changes, parent.pid()).why, Why::Name);
    let is_traced = discovery
        .traced()
        .any(|traced| traced.process.pid == other.pid());
    assert!(is_traced);
    let changes = discovery.select(ours().without(&[format!("{name}*")]).unwrap());
    assert!(
        changes
            .iter()
            .all(|change| matches!(change, Change::Untrace(_, UntraceReason::NotSelected))),
        "{changes:?}"
    );
    assert_eq!(discovery.traced().len(), 0);
}

/// The end of a process is noticed by event, by scan, and by a pid that became another process's.
#[test]
fn notices_ends() {
    let Some(python) = system_python() else {
        return;
    };
    let script = "s = listen(); tell('up'); wait()";
    let mut servers: [Running; 3] = std::array::from_fn(|_| Running::script(&python, &[], script));
    let selector = {
        let pids = servers.each_ref().map(Running::pid);
        Selector::new(&pids, &[], &[]).unwrap()
    };
    for server in &mut servers {
        server.told();
    }
    let mut discovery = Discovery::new(selector, std::process::id());
    assert_eq!(discovery.scan_all().len(), 3);
    assert!(discovery.missing().is_empty());
    let start = Instant::now();
    assert!(discovery.tick(start).is_empty());

    let [by_event, by_scan, by_reuse] = &mut servers;
    by_event.end();
    discovery.on_exit(by_event.pid());
    let changes = discovery.tick(start);
    assert!(matches!(
        about(&changes, by_event.pid())[..],
        [Err(UntraceReason::Exited)]
    ));
    assert_eq!(discovery.missing(), [by_event.pid()]);

    by_scan.end();
    let reused = discovery.traced.get_mut(&by_reuse.pid()).unwrap();
    Arc::get_mut(reused).unwrap().process.start -= 1;
    let changes = discovery.tick(start + SCAN_EVERY);
    assert!(matches!(
        about(&changes, by_scan.pid())[..],
        [Err(UntraceReason::Exited)]
    ));
    let said = about(&changes, by_reuse.pid());
    assert!(
        matches!(said[..], [Err(UntraceReason::Exited), Ok(_)]),
        "{said:?}"
    );
    assert_eq!(discovery.counts().late, 1);
    assert!(discovery.looks.is_empty());
}

/// Pids that never were, or are gone again, are tolerated by every entry, and nothing piles up.
#[test]
fn tolerates_the_vanished() {
    let mut discovery = everything();
    let now = Instant::now();
    for pid in 4_194_305..4_194_805 {
        discovery.on_exec(pid);
        discovery.on_fork(pid, pid + 1);
        discovery.on_listen(pid);
        discovery.on_exit(pid);
    }
    discovery.tick(now);
    discovery.tick(now + FORK_DELAY);
    discovery.tick(now + EXIT_DELAY);
    assert!(discovery.looks.is_empty() && discovery.traced.is_empty());

    for pid in 0..2 * WAITING_MAX as u32 {
        discovery.on_listen(5_000_000 + pid);
    }
    assert_eq!(discovery.looks.len(), WAITING_MAX);
    assert_eq!(discovery.counts().dropped, WAITING_MAX as u64);
    discovery.tick(now);
    assert!(discovery.looks.is_empty());
}

/// A process in pid and mount namespaces of its own is described with both its pids, and its
/// interpreter's file is found where only it sees it.
#[test]
fn looks_into_namespaces() {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: namespaces need root");
        return;
    }
    for python in pythons() {
        let home = python.parent().unwrap().parent().unwrap();
        if home == Path::new("/usr") || home.join("bin/python2").exists() {
            continue;
        }
        // The interpreter's tree is mounted where nothing of the kind stands outside.
        let dir = tempfile::tempdir().unwrap();
        let mount = format!(
            "mount --bind {} {dir} && export LD_LIBRARY_PATH={dir}/lib && exec \"$@\"",
            home.display(),
            dir = dir.path().display()
        );
        let front = [
            "--pid",
            "--fork",
            "--mount-proc",
            "--mount",
            "sh",
            "-c",
            &mount,
            "sh",
        ];
        let inner = dir.path().join("bin/python");
        let mut front = front.to_vec();
        front.push(inner.to_str().unwrap());
        let script = "s = listen(); tell(os.getpid()); wait()";
        let mut server = Running::script(Path::new("unshare"), &front, script);
        let Ok(inner_pid) = server.told().parse::<u32>() else {
            println!("SKIPPED: no namespaces here");
            return;
        };
        assert_eq!(inner_pid, 1);
        let changes = everything().scan_all();
        let process = changes
            .iter()
            .find_map(|change| match change {
                Change::Trace(traced) if traced.process.ppid == server.pid() => Some(traced),
                _ => None,
            })
            .unwrap();
        assert_eq!(process.process.inner_pid, 1);
        assert_eq!(attribute(process, "process.vpid"), Some(&Value::Int(1)));
        let Runtime::CPython { version, file } = &process.process.runtime else {
            panic!("{:?}", process.process.runtime);
        };
        assert!(version.micro.is_some(), "{version}");
        assert!(
            file.starts_with(dir.path()) && !file.exists(),
            "{}",
            file.display()
        );
        assert!(process.process.open_path(file).exists());
    }
}

/// What Rust's own standard library runs is a native program, not taken for Python.
#[test]
fn leaves_other_programs() {
    let mut sleeping = Running::script(
        Path::new("/bin/sh"),
        &["-c", "echo up; sleep 600; true"],
        "",
    );
    sleeping.told();
    let mut discovery = everything();
    discovery.on_exec(sleeping.pid());
    assert!(discovery.looks.is_empty(), "one readlink must do");
    let judged = survey(&Selector::default(), std::process::id());
    let find = |pid| judged.iter().find(|one| one.pid == pid).unwrap();
    assert_eq!(find(sleeping.pid()).verdict, Err(WhyNot::NotPython));
    assert_eq!(find(std::process::id()).verdict, Err(WhyNot::Agent));
}
