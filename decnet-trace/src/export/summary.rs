//! The summary: requests by service and route, and the slowest of them.

use std::fmt::Write as _;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::histogram::Histogram;
use crate::span::{Span, SpanKind, Status, Value};

/// What is summed up.
#[derive(Clone, Copy, Debug)]
pub struct SummaryConfig {
    /// The most rows; what comes after shares one.
    pub rows_max: usize,
    /// How many of the slowest requests are kept.
    pub slowest: usize,
}

impl Default for SummaryConfig {
    fn default() -> Self {
        Self {
            rows_max: 1000,
            slowest: 10,
        }
    }
}

/// The route of the row that all requests beyond the bound share.
const OTHERS: &str = "(others)";

/// The widest that a text stands in the table, in characters.
const WIDTH_MAX: usize = 60;

/// The sums of all spans so far.
#[derive(Debug)]
pub struct Summary {
    config: SummaryConfig,
    /// By service, then by span name.
    served: FxHashMap<Box<str>, FxHashMap<Box<str>, Row>>,
    called: FxHashMap<Box<str>, FxHashMap<Box<str>, Row>>,
    others: Row,
    rows: usize,
    slowest: Vec<Slow>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    errors: u64,
    /// Nanoseconds.
    total: u128,
    durations: Histogram,
}

impl Row {
    fn add(&mut self, span: &Span, duration: u64) {
        self.errors += u64::from(span.status != Status::Unset);
        self.total += u128::from(duration);
        self.durations.record(duration);
    }
}

/// One of the slowest requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slow {
    /// How long it took, in seconds.
    pub duration: f64,
    /// When it began, in nanoseconds since the Unix epoch.
    pub start_unix_nano: u64,
    /// The service.
    pub service: String,
    /// The span's name.
    pub name: String,
    /// The path, redacted.
    pub path: String,
    /// The status of its response.
    pub status: Option<i64>,
    /// The trace it belongs to.
    pub trace_id: String,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The service.
    pub service: String,
    /// The span's name: method and route.
    pub name: String,
    /// `server` or `client`.
    pub kind: &'static str,
    /// Requests.
    pub count: u64,
    /// Of which failed.
    pub errors: u64,
    /// The time of all together, in seconds.
    pub total: f64,
    /// The median, in seconds.
    pub p50: f64,
    /// The 95th percentile, in seconds.
    pub p95: f64,
    /// The 99th percentile, in seconds.
    pub p99: f64,
    /// The longest, in seconds.
    pub max: f64,
}

#[derive(Serialize)]
struct Document {
    routes: Vec<Line>,
    slowest: Vec<Slow>,
}

impl Summary {
    /// An empty one.
    pub fn new(config: SummaryConfig) -> Self {
        Self {
            config,
            served: FxHashMap::default(),
            called: FxHashMap::default(),
            others: Row::default(),
            rows: 0,
            slowest: Vec::new(),
        }
    }

    /// Adds a span.
    pub fn add(&mut self, span: &Span) {
        let duration = span.end.saturating_sub(span.start);
        self.row(span).add(span, duration);
        if span.kind == SpanKind::Server {
            self.keep_slow(span, duration);
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.others.durations.count() == 0
    }

    fn row(&mut self, span: &Span) -> &mut Row {
        let side = match span.kind {
            SpanKind::Server => &mut self.served,
            SpanKind::Client => &mut self.called,
        };
        let service = span.resource.service_name.as_str();
        let is_known = side
            .get(service)
            .is_some_and(|rows| rows.contains_key(&*span.name));
        if !is_known {
            if self.rows >= self.config.rows_max {
                return &mut self.others;
            }
            self.rows += 1;
            side.entry(service.into())
                .or_default()
                .insert((*span.name).into(), Row::default());
        }
        side.get_mut(service)
            .and_then(|rows| rows.get_mut(&*span.name))
            .unwrap_or(&mut self.others)
    }

    fn keep_slow(&mut self, span: &Span, duration: u64) {
        let seconds = duration as f64 / 1e9;
        let at = self
            .slowest
            .partition_point(|slow| slow.duration >= seconds);
        if at >= self.config.slowest {
            return;
        }
        let find = |name: &str| span.attributes.iter().find(|(n, _)| *n == name);
        let slow = Slow {
            duration: seconds,
            start_unix_nano: span.start,
            service: span.resource.service_name.clone(),
            name: span.name.to_string(),
            path: match find("url.path") {
                Some((_, Value::Str(path))) => path.to_string(),
                _ => String::new(),
            },
            status: match find("http.response.status_code") {
                Some((_, Value::Int(status))) => Some(*status),
                _ => None,
            },
            trace_id: format!("{:032x}", u128::from_be_bytes(span.trace_id)),
        };
        self.slowest.insert(at, slow);
        self.slowest.truncate(self.config.slowest);
    }

    /// The rows, those that took the most time first.
    pub fn lines(&self) -> Vec<Line> {
        let sides = [("server", &self.served), ("client", &self.called)];
        let mut lines: Vec<Line> = sides
            .into_iter()
            .flat_map(|(kind, side)| {
                side.iter().flat_map(move |(service, rows)| {
                    rows.iter()
                        .map(move |(name, row)| line(service, name, kind, row))
                })
            })
            .collect();
        lines.sort_by(|a, b| {
            let key = |line: &Line| (line.kind == "client", -line.total);
            key(a)
                .partial_cmp(&key(b))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| (&a.service, &a.name).cmp(&(&b.service, &b.name)))
        });
        if self.others.durations.count() > 0 {
            lines.push(line("", OTHERS, "", &self.others));
        }
        lines
    }

