//! OTLP/HTTP against a server that answers by a script.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
};

use flate2::read::GzDecoder;
use prost::Message as _;

use super::*;

/// A request, as it came.
pub(super) struct Received {
    pub(super) head: String,
    pub(super) message: ExportTraceServiceRequest,
}

/// A server that answers each request on a connection of its own, and remembers it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The last answer goes on. An empty one closes the connection without a word.
    pub(super) fn start(answers: &[&str]) -> Self {
        Self::start_with(answers, Box::new)
    }

    /// `wrap` is what stands between the connection and HTTP.
    pub(super) fn start_with<S: Read + Write>(
        answers: &[&str],
        wrap: impl Fn(TcpStream) -> S + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut answers: VecDeque<String> = answers.iter().map(|a| (*a).to_owned()).collect();
        let (into, stopped) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                let mut stream = wrap(stream);
                let Some(request) = read(&mut stream) else {
                    continue;
                };
                into.lock().unwrap().push(request);
                let answer = match answers.len() {
                    1 => answers[0].clone(),
                    _ => answers.pop_front().unwrap(),
                };
                let _ = stream.write_all(answer.as_bytes());
                let _ = stream.flush();
                if [OK_KEPT, UNENDED].contains(&&*answer) {
                    kept.push(stream);
                }
            }
        });
        Self {
            address,
            received,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn received(&self) -> std::sync::MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request; `None` when the connection is given up before there is one.
fn read(stream: &mut impl Read) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut room = [0; 4096];
    loop {
        let n = stream.read(&mut room).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&room[..n]);
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head) = request.parse(&bytes).unwrap() else {
            continue;
        };
        let header = |name: &str| {
            let found = request.headers.iter().find(|h| h.name == name);
            found.map(|h| str::from_utf8(h.value).unwrap())
        };
        let length: usize = header("content-length")?.parse().unwrap();
        if bytes.len() < head + length {
            continue;
        }
        let mut body = bytes[head..].to_vec();
        if header("content-encoding") == Some("gzip") {
            let packed = std::mem::take(&mut body);
            GzDecoder::new(&*packed).read_to_end(&mut body).unwrap();
        }
        return Some(Received {
            head: String::from_utf8(bytes[..head].to_vec()).unwrap(),
            message: ExportTraceServiceRequest::decode(&*body).unwrap(),
        });
    }
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Leaves the connection open.
pub(super) const OK_KEPT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Says less than it announced, and leaves the connection open.
const UNENDED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";

fn answer(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
}

pub(super) fn http(endpoint: impl ToString) -> OtlpConfig {
    OtlpConfig {
        protocol: Protocol::HttpProtobuf,
        ..config(endpoint)
    }
}

/// A request is posted to the signal's path, with the headers asked for, compressed where asked.
#[test]
fn posts() {
    for compression in [Compression::None, Compression::Gzip] {
        let server = Server::start(&[OK]);
        let mut bench = Bench::start(OtlpConfig {
            headers: "api-key=k".parse().unwrap(),
            compression,
            ..http(format_args!("http://{}/base", server.address))
        });
        bench.push(5);
        bench.wait(Count::OtlpSent, 5);
        bench.stop(SOON);
        let received = server.received();
        assert_eq!(received.len(), 1);
        let head = received[0].head.to_lowercase();
        assert!(
            head.starts_with("post /base/v1/traces http/1.1\r\n"),
            "{head}"
        );
        for want in [
            "content-type: application/x-protobuf\r\n",
            "api-key: k\r\n",
            "user-agent: decnet-trace/",
        ] {
            assert!(head.contains(want), "{head}");
        }
        let spans = &received[0].message.resource_spans[0].scope_spans[0].spans;
        assert_eq!(spans.len(), 5);
    }
}

/// What the specification calls retryable is tried again, after the time that the server asks for;
/// so is a connection that breaks.
#[test]
fn tries_again() {
    let mut answers: Vec<String> = [
        "429 Too Many Requests",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
    ]
    .map(answer)
    .into();
    answers.push(String::new());
    answers.push(
        "HTTP/1.1 503 Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .into(),
    );
    answers.push(OK.into());
    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
    let server = Server::start(&answers);
    let mut bench = Bench::start(http(server.address));
    let begin = Instant::now();
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    assert!(begin.elapsed() >= Duration::from_millis(750));
    assert_eq!(bench.get(Count::OtlpFailedAttempts), 6);
    bench.stop(SOON);
}

