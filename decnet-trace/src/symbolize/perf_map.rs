//! `/tmp/perf-PID.map`: where runtimes that compile code name it (Linux,
//! tools/perf/Documentation/jit-interface.txt). Lines of `START SIZE name`, numbers in hex.
//!
//! The file is another program's, and may be written to while it is read: a line that is none is
//! passed over and counted, and the others stand.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    time::SystemTime,
};

/// The names of a process's compiled code.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    /// Sorted by start.
    entries: Vec<Entry>,
    names: String,
    /// Lines passed over.
    pub(super) malformed: u64,
    version: Option<(u64, SystemTime)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    size: u64,
    name: (u32, u32),
}

/// The most bytes of a file that are read.
const BYTES_MAX: u64 = 32 << 20;

impl PerfMap {
    /// Reads the file of a process. Gives `None` where it has not changed since `old` was read.
    ///
    /// # Errors
    ///
    /// When there is none, or it is not a plain file of the process's own user.
    pub(super) fn read(tgid: u32, old: Option<&Self>) -> io::Result<Option<Self>> {
        let (own_id, user) = own_id_and_user(tgid)?;
        let path = format!("/proc/{tgid}/root/tmp/perf-{own_id}.map");
        // Anyone may put something there: a pipe must not block us, nor a link lead elsewhere.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || (meta.uid() != user && meta.uid() != 0) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let version = Some((meta.len(), meta.modified()?));
        if old.is_some_and(|old| old.version == version) {
            return Ok(None);
        }
        let mut text = Vec::new();
        File::by_ref(&mut file)
            .take(BYTES_MAX)
            .read_to_end(&mut text)?;
        Ok(Some(Self {
            version,
            ..Self::parse(&text)
        }))
    }

    fn parse(text: &[u8]) -> Self {
        let mut map = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            if line.trim_ascii().is_empty() {
                continue;
            }
            match parse_line(line) {
                Some((start, size, name)) => {
                    let from = map.names.len();
                    map.names.push_str(&name);
                    // The file's length is bounded far below 4 GiB.
                    let name = (from as u32, map.names.len() as u32);
                    map.entries.push(Entry { start, size, name });
                }
                None => map.malformed += 1,
            }
        }
        // Stable: of two entries at one address the later stands, which the file added later.
        map.entries.sort_by_key(|entry| entry.start);
        map
    }

    /// The name of the code at an address.
    pub(super) fn find(&self, address: u64) -> Option<&str> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let entry = self.entries[..after].last()?;
        (address - entry.start < entry.size)
            .then(|| &self.names[entry.name.0 as usize..entry.name.1 as usize])
    }
}

fn parse_line(line: &[u8]) -> Option<(u64, u64, String)> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.trim().splitn(3, ' ');
    let mut hex = || {
        let text = fields.next()?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    let name = fields.next()?.trim();
    (!name.is_empty() && start.checked_add(size).is_some()).then(|| (start, size, name.to_owned()))
}

/// The id that a process knows itself by (that of its innermost pid namespace), and its user.
fn own_id_and_user(tgid: u32) -> io::Result<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let own_id = field("NStgid:")
        .and_then(|ids| ids.split_ascii_whitespace().next_back()?.parse().ok())
        .unwrap_or(tgid);
    // Real, effective, saved, file system: files are made as the last.
    let user = field("Uid:")
        .and_then(|ids| ids.split_ascii_whitespace().nth(3)?.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((own_id, user))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A line cut off half-way, or made of anything, costs itself and no other.
    #[test]
    fn a_malformed_line_costs_itself() {
        let map = PerfMap::parse(
            b"1000 20 first one\nnonsense\n2000 10 py::f:/srv/app.py\nffffffffffffffff 10 overflow\n\n3000 1",
        );
        assert_eq!(map.malformed, 3);
        assert_eq!(map.find(0x1000), Some("first one"));
        assert_eq!(map.find(0x101f), Some("first one"));
        assert_eq!(map.find(0x1020), None);
        assert_eq!(map.find(0x2005), Some("py::f:/srv/app.py"));
        assert_eq!(map.find(0xfff), None);
    }

    /// Where an address was used again, the later name stands.
    #[test]
    fn the_later_of_two_names_stands() {
        let map = PerfMap::parse(b"1000 20 old\n1000 10 new\n");
        assert_eq!(map.find(0x1008), Some("new"));
    }

    proptest! {
        /// No bytes make the parser panic, and what it finds is in its text.
        #[test]
        fn any_bytes_are_survived(text in prop::collection::vec(any::<u8>(), 0..200), address in any::<u64>()) {
            let _ = PerfMap::parse(&text).find(address);
        }
    }
}
