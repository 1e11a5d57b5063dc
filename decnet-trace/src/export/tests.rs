//! What the sinks' tests share, and the sinks together.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::span::{Resource, SpanKind, Status, Value, trace_flags};

/// A process.
pub(crate) fn resource(name: &str) -> Arc<Resource> {
    Arc::new(Resource {
        tgid: 7,
        service_name: name.to_owned(),
        attributes: vec![("service.name".into(), Value::Str(name.into()))],
    })
}

/// A span that begins then.
pub(crate) fn span(start: u64) -> Span {
    thread_local! {
        static RESOURCE: Arc<Resource> = resource("svc");
    }
    Span {
        trace_id: [1; 16],
        span_id: [2; 8],
        parent_id: [0; 8],
        parent_is_remote: false,
        trace_state: Box::default(),
        trace_flags: trace_flags::SAMPLED,
        name: "GET /a".into(),
        kind: SpanKind::Server,
        start,
        end: start + 1,
        attributes: vec![
            ("http.request.method", Value::Str("GET".into())),
            ("http.response.status_code", Value::Int(200)),
            ("decnet.queue.duration", Value::Float(0.25)),
        ],
        status: Status::Unset,
        resource: RESOURCE.with(Arc::clone),
    }
}

/// Every span goes to every sink, batches of any size are split, and the summary counts all.
#[test]
fn fans_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let counters = Arc::new(Counters::new());
    let config = ExportConfig {
        spans_file: Some(path.clone()),
        summary: Some(SummaryConfig::default()),
        ..ExportConfig::default()
    };
    let exporters = Exporters::start(config, Arc::clone(&counters)).unwrap();
    exporters.send(Vec::new());
    exporters.send((0..1000).map(span).collect());
    assert_eq!(exporters.summary().unwrap().lines()[0].count, 1000);
    let summary = exporters.shutdown(Duration::from_secs(10)).unwrap();
    assert_eq!(summary.lines()[0].count, 1000);
    assert_eq!(counters.get(Count::FileWritten), 1000);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().count() >= 4, "lines are short");
}

/// A sink that cannot start takes none of the others with it, and says why in one line.
#[test]
fn refuses_to_start_with_a_bad_sink() {
    let dir = tempfile::tempdir().unwrap();
    let config = ExportConfig {
        spans_file: Some(dir.path().join("spans.jsonl")),
        otlp: Some(OtlpConfig::new("ftp://nowhere")),
        ..ExportConfig::default()
    };
    let error = Exporters::start(config, Arc::default()).unwrap_err();
    assert_eq!(error.exit(), crate::error::Exit::Usage);
    assert!(error.to_string().contains("ftp://nowhere"), "{error}");
}
