//! A child process that ends with its owner, with its output in a file.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, set_parent_process_death_signal, waitid,
};

/// How long a process group has to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// A process in a group of its own. When it is dropped, the whole group is ended: SIGTERM, and
/// SIGKILL after some seconds. When the *thread* that started it ends first, it gets SIGTERM too (as
/// `PR_SET_PDEATHSIG` has it), so keep it in the thread that started it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in the file `log`.
    ///
    /// # Errors
    /// The log cannot be created, or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cannot share the log")?)
            .stderr(file)
            .process_group(0);
        // SAFETY: between fork and exec, the closure makes one system call; it neither allocates nor
        // takes a lock.
        unsafe {
            command.pre_exec(|| {
                set_parent_process_death_signal(Some(Signal::TERM))?;
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything that it wrote so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn output(&self) -> Result<String> {
        let text =
            fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until `ready` finds what it looks for in the output, and returns that.
    ///
    /// # Errors
    /// The process ends before, or `limit` passes; the error has the last line of its output.
    pub fn wait_for<T>(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut file =
            File::open(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let (mut text, mut bytes) = (String::new(), Vec::new());
        loop {
            // Before the output is read: what it wrote before it ended is then seen.
            let ended = self.try_wait()?;
            file.seek(SeekFrom::Start(bytes.len() as u64))?;
            if file.read_to_end(&mut bytes)? > 0 {
                text = String::from_utf8_lossy(&bytes).into_owned();
            }
            if let Some(found) = ready(&text) {
                return Ok(found);
            }
            let last = text.lines().rfind(|line| !line.trim().is_empty());
            let last = last.unwrap_or("it wrote nothing");
            if let Some(status) = ended {
                bail!("it ended too early ({status}): {last}");
            }
            if Instant::now() > deadline {
                bail!("not ready after {} s: {last}", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        // It stays a zombie until the drop: nobody else gets its pid, or that as a group's, before.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(Pid::from_child(&self.child)), options)
            .context("cannot wait for a child")?;
        Ok(status.map(|status| {
            let code = status.exit_status().unwrap_or_default() << 8;
            ExitStatus::from_raw(status.terminating_signal().unwrap_or(code))
        }))
    }

    /// Waits for its end, at most `limit`.
    ///
    /// # Errors
    /// It has not ended by then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "process {} has not ended after {} s",
                    self.pid(),
                    limit.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to the process and its group. That it is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let _ = self.wait(GRACE);
        // Also for what is left of the group when its first process has ended.
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A folder of its own for what a process writes; it is removed with all in it when it is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty folder with a short name: a Unix socket's path may have 107 bytes.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = env::temp_dir().join(format!("decnet-bed-{}-{n}", std::process::id()));
        // One of an earlier process with the same pid, which was killed.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn shell(dir: &tempfile::TempDir, script: &str) -> Process {
        let mut sh = Command::new("sh");
        Process::start(sh.args(["-c", script]), &dir.path().join("log")).unwrap()
    }

    /// A child's own children end with it, even those that ignore SIGTERM.
    #[test]
    fn drop_ends_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(&dir, "trap '' TERM; sleep 60 & echo child $!; wait; wait");
        let child: u32 = process
            .wait_for(Duration::from_secs(10), |text| {
                text.strip_prefix("child ")?.trim_end().parse().ok()
            })
            .unwrap();
        let proc = PathBuf::from(format!("/proc/{child}/stat"));
        assert!(proc.exists());
        drop(process);
        // Its new parent may take a moment to wait for it.
        let gone = || match fs::read_to_string(&proc) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(
                Instant::now() < deadline,
                "the child's child is still there"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The exit code, or the signal that ended it, is told right, and again when asked again.
    #[test]
    fn end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(10);
        let mut process = shell(&dir, "exit 7");
        assert_eq!(process.wait(limit).unwrap().code(), Some(7));
        assert_eq!(process.wait(limit).unwrap().code(), Some(7));
        let mut process = shell(&dir, "kill -9 $$");
        assert_eq!(process.wait(limit).unwrap().signal(), Some(9));
    }

    /// A process that dies instead of getting ready is reported with its own last words.
    #[test]
    fn early_end_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell(&dir, "echo no such module; exit 3");
        let error = process
            .wait_for(Duration::from_secs(10), |_| None::<()>)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such module"),
            "{error}"
        );
    }
}
