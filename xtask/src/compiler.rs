//! Finds a Rust compiler that can build for BPF: one that has the source of `core` beside it.
//!
//! `bpfel-unknown-none` comes without a compiled `core`, so that one is built from source, and the
//! source of one version does not build with the compiler of another. No nightly is needed.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{logged, output, say},
    debian, paths,
};

/// Debian's own Rust of the newest line: they install to /usr, beside rustup's.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// How long rustup may take to fetch `rust-src` (3 MB) before it counts as out of reach.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// A Rust toolchain by its sysroot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// The sysroot; `bin/rustc` and `bin/cargo` are in it.
    pub sysroot: PathBuf,
    /// Version of rustc: major, minor.
    pub version: (u32, u32),
    /// Major version of its LLVM.
    pub llvm: u32,
    /// What it was built for, e.g. `x86_64-unknown-linux-gnu`.
    pub host: String,
}

impl Compiler {
    /// Describes the compiler in that sysroot.
    ///
    /// # Errors
    /// It does not run, or `rustc -vV` lacks what is needed.
    pub fn in_sysroot(sysroot: &Path) -> Result<Self> {
        let rustc = sysroot.join("bin/rustc");
        let text = output(plain(&rustc).arg("-vV"))?;
        parse_version(&text, sysroot).with_context(|| {
            format!(
                "{} -vV does not give release, host and LLVM",
                rustc.display()
            )
        })
    }

    /// The compiler that `rustc` means here: `RUSTC`, or the first in `PATH`.
    ///
    /// # Errors
    /// There is none, or it does not run.
    pub fn active() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
        Self::in_sysroot(Path::new(sysroot.trim_end()))
    }

    /// Its rustc.
    pub fn rustc(&self) -> PathBuf {
        self.sysroot.join("bin/rustc")
    }

    /// Its cargo.
    pub fn cargo(&self) -> PathBuf {
        self.sysroot.join("bin/cargo")
    }

    /// Whether it can build the eBPF crate as it stands: cargo, and the source of `core`.
    fn can_build(&self) -> bool {
        self.version >= oldest()
            && self.cargo().exists()
            && self
                .sysroot
                .join("lib/rustlib/src/rust/library/Cargo.lock")
                .exists()
    }

    /// The name rustup knows it by, if it is one of rustup's.
    fn rustup_name(&self) -> Option<&OsStr> {
        let toolchains = self.sysroot.parent()?;
        (toolchains.file_name()? == "toolchains").then(|| self.sysroot.file_name())?
    }

    /// One line for a person.
    pub fn describe(&self) -> String {
        let (major, minor) = self.version;
        format!(
            "rustc {major}.{minor} in {} (LLVM {})",
            self.sysroot.display(),
            self.llvm
        )
    }
}

/// A command free of what `cargo run` and rustup's proxies put into the environment for the
/// toolchain that built this binary: another one must not read it.
pub fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text == "CARGO"
            || text == "CARGO_ENCODED_RUSTFLAGS"
            || text == "CARGO_MANIFEST_DIR"
            || text == "CARGO_MANIFEST_PATH"
            || text.starts_with("CARGO_PKG_")
            || text == "LD_LIBRARY_PATH"
            || text.starts_with("RUSTC")
            || text == "RUSTDOC"
            || text == "RUSTFLAGS"
            || text.starts_with("RUSTUP_TOOLCHAIN")
            || text == "RUST_RECURSION_COUNT";
        if ours {
            command.env_remove(&name);
        }
    }
    command
}

