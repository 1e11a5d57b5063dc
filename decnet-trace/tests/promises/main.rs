//! What decnet-trace promises beyond its spans: it only reads, leaves nothing behind, refuses in one
//! line, survives what happens to it, and finds the servers that there are.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod detached;
mod found;
mod read_only;
mod refusals;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../support/mod.rs"]
mod support;
mod survives;
mod verifier;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, ExitStatus},
    time::Duration,
};

use xtask::bed::process::{Folder, Process};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that ended: how, and everything that it said.
struct Ended {
    status: ExitStatus,
    output: String,
}

/// Runs a command to its end, in its own process group.
fn run_to_end(command: &mut Command) -> Ended {
    let folder = Folder::new().unwrap();
    let mut process = Process::start(command, &folder.path().join("log")).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    let output = process.output().unwrap();
    Ended { status, output }
}

/// `decnet-trace run ARGS`, free of the caller's own settings.
fn agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_decnet-trace"));
    command
        .args(["run", "--store", "off"])
        .args(args)
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .env_remove("DECNET_OTEL_ENDPOINT");
    command
}

/// Sends a GET on a connection of its own; the status.
fn get(addr: SocketAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: promises\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer[9..12].parse().unwrap()
}

/// A process that does nothing.
fn idle(folder: &Folder) -> Process {
    let mut sleep = Command::new("sleep");
    Process::start(sleep.arg("600"), &folder.path().join("idle")).unwrap()
}
