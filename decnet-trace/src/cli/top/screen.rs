//! How it looks.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize as _},
    text::Line,
    widgets::{Block, Cell, Clear, Paragraph, Row, Table},
};

use super::{
    figures::Numbers,
    view::{Sort, Tab, View},
};

/// The columns of numbers, and their widths.
const COLUMNS: [(&str, u16, Option<Sort>); 6] = [
    ("own %", 7, Some(Sort::OwnNow)),
    ("total %", 7, Some(Sort::TotalNow)),
    ("Own %", 7, Some(Sort::Own)),
    ("Total %", 7, Some(Sort::Total)),
    ("Own s", 9, None),
    ("Total s", 9, None),
];

/// The most characters of a tab's name.
const TAB_MAX: usize = 30;

const HELP: [&str; 13] = [
    "1 2 3    by function, by line, by thread",
    "Tab ← →  all processes, or one of them; 0 for all",
    "o t      order by the last second: own, total",
    "O T      order by all since the start: own, total",
    "space    pause: what happens meanwhile is left out",
    "r        begin anew",
    "↑ ↓      scroll; PgUp, PgDn, Home",
    "q        end",
    "",
    "own      the function itself was running",
    "total    it was on the stack",
    "CPU      of one CPU, by all that is sampled",
    "GIL      of the time, some thread sampled held it",
];

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let choice = view.tabs();
    let [title, tabs, state, table] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(!choice.is_empty())),
        Constraint::Length(2),
        Constraint::Min(1),
    ])
    .areas(frame.area());
    frame.render_widget(
        Line::from(format!(
            "{}  {} s at {} Hz  (? for help)",
            view.title,
            view.time.as_secs(),
            view.rate
        ))
        .bold(),
        title,
    );
    frame.render_widget(tabs_line(&choice, tabs.width), tabs);
    frame.render_widget(state_line(view), state);
    frame.render_widget(rows(view, usize::from(table.height)), table);
    if view.has_help {
        help(frame);
    }
}

/// The tabs, from one on that leaves room for the one that is shown.
fn tabs_line(tabs: &[Tab], width: u16) -> Line<'static> {
    let mut names: Vec<(String, bool)> = tabs
        .iter()
        .map(|tab| {
            let mut name: String = tab.name.chars().take(TAB_MAX).collect();
            if name.len() < tab.name.len() {
                name.push('…');
            }
            (format!(" {name} "), tab.is_shown)
        })
        .collect();
    let shown = names.iter().position(|(_, is_shown)| *is_shown);
    let mut before = names.iter().map(|(name, _)| name.chars().count());
    let mut needed: usize = before.by_ref().take(shown.map_or(0, |at| at + 1)).sum();
    let mut first = 0;
    while needed > usize::from(width) && first < shown.unwrap_or(0) {
        needed -= names[first].0.chars().count();
        first += 1;
    }
    let spans = names.drain(first..).map(|(name, is_shown)| {
        if is_shown {
            name.reversed()
        } else {
            name.dim()
        }
    });
    spans.collect()
}

fn state_line(view: &View) -> Line<'static> {
    let tally = view.tally_now;
    let mut text = if view.is_of_one() {
        // The rest is counted for all processes together.
        let samples = view.figures().samples_now;
        let cpu = view.percent_of_cpu(samples);
        format!("CPU {cpu:3.0}%  {samples} samples")
    } else {
        format!(
            "CPU {:3.0}%  GIL {:3.0}%  {} samples, {} outside Python, {} lost",
            view.percent_of_cpu(tally.samples),
            view.percent_of_cpu(tally.gil),
            tally.samples,
            tally.outside,
            tally.lost,
        )
    };
    if view.is_paused {
        text.push_str("  PAUSED");
    }
    Line::from(text)
}

