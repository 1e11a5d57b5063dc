//! `cargo xtask run`: builds both sides and runs the agent as root.

use std::{
    convert::Infallible, env, ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf::{self, Flavour},
    command::{say, shown},
    paths,
};

/// Builds the eBPF object and the agent with it in it; gives the agent's path.
///
/// # Errors
/// Something does not build.
pub fn build() -> Result<PathBuf> {
    build_ebpf::build(Flavour::Plain)?;
    say("building decnet-trace (release)");
    let mut build = cargo();
    build.args(["build", "--release", "--package", "decnet-trace"]);
    if !shown(&mut build)?.success() {
        bail!("decnet-trace does not build (see above)");
    }
    Ok(paths::target().join("release/decnet-trace"))
}

/// The verb: builds, and becomes `decnet-trace run ARGS`.
///
/// # Errors
/// Something does not build, or the agent cannot be started.
pub fn run(args: &[OsString]) -> Result<Infallible> {
    let mut agent = as_root(build()?)?;
    agent.arg("run").args(args);
    let error = agent.exec();
    Err(error).with_context(|| format!("cannot start {}", agent.get_program().display()))
}

/// The cargo that this program was started by, as if a shell had started it: what Cargo tells a program of its own
/// package is taken out. Build scripts (ring's) ask to be run again when it changes, and what depends on them is then
/// built again.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_a_package) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Whether a variable is one that Cargo sets for the programs of a package that it runs (The Cargo Book, "Environment
/// variables Cargo sets for crates"; `OUT_DIR` where the package has a build script).
fn is_of_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_BIN_")
        || matches!(
            name,
            "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR"
        )
}

/// A command that runs `program` as root: itself where this is root, else with sudo.
///
/// # Errors
/// This is not root, and there is no sudo.
pub fn as_root(program: PathBuf) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    if !has_sudo() {
        bail!(
            "{} needs root: run this as root, or install sudo",
            program.display()
        );
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

/// Whether there is a sudo in `PATH`.
pub fn has_sudo() -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join("sudo").exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cargo started from here builds what one started by a shell has built: it learns nothing of this package, and
    /// all that the user has set.
    #[test]
    fn cargo_is_as_from_a_shell() {
        let cargo = cargo();
        let removed = |name: &str| {
            cargo
                .get_envs()
                .any(|(other, value)| other == name && value.is_none())
        };
        // Cargo runs this test, and has set them.
        for name in [
            "CARGO_PKG_NAME",
            "CARGO_PKG_VERSION_PRE",
            "CARGO_MANIFEST_DIR",
        ] {
            assert!(removed(name), "{name}");
        }
        assert!(is_of_a_package("OUT_DIR"));
        for name in [
            "CARGO",
            "CARGO_HOME",
            "CARGO_INCREMENTAL",
            "CARGO_TARGET_DIR",
            "PATH",
        ] {
            assert!(!is_of_a_package(name), "{name}");
        }
    }
}
