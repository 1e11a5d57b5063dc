//! Installing Debian packages.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{command::logged, paths};

const LIMIT: Duration = Duration::from_secs(900);

/// Installs packages with apt-get, refreshing its lists where they are too old for it.
///
/// # Errors
/// This is not Debian (no apt-get), the user is not root, or apt-get fails.
pub fn install(packages: &[&str]) -> Result<()> {
    possible(packages)?;
    get("install", packages).or_else(|_| install_newest(packages))
}

/// Installs the newest version there is of packages: with fresh lists, and over older ones.
///
/// # Errors
/// As [`install`].
pub fn install_newest(packages: &[&str]) -> Result<()> {
    possible(packages)?;
    get("update", &[])?;
    get("install", packages)
}

fn possible(packages: &[&str]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("there is no apt-get: this is not Debian");
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "apt-get needs root: sudo apt-get install {}",
            packages.join(" ")
        );
    }
    Ok(())
}

fn get(verb: &str, packages: &[&str]) -> Result<()> {
    let log = paths::cache()?.join(format!("apt-get-{verb}.log"));
    let mut apt = Command::new("/usr/bin/apt-get");
    apt.args([verb, "-y", "--no-install-recommends"])
        // Another program may be installing something: wait for it instead of failing.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    logged(&mut apt, &log, LIMIT)
}
