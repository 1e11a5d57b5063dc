//! What a run found: figures with their spread, as JSON, and compared with those of another run.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    machine::Machine,
    stats::{Estimate, median},
    table::{Style, Table},
};

/// The version of the JSON's layout.
const FORMAT: u32 = 1;

/// A run's results.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// The layout of this JSON.
    pub format: u32,
    /// The command that was run.
    pub command: String,
    /// The agent's version and commit.
    pub agent: String,
    /// Whether the figures are of a short run, made to see the instrument at work.
    pub quick: bool,
    /// The machine.
    pub machine: Machine,
    /// What was found.
    pub figures: Vec<Figure>,
    /// What was left out, and why.
    pub skipped: Vec<String>,
    /// What to know of the run as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What failed, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// The tables, as Markdown.
    #[serde(skip)]
    pub markdown: String,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// What it is of: `overhead/sqlite/saturated/agent/throughput`.
    pub id: String,
    /// Its unit; `ratio` for traced to untraced.
    pub unit: String,
    /// The median, and its interval where there was more than one sample.
    pub value: f64,
    /// The lower bound of the 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// The upper bound of the 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Each sample: of each pair of windows, or of each window.
    pub samples: Vec<f64>,
    /// What the value should be, where there is a goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// That much or more.
    AtLeast(f64),
    /// That much or less.
    AtMost(f64),
}

impl Goal {
    /// Whether a value reaches it.
    pub fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(goal) => value >= goal,
            Self::AtMost(goal) => value <= goal,
        }
    }
}

/// The goals that stand, on the agent's default configuration: by the id's beginning and its end.
const GOALS: &[(&str, &str, Goal)] = &[
    // Before the general one: a fetch of 100,000 rows may take 1.03 times as long.
    (
        "overhead/rows/",
        "/saturated/agent/throughput",
        Goal::AtLeast(1.0 / 1.03),
    ),
    (
        "overhead/",
        "/saturated/profiling-100/throughput",
        Goal::AtLeast(0.99),
    ),
    (
        "overhead/",
        "/saturated/agent/throughput",
        Goal::AtLeast(0.99),
    ),
    ("overhead/", "/saturated/agent/p50", Goal::AtMost(1.01)),
    ("overhead/", "/saturated/agent/p99", Goal::AtMost(1.05)),
    ("samples/50/", "/ns", Goal::AtMost(15_000.0)),
    ("kernel/plain/agent/", "/service", Goal::AtMost(5.0)),
    ("rungs/plain/", "contexts/micros", Goal::AtMost(3.0)),
    ("rungs/plain/", "all/micros", Goal::AtMost(10.0)),
    ("rungs/def/", "all/micros", Goal::AtMost(10.0)),
    (
        "pipeline/",
        "/to-span/events_per_second",
        Goal::AtLeast(2e6),
    ),
    ("memory/rate/1000/", "/cpu", Goal::AtMost(1.0)),
    ("memory/rate/1000/", "/rss", Goal::AtMost(60.0)),
    ("memory/processes/50/", "/cpu", Goal::AtMost(0.1)),
    // None; pages come and go one by one.
    ("memory/", "growth", Goal::AtMost(1.0)),
    ("pipeline/start/", "/attached", Goal::AtMost(1.0)),
    ("pipeline/start/", "/first_span", Goal::AtMost(1.0)),
];

impl Figure {
    /// A figure of these samples; `None` where they give no number.
    pub fn new(id: impl Into<String>, unit: &str, samples: Vec<f64>) -> Option<Self> {
        let id = id.into();
        let value = median(&samples)?;
        let spread = (samples.len() > 1)
            .then(|| Estimate::of(&samples))
            .flatten();
        let goal = GOALS
            .iter()
            .find(|(begin, end, _)| id.starts_with(begin) && id.ends_with(end))
            .map(|(.., goal)| *goal);
        Some(Self {
            id,
            unit: unit.to_owned(),
            value,
            low: spread.map(|spread| spread.low),
            high: spread.map(|spread| spread.high),
            samples,
            goal,
        })
    }

    /// It as text, with its interval.
    pub fn shown(&self) -> String {
        match (self.low, self.high) {
            (Some(low), Some(high)) => {
                format!("{} [{}, {}]", number(self.value), number(low), number(high))
            }
            _ => number(self.value),
        }
    }
}

