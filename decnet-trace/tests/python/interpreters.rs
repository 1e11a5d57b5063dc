//! The interpreters at hand, and the programs that run on them.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use decnet_trace::python::{Inspection, Inspector, PyProcess, retry_after};
use serde_json::Value;

/// The minor versions of CPython 3 that are supported.
pub(crate) const MINORS: std::ops::RangeInclusive<u32> = 8..=15;

/// An interpreter to test with.
pub(crate) struct Interpreter {
    /// The program.
    program: PathBuf,
    /// The root folder that it runs in, where that is not this process's own.
    root: Option<PathBuf>,
}

/// A program running on an interpreter. It is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    /// Closing it ends the program.
    _stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Files to remove at the end.
    script: Option<PathBuf>,
    name: String,
}

impl Interpreter {
    /// What to call it.
    pub(crate) fn name(&self) -> String {
        match &self.root {
            Some(root) => format!("{} in {}", self.program.display(), root.display()),
            None => self.program.display().to_string(),
        }
    }

    fn exists(&self) -> bool {
        match &self.root {
            Some(root) => root.join(self.program.strip_prefix("/").unwrap()).exists(),
            None => self.program.exists(),
        }
    }

    /// Starts a program of `programs/`, with these arguments.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> Running {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/python/programs")
            .join(program);
        let (script, copy) = match &self.root {
            // Another root has no path to the source.
            Some(root) => {
                let name = format!("tmp/decnet-trace-{}-{program}", std::process::id());
                let copy = root.join(&name);
                fs::copy(&source, &copy).unwrap();
                (PathBuf::from("/").join(name), Some(copy))
            }
            None => (source, None),
        };
        let mut arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
        arguments.insert(0, script.into());
        let mut running = self.start_with(&arguments);
        running.script = copy;
        running
    }

    /// Starts the interpreter with these arguments.
    pub(crate) fn start_with(&self, arguments: &[OsString]) -> Running {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let mut child = command
            .args(arguments)
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Running {
            _stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            script: None,
            name: self.name(),
        }
    }
}

impl Running {
    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The interpreter that it runs on.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The next line that it prints, as JSON.
    pub(crate) fn json(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{}: {error}: {line:?}", self.name))
    }

    /// Inspects it until it has started.
    pub(crate) fn inspect(&self) -> Inspection {
        let mut inspector = Inspector::new();
        let start = Instant::now();
        for attempt in 0.. {
            let inspection = inspector.inspect(self.pid());
            match (&inspection, retry_after(attempt)) {
                (Inspection::Starting(_), Some(wait))
                    if start.elapsed() < Duration::from_secs(20) =>
                {
                    std::thread::sleep(wait);
                }
                _ => return inspection,
            }
        }
        unreachable!("the attempts do not end")
    }

    /// The same, of a process that is supported.
    pub(crate) fn process(&self) -> PyProcess {
        match self.inspect() {
            Inspection::Python(process) => *process,
            other => panic!("{}: {other:?}", self.name),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(script) = &self.script {
            let _ = fs::remove_file(script);
        }
    }
}

fn home() -> PathBuf {
    PathBuf::from(env::var_os("HOME").unwrap_or_default())
}

/// pyenv's CPython of that series, if it has one.
pub(crate) fn pyenv(series: &str) -> Option<Interpreter> {
    let root = env::var_os("PYENV_ROOT").map_or_else(|| home().join(".pyenv"), PathBuf::from);
    let versions = fs::read_dir(root.join("versions")).ok()?;
    let prefix = format!("{series}.");
    let version = versions.flatten().find(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix))
    })?;
    // Not the link `python`: its target is what the process maps.
    let program = version.path().join("bin").join(format!("python{series}"));
    Some(Interpreter {
        program,
        root: None,
    })
    .filter(Interpreter::exists)
}

/// That program of the tree of Debian unstable, where this process may chroot.
pub(crate) fn debian(name: &str) -> Option<Interpreter> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let tree = xtask::pylayout::debian_tree().ok()?;
    let program = PathBuf::from("/usr/bin").join(name);
    Some(Interpreter {
        program,
        root: Some(tree),
    })
    .filter(Interpreter::exists)
}

/// The system's own CPython, which distributions strip.
fn system() -> Option<Interpreter> {
    let program = fs::canonicalize("/usr/bin/python3").ok()?;
    Some(Interpreter {
        program,
        root: None,
    })
}

/// Every supported CPython at hand.
pub(crate) fn all() -> Vec<Interpreter> {
    let mut found: Vec<Interpreter> = Vec::new();
    for minor in MINORS {
        let series = format!("3.{minor}");
        match pyenv(&series).or_else(|| debian(&format!("python{series}"))) {
            Some(interpreter) => found.push(interpreter),
            None => eprintln!("SKIPPED: CPython {series}: none at hand"),
        }
    }
    found.extend(system());
    found
}
