//! The mapped files of a process, from /proc/PID/maps.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::memory::ReadError;

/// The most of /proc/PID/maps that is read, in bytes: some 500,000 mappings.
const MAPS_MAX: u64 = 64 << 20;

/// A file mapped into a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedFile {
    /// Its path, as the process's own mount namespace names it.
    pub(crate) path: String,
    /// Where its lowest mapping starts.
    pub(crate) start: u64,
    /// Where that mapping ends.
    pub(crate) end: u64,
    /// Which offset in the file is mapped at `start`.
    pub(crate) offset: u64,
    /// The device, as maps prints it, and the inode: the file's identity.
    pub(crate) identity: (String, u64),
}

/// The distinct files that a process maps, in the order of their addresses.
pub(crate) fn mapped_files(pid: u32) -> Result<Vec<MappedFile>, ReadError> {
    let mut text = Vec::new();
    let maps = File::open(format!("/proc/{pid}/maps")).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => ReadError::Denied,
        _ => ReadError::Gone,
    })?;
    // Reading ends early (with nothing) where the process has become a zombie.
    maps.take(MAPS_MAX)
        .read_to_end(&mut text)
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ReadError::Denied,
            _ => ReadError::Gone,
        })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Reads maps; a line that cannot be read is skipped.
fn parse(text: &str) -> Vec<MappedFile> {
    let mut files: Vec<MappedFile> = Vec::new();
    for file in text.lines().filter_map(parse_line) {
        if !files
            .iter()
            .rev()
            .any(|known| known.identity == file.identity)
        {
            files.push(file);
        }
    }
    files
}

/// `start-end perms offset dev inode   path`
fn parse_line(line: &str) -> Option<MappedFile> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut rest = line;
    let mut field = || {
        let (head, tail) = rest.split_once(' ')?;
        rest = tail.trim_start();
        Some(head)
    };
    let (start, end) = field()?.split_once('-')?;
    let _permissions = field()?;
    let (offset, device, inode) = (field()?, field()?, field()?);
    if !rest.starts_with('/') {
        return None;
    }
    Some(MappedFile {
        path: rest.to_owned(),
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        identity: (device.to_owned(), inode.parse().ok()?),
    })
}

impl MappedFile {
    /// Opens the very file that is mapped, deleted or in another mount namespace though it may be.
    pub(crate) fn open(&self, pid: u32) -> io::Result<File> {
        File::open(self.host_path(pid))
    }

    /// A path by which this process reaches the file: through the traced process's root, in its own
    /// (where the traced process has only changed its root), or, where neither has it, through the
    /// mapping itself, as long as that lasts.
    pub(crate) fn host_path(&self, pid: u32) -> PathBuf {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        let through_root =
            Path::new(&format!("/proc/{pid}/root")).join(path.trim_start_matches('/'));
        let (start, end) = (self.start, self.end);
        [through_root, PathBuf::from(path)]
            .into_iter()
            .find(|path| fs::metadata(path).is_ok_and(|file| file.ino() == self.identity.1))
            .unwrap_or_else(|| PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}")))
    }

    /// The file's name without its folder.
    pub(crate) fn name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// The path of the program that a process executes, as its own mount namespace names it.
pub(crate) fn executable(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// Files are listed once, by identity; anonymous memory and garbage are not files.
    #[test]
    fn parses_maps() {
        let files = parse(
            "55d0-55d1 r--p 00000000 fe:00 77    /usr/bin/my python (deleted)\n\
             55d1-55d2 r-xp 00001000 fe:00 77    /usr/bin/my python (deleted)\n\
             55d2-55d3 rw-p 00000000 00:00 0    [heap]\n\
             55d3-55d4 rw-p 00000000 00:00 0\n\
             garbage\n\
             7f00-7f01 r--p 00002000 fe:00 78    /lib/libc.so.6\n",
        );
        assert_eq!(files.len(), 2);
        assert_eq!(
            (files[0].start, files[0].end, files[0].name()),
            (0x55d0, 0x55d1, "my python")
        );
        assert_eq!(
            (files[1].offset, files[1].path.as_str()),
            (0x2000, "/lib/libc.so.6")
        );
    }

    /// A process's own maps name its own executable, and it opens through them.
    #[test]
    fn opens_own_executable() {
        let own = std::process::id();
        let exe = executable(own).unwrap();
        let files = mapped_files(own).unwrap();
        let file = files
            .iter()
            .find(|file| Path::new(&file.path) == exe)
            .unwrap();
        assert!(file.host_path(own).starts_with("/proc"));
        let mut magic = [0; 4];
        file.open(own).unwrap().read_exact(&mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF");
    }

    proptest::proptest! {
        /// No text makes the parser panic.
        #[test]
        fn survives_anything(text in "\\PC*") {
            parse(&text);
        }
    }
}
