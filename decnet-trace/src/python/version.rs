//! CPython's version: as a number in memory, as text in an executable, in a file's name.

use std::fmt;

use memchr::memmem;

/// A version of CPython.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 3, for all that is supported.
    pub major: u8,
    /// The minor version.
    pub minor: u8,
    /// The patch release.
    pub micro: u8,
    /// The release level and serial, as the last byte of `PY_VERSION_HEX`: 0xf0 is final.
    level: u8,
}

impl Version {
    /// The final release of that number.
    pub const fn new(major: u8, minor: u8, micro: u8) -> Self {
        Self {
            major,
            minor,
            micro,
            level: 0xf0,
        }
    }

    /// Reads `PY_VERSION_HEX` (patchlevel.h).
    pub const fn from_hex(hex: u32) -> Self {
        let [major, minor, micro, level] = hex.to_be_bytes();
        Self {
            major,
            minor,
            micro,
            level,
        }
    }

    /// Whether decnet-trace knows its layout.
    pub const fn is_supported(self) -> bool {
        self.major == 3 && self.minor >= 8 && self.minor <= 15
    }

    /// Reads `PY_VERSION`: `3.8.18`, `3.9.0rc1`, `3.10.0+`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('+').unwrap_or(text);
        let mut parts = text.splitn(3, '.');
        let (major, minor, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (micro, level) = rest.split_at(end);
        let level = match level {
            "" => 0xf0,
            _ => {
                let (nibble, serial) = [("a", 0xa0), ("b", 0xb0), ("rc", 0xc0)]
                    .iter()
                    .find_map(|(name, nibble)| Some((nibble, level.strip_prefix(name)?)))?;
                nibble | serial.parse::<u8>().ok().filter(|serial| *serial < 16)?
            }
        };
        let number = |text: &str| match text.as_bytes().first()? {
            b'0'..=b'9' => text.parse().ok(),
            _ => None,
        };
        Some(Self {
            major: number(major)?,
            minor: number(minor)?,
            micro: number(micro)?,
            level,
        })
    }

    /// Finds what `Py_GetVersion` returns, `3.8.18 (default, …`, in the interpreter's zero-initialised
    /// data, where it puts it when it starts. (From 3.11 on `Py_Version` holds the version.)
    pub(super) fn find(data: &[u8]) -> Option<Self> {
        memmem::find_iter(data, b" (").find_map(|end| {
            let start = data[..end].iter().rposition(|byte| *byte == 0)? + 1;
            let text = std::str::from_utf8(data.get(start..end)?)
                .ok()
                .filter(|text| text.len() < 16)?;
            Self::parse(text).filter(|version| matches!(version.major, 2 | 3))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            micro,
            level,
        } = self;
        write!(f, "{major}.{minor}.{micro}")?;
        match level >> 4 {
            0xa => write!(f, "a{}", level & 15),
            0xb => write!(f, "b{}", level & 15),
            0xc => write!(f, "rc{}", level & 15),
            _ => Ok(()),
        }
    }
}

/// What the name of a mapped file says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedFile {
    /// `libpython3.11.so.1.0`
    Library {
        /// The major version.
        major: u8,
        /// The minor version.
        minor: u8,
    },
    /// `python3.11`, `python3`, `python`
    Program {
        /// The major version, where the name has it.
        major: Option<u8>,
        /// The minor version, where the name has it.
        minor: Option<u8>,
    },
    /// `pypy3.9`, `libpypy3.9-c.so`
    PyPy,
}

impl NamedFile {
    /// Judges a file by its name without folder.
    pub(super) fn of(name: &str) -> Option<Self> {
        if name.starts_with("libpypy") || name.starts_with("pypy") {
            return Some(Self::PyPy);
        }
        if let Some(rest) = name.strip_prefix("libpython") {
            // libpython3.so, the stable ABI's stub, has no minor version.
            let (version, _) = rest.split_once(".so")?;
            let (major, minor) = numbers(version)?;
            return Some(Self::Library {
                major: major?,
                minor: minor?,
            });
        }
        let (major, minor) = numbers(name.strip_prefix("python")?)?;
        Some(Self::Program { major, minor })
    }

    /// The major and minor version, where the name has both.
    pub(super) fn version(self) -> Option<(u8, u8)> {
        match self {
            Self::Library { major, minor } => Some((major, minor)),
            Self::Program { major, minor } => major.zip(minor),
            Self::PyPy => None,
        }
    }
}

/// Reads `3.7m`, `3` or nothing; `None` for anything else.
fn numbers(text: &str) -> Option<(Option<u8>, Option<u8>)> {
    // The ABI flags that a name can end with.
    let text = text.trim_end_matches(['d', 'm', 'u', 't']);
    if text.is_empty() {
        return Some((None, None));
    }
    match text.split_once('.') {
        Some((major, minor)) => Some((Some(major.parse().ok()?), Some(minor.parse().ok()?))),
        None => Some((Some(text.parse().ok()?), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions print as CPython prints them.
    #[test]
    fn prints() {
        assert_eq!(Version::from_hex(0x030b_07f0).to_string(), "3.11.7");
        assert_eq!(Version::from_hex(0x030f_00c2).to_string(), "3.15.0rc2");
        assert_eq!(
            Version::parse("3.15.0rc2"),
            Some(Version::from_hex(0x030f_00c2))
        );
        assert_eq!(
            Version::parse("3.10.0a7+"),
            Some(Version::from_hex(0x030a_00a7))
        );
    }

    /// The interpreter's version is found among other data.
    #[test]
    fn finds_its_own() {
        let data =
            b"\0\0x (y)\x003.45 (a\0\x003.8.18 (default, May  9 2026, 07:33:13) \n[GCC 12.2.0]\0\0";
        assert_eq!(Version::find(data), Some(Version::new(3, 8, 18)));
        assert_eq!(
            Version::find(b"\x002.7.18 (default"),
            Some(Version::new(2, 7, 18))
        );
        assert_eq!(Version::find(b"3.8.18 (default"), None);
        assert_eq!(Version::find(b"\x003.8.18"), None);
    }

    /// Files are told by their names, ABI flags and all.
    #[test]
    fn judges_names() {
        let library = |major, minor| Some(NamedFile::Library { major, minor });
        let program = |major, minor| Some(NamedFile::Program { major, minor });
        assert_eq!(NamedFile::of("libpython3.11.so.1.0"), library(3, 11));
        assert_eq!(NamedFile::of("libpython3.7m.so.1.0"), library(3, 7));
        assert_eq!(NamedFile::of("libpython3.13t.so.1.0"), library(3, 13));
        assert_eq!(NamedFile::of("libpython2.7.so.1.0"), library(2, 7));
        assert_eq!(NamedFile::of("libpython3.so"), None);
        assert_eq!(NamedFile::of("python3.11"), program(Some(3), Some(11)));
        assert_eq!(NamedFile::of("python3"), program(Some(3), None));
        assert_eq!(NamedFile::of("python"), program(None, None));
        assert_eq!(NamedFile::of("python3-config"), None);
        assert_eq!(NamedFile::of("pypy3.9"), Some(NamedFile::PyPy));
        assert_eq!(NamedFile::of("bash"), None);
    }

    proptest::proptest! {
        /// Neither names nor bytes make the parsers panic.
        #[test]
        fn survives_anything(name in "\\PC*", bytes in proptest::collection::vec(0u8..64, 0..200)) {
            let _ = NamedFile::of(&name);
            let _ = Version::parse(&name);
            let _ = Version::find(&bytes);
        }
    }
}
