//! The agent, and other tools that look at a service from outside.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::machine::cpu_time;
use crate::bed::process::{Folder, Process};

/// How long the agent may take until it is attached.
const START: Duration = Duration::from_secs(60);

/// How long it may take to end.
const END: Duration = Duration::from_secs(30);

/// A tool at work on a service; it ends when this is dropped.
#[derive(Debug)]
pub struct Tool {
    process: Process,
    /// How long it took until it was at work.
    pub start: Duration,
    end: Signal,
    folder: Folder,
}

impl Tool {
    /// Starts the agent with these arguments, and waits until its hooks are attached. `{}` in an
    /// argument stands for a folder of its own.
    ///
    /// # Errors
    /// It does not start; the error has its last words.
    pub fn agent(program: &Path, args: &[String]) -> Result<Self> {
        let mut command = Command::new(program);
        // Its own settings are not meant for it.
        for name in [
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "DECNET_OTEL_ENDPOINT",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        // `record` says no more than its report otherwise.
        command.env("DECNET_TRACE_LOG", "info");
        Self::start(command, args, Signal::TERM, |log| {
            log.contains("attached: ").then_some(())
        })
        .context("the agent does not start")
    }

    /// Starts `py-spy record` on a process.
    ///
    /// # Errors
    /// It does not start.
    pub fn py_spy(program: &Path, pid: u32, rate: u32) -> Result<Self> {
        let args = [
            "record",
            "--rate",
            &rate.to_string(),
            "--duration",
            "100000",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain(["--pid".to_owned(), pid.to_string()])
        .chain(["--output".to_owned(), "{}/py-spy.svg".to_owned()])
        .collect::<Vec<_>>();
        Self::start(Command::new(program), &args, Signal::INT, |log| {
            log.contains("Sampling process").then_some(())
        })
        .context("py-spy does not start")
    }

    fn start(
        mut command: Command,
        args: &[String],
        end: Signal,
        ready: impl FnMut(&str) -> Option<()>,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let within = folder.path().to_string_lossy().into_owned();
        command.args(
            args.iter()
                .map(|arg| OsString::from(arg.replace("{}", &within))),
        );
        let begun = Instant::now();
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        process.wait_for(START, ready)?;
        Ok(Self {
            process,
            start: begun.elapsed(),
            end,
            folder,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The folder that `{}` stood for.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The CPU time that it took until now.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }

    /// Waits until its log says something.
    ///
    /// # Errors
    /// It does not in that time.
    pub fn says(&mut self, what: &str, limit: Duration) -> Result<()> {
        self.process
            .wait_for(limit, |log| log.contains(what).then_some(()))
    }

    /// Asks it to end, waits for that, and gives its output.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<String> {
        self.process.signal(self.end);
        self.process.wait(END)?;
        self.process.output()
    }
}
