//! What only a living database tells.

use decnet_trace_common::sqlite::{BTREE_SHARED, DATABASE_BTREE, DB_DATABASES, SHARED_PAGER};

use crate::python::{Memory, ReadError};

/// `offsetof(sqlite3_vfs, xSleep)`, as sqlite3.h publishes it.
const VFS_SLEEP: u64 = 112;

/// How many bytes of a `Pager` are searched.
const PAGER_BYTES: usize = 1024;

/// The longest file name that is looked for, in bytes.
const NAME_MAX: usize = 4096;

/// What a database tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Database {
    /// `offsetof(Pager, zFilename)`
    pub file: u16,
    /// The address of the function by which SQLite sleeps.
    pub sleep: u64,
}

/// Looks at the database at `db`. The way to its pager is known to be right where every struct on it
/// points back to where it should; the name of its file, where the name of its journal stands beside it.
/// `None` where either is not so: the database may be closing, or have no file.
///
/// # Errors
///
/// When the process cannot be read.
pub fn look(memory: &impl Memory, db: u64) -> Result<Option<Database>, ReadError> {
    let vfs = memory.u64(db)?;
    let databases = memory.u64(db.wrapping_add(DB_DATABASES))?;
    let btree = memory.u64(databases.wrapping_add(DATABASE_BTREE))?;
    let shared = memory.u64(btree.wrapping_add(BTREE_SHARED))?;
    let pager = memory.u64(shared.wrapping_add(SHARED_PAGER))?;
    if memory.u64(btree)? != db || memory.u64(pager)? != vfs {
        return Ok(None);
    }
    let fields = memory.bytes(pager, PAGER_BYTES)?;
    let pointers: Vec<_> = fields
        .chunks_exact(8)
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | u64::from(byte))
        })
        .collect();
    let found = pointers
        .windows(2)
        .position(|pair| is_name(memory, pair[0], pair[1]));
    let Some(file) = found.and_then(|index| u16::try_from(index * 8).ok()) else {
        return Ok(None);
    };
    let sleep = memory.u64(vfs.wrapping_add(VFS_SLEEP))?;
    Ok(Some(Database { file, sleep }))
}

/// Whether the two strings are a file's name and its journal's.
fn is_name(memory: &impl Memory, name: u64, journal: u64) -> bool {
    let Some(len) = journal.checked_sub(name) else {
        return false;
    };
    // They lie in one block, the name first, with the parameters of a URI in between, if there are any.
    if name == 0 || len > NAME_MAX as u64 {
        return false;
    }
    let Some(name) = string(memory, name) else {
        return false;
    };
    let journal = string(memory, journal);
    !name.is_empty()
        && journal.is_some_and(|journal| {
            journal.strip_prefix(name.as_slice()) == Some(b"-journal".as_slice())
        })
}

/// A string, up to its NUL.
fn string(memory: &impl Memory, address: u64) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < NAME_MAX {
        // Never across a page that may not be there.
        let at = address.wrapping_add(all.len() as u64);
        let room = 256 - (at % 256) as usize;
        let bytes = memory.bytes(at, room).ok()?;
        match bytes.iter().position(|&byte| byte == 0) {
            Some(end) => {
                all.extend_from_slice(&bytes[..end]);
                return Some(all);
            }
            None => all.extend_from_slice(&bytes),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// A little memory: what is not set reads as zero, and nothing lies beyond.
    struct Bytes(Vec<u8>);

    impl Bytes {
        fn set(&mut self, at: usize, value: u64) {
            self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }

        /// A database at 64 with a file whose name is at `Pager + 216`.
        fn database() -> Self {
            let mut memory = Self(vec![0; 1 << 14]);
            for (at, value) in [
                (64, 512),
                (64 + 32, 128),
                (128 + 8, 192),
                (192, 64),
                (192 + 8, 256),
                (256, 4096),
                (4096, 512),
                (4096 + 216, 9000),
                (4096 + 224, 9010),
                (512 + 112, 0x1234),
            ] {
                memory.set(at, value);
            }
            memory.0[9000..9006].copy_from_slice(b"/a.db\0");
            memory.0[9010..9024].copy_from_slice(b"/a.db-journal\0");
            memory
        }
    }

    impl Memory for Bytes {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
            let start = usize::try_from(address).map_err(|_| ReadError::Unmapped(address))?;
            let bytes = start
                .checked_add(buffer.len())
                .and_then(|end| self.0.get(start..end))
                .ok_or(ReadError::Unmapped(address))?;
            buffer.copy_from_slice(bytes);
            Ok(())
        }
    }

    /// A database whose structs fit together tells where its file's name is, and how it sleeps.
    #[test]
    fn finds_the_name() {
        let found = look(&Bytes::database(), 64).unwrap();
        assert_eq!(
            found,
            Some(Database {
                file: 216,
                sleep: 0x1234
            })
        );
    }

    /// Structs that do not point back, and a name without its journal's, are refused.
    #[test]
    fn refuses_what_does_not_fit() {
        let mut stranger = Bytes::database();
        stranger.set(192, 65);
        assert_eq!(look(&stranger, 64).unwrap(), None);
        let mut nameless = Bytes::database();
        nameless.0[9012] = b'x';
        assert_eq!(look(&nameless, 64).unwrap(), None);
    }

    proptest::proptest! {
        /// No memory makes it panic.
        #[test]
        fn survives_anything(
            changes in proptest::collection::vec((0_usize..1 << 14, proptest::num::u8::ANY), 0..64),
        ) {
            let mut memory = Bytes::database();
            for (at, byte) in changes {
                memory.0[at] = byte;
            }
            let _ = look(&memory, 64);
        }
    }
}
