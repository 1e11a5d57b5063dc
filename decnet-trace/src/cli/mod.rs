//! The command line: one file per verb.

mod alive;
mod child;
mod completions;
mod config;
mod doctor;
mod dump;
mod ps;
mod record;
mod redact;
mod reload;
mod report;
mod requests;
mod run;
mod sampling;
mod store;
mod top;
mod wait;

use clap::{Parser, Subcommand};

use crate::error::{Exit, Result};

/// Traces running Python services from outside: requests with their calls, and flamegraphs.
///
/// Nothing in the service changes and nothing is written to it.
#[derive(Debug, Parser)]
#[command(
    name = "decnet-trace",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Example: sudo decnet-trace run --otlp-endpoint http://127.0.0.1:4317\n\n\
        Exit codes: 0 done, 1 failed at work, 2 usage or configuration, 3 this kernel or these \
        privileges can't, 4 no such target."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    Record(record::RecordArgs),
    Top(top::TopArgs),
    Dump(dump::DumpArgs),
    Requests(requests::RequestsArgs),
    Ps(ps::PsArgs),
    Doctor(doctor::DoctorArgs),
    Config(config::ConfigArgs),
    Redact(redact::RedactArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// Whatever ends the command before it is done.
    pub fn run(self) -> Result<Exit> {
        match self.verb {
            Verb::Run(args) => run::run(&args),
            Verb::Record(args) => record::run(args),
            Verb::Top(args) => top::run(args),
            Verb::Dump(args) => dump::run(&args),
            Verb::Requests(args) => requests::run(&args),
            Verb::Ps(args) => ps::run(&args),
            Verb::Doctor(args) => doctor::run(&args),
            Verb::Config(args) => config::run(&args),
            Verb::Redact(args) => redact::run(&args),
            Verb::Completions(args) => completions::completions(&args),
            Verb::Man(args) => completions::man(&args),
        }
    }
}
