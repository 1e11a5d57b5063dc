//! How traces look: a tree of spans, each with a bar that shows when it ran.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    cli::ps::{cut, printable},
    store::{
        StoredSpan,
        trace::{Node, Trace},
    },
};

/// How it is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The most columns of a line.
    pub(super) width: usize,
    /// Whether to use colours.
    pub(super) colour: bool,
}

/// The columns of a status, of a duration, and of the blanks between all columns.
const NUMBERS: usize = 2 + 3 + 2 + 8 + 2;

/// The least and the most columns of a bar.
const BAR: (usize, usize) = (10, 60);

/// The least and the most columns of the names.
const NAMES: (usize, usize) = (12, 72);

/// Graphic renditions (ECMA-48, 8.3.117).
const BOLD: &str = "1";
const FAINT: &str = "2";
const RED: &str = "31";
const CYAN: &str = "36";
const MAGENTA: &str = "35";
const YELLOW: &str = "33";

impl Look {
    fn paint(&self, style: &str, text: &str) -> String {
        match self.colour && !text.is_empty() {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Traces, one below the other; their columns are aligned.
pub(super) fn list(traces: &[Trace], look: &Look) -> String {
    let rows: Vec<Vec<Row<'_>>> = traces.iter().map(rows).collect();
    let longest = rows
        .iter()
        .flatten()
        .map(|row| row.width())
        .max()
        .unwrap_or(0);
    let room = look.width.saturating_sub(NUMBERS);
    let most = room.saturating_sub(BAR.0).clamp(NAMES.0, NAMES.1);
    let names = longest.clamp(NAMES.0, most);
    let bar = room.saturating_sub(names).clamp(BAR.0, BAR.1);
    let mut out = String::new();
    for (nth, (trace, rows)) in traces.iter().zip(&rows).enumerate() {
        if nth > 0 {
            out.push('\n');
        }
        heading(trace, look, &mut out);
        for row in rows {
            row.write(trace, look, (names, bar), &mut out);
        }
    }
    out
}

fn heading(trace: &Trace, look: &Look, out: &mut String) {
    let Some(first) = trace.nodes.first() else {
        return;
    };
    let _ = write!(
        out,
        "{}  {}  {}",
        look.paint(FAINT, &instant(trace.start, ' ')),
        look.paint(BOLD, &printable(&first.span.service)),
        look.paint(FAINT, &format!("trace {}", hex(&first.span.trace_id)))
    );
    if trace.nodes.len() > 1 {
        let _ = write!(
            out,
            "{}",
            look.paint(
                FAINT,
                &format!(
                    "  {} spans, {}",
                    trace.nodes.len(),
                    time(trace.duration()).trim_start()
                )
            )
        );
    }
    out.push('\n');
}

/// A span's line.
struct Row<'a> {
    span: &'a StoredSpan,
    /// The lines of the tree.
    branch: String,
    name: String,
    /// What is shown faintly after the name, where there is room.
    detail: String,
}

fn rows(trace: &Trace) -> Vec<Row<'_>> {
    // The service of the span above, by depth.
    let mut services: Vec<&str> = Vec::new();
    trace
        .nodes
        .iter()
        .map(|node| {
            let span = &node.span;
            let depth = node.is_last.len();
            services.truncate(depth);
            let first = trace.nodes.first().map(|node| &*node.span.service);
            let above = services.last().copied().or(first);
            let mut name = match span.is_request {
                true => String::new(),
                false => "→ ".to_owned(),
            };
            if above != Some(&*span.service) {
                let _ = write!(name, "{}: ", span.service);
            }
            services.resize(depth, "");
            services.push(&span.service);
            name += &span.name;
            Row {
                span,
                branch: branch(node),
                name: printable(&name),
                detail: printable(&detail(span)),
            }
        })
        .collect()
}

/// `│  ├─ `; dotted where the parent was inferred.
fn branch(node: &Node) -> String {
    let Some((last, above)) = node.is_last.split_last() else {
        return String::new();
    };
    let is_inferred = node.span.text("decnet.link") == Some("inferred");
    let mut out: String = above
        .iter()
        .map(|is_last| if *is_last { "   " } else { "│  " })
        .collect();
    out += match (last, is_inferred) {
        (false, false) => "├─ ",
        (true, false) => "└─ ",
        (false, true) => "├┄ ",
        (true, true) => "└┄ ",
    };
    out
}

/// What tells a span apart from others of its name: its path, whom it called, why it failed.
fn detail(span: &StoredSpan) -> String {
    let mut parts: Vec<String> = Vec::new();
    if let Some(system) = span.text("db.system.name") {
        parts.push(system.to_owned());
    } else if !span.is_request
        && let Some(address) = span.text("server.address")
    {
        let port = span
            .attributes
            .get("server.port")
            .and_then(|port| port.as_i64());
        parts.push(match port {
            Some(port) => format!("{address}:{port}"),
            None => address.to_owned(),
        });
    }
    if let Some(path) = span.text("url.path")
        && !span.name.ends_with(path)
    {
        parts.push(path.to_owned());
    }
    if let Some(error) = &span.error
        && !error.is_empty()
        && span
            .status
            .is_none_or(|status| *error != status.to_string())
    {
        parts.push(error.clone());
    }
    parts.join("  ")
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

impl Row<'_> {
    fn width(&self) -> usize {
        let detail = match self.detail.is_empty() {
            true => 0,
            false => 2 + columns(&self.detail),
        };
        columns(&self.branch) + columns(&self.name) + detail
    }

    fn write(&self, trace: &Trace, look: &Look, (names, bar): (usize, usize), out: &mut String) {
        let is_failed = self.span.error.is_some();
        // A deep tree leaves some room for names.
        let branch = cut(&self.branch, names.saturating_sub(8));
        let left = names.saturating_sub(columns(&branch));
        let name = cut(&self.name, left);
        let left = left.saturating_sub(columns(&name));
        let detail = match left > 5 && !self.detail.is_empty() {
            true => format!("  {}", cut(&self.detail, left - 2)),
            false => String::new(),
        };
        let pad = left.saturating_sub(columns(&detail));
        let style = match (is_failed, self.branch.is_empty()) {
            (true, _) => RED,
            (false, true) => BOLD,
            (false, false) => "0",
        };
        let status = match self.span.status {
            Some(status) => status.to_string(),
            None if is_failed => "✗".to_owned(),
            None => String::new(),
        };
        let _ = write!(
            out,
            "{}{}{}{:pad$}  {}  {}  ",
            look.paint(FAINT, &branch),
            look.paint(style, &name),
            look.paint(FAINT, &detail),
            "",
            look.paint(if is_failed { RED } else { "0" }, &format!("{status:>3}")),
            time(self.span.duration),
        );
        let before = out.len();
        self.bar(trace, look, bar, out);
        out.truncate(before + out[before..].trim_end().len());
        out.push('\n');
    }

    /// When it ran: a block for each part of the trace's time that it did, and shades for the time that
    /// it waited before it was read.
    fn bar(&self, trace: &Trace, look: &Look, width: usize, out: &mut String) {
        let all = trace.duration().max(1);
        let eighths = |at: u64| {
            let passed = u128::from(at.saturating_sub(trace.start));
            (passed * width as u128 * 8 / u128::from(all)) as usize
        };
        let start = (eighths(self.span.start) / 8).min(width - 1);
        let end = eighths(self.span.end()).clamp(start * 8 + 1, width * 8);
        let waited = self.span.queue().map_or(start, |queue| {
            eighths(self.span.start.saturating_sub(queue)) / 8
        });
        let waited = waited.min(start);
        let (full, rest) = ((end - start * 8) / 8, end % 8);
        let mut blocks = "█".repeat(full);
        if rest > 0 {
            blocks.push(['▏', '▎', '▍', '▌', '▋', '▊', '▉'][rest - 1]);
        }
        let colour = match (self.span.error.is_some(), self.span.is_request) {
            (true, _) => RED,
            (false, true) => CYAN,
            (false, false) if self.span.text("db.system.name").is_some() => YELLOW,
            (false, false) => MAGENTA,
        };
        let _ = write!(
            out,
            "{:waited$}{}{}",
            "",
            look.paint(FAINT, &"░".repeat(start - waited)),
            look.paint(colour, &blocks)
        );
    }
}

/// Everything that the spans of a trace say, span by span.
pub(super) fn attributes(trace: &Trace, look: &Look) -> String {
    let mut out = String::new();
    for node in &trace.nodes {
        let span = &node.span;
        let _ = writeln!(
            out,
            "\n{}  {}",
            look.paint(BOLD, &printable(&span.name)),
            look.paint(
                FAINT,
                &format!("span {}  pid {}", hex(&span.span_id), span.pid)
            )
        );
        let mut names: Vec<&String> = span.attributes.keys().collect();
        names.sort_unstable();
        let width = names.iter().map(|name| columns(name)).max().unwrap_or(0);
        for name in names {
            let value = match &span.attributes[name] {
                serde_json::Value::String(text) => printable(text),
                other => printable(&other.to_string()),
            };
            let name = format!("{:width$}", printable(name));
            let _ = writeln!(out, "  {}  {value}", look.paint(FAINT, &name));
        }
    }
    out
}

/// A time in a unit that suits it, with three digits, right-aligned in eight columns.
fn time(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        n if n < 1_000_000 => (n as f64 / 1e3, "µs"),
        n if n < 1_000_000_000 => (n as f64 / 1e6, "ms"),
        n => (n as f64 / 1e9, "s"),
    };
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{:>8}", format!("{value:.digits$} {unit}"))
}

