//! A client that knows exactly what it sent, what came back, and when.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use xtask::bed::load::Target;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is true of an exchange. What a client cannot know is `None`.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    /// What was tried.
    pub(crate) case: String,
    /// The serving process.
    pub(crate) pid: u32,
    /// The client's port; none on a unix socket.
    pub(crate) port: Option<u16>,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: Option<u16>,
    /// Bytes on the wire, heads included.
    pub(crate) sent: Option<u64>,
    pub(crate) received: Option<u64>,
    /// Bytes of the response's body, with the chunks' frames.
    pub(crate) body: Option<u64>,
    /// What `decnet.end` has to say.
    pub(crate) end: &'static str,
    /// From before the first byte was sent until after the last was read, in nanoseconds since the epoch.
    pub(crate) took: (u64, u64),
    /// The bounds of the time that the request waited to be read, in nanoseconds.
    pub(crate) queue: Option<(u64, u64)>,
}

/// The truth about everything that is to be seen.
#[derive(Default)]
pub(crate) struct Book(RefCell<Vec<Truth>>);

impl Book {
    /// Everything, in the order of the ends.
    pub(crate) fn into_inner(self) -> Vec<Truth> {
        self.0.into_inner()
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A response as the client got it.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// The body, with the chunks' frames; only its first KiB is kept.
    pub(crate) body: Vec<u8>,
    /// How its end was known.
    pub(crate) end: &'static str,
    wire: u64,
    body_len: u64,
}

/// A request on its way.
struct Pending {
    method: String,
    path: String,
    sent: u64,
    start: u64,
}

/// A connection to a service.
pub(crate) struct Client<'a> {
    book: &'a Book,
    case: String,
    pid: u32,
    port: Option<u16>,
    stream: Box<dyn Stream>,
    /// For what the stream's trait lacks.
    tcp: Option<TcpStream>,
    /// Read and not used.
    buffer: Vec<u8>,
    pending: VecDeque<Pending>,
}

