//! `decnet-trace config`: whether a configuration is right, and what is in effect.

use std::{io::Write as _, path::PathBuf};

use clap::{Args, Subcommand};

use crate::{
    config::{Loader, example},
    error::{Error, Exit, Result},
};

/// Check the configuration, or show what is in effect.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  decnet-trace config check --config new.toml\n  \
        decnet-trace config show --origin\n  \
        decnet-trace config show --example > /etc/decnet-trace/config.toml"
)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say what is wrong with the file and the environment, with the line and the column; exit code 2
    /// then.
    Check {
        /// The file [default: /etc/decnet-trace/config.toml, if it is there].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print what is in effect, secrets hidden.
    Show {
        /// The file [default: /etc/decnet-trace/config.toml, if it is there].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,

        /// Say where each value comes from.
        #[arg(long)]
        origin: bool,

        /// Print a file with every key, its default and what it means.
        #[arg(long, conflicts_with_all = ["config", "origin"])]
        example: bool,
    },
}

pub(super) fn run(args: &ConfigArgs) -> Result<Exit> {
    let load = |file: &Option<PathBuf>| {
        let loader = Loader {
            file: file.clone(),
            flags: Vec::new(),
        };
        loader.load(|name| std::env::var(name).ok())
    };
    match &args.what {
        What::Check { config } => {
            let mut loaded = load(config)?;
            let variable = |name: &str| std::env::var(name).ok();
            loaded.settings.check(&variable, &mut loaded.warnings)?;
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            print("the configuration is right\n")?;
        }
        What::Show { example: true, .. } => print(&example())?,
        What::Show { config, origin, .. } => print(&load(config)?.show(*origin))?,
    }
    Ok(Exit::Done)
}

fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::failed(format!("cannot print: {error}")))
}
