//! Packages of any release of Debian or Ubuntu, by an apt-get with a state of its own: the system's sources
//! stay as they are, and packages are checked against their distributions' keys.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::command::{logged, output};

/// Debian's keys, in every Debian.
pub(crate) const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Time for lists and packages.
const LIMIT: Duration = Duration::from_secs(900);

/// An apt-get that knows one release alone, and keeps all it has in a folder.
pub(crate) struct Apt {
    options: Vec<String>,
    state: PathBuf,
}

impl Apt {
    /// One of this release, with its lists fetched anew.
    ///
    /// # Errors
    /// There is no apt-get, or the release cannot be fetched.
    pub(crate) fn new(state: &Path, mirror: &str, suite: &str, keys: &Path) -> Result<Self> {
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!(
                "there is no apt-get: packages of distributions are fetched on Debian and Ubuntu alone"
            );
        }
        let list = state.join("sources.list");
        let line = format!("deb [signed-by={}] {mirror} {suite} main\n", keys.display());
        fs::write(&list, line).with_context(|| format!("cannot write {}", list.display()))?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(folder))?;
        }
        let at = |name: &str| state.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // The folders are this user's own.
            "APT::Sandbox::User=".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        let options = options
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option])
            .collect();
        let apt = Self {
            options,
            state: state.to_owned(),
        };
        apt.logged("apt-get", &["update"], &apt.state)?;
        Ok(apt)
    }

    /// The packages whose names match a regular expression, a line each.
    ///
    /// # Errors
    /// apt-cache fails.
    pub(crate) fn search(&self, pattern: &str) -> Result<String> {
        let mut search = Command::new("apt-cache");
        output(
            search
                .args(&self.options)
                .args(["search", "--names-only", pattern]),
        )
    }

    /// Downloads a package, and unpacks it without installing it.
    ///
    /// # Errors
    /// The release has no such package, or it cannot be fetched.
    pub(crate) fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let folder = self.state.join("packages");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        self.logged("apt-get", &["download", package], &folder)?;
        let archive = fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("{package} was not downloaded"))?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&archive).arg(to);
        logged(&mut unpack, &self.state.join("unpack.log"), LIMIT)?;
        let _ = fs::remove_dir_all(&folder);
        Ok(())
    }

    fn logged(&self, program: &str, args: &[&str], folder: &Path) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args).args(&self.options).current_dir(folder);
        logged(&mut command, &self.state.join("apt.log"), LIMIT)
    }
}
