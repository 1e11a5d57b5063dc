//! Reading Python objects from outside: strings, bytes, and (for asyncio) dicts, sets and instances.
//!
//! Everything read may be garbage: another thread frees objects meanwhile. So each size is bounded,
//! each index checked, and nothing that does not fit is believed.

use super::{
    layout::Layout,
    memory::{Memory, ReadError},
};

/// The most characters of a string that are read; a longer one is cut.
const STRING_MAX: u64 = 4096;

/// Why an object was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ObjectError {
    /// Its memory could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is not what it should be.
    #[error("what is there is no {0}")]
    Malformed(&'static str),
    /// It is longer than is read.
    #[error("it is too long")]
    TooLong,
}

/// The objects of a process with this layout.
#[derive(Clone, Copy)]
pub(super) struct Objects<'a, M> {
    pub(super) memory: &'a M,
    pub(super) layout: &'a Layout,
}

impl<M: Memory> Objects<'_, M> {
    /// The pointer (or other 64-bit number) in the field at this offset of a struct.
    pub(super) fn pointer(&self, base: u64, field: u32) -> Result<u64, ReadError> {
        self.memory.u64(base.wrapping_add(u64::from(field)))
    }

    /// A `str`: its characters, at most the first [`STRING_MAX`].
    pub(super) fn string(&self, address: u64) -> Result<String, ObjectError> {
        let layout = self.layout;
        let mut header = [0; 64];
        let header = &mut header[..(layout.unicode_state as usize + 4).min(64)];
        self.memory.read(address, header)?;
        let malformed = ObjectError::Malformed("str");
        let length = header
            .get(layout.unicode_length as usize..)
            .and_then(|b| b.first_chunk::<8>());
        let state = header
            .get(layout.unicode_state as usize..)
            .and_then(|b| b.first_chunk::<4>());
        let (Some(length), Some(state)) = (length, state) else {
            return Err(malformed);
        };
        let (length, state) = (u64::from_le_bytes(*length), u32::from_le_bytes(*state));
        let width =
            (state & layout.unicode_kind_mask) >> layout.unicode_kind_mask.trailing_zeros().min(31);
        let ascii = state & layout.unicode_ascii_mask != 0;
        // All strings that the compiler and the import system make are compact.
        if state & layout.unicode_compact_mask == 0
            || !matches!((width, ascii), (1, _) | (2 | 4, false))
            || length >> 48 != 0
        {
            return Err(malformed);
        }
        let data = if ascii {
            layout.unicode_ascii_data
        } else {
            layout.unicode_compact_data
        };
        let units = length.min(STRING_MAX) as usize;
        let bytes = self.memory.bytes(
            address.wrapping_add(u64::from(data)),
            units * width as usize,
        )?;
        Ok(decode(&bytes, width, length > STRING_MAX))
    }

    /// A `bytes`, where it is at most `max` long.
    pub(super) fn bytes(&self, address: u64, max: u64) -> Result<Vec<u8>, ObjectError> {
        let length = self.pointer(address, self.layout.object_var_size)?;
        // No process has as many bytes.
        if length >> 48 != 0 {
            return Err(ObjectError::Malformed("bytes"));
        }
        if length > max {
            return Err(ObjectError::TooLong);
        }
        Ok(self.memory.bytes(
            address.wrapping_add(u64::from(self.layout.bytes_data)),
            length as usize,
        )?)
    }
}

/// Characters of one, two or four bytes each. Lone surrogates, which `str` may hold, become U+FFFD.
fn decode(bytes: &[u8], width: u32, cut: bool) -> String {
    let character = |unit: u32| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER);
    let mut text: String = match width {
        1 => bytes.iter().map(|byte| char::from(*byte)).collect(),
        2 => bytes
            .as_chunks()
            .0
            .iter()
            .map(|unit| character(u16::from_le_bytes(*unit).into()))
            .collect(),
        _ => bytes
            .as_chunks()
            .0
            .iter()
            .map(|unit| character(u32::from_le_bytes(*unit)))
            .collect(),
    };
    if cut {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::{super::memory::tests::Image, *};

    /// A string as CPython lays it out: 1, 2 or 4 bytes a character, after a header by kind.
    fn string(layout: &Layout, text: &str) -> Image {
        let widest = text.chars().map(u32::from).max().unwrap_or(0);
        let (width, ascii) = match widest {
            0..0x80 => (1, true),
            0x80..0x100 => (1, false),
            0x100..0x1_0000 => (2, false),
            _ => (4, false),
        };
        let data = if ascii {
            layout.unicode_ascii_data
        } else {
            layout.unicode_compact_data
        };
        let mut bytes = vec![0xee; data as usize];
        let length = text.chars().count() as u64;
        bytes[layout.unicode_length as usize..][..8].copy_from_slice(&length.to_le_bytes());
        let mut state =
            layout.unicode_compact_mask | width << layout.unicode_kind_mask.trailing_zeros();
        if ascii {
            state |= layout.unicode_ascii_mask;
        }
        bytes[layout.unicode_state as usize..][..4].copy_from_slice(&state.to_le_bytes());
        for c in text.chars() {
            bytes.extend_from_slice(&u32::from(c).to_le_bytes()[..width as usize]);
        }
        Image(vec![(0x1000, bytes)])
    }

    /// Strings of every width come back whole, in every version.
    #[test]
    fn strings() {
        for minor in 8..=15 {
            let layout = Layout::of_minor(minor).unwrap();
            for text in ["", "handler", "größe", "λ函数", "🦀.py"] {
                let memory = string(layout, text);
                let objects = Objects {
                    memory: &memory,
                    layout,
                };
                assert_eq!(objects.string(0x1000).as_deref(), Ok(text), "3.{minor}");
            }
        }
    }

    /// A very long string is cut, and says so.
    #[test]
    fn long_strings_are_cut() {
        let layout = Layout::of_minor(12).unwrap();
        let memory = string(layout, &"x".repeat(5000));
        let objects = Objects {
            memory: &memory,
            layout,
        };
        let text = objects.string(0x1000).unwrap();
        assert_eq!(
            (text.len(), text.ends_with('…')),
            (4096 + '…'.len_utf8(), true)
        );
    }

    proptest::proptest! {
        /// Garbage is refused or read as garbage; nothing panics, nothing allocates without bound.
        #[test]
        fn survives_garbage(minor in 8u8..=15, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let layout = Layout::of_minor(minor).unwrap();
            let memory = Image(vec![(0x1000, bytes)]);
            let objects = Objects { memory: &memory, layout };
            let _ = objects.string(0x1000);
            let _ = objects.bytes(0x1000, 65_536);
        }
    }
}
