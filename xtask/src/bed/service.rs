//! A real uvicorn with the bed's application, or another one.

use std::{
    ffi::OsString, fmt, net::SocketAddr, os::unix::net::UnixStream, path::PathBuf,
    process::Command, time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::{
    load::Target,
    process::{Folder, Process},
    venv::Venv,
};
use crate::paths;

/// How long a server may take until it listens; a loaded machine is slow.
const START: Duration = Duration::from_secs(60);

/// The event loop (uvicorn's `--loop`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loop {
    /// uvloop, which is written in Cython over libuv.
    #[default]
    Uvloop,
    /// asyncio's own.
    Asyncio,
}

/// The HTTP parser (uvicorn's `--http`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http {
    /// httptools, which is written in C.
    #[default]
    Httptools,
    /// h11, in Python.
    H11,
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uvloop => "uvloop",
            Self::Asyncio => "asyncio",
        })
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Httptools => "httptools",
            Self::H11 => "h11",
        })
    }
}

/// What to start; see [`Service::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    event_loop: Loop,
    http: Http,
    workers: u32,
    app: PathBuf,
    venv: Option<Venv>,
    uds: bool,
    host: String,
    port: u16,
    network: Option<String>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Builder {
    /// The event loop; by default uvloop.
    pub fn event_loop(mut self, event_loop: Loop) -> Self {
        self.event_loop = event_loop;
        self
    }

    /// The HTTP parser; by default httptools.
    pub fn http(mut self, http: Http) -> Self {
        self.http = http;
        self
    }

    /// Processes that serve, by default 1, which serves itself; more run under a supervisor.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// The file with the application, which is its global `app`; by default the bed's own.
    pub fn app(mut self, file: impl Into<PathBuf>) -> Self {
        self.app = file.into();
        self
    }

    /// The environment it runs in; by default [`Venv::web`].
    pub fn venv(mut self, venv: &Venv) -> Self {
        self.venv = Some(venv.clone());
        self
    }

    /// Listens on a Unix socket instead of TCP.
    pub fn uds(mut self) -> Self {
        self.uds = true;
        self
    }

    /// Listens on this address instead of IPv4's loopback.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    /// Listens on this port instead of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Runs in this network namespace, by its name (`ip netns`).
    pub fn network(mut self, name: &str) -> Self {
        self.network = Some(name.to_owned());
        self
    }

    /// One more argument for uvicorn.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it, and waits until all of its workers serve.
    ///
    /// # Errors
    /// The environment cannot be made, or the server does not come up; the line has its last words.
    pub fn start(self) -> Result<Service> {
        let venv = match &self.venv {
            Some(venv) => venv.clone(),
            None => Venv::web()?,
        };
        let (Some(app_dir), Some(module)) = (self.app.parent(), self.app.file_stem()) else {
            bail!("{} is not a Python file", self.app.display());
        };
        let mut app = module.to_owned();
        app.push(":app");
        let dir = Folder::new()?;
        let program = venv.program("uvicorn");
        let mut uvicorn = match &self.network {
            // It becomes what it executes: the pid is the same.
            Some(name) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", name]).arg(program);
                ip
            }
            None => Command::new(program),
        };
        uvicorn
            .arg(app)
            .arg("--app-dir")
            .arg(app_dir)
            .args(["--loop", &self.event_loop.to_string()])
            .args(["--http", &self.http.to_string()])
            .args(["--log-level", "info", "--no-access-log", "--no-use-colors"])
            .args(&self.args)
            .current_dir(dir.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1")
            // What the caller's own environment says about Python is not meant for it.
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME")
            .env_remove("WEB_CONCURRENCY")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        let socket = dir.path().join("socket");
        if self.uds {
            uvicorn.arg("--uds").arg(&socket);
        } else {
            // The kernel picks a free port, and uvicorn says which.
            uvicorn.args(["--host", &self.host, "--port", &self.port.to_string()]);
        }
        if self.workers > 1 {
            uvicorn.args(["--workers", &self.workers.to_string()]);
        }
        let mut process = Process::start(&mut uvicorn, &dir.path().join("log"))?;
        let ready = process
            .wait_for(START, |log| Ready::read(log, self.workers))
            .context("uvicorn does not start")?;
        let target = if self.uds {
            UnixStream::connect(&socket)
                .with_context(|| format!("nothing listens on {}", socket.display()))?;
            Target::Uds(socket)
        } else {
            Target::Tcp(ready.addr.context("uvicorn said no address")?)
        };
        Ok(Service {
            pid: process.pid(),
            workers: ready.pids,
            target,
            process,
            _dir: dir,
        })
    }
}

