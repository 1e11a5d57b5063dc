//! `cargo xtask setup`: gets what the eBPF side is built with.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    command::say,
    compiler::{self, Compiler},
    linker,
};

/// What builds the eBPF crate.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler, which has the source of `core`.
    pub compiler: Compiler,
    /// bpf-linker.
    pub linker: PathBuf,
}

/// Finds or makes everything that the eBPF build needs; says what it does only when it does something.
///
/// # Errors
/// Something is missing and cannot be had here; the line says what it would need.
pub fn ensure() -> Result<Toolchain> {
    let compiler = compiler::ensure()?;
    let linker = linker::ensure(&compiler)?;
    Ok(Toolchain { compiler, linker })
}

/// The verb: [`ensure`], and a line for each thing that is there.
///
/// # Errors
/// As [`ensure`].
pub fn run() -> Result<()> {
    let toolchain = ensure()?;
    say(format!("compiler: {}", toolchain.compiler.describe()));
    say(format!("linker: {}", toolchain.linker.display()));
    Ok(())
}
