//! A file that Python's `pstats`, snakeviz and gprof2dot load, as if cProfile had written it.
//!
//! Layout: CPython, Lib/pstats.py (`Stats.load_stats`): a marshalled dict
//! `{(file, line, function): (primitive calls, calls, own seconds, cumulative seconds, callers)}`,
//! where `callers` is `{(file, line, function): (calls, primitive calls, own, cumulative)}`.
//!
//! Sampling cannot count calls: both call counts hold the number of **samples** in which the function
//! (or the caller and callee, one above the other) was on the stack. Times are samples divided by
//! the rate. A function that calls itself counts once per sample. Native and kernel functions stand
//! where cProfile has built-in ones: file `~`, line 0, name in angle brackets.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use rustc_hash::{FxHashMap, FxHashSet};

use super::marshal::Writer;
use crate::profile::{Frame, FrameKind, FunctionKey, Profile};

/// A function, as pstats names it.
type Key = (String, u32, String);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    own: u64,
    total: u64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    counts: Counts,
    /// By the caller's index among the entries.
    callers: BTreeMap<usize, Counts>,
}

/// Writes the profile.
///
/// # Errors
///
/// When the writer fails.
pub fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let seconds = |samples: u64| samples as f64 / f64::from(profile.meta.rate.max(1));
    let key = |writer: &mut Writer, (file, line, name): &Key| {
        writer.tuple(3);
        writer.string(file);
        writer.integer(u64::from(*line));
        writer.string(name);
    };
    let counts = |writer: &mut Writer, counts: Counts| {
        writer.integer(counts.total);
        writer.integer(counts.total);
        writer.float(seconds(counts.own));
        writer.float(seconds(counts.total));
    };
    let mut writer = Writer::default();
    writer.dict_start();
    let entries = entries(profile);
    for entry in &entries {
        key(&mut writer, &entry.key);
        writer.tuple(5);
        counts(&mut writer, entry.counts);
        writer.dict_start();
        for (&caller, &edge) in &entry.callers {
            key(&mut writer, &entries[caller].key);
            writer.tuple(4);
            counts(&mut writer, edge);
        }
        writer.dict_end();
    }
    writer.dict_end();
    out.write_all(&writer.finish())
}

/// The functions of the profile, in the order in which they are first met.
fn entries(profile: &Profile) -> Vec<Entry> {
    let mut table = Table::default();
    let (mut functions, mut edges) = (FxHashSet::default(), FxHashSet::default());
    for sample in &profile.samples {
        functions.clear();
        edges.clear();
        let mut caller = None;
        for (at, frame) in sample.stack.iter().enumerate() {
            let own = if at + 1 == sample.stack.len() {
                sample.count
            } else {
                0
            };
            let function = table.index(frame);
            let entry = &mut table.entries[function];
            entry.counts.own += own;
            if functions.insert(function) {
                entry.counts.total += sample.count;
            }
            if let Some(caller) = caller {
                let edge = entry.callers.entry(caller).or_default();
                edge.own += own;
                if edges.insert((caller, function)) {
                    edge.total += sample.count;
                }
            }
            caller = Some(function);
        }
    }
    table.entries
}

/// Functions by their frames, and by their keys: functions of different modules can share a key.
#[derive(Default)]
struct Table<'a> {
    entries: Vec<Entry>,
    by_function: FxHashMap<FunctionKey<'a>, usize>,
    by_key: FxHashMap<Key, usize>,
}

impl<'a> Table<'a> {
    fn index(&mut self, frame: &'a Frame) -> usize {
        if let Some(&index) = self.by_function.get(&frame.function()) {
            return index;
        }
        let key = key(frame);
        let index = *self.by_key.entry(key.clone()).or_insert_with(|| {
            self.entries.push(Entry {
                key,
                counts: Counts::default(),
                callers: BTreeMap::new(),
            });
            self.entries.len() - 1
        });
        self.by_function.insert(frame.function(), index);
        index
    }
}

