//! What is said of a recording, on standard error: meanwhile, and at its end.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{
    pipeline::{Gap, Gaps, Live, Outcome, Tally, Unwinding},
    profile::{
        Frame, Profile,
        label::{self, Style},
        top::{self, Function},
    },
    telemetry::log,
    unwind::Lack,
};

/// How many functions are listed at the end.
const FUNCTIONS: usize = 10;

/// Of how many processes is said what is missing.
const GAPS: usize = 20;

/// How many processes a line names.
const PIDS: usize = 5;

/// A line that is overwritten once a second, on a terminal only.
pub(super) struct Progress {
    started: Instant,
    next: Option<Instant>,
}

impl Progress {
    pub(super) fn new(started: Instant) -> Self {
        let is_shown = io::stderr().is_terminal();
        Self {
            started,
            next: is_shown.then_some(started),
        }
    }

    /// Says how far it is, when a second has passed.
    pub(super) fn tick(&mut self, live: &Live) {
        let now = Instant::now();
        if let Some(next) = &mut self.next
            && now >= *next
        {
            *next = now + Duration::from_secs(1);
            let seconds = now.saturating_duration_since(self.started).as_secs();
            write(&format!("\r{seconds} s: {}\x1b[K", counts(live.tally())));
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.next.take().is_some() {
            write("\r\x1b[K");
        }
    }
}

/// Says where a profile is, and what is in it.
pub(super) fn report(
    place: &str,
    outcome: &Outcome,
    profile: &Profile,
    tally: Tally,
    gaps: &Gaps,
    note: Option<&str>,
) {
    let mut text = String::new();
    if let Some(note) = note {
        let _ = writeln!(text, "{note}");
    }
    let lost: u64 = outcome.lost().map(|(_, value)| value).sum();
    let _ = writeln!(
        text,
        "{place}: {} in {:.1} s at {} Hz",
        counts(Tally {
            samples: profile.total(),
            lost,
            ..tally
        }),
        profile.meta.duration.as_secs_f64(),
        profile.meta.rate,
    );
    let losses: Vec<_> = outcome
        .lost()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !losses.is_empty() {
        let _ = writeln!(text, "lost: {}", losses.join(", "));
    }
    text.push_str(&lines(gaps));
    text.push_str(&unwinding(&outcome.unwinding));
    if profile.total() == 0 {
        text.push_str(match profile.meta.wall {
            true => "no samples: no thread was seen that was not idle\n",
            false => "no samples: the processes were not seen on a CPU\n",
        });
    }
    table(
        &top::functions(profile),
        profile.total(),
        log::colour(&io::stderr()),
        &mut text,
    );
    write(&text);
}

/// What the profile lacks of processes, a line for each.
pub(super) fn lines(gaps: &Gaps) -> String {
    let mut text = String::new();
    for (pid, gap) in gaps.known.iter().take(GAPS) {
        let _ = match gap {
            Gap::Process(why) => writeln!(text, "nothing of pid {pid}: {why}"),
            Gap::Frames(why) => writeln!(text, "no Python frames of pid {pid}: {why}"),
            Gap::Waiting(why) => writeln!(text, "no waiting threads of pid {pid}: {why}"),
        };
    }
    let more = gaps.known.len().saturating_sub(GAPS) as u64 + gaps.more;
    if more > 0 {
        let _ = writeln!(text, "and something is missing of {more} processes more");
    }
    text
}

/// What the unwind tables took, where there were any; why not, where there should have been.
fn unwinding(unwinding: &Unwinding) -> String {
    let tables = match unwinding {
        Unwinding::FramePointers => return String::new(),
        Unwinding::Refused(why) => {
            return format!("native frames by frame pointers alone: {why}\n");
        }
        Unwinding::Tables(tables) => tables,
    };
    let held = tables.held();
    let mut text = format!(
        "unwind tables: {} rows of {} files in {:.1} MiB of the kernel's memory\n",
        held.rows,
        held.files,
        held.bytes as f64 / f64::from(1 << 20),
    );
    lacking(&tables.lacks(), &mut text);
    text
}

/// Whose native frames were followed by frame pointers for want of tables, a line for each reason.
fn lacking(lacks: &[(u32, Lack)], text: &mut String) {
    for (at, (_, lack)) in lacks.iter().enumerate() {
        if lacks[..at].iter().any(|(_, earlier)| earlier == lack) {
            continue;
        }
        let pids: Vec<_> = lacks.iter().filter(|(_, other)| other == lack).collect();
        let named: Vec<_> = pids
            .iter()
            .take(PIDS)
            .map(|(pid, _)| pid.to_string())
            .collect();
        let more = match pids.len().saturating_sub(PIDS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = writeln!(
            text,
            "frame pointers for code without tables in pid {}{more}: {lack}",
            named.join(", ")
        );
    }
}

/// `1940 samples, 3 outside Python, 0 lost`
fn counts(tally: Tally) -> String {
    let mut text = format!(
        "{} samples, {} outside Python",
        tally.samples, tally.outside
    );
    if tally.broken > 0 {
        let _ = write!(text, ", {} read in part", tally.broken);
    }
    let _ = write!(text, ", {} lost", tally.lost);
    text
}

fn table(functions: &[Function], total: u64, colour: bool, text: &mut String) {
    if functions.is_empty() {
        return;
    }
    // SGR 1 is bold, 2 faint.
    let (bold, faint, off) = match colour {
        true => ("\x1b[1m", "\x1b[2m", "\x1b[0m"),
        false => ("", "", ""),
    };
    let _ = writeln!(text, "{faint}   own   total  function{off}");
    let share = |part: u64| 100.0 * part as f64 / total.max(1) as f64;
    for function in functions.iter().take(FUNCTIONS) {
        let _ = writeln!(
            text,
            "{bold}{:5.1}%{off}  {:5.1}%  {}",
            share(function.own),
            share(function.total),
            name(function)
        );
    }
}

/// A function as it is listed: with the line on which it begins.
fn name(function: &Function) -> String {
    let frame = Frame {
        kind: function.kind,
        name: function.name.clone(),
        file: function.file.clone(),
        line: function.first_line,
        first_line: function.first_line,
    };
    let mut text = String::new();
    label::write_frame(&frame, &Style::default(), &mut text);
    text
}

/// Standard error may be closed, which is no reason to lose a profile.
fn write(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    /// Functions are listed with their shares, ten at most, in colour only where asked for.
    #[test]
    fn lists_functions() {
        let profile = fixture::busy();
        let functions = top::functions(&profile);
        let mut text = String::new();
        table(&functions, profile.total(), false, &mut text);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("   own   total  function"));
        assert_eq!(lines.next(), Some(" 52.6%   57.9%  deflate"));
        assert!(!text.contains('\x1b'));
        let many: Vec<_> = functions.iter().cycle().take(30).cloned().collect();
        let mut text = String::new();
        table(&many, profile.total(), true, &mut text);
        assert_eq!(text.lines().count(), 1 + FUNCTIONS);
        assert!(text.contains("\x1b[1m"));
    }

    /// Who lacks unwind tables is named, some of many, in a line for each reason that says what to do.
    #[test]
    fn lacking_tables_are_told() {
        let mut lacks: Vec<_> = (1..=7).map(|pid| (pid, Lack::Memory(1 << 20))).collect();
        lacks.insert(3, (100, Lack::Processes));
        let mut text = String::new();
        lacking(&lacks, &mut text);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(
            lines[0],
            "frame pointers for code without tables in pid 1, 2, 3, 4, 5 and 2 more: \
             the 1.0 MiB for unwind tables are used up; allow more with --unwind-memory"
        );
        assert!(lines[1].contains("in pid 100: 1024 processes"), "{text}");
        let mut none = String::new();
        lacking(&[], &mut none);
        assert!(none.is_empty());
    }

    /// What is missing is told with its process, of some; of the rest, how many they are.
    #[test]
    fn gaps_are_told() {
        let mut gaps = Gaps::default();
        assert!(lines(&gaps).is_empty());
        gaps.known.push((7, Gap::Process("no room".into())));
        gaps.known.push((8, Gap::Waiting("refused".into())));
        for pid in 100..120 {
            gaps.known.push((pid, Gap::Frames("too old".into())));
        }
        gaps.more = 3;
        let text = lines(&gaps);
        assert_eq!(text.lines().count(), GAPS + 1);
        assert!(
            text.starts_with(
                "nothing of pid 7: no room\nno waiting threads of pid 8: refused\n\
                 no Python frames of pid 100: too old\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("of 5 processes more\n"), "{text}");
    }

    /// What could not be read is told where there is any.
    #[test]
    fn counts_in_words() {
        let tally = Tally {
            samples: 10,
            outside: 2,
            ..Tally::default()
        };
        assert_eq!(counts(tally), "10 samples, 2 outside Python, 0 lost");
        let tally = Tally { broken: 1, ..tally };
        assert!(counts(tally).contains(", 1 read in part,"));
    }
}
