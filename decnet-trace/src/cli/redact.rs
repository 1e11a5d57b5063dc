//! `decnet-trace redact`: what a set of rules makes of a sample.

use std::{
    io::{self, BufRead as _, Write as _},
    path::PathBuf,
};

use clap::Args;

use crate::{
    config::Loader,
    error::{Error, Exit, Result},
    policy::Redactor,
};

/// The longest line that is read, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// Show what redaction leaves of a sample: a line in, a line out.
///
/// Reads URLs and paths from the standard input, and prints them as they would leave the agent.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: awk '{print $7}' access.log | decnet-trace redact --config new.toml"
)]
pub(super) struct RedactArgs {
    /// The file with the rules [default: /etc/decnet-trace/config.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &RedactArgs) -> Result<Exit> {
    let loader = Loader {
        file: args.config.clone(),
        flags: Vec::new(),
    };
    let mut loaded = loader.load(|name| std::env::var(name).ok())?;
    let policy = loaded.settings.policy(&mut loaded.warnings)?;
    let redactor = Redactor::new(policy);
    let failed = |error: io::Error| Error::failed(format!("cannot read or write: {error}"));
    let mut input = io::stdin().lock();
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut input, LINE_MAX)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if read == 0 {
            return out.flush().map(|()| Exit::Done).map_err(failed);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        writeln!(out, "{}", redactor.url(text)).map_err(failed)?;
    }
}
