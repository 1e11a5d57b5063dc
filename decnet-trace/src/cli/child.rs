//! A command that is started to be recorded: held before its first instruction until recording has
//! begun, and ended with it.

use std::{
    ffi::OsString,
    io::{self, PipeWriter, Read as _, Write as _},
    os::fd::AsRawFd as _,
    os::unix::process::CommandExt as _,
    process::{self, Child, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// How long a command may take to end by itself after Ctrl-C, which it got too.
const AFTER_INTERRUPT: Duration = Duration::from_secs(2);

/// How long it may take after SIGTERM, before SIGKILL.
const AFTER_TERMINATE: Duration = Duration::from_secs(5);

/// How often is looked whether it has ended.
const TICK: Duration = Duration::from_millis(20);

/// Whose the terminal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    /// The command's and ours: it inherits standard input, output and error.
    Shared,
    /// Ours alone: it reads and writes nothing.
    Ours,
}

/// A process that will execute the command once it is told to; it ends if it never is.
pub(super) struct Held {
    pid: u32,
    go: PipeWriter,
    starting: JoinHandle<io::Result<Child>>,
    name: String,
}

/// A command at work. It stays in the foreground with us: Ctrl-C reaches both.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Held {
    /// Makes the process, which waits.
    ///
    /// # Errors
    ///
    /// When the system has no process to give.
    pub(super) fn new(arguments: &[OsString], terminal: Terminal) -> Result<Self> {
        let Some((program, arguments)) = arguments.split_first() else {
            return Err(Error::usage("there is no command after --; name one"));
        };
        let name = program.to_string_lossy().into_owned();
        let failed = |error: io::Error| Error::failed(format!("cannot start {name}: {error}"));
        let (mut told, tell) = io::pipe().map_err(failed)?;
        let (held, go) = io::pipe().map_err(failed)?;
        let go_fd = go.as_raw_fd();
        let mut command = process::Command::new(program);
        command.args(arguments);
        if terminal == Terminal::Ours {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
        }
        // SAFETY: between fork and exec, the closure makes system calls only: it neither allocates nor
        // takes a lock. The descriptor that it closes is the child's own copy, which nothing else there
        // uses; open, it would keep the read from ever seeing our end.
        unsafe {
            command.pre_exec(move || {
                libc::close(go_fd);
                (&tell).write_all(&process::id().to_ne_bytes())?;
                (&held)
                    .read_exact(&mut [0])
                    .map_err(|_| io::Error::from_raw_os_error(libc::ECANCELED))
            });
        }
        // Spawning returns when the program is executed, or that failed.
        let starting = thread::Builder::new()
            .name("start".into())
            .spawn(move || command.spawn())
            .map_err(failed)?;
        let mut pid = [0; 4];
        if told.read_exact(&mut pid).is_err() {
            // There was no child to say it.
            let error = match starting.join() {
                Ok(Err(error)) => error,
                _ => io::ErrorKind::Other.into(),
            };
            return Err(failed(error));
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            go,
            starting,
            name,
        })
    }

    /// Its process.
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it execute the command.
    ///
    /// # Errors
    ///
    /// When it cannot.
    pub(super) fn go(mut self) -> Result<Running> {
        let told = self.go.write_all(&[1]);
        drop(self.go);
        let child = match self.starting.join() {
            Ok(child) => told.and(child),
            Err(_) => Err(io::ErrorKind::Other.into()),
        };
        match child {
            Ok(child) => Ok(Running {
                child,
                name: self.name,
            }),
            Err(error) => Err(Error::usage(format!(
                "cannot start {}: {error}; check its name and its permissions",
                self.name
            ))),
        }
    }
}

impl Running {
    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, if it has not ended by itself; how it ended. One that was interrupted has a moment for it
    /// before it is told to terminate, and then a moment before it is killed.
    ///
    /// # Errors
    ///
    /// When the system does not say how.
    pub(super) fn end(&mut self, interrupted: bool) -> Result<ExitStatus> {
        let failed = |error| Error::failed(format!("cannot wait for a command: {error}"));
        if let Some(status) = self.child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if interrupted && let Some(status) = self.wait(AFTER_INTERRUPT).map_err(failed)? {
            return Ok(status);
        }
        // SAFETY: takes numbers; nobody has waited for the child, so that the pid is its own still.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        if let Some(status) = self.wait(AFTER_TERMINATE).map_err(failed)? {
            return Ok(status);
        }
        self.child.kill().map_err(failed)?;
        self.child.wait().map_err(failed)
    }

    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() >= deadline => return Ok(None),
                None => thread::sleep(TICK),
            }
        }
    }
}

impl Drop for Running {
    /// Also where recording fails: the command was started for it alone.
    fn drop(&mut self) {
        let _ = self.end(false);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(Into::into).collect()
    }

    /// The process that waits is the one that runs the command, and its exit status is the command's.
    #[test]
    fn holds_and_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pid");
        let script = format!("echo $$ > {}; exit 7", out.display());
        let held = Held::new(&command(&["sh", "-c", &script]), Terminal::Shared).unwrap();
        let pid = held.pid();
        thread::sleep(Duration::from_millis(100));
        assert!(!out.exists());
        let mut running = held.go().unwrap();
        while !running.has_ended() {
            thread::sleep(TICK);
        }
        assert_eq!(running.end(false).unwrap().code(), Some(7));
        let told: u32 = std::fs::read_to_string(out)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(told, pid);
    }

    /// A command that was never let go has not run, and its process ends.
    #[test]
    fn ends_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("ran");
        let held = Held::new(&command(&["touch", out.to_str().unwrap()]), Terminal::Ours).unwrap();
        let pid = held.pid();
        let starting = {
            let Held { starting, go, .. } = held;
            drop(go);
            starting
        };
        assert!(starting.join().unwrap().is_err());
        assert!(!out.exists());
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    /// What is no command is said to be none, by name.
    #[test]
    fn names_what_cannot_start() {
        let held = Held::new(&command(&["/no/such/program"]), Terminal::Shared).unwrap();
        let error = held.go().err().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("cannot start /no/such/program: No such file"),
            "{error}"
        );
    }

    /// A command that does not end by itself is ended.
    #[test]
    fn ends_what_goes_on() {
        use std::os::unix::process::ExitStatusExt as _;
        let held = Held::new(&command(&["sleep", "60"]), Terminal::Ours).unwrap();
        let mut running = held.go().unwrap();
        assert!(!running.has_ended());
        assert_eq!(running.end(false).unwrap().signal(), Some(libc::SIGTERM));
    }
}
