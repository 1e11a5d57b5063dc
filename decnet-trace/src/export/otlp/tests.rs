//! The OTLP sink against a real gRPC server that does what servers do: accept, refuse, hang, die.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::sync::{oneshot, watch};
use tonic::{
    Code, Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::export::{Limits, queue::Batch, tests::span};

mod http;
pub(in crate::export) mod signals;
mod tls;

/// What the server does with a request.
#[derive(Clone, Debug)]
enum Act {
    Accept,
    Refuse(Code, Option<Duration>),
    Reject(i64),
    Hang,
}

#[derive(Clone, Default)]
struct Script {
    acts: Arc<Mutex<VecDeque<Act>>>,
    requests: Arc<Mutex<Vec<(tonic::metadata::MetadataMap, ExportTraceServiceRequest)>>>,
    calls: Arc<Mutex<u64>>,
}

#[tonic::async_trait]
impl TraceService for Script {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        *self.calls.lock().unwrap() += 1;
        // The last act goes on.
        let act = {
            let mut acts = self.acts.lock().unwrap();
            match acts.len() {
                0 => Act::Accept,
                1 => acts[0].clone(),
                _ => acts.pop_front().unwrap(),
            }
        };
        let partial_success = match act {
            Act::Accept => None,
            Act::Refuse(code, None) => return Err(Status::new(code, "refused")),
            Act::Refuse(code, delay) => {
                let details = ErrorDetails::with_retry_info(delay);
                return Err(Status::with_error_details(code, "slow down", details));
            }
            Act::Reject(rejected_spans) => Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "some\nwere odd".into(),
            }),
            Act::Hang => std::future::pending().await,
        };
        let (metadata, _, message) = request.into_parts();
        self.requests.lock().unwrap().push((metadata, message));
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

