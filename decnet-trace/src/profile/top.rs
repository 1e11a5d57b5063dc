//! The functions that took the time.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Frame, FrameKind, FunctionKey, Profile};

/// A function and its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// What it is.
    pub kind: FrameKind,
    /// Its name.
    pub name: Arc<str>,
    /// Its file, as in [`Frame::file`].
    pub file: Arc<str>,
    /// The line on which it begins; 0 where unknown.
    pub first_line: u32,
    /// Samples in which it was running itself.
    pub own: u64,
    /// Samples in which it was on the stack; once per sample, however often it calls itself.
    pub total: u64,
}

/// The functions of a profile: those with the most samples of their own first, then by total, then
/// by name.
pub fn functions(profile: &Profile) -> Vec<Function> {
    let mut functions: FxHashMap<FunctionKey<'_>, (&Frame, u64, u64)> = FxHashMap::default();
    let mut seen = FxHashSet::default();
    for sample in &profile.samples {
        seen.clear();
        for frame in &*sample.stack {
            if seen.insert(frame.function()) {
                functions.entry(frame.function()).or_insert((frame, 0, 0)).2 += sample.count;
            }
        }
        if let Some(frame) = sample.stack.last() {
            functions.entry(frame.function()).or_insert((frame, 0, 0)).1 += sample.count;
        }
    }
    let mut functions: Vec<_> = functions
        .into_values()
        .map(|(frame, own, total)| Function {
            kind: frame.kind,
            name: frame.name.clone(),
            file: frame.file.clone(),
            first_line: frame.first_line,
            own,
            total,
        })
        .collect();
    functions.sort_by(|a, b| {
        (b.own, b.total)
            .cmp(&(a.own, a.total))
            .then_with(|| (&a.name, &a.file, a.first_line).cmp(&(&b.name, &b.file, b.first_line)))
    });
    functions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    /// Own and total samples are those of the stacks; lines of one function fall together, and
    /// recursion counts once.
    #[test]
    fn own_and_total_are_counted_per_function() {
        let functions = functions(&fixture::busy());
        let of: Vec<(&str, u64, u64)> = functions
            .iter()
            .map(|function| (&*function.name, function.own, function.total))
            .collect();
        assert_eq!(
            of,
            [
                ("deflate", 20, 22),
                ("größte_fib", 11, 11),
                ("handler", 5, 27),
                ("do_syscall_64", 2, 2),
                ("<module>", 0, 38),
            ]
        );
    }

    /// Own samples add up to all samples.
    #[test]
    fn own_samples_add_up() {
        let profile = fixture::busy();
        let own: u64 = functions(&profile)
            .iter()
            .map(|function| function.own)
            .sum();
        assert_eq!(own, profile.total());
    }
}
