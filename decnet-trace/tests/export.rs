//! Exchanges through the policy and the sinks to a real collector, which says what it understood.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use decnet_trace::{
    correlate::exchange::{End, Ends, Exchange, Role},
    export::{
        ExportConfig, Exporters, OtlpConfig,
        otlp::{Compression, Instead, Protocol},
    },
    metrics::{MetricsConfig, SharedMetrics},
    policy::{ClockOffset, Link, Parent, Policy, PolicyConfig},
    span::{Resource, Span, SpanKind, Status, Value},
    telemetry::{Count, Counters, events::Events},
};
use xtask::bed::collector::{Collected, Collector, Point};

const SOON: Duration = Duration::from_secs(60);

fn resource(name: &str) -> Arc<Resource> {
    let text = |text: &str| Value::Str(text.into());
    Arc::new(Resource {
        tgid: 7,
        service_name: name.to_owned(),
        attributes: vec![
            (Cow::Borrowed("service.name"), text(name)),
            (Cow::Borrowed("process.pid"), Value::Int(7)),
            (
                Cow::Borrowed("process.command_args"),
                Value::StrList(["uvicorn".into(), "app:app".into()].into()),
            ),
        ],
    })
}

fn exchange() -> Exchange {
    Exchange {
        tgid: 7,
        tid: 7,
        sock: 1,
        number: 1,
        fd: 9,
        role: Role::Server,
        ends: Ends::Ip {
            local: "127.0.0.1:8000".parse().unwrap(),
            remote: "[2001:db8::7]:51000".parse().unwrap(),
        },
        request_context: 0,
        response_context: 0,
        response_tid: 0,
        unix_path: None,
        unix_peer: 0,
        before: 0,
        connect: None,
        pipelined: false,
        unseen: Default::default(),
        start: 1_000,
        response_start: Some(1_800),
        end: 2_000,
        queued: Some(1_500_000),
        method: "GET".into(),
        target: "/items/42?q=geheim".into(),
        minor_version: 1,
        host: Some("bücher.example:8080".into()),
        user_agent: Some("curl/8.5.0 (+mailto: a@b.example)".into()),
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
        status: Some(200),
        request_bytes: 80,
        request_body: 0,
        response_bytes: 140,
        response_body: 12,
        ended_by: End::Length,
    }
}

/// Spans of all kinds, of two processes.
fn spans() -> Vec<Span> {
    let counters = Arc::new(Counters::new());
    let mut policy = Policy::new(PolicyConfig::default(), counters).unwrap();
    let (shop, bank) = (resource("shop"), resource("bank"));
    let clock = ClockOffset::from_readings(0, 1_795_340_267_000_000_000);
    let plain = policy.span(&exchange(), &shop, clock, None);
    let failed = Exchange {
        status: Some(503),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        tracestate: Some("rojo=1".into()),
        target: "/users/alice@example.com".into(),
        ..exchange()
    };
    let failed = policy.span(&failed, &bank, clock, None);
    let call = Exchange {
        role: Role::Client,
        method: "BREW".into(),
        status: None,
        response_start: None,
        queued: None,
        ended_by: End::PeerGone,
        ..exchange()
    };
    let parent = Parent {
        span: &plain.reference(),
        link: Link::Exact,
    };
    let call = policy.span(&call, &shop, clock, Some(parent));
    vec![plain, failed, call]
}

