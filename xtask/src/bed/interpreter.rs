//! The CPythons at hand, and programs that run on them: pyenv's, the system's, those of the tree of Debian
//! unstable, and one that is no longer supported.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt::{Apt, DEBIAN_KEYS},
    command::say,
    paths, pylayout,
};

/// The minor versions of CPython 3 that decnet-trace supports.
pub const MINORS: std::ops::RangeInclusive<u32> = 8..=15;

/// An interpreter.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// The program, as it is called in [`Self::root`].
    pub program: PathBuf,
    /// The root folder that it runs in, where that is not this process's own.
    root: Option<PathBuf>,
    /// Where its standard library is, where it does not find that by itself (`PYTHONHOME`).
    home: Option<PathBuf>,
}

/// A program at work on an interpreter. It is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    /// Its process.
    pub child: Child,
    /// Its standard input.
    pub stdin: ChildStdin,
    /// Its standard output.
    pub stdout: BufReader<ChildStdout>,
    /// A copy of the script in another root.
    copy: Option<PathBuf>,
}

impl Interpreter {
    /// The one at this path.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            root: None,
            home: None,
        }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match &self.root {
            Some(root) => format!("{} in {}", self.program.display(), root.display()),
            None => self.program.display().to_string(),
        }
    }

    fn exists(&self) -> bool {
        match &self.root {
            Some(root) => root
                .join(self.program.strip_prefix("/").unwrap_or(&self.program))
                .exists(),
            None => self.program.exists(),
        }
    }

    /// Starts it with these arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, arguments: &[impl AsRef<OsStr>]) -> Result<Program> {
        self.spawn(arguments, None)
    }

    /// Starts a script with these arguments, wherever the script lies.
    ///
    /// # Errors
    /// It cannot be started, or not be copied to the root that the interpreter runs in.
    pub fn run(&self, script: &Path, arguments: &[&str]) -> Result<Program> {
        let Some(root) = &self.root else {
            let all: Vec<_> = [script.as_os_str()]
                .into_iter()
                .chain(arguments.iter().map(OsStr::new))
                .collect();
            return self.spawn(&all, None);
        };
        // Another root has no path to the script.
        let name = script.file_name().unwrap_or_default().to_string_lossy();
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let inner = format!("tmp/decnet-trace-{}-{number}-{name}", std::process::id());
        let copy = root.join(&inner);
        fs::copy(script, &copy).with_context(|| format!("cannot make {}", copy.display()))?;
        let inner = format!("/{inner}");
        let all: Vec<_> = [inner.as_str()]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.spawn(&all, Some(copy))
    }

    fn spawn(&self, arguments: &[impl AsRef<OsStr>], copy: Option<PathBuf>) -> Result<Program> {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if let Some(home) = &self.home {
            command.env("PYTHONHOME", home);
        }
        let mut child = command
            .args(arguments)
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name()))?;
        let stdin = child.stdin.take().context("no pipe to its input")?;
        let stdout = child.stdout.take().context("no pipe from its output")?;
        Ok(Program {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            copy,
        })
    }
}

impl Program {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints, without its end.
    ///
    /// # Errors
    /// It cannot be read, or there is none.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.stdout.read_line(&mut line)? > 0,
            "the program has nothing more to say"
        );
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(copy) = &self.copy {
            let _ = fs::remove_file(copy);
        }
    }
}

/// pyenv's CPython of a series, like `3.12`.
pub fn pyenv(series: &str) -> Option<Interpreter> {
    let root = match env::var_os("PYENV_ROOT") {
        Some(root) => PathBuf::from(root),
        None => Path::new(&env::var_os("HOME")?).join(".pyenv"),
    };
    let prefix = format!("{series}.");
    let version = fs::read_dir(root.join("versions"))
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    // Not the link `python`: its target is what the process maps.
    let program = version.path().join("bin").join(format!("python{series}"));
    Some(Interpreter::at(program)).filter(Interpreter::exists)
}

/// That program of the tree of Debian unstable ([`pylayout::debian_tree`]), where this process may chroot.
pub fn debian(name: &str) -> Option<Interpreter> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let tree = pylayout::debian_tree().ok()?;
    Some(Interpreter {
        root: Some(tree),
        ..Interpreter::at(Path::new("/usr/bin").join(name))
    })
    .filter(Interpreter::exists)
}

/// The system's own CPython, which distributions strip.
pub fn system() -> Option<Interpreter> {
    Some(Interpreter::at(fs::canonicalize("/usr/bin/python3").ok()?))
}

/// Every supported CPython at hand, the system's last. Says which are not.
pub fn all() -> Vec<Interpreter> {
    let mut found = Vec::new();
    for minor in MINORS {
        let series = format!("3.{minor}");
        match pyenv(&series).or_else(|| debian(&format!("python{series}"))) {
            Some(interpreter) => found.push(interpreter),
            None => println!("SKIPPED: CPython {series}: none at hand"),
        }
    }
    found.extend(system());
    found
}

/// A CPython that is no longer supported: pyenv's, or, of 2.7, that of Debian 11, fetched once a machine.
///
/// # Errors
/// pyenv has none of that series, and it cannot be fetched.
pub fn old(series: &str) -> Result<Interpreter> {
    if let Some(interpreter) = pyenv(series) {
        return Ok(interpreter);
    }
    if series != "2.7" {
        bail!("pyenv has none, and no release of Debian that is still served has one");
    }
    let cache = paths::cache()?.join("python-bullseye");
    let tree = cache.join("tree");
    let found = Interpreter {
        home: Some(tree.join("usr")),
        ..Interpreter::at(tree.join("usr/bin/python2.7"))
    };
    let marker = cache.join("complete");
    let _lock = paths::lock("python-bullseye")?;
    if !marker.exists() {
        say("fetching Debian 11's CPython 2.7");
        fs::create_dir_all(&cache)?;
        let mirror = "http://deb.debian.org/debian";
        let apt = Apt::new(&cache, mirror, "bullseye", Path::new(DEBIAN_KEYS))?;
        for package in ["python2.7-minimal", "libpython2.7-minimal"] {
            apt.unpack(package, &tree)?;
        }
        fs::write(&marker, "")?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A program runs on the system's interpreter, answers, and is gone when it is dropped.
    #[test]
    fn runs() {
        let Some(python) = system() else {
            println!("SKIPPED: there is no /usr/bin/python3");
            return;
        };
        let script = "import sys; print(sys.stdin.readline().upper()); sys.stdin.read()";
        let mut program = python.start(&["-uc", script]).unwrap();
        std::io::Write::write_all(&mut program.stdin, b"here\n").unwrap();
        assert_eq!(program.line().unwrap(), "HERE");
        let proc = PathBuf::from(format!("/proc/{}", program.pid()));
        assert!(proc.exists());
        drop(program);
        assert!(!proc.exists());
    }

    /// A series that is nowhere is said to be so.
    #[test]
    fn none() {
        assert!(pyenv("9.9").is_none());
        assert!(old("9.9").unwrap_err().to_string().contains("pyenv"));
    }
}