/// A server at work on a thread of its own; dropped, it is gone at once, connections and all.
struct Collector {
    script: Script,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(acts: &[Act]) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), acts)
    }

    fn start_at(address: SocketAddr, acts: &[Act]) -> Self {
        Self::start_with(address, acts, None)
    }

    fn start_with(address: SocketAddr, acts: &[Act], tls: Option<ServerTlsConfig>) -> Self {
        let script = Script::default();
        script.acts.lock().unwrap().extend(acts.iter().cloned());
        let service = script.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let incoming = TcpIncoming::bind(address).unwrap();
                tell.send(incoming.local_addr().unwrap()).unwrap();
                let service = TraceServiceServer::new(service)
                    .accept_compressed(CompressionEncoding::Gzip)
                    .send_compressed(CompressionEncoding::Gzip);
                let mut server = Server::builder();
                if let Some(tls) = tls {
                    server = server.tls_config(tls).unwrap();
                }
                let serve = server.add_service(service).serve_with_incoming(incoming);
                tokio::select! {
                    served = serve => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            script,
            address: told.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn starts(&self) -> Vec<u64> {
        let requests = self.script.requests.lock().unwrap();
        let groups = requests.iter().flat_map(|(_, r)| &r.resource_spans);
        let spans = groups.flat_map(|g| &g.scope_spans).flat_map(|s| &s.spans);
        spans.map(|span| span.start_time_unix_nano).collect()
    }

    fn calls(&self) -> u64 {
        *self.script.calls.lock().unwrap()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A sink at work, and what was put into it.
struct Bench {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    thread: JoinHandle<()>,
    stop: watch::Sender<Option<Instant>>,
    pushed: u64,
}

fn config(endpoint: impl ToString) -> OtlpConfig {
    OtlpConfig {
        logs: false,
        // More than an answer takes on a machine that has other things to do.
        timeout: Duration::from_secs(30),
        limits: Limits {
            spans: 100,
            take_spans: 10,
            delay: Duration::from_millis(5),
            ..Limits::default()
        },
        retry_first: Duration::from_millis(10),
        retry_max: Duration::from_millis(50),
        retry_for: Duration::from_secs(30),
        ..OtlpConfig::new(endpoint.to_string())
    }
}

impl Bench {
    fn start(config: OtlpConfig) -> Self {
        let counters = Arc::new(Counters::new());
        let queue = Arc::new(Queue::new(
            config.limits,
            Arc::clone(&counters),
            Count::OtlpQueueFull,
        ));
        let (stop, stopped) = Stop::new();
        let sources = Sources {
            queue: Arc::clone(&queue),
            metrics: None,
            events: None,
            stop: stopped,
        };
        let thread = start(config, sources, Arc::clone(&counters)).unwrap();
        Self {
            queue,
            counters,
            thread,
            stop,
            pushed: 0,
        }
    }

    fn push(&mut self, spans: u64) {
        let range = self.pushed..self.pushed + spans;
        self.queue
            .push(Arc::new(Batch::new(range.map(span).collect())));
        self.pushed += spans;
    }

    fn wait(&self, count: Count, value: u64) {
        let begin = Instant::now();
        while self.counters.get(count) < value {
            assert!(begin.elapsed() < Duration::from_secs(60), "{count:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn get(&self, count: Count) -> u64 {
        self.counters.get(count)
    }

    /// Stops within the time, and checks that every span was sent or counted as lost, once.
    fn stop(self, time: Duration) -> Arc<Counters> {
        let begin = Instant::now();
        self.stop.send_replace(Some(begin + time));
        self.queue.stop(begin + time);
        self.thread.join().unwrap();
        // Less than a request may take.
        assert!(begin.elapsed() < time + Duration::from_secs(20));
        let left = self.queue.drain();
        self.counters.add(Count::OtlpStopped, left);
        let sum: u64 = [
            Count::OtlpSent,
            Count::OtlpRejected,
            Count::OtlpRefused,
            Count::OtlpGaveUp,
            Count::OtlpQueueFull,
            Count::OtlpStopped,
        ]
        .iter()
        .map(|&count| self.counters.get(count))
        .sum();
        assert_eq!(sum, self.pushed);
        self.counters
    }
}

/// More than a flush takes on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);

/// Spans arrive, with the headers asked for, compressed where asked; the rest is flushed at the stop.
#[test]
fn delivers() {
    for compression in [Compression::None, Compression::Gzip] {
        let collector = Collector::start(&[]);
        let mut bench = Bench::start(OtlpConfig {
            headers: "api-key=k,x-bytes-bin=b".parse().unwrap(),
            compression,
            ..config(collector.address)
        });
        bench.push(25);
        bench.wait(Count::OtlpSent, 25);
        bench.push(3);
        let counters = bench.stop(SOON);
        assert_eq!(counters.get(Count::OtlpSent), 28);
        assert_eq!(counters.get(Count::OtlpFailedAttempts), 0);
        assert_eq!(collector.starts(), (0..28).collect::<Vec<_>>());
        let requests = collector.script.requests.lock().unwrap();
        let (metadata, _) = &requests[0];
        assert_eq!(metadata.get("api-key").unwrap(), "k");
        assert!(metadata.get_bin("x-bytes-bin").is_some());
        let agent = metadata.get("user-agent").unwrap().to_str().unwrap();
        assert!(agent.starts_with("decnet-trace/"), "{agent}");
        let encoding = metadata.get("grpc-encoding").map(|v| v.to_str().unwrap());
        assert_eq!(
            encoding,
            (compression == Compression::Gzip).then_some("gzip")
        );
    }
}

/// What the specification calls retryable is tried again, and nothing is lost by it.
#[test]
fn tries_again() {
    let mut acts: Vec<Act> = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ]
    .map(|code| Act::Refuse(code, None))
    .into();
    let delay = Some(Duration::from_millis(200));
    acts.push(Act::Refuse(Code::ResourceExhausted, delay));
    acts.push(Act::Accept);
    let collector = Collector::start(&acts);
    let mut bench = Bench::start(config(collector.address));
    let begin = Instant::now();
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    // A quarter of jitter off what the server asked for.
    assert!(begin.elapsed() >= Duration::from_millis(150));
    assert_eq!(bench.get(Count::OtlpFailedAttempts), 7);
    bench.stop(SOON);
    assert_eq!(collector.starts(), [0, 1, 2, 3, 4]);
}

/// What the specification calls final is not tried again, is counted, and stops nothing after it.
#[test]
fn gives_up_what_is_refused() {
    for code in [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Unimplemented,
        Code::Internal,
        Code::Unknown,
        Code::Unauthenticated,
    ] {
        let collector = Collector::start(&[Act::Refuse(code, None), Act::Accept]);
        let mut bench = Bench::start(config(collector.address));
        bench.push(5);
        bench.wait(Count::OtlpRefused, 5);
        bench.push(2);
        bench.wait(Count::OtlpSent, 2);
        bench.stop(SOON);
        assert_eq!(collector.calls(), 2, "{code:?}");
        assert_eq!(collector.starts(), [5, 6], "{code:?}");
    }
}

/// Spans that the server rejects from a request that it accepts are counted as lost, and not sent
/// again; a remark alone loses nothing.
#[test]
fn counts_partial_success() {
    let collector = Collector::start(&[Act::Reject(3), Act::Reject(0), Act::Reject(-1)]);
    let mut bench = Bench::start(config(collector.address));
    bench.push(5);
    bench.wait(Count::OtlpSent, 2);
    assert_eq!(bench.get(Count::OtlpRejected), 3);
    bench.push(5);
    bench.wait(Count::OtlpSent, 7);
    bench.push(5);
    bench.wait(Count::OtlpSent, 12);
    let counters = bench.stop(SOON);
    assert_eq!(counters.get(Count::OtlpRejected), 3);
    assert_eq!(collector.calls(), 3);
}

/// With nobody there the queue stays bounded and loses its oldest; once somebody is, the newest arrive.
#[test]
fn waits_for_an_endpoint() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut bench = Bench::start(config(address));
    for _ in 0..100 {
        bench.push(10);
    }
    bench.wait(Count::OtlpFailedAttempts, 3);
    assert!(bench.queue.len() <= 100);
    assert!(bench.get(Count::OtlpQueueFull) >= 800);
    let collector = Collector::start_at(address, &[]);
    bench.wait(Count::OtlpSent, 100);
    let counters = bench.stop(SOON);
    assert_eq!(counters.get(Count::OtlpGaveUp), 0);
    let starts = collector.starts();
    assert_eq!(starts.last(), Some(&999));
    assert!(starts.ends_with(&(900..1000).collect::<Vec<_>>()));
}

/// A server that hangs costs a timeout, not the sink; when it answers again nothing is lost.
#[test]
fn outlasts_a_hang() {
    let collector = Collector::start(&[Act::Hang, Act::Accept]);
    let mut bench = Bench::start(OtlpConfig {
        timeout: Duration::from_secs(1),
        ..config(collector.address)
    });
    bench.push(5);
    bench.wait(Count::OtlpFailedAttempts, 1);
    bench.wait(Count::OtlpSent, 5);
    bench.stop(SOON);
    assert_eq!(collector.starts(), [0, 1, 2, 3, 4]);
}

/// A server that hangs, or takes connections and says nothing, does not keep the agent from stopping.
#[test]
fn stops_in_time() {
    let hanging = Collector::start(&[Act::Hang]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [hanging.address, silent.local_addr().unwrap()] {
        let mut bench = Bench::start(config(address));
        bench.push(25);
        thread::sleep(Duration::from_millis(50));
        let counters = bench.stop(Duration::from_millis(200));
        assert_eq!(counters.get(Count::OtlpStopped), 25);
    }
}

/// With nobody there, who stops does not wait for the deadline.
#[test]
fn does_not_wait_for_nobody() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut bench = Bench::start(config(address));
    bench.push(5);
    bench.wait(Count::OtlpFailedAttempts, 1);
    let begin = Instant::now();
    let counters = bench.stop(Duration::from_secs(600));
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_eq!(counters.get(Count::OtlpStopped), 5);
}

/// A server that dies with requests under way and comes back gets all that it had not acknowledged.
#[test]
fn outlasts_a_restart() {
    let collector = Collector::start(&[Act::Accept, Act::Hang]);
    let address = collector.address;
    let mut bench = Bench::start(config(address));
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    bench.push(5);
    while collector.calls() < 2 {
        thread::sleep(Duration::from_millis(2));
    }
    drop(collector);
    bench.wait(Count::OtlpFailedAttempts, 2);
    bench.push(5);
    let collector = Collector::start_at(address, &[]);
    bench.wait(Count::OtlpSent, 15);
    let counters = bench.stop(SOON);
    assert_eq!(counters.get(Count::OtlpSent), 15);
    assert_eq!(collector.starts(), (5..15).collect::<Vec<_>>());
}

/// Stands between a client and a server, and can let its connections die without a word, as a router
/// does that forgot them; new ones work.
struct Router {
    address: SocketAddr,
    dead: Arc<AtomicUsize>,
    seen: Arc<AtomicUsize>,
}

impl Router {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let router = Self {
            address: listener.local_addr().unwrap(),
            dead: Arc::default(),
            seen: Arc::default(),
        };
        let (dead, seen) = (Arc::clone(&router.dead), Arc::clone(&router.seen));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
                let server = TcpStream::connect(server).unwrap();
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    let dead = Arc::clone(&dead);
                    thread::spawn(move || {
                        let mut room = [0; 4096];
                        while let Ok(n @ 1..) = from.read(&mut room) {
                            // Taken, and forgotten.
                            if number > dead.load(Ordering::SeqCst)
                                && to.write_all(&room[..n]).is_err()
                            {
                                return;
                            }
                        }
                    });
                }
            }
        });
        router
    }

    fn forget(&self) {
        let seen = self.seen.load(Ordering::SeqCst);
        self.dead.store(seen, Ordering::SeqCst);
    }
}