/// A span as the collector should understand it.
fn understood(span: &Span) -> Collected {
    fn shown(value: &Value) -> String {
        match value {
            Value::Str(text) => format!("Str({text})"),
            Value::Int(n) => format!("Int({n})"),
            Value::Float(n) => format!("Double({n})"),
            Value::Bool(b) => format!("Bool({b})"),
            Value::StrList(list) => {
                let list: Vec<_> = list.iter().map(|text| format!("Str({text})")).collect();
                format!("Slice({})", list.join(", "))
            }
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let attributes = |list: &mut dyn Iterator<Item = (&str, &Value)>| -> BTreeMap<_, _> {
        list.map(|(name, value)| (name.to_owned(), shown(value)))
            .collect()
    };
    Collected {
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: match span.parent_id {
            id if id == [0; 8] => String::new(),
            id => hex(&id),
        },
        name: span.name.to_string(),
        kind: match span.kind {
            SpanKind::Server => "SPAN_KIND_SERVER",
            SpanKind::Client => "SPAN_KIND_CLIENT",
        }
        .to_owned(),
        start: span.start,
        end: span.end,
        status: match span.status {
            Status::Unset => "STATUS_CODE_UNSET",
            Status::Error(_) => "STATUS_CODE_ERROR",
        }
        .to_owned(),
        status_message: String::new(),
        attributes: attributes(&mut span.attributes.iter().map(|(n, v)| (*n, v))),
        resource: Arc::new(attributes(
            &mut span.resource.attributes.iter().map(|(n, v)| (&**n, v)),
        )),
        scope: concat!("decnet-trace ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Checks that the collector understood these spans, and no others.
fn check(collector: &Collector, mut want: Vec<Collected>) {
    let mut have = collector.wait_for_spans(want.len(), SOON).unwrap();
    for spans in [&mut have, &mut want] {
        spans.sort_by(|a, b| a.span_id.cmp(&b.span_id));
    }
    assert_eq!(have.len(), want.len());
    for (mut have, want) in have.into_iter().zip(want) {
        // The collector's own log lines come in between, and look like the rest of a value.
        let resource = Arc::make_mut(&mut have.resource).values_mut();
        for value in have.attributes.values_mut().chain(resource) {
            value.truncate(value.find("\n{\"v\":").unwrap_or(value.len()));
        }
        assert_eq!(have, want);
    }
}

/// A real collector understands every field of every span, over each transport.
#[test]
fn a_collector_understands_what_is_sent() {
    let collector = Collector::start().unwrap();
    let mut want = Vec::new();
    for (protocol, compression) in [
        (Protocol::Grpc, Compression::None),
        (Protocol::Grpc, Compression::Gzip),
        (Protocol::HttpProtobuf, Compression::None),
        (Protocol::HttpProtobuf, Compression::Gzip),
    ] {
        let counters = Arc::new(Counters::new());
        let endpoint = match protocol {
            Protocol::Grpc => collector.grpc_endpoint(),
            Protocol::HttpProtobuf => collector.http_endpoint(),
        };
        let config = ExportConfig {
            otlp: Some(OtlpConfig {
                protocol,
                compression,
                ..OtlpConfig::new(endpoint)
            }),
            ..ExportConfig::default()
        };
        let exporters = Exporters::start(config, Arc::clone(&counters)).unwrap();
        let spans = spans();
        want.extend(spans.iter().map(understood));
        exporters.send(spans);
        exporters.shutdown(SOON);
        let sent = counters.get(Count::OtlpSent);
        assert_eq!(sent, 3, "{protocol:?} {compression:?}");
        assert_eq!(counters.get(Count::OtlpFailedAttempts), 0);
    }
    check(&collector, want);
}

/// Spans, metrics and log records all arrive over each transport, and each where its own endpoint says: a
/// path over HTTP is used as it stands.
#[test]
fn each_kind_arrives_where_it_is_sent() {
    use tracing_subscriber::layer::SubscriberExt as _;

    let collectors = [Collector::start().unwrap(), Collector::start().unwrap()];
    for (at, here) in collectors.iter().enumerate() {
        let there = &collectors[1 - at];
        let grpc = OtlpConfig::new(here.grpc_endpoint());
        let http = OtlpConfig {
            protocol: Protocol::HttpProtobuf,
            ..OtlpConfig::new(here.http_endpoint())
        };
        let alone = |path: &str| {
            let url = format!("{}{path}", there.http_endpoint());
            Some(Box::new(OtlpConfig {
                endpoint_is_whole: true,
                protocol: Protocol::HttpProtobuf,
                ..OtlpConfig::new(url)
            }))
        };
        let apart = OtlpConfig {
            instead: Instead {
                traces: None,
                metrics: alone("/v1/metrics"),
                logs: alone("/v1/logs"),
            },
            ..grpc.clone()
        };
        for (name, config) in [("grpc", grpc), ("http", http), ("apart", apart)] {
            let (name, to) = (
                format!("{name}{at}"),
                if name == "apart" { there } else { here },
            );
            let metrics = SharedMetrics::new(MetricsConfig::default(), 1_000);
            let mut policy = Policy::new(PolicyConfig::default(), Arc::default()).unwrap();
            let (exchange, resource) = (exchange(), resource(&name));
            let seen = policy.observe(&exchange, &resource);
            metrics.lock().exchange(&resource, &seen, 2_000, None);
            let events = Arc::<Events>::default();
            let counters = Arc::new(Counters::new());
            let config = ExportConfig {
                otlp: Some(config),
                metrics: Some(metrics),
                events: Some(Arc::clone(&events)),
                ..ExportConfig::default()
            };
            let exporters = Exporters::start(config, Arc::clone(&counters)).unwrap();
            let subscriber = tracing_subscriber::registry().with(events.layer());
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "decnet_trace::test", "a word by {name}");
            });
            let before = here.spans().unwrap().len();
            exporters.send(spans());
            exporters.shutdown(SOON);
            assert_eq!(counters.get(Count::OtlpFailedAttempts), 0, "{name}");
            assert_eq!(
                here.wait_for_spans(before + 3, SOON).unwrap().len(),
                before + 3
            );
            let is_of = |point: &Point| point.resource["service.name"] == format!("Str({name})");
            let has_all = || {
                let points = to.points().unwrap();
                let records = to.records().unwrap();
                points.iter().any(is_of) && records.contains(&format!("Str(a word by {name})"))
            };
            let begin = Instant::now();
            while !has_all() {
                assert!(begin.elapsed() < SOON, "{name}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// A real collector understands every field of every span in the file, line by line.
#[test]
fn a_collector_understands_the_file() {
    let collector = Collector::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let counters = Arc::new(Counters::new());
    let config = ExportConfig {
        spans_file: Some(path.clone()),
        ..ExportConfig::default()
    };
    let exporters = Exporters::start(config, Arc::clone(&counters)).unwrap();
    let spans = spans();
    let want: Vec<_> = spans.iter().map(understood).collect();
    exporters.send(spans);
    exporters.shutdown(SOON);
    assert_eq!(counters.get(Count::FileWritten), 3);
    for line in fs::read_to_string(&path).unwrap().lines() {
        let answer = post(&collector.http_endpoint(), line);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    check(&collector, want);
}

fn post(endpoint: &str, body: &str) -> String {
    let host = endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(
        stream,
        "POST /v1/traces HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
