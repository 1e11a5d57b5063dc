//! The test bed against real services: what it says is true must be true.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use xtask::bed::{
    collector::Collector,
    load::{Load, Request, Target, Truth, monotonic_ns},
    service::{Http, Loop, Service},
    venv::{Venv, default_python},
};

/// The environment, or a line that says why the test is skipped.
fn venv() -> Option<Venv> {
    match Venv::web() {
        Ok(venv) => Some(venv),
        Err(why) => {
            println!("SKIPPED: no Python environment: {why:#}");
            None
        }
    }
}

/// The requests of each shape that the bed's application knows, with status and body length (where
/// that is fixed).
fn shapes() -> Vec<(Request, u16, Option<u64>)> {
    vec![
        (Request::get("/"), 200, Some(17)),
        (Request::get("/items/7"), 200, Some(24)),
        (Request::get("/items/seven"), 422, None),
        (Request::post("/echo", vec![b'x'; 300_000]), 200, Some(16)),
        (Request::post("/echo", ""), 200, Some(11)),
        (Request::get("/slow?ms=20"), 200, None),
        (Request::get("/cpu?ms=2"), 200, None),
        (Request::get("/error"), 500, Some(21)),
        (Request::get("/missing"), 404, None),
        (Request::get("/sized/0"), 200, Some(0)),
        (Request::get("/sized/100000"), 200, Some(100_000)),
        (Request::get("/stream/5/1000"), 200, Some(5_000)),
        (Request::get("/sync"), 200, Some(13)),
        (Request::get("/db?user=3"), 200, Some(17)),
        (Request::get("/nocontent"), 204, Some(0)),
        (Request::get("/notmodified"), 304, Some(0)),
        (Request::get("/file/3"), 200, Some(3 << 20)),
        (
            Request {
                method: "HEAD".to_owned(),
                ..Request::get("/")
            },
            405,
            Some(0),
        ),
    ]
}

fn check_shapes(service: &Service) {
    let shapes = shapes();
    let load = Load::new(
        service.target.clone(),
        shapes.iter().map(|shape| shape.0.clone()),
    );
    let truths = load.run().unwrap();
    assert_eq!(truths.len(), shapes.len());
    for (truth, (request, status, body)) in truths.iter().zip(&shapes) {
        let what = format!("{} {}", request.method, request.path);
        assert!(truth.complete, "{what}");
        assert_eq!(*truth.request, *request);
        assert_eq!(truth.status, *status, "{what}");
        if let Some(body) = body {
            assert_eq!(truth.response_body_bytes, *body, "{what}");
        }
        assert!(truth.response_bytes > truth.response_body_bytes, "{what}");
        assert!(truth.request_bytes > request.body.len() as u64, "{what}");
    }
}

/// Every route answers as the bed's users rely on, on each loop and parser, over TCP and over a Unix
/// socket.
#[test]
fn routes_answer() {
    let Some(venv) = venv() else { return };
    for (event_loop, http) in [(Loop::Uvloop, Http::Httptools), (Loop::Asyncio, Http::H11)] {
        let builder = Service::builder()
            .venv(&venv)
            .event_loop(event_loop)
            .http(http);
        check_shapes(&builder.clone().start().unwrap());
        let service = builder.uds().start().unwrap();
        assert!(matches!(service.target, Target::Uds(_)));
        check_shapes(&service);
    }
}

/// Under load from several threads, every request is sent once; on a connection the requests follow
/// each other, in time and in number; and the service agrees that the times are those of its clock.
#[test]
fn truths_are_consistent() {
    let Some(venv) = venv() else { return };
    let service = Service::builder().venv(&venv).start().unwrap();
    let before = monotonic_ns();
    let truths = Load::new(
        service.target.clone(),
        [Request::get("/"), Request::get("/sized/5000")],
    )
    .connections(16)
    .threads(2)
    .count(1001)
    .run()
    .unwrap();
    let after = monotonic_ns();
    assert_eq!(truths.len(), 1001);
    let mut connections: HashMap<u16, Vec<&Truth>> = HashMap::new();
    for (index, truth) in truths.iter().enumerate() {
        assert_eq!(truth.index, index);
        assert!(truth.complete);
        let path = if index % 2 == 0 { "/" } else { "/sized/5000" };
        assert_eq!(truth.request.path, path);
        assert!(before <= truth.start && truth.start < truth.end && truth.end <= after);
        connections.entry(truth.local_port).or_default().push(truth);
    }
    assert_eq!(connections.len(), 16);
    for truths in connections.values() {
        for (n, pair) in truths.windows(2).enumerate() {
            assert_eq!(pair[0].sequence as usize, n);
            assert!(pair[0].end <= pair[1].start);
        }
    }
}

