//! The figures of what is sampled: of all of it, or of one process.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::profile::{
    Sample,
    label::{self, Style},
};

/// The most rows of one grouping; what is beyond counts as one.
const ROWS_MAX: usize = 10_000;

/// The row of what is beyond.
const OTHERS: &str = "[others]";

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// A function.
    Function,
    /// A line.
    Line,
    /// A thread.
    Thread,
}

impl Group {
    const ALL: [Self; 3] = [Self::Function, Self::Line, Self::Thread];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Line => "line",
            Self::Thread => "thread",
        }
    }
}

/// A row's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) own_now: u64,
    pub(super) total_now: u64,
    pub(super) own: u64,
    pub(super) total: u64,
}

/// What was sampled, by each grouping.
#[derive(Default)]
pub(super) struct Figures {
    /// Samples of the last interval that the rows are shares of, and since the start.
    pub(super) samples_now: u64,
    pub(super) samples: u64,
    /// By group.
    rows: [FxHashMap<String, Numbers>; 3],
}

impl Figures {
    /// Begins an interval.
    pub(super) fn next(&mut self) {
        self.samples_now = 0;
        for numbers in self.rows.iter_mut().flat_map(FxHashMap::values_mut) {
            (numbers.own_now, numbers.total_now) = (0, 0);
        }
    }

    /// Adds a sample of the interval.
    pub(super) fn add(&mut self, sample: &Sample) {
        self.samples_now += sample.count;
        self.samples += sample.count;
        for (rows, group) in self.rows.iter_mut().zip(Group::ALL) {
            count(rows, group, sample);
        }
    }

    /// The rows of a grouping.
    pub(super) fn rows(&self, group: Group) -> &FxHashMap<String, Numbers> {
        &self.rows[group as usize]
    }
}

/// Counts a stack in the rows that it belongs to.
fn count(rows: &mut FxHashMap<String, Numbers>, group: Group, sample: &Sample) {
    let style = Style {
        by_function: group == Group::Function,
        ..Style::default()
    };
    let mut names = Vec::new();
    if group == Group::Thread {
        let mut name = format!("{} ", sample.process.tgid);
        label::write_thread(sample, &mut name);
        names.push(name);
    } else {
        names.extend(sample.stack.iter().map(|frame| {
            let mut name = String::new();
            label::write_frame(frame, &style, &mut name);
            name
        }));
    }
    let mut seen = FxHashSet::default();
    let own = names.len().saturating_sub(1);
    for (at, name) in names.iter().enumerate() {
        let known = rows.len() < ROWS_MAX || rows.contains_key(name);
        let numbers = rows
            .entry(if known { name } else { OTHERS }.to_owned())
            .or_default();
        // Once per sample, however often it calls itself.
        if seen.insert(if known { name } else { OTHERS }) {
            numbers.total_now += sample.count;
            numbers.total += sample.count;
        }
        if at == own {
            numbers.own_now += sample.count;
            numbers.own += sample.count;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::profile::fixture;

    /// However many names there are, the rows stay bounded, and no sample gets lost.
    #[test]
    fn rows_are_bounded() {
        let profile = fixture::busy();
        let mut figures = Figures::default();
        for rows in &mut figures.rows {
            for i in 0..ROWS_MAX {
                rows.insert(i.to_string(), Numbers::default());
            }
        }
        for sample in &profile.samples {
            figures.add(sample);
        }
        let rows = figures.rows(Group::Function);
        assert_eq!(rows.len(), ROWS_MAX + 1);
        assert_eq!(rows.get(OTHERS).unwrap().own, profile.total());
        assert_eq!(figures.samples, profile.total());
    }
}