fn rows(view: &View, height: usize) -> Table<'static> {
    let mut header: Vec<Cell<'_>> = COLUMNS
        .iter()
        .map(|&(name, width, sort)| {
            let text = format!("{name:>width$}", width = usize::from(width));
            let is_sorted = sort == Some(view.sort);
            Cell::from(if is_sorted {
                text.bold().underlined()
            } else {
                text.dim()
            })
        })
        .collect();
    header.push(Cell::from(view.group.name().dim()));
    let rows: Vec<Row<'_>> = view
        .rows()
        .into_iter()
        .skip(view.first_row)
        .take(height)
        .map(|(name, numbers)| row(view, name, numbers))
        .collect();
    let mut widths = COLUMNS
        .map(|(_, width, _)| Constraint::Length(width))
        .to_vec();
    widths.push(Constraint::Min(10));
    Table::new(rows, widths)
        .header(Row::new(header))
        .column_spacing(1)
}

fn row(view: &View, name: &str, numbers: Numbers) -> Row<'static> {
    let share = |part: u64, all: u64| format!("{:>6.1}%", 100.0 * part as f64 / all.max(1) as f64);
    let seconds = |samples: u64| format!("{:>9.2}", samples as f64 / f64::from(view.rate.max(1)));
    let (samples_now, samples) = (view.figures().samples_now, view.figures().samples);
    let style = match numbers.total_now {
        0 => Style::new().dim(),
        _ => Style::new(),
    };
    Row::new([
        share(numbers.own_now, samples_now),
        share(numbers.total_now, samples_now),
        share(numbers.own, samples),
        share(numbers.total, samples),
        seconds(numbers.own),
        seconds(numbers.total),
        name.to_owned(),
    ])
    .style(style)
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let width = 56.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let place = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let text: Vec<Line<'_>> = HELP.into_iter().map(Line::from).collect();
    frame.render_widget(Clear, place);
    frame.render_widget(
        Paragraph::new(text).block(Block::bordered().title(" keys and words ")),
        place,
    );
}

#[cfg(test)]
mod tests {
    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    };

    use super::*;
    use crate::{
        pipeline::Tally,
        profile::{Process, fixture},
    };

    fn shown(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    /// The shares of the last interval and since the start, the times, and the CPU's and the GIL's use
    /// are on the screen; any size of it will do.
    #[test]
    fn shows_figures() {
        let mut profile = fixture::busy();
        profile.meta.duration = std::time::Duration::from_secs(1);
        let mut view = View::new("pid 7".into(), 100);
        let tally = Tally {
            samples: 38,
            gil: 10,
            ..Tally::default()
        };
        view.add(&profile, tally);
        let text = shown(&view, 100, 20);
        assert!(text.contains("pid 7  1 s at 100 Hz"), "{text}");
        assert!(text.contains("CPU  38%  GIL  10%  38 samples"), "{text}");
        assert!(
            text.contains("52.6%   57.9%   52.6%   57.9%      0.20      0.22 deflate"),
            "{text}"
        );
        view.key(KeyEvent::new(KeyCode::Char('?'), KeyModifiers::NONE));
        assert!(shown(&view, 100, 24).contains("by function, by line, by thread"));
        for (width, height) in [(1, 1), (10, 3), (40, 6), (300, 100)] {
            shown(&view, width, height);
        }
    }

    /// Of several processes, each has a tab; the one that is shown is on the screen, however many there are,
    /// and with it its own share of the CPU.
    #[test]
    fn shows_tabs() {
        let mut view = View::new("40 processes".into(), 100);
        for tgid in 1..=40 {
            let mut profile = fixture::busy();
            profile.meta.duration = std::time::Duration::from_secs(1);
            for sample in &mut profile.samples {
                sample.process = std::sync::Arc::new(Process {
                    tgid,
                    command: format!("python {tgid}.py --with a very long command line").into(),
                });
            }
            view.add(&profile, Tally::default());
        }
        let text = shown(&view, 100, 20);
        assert!(
            text.contains(" all  1 python 1.py --with a very lo…"),
            "{text}"
        );
        view.key(KeyEvent::new(KeyCode::Left, KeyModifiers::NONE));
        for (width, height) in [(100, 20), (50, 10)] {
            let text = shown(&view, width, height);
            assert!(text.contains(" 40 python 40.py"), "{text}");
            assert!(text.contains("CPU  38%  38 samples"), "{text}");
        }
        for (width, height) in [(1, 1), (10, 3), (40, 6), (300, 100)] {
            shown(&view, width, height);
        }
    }
}