fn key(frame: &Frame) -> Key {
    match frame.kind {
        FrameKind::Python if !frame.file.is_empty() => (
            frame.file.to_string(),
            frame.first_line,
            frame.name.to_string(),
        ),
        FrameKind::Python | FrameKind::Native => ("~".to_owned(), 0, format!("<{}>", frame.name)),
        FrameKind::Kernel => ("~".to_owned(), 0, format!("<{}_[k]>", frame.name)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::process::Command;

    use super::*;
    use crate::profile::fixture;

    /// A function that calls itself counts once per sample, and so does its edge to itself.
    #[test]
    fn recursion_counts_once_per_sample() {
        let entries = entries(&fixture::busy());
        let index = |name| {
            entries
                .iter()
                .position(|entry| entry.key.2 == name)
                .unwrap()
        };
        let (main, fib) = (index("<module>"), index("größte_fib"));
        let entry = &entries[fib];
        assert_eq!(entry.counts, Counts { own: 11, total: 11 });
        assert_eq!(entry.callers[&main], Counts { own: 1, total: 11 });
        assert_eq!(entry.callers[&fib], Counts { own: 10, total: 10 });
    }

    /// The own time of a function that is never outermost is that of its edges, so that a viewer
    /// which draws by callers loses none.
    #[test]
    fn own_time_is_that_of_the_edges() {
        for entry in entries(&fixture::busy()) {
            if entry.callers.is_empty() {
                assert_eq!(entry.key.2, "<module>");
                continue;
            }
            let edges: u64 = entry.callers.values().map(|edge| edge.own).sum();
            assert_eq!(edges, entry.counts.own, "{:?}", entry.key);
        }
    }

    /// Native functions of one name in two modules are one entry: a dict has each key once.
    #[test]
    fn functions_that_share_a_key_are_one_entry() {
        let stacks = ["/lib/a.so", "/lib/b.so"].map(|module| [fixture::native("init", module)]);
        let entries = entries(&fixture::profile(&[(0, &stacks[0], 2), (0, &stacks[1], 3)]));
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].counts, Counts { own: 5, total: 5 });
    }

    /// Python's own pstats loads the file and finds names, lines, times and callers.
    #[test]
    fn pythons_pstats_loads_it() {
        let python = "/usr/bin/python3";
        if !std::path::Path::new(python).exists() {
            eprintln!("SKIPPED: {python} is not there");
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&fixture::busy(), &mut file.as_file()).unwrap();
        let script = r#"
import pstats, sys
stats = pstats.Stats(sys.argv[1])
print(stats.total_calls, round(stats.total_tt, 6))
for key, (cc, nc, tt, ct, callers) in sorted(stats.stats.items()):
    print(key, cc, nc, tt, ct, sorted(callers.items()))
stats.sort_stats("cumulative").print_stats()
stats.print_callers()
stats.print_callees()
"#;
        let output = Command::new(python)
            .args(["-X", "utf8", "-c", script])
            .arg(file.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let lines: Vec<&str> = text.lines().take(6).collect();
        assert_eq!(
            lines,
            [
                "100 0.38",
                "('/srv/app/fib.py', 3, 'größte_fib') 11 11 0.11 0.11 [(('/srv/app/fib.py', 3, 'größte_fib'), (10, 10, 0.1, 0.1)), (('/srv/app/main.py', 1, '<module>'), (11, 11, 0.01, 0.11))]",
                "('/srv/app/main.py', 1, '<module>') 38 38 0.0 0.38 []",
                "('/srv/app/main.py', 10, 'handler') 27 27 0.05 0.27 [(('/srv/app/main.py', 1, '<module>'), (27, 27, 0.05, 0.27))]",
                "('~', 0, '<deflate>') 22 22 0.2 0.22 [(('/srv/app/main.py', 10, 'handler'), (22, 22, 0.2, 0.22))]",
                "('~', 0, '<do_syscall_64_[k]>') 2 2 0.02 0.02 [(('~', 0, '<deflate>'), (2, 2, 0.02, 0.02))]",
            ],
        );
        assert!(text.contains("{deflate}"), "{text}");
    }
}