/// A number with as many digits as make sense to a reader.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{size:.0}");
            let mut text = String::from(if value < 0.0 { "-" } else { "" });
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n) % 3 == 0 {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

impl Report {
    /// An empty one, of this machine and now.
    pub fn new(command: String, agent: String, quick: bool, machine: Machine) -> Self {
        Self {
            format: FORMAT,
            command,
            agent,
            quick,
            machine,
            figures: Vec::new(),
            skipped: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            markdown: String::new(),
        }
    }

    /// Shows a table under a title, with a line or more of what it is of; keeps it as Markdown.
    pub fn section(&mut self, title: &str, what: &str, table: &Table) {
        let what = what.trim_end();
        let line = if what.is_empty() {
            String::new()
        } else {
            format!("{what}\n")
        };
        print!("\n{}\n{line}{table}", Style::of_stdout().head(title));
        let paragraphs = what.lines().map(|line| format!("{line}\n\n"));
        self.markdown += &format!(
            "### {title}\n\n{}{}\n",
            paragraphs.collect::<String>(),
            table.markdown()
        );
    }

    /// The run as a piece of Markdown: what it was of, the goals, and the tables.
    pub fn document(&self) -> String {
        let Self {
            machine,
            agent,
            command,
            ..
        } = self;
        let mut text = format!("    {command}\n\n{machine}; agent: {agent}.\n\n");
        if self.quick {
            text += "A quick run: its figures mean little.\n\n";
        }
        for note in &self.notes {
            text += &format!("{note}.\n\n");
        }
        for skipped in &self.skipped {
            text += &format!("Left out: {skipped}.\n\n");
        }
        for failure in &self.failures {
            text += &format!("Failed: {failure}.\n\n");
        }
        let goals = self.goal_table(Style::plain());
        if !goals.is_empty() {
            text += &format!("### Goals\n\n{}\n", goals.markdown());
        }
        text += self.markdown.trim_end();
        text.push('\n');
        text
    }

    /// Notes that something failed, and says so.
    pub fn failed(&mut self, what: String) {
        println!("{}", Style::of_stdout().bad(&format!("FAILED: {what}")));
        self.failures.push(what);
    }

    /// Notes a figure, and gives it as text; a dash where the samples give no number.
    pub fn note(&mut self, id: impl Into<String>, unit: &str, samples: Vec<f64>) -> String {
        match Figure::new(id, unit, samples) {
            Some(figure) => {
                let shown = figure.shown();
                self.figures.push(figure);
                shown
            }
            None => "-".to_owned(),
        }
    }

    /// The figure of that id.
    pub fn get(&self, id: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.id == id)
    }

    /// Reads one that an earlier run wrote.
    ///
    /// # Errors
    /// The file cannot be read, or is not a report of this layout.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a report of a bench", path.display()))?;
        if report.format != FORMAT {
            bail!(
                "{} has layout {}, and this program reads {FORMAT}: run that bench again",
                path.display(),
                report.format
            );
        }
        Ok(report)
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("cannot make JSON")?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The goals and how far they are reached, as a table; empty where none was measured.
    pub fn goals(&self, style: Style) -> String {
        self.goal_table(style).to_string()
    }

    fn goal_table(&self, style: Style) -> Table {
        let mut table = Table::new(&["goal", "measured", "should be", ""]);
        for figure in &self.figures {
            let Some(goal) = figure.goal else { continue };
            let met = goal.met(figure.value);
            let should = match goal {
                Goal::AtLeast(value) => format!("≥ {}", number(value)),
                Goal::AtMost(value) => format!("≤ {}", number(value)),
            };
            let verdict = if met {
                style.good("met")
            } else {
                style.bad("missed")
            };
            table.row([
                figure.id.clone(),
                figure.shown(),
                format!("{should} {}", figure.unit),
                verdict,
            ]);
        }
        table
    }

    /// How this run's figures stand to those of `old`: a table of what differs beyond the noise, and
    /// after it how many do not.
    pub fn compared(&self, old: &Self, style: Style) -> String {
        let mut table = Table::new(&["figure", "old", "new", "new / old", ""]);
        let (mut same, mut unknown, mut missing) = (0, 0, 0);
        for figure in &self.figures {
            let Some(before) = old.get(&figure.id) else {
                missing += 1;
                continue;
            };
            let change = Change::of(figure, before);
            match change {
                Change::Noise => same += 1,
                Change::NoSpread => unknown += 1,
                Change::Beyond(_) => {}
            }
            let (ratio, verdict) = match change {
                Change::Beyond(ratio) => (
                    format!(
                        "{} [{}, {}]",
                        number(ratio.value),
                        number(ratio.low),
                        number(ratio.high)
                    ),
                    style.bad("beyond the noise"),
                ),
                Change::NoSpread => (
                    number(figure.value / before.value),
                    "single values: no noise known".to_owned(),
                ),
                Change::Noise => continue,
            };
            table.row([
                figure.id.clone(),
                before.shown(),
                figure.shown(),
                ratio,
                verdict,
            ]);
        }
        let mut text = table.to_string();
        text += &format!(
            "{same} figures within the noise, {unknown} of single values, {missing} not in the old run\n"
        );
        if self.machine != old.machine {
            text += "the old run was made on another machine or with other versions:\n";
            text += &format!("  old: {}\n  new: {}\n", old.machine, self.machine);
        }
        if self.quick || old.quick {
            text += "one of them is a quick run: only large changes mean something\n";
        }
        text
    }
}

