#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, fs, process::Command};

use proptest::prelude::*;

use super::*;
use crate::symbolize::{Backing, mappings};

/// What readelf says of an address: the CFA, where the caller's `rbp` is, and the return address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    cfa: String,
    rbp: String,
    ra: String,
}

impl Said {
    /// Where neither the function's entry nor what it refers to says anything.
    fn nothing() -> Self {
        Self {
            cfa: "nothing".to_owned(),
            rbp: "u".to_owned(),
            ra: "nothing".to_owned(),
        }
    }
}

/// What readelf prints of a file's unwind table; `None` where there is no readelf.
fn readelf(path: &Path) -> Option<String> {
    let output = Command::new("readelf")
        .arg("--debug-dump=frames-interp")
        .arg(path)
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What readelf's text says: each rule by the address from which on it holds, and `None` behind each function.
fn said(text: &str) -> BTreeMap<u64, Option<Said>> {
    let mut reader = Reader::default();
    for line in text.lines() {
        reader
            .line(line)
            .unwrap_or_else(|| panic!("readelf writes what is not understood: {line:?}"));
    }
    for end in reader.ends {
        reader.all.entry(end).or_insert(None);
    }
    reader.all
}

#[derive(Default)]
struct Reader {
    all: BTreeMap<u64, Option<Said>>,
    /// What each CIE says, by where it lies. Those of signal frames say nothing.
    cies: BTreeMap<u64, Said>,
    /// The one whose lines are read; `None` within a function.
    cie: Option<u64>,
    columns: Vec<String>,
    ends: Vec<u64>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Option<()> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        // A register is followed by its name in brackets.
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|word| !word.starts_with('('))
            .collect();
        if let Some(range) = words.iter().find_map(|word| word.strip_prefix("pc=")) {
            let (start, end) = range.split_once("..")?;
            // What no table follows is as its CIE says.
            let cie = words.iter().find_map(|word| word.strip_prefix("cie="));
            let said = self.cies.get(&hex(cie?)?).cloned();
            let said = said.unwrap_or_else(Said::nothing);
            self.all.insert(hex(start)?, Some(said));
            self.ends.push(hex(end)?);
            self.cie = None;
        } else if words.contains(&"terminator") {
            self.cie = None;
        } else if words.contains(&"CIE") {
            self.cie = Some(hex(words[0])?);
        } else if words.first() == Some(&"LOC") {
            self.columns = words.iter().map(|&word| word.to_owned()).collect();
        } else if words.len() == self.columns.len() && words.len() > 2 {
            let at = |name: &str| self.columns.iter().position(|column| column == name);
            let said = Said {
                cfa: words[1].into(),
                rbp: at("rbp").map_or("u", |at| words[at]).into(),
                ra: words[at("ra")?].into(),
            };
            match self.cie {
                Some(cie) => drop(self.cies.insert(cie, said)),
                None => drop(self.all.insert(hex(words[0])?, Some(said))),
            }
        }
        Some(())
    }
}

/// What is said of functions with a table of their own, with one of their CIE's, and of those of which nothing
/// is said, as in the C library's code that signals' handlers return to.
#[test]
fn readelf_is_understood() {
    let text = "\
Contents of the .eh_frame section:


00000000 0000000000000014 00000000 CIE \"zR\" cf=1 df=-8 ra=16
   LOC           CFA      ra
0000000000000000 rsp+8    c-8

00000018 0000000000000010 0000001c FDE cie=00000000 pc=0000000000001000..0000000000001010

0000002c 0000000000000010 00000000 CIE \"zRS\" cf=1 df=-8 ra=16

00000040 0000000000000078 00000018 FDE cie=0000002c pc=0000000000002000..0000000000002010
   LOC           CFA      rbp   ra
0000000000002004 exp      exp   exp

000000bc 0000000000000010 000000c0 FDE cie=00000000 pc=0000000000003000..0000000000003010
   LOC           CFA      ra
0000000000003000 rsp+16   c-8

000000d0 ZERO terminator
";
    let says = |cfa: &str, rbp: &str, ra: &str| {
        Some(Said {
            cfa: cfa.to_owned(),
            rbp: rbp.to_owned(),
            ra: ra.to_owned(),
        })
    };
    let expected = BTreeMap::from([
        (0x1000, says("rsp+8", "u", "c-8")),
        (0x1010, None),
        (0x2000, Some(Said::nothing())),
        (0x2004, says("exp", "exp", "exp")),
        (0x2010, None),
        (0x3000, says("rsp+16", "u", "c-8")),
        (0x3010, None),
    ]);
    assert_eq!(said(text), expected);
}