    /// The slowest requests, the slowest first.
    pub fn slowest(&self) -> &[Slow] {
        &self.slowest
    }

    /// The rows and the slowest requests as JSON, in one line.
    pub fn json(&self) -> String {
        let document = Document {
            routes: self.lines(),
            slowest: self.slowest.clone(),
        };
        // Strings and numbers serialise.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// The table: at most `rows` rows, and the slowest requests under it. With `colour`, for a terminal.
    pub fn table(&self, rows: usize, colour: bool) -> String {
        let lines = self.lines();
        let mut table = Table::new(&[
            ("SERVICE", Align::Left),
            ("REQUEST", Align::Left),
            ("COUNT", Align::Right),
            ("ERRORS", Align::Right),
            ("P50", Align::Right),
            ("P95", Align::Right),
            ("P99", Align::Right),
            ("MAX", Align::Right),
        ]);
        for line in lines.iter().take(rows) {
            let arrow = if line.kind == "client" { "→ " } else { "" };
            table.rows.push(TableRow {
                is_bad: line.errors > 0,
                cells: vec![
                    shown(&line.service),
                    shown(&format!("{arrow}{}", line.name)),
                    line.count.to_string(),
                    line.errors.to_string(),
                    time(line.p50),
                    time(line.p95),
                    time(line.p99),
                    time(line.max),
                ],
            });
        }
        let mut out = table.render(colour);
        if lines.len() > rows {
            let _ = writeln!(out, "… and {} more", lines.len() - rows);
        }
        if !self.slowest.is_empty() {
            let mut table = Table::new(&[
                ("SLOWEST", Align::Right),
                ("SERVICE", Align::Left),
                ("REQUEST", Align::Left),
                ("STATUS", Align::Right),
                ("PATH", Align::Left),
                ("TRACE", Align::Left),
            ]);
            for slow in &self.slowest {
                table.rows.push(TableRow {
                    is_bad: slow.status.is_none_or(|status| status >= 500),
                    cells: vec![
                        time(slow.duration),
                        shown(&slow.service),
                        shown(&slow.name),
                        slow.status.map_or_else(|| "-".into(), |s| s.to_string()),
                        shown(&slow.path),
                        slow.trace_id.clone(),
                    ],
                });
            }
            out.push('\n');
            out.push_str(&table.render(colour));
        }
        out
    }
}

fn line(service: &str, name: &str, kind: &'static str, row: &Row) -> Line {
    let quantile = |q| row.durations.quantile(q) as f64 / 1e9;
    Line {
        service: service.to_owned(),
        name: name.to_owned(),
        kind,
        count: row.durations.count(),
        errors: row.errors,
        total: row.total as f64 / 1e9,
        p50: quantile(0.5),
        p95: quantile(0.95),
        p99: quantile(0.99),
        max: row.durations.max() as f64 / 1e9,
    }
}

/// A text for a cell: no control characters, which a path may hold, and not too wide.
fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(WIDTH_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(WIDTH_MAX).is_some() {
        out.pop();
        out.push('…');
    }
    out
}

/// A time in a unit that suits it, with three digits.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<TableRow>,
}

struct TableRow {
    is_bad: bool,
    cells: Vec<String>,
}