/// A rate is kept, and a load of fixed duration ends.
#[test]
fn rate_and_duration() {
    let Some(venv) = venv() else { return };
    let service = Service::builder().venv(&venv).start().unwrap();
    let start = Instant::now();
    let truths = Load::new(service.target.clone(), [Request::get("/")])
        .connections(4)
        .rate(100.0)
        .duration(Duration::from_secs(1))
        .run()
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(
        (80..=101).contains(&truths.len()),
        "{} requests",
        truths.len()
    );
}

/// All workers are named, and serve; the supervisor is their parent.
#[test]
fn workers() {
    let Some(venv) = venv() else { return };
    let service = Service::builder().venv(&venv).workers(2).start().unwrap();
    let pids: HashSet<_> = service.workers.iter().collect();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap();
        assert_eq!(parent, service.pid.to_string());
    }
    let truths = Load::new(service.target.clone(), [Request::get("/")])
        .count(50)
        .run()
        .unwrap();
    assert!(truths.iter().all(|truth| truth.status == 200));
}

/// A service that is dropped is gone, with its workers; and what was sent to a service that dies is
/// still told of, as incomplete.
#[test]
fn end_of_a_service() {
    let Some(venv) = venv() else { return };
    let service = Service::builder().venv(&venv).workers(2).start().unwrap();
    let pids = service.workers.clone();
    let load = Load::new(service.target.clone(), [Request::get("/slow?ms=60000")]).connections(2);
    let truths = thread::scope(|scope| {
        let load = scope.spawn(|| load.count(2).run().unwrap());
        thread::sleep(Duration::from_secs(2));
        drop(service);
        load.join().unwrap()
    });
    assert_eq!(truths.len(), 2);
    assert!(
        truths
            .iter()
            .all(|truth| !truth.complete && truth.status == 0)
    );
    for pid in pids {
        let exe = fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"));
        assert!(exe.is_err(), "worker {pid} is still there");
    }
}

/// An application that cannot be imported is reported in one line with Python's own reason.
#[test]
fn broken_application() {
    let Some(venv) = venv() else { return };
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("broken.py");
    fs::write(&app, "import no_such_module_here\n").unwrap();
    let error = Service::builder()
        .venv(&venv)
        .app(&app)
        .start()
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("No module named 'no_such_module_here'"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1);
}

/// What OpenTelemetry's own SDK sends over gRPC is read back from the collector, all of it.
#[test]
fn collector_receives() {
    const SEND: &str = r#"
import sys
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

provider = TracerProvider(resource=Resource.create({"service.name": "bed"}))
exporter = OTLPSpanExporter(endpoint=sys.argv[1], insecure=True)
provider.add_span_processor(BatchSpanProcessor(exporter))
tracer = provider.get_tracer("truth", "1.0")
for n in range(100):
    with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER, attributes={"n": n}):
        with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT) as span:
            span.set_status(Status(StatusCode.ERROR, "it broke"))
provider.shutdown()
"#;
    let sdk = [
        "opentelemetry-sdk==1.45.2",
        "opentelemetry-exporter-otlp-proto-grpc==1.45.2",
    ];
    let ready = default_python()
        .and_then(|python| Venv::ensure(&python, &sdk))
        .and_then(|venv| Ok((venv, Collector::start()?)));
    let (venv, collector) = match ready {
        Ok(ready) => ready,
        Err(why) => {
            println!("SKIPPED: no collector: {why:#}");
            return;
        }
    };
    let sent = Command::new(venv.program("python"))
        .args(["-c", SEND, &collector.grpc_endpoint()])
        .status()
        .unwrap();
    assert!(sent.success());
    let spans = collector
        .wait_for_spans(200, Duration::from_secs(60))
        .unwrap();
    assert_eq!(spans.len(), 200);
    let ids: HashMap<_, _> = spans.iter().map(|span| (&span.span_id, span)).collect();
    assert_eq!(ids.len(), 200);
    let mut seen = HashSet::new();
    for span in &spans {
        assert_eq!(span.resource["service.name"], "Str(bed)");
        assert_eq!(span.scope, "truth 1.0");
        assert!(span.start > 0 && span.start <= span.end);
        if span.parent_id.is_empty() {
            assert_eq!((&*span.name, &*span.kind), ("GET /", "SPAN_KIND_SERVER"));
            seen.insert(span.attributes["n"].clone());
        } else {
            let parent = ids[&span.parent_id];
            assert_eq!(parent.trace_id, span.trace_id);
            assert_eq!((&*span.name, &*span.kind), ("SELECT", "SPAN_KIND_CLIENT"));
            assert_eq!(
                (&*span.status, &*span.status_message),
                ("STATUS_CODE_ERROR", "it broke")
            );
        }
    }
    assert_eq!(seen.len(), 100);
    assert!(seen.contains("Int(99)"));
}