/// A running uvicorn; it ends when this is dropped. See [`Process`] for the thread to keep it in.
#[derive(Debug)]
pub struct Service {
    /// The process that was started: the server, or the supervisor of several workers.
    pub pid: u32,
    /// The processes that serve; `[pid]` where there is but one worker.
    pub workers: Vec<u32>,
    /// Where it listens.
    pub target: Target,
    process: Process,
    // After the process: the folder goes when nothing writes there any more.
    _dir: Folder,
}

impl Service {
    /// One worker of the bed's application on uvloop and httptools, on a free port of the loopback
    /// address; change from there.
    pub fn builder() -> Builder {
        Builder {
            event_loop: Loop::default(),
            http: Http::default(),
            workers: 1,
            app: app(),
            venv: None,
            uds: false,
            host: "127.0.0.1".to_owned(),
            port: 0,
            network: None,
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Where it listens.
    ///
    /// # Panics
    /// It listens on a Unix socket.
    pub fn addr(&self) -> SocketAddr {
        match &self.target {
            Target::Tcp(addr) => *addr,
            Target::Uds(path) => panic!("it listens on {}", path.display()),
        }
    }

    /// What it wrote so far (its log, and tracebacks).
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn output(&self) -> Result<String> {
        self.process.output()
    }

    /// Sends a signal to the process and its workers.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }
}

/// The bed's own application.
pub fn app() -> PathBuf {
    paths::workspace().join("xtask/assets/app.py")
}

/// What uvicorn's log says once it serves.
struct Ready {
    addr: Option<SocketAddr>,
    pids: Vec<u32>,
}

impl Ready {
    fn read(log: &str, workers: u32) -> Option<Self> {
        let after = |start: &str| -> Vec<&str> {
            log.lines()
                .filter_map(|line| Some(line.split_once(start)?.1))
                .collect()
        };
        let pids: Vec<u32> = after("Started server process [")
            .iter()
            .filter_map(|rest| rest.split(']').next()?.parse().ok())
            .collect();
        // An application without lifespan support is ready as soon as it says so.
        let started = after("Application startup complete.").len()
            + after("ASGI 'lifespan' protocol appears unsupported.").len();
        let running = after("Uvicorn running on ").first().copied()?;
        let workers = workers as usize;
        (pids.len() >= workers && started >= workers).then(|| Self {
            addr: running
                .strip_prefix("http://")
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok()),
            pids,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Readiness counts workers: a supervisor with one of two workers up is not ready yet.
    #[test]
    fn ready_when_all_workers_are() {
        let half = "INFO:     Uvicorn running on http://127.0.0.1:40001 (Press CTRL+C to quit)\n\
                    INFO:     Started parent process [10]\n\
                    INFO:     Started server process [12]\n\
                    INFO:     Waiting for application startup.\n\
                    INFO:     Application startup complete.\n";
        assert!(Ready::read(half, 2).is_none());
        let ready = Ready::read(half, 1).unwrap();
        assert_eq!(ready.addr, Some("127.0.0.1:40001".parse().unwrap()));
        let whole = format!(
            "{half}INFO:     Started server process [13]\nINFO:     Application startup complete.\n"
        );
        assert_eq!(Ready::read(&whole, 2).unwrap().pids, [12, 13]);
    }
}
