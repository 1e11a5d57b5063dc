//! `cargo xtask`: see `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    build_ebpf::{self, Flavour},
    setup,
};

/// Builds, runs and tests decnet-trace.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:\n  \
        cargo xtask setup        get what the eBPF side is built with\n  \
        cargo xtask build-ebpf   build the eBPF object"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Gets what the eBPF side is built with: a compiler with the source of `core`, and bpf-linker
    #[command(
        after_help = "Looks for a rustup toolchain with rust-src, then for Debian's rustc-web; \
        where there is neither, it adds rust-src with rustup, or else installs rustc-web, cargo-web \
        and rust-web-src with apt-get (as root).\nbpf-linker is built once a machine into \
        ~/.cache/decnet-trace ($XDG_CACHE_HOME is honoured).\n\nExample:\n  cargo xtask setup"
    )]
    Setup,
    /// Builds the eBPF object, target/decnet-trace.bpf.o
    #[command(after_help = "Examples:\n  \
        cargo xtask build-ebpf         what the next build of decnet-trace embeds\n  \
        cargo xtask build-ebpf --log   with the programs' log calls, target/decnet-trace-log.bpf.o")]
    BuildEbpf {
        /// Build with the programs' log calls in them, into target/decnet-trace-log.bpf.o
        #[arg(long)]
        log: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::BuildEbpf { log } => {
            build_ebpf::build(if log { Flavour::Log } else { Flavour::Plain }).map(drop)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
