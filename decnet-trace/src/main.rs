//! The `decnet-trace` command: parse → run → exit code.

use std::process::ExitCode;

use clap::Parser as _;
use decnet_trace::cli::Cli;

fn main() -> ExitCode {
    // A pipe that closes ends the command quietly, as it does any Unix tool.
    // SAFETY: called first, before any thread; it restores the default disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("decnet-trace: {error}");
            error.exit().into()
        }
    }
}