/// Finds a compiler for the eBPF crate, and installs what is missing for one where that is possible:
///
/// 1. one that has everything: the toolchain in use, another of rustup's, or Debian's;
/// 2. the toolchain in use, with `rustup component add rust-src`;
/// 3. Debian's packages `rustc-web`, `cargo-web` and `rust-web-src`.
///
/// # Errors
/// None of these is possible here; the line says why each is not.
pub fn ensure() -> Result<Compiler> {
    let active = Compiler::active()?;
    if let Some(found) = installed(&active) {
        return Ok(found);
    }
    let _lock = paths::lock("rust-src")?;
    // Another build may have brought it while this one waited.
    if let Some(found) = installed(&active) {
        return Ok(found);
    }
    let rustup = match add_rust_src(&active) {
        Ok(()) if active.can_build() => return Ok(active),
        Ok(()) => format!(
            "rustup's toolchain in use is older than {}.{}",
            oldest().0,
            oldest().1
        ),
        Err(why) => format!("{why:#}"),
    };
    say(format!("no rust-src from rustup ({rustup})"));
    say(format!(
        "installing Debian's {} with apt-get",
        DEBIAN_PACKAGES.join(", ")
    ));
    // The newest: bookworm's first release of them is too old, its security updates bring the others.
    let debian = match debian::install_newest(DEBIAN_PACKAGES) {
        Ok(()) => match debians() {
            Some(found) => return Ok(found),
            None => format!(
                "apt's sources have none from {}.{} on: is bookworm-security among them?",
                oldest().0,
                oldest().1
            ),
        },
        Err(why) => format!("{why:#}"),
    };
    bail!(
        "no compiler with the source of `core`; run `rustup component add rust-src` with a network \
         ({rustup}), or install {} ({debian})",
        DEBIAN_PACKAGES.join(", ")
    )
}

/// A compiler that can build the eBPF crate without anything being installed. Its LLVM is not newer
/// than the active compiler's, which the linker is linked against, unless it brings its own.
fn installed(active: &Compiler) -> Option<Compiler> {
    if active.can_build() {
        return Some(active.clone());
    }
    let toolchains = active.rustup_name().and(active.sysroot.parent());
    let mut others: Vec<Compiler> = toolchains
        .and_then(|dir| fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Compiler::in_sysroot(&entry.ok()?.path()).ok())
        .filter(Compiler::can_build)
        .collect();
    // The nearest to the compiler in use, for the crate is checked with that one.
    others.sort_by_key(|c| (c.version, c.sysroot.clone()));
    others.into_iter().next().or_else(debians)
}

fn debians() -> Option<Compiler> {
    Compiler::in_sysroot(Path::new("/usr"))
        .ok()
        .filter(Compiler::can_build)
}

fn add_rust_src(active: &Compiler) -> Result<()> {
    let Some(toolchain) = active.rustup_name() else {
        bail!("the rustc in use is not rustup's");
    };
    say("adding rust-src with rustup");
    let log = paths::cache()?.join("rustup.log");
    let mut rustup = plain(Path::new("rustup"));
    rustup
        .args(["component", "add", "rust-src", "--toolchain"])
        .arg(toolchain)
        .env("RUSTUP_MAX_RETRIES", "0");
    logged(&mut rustup, &log, RUSTUP_LIMIT)
}

/// The oldest rustc that builds the workspace.
fn oldest() -> (u32, u32) {
    version_pair(env!("CARGO_PKG_RUST_VERSION")).unwrap_or((1, 95))
}

fn version_pair(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn parse_version(text: &str, sysroot: &Path) -> Option<Compiler> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Compiler {
        sysroot: sysroot.to_owned(),
        version: version_pair(field("release")?)?,
        llvm: field("LLVM version")?.split('.').next()?.parse().ok()?,
        host: field("host")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// What `rustc -vV` says is read right, for releases and pre-releases, and half of it is refused.
    #[test]
    fn version_is_read() {
        let text = "rustc 1.97.0-nightly (abc 2026-05-19)\nbinary: rustc\ncommit-hash: abc\n\
                    host: aarch64-unknown-linux-gnu\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let compiler = parse_version(text, Path::new("/t")).unwrap();
        assert_eq!(compiler.version, (1, 97));
        assert_eq!(compiler.llvm, 22);
        assert_eq!(compiler.host, "aarch64-unknown-linux-gnu");
        assert_eq!(
            parse_version("release: 1.97.0\nhost: x\n", Path::new("/t")),
            None
        );
    }

    /// Only a toolchain in rustup's folder has a name that rustup knows.
    #[test]
    fn rustup_name() {
        let at = |sysroot: &str| Compiler {
            sysroot: sysroot.into(),
            version: (1, 95),
            llvm: 22,
            host: String::new(),
        };
        let rustups = at("/opt/ci/.rustup/toolchains/stable-x86_64-unknown-linux-gnu");
        assert_eq!(
            rustups.rustup_name().unwrap(),
            "stable-x86_64-unknown-linux-gnu"
        );
        assert_eq!(at("/usr").rustup_name(), None);
    }
}
