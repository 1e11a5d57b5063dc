//! Files written whole or not at all: to a temporary file beside the target, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

use thiserror::Error;

/// Why a file was not written.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}; name another file", path.display())]
pub struct OutputError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// A place that a file can be written to.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// A pipe or a device: it stays open, for whoever reads a pipe takes its closing for the end.
    device: Option<File>,
}

impl Place {
    /// Checks that a file can be written, without changing it: to be asked before an hour of recording,
    /// not after it. A pipe is opened, which takes until somebody reads from it.
    ///
    /// # Errors
    ///
    /// When the path is a folder, or its folder does not exist or takes no new file.
    pub fn check(path: &Path) -> Result<Self, OutputError> {
        let check = || match Target::of(path)? {
            Target::Device => OpenOptions::new().write(true).open(path).map(Some),
            Target::File(file) => {
                let (temporary, _) = create_beside(&file)?;
                fs::remove_file(temporary).map(|()| None)
            }
        };
        match check() {
            Ok(device) => Ok(Self {
                path: path.to_owned(),
                device,
            }),
            Err(source) => Err(OutputError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file, as [`write_atomically`] does; what was a pipe or a device gets the bytes.
    ///
    /// # Errors
    ///
    /// As [`write_atomically`].
    pub fn write(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), OutputError> {
        let Some(device) = &self.device else {
            return write_atomically(&self.path, write);
        };
        let mut writer = BufWriter::new(device);
        write(&mut writer)
            .and_then(|()| writer.flush())
            .map_err(|source| OutputError {
                path: self.path.clone(),
                source,
            })
    }
}

/// Writes what its place did not take into a new file of the folder for temporary ones, which only this
/// user can read; which file that is.
///
/// # Errors
///
/// When that folder does not take it either.
pub fn rescue(
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<PathBuf, OutputError> {
    let folder = std::env::temp_dir();
    let attempt = || {
        let (path, handle) = create_one_of(16, 0o600, |attempt| {
            folder.join(format!("decnet-trace-{}-{attempt}-{name}", process::id()))
        })?;
        let result = write_through(handle, write);
        if result.is_err() {
            // Half a profile is none.
            let _ = fs::remove_file(&path);
        }
        result.map(|()| path)
    };
    attempt().map_err(|source| OutputError {
        path: folder.clone(),
        source,
    })
}

/// Writes a file: whole, or not at all. A symbolic link stays one; pipes and devices are written
/// through.
///
/// # Errors
///
/// When the place cannot be written to, or `write` fails; the file is then as it was.
fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), OutputError> {
    let attempt = || match Target::of(path)? {
        Target::Device => {
            let mut writer = BufWriter::new(OpenOptions::new().write(true).open(path)?);
            write(&mut writer)?;
            writer.flush()
        }
        Target::File(file) => {
            let (temporary, handle) = create_beside(&file)?;
            let result = write_through(handle, write).and_then(|()| fs::rename(&temporary, &file));
            if result.is_err() {
                // The first error is the one to tell.
                let _ = fs::remove_file(&temporary);
            }
            result
        }
    };
    attempt().map_err(|source| OutputError {
        path: path.to_owned(),
        source,
    })
}

fn write_through(
    handle: File,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::new(handle);
    write(&mut writer)?;
    let handle = writer.into_inner().map_err(|error| error.into_error())?;
    handle.sync_all()
}

enum Target {
    /// A file, to be made or replaced; symbolic links followed.
    File(PathBuf),
    /// Something to write into: a pipe, a terminal.
    Device,
}

impl Target {
    fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(meta) if meta.is_file() => Ok(Self::File(fs::canonicalize(path)?)),
            Ok(_) => Ok(Self::Device),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::File(path.to_owned()))
            }
            Err(error) => Err(error),
        }
    }
}

/// Makes a new file beside another; it must be on the same file system for the rename.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
    create_one_of(16, 0o644, |attempt| {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{attempt}.tmp", process::id()));
        path.with_file_name(temporary)
    })
}

/// Makes a new file of the first name of so many that is free.
fn create_one_of(
    names: u32,
    mode: u32,
    name: impl Fn(u32) -> PathBuf,
) -> io::Result<(PathBuf, File)> {
    for attempt in 0..names {
        let path = name(attempt);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        match made {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A file is made, then replaced, and nothing else is left behind.
    #[test]
    fn a_file_is_made_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        Place::check(&path).unwrap();
        assert!(names(folder.path()).is_empty());
        for text in ["first", "second"] {
            write_atomically(&path, |out| out.write_all(text.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        Place::check(&path).unwrap();
        assert_eq!(names(folder.path()), ["out.svg"]);
    }

    /// A write that fails half-way leaves the file that was there, and no other.
    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        fs::write(&path, "old").unwrap();
        let error = write_atomically(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no more"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("no more"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["out.svg"]);
    }

    /// A place that cannot be written to is known beforehand: a folder, a folder that is not there.
    #[test]
    fn an_impossible_place_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().to_owned(),
            folder.path().join("missing/out.svg"),
            PathBuf::from("/proc/decnet-trace.svg"),
        ] {
            let error = Place::check(&path).unwrap_err().to_string();
            assert!(error.starts_with("cannot write /"), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    /// A link is written through and stays a link; a pipe gets the bytes.
    #[test]
    fn links_stay_and_devices_are_written_into() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("real");
        fs::write(&path, "old").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_atomically(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_atomically(Path::new("/dev/null"), |out| out.write_all(b"x")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