impl Table {
    fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    fn render(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .map(|row| row.cells[column].chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].0.len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        let mut write = |cells: &mut dyn Iterator<Item = &str>, style: &str| {
            let mut text = String::new();
            for ((cell, (_, align)), width) in cells.zip(&self.columns).zip(&widths) {
                if !text.is_empty() {
                    text.push_str("  ");
                }
                let _ = match align {
                    Align::Left => write!(text, "{cell:<width$}"),
                    Align::Right => write!(text, "{cell:>width$}"),
                };
            }
            let text = text.trim_end();
            let _ = match (colour, style) {
                (true, style) if !style.is_empty() => writeln!(out, "{style}{text}\x1b[0m"),
                _ => writeln!(out, "{text}"),
            };
        };
        write(&mut self.columns.iter().map(|(name, _)| *name), "\x1b[1m");
        for row in &self.rows {
            let style = if row.is_bad { "\x1b[31m" } else { "" };
            write(&mut row.cells.iter().map(String::as_str), style);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::export::tests::span;

    fn request(name: &'static str, milliseconds: u64, status: i64) -> Span {
        let failed = status >= 500;
        Span {
            name: Cow::Borrowed(name),
            start: 1_000,
            end: 1_000 + milliseconds * 1_000_000,
            attributes: vec![
                ("url.path", Value::Str(Cow::Borrowed("/p"))),
                ("http.response.status_code", Value::Int(status)),
            ],
            status: match failed {
                true => Status::Error(Cow::Borrowed("")),
                false => Status::Unset,
            },
            ..span(0)
        }
    }

    /// Counts, errors and percentiles are those of the spans, and the slowest are kept in order.
    #[test]
    fn sums_up() {
        let mut summary = Summary::new(SummaryConfig {
            rows_max: 10,
            slowest: 2,
        });
        for n in 1..=100 {
            summary.add(&request("GET /a", n, if n > 98 { 500 } else { 200 }));
        }
        summary.add(&request("GET /b", 7, 200));
        let lines = summary.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&*lines[0].name, lines[0].count, lines[0].errors),
            ("GET /a", 100, 2)
        );
        for (have, want) in [
            (lines[0].p50, 0.050),
            (lines[0].p95, 0.095),
            (lines[0].p99, 0.099),
        ] {
            assert!((have - want).abs() / want < 0.07, "{have} {want}");
        }
        assert!((lines[0].max - 0.1).abs() < 1e-9);
        let slowest: Vec<_> = summary.slowest().iter().map(|slow| slow.duration).collect();
        assert_eq!(slowest, [0.1, 0.099]);
    }

    /// However many names there are, the rows are bounded and no request goes uncounted.
    #[test]
    fn rows_are_bounded() {
        let mut summary = Summary::new(SummaryConfig {
            rows_max: 3,
            slowest: 0,
        });
        for n in 0..50 {
            summary.add(&Span {
                name: Cow::Owned(format!("GET /{n}")),
                ..request("", 1, 200)
            });
        }
        let lines = summary.lines();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines.iter().map(|line| line.count).sum::<u64>(), 50);
        assert_eq!(lines[3].name, OTHERS);
        assert!(summary.slowest().is_empty());
    }

    /// The table's columns stand under each other, without colour unless asked, and control characters
    /// do not reach the terminal.
    #[test]
    fn renders_a_table() {
        let mut summary = Summary::new(SummaryConfig {
            rows_max: 10,
            slowest: 1,
        });
        summary.add(&request("GET /a\x1b[2J", 12, 500));
        summary.add(&request("POST /items/{id}", 1, 200));
        let table = summary.table(10, false);
        assert_eq!(
            table,
            "\
SERVICE  REQUEST           COUNT  ERRORS      P50      P95      P99      MAX
svc      GET /a\u{fffd}[2J            1       1  12.0 ms  12.0 ms  12.0 ms  12.0 ms
svc      POST /items/{id}      1       0  1.00 ms  1.00 ms  1.00 ms  1.00 ms

SLOWEST  SERVICE  REQUEST     STATUS  PATH  TRACE
12.0 ms  svc      GET /a\u{fffd}[2J     500  /p    01010101010101010101010101010101
"
        );
        assert!(summary.table(1, true).contains("\x1b[31m"));
        assert!(summary.table(1, false).contains("… and 1 more"));
    }

    /// The JSON says what the table says.
    #[test]
    fn writes_json() {
        let mut summary = Summary::new(SummaryConfig::default());
        assert!(summary.is_empty());
        summary.add(&request("GET /a", 12, 200));
        let json: serde_json::Value = serde_json::from_str(&summary.json()).unwrap_or_default();
        assert_eq!(json["routes"][0]["name"], "GET /a");
        assert_eq!(json["routes"][0]["count"], 1);
        assert_eq!(json["slowest"][0]["status"], 200);
        assert_eq!(json["slowest"][0]["duration"], 0.012);
    }

    /// Times are shown with three digits in the unit that suits them.
    #[test]
    fn shows_times() {
        for (seconds, want) in [
            (0.0, "0.00 µs"),
            (0.000_001_5, "1.50 µs"),
            (0.000_999, "999 µs"),
            (0.001, "1.00 ms"),
            (0.0123, "12.3 ms"),
            (1.0, "1.00 s"),
            (90.0, "90.0 s"),
        ] {
            assert_eq!(time(seconds), want);
        }
    }
}
