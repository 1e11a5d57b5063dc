//! `cargo xtask build-ebpf`: builds the eBPF crate into one object file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{say, shown},
    compiler::plain,
    paths,
    setup::{self, Toolchain},
};

/// Which object is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `decnet-trace.bpf.o`: what ships.
    Plain,
    /// `decnet-trace-log.bpf.o`: with aya-log's calls in it (the crate's feature `log`).
    Log,
}

impl Flavour {
    /// Where its object goes: a folder in the workspace's `target`, wherever cargo builds, for that is where
    /// decnet-trace's build script looks.
    pub fn object(self) -> PathBuf {
        paths::workspace().join("target/objects").join(match self {
            Self::Plain => "decnet-trace.bpf.o",
            Self::Log => "decnet-trace-log.bpf.o",
        })
    }
}

/// Gets the toolchain, builds the object and returns where it lies.
///
/// # Errors
/// The toolchain cannot be had, or the crate does not compile.
pub fn build(flavour: Flavour) -> Result<PathBuf> {
    build_with(&setup::ensure()?, flavour)
}

/// As [`build`], with a toolchain already at hand.
///
/// # Errors
/// The crate does not compile.
pub fn build_with(toolchain: &Toolchain, flavour: Flavour) -> Result<PathBuf> {
    if !shown(&mut cargo(toolchain, "build", flavour, &[]))?.success() {
        bail!("the eBPF crate does not build (see above)");
    }
    // The file is written anew only when its bytes changed: what embeds it is then not rebuilt.
    let built = target().join("bpfel-unknown-none/release/decnet-trace-ebpf");
    let object = flavour.object();
    if copy_if_changed(&built, &object)? {
        say(format!("built {}", object.display()));
    } else {
        say(format!("{} is up to date", object.display()));
    }
    Ok(object)
}

/// Looks for warnings in the eBPF crate: with clippy where the compiler that builds it has one, else
/// with that compiler alone.
///
/// # Errors
/// There are warnings, or it does not compile.
pub fn check(toolchain: &Toolchain) -> Result<()> {
    let mut check = cargo(toolchain, "check", Flavour::Log, &["-Dwarnings"]);
    let clippy = toolchain.compiler.sysroot.join("bin/clippy-driver");
    if clippy.exists() {
        // As cargo-clippy does; that one would take the toolchain in use instead of this one.
        check.env("RUSTC_WORKSPACE_WRAPPER", clippy);
    }
    if !shown(&mut check)?.success() {
        bail!("the eBPF crate has warnings (see above)");
    }
    Ok(())
}

/// A verb of cargo on the eBPF crate as it is built for BPF.
fn cargo(
    Toolchain { compiler, linker }: &Toolchain,
    verb: &str,
    flavour: Flavour,
    rustflags: &[&str],
) -> Command {
    let arch = compiler.host.split('-').next().unwrap_or_default();
    let cfg = format!("--cfg=bpf_target_arch=\"{}\"", bpf_target_arch(arch));
    let mut flags = vec![&*cfg, "-Cdebuginfo=2", "-Clink-arg=--btf"];
    flags.extend_from_slice(rustflags);

    let mut cargo = plain(&compiler.cargo());
    cargo
        .current_dir(paths::workspace())
        .args([verb, "--package", "decnet-trace-ebpf", "--release"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target())
        .env("RUSTC", compiler.rustc())
        // What a stable compiler needs for `-Z`; nothing outside of this child sees it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if flavour == Flavour::Log {
        cargo.args(["--features", "log"]);
    }
    cargo
}

/// A target directory of its own: a build of the user side never waits for its lock.
fn target() -> PathBuf {
    paths::target().join("bpf")
}

/// The name that aya's bindings know the host's architecture by.
fn bpf_target_arch(host: &str) -> &str {
    if host.starts_with("riscv64") {
        "riscv64"
    } else {
        host
    }
}

/// Copies `from` to `to`, unless `to` holds the same bytes already; whether it did.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // Through a rename: who reads it meanwhile sees the old file or the new one.
    let part = to.with_extension("part");
    fs::write(&part, new).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// An object with the same bytes is left alone, one with others is replaced.
    #[test]
    fn copies_only_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to.o"));
        fs::write(&from, "one").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        let written = fs::metadata(&to).unwrap().modified().unwrap();
        assert!(!copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), written);
        fs::write(&from, "two").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::read(&to).unwrap(), b"two");
    }
}