/// Whether a row says the same.
fn agrees(row: Row, said: Option<&Said>) -> bool {
    let Some(said) = said else {
        return row.rule == cfa::GAP;
    };
    let rule = row.rule & cfa::MASK;
    if said.ra == "u" {
        return rule == cfa::END;
    }
    // `vfork` keeps its return address in a register meanwhile.
    if said.ra != "c-8" && said.cfa != "exp" {
        return rule == cfa::UNSUPPORTED;
    }
    let offset = i64::from(row.offset) * 8;
    let register = |rule| match rule {
        cfa::RSP => "rsp",
        cfa::RBP => "rbp",
        _ => "",
    };
    let same_cfa = match said.cfa.as_str() {
        "exp" => [
            cfa::AT_RSP,
            cfa::AT_RBP,
            cfa::PLT,
            cfa::SIGNAL,
            cfa::UNSUPPORTED,
        ]
        .contains(&rule),
        // Registers that are not followed.
        other if !other.starts_with("rsp+") && !other.starts_with("rbp+") => {
            rule == cfa::UNSUPPORTED
        }
        other => other == format!("{}{offset:+}", register(rule)),
    };
    let same_rbp = match (row.rule & rbp::MASK, said.rbp.as_str()) {
        _ if rule == cfa::UNSUPPORTED => true,
        (rbp::SAME, "u" | "s") | (rbp::AT_RBP | rbp::AT_RSP | rbp::LOST, "exp") => true,
        (rbp::AT_CFA, said) => said == format!("c{:+}", i64::from(row.rbp) * 8),
        _ => false,
    };
    same_cfa && same_rbp
}

/// Every rule of the C library and of the system's Python is the one that readelf shows, at its first address
/// and at its last.
#[test]
fn rows_are_what_readelf_shows() {
    let own = mappings(std::process::id()).unwrap();
    let libc = own.iter().find_map(|mapping| match &mapping.backing {
        Backing::File { path, .. } if path.contains("/libc.so") => Some(path.to_string()),
        _ => None,
    });
    for path in libc.into_iter().chain(["/usr/bin/python3".to_owned()]) {
        let path = Path::new(&path);
        let Ok(table) = Table::read(path) else {
            println!("SKIPPED: {} has no unwind table", path.display());
            continue;
        };
        let Some(text) = readelf(path) else {
            println!("SKIPPED: no readelf (binutils)");
            return;
        };
        let all = said(&text);
        let starts: Vec<u64> = all.keys().copied().collect();
        let (mut checked, mut wrong) = (0, Vec::new());
        for (at, (&start, said)) in all.iter().enumerate() {
            let end = starts.get(at + 1).copied().unwrap_or(start + 1);
            for address in [start, end - 1] {
                let row = table.find(address as u32).unwrap();
                checked += 1;
                if !agrees(row, said.as_ref()) {
                    wrong.push((address, row, said.clone()));
                }
            }
        }
        assert!(checked > 10_000, "{}: {checked}", path.display());
        assert!(
            wrong.is_empty(),
            "{}: {} of {checked}: {:x?}",
            path.display(),
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
        assert!(
            table.rows.len() > 5000,
            "{}: {}",
            path.display(),
            table.rows.len()
        );
        assert!(
            table.unsupported * 200 < table.rows.len(),
            "{}: {} of {}",
            path.display(),
            table.unsupported,
            table.rows.len()
        );
    }
}

/// The code that a signal's handler returns to, in the C library, is known as that.
#[test]
fn signal_frames_are_known() {
    let own = mappings(std::process::id()).unwrap();
    let libc = own.iter().find_map(|mapping| match &mapping.backing {
        Backing::File { path, .. } if path.contains("/libc.so") => Some(path.clone()),
        _ => None,
    });
    let Some(path) = libc else {
        println!("SKIPPED: no shared C library");
        return;
    };
    let table = Table::read(Path::new(&*path)).unwrap();
    let signals = |row: &&Row| row.rule & cfa::MASK == cfa::SIGNAL;
    let row = table.rows.iter().find(signals).unwrap();
    assert_eq!(
        (row.offset, row.rule, row.rbp),
        (20, cfa::SIGNAL | rbp::AT_RSP, 15)
    );
}

/// Rows stand in the order of their addresses, no two about the same, and no two neighbours say the same.
#[test]
fn rows_are_sorted_and_merged() {
    let table = Table::read(&std::env::current_exe().unwrap()).unwrap();
    assert!(table.rows.len() > 1000 && table.rows[0].pc == 0);
    for pair in table.rows.windows(2) {
        assert!(pair[0].pc < pair[1].pc);
        assert_ne!(Row { pc: 0, ..pair[0] }, Row { pc: 0, ..pair[1] });
    }
}

proptest! {
    /// No file makes the reader panic, cut short or changed anywhere as it may be.
    #[test]
    fn any_file_is_survived(cut in 0usize..20_000, changes in prop::collection::vec((0usize..40_000, any::<u8>()), 0..40)) {
        let mut bytes = fs::read("/bin/true").unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(table) = Table::parse(bytes.as_slice()) {
            let _ = table.address(4096);
            prop_assert!(table.rows.is_sorted_by_key(|row| row.pc));
        }
    }

    /// No unwind table makes the reader panic.
    #[test]
    fn any_table_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), address in any::<u64>()) {
        let _ = rows(&bytes, address);
    }
}
