//! Files that processes map code from: which file it is, whoever maps it, and where it can be opened.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::maps::{Backing, Mapping};

/// A file, by what it is and not by its path: workers in different containers that map the same file
/// share it, and a file replaced under its path is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Finds the file behind a mapping and a path that opens it now.
///
/// First `/proc/PID/map_files`, which is the mapped file itself, whatever became of its path, but
/// needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE and the process alive. Then its path in the
/// process's own root, then in ours (the process may be gone): those only where they are the very
/// inode that is mapped.
///
/// # Errors
///
/// When the file cannot be found by any of these, or is not a regular one.
pub(crate) fn locate(tgid: u32, mapping: &Mapping) -> io::Result<(FileId, PathBuf)> {
    let Backing::File {
        path,
        device,
        inode,
    } = &mapping.backing
    else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let range = &mapping.range;
    let mapped = PathBuf::from(format!(
        "/proc/{tgid}/map_files/{:x}-{:x}",
        range.start, range.end
    ));
    if let Ok(meta) = fs::metadata(&mapped) {
        return regular(&meta).map(|id| (id, mapped));
    }
    let in_its_root = Path::new("/proc")
        .join(tgid.to_string())
        .join("root")
        .join(path.trim_start_matches('/'));
    for candidate in [in_its_root, PathBuf::from(&**path)] {
        if let Ok(meta) = fs::metadata(&candidate)
            && meta.ino() == *inode
            && (libc::major(meta.dev()), libc::minor(meta.dev())) == *device
        {
            return regular(&meta).map(|id| (id, candidate));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn regular(meta: &fs::Metadata) -> io::Result<FileId> {
    if !meta.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(FileId {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
    })
}

/// `[libz.so.1+0x1234]`: an address in a file, where no symbol tells more.
pub(super) fn address_name(path: &str, offset: u64) -> Arc<str> {
    let file = path.rsplit('/').next().unwrap_or(path);
    format!("[{file}+{offset:#x}]").into()
}
