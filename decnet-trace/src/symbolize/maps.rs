//! The executable mappings of a process, out of `/proc/PID/maps` (proc_pid_maps(5)).

use std::{fs, io, ops::Range, path::Path, sync::Arc};

/// What an executable mapping maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A file, with its device and inode numbers as maps shows them.
    File {
        /// The path in the process's own mount namespace, ` (deleted)` removed.
        path: Arc<str>,
        /// Major and minor device number.
        device: (u32, u32),
        /// Inode number.
        inode: u64,
    },
    /// The kernel's vDSO.
    Vdso,
    /// No file: code made at run time, as a rule.
    Anonymous,
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The addresses.
    pub(crate) range: Range<u64>,
    /// Where in the file the range begins.
    pub(crate) offset: u64,
    /// What is mapped.
    pub(crate) backing: Backing,
}

/// Reads the executable mappings of a process, in the order of their addresses.
///
/// # Errors
///
/// When the process is gone or may not be looked into.
pub(crate) fn read(tgid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(Path::new("/proc").join(tgid.to_string()).join("maps"))?;
    Ok(parse(&text))
}

/// The executable mappings in the text of a maps file; lines that are none are passed over.
fn parse(text: &[u8]) -> Vec<Mapping> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .take(MAPPINGS_MAX)
        .collect()
}

/// The most executable mappings of a process that are looked at. Runtimes that compile code map many;
/// the default limit of mappings of all kinds is 65,530.
const MAPPINGS_MAX: usize = 16_384;

fn parse_line(line: &[u8]) -> Option<Mapping> {
    // 7f0a1000-7f0a3000 r-xp 00002000 fe:01 1234      /usr/lib/libz.so.1
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let device = |text| u32::from_str_radix(text, 16).ok();
    let range = hex(start)?..hex(end)?;
    if range.is_empty() {
        return None;
    }
    let backing = match name {
        b"[vdso]" => Backing::Vdso,
        [b'/', ..] => Backing::File {
            path: unescape(name.strip_suffix(b" (deleted)").unwrap_or(name)),
            device: (device(major)?, device(minor)?),
            inode,
        },
        _ => Backing::Anonymous,
    };
    Some(Mapping {
        range,
        offset: hex(offset)?,
        backing,
    })
}

/// The kernel writes a line break in a path as `\012`; bytes that are not UTF-8 are replaced.
fn unescape(path: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(path).replace("\\012", "\n").into()
}

/// The mapping that holds an address.
pub(super) fn find(mappings: &[Mapping], address: u64) -> Option<usize> {
    let after = mappings.partition_point(|mapping| mapping.range.start <= address);
    let at = after.checked_sub(1)?;
    mappings[at].range.contains(&address).then_some(at)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    /// Files, deleted ones among them, the vDSO and anonymous code are told apart; data is left out.
    #[test]
    fn executable_mappings_are_told_apart() {
        let text = b"\
55d0c0000000-55d0c0001000 r--p 00000000 fe:01 99                         /usr/bin/python3.11
55d0c0001000-55d0c0200000 r-xp 00001000 fe:01 99                         /usr/bin/python3.11
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000002000-7f0000003000 r-xp 00003000 00:2a 7                          /tmp/a b\\012c.so (deleted)
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        let mappings = parse(text);
        let backings: Vec<_> = mappings.iter().map(|mapping| &mapping.backing).collect();
        let file = |path: &str, device, inode| Backing::File {
            path: path.into(),
            device,
            inode,
        };
        assert_eq!(
            backings,
            [
                &file("/usr/bin/python3.11", (0xfe, 1), 99),
                &Backing::Anonymous,
                &file("/tmp/a b\nc.so", (0, 0x2a), 7),
                &Backing::Vdso,
                &Backing::Anonymous,
            ]
        );
        assert_eq!(mappings[0].offset, 0x1000);
        assert_eq!(find(&mappings, 0x55d0_c000_1000), Some(0));
        assert_eq!(find(&mappings, 0x55d0_c020_0000), None);
        assert_eq!(find(&mappings, 0x7f00_0000_0fff), Some(1));
        assert_eq!(find(&mappings, 0), None);
    }

    /// The maps of this very process hold the address of this very function.
    #[test]
    fn own_maps_hold_own_code() {
        let mappings = read(std::process::id()).unwrap();
        let at = find(&mappings, own_maps_hold_own_code as *const () as u64).unwrap();
        let Backing::File { path, .. } = &mappings[at].backing else {
            panic!("{:?}", mappings[at]);
        };
        assert_eq!(&**path, std::env::current_exe().unwrap().to_str().unwrap());
    }

    proptest! {
        /// No text makes the parser panic.
        #[test]
        fn any_text_is_survived(text in "([0-9a-f]{0,17}-[0-9a-f]{0,17} r.xp [0-9a-f]{0,9} [0-9:]{0,9} [0-9]{0,3}|\\PC{0,40})( /.{0,9})?\n{0,2}") {
            for mapping in parse(text.as_bytes()) {
                prop_assert!(!mapping.range.is_empty());
            }
        }
    }
}
