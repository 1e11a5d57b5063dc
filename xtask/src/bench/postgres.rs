//! A Postgres of the bench's own: in a folder, on a Unix socket alone, gone with its owner.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::{
    bed::process::{Folder, Process},
    command::{logged, say},
    debian,
};

/// How long initdb and the server may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    // Before the folder: nothing writes there any more when it goes.
    process: Process,
    folder: Folder,
}

impl Postgres {
    /// Makes an empty cluster and starts it; Debian's postgresql is installed where there is none.
    ///
    /// # Errors
    /// There is none and it cannot be installed, or it does not come up.
    pub fn start() -> Result<Self> {
        let bin = match binaries() {
            Some(bin) => bin,
            None => {
                say("installing Debian's postgresql with apt-get");
                debian::install(&["postgresql"]).context("there is no postgres")?;
                binaries().context("Debian's postgresql has no initdb")?
            }
        };
        let folder = Folder::new()?;
        let data = folder.path().join("data");
        // A server refuses to run as root.
        let user = rustix::process::geteuid()
            .is_root()
            .then(|| ids("postgres").or_else(|| ids("nobody")));
        let user = user
            .map(|ids| ids.context("there is no user postgres"))
            .transpose()?;
        let command = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command.current_dir(folder.path()).arg("-D").arg(&data);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).context("cannot give a folder away")?;
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        logged(
            command("initdb").args(["-U", "bench", "--auth=trust", "--no-sync", "-E", "UTF8"]),
            &folder.path().join("initdb.log"),
            LIMIT,
        )?;
        let mut server = command("postgres");
        server
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!(
                "unix_socket_directories={}",
                folder.path().display()
            ));
        let mut process = Process::start(&mut server, &folder.path().join("log"))?;
        process
            .wait_for(LIMIT, |log| {
                log.contains("ready to accept connections").then_some(())
            })
            .context("postgres does not come up")?;
        Ok(Self { process, folder })
    }

    /// How to connect to it.
    pub fn dsn(&self) -> String {
        format!(
            "postgresql://bench@/postgres?host={}",
            self.folder.path().display()
        )
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // "Fast" shutdown: clients are not waited for.
        self.process.signal(Signal::INT);
        let _ = self.process.wait(Duration::from_secs(10));
    }
}

/// The folder of the newest server's programs: Debian keeps them out of `PATH`.
fn binaries() -> Option<PathBuf> {
    let has = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("postgres").exists();
    let debian = fs::read_dir("/usr/lib/postgresql")
        .ok()
        .and_then(|versions| {
            versions
                .filter_map(|entry| {
                    let path = entry.ok()?.path();
                    let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
                    Some((version, path.join("bin")))
                })
                .filter(|(_, dir)| has(dir))
                .max()
        });
    debian
        .map(|(_, dir)| dir)
        .or_else(|| env::split_paths(&env::var_os("PATH")?).find(has))
}

/// A user's uid and gid.
fn ids(name: &str) -> Option<(u32, u32)> {
    parse_ids(&fs::read_to_string(Path::new("/etc/passwd")).ok()?, name)
}

/// passwd(5): name, password, uid, gid.
fn parse_ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next()? == name).then_some(fields))?
        .skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user is found by the whole name.
    #[test]
    fn users() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\npostgresql:x:9:9::/:\npostgres:x:115:120:,,,:/v:/b\n";
        assert_eq!(parse_ids(passwd, "postgres"), Some((115, 120)));
        assert_eq!(parse_ids(passwd, "nobody"), None);
    }
}
