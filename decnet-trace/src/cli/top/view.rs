//! What is shown, and what keys do to it; no terminal yet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::figures::{Figures, Group, Numbers};
use crate::{
    pipeline::Tally,
    profile::{Process, Profile},
};

/// The most processes that have figures of their own; those seen last are kept.
const PROCESSES_MAX: usize = 64;

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
    /// The last interval's length, and the time since the start; without pauses.
    pub(super) interval: Duration,
    pub(super) time: Duration,
    /// Of the last interval.
    pub(super) tally_now: Tally,
    tally: Tally,
    all: Figures,
    /// By id.
    processes: BTreeMap<u32, One>,
    /// The one that is shown; `None` for all.
    shown: Option<u32>,
    intervals: u64,
}

/// A process.
struct One {
    process: Arc<Process>,
    figures: Figures,
    /// The interval in which it was last seen.
    seen: u64,
}

/// The figures of one process, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tab {
    pub(super) name: String,
    pub(super) is_shown: bool,
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
            interval: Duration::ZERO,
            time: Duration::ZERO,
            tally_now: Tally::default(),
            tally: Tally::default(),
            all: Figures::default(),
            processes: BTreeMap::new(),
            shown: None,
            intervals: 0,
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
        self.intervals += 1;
        self.all.next();
        self.processes
            .values_mut()
            .for_each(|one| one.figures.next());
        for sample in &profile.samples {
            self.all.add(sample);
            let now = self.intervals;
            let one = self.one(&sample.process);
            one.seen = now;
            one.figures.add(sample);
        }
    }

    /// A process's own figures.
    fn one(&mut self, process: &Arc<Process>) -> &mut One {
        let is_new = !self.processes.contains_key(&process.tgid);
        if is_new && self.processes.len() >= PROCESSES_MAX {
            let oldest = self
                .processes
                .iter()
                .filter(|(tgid, _)| Some(**tgid) != self.shown)
                .min_by_key(|(_, one)| one.seen)
                .map(|(tgid, _)| *tgid);
            oldest.and_then(|tgid| self.processes.remove(&tgid));
        }
        self.processes.entry(process.tgid).or_insert_with(|| One {
            process: process.clone(),
            figures: Figures::default(),
            seen: 0,
        })
    }

    /// The figures that are shown.
    pub(super) fn figures(&self) -> &Figures {
        self.shown
            .and_then(|tgid| self.processes.get(&tgid))
            .map_or(&self.all, |one| &one.figures)
    }

    /// Whether one process of several is shown.
    pub(super) const fn is_of_one(&self) -> bool {
        self.shown.is_some()
    }

    /// What can be shown; nothing where there is no choice.
    pub(super) fn tabs(&self) -> Vec<Tab> {
        if self.processes.len() < 2 {
            return Vec::new();
        }
        let all = Tab {
            name: "all".into(),
            is_shown: self.shown.is_none(),
        };
        let each = self.processes.iter().map(|(tgid, one)| Tab {
            name: format!("{tgid} {}", one.process.command),
            is_shown: self.shown == Some(*tgid),
        });
        [all].into_iter().chain(each).collect()
    }

    /// Goes to the next tab or the one before, round the ends.
    fn turn(&mut self, forwards: bool) {
        if self.processes.len() < 2 {
            return;
        }
        let tabs: Vec<Option<u32>> = [None]
            .into_iter()
            .chain(self.processes.keys().copied().map(Some))
            .collect();
        let at = tabs.iter().position(|tab| *tab == self.shown).unwrap_or(0);
        let step = if forwards { 1 } else { tabs.len() - 1 };
        self.shown = tabs[(at + step) % tabs.len()];
        self.first_row = 0;
    }

    /// The rows of the group, in their order.
    pub(super) fn rows(&self) -> Vec<(&str, Numbers)> {
        let mut rows: Vec<_> = self
            .figures()
            .rows(self.group)
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
            KeyCode::Tab | KeyCode::Right => self.turn(true),
            KeyCode::BackTab | KeyCode::Left => self.turn(false),
            KeyCode::Char('0') => (self.shown, self.first_row) = (None, 0),
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
        let count = self.figures().rows(self.group).len();
        self.first_row = self.first_row.min(count.saturating_sub(1));
        Reaction::None
    }

    fn show(&mut self, group: Group) {
        self.group = group;
        self.first_row = 0;
    }

    /// Forgets all figures.
    fn reset(&mut self) {
        self.all = Figures::default();
        self.processes.clear();
        self.shown = None;
        self.time = Duration::ZERO;
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
        assert_eq!((view.all.samples_now, view.all.samples), (38, 76));
        // There is one process: nothing to choose from.
        assert_eq!(view.tabs(), []);
        view.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));
        assert!(!view.is_of_one());
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
        assert_eq!(view.all.samples, 76);
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

    /// The profile with another process.
    fn of(tgid: u32) -> Profile {
        let mut profile = fixture::busy();
        for sample in &mut profile.samples {
            sample.process = Arc::new(Process {
                tgid,
                command: format!("python {tgid}.py").into(),
            });
        }
        profile
    }

    /// Several processes have a tab each, in the order of their ids, behind the one for all; its figures are
    /// its own, and stay when it is idle.
    #[test]
    fn processes_have_tabs() {
        let mut view = View::new("x".into(), 10);
        for tgid in [9, 5, 9] {
            view.add(&of(tgid), Tally::default());
        }
        let names = |view: &View| -> Vec<(String, bool)> {
            let tabs = view.tabs().into_iter();
            tabs.map(|tab| (tab.name, tab.is_shown)).collect()
        };
        let expected = |shown: usize| -> Vec<(String, bool)> {
            let names = ["all", "5 python 5.py", "9 python 9.py"];
            let numbered = names.iter().enumerate();
            numbered
                .map(|(at, name)| ((*name).to_owned(), at == shown))
                .collect()
        };
        assert_eq!(names(&view), expected(0));
        let mut at = |code, shown, samples| {
            view.key(KeyEvent::new(code, KeyModifiers::NONE));
            assert_eq!(names(&view), expected(shown), "{code:?}");
            let figures = view.figures();
            assert_eq!((figures.samples_now, figures.samples), samples, "{code:?}");
        };
        at(KeyCode::Tab, 1, (0, 38));
        at(KeyCode::Right, 2, (38, 76));
        at(KeyCode::Right, 0, (38, 114));
        at(KeyCode::Left, 2, (38, 76));
        at(KeyCode::BackTab, 1, (0, 38));
        at(KeyCode::Char('0'), 0, (38, 114));
        press(&mut view, "r");
        assert_eq!(view.tabs(), []);
    }

    /// However many processes come and go, those with figures of their own are bounded, and the one that is
    /// shown stays.
    #[test]
    fn processes_are_bounded() {
        let mut view = View::new("x".into(), 10);
        for tgid in 1..=2 {
            view.add(&of(tgid), Tally::default());
        }
        view.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));
        for tgid in 3..200 {
            view.add(&of(tgid), Tally::default());
        }
        let tabs = view.tabs();
        assert_eq!(tabs.len(), PROCESSES_MAX + 1);
        assert!(tabs[1].is_shown && tabs[1].name.starts_with("1 "));
        assert!(tabs.iter().any(|tab| tab.name.starts_with("199 ")));
        assert_eq!(view.all.samples, 38 * 199);
    }
}
