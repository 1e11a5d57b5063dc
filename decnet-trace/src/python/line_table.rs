//! The line tables of code objects: three formats, each as CPython's own `PyCode_Addr2Line` reads it.

/// Which format a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `co_lnotab`, until 3.9: pairs of {bytes forward, signed lines forward}.
    Pairs,
    /// `co_linetable` of 3.10: pairs of {bytes covered, signed lines forward or -128 for none}.
    Ranges,
    /// `co_linetable` from 3.11 on: locations with columns, in variable-length entries.
    Locations,
}

impl Format {
    /// The format of CPython 3.`minor`.
    pub(super) const fn of_minor(minor: u8) -> Self {
        match minor {
            ..=9 => Self::Pairs,
            10 => Self::Ranges,
            11.. => Self::Locations,
        }
    }

    /// The line of the instruction at `offset` bytes into the code; 0 where the table gives none.
    pub(super) fn line(self, table: &[u8], first_line: u32, offset: u32) -> u32 {
        let line = match self {
            Self::Pairs => pairs(table, i64::from(first_line), u64::from(offset)),
            Self::Ranges => ranges(table, i64::from(first_line), u64::from(offset)),
            Self::Locations => locations(table, i64::from(first_line), u64::from(offset)),
        };
        line.and_then(|line| u32::try_from(line).ok()).unwrap_or(0)
    }
}

fn pairs(table: &[u8], mut line: i64, offset: u64) -> Option<i64> {
    let mut end = 0;
    for [bytes, lines] in table.as_chunks().0 {
        end += u64::from(*bytes);
        if end > offset {
            break;
        }
        line = line.checked_add(i64::from(*lines as i8))?;
    }
    Some(line)
}

fn ranges(table: &[u8], mut line: i64, offset: u64) -> Option<i64> {
    let mut end = 0;
    for [bytes, lines] in table.as_chunks().0 {
        let lines = *lines as i8;
        end += u64::from(*bytes);
        if lines != i8::MIN {
            line = line.checked_add(i64::from(lines))?;
        }
        if end > offset {
            return (lines != i8::MIN).then_some(line);
        }
    }
    None
}

fn locations(table: &[u8], mut line: i64, offset: u64) -> Option<i64> {
    let mut end = 0;
    let mut rest = table;
    while let [head, tail @ ..] = rest {
        // Every entry's first byte, and no other, has the top bit set.
        let body = tail.iter().take_while(|byte| **byte & 0x80 == 0).count();
        let (body, next) = tail.split_at(body);
        let kind = (head >> 3) & 15;
        end += (u64::from(head & 7) + 1) * 2;
        // Sixteen of the greatest numbers are more than 64 bits.
        line = line.checked_add(match kind {
            // Long, and without columns: the lines forward are spelled out.
            13 | 14 => signed_varint(body)?,
            // On one of the next lines, with columns.
            10..=12 => i64::from(kind - 10),
            _ => 0,
        })?;
        if end > offset {
            return (kind != 15).then_some(line);
        }
        rest = next;
    }
    None
}

/// Six bits a byte, the least significant first, bit 6 says that there is more; the sign is the
/// lowest bit of the whole.
fn signed_varint(bytes: &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 63) << (index * 6);
        if byte & 64 == 0 {
            let magnitude = (value >> 1).cast_signed();
            return Some(if value & 1 == 0 {
                magnitude
            } else {
                -magnitude
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `co_lnotab`: lines go forward and back.
    #[test]
    fn pairs_format() {
        let table = [6, 1, 8, 5, 2, 0xfe];
        let lines: Vec<_> = [0, 5, 6, 13, 14, 15, 16, 90]
            .map(|o| Format::Pairs.line(&table, 10, o))
            .into();
        assert_eq!(lines, [10, 10, 11, 11, 16, 16, 14, 14]);
    }

    /// 3.10: a range may have no line; beyond the table there is none.
    #[test]
    fn ranges_format() {
        let table = [4, 1, 2, 0x80, 6, 3];
        let lines: Vec<_> = [0, 3, 4, 6, 11, 12]
            .map(|o| Format::Ranges.line(&table, 10, o))
            .into();
        assert_eq!(lines, [11, 11, 0, 14, 14, 0]);
    }

    /// 3.11: all four ways to move on: not at all, by a little, by a number, and to no line.
    #[test]
    fn locations_format() {
        let entry = |kind: u8, units: u8| 0x80 | kind << 3 | (units - 1);
        let table = [
            entry(0, 2),
            0x12, // same line, short columns
            entry(11, 1),
            1,
            2, // one line on
            entry(13, 3),
            0b00_1010, // five lines on, no columns
            entry(14, 1),
            0b00_0111,
            0,
            1,
            1,            // three lines back, long
            entry(15, 1), // none
        ];
        let lines: Vec<_> = [0, 3, 4, 6, 11, 12, 14, 16]
            .map(|o| Format::Locations.line(&table, 10, o))
            .into();
        assert_eq!(lines, [10, 10, 11, 16, 16, 13, 0, 0]);
    }

    /// Numbers of more than six bits, of either sign, and one that does not end.
    #[test]
    fn varints() {
        assert_eq!(signed_varint(&[0b10]), Some(1));
        assert_eq!(signed_varint(&[0b11]), Some(-1));
        assert_eq!(
            signed_varint(&[64 | 0b00_1000, 0b11]),
            Some((3 << 6 | 0b1000) >> 1)
        );
        assert_eq!(signed_varint(&[64]), None);
        assert_eq!(signed_varint(&[127; 20]), None);
    }

    /// Lines that add up to more than any number is are none, in either direction.
    #[test]
    fn lines_beyond_all_numbers() {
        for sign in [0, 1] {
            let mut entry = vec![0x80 | 13 << 3, 126 | sign];
            entry.extend([127; 8]);
            entry.push(63);
            assert!(signed_varint(&entry[1..]).is_some_and(|lines| lines.unsigned_abs() >> 58 > 0));
            let table = entry.repeat(64);
            assert_eq!(Format::Locations.line(&table, 1, 1000), 0);
            assert_eq!(Format::Locations.line(&table, u32::MAX, 100), 0);
        }
    }

    proptest::proptest! {
        /// Entries that are well-formed, with numbers of every size up to the greatest, make no decoder panic.
        #[test]
        fn survives_great_numbers(
            entries in proptest::collection::vec(
                (13u8..=14, 0u8..8, proptest::collection::vec(32u8..64, 1..=10)),
                0..80,
            ),
            first in proptest::num::u32::ANY,
            offset in 0u32..2000,
        ) {
            let mut table = Vec::new();
            for (kind, units, digits) in entries {
                table.push(0x80 | kind << 3 | units);
                let last = digits.len() - 1;
                table.extend(digits.iter().enumerate().map(|(at, digit)| {
                    if at == last { *digit } else { digit | 64 }
                }));
            }
            let _ = Format::Locations.line(&table, first, offset);
        }

        /// No table makes a decoder panic.
        #[test]
        fn survives_anything(
            table in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            first in proptest::num::u32::ANY,
            offset in proptest::num::u32::ANY,
        ) {
            for format in [Format::Pairs, Format::Ranges, Format::Locations] {
                let _ = format.line(&table, first, offset % 1000);
                let _ = format.line(&table, first, offset);
            }
        }
    }
}
