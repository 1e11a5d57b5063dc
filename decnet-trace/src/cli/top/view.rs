//! What is shown, and what keys do to it; no terminal yet.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    pipeline::Tally,
    profile::{
        Profile, Sample,
        label::{self, Style},
    },
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

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Samples of its own in the last interval.
    OwnNow,
    /// Samples with it on the stack in the last interval.
    TotalNow,
    /// Samples of its own since the start.
    Own,
    /// Samples with it on the stack since the start.
    Total,
}

/// A row's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) own_now: u64,
    pub(super) total_now: u64,
    pub(super) own: u64,
    pub(super) total: u64,
}

/// What a key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    None,
    End,
}

/// The whole state.
pub(super) struct View {
    pub(super) title: String,
    pub(super) rate: u32,
    pub(super) group: Group,
    pub(super) sort: Sort,
    pub(super) is_paused: bool,
    pub(super) has_help: bool,
    pub(super) first_row: usize,
    /// Samples of the last interval that the rows are shares of, and since the start.
    pub(super) samples_now: u64,
    pub(super) samples: u64,
    /// The last interval's length, and the time since the start; without pauses.
    pub(super) interval: Duration,
    pub(super) time: Duration,
    /// Of the last interval.
    pub(super) tally_now: Tally,
    tally: Tally,
    /// By group.
    rows: [FxHashMap<String, Numbers>; 3],
}

impl View {
    pub(super) fn new(title: String, rate: u32) -> Self {
        Self {
            title,
            rate,
            group: Group::Function,
            sort: Sort::OwnNow,
            is_paused: false,
            has_help: false,
            first_row: 0,
            samples_now: 0,
            samples: 0,
            interval: Duration::ZERO,
            time: Duration::ZERO,
            tally_now: Tally::default(),
            tally: Tally::default(),
            rows: Default::default(),
        }
    }

    /// Adds an interval; `tally` counts since the start. In a pause, it is left out.
    pub(super) fn add(&mut self, profile: &Profile, tally: Tally) {
        let before = std::mem::replace(&mut self.tally, tally);
        if self.is_paused {
            return;
        }
        self.tally_now = Tally {
            samples: tally.samples - before.samples,
            gil: tally.gil - before.gil,
            outside: tally.outside - before.outside,
            broken: tally.broken - before.broken,
            lost: tally.lost,
        };
        self.interval = profile.meta.duration;
        self.time += profile.meta.duration;
        self.samples_now = profile.total();
        self.samples += self.samples_now;
        for (rows, group) in self.rows.iter_mut().zip(Group::ALL) {
            for numbers in rows.values_mut() {
                (numbers.own_now, numbers.total_now) = (0, 0);
            }
            for sample in &profile.samples {
                count(rows, group, sample);
            }
        }
    }

    /// The rows of the group, in their order.
    pub(super) fn rows(&self) -> Vec<(&str, Numbers)> {
        let mut rows: Vec<_> = self.rows[self.group as usize]
            .iter()
            .map(|(name, numbers)| (name.as_str(), *numbers))
            .collect();
        let sort = self.sort;
        rows.sort_unstable_by(|(a_name, a), (b_name, b)| {
            let key = |numbers: &Numbers| {
                let Numbers {
                    own_now,
                    total_now,
                    own,
                    total,
                } = *numbers;
                match sort {
                    Sort::OwnNow => [own_now, own, total_now, total],
                    Sort::TotalNow => [total_now, total, own_now, own],
                    Sort::Own => [own, own_now, total, total_now],
                    Sort::Total => [total, total_now, own, own_now],
                }
            };
            key(b).cmp(&key(a)).then_with(|| a_name.cmp(b_name))
        });
        rows
    }

    /// Of the last interval's time, the part that samples stand for, in percent of one CPU.
    pub(super) fn percent_of_cpu(&self, samples: u64) -> f64 {
        let possible = self.interval.as_secs_f64() * f64::from(self.rate);
        if possible == 0.0 {
            return 0.0;
        }
        100.0 * samples as f64 / possible
    }