impl<'a> Client<'a> {
    /// Connects.
    pub(crate) fn connect(book: &'a Book, case: &str, server: &super::Server) -> Self {
        let (stream, tcp, port): (Box<dyn Stream>, _, _) = match &server.target {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect(addr).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let port = stream.local_addr().unwrap().port();
                let tcp = stream.try_clone().unwrap();
                (Box::new(stream), Some(tcp), Some(port))
            }
            Target::Uds(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                (Box::new(stream), None, None)
            }
        };
        Self {
            book,
            case: format!("{case} on {}", server.name),
            pid: server.pid,
            port,
            stream,
            tcp,
            buffer: Vec::new(),
            pending: VecDeque::new(),
        }
    }

    /// Sends a request and reads its response, of which nobody will know.
    pub(crate) fn ignored(&mut self, path: &str) {
        self.request("GET", path);
        self.ignored_response();
    }

    /// Reads a response to a request, of which nobody will know.
    pub(crate) fn ignored_response(&mut self) {
        let pending = self.pending.pop_front().unwrap();
        self.read(&pending.method);
    }

    /// Sends bytes that are no request, or belong to one counted already.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Begins a request, whose bytes follow.
    pub(crate) fn begin(&mut self, method: &str, path: &str) {
        self.pending.push_back(Pending {
            method: method.into(),
            path: path.into(),
            sent: 0,
            start: now(),
        });
    }

    /// Sends bytes of the request that was begun last.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.pending.back_mut().unwrap().sent += bytes.len() as u64;
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a whole request without a body.
    pub(crate) fn request(&mut self, method: &str, path: &str) {
        self.begin(method, path);
        self.send(&head(method, path, &[]));
    }

    /// Sends several requests in one write.
    pub(crate) fn pipeline(&mut self, requests: &[(&str, &str)]) {
        let mut all = Vec::new();
        for (method, path) in requests {
            let head = head(method, path, &[]);
            self.begin(method, path);
            self.pending.back_mut().unwrap().sent = head.len() as u64;
            all.extend(head);
        }
        self.stream.write_all(&all).unwrap();
    }

    /// Sends the last bytes of the request that was begun last, and the next one behind them.
    pub(crate) fn send_behind(&mut self, last: &[u8], method: &str, path: &str, next: &[u8]) {
        self.pending.back_mut().unwrap().sent += last.len() as u64;
        self.begin(method, path);
        self.pending.back_mut().unwrap().sent = next.len() as u64;
        self.stream.write_all(&[last, next].concat()).unwrap();
    }

    /// Reads the response to a request that had to wait until it was read: at least and at most how
    /// long, `bounds` says of the times of its begin and its end. Gives back how long it took.
    pub(crate) fn response_after(&mut self, bounds: impl Fn(u64, u64) -> (u64, u64)) -> u64 {
        self.response();
        let mut truths = self.book.0.borrow_mut();
        let truth = truths.last_mut().unwrap();
        let (began, ended) = truth.took;
        if self.port.is_some() {
            truth.queue = Some(bounds(began, ended));
        }
        ended - began
    }

    /// Reads the response to the oldest request, which ends as the response itself says.
    pub(crate) fn response(&mut self) -> Response {
        let pending = self.pending.pop_front().unwrap();
        let response = self.read(&pending.method);
        let mut truth = self.truth(pending, response.end);
        truth.status = Some(response.status);
        truth.received = Some(response.wire);
        truth.body = Some(response.body_len);
        self.book.0.borrow_mut().push(truth);
        response
    }

    /// Like [`Self::response`], where the agent knows the end in another way.
    pub(crate) fn response_known_by(&mut self, end: &'static str) {
        self.response();
        self.book.0.borrow_mut().last_mut().unwrap().end = end;
    }

    /// Sends a request and reads its response.
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.request("GET", path);
        self.response()
    }

    /// The oldest request gets no whole response: it ends so, with that status if there is one.
    pub(crate) fn fails(&mut self, end: &'static str, status: Option<u16>) {
        let pending = self.pending.pop_front().unwrap();
        let mut truth = self.truth(pending, end);
        truth.status = status;
        self.book.0.borrow_mut().push(truth);
    }

    /// Reads a head and as many bytes of its body, for a response that will not be read to its end.
    pub(crate) fn part(&mut self, bytes: usize) -> u16 {
        let (status, _) = self.read_head();
        while self.buffer.len() < bytes {
            assert!(self.fill(), "{}: the response ended", self.case);
        }
        status
    }

    /// Reads a head and leaves it in its place.
    pub(crate) fn peek_head(&mut self) -> String {
        let end = self.line_end(b"\r\n\r\n");
        String::from_utf8(self.buffer[..end].to_vec()).unwrap()
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(mut self) {
        let tcp = self.tcp.take().unwrap();
        rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    }

    /// Sends no more, and still reads.
    pub(crate) fn shut(&mut self) {
        let tcp = self.tcp.as_ref().unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
    }

    /// Whether the server ends the connection now; what it sends before is passed over.
    pub(crate) fn is_closed(&mut self) -> bool {
        loop {
            match self.stream.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
                Err(error) => panic!("{}: {error}", self.case),
            }
        }
    }

    /// Reads so many bytes that are no response.
    pub(crate) fn read_raw(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.fill(), "{}: the stream ended", self.case);
        }
        self.buffer.drain(..bytes).collect()
    }

    fn truth(&self, pending: Pending, end: &'static str) -> Truth {
        Truth {
            case: self.case.clone(),
            pid: self.pid,
            port: self.port,
            method: pending.method,
            path: pending.path,
            status: None,
            sent: (pending.sent > 0).then_some(pending.sent),
            received: None,
            body: None,
            end,
            took: (pending.start, now()),
            queue: None,
        }
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> bool {
        let len = self.buffer.len();
        self.buffer.resize(len + 256 * 1024, 0);
        let read = self.stream.read(&mut self.buffer[len..]);
        let count = read.unwrap_or_else(|error| panic!("{}: {error}", self.case));
        self.buffer.truncate(len + count);
        count > 0
    }

    fn line_end(&mut self, mark: &[u8]) -> usize {
        loop {
            let found = self.buffer.windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                return at + mark.len();
            }
            assert!(self.fill(), "{}: the response ended", self.case);
        }
    }

    /// A head: its status and its text.
    fn read_head(&mut self) -> (u16, String) {
        let end = self.line_end(b"\r\n\r\n");
        let head: Vec<_> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let status = head[9..12].parse().unwrap();
        (status, head)
    }

    /// Takes so many bytes of the body.
    fn take(&mut self, mut bytes: u64, response: &mut Response) {
        while bytes > 0 {
            if self.buffer.is_empty() {
                assert!(self.fill(), "{}: the response ended", self.case);
            }
            let count = (self.buffer.len() as u64).min(bytes) as usize;
            let room = 1024_usize.saturating_sub(response.body.len()).min(count);
            response.body.extend_from_slice(&self.buffer[..room]);
            self.buffer.drain(..count);
            response.wire += count as u64;
            response.body_len += count as u64;
            bytes -= count as u64;
        }
    }

    fn read(&mut self, method: &str) -> Response {
        let mut response = Response::default();
        loop {
            let (status, head) = self.read_head();
            response.wire += head.len() as u64;
            response.status = status;
            response.head = head;
            if status >= 200 || status == 101 {
                break;
            }
        }
        let head = response.head.to_ascii_lowercase();
        let header = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name));
        if response.status == 101 {
            response.end = "upgrade";
        } else if method == "HEAD" || matches!(response.status, 204 | 304) {
            response.end = "length";
        } else if header("transfer-encoding:").is_some() {
            response.end = "last_chunk";
            loop {
                let line = self.line_end(b"\r\n");
                let text = std::str::from_utf8(&self.buffer[..line]).unwrap();
                let size = text.trim_end().split(';').next().unwrap();
                let size = u64::from_str_radix(size, 16).unwrap();
                self.take(line as u64, &mut response);
                if size == 0 {
                    break;
                }
                self.take(size + 2, &mut response);
            }
            // Trailers, and the empty line behind them.
            loop {
                let line = self.line_end(b"\r\n");
                self.take(line as u64, &mut response);
                if line == 2 {
                    break;
                }
            }
        } else if let Some(length) = header("content-length:") {
            response.end = "length";
            let length = length.trim().parse().unwrap();
            self.take(length, &mut response);
        } else {
            response.end = "close";
            while !self.buffer.is_empty() || self.fill() {
                let len = self.buffer.len() as u64;
                self.take(len, &mut response);
            }
        }
        response
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.pending.is_empty(),
                "{}: a request without an end",
                self.case
            );
        }
        // The clone is no second owner: the connection ends here.
        if let Some(tcp) = &self.tcp {
            let _ = tcp.shutdown(Shutdown::Both);
        }
    }
}

/// A request's head.
pub(crate) fn head(method: &str, path: &str, headers: &[&str]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: torture\r\n");
    for header in headers {
        head += header;
        head += "\r\n";
    }
    head += "\r\n";
    head.into_bytes()
}

/// Lets a server read what was sent, before more is.
pub(crate) fn pause() {
    sleep(Duration::from_millis(20));
}
