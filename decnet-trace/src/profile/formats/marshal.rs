//! Python's marshal format, as far as a pstats file needs it.
//!
//! Layout: CPython, Python/marshal.c (`w_object`); the codes used here have been the same since
//! Python 3.0, and no references (`FLAG_REF`) are written, so every version reads them.

/// Writes values one after another; containers by their start, their items, and (dict) their end.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// The bytes written.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins a dict: keys and values follow, then [`Self::dict_end`].
    pub(super) fn dict_start(&mut self) {
        self.bytes.push(b'{');
    }

    /// Ends a dict.
    pub(super) fn dict_end(&mut self) {
        self.bytes.push(b'0');
    }

    /// Begins a tuple of so many items.
    pub(super) fn tuple(&mut self, items: u32) {
        self.bytes.push(b'(');
        self.bytes.extend(items.to_le_bytes());
    }

    /// A `str`.
    pub(super) fn string(&mut self, text: &str) {
        self.bytes.push(b'u');
        // No name in a profile comes near 4 GiB.
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(&text.as_bytes()[..len as usize]);
    }

    /// An `int`.
    pub(super) fn integer(&mut self, value: u64) {
        if let Ok(value) = i32::try_from(value) {
            self.bytes.push(b'i');
            self.bytes.extend(value.to_le_bytes());
            return;
        }
        // A long: how many digits of 15 bits, and those, least significant first.
        let digits: Vec<u16> = (0..)
            .map(|at| value.checked_shr(15 * at).unwrap_or(0))
            .take_while(|&rest| rest != 0)
            .map(|rest| (rest & 0x7fff) as u16)
            .collect();
        self.bytes.push(b'l');
        self.bytes.extend((digits.len() as i32).to_le_bytes());
        self.bytes
            .extend(digits.iter().flat_map(|digit| digit.to_le_bytes()));
    }

    /// A `float`.
    pub(super) fn float(&mut self, value: f64) {
        self.bytes.push(b'g');
        self.bytes.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values are written as CPython writes them (`marshal.dumps(value, 1)` gave these bytes).
    #[test]
    fn values_are_written_as_cpython_writes_them() {
        let mut writer = Writer::default();
        writer.tuple(4);
        writer.string("é");
        writer.integer(2_147_483_647);
        writer.integer(1 << 40);
        writer.float(1.5);
        assert_eq!(
            writer.finish(),
            b"(\x04\0\0\0u\x02\0\0\0\xc3\xa9i\xff\xff\xff\x7fl\x03\0\0\0\0\0\0\0\0\x04g\0\0\0\0\0\0\xf8?"
        );
    }
}
