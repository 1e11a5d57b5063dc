//! The summary: requests by service and route, and the slowest of them.

use std::{collections::VecDeque, fmt::Write as _};

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    histogram::Histogram,
    table::{Align, Table, TableRow},
};
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
    served: FxHashMap<Box<str>, FxHashMap<Box<str>, usize>>,
    called: FxHashMap<Box<str>, FxHashMap<Box<str>, usize>>,
    /// The first is that of all others.
    rows: Vec<Row>,
    /// The rows of the requests that came last, for the statements that are theirs.
    requests: FxHashMap<[u8; 8], usize>,
    order: VecDeque<[u8; 8]>,
    slowest: Vec<Slow>,
}

/// How many requests are remembered for their statements, which come soon after them.
const REQUESTS_MAX: usize = 1 << 14;

#[derive(Clone, Debug, Default)]
struct Row {
    errors: u64,
    /// Nanoseconds.
    total: u128,
    durations: Histogram,
    /// Statements of databases that the requests executed, and their nanoseconds.
    statements: u64,
    statements_total: u128,
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
    /// Statements of databases that these requests executed.
    pub db_statements: u64,
    /// The time of all these statements together, in seconds.
    pub db_total: f64,
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
            rows: vec![Row::default()],
            requests: FxHashMap::default(),
            order: VecDeque::new(),
            slowest: Vec::new(),
        }
    }

    /// Adds a span.
    pub fn add(&mut self, span: &Span) {
        let duration = span.end.saturating_sub(span.start);
        let row = self.row(span);
        self.rows[row].add(span, duration);
        match span.kind {
            SpanKind::Server => {
                self.keep_slow(span, duration);
                self.remember(span.span_id, row);
            }
            SpanKind::Client => {
                let is_statement = |(name, _): &(&str, Value)| *name == "db.system.name";
                if let Some(&row) = self.requests.get(&span.parent_id)
                    && span.attributes.iter().any(is_statement)
                {
                    self.rows[row].statements += 1;
                    self.rows[row].statements_total += u128::from(duration);
                }
            }
        }
    }

    /// Keeps in mind which row a request went to.
    fn remember(&mut self, span: [u8; 8], row: usize) {
        if self.requests.insert(span, row).is_none() {
            self.order.push_back(span);
        }
        if self.order.len() > REQUESTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.requests.remove(&oldest);
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1 && self.rows[0].durations.count() == 0
    }

    /// The row of a span.
    fn row(&mut self, span: &Span) -> usize {
        let side = match span.kind {
            SpanKind::Server => &mut self.served,
            SpanKind::Client => &mut self.called,
        };
        let service = span.resource.service_name.as_str();
        let known = side.get(service).and_then(|rows| rows.get(&*span.name));
        if let Some(&row) = known {
            return row;
        }
        let row = self.rows.len();
        if row > self.config.rows_max {
            return 0;
        }
        self.rows.push(Row::default());
        side.entry(service.into())
            .or_default()
            .insert((*span.name).into(), row);
        row
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
                        .map(move |(name, &row)| line(service, name, kind, &self.rows[row]))
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
        if self.rows[0].durations.count() > 0 {
            lines.push(line("", OTHERS, "", &self.rows[0]));
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

    /// The table: at most `rows` rows, and the slowest requests under it. With `colour`, for a terminal. Where
    /// requests executed statements, it says how many each did on average, and how long they took together.
    pub fn table(&self, rows: usize, colour: bool) -> String {
        let lines = self.lines();
        let mut columns = vec![
            ("SERVICE", Align::Left),
            ("REQUEST", Align::Left),
            ("COUNT", Align::Right),
            ("ERRORS", Align::Right),
            ("P50", Align::Right),
            ("P95", Align::Right),
            ("P99", Align::Right),
            ("MAX", Align::Right),
        ];
        let with_statements = lines.iter().any(|line| line.db_statements > 0);
        if with_statements {
            columns.extend([("DB/REQ", Align::Right), ("DB TIME", Align::Right)]);
        }
        let mut table = Table::new(&columns);
        for line in lines.iter().take(rows) {
            let arrow = if line.kind == "client" { "→ " } else { "" };
            let mut cells = vec![
                shown(&line.service),
                shown(&format!("{arrow}{}", line.name)),
                line.count.to_string(),
                line.errors.to_string(),
                time(line.p50),
                time(line.p95),
                time(line.p99),
                time(line.max),
            ];
            if with_statements && line.db_statements > 0 {
                let requests = line.count.max(1) as f64;
                cells.push(format!("{:.1}", line.db_statements as f64 / requests));
                cells.push(time(line.db_total / requests));
            } else if with_statements {
                cells.extend(["".to_owned(), "".to_owned()]);
            }
            table.rows.push(TableRow {
                is_bad: line.errors > 0,
                cells,
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
        db_statements: row.statements,
        db_total: row.statements_total as f64 / 1e9,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::span;

    fn request(name: &'static str, milliseconds: u64, status: i64) -> Span {
        let failed = status >= 500;
        Span {
            name: name.into(),
            start: 1_000,
            end: 1_000 + milliseconds * 1_000_000,
            attributes: vec![
                ("url.path", Value::Str("/p".into())),
                ("http.response.status_code", Value::Int(status)),
            ],
            status: match failed {
                true => Status::Error("".into()),
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
                name: format!("GET /{n}").into(),
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

    /// Statements are counted for the route whose requests executed them, other calls and nobody's are not,
    /// and what is remembered for that is bounded.
    #[test]
    fn statements_by_route() {
        let mut summary = Summary::new(SummaryConfig {
            rows_max: 10,
            slowest: 0,
        });
        let statement = |parent: u8, system: &'static str| Span {
            name: "SELECT users".into(),
            kind: SpanKind::Client,
            parent_id: [parent; 8],
            attributes: vec![(system, Value::Str("sqlite".into()))],
            ..request("", 3, 200)
        };
        for n in 1..=2 {
            summary.add(&Span {
                span_id: [n; 8],
                ..request("GET /a", 10, 200)
            });
            for _ in 0..n {
                summary.add(&statement(n, "db.system.name"));
            }
            summary.add(&statement(n, "server.address"));
        }
        summary.add(&Span {
            span_id: [9; 8],
            ..request("GET /b", 10, 200)
        });
        summary.add(&statement(0, "db.system.name"));
        let table = summary.table(10, false);
        assert_eq!(
            table,
            "\
SERVICE  REQUEST         COUNT  ERRORS      P50      P95      P99      MAX  DB/REQ  DB TIME
svc      GET /a              2       0  10.0 ms  10.0 ms  10.0 ms  10.0 ms     1.5  4.50 ms
svc      GET /b              1       0  10.0 ms  10.0 ms  10.0 ms  10.0 ms
svc      → SELECT users      6       0  3.00 ms  3.00 ms  3.00 ms  3.00 ms
"
        );
        for n in 0..2 * REQUESTS_MAX as u64 {
            summary.add(&Span {
                span_id: n.to_be_bytes(),
                ..request("GET /b", 10, 200)
            });
        }
        assert_eq!(summary.requests.len(), REQUESTS_MAX);
        assert_eq!(summary.order.len(), REQUESTS_MAX);
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