    /// Does what a key says.
    pub(super) fn key(&mut self, key: KeyEvent) -> Reaction {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let count = self.rows[self.group as usize].len();
        match key.code {
            KeyCode::Char('c') if control => return Reaction::End,
            KeyCode::Esc if self.has_help => self.has_help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Reaction::End,
            KeyCode::Char('?' | 'h') => self.has_help = !self.has_help,
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char('r') => self.reset(),
            KeyCode::Char('1') => self.show(Group::Function),
            KeyCode::Char('2') => self.show(Group::Line),
            KeyCode::Char('3') => self.show(Group::Thread),
            KeyCode::Char('o') => self.sort = Sort::OwnNow,
            KeyCode::Char('t') => self.sort = Sort::TotalNow,
            KeyCode::Char('O') => self.sort = Sort::Own,
            KeyCode::Char('T') => self.sort = Sort::Total,
            KeyCode::Up => self.first_row = self.first_row.saturating_sub(1),
            KeyCode::Down => self.first_row += 1,
            KeyCode::PageUp => self.first_row = self.first_row.saturating_sub(20),
            KeyCode::PageDown => self.first_row += 20,
            KeyCode::Home => self.first_row = 0,
            _ => {}
        }
        self.first_row = self.first_row.min(count.saturating_sub(1));
        Reaction::None
    }

    fn show(&mut self, group: Group) {
        self.group = group;
        self.first_row = 0;
    }

    /// Forgets all figures.
    fn reset(&mut self) {
        self.rows = Default::default();
        (self.samples_now, self.samples) = (0, 0);
        self.time = Duration::ZERO;
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
    use super::*;
    use crate::profile::fixture;

    fn press(view: &mut View, keys: &str) {
        for key in keys.chars() {
            view.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
        }
    }

    fn names(view: &View) -> Vec<(&str, Numbers)> {
        view.rows()
    }

    /// Shares of the last interval begin anew with each, those since the start add up, and a pause
    /// leaves out what comes meanwhile.
    #[test]
    fn intervals_add_up() {
        let profile = fixture::busy();
        let mut view = View::new("x".into(), 10);
        let tally = |samples| Tally {
            samples,
            ..Tally::default()
        };
        view.add(&profile, tally(38));
        view.add(&profile, tally(80));
        assert_eq!(view.tally_now.samples, 42);
        assert_eq!((view.samples_now, view.samples), (38, 76));
        let (name, first) = names(&view)[0];
        assert!(name.starts_with("deflate"), "{name}");
        let expected = Numbers {
            own_now: 20,
            total_now: 22,
            own: 40,
            total: 44,
        };
        assert_eq!(first, expected);
        press(&mut view, " ");
        view.add(&profile, tally(100));
        assert_eq!(view.samples, 76);
        press(&mut view, " ");
        let mut empty = profile;
        empty.samples.clear();
        view.add(&empty, tally(101));
        assert_eq!(view.tally_now.samples, 1);
        let (_, first) = names(&view)[0];
        assert_eq!((first.own_now, first.own), (0, 40));
        press(&mut view, "r");
        assert!(names(&view).is_empty());
    }

    /// Keys choose the grouping and the order; the own samples of every grouping are all samples.
    #[test]
    fn keys_choose() {
        let profile = fixture::busy();
        let mut view = View::new("x".into(), 10);
        view.add(&profile, Tally::default());
        for key in ["1", "2", "3"] {
            press(&mut view, key);
            let own: u64 = names(&view).iter().map(|(_, numbers)| numbers.own).sum();
            assert_eq!(own, profile.total(), "{key}");
        }
        press(&mut view, "1T");
        assert!(names(&view)[0].0.starts_with("<module>"));
        press(&mut view, "O");
        assert!(names(&view)[0].0.starts_with("deflate"));
        view.key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
        assert_eq!(view.first_row, names(&view).len() - 1);
        let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.key(end), Reaction::End);
        press(&mut view, "?");
        let escape = KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE);
        assert_eq!(view.key(escape), Reaction::None);
        assert_eq!(view.key(escape), Reaction::End);
    }

    /// However many names there are, the rows stay bounded, and no sample gets lost.
    #[test]
    fn rows_are_bounded() {
        let profile = fixture::busy();
        let mut view = View::new("x".into(), 10);
        for rows in &mut view.rows {
            for i in 0..ROWS_MAX {
                rows.insert(i.to_string(), Numbers::default());
            }
        }
        view.add(&profile, Tally::default());
        let rows = names(&view);
        assert_eq!(rows.len(), ROWS_MAX + 1);
        assert_eq!((rows[0].0, rows[0].1.own), (OTHERS, profile.total()));
    }
}
