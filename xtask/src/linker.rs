//! bpf-linker, linked against the LLVM that rustc itself brings: no LLVM packages are needed.
//!
//! It is built once a machine into the cache:
//! `bpf-linker-<version>-llvm<major>/{bin/bpf-linker,llvm/lib/libLLVM*}`. `llvm/lib` holds links to
//! rustc's own library, and is where the linker looks for it when it runs (its rpath).

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    command::{logged, output, say},
    compiler::{Compiler, plain},
    paths,
};

/// The version that is built: the newest line whose oldest supported rustc is ours.
const VERSION: &str = "0.13.0";

/// The majors of LLVM that this version can be linked against (its features `llvm-NN`).
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A slow machine takes a few minutes.
const LIMIT: Duration = Duration::from_secs(1200);

/// Gives a bpf-linker that can link what `compiler` emits: its LLVM is of the same major version or
/// a newer one. The first call on a machine builds it (two minutes on two cores).
///
/// # Errors
/// No LLVM to link against was found, or the build failed (it needs crates.io and a C compiler).
pub fn ensure(compiler: &Compiler) -> Result<PathBuf> {
    let cache = paths::cache()?;
    if let Some(linker) = cached(&cache, compiler.llvm) {
        return Ok(linker);
    }
    let _lock = paths::lock("bpf-linker")?;
    if let Some(linker) = cached(&cache, compiler.llvm) {
        return Ok(linker);
    }
    let active = Compiler::active()?;
    let (llvm, library) = [&active, compiler]
        .into_iter()
        .filter(|c| c.llvm >= compiler.llvm && LLVM.contains(&c.llvm))
        .find_map(|c| Some((c.llvm, llvm_library(c)?)))
        .with_context(|| {
            format!(
                "cannot build bpf-linker {VERSION}: it needs rustc's libLLVM, {} to {}, as a shared \
                 library, and {} has none; use rustup's stable toolchain",
                compiler.llvm.max(*LLVM.start()),
                LLVM.end(),
                compiler.describe()
            )
        })?;
    build(&active, &cache, llvm, &library)
}

/// A linker in the cache that still runs (the rustc whose library it uses may be gone).
fn cached(cache: &Path, oldest: u32) -> Option<PathBuf> {
    LLVM.filter(|llvm| *llvm >= oldest)
        .map(|llvm| folder(cache, llvm).join("bin/bpf-linker"))
        .find(|linker| linker.exists() && output(Command::new(linker).arg("--version")).is_ok())
}

fn folder(cache: &Path, llvm: u32) -> PathBuf {
    cache.join(format!("bpf-linker-{VERSION}-llvm{llvm}"))
}

/// The compiler's shared LLVM: `<sysroot>/lib/libLLVM.so.22.1-rust-1.95.0-stable` in rustup's,
/// `/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1` for a distribution's. The name is the SONAME.
fn llvm_library(compiler: &Compiler) -> Option<PathBuf> {
    let lib = compiler.sysroot.join("lib");
    let arch = compiler.host.split('-').next()?;
    let prefix = format!("libLLVM.so.{}.", compiler.llvm);
    [
        lib.join(format!("{arch}-linux-gnu")),
        lib.clone(),
        compiler.sysroot.join("lib64"),
    ]
    .iter()
    .filter_map(|dir| fs::read_dir(dir).ok())
    .flatten()
    .filter_map(|entry| Some(entry.ok()?.path()))
    .find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    })
}

fn build(active: &Compiler, cache: &Path, llvm: u32, library: &Path) -> Result<PathBuf> {
    say(format!(
        "building bpf-linker {VERSION} against {} (once a machine, a minute or two)",
        library.display()
    ));
    let folder = folder(cache, llvm);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    let lib = folder.join("llvm/lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    // The name that the linker is given, and the one that the result asks for when it runs.
    symlink(library, lib.join("libLLVM.so")).context("cannot link to rustc's libLLVM")?;
    if let Some(soname) = library.file_name() {
        symlink(library, lib.join(soname)).context("cannot link to rustc's libLLVM")?;
    }
    let mut cargo = plain(&active.cargo());
    cargo
        .args(["install", "bpf-linker", "--locked", "--version", VERSION])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ])
        .arg("--root")
        .arg(&folder)
        .env("RUSTC", active.rustc())
        .env("LLVM_PREFIX", folder.join("llvm"))
        // LLVM does the work, and is built already: who waits for the rest is not to wait for its optimisation.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        // Out of the workspace, whose configuration is not meant for it.
        .current_dir(cache);
    let log = cache.join("bpf-linker.log");
    logged(&mut cargo, &log, LIMIT)
        .context("cannot build bpf-linker, which needs crates.io and a C compiler")?;
    let linker = folder.join("bin/bpf-linker");
    output(Command::new(&linker).arg("--version"))
        .context("the bpf-linker just built does not run")?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// The library is found by the compiler's own LLVM version, in rustup's layout and in Debian's.
    #[test]
    fn library_of_the_right_version() {
        let dir = tempfile::tempdir().unwrap();
        let compiler = Compiler {
            sysroot: dir.path().to_owned(),
            version: (1, 95),
            llvm: 22,
            host: "x86_64-unknown-linux-gnu".to_owned(),
        };
        let lib = dir.path().join("lib");
        fs::create_dir_all(lib.join("x86_64-linux-gnu")).unwrap();
        fs::write(lib.join("libLLVM.so.21.1-rust-1.90.0-stable"), "").unwrap();
        assert_eq!(llvm_library(&compiler), None);
        let rustup = lib.join("libLLVM.so.22.1-rust-1.95.0-stable");
        fs::write(&rustup, "").unwrap();
        assert_eq!(llvm_library(&compiler), Some(rustup));
        let debian = lib.join("x86_64-linux-gnu/libLLVM.so.22.1");
        fs::write(&debian, "").unwrap();
        assert_eq!(llvm_library(&compiler), Some(debian));
    }

    /// A linker that no longer runs is not taken from the cache, and neither is one too old.
    #[test]
    fn broken_linker_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let bin = folder(dir.path(), 22).join("bin");
        fs::create_dir_all(&bin).unwrap();
        let linker = bin.join("bpf-linker");
        let write = |text: &str| {
            fs::write(&linker, text).unwrap();
            fs::set_permissions(&linker, fs::Permissions::from_mode(0o755)).unwrap();
        };
        write("#!/bin/sh\nexit 127\n");
        assert_eq!(cached(dir.path(), 22), None);
        write("#!/bin/sh\nexit 0\n");
        assert_eq!(cached(dir.path(), 22), Some(linker.clone()));
        assert_eq!(cached(dir.path(), 23), None);
    }
}
