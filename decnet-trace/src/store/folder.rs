//! The store's folder, its lock and its files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::error::{Kind, Result, StoreError};

/// The database's name in the folder.
const FILE: &str = "traces.db";

/// What SQLite adds to it for its write-ahead log and that log's index.
const SIDE_FILES: [&str; 2] = ["-wal", "-shm"];

/// What a broken file is called, before the time.
const BROKEN: &str = "traces.db.corrupt-";

/// The database in a folder.
pub(super) fn database(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// The folder, held by this process as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    folder: PathBuf,
    /// The lock goes with the file.
    _lock: File,
}

impl Held {
    /// Makes the folder where it is missing, and takes it. One that others can write to, or that is
    /// another user's, is refused: they could put another file in the store's place.
    pub(super) fn take(folder: &Path) -> Result<Self> {
        match fs::metadata(folder) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(StoreError::new(Kind::Other, "it is no folder"));
            }
            Ok(metadata) if metadata.mode() & 0o022 != 0 => {
                return Err(StoreError::new(
                    Kind::Other,
                    "others can write to it; use a folder of mode 0700",
                ));
            }
            Ok(metadata) if metadata.uid() != own_uid() => {
                return Err(StoreError::new(
                    Kind::Other,
                    format_args!(
                        "it belongs to user {}; use a folder of user {}",
                        metadata.uid(),
                        own_uid()
                    ),
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)?;
            }
            Err(error) => return Err(error.into()),
        }
        let lock = private(&folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                StoreError::new(Kind::Locked, "another decnet-trace writes to it")
            }
            TryLockError::Error(error) => error.into(),
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// The database's path; the file is there afterwards, and its owner's alone. SQLite gives the files
    /// beside it the same mode.
    pub(super) fn database(&self) -> Result<PathBuf> {
        let path = database(&self.folder);
        private(&path)?;
        Ok(path)
    }

    /// Gives a broken database another name, and says which. Of several only the last is kept, so that
    /// they cannot fill the disk.
    pub(super) fn set_aside(&self) -> Result<PathBuf> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(BROKEN) {
                fs::remove_file(entry.path())?;
            }
        }
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let aside = self.folder.join(format!("{BROKEN}{seconds}"));
        for suffix in SIDE_FILES {
            match fs::rename(with(&database(&self.folder), suffix), with(&aside, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        fs::rename(database(&self.folder), &aside)?;
        Ok(aside)
    }

    /// The bytes that the write-ahead log takes.
    pub(super) fn log_size(&self) -> u64 {
        fs::metadata(with(&database(&self.folder), "-wal")).map_or(0, |metadata| metadata.len())
    }
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens a file, and makes it where it is missing; it is this user's alone afterwards. Follows no link.
fn private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Folder and files are their owner's alone, and a second agent is told that the first has them.
    #[test]
    fn is_private_and_held_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let held = Held::take(&folder).unwrap();
        let database = held.database().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&database)), (0o700, 0o600));
        assert_eq!(Held::take(&folder).unwrap_err().kind(), Kind::Locked);
        drop(held);
        Held::take(&folder).unwrap();
    }

    /// A folder that others can write to is refused, and so is a link in the place of a file.
    #[test]
    fn refuses_what_others_could_change() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("open");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Held::take(&folder).unwrap_err();
        assert!(error.to_string().contains("0700"), "{error}");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(root.path().join("victim"), folder.join(FILE)).unwrap();
        Held::take(&folder).unwrap().database().unwrap_err();
        assert!(!root.path().join("victim").exists());
    }

    /// Another user's folder is refused, also where its mode is right.
    #[test]
    fn refuses_another_users_folder() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o700)).unwrap();
        if std::os::unix::fs::chown(root.path(), Some(65534), None).is_err() {
            println!("SKIPPED: only root gives folders away");
            return;
        }
        let error = Held::take(root.path()).unwrap_err();
        assert!(error.to_string().contains("user 65534"), "{error}");
    }

    /// Files that others could read are theirs no longer.
    #[test]
    fn takes_files_back() {
        let root = tempfile::tempdir().unwrap();
        let database = root.path().join(FILE);
        fs::write(&database, "").unwrap();
        fs::set_permissions(&database, Permissions::from_mode(0o644)).unwrap();
        let held = Held::take(root.path()).unwrap();
        held.database().unwrap();
        assert_eq!(fs::metadata(&database).unwrap().mode() & 0o777, 0o600);
    }

    /// What is set aside keeps its log, and replaces what was set aside before.
    #[test]
    fn sets_one_aside() {
        let root = tempfile::tempdir().unwrap();
        let held = Held::take(root.path()).unwrap();
        let database = held.database().unwrap();
        fs::write(root.path().join(format!("{BROKEN}1")), "old").unwrap();
        fs::write(&database, "broken").unwrap();
        fs::write(with(&database, "-wal"), "log").unwrap();
        let aside = held.set_aside().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"broken");
        assert_eq!(fs::read(with(&aside, "-wal")).unwrap(), b"log");
        assert!(!database.exists());
        assert!(!root.path().join(format!("{BROKEN}1")).exists());
    }
}