/// A moment, to the millisecond: `2026-11-22 12:41:07.123Z`.
pub(super) fn instant(unix_nano: u64, between: char) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(unix_nano);
    let text = humantime::format_rfc3339_millis(time).to_string();
    text.replacen('T', &between.to_string(), 1)
}

/// Bytes as hexadecimal digits.
pub(super) fn hex<const N: usize>(bytes: &[u8; N]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const START: u64 = 1_800_000_000_123_000_000;

    /// A span that begins and lasts so many milliseconds.
    fn span(id: u8, parent: u8, name: &str, start: u64, duration: u64) -> StoredSpan {
        let attributes = json!({"http.request.method": "GET"});
        StoredSpan {
            id: i64::from(id),
            trace_id: [0xab; 16],
            span_id: [id; 8],
            parent_id: (parent != 0).then_some([parent; 8]),
            parent_is_remote: false,
            is_request: true,
            service: "shop".into(),
            pid: 7,
            name: name.into(),
            kind: "server".into(),
            start: START + start * 1_000_000,
            duration: duration * 1_000_000,
            status: Some(200),
            error: None,
            attributes: attributes.as_object().cloned().unwrap_or_default(),
            trace_state: String::new(),
        }
    }

    fn with(mut span: StoredSpan, attributes: serde_json::Value) -> StoredSpan {
        span.attributes
            .extend(attributes.as_object().cloned().unwrap_or_default());
        span
    }

    fn call(span: StoredSpan, attributes: serde_json::Value) -> StoredSpan {
        with(
            StoredSpan {
                is_request: false,
                kind: "client".into(),
                ..span
            },
            attributes,
        )
    }

    fn order() -> Trace {
        let root = with(
            span(1, 0, "POST /orders/{id}", 10, 80),
            json!({"url.path": "/orders/7", "decnet.queue.duration": 0.01}),
        );
        let select = call(
            StoredSpan {
                status: None,
                ..span(2, 1, "SELECT items", 20, 10)
            },
            json!({"db.system.name": "sqlite", "decnet.link": "inferred"}),
        );
        let stock = call(
            span(3, 1, "GET /stock", 40, 40),
            json!({"server.address": "10.0.0.7", "server.port": 8001}),
        );
        let served = StoredSpan {
            service: "stock".into(),
            status: Some(500),
            error: Some("500".into()),
            ..span(4, 3, "GET /stock", 45, 30)
        };
        Trace::new(vec![served, stock, select, root])
    }

    /// A trace is a tree; each bar stands where the span's time lies in the trace's, after the shade of
    /// the time that it waited.
    #[test]
    fn draws_a_trace() {
        let look = Look {
            width: 90,
            colour: false,
        };
        let expected = "\
2027-01-15 08:00:00.123Z  shop  trace abababababababababababababababab  4 spans, 90.0 ms
POST /orders/{id}  /orders/7    200   80.0 ms  ░░░░███████████████████████████████████████
├┄ → SELECT items  sqlite             10.0 ms           █████▎
└─ → GET /stock  10.0.0.7:8001  200   40.0 ms                     ███████████████████▏
   └─ stock: GET /stock         500   30.0 ms                       ██████████████▊
";
        let drawn = list(&[order()], &look);
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    /// Whatever the width, no line is longer, names give way first, and colours change no column.
    #[test]
    fn fits_the_width() {
        for width in [40, 60, 80, 132, 400] {
            let plain = list(
                &[order(), order()],
                &Look {
                    width,
                    colour: false,
                },
            );
            for line in plain.lines().filter(|line| !line.contains("trace ")) {
                assert!(columns(line) <= width, "{width}: {line}");
            }
            let coloured = list(
                &[order(), order()],
                &Look {
                    width,
                    colour: true,
                },
            );
            assert!(coloured.contains("\x1b[31m"));
            let mut stripped = String::new();
            let mut parts = coloured.split('\x1b');
            stripped += parts.next().unwrap_or_default();
            for part in parts {
                stripped += part.split_once('m').map_or("", |(_, rest)| rest);
            }
            assert_eq!(stripped, plain);
        }
    }

    /// What a service calls itself cannot reach the terminal raw.
    #[test]
    fn shows_nothing_raw() {
        let trace = Trace::new(vec![with(
            StoredSpan {
                service: "a\x1b[2J".into(),
                name: "GET /\u{7}".into(),
                ..span(1, 0, "", 0, 5)
            },
            json!({"url.path": "/\r\n", "x\u{1b}": "y\u{1b}"}),
        )]);
        let look = Look {
            width: 80,
            colour: false,
        };
        let shown = list(std::slice::from_ref(&trace), &look) + &attributes(&trace, &look);
        let is_raw = |c: char| c.is_control() && c != '\n';
        assert!(!shown.contains(is_raw), "{shown:?}");
    }

    /// A span of no time, or a trace of none, is still drawn.
    #[test]
    fn draws_what_takes_no_time() {
        let trace = Trace::new(vec![span(1, 0, "GET /", 0, 0)]);
        let look = Look {
            width: 60,
            colour: false,
        };
        assert!(list(&[trace], &look).contains("0.00 µs  ▏"));
        assert_eq!(list(&[], &look), "");
    }

    /// Times have three digits, and eight columns.
    #[test]
    fn times_are_short() {
        for (nanoseconds, shown) in [
            (0, " 0.00 µs"),
            (999, " 1.00 µs"),
            (12_345, " 12.3 µs"),
            (1_234_567, " 1.23 ms"),
            (999_400_000, "  999 ms"),
            (61_000_000_000, "  61.0 s"),
        ] {
            assert_eq!(time(nanoseconds), shown);
        }
    }
}