/// Other statuses are final, redirects among them.
#[test]
fn gives_up_what_is_refused() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "404 Not Found",
        "413 Too Large",
        "500 Broken",
        "302 Found",
    ] {
        let refusal = answer(status);
        let server = Server::start(&[&refusal, OK]);
        let mut bench = Bench::start(http(server.address));
        bench.push(5);
        bench.wait(Count::OtlpRefused, 5);
        bench.push(2);
        bench.wait(Count::OtlpSent, 2);
        bench.stop(SOON);
        assert_eq!(server.received().len(), 2, "{status}");
    }
}

/// An endpoint that answers every error code in turn, again and again: what waits stays within its bound,
/// every span is accounted for, and once it accepts again spans arrive.
#[test]
fn survives_every_error_code() {
    let codes: Vec<_> = (400..=599)
        .map(|code| answer(&format!("{code} No")))
        .collect();
    let mut answers: Vec<&str> = codes.iter().map(String::as_str).collect();
    answers.push(OK);
    let server = Server::start(&answers);
    let config = OtlpConfig {
        retry_first: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        retry_for: Duration::from_millis(200),
        ..http(server.address)
    };
    let mut bench = Bench::start(config);
    let begin = Instant::now();
    while bench.get(Count::OtlpSent) == 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "nothing arrives"
        );
        bench.push(20);
        assert!(bench.queue.len() <= 120, "{}", bench.queue.len());
        thread::sleep(Duration::from_millis(1));
    }
    assert!(bench.get(Count::OtlpRefused) > 0);
    assert_eq!(bench.get(Count::OtlpFailedAttempts), 200);
    bench.stop(SOON);
}

/// Partial success is read from the answer, and counted; an answer that is no message is none.
#[test]
fn counts_partial_success() {
    let body = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 3,
            error_message: "odd".into(),
        }),
    }
    .encode_to_vec();
    let body = String::from_utf8(body).unwrap();
    let partial = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let garbage = answer("200 OK");
    let server = Server::start(&[&partial, &garbage]);
    let mut bench = Bench::start(http(server.address));
    bench.push(5);
    bench.wait(Count::OtlpSent, 2);
    bench.push(5);
    bench.wait(Count::OtlpSent, 7);
    let counters = bench.stop(SOON);
    assert_eq!(counters.get(Count::OtlpRejected), 3);
}

/// What is no answer costs an attempt and no more.
#[test]
fn survives_odd_answers() {
    let server = Server::start(&["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 200", OK]);
    let mut bench = Bench::start(http(server.address));
    bench.push(5);
    bench.wait(Count::OtlpSent, 5);
    assert_eq!(bench.get(Count::OtlpFailedAttempts), 2);
    bench.stop(SOON);
}

/// The status decides: what was accepted is never sent again, and what was refused is not tried again,
/// whatever the body is: longer than anybody reads, broken off, without end, or an error page.
#[test]
fn the_status_decides() {
    let page = "x".repeat(100_000);
    let announced = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{page}")
    };
    for accepted in [
        &announced("200 OK", page.len()),
        &announced("200 OK", 9_999_999),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        UNENDED,
    ] {
        let server = Server::start(&[accepted, OK]);
        let config = http(server.address);
        // What never ends is waited for half of the time.
        let timeout = match accepted {
            UNENDED => Duration::from_secs(4),
            _ => config.timeout,
        };
        let mut bench = Bench::start(OtlpConfig { timeout, ..config });
        bench.push(5);
        bench.wait(Count::OtlpSent, 5);
        bench.push(2);
        bench.wait(Count::OtlpSent, 7);
        let counters = bench.stop(SOON);
        assert_eq!(counters.get(Count::OtlpFailedAttempts), 0, "{accepted:.60}");
        assert_eq!(server.received().len(), 2, "{accepted:.60}");
    }
    for refused in [
        announced("400 Bad Request", page.len()),
        announced("404 Not Found", 9_999_999),
    ] {
        let server = Server::start(&[&refused, OK]);
        let mut bench = Bench::start(http(server.address));
        bench.push(5);
        bench.wait(Count::OtlpRefused, 5);
        bench.push(2);
        bench.wait(Count::OtlpSent, 2);
        bench.stop(SOON);
        assert_eq!(server.received().len(), 2, "{refused:.60}");
    }
}