/// How a figure changed from one run to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// The interval of the ratio leaves 1 out.
    Beyond(Estimate),
    /// It does not.
    Noise,
    /// One of the runs has a single value.
    NoSpread,
}

impl Change {
    /// Compares two figures of the same id.
    pub fn of(new: &Figure, old: &Figure) -> Self {
        if new.value == old.value {
            return Self::Noise;
        }
        if new.samples.len() < 2 || old.samples.len() < 2 {
            return Self::NoSpread;
        }
        match Estimate::ratio(&new.samples, &old.samples) {
            Some(ratio) if !ratio.covers(1.0) => Self::Beyond(ratio),
            Some(_) => Self::Noise,
            None => Self::NoSpread,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn report(values: &[(&str, &[f64])]) -> Report {
        let mut report = Report::new("bench".into(), "0".into(), false, Machine::for_tests());
        for (id, samples) in values {
            report.note(*id, "ratio", samples.to_vec());
        }
        report
    }

    /// A report is read back as it was written, and another layout is refused.
    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let report = report(&[("a", &[1.0, 2.0, 3.0]), ("b", &[4.0])]);
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap().figures, report.figures);
        let other = fs::read_to_string(&path)
            .unwrap()
            .replace("\"format\": 1", "\"format\": 9");
        fs::write(&path, other).unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        assert!(error.contains("layout 9"), "{error}");
        fs::write(&path, "{").unwrap();
        assert!(Report::read(&path).is_err());
    }

    /// A comparison tells a change from noise, and says where it cannot.
    #[test]
    fn comparison() {
        let old = report(&[
            ("slower", &[100.0, 101.0, 99.0, 100.5, 100.2]),
            ("same", &[100.0, 103.0, 97.0, 101.0, 99.0]),
            ("single", &[5.0]),
        ]);
        let new = report(&[
            ("slower", &[120.0, 121.0, 119.0, 120.5, 120.2]),
            ("same", &[101.0, 98.0, 102.0, 97.0, 100.0]),
            ("single", &[6.0]),
            ("only here", &[1.0]),
        ]);
        let text = new.compared(&old, Style::plain());
        assert!(
            text.contains("slower") && text.contains("beyond the noise"),
            "{text}"
        );
        assert!(!text.contains("same "), "{text}");
        assert!(text.contains("no noise known"), "{text}");
        assert!(
            text.contains("1 figures within the noise, 1 of single values, 1 not"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
    }

    /// A goal belongs to the agent's default configuration alone, and is judged by the median.
    #[test]
    fn goals() {
        let report = report(&[
            (
                "overhead/sqlite/saturated/agent/throughput",
                &[0.97, 0.98, 0.99],
            ),
            ("overhead/sqlite/saturated/agent/p99", &[1.01]),
            ("overhead/sqlite/saturated/otel/throughput", &[0.4]),
        ]);
        let text = report.goals(Style::plain());
        assert_eq!(text.matches("missed").count(), 1, "{text}");
        assert_eq!(text.matches("met").count(), 1, "{text}");
        assert!(!text.contains("otel"));
    }

    /// Numbers are short and keep what matters.
    #[test]
    fn numbers() {
        let shown: Vec<_> = [0.0, 0.9876, 12.345, 1234.5, -1_234_567.0, 0.01234, 123.4]
            .into_iter()
            .map(number)
            .collect();
        assert_eq!(
            shown,
            [
                "0.000",
                "0.988",
                "12.3",
                "1,234",
                "-1,234,567",
                "0.0123",
                "123"
            ]
        );
    }
}