/// A connection that dies without a word is given up for a new one, and nothing is lost.
#[test]
fn outlasts_a_dead_connection() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let collector = Collector::start(&[]);
        let web = http::Server::start(&[http::OK_KEPT]);
        let router = Router::start(match protocol {
            Protocol::Grpc => collector.address,
            Protocol::HttpProtobuf => web.address,
        });
        let mut bench = Bench::start(OtlpConfig {
            protocol,
            timeout: Duration::from_millis(300),
            ..config(router.address)
        });
        bench.push(5);
        bench.wait(Count::OtlpSent, 5);
        router.forget();
        bench.push(5);
        bench.wait(Count::OtlpSent, 10);
        assert!(bench.get(Count::OtlpFailedAttempts) >= 1, "{protocol:?}");
        bench.stop(SOON);
    }
}

/// A request that fails for too long is given up, so that newer spans have a chance.
#[test]
fn gives_up_in_time() {
    let collector = Collector::start(&[Act::Refuse(Code::Unavailable, None)]);
    let mut bench = Bench::start(OtlpConfig {
        retry_for: Duration::from_secs(1),
        ..config(collector.address)
    });
    bench.push(5);
    bench.wait(Count::OtlpGaveUp, 5);
    assert!(bench.get(Count::OtlpFailedAttempts) >= 2);
    bench.stop(SOON);
}

/// Waits differ, and stay within a quarter of what was meant.
#[test]
fn jitters() {
    let mut rng = fastrand::Rng::with_seed(1);
    let waits: Vec<_> = (0..100)
        .map(|_| jittered(Duration::from_secs(4), &mut rng))
        .collect();
    assert!(waits.iter().all(|w| (3..=5).contains(&w.as_secs())));
    assert!(waits.iter().any(|w| *w != waits[0]));
}
