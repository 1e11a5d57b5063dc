//! Traces as JSON, one on each line.

use serde::Serialize;
use serde_json::{Map, Value};

use super::tree::{hex, instant};
use crate::store::{StoredSpan, trace::Trace};

#[derive(Serialize)]
struct Line<'a> {
    trace_id: String,
    /// When it began, in words.
    time: String,
    start_unix_nano: u64,
    /// Seconds.
    duration: f64,
    service: Option<&'a str>,
    name: Option<&'a str>,
    status: Option<i64>,
    error: Option<&'a str>,
    spans: Vec<Span<'a>>,
}

#[derive(Serialize)]
struct Span<'a> {
    span_id: String,
    parent_id: Option<String>,
    parent_is_remote: bool,
    service: &'a str,
    pid: u32,
    kind: &'a str,
    name: &'a str,
    start_unix_nano: u64,
    /// Seconds.
    duration: f64,
    status: Option<i64>,
    error: Option<&'a str>,
    attributes: &'a Map<String, Value>,
}

/// A trace as a line.
pub(super) fn line(trace: &Trace) -> String {
    let first = trace.nodes.first().map(|node| &node.span);
    let line = Line {
        trace_id: first.map(|span| hex(&span.trace_id)).unwrap_or_default(),
        time: instant(trace.start, 'T'),
        start_unix_nano: trace.start,
        duration: trace.duration() as f64 / 1e9,
        service: first.map(|span| &*span.service),
        name: first.map(|span| &*span.name),
        status: first.and_then(|span| span.status),
        error: first.and_then(|span| span.error.as_deref()),
        spans: trace.nodes.iter().map(|node| of_span(&node.span)).collect(),
    };
    // Texts and numbers serialise.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

fn of_span(span: &StoredSpan) -> Span<'_> {
    Span {
        span_id: hex(&span.span_id),
        parent_id: span.parent_id.as_ref().map(hex),
        parent_is_remote: span.parent_is_remote,
        service: &span.service,
        pid: span.pid,
        kind: &span.kind,
        name: &span.name,
        start_unix_nano: span.start,
        duration: span.duration as f64 / 1e9,
        status: span.status,
        error: span.error.as_deref(),
        attributes: &span.attributes,
    }
}
