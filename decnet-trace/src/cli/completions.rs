//! `decnet-trace completions` and `decnet-trace man`: made from the command line's own definition.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use crate::error::{Error, Exit, Result};

/// Print completions for a shell.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: decnet-trace completions bash > /usr/share/bash-completion/completions/decnet-trace"
)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Print the manual page, or write one for each verb.
#[derive(Args, Debug)]
#[command(after_help = "Example: decnet-trace man | man -l -")]
pub(super) struct ManArgs {
    /// Write decnet-trace.1 and a page for each verb into this folder instead.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit> {
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "decnet-trace",
        &mut io::stdout(),
    );
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit> {
    let command = Cli::command();
    match &args.out {
        None => clap_mangen::Man::new(command)
            .render(&mut io::stdout())
            .map_err(|error| Error::failed(format!("cannot write the manual page: {error}")))?,
        Some(dir) => write_all(dir, command).map_err(|error| {
            Error::failed(format!(
                "cannot write manual pages into {}: {error}",
                dir.display()
            ))
        })?,
    }
    Ok(Exit::Done)
}

fn write_all(dir: &Path, command: clap::Command) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}
