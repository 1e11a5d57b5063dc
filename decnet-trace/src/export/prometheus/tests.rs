//! A real server, asked as Prometheus asks, and read by Prometheus's own parsers.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::Instant,
};

use xtask::bed::venv::{Venv, default_python};

use super::*;
use crate::{
    export::otlp::tests::signals::measured,
    metrics::{MetricsConfig, SharedMetrics},
    policy::{Policy, PolicyConfig, tests::served},
    span::{Resource, Value},
};

/// A server at work; dropped, it ends.
struct Server {
    address: SocketAddr,
    stop: tokio::sync::watch::Sender<Option<Instant>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(metrics: SharedMetrics, token: Option<&str>) -> Self {
        let (stop, stopped) = Stop::new();
        let config = PrometheusConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            token: token.map(|token| Token(token.as_bytes().into())),
        };
        let (address, thread) = start(config, metrics, stopped).unwrap();
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// The head and the body of the answer.
    fn ask(&self, path: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(Some(Instant::now()));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The samples as Prometheus's parser reads them: name, labels, value, exemplar's trace.
const PARSE: &str = "
import sys
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
text = sys.stdin.read()
parse = openmetrics if text.endswith('# EOF\\n') else parser
for family in parse.text_string_to_metric_families(text):
    for s in family.samples:
        labels = ','.join(f'{k}={v}' for k, v in sorted(s.labels.items()) if not k.startswith('service_'))
        trace = s.exemplar.labels['trace_id'] if s.exemplar else '-'
        print(family.type, s.name, labels, float(s.value), trace)
";

fn parsed(text: &str) -> Option<Vec<String>> {
    let python = default_python().unwrap();
    let venv = match Venv::ensure(&python, &["prometheus_client==0.26.0"]) {
        Ok(venv) => venv,
        Err(error) => {
            println!("SKIPPED: prometheus_client cannot be had: {error}");
            return None;
        }
    };
    let mut child = Command::new(venv.program("python"))
        .args(["-I", "-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    let lines = String::from_utf8(output.stdout).unwrap();
    Some(lines.lines().map(str::to_owned).collect())
}

/// Prometheus's own parsers read both formats, and find every value where it should be; OpenMetrics has
/// exemplars.
#[test]
fn prometheus_understands() {
    let server = Server::start(measured(100), None);
    let (head, plain) = server.ask("/metrics", "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1\r\n";
    let (head, open) = server.ask("/metrics", accept);
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let (Some(plain), Some(open)) = (parsed(&plain), parsed(&open)) else {
        return;
    };
    let labels = "http_request_method=GET,http_response_status_code=200,http_route=/";
    let more = "network_protocol_version=1.1,url_scheme=http";
    let name = "http_server_request_duration_seconds";
    // Durations are 0, 1, … 99 ms and a microsecond.
    for samples in [&plain, &open] {
        for want in [
            format!("histogram {name}_count {labels},{more} 100.0 -"),
            "gauge http_server_active_requests http_request_method=GET,url_scheme=http 1.0 -"
                .to_owned(),
            "counter decnet_agent_drops_total decnet_reason=lost_ring_full 3.0 -".to_owned(),
        ] {
            assert!(samples.contains(&want), "{want} in {samples:#?}");
        }
        for (le, count) in [("0.005", 5), ("0.05", 50), ("0.1", 100), ("+Inf", 100)] {
            let start = format!("histogram {name}_bucket {labels},le={le},{more} {count}.0 ");
            assert!(
                samples.iter().any(|s| s.starts_with(&start)),
                "{start} in {samples:#?}"
            );
        }
        let info = samples
            .iter()
            .filter(|s| s.contains(" target_info "))
            .count();
        assert_eq!(info, 2, "{samples:#?}");
    }
    let traces = open
        .iter()
        .filter(|s| s.ends_with(&"07".repeat(16)))
        .count();
    assert!((1..=4).contains(&traces), "{open:#?}");
}

/// What was not asked for is refused, and a token is asked for where there is one.
#[test]
fn guards_the_metrics() {
    let empty = || SharedMetrics::new(MetricsConfig::default(), 1);
    let server = Server::start(empty(), Some("s3cr3t"));
    for (headers, want) in [
        ("", "401"),
        ("Authorization: Bearer s3cr3\r\n", "401"),
        ("Authorization: Bearer s3cr3t5\r\n", "401"),
        ("Authorization: Basic s3cr3t\r\n", "401"),
        ("Authorization: Bearer s3cr3t\r\n", "200"),
    ] {
        let (head, _) = server.ask("/metrics", headers);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {want}")),
            "{headers}: {head}"
        );
    }
    let open = Server::start(empty(), None);
    assert!(open.ask("/", "").0.starts_with("HTTP/1.1 404"));
    assert!(open.ask("/metrics?x", "").0.starts_with("HTTP/1.1 200"));
    // Somebody who says nothing does not keep others from asking, nor the server from ending.
    let _silent: Vec<_> = (0..CONNECTIONS_MAX - 1)
        .map(|_| TcpStream::connect(open.address).unwrap())
        .collect();
    assert!(open.ask("/metrics", "").0.starts_with("HTTP/1.1 200"));
}

/// Whatever a process says of itself, and though two say that they are the same: Prometheus reads the answer,
/// and no sample stands there twice.
#[test]
fn no_process_spoils_it_for_all() {
    let text = |text: &str| Value::Str(text.into());
    let resource = |tgid| {
        let mut resource = Resource {
            tgid,
            service_name: "shop".into(),
            attributes: vec![("service.instance.id".into(), text("one"))],
        };
        for (name, value) in [
            ("a_b", "2"),
            ("a.b", "1"),
            ("__name__", "up"),
            ("service_name", "mine"),
            ("é", "x\"\n"),
            ("1.le", "y"),
        ] {
            resource.attributes.push((name.into(), text(value)));
        }
        Arc::new(resource)
    };
    let metrics = measured(1);
    let mut policy = Policy::new(PolicyConfig::default(), Arc::default()).unwrap();
    for tgid in [7, 8] {
        let resource = resource(tgid);
        let exchange = served();
        let seen = policy.observe(&exchange, &resource);
        metrics.lock().exchange(&resource, &seen, 2_000, None);
    }
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let written = text::write(&metrics.snapshot(), format);
        let info = "target_info{service_name=\"shop\",service_instance_id=\"one:8\",_=\"x\\\"\\n\",\
                    _le=\"y\",_name_=\"up\",a_b=\"1;2\",exported_service_name=\"mine\"} 1\n";
        assert!(written.contains(info), "{info} in {written}");
        let samples = written.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<_> = samples
            .map(|line| &line[..=line.rfind('}').unwrap()])
            .collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "{written}");
        if let Some(samples) = parsed(&written) {
            assert!(samples.len() >= all, "{samples:#?}");
        }
    }
}

/// Label values may hold anything.
#[test]
fn escapes_labels() {
    let mut labels = String::new();
    text::label(&mut labels, "1a.b-c", "x\"y\\z\n");
    assert_eq!(labels, "_a_b_c=\"x\\\"y\\\\z\\n\"");
}

/// Who names OpenMetrics gets it, unless plain text is wanted more.
#[test]
fn negotiates() {
    for (accept, want) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        ("text/plain", Format::Prometheus),
        ("application/openmetrics-text", Format::OpenMetrics),
        (
            "text/plain;q=0.5, application/openmetrics-text; version=1.0.0;q=0.8",
            Format::OpenMetrics,
        ),
        (
            "text/plain, application/openmetrics-text;q=0.1",
            Format::Prometheus,
        ),
        ("application/openmetrics-text;q=0", Format::Prometheus),
    ] {
        assert_eq!(Format::wanted(accept), want, "{accept}");
    }
}
