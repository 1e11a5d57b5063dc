//! Kernels of distributions, by apt-get with a state of its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{Apt, DEBIAN_KEYS},
    command::say,
    paths,
};

/// What is tried where nothing is named: the floor and what lies below it, and each kind of hooks.
pub(super) const DEFAULT: &[&str] = &["5.10", "5.15", "6.1", "6.12", "7"];

/// A distribution's release.
struct Suite {
    name: &'static str,
    mirror: &'static str,
    /// The version of its kernel begins so.
    kernel: &'static str,
    /// Its kernel's package, after the version.
    flavour: &'static str,
    keyring: Keyring,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyring {
    Debian,
    /// In a package of Debian's.
    Ubuntu,
}

const SUITES: &[Suite] = &[
    debian("bullseye", "5.10"),
    Suite {
        name: "jammy-updates",
        mirror: "http://archive.ubuntu.com/ubuntu",
        kernel: "5.15",
        flavour: "generic",
        keyring: Keyring::Ubuntu,
    },
    debian("bookworm", "6.1"),
    debian("trixie", "6.12"),
    debian("sid", "7"),
];

const fn debian(name: &'static str, kernel: &'static str) -> Suite {
    Suite {
        name,
        mirror: "http://deb.debian.org/debian",
        kernel,
        flavour: "cloud-amd64",
        keyring: Keyring::Debian,
    }
}

/// The image of a kernel of that version, like `6.1`; fetched once a machine.
///
/// # Errors
/// No known release has such a kernel, or it cannot be fetched.
pub(super) fn fetch(wanted: &str) -> Result<PathBuf> {
    let suite = SUITES
        .iter()
        .find(|suite| within(suite.kernel, wanted) || within(wanted, suite.kernel))
        .with_context(|| {
            let known: Vec<_> = SUITES.iter().map(|suite| suite.kernel).collect();
            format!(
                "no kernel {wanted} is known: there are {}",
                known.join(", ")
            )
        })?;
    let cache = paths::cache()?.join("kernels").join(suite.name);
    if let Some(image) = image(&cache.join("tree")) {
        return Ok(image);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = paths::lock(&format!("kernel-{}", suite.name))?;
    if let Some(image) = image(&cache.join("tree")) {
        return Ok(image);
    }
    say(format!("fetching the kernel of {}", suite.name));
    let keys = match suite.keyring {
        Keyring::Debian => PathBuf::from(DEBIAN_KEYS),
        Keyring::Ubuntu => ubuntu_keys(&cache)?,
    };
    let apt = Apt::new(&cache, suite.mirror, suite.name, &keys)?;
    let listed = apt.search("linux-image-[0-9].*")?;
    let package = newest(&listed, suite)
        .with_context(|| format!("{} has no kernel {}", suite.name, suite.kernel))?;
    apt.unpack(&package, &cache.join("tree"))?;
    if image(&cache.join("tree")).is_none() {
        // Debian has them in a package of their own since Linux 7.
        let package = package.replacen("linux-image-", "linux-binary-", 1);
        apt.unpack(&package, &cache.join("tree"))?;
    }
    image(&cache.join("tree")).with_context(|| format!("{package} holds no kernel"))
}

/// Whether a version belongs to another, shorter one: 6.1.0 to 6.1, but 6.12 not.
fn within(version: &str, shorter: &str) -> bool {
    version
        .strip_prefix(shorter)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The package of the newest kernel, of those that a search has listed.
fn newest(listed: &str, suite: &Suite) -> Option<String> {
    let numbers = |package: &str| -> Vec<u32> {
        package
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|package| {
            package
                .strip_prefix("linux-image-")
                .and_then(|rest| rest.strip_suffix(suite.flavour)?.strip_suffix('-'))
                .is_some_and(|version| within(version, suite.kernel))
        })
        .max_by_key(|package| numbers(package))
        .map(str::to_owned)
}

/// The kernel in an unpacked package: in /boot, or, in newer ones, beside its modules.
fn image(tree: &Path) -> Option<PathBuf> {
    let files = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path()))
    };
    files(tree.join("boot"))
        .chain(files(tree.join("usr/lib/modules")).flat_map(files))
        .find(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with("vmlinuz")
        })
}

/// Ubuntu's keys, out of Debian's package of them.
fn ubuntu_keys(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("keys");
    let keys = dir.join("usr/share/keyrings/ubuntu-archive-keyring.gpg");
    if !keys.exists() {
        let state = cache.join("keys-apt");
        fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
        let apt = Apt::new(
            &state,
            "http://deb.debian.org/debian",
            "trixie",
            Path::new(DEBIAN_KEYS),
        )?;
        apt.unpack("ubuntu-keyring", &dir)?;
    }
    if !keys.exists() {
        bail!(
            "Debian's package of Ubuntu's keys has no {}",
            keys.display()
        );
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// The newest package of the right version and flavour is taken: by number, not by text.
    #[test]
    fn newest_package() {
        let listed = "linux-image-6.1.0-9-cloud-amd64 - Linux 6.1\n\
                      linux-image-6.1.0-50-cloud-amd64 - Linux 6.1\n\
                      linux-image-6.1.0-51-amd64 - Linux 6.1\n\
                      linux-image-6.12.107+deb13-cloud-amd64 - Linux 6.12\n\
                      linux-image-6.1.0-60-cloud-amd64-dbg - symbols\n";
        let suite = |kernel| SUITES.iter().find(|suite| suite.kernel == kernel).unwrap();
        let found = |kernel| newest(listed, suite(kernel));
        assert_eq!(found("6.1").unwrap(), "linux-image-6.1.0-50-cloud-amd64");
        assert_eq!(
            found("6.12").unwrap(),
            "linux-image-6.12.107+deb13-cloud-amd64"
        );
        assert_eq!(found("5.10"), None);
    }

    /// 6.1 is no 6.12.
    #[test]
    fn versions() {
        assert!(within("6.1.0-50", "6.1"));
        assert!(within("7.2.13+deb14", "7"));
        assert!(!within("6.12.1", "6.1"));
        assert!(fetch("4.9").unwrap_err().to_string().contains("5.10, 5.15"));
    }
}
