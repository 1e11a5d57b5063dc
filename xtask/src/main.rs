//! `cargo xtask`: see `cargo xtask --help`.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use xtask::{
    bench::{self, BenchArgs},
    build_ebpf::{self, Flavour},
    demo, pylayout, run, setup, test,
    vm::{self, VmArgs},
};

/// Builds, runs and tests decnet-trace.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:\n  \
        cargo xtask setup        get what the eBPF side is built with\n  \
        cargo xtask build-ebpf   build the eBPF object\n  \
        cargo xtask run --demo   see the agent at work on two sample services\n  \
        cargo xtask test         every check and test"
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
    /// Builds the eBPF object, target/objects/decnet-trace.bpf.o
    #[command(after_help = "Examples:\n  \
        cargo xtask build-ebpf         what the next build of decnet-trace embeds\n  \
        cargo xtask build-ebpf --log   with the programs' log calls, target/objects/decnet-trace-log.bpf.o")]
    BuildEbpf {
        /// Build with the programs' log calls in them, into target/objects/decnet-trace-log.bpf.o
        #[arg(long)]
        log: bool,
    },
    /// Builds both sides and runs the agent as root, or shows it at work
    #[command(after_help = "Examples:\n  \
        cargo xtask run -- --port 8000      run the agent on what listens there\n  \
        cargo xtask run --demo              trace two sample services for 20 s\n  \
        cargo xtask run --demo --duration 5\n  \
        cargo xtask run --demo -- --spans-file s.json")]
    Run {
        /// Start two sample FastAPI services, put load on them, and trace them
        #[arg(long)]
        demo: bool,
        /// How long the demo traces, in seconds
        #[arg(long, value_name = "SECS", default_value = "20", requires = "demo",
            value_parser = clap::value_parser!(u64).range(1..=86_400))]
        duration: u64,
        /// Arguments for `decnet-trace run`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Every check: formatting, lints, the eBPF object, the rootless and the end-to-end tests
    #[command(
        after_help = "Gets what it needs first. The end-to-end tests run as root (with sudo where \
        needed).\nA test that cannot run here says `SKIPPED: why` and counts as skipped. The last line \
        is\n`N passed, N failed, N skipped`.\n\nExamples:\n  \
        cargo xtask test\n  cargo xtask test --rootless   without the end-to-end tests"
    )]
    Test {
        /// Leave out the end-to-end tests, which need root
        #[arg(long)]
        rootless: bool,
    },
    /// Measures what the agent costs, on this machine
    #[command(
        after_help = "Runs as root. Windows with and without the agent alternate in one run; the noise \
        floor is measured the same way and printed first. docs/overhead.md says how to read the \
        tables.\n\nExamples:\n  \
        cargo xtask bench all                       everything; it says first how long that takes\n  \
        cargo xtask bench all --quick               the same in a few minutes, to see that it works\n  \
        cargo xtask bench overhead --scenario calls one route alone\n  \
        cargo xtask bench overhead --json new.json --compare old.json"
    )]
    Bench(#[command(flatten)] BenchArgs),
    /// Tries the agent on other kernels, in virtual machines
    #[command(
        after_help = "Boots distributions' own kernels in QEMU (with KVM where there is one; without, \
        each takes some minutes), runs the agent in them on a service that gets 100 requests, and \
        prints what it saw. Below 5.15 it must refuse. Kernels are fetched once into \
        ~/.cache/decnet-trace/kernels.\n\nExamples:\n  \
        cargo xtask vm             all of them\n  cargo xtask vm 5.15 6.12"
    )]
    Vm(#[command(flatten)] VmArgs),
    /// Writes the table of CPython's struct layouts from the headers of all CPythons at hand
    #[command(
        after_help = "Looks in pyenv's versions, in /usr/include, and in the tree of Debian's \
        unstable release in ~/.cache/decnet-trace/sid-python, which --debootstrap makes \
        (as root).\n\nExamples:\n  \
        cargo xtask pylayout                  write decnet-trace/src/python/layout_table.rs\n  \
        cargo xtask pylayout --check          compare it with the headers at hand\n  \
        cargo xtask pylayout --debootstrap    get CPython 3.14 and 3.15 first"
    )]
    Pylayout {
        /// Compare instead of writing
        #[arg(long)]
        check: bool,
        /// Unpack Debian unstable's CPython 3.14 and 3.15 first, unless that was done before
        #[arg(long)]
        debootstrap: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::BuildEbpf { log } => {
            build_ebpf::build(if log { Flavour::Log } else { Flavour::Plain }).map(drop)
        }
        Verb::Run {
            demo: true,
            duration,
            args,
        } => demo::run(Duration::from_secs(duration), &args),
        Verb::Run { args, .. } => match run::run(&args) {
            Err(why) => Err(why),
        },
        Verb::Test { rootless } => test::run(rootless),
        Verb::Vm(args) => vm::run(&args),
        Verb::Bench(args) => bench::run(&args).map(drop),
        Verb::Pylayout { check, debootstrap } => {
            if debootstrap {
                pylayout::make_debian_tree().and_then(|_| pylayout::run(check))
            } else {
                pylayout::run(check)
            }
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
