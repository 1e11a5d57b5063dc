//! A closed-loop HTTP/1.1 load generator that notes the truth about every request: each connection
//! sends its next request when it has the whole response to the one before.
//!
//! One thread serves many connections with epoll, so that it needs less CPU than the service.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    time::{ClockId, clock_gettime},
};

use super::http::Reader;

/// What one read from a socket takes at most.
const READ: usize = 256 * 1024;

/// A request without an answer for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest sleep: how late the load notices that it should stop.
const TICK: Duration = Duration::from_millis(50);

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On TCP.
    Tcp(SocketAddr),
    /// On a Unix socket.
    Uds(PathBuf),
}

/// A request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, like `GET`.
    pub method: String,
    /// The request target: path and query.
    pub path: String,
    /// Headers beside Host and Content-Length, which are added.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A GET without further headers.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET".to_owned(),
            path: path.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A POST of that body.
    pub fn post(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            method: "POST".to_owned(),
            body: body.into(),
            ..Self::get(path)
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The bytes that are sent.
    pub fn encode(&self, host: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || matches!(&*self.method, "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The truth about one request, seen from the client.
#[derive(Clone, Debug)]
pub struct Truth {
    /// What was sent.
    pub request: Arc<Request>,
    /// Which request of the load it was: the n-th that was sent, from 0.
    pub index: usize,
    /// The client's own port; 0 over a Unix socket.
    pub local_port: u16,
    /// Which request of its connection it was, from 0.
    pub sequence: u32,
    /// The response's status; 0 where none came.
    pub status: u16,
    /// Bytes sent: head and body.
    pub request_bytes: u64,
    /// Bytes received: head, body and framing.
    pub response_bytes: u64,
    /// Bytes of the response's body, without framing.
    pub response_body_bytes: u64,
    /// When it was to be sent, by the load's rate; [`Self::start`] where it has none. What passed
    /// between the two, the request waited because those before it were not answered: a user's time,
    /// which `end - start` omits.
    pub due: u64,
    /// Before the first byte was sent: nanoseconds of `CLOCK_MONOTONIC`.
    pub start: u64,
    /// After the last byte was received: nanoseconds of `CLOCK_MONOTONIC`.
    pub end: u64,
    /// The client's own reads and writes of the socket.
    pub operations: u32,
    /// Whether the whole response came; otherwise the connection broke, or it took too long.
    pub complete: bool,
}

/// A load to put on a service; see [`Load::new`].
///
/// A server may close a connection after a response without saying so in it (uvicorn does when the
/// application raised). The next request on it was then never seen, and goes over a new connection,
/// unless it is one that must not be repeated, like POST: that one is not `complete`.
#[derive(Clone, Debug)]
pub struct Load {
    target: Target,
    requests: Vec<Arc<Request>>,
    connections: usize,
    threads: usize,
    count: usize,
    duration: Option<Duration>,
    rate: Option<f64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Sends each of `requests` once, in their order, over one connection; change from there.
    pub fn new(target: Target, requests: impl IntoIterator<Item = Request>) -> Self {
        let requests: Vec<_> = requests.into_iter().map(Arc::new).collect();
        Self {
            target,
            count: requests.len(),
            requests,
            connections: 1,
            threads: 1,
            duration: None,
            rate: None,
            stop: Arc::default(),
        }
    }

    /// Connections that are kept open and used at the same time. Over more than one, the requests
    /// still start in the order of the list, each on the next connection that is free.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Threads that share the connections; one is enough for what one Python worker serves.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sends so many requests: the list again and again.
    pub fn count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Sends the list again and again for so long, instead of a number of times; at a rate, what is due in that time.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self.count = usize::MAX;
        self
    }

    /// Starts so many requests a second over all connections, instead of as many as can be. One
    /// that finds no free connection waits for one, and the next ones follow as fast as they can.
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Stops early when this becomes true; requests on their way are still finished.
    pub fn stop_on(mut self, stop: &Arc<AtomicBool>) -> Self {
        self.stop = Arc::clone(stop);
        self
    }

    /// When a request is to be sent, counted from the load's start, where it has a rate.
    fn due(&self, index: usize) -> Option<Duration> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a load has less than 2^52 requests"
        )]
        self.rate
            .map(|rate| Duration::from_secs_f64(index as f64 / rate))
    }

    /// Whether nothing more is sent. At a rate, what was due in time is sent although its time has come late: who leaves
    /// it out leaves out the longest waits. A service that can do half of the rate is waited for no longer.
    fn is_over(&self, elapsed: Duration) -> bool {
        let late = if self.rate.is_some() { 2 } else { 1 };
        self.duration.is_some_and(|limit| elapsed >= late * limit)
    }

    /// Runs the load in this thread, or in as many as were asked for, and returns the truth about
    /// every request, in the order in which they were started.
    ///
    /// # Errors
    /// The service cannot be connected to. A request that fails is no error, but not `complete`.
    pub fn run(&self) -> Result<Vec<Truth>> {
        if self.requests.is_empty() {
            return Ok(Vec::new());
        }
        let host = match &self.target {
            Target::Tcp(addr) => addr.to_string(),
            Target::Uds(_) => "localhost".to_owned(),
        };
        let encoded: Vec<_> = self.requests.iter().map(|r| r.encode(&host)).collect();
        let tickets = Tickets {
            next: AtomicUsize::new(0),
            start: Instant::now(),
            start_ns: monotonic_ns(),
        };
        let threads = self.threads.min(self.connections);
        let mut truths = if threads == 1 {
            Worker::new(self, &encoded, &tickets, self.connections)?.run()?
        } else {
            thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|n| {
                        let share = (self.connections + n) / threads;
                        let (encoded, tickets) = (&encoded, &tickets);
                        scope.spawn(move || Worker::new(self, encoded, tickets, share)?.run())
                    })
                    .collect();
                let mut all = Vec::new();
                for worker in workers {
                    match worker.join() {
                        Ok(truths) => all.extend(truths?),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
                anyhow::Ok(all)
            })?
        };
        truths.sort_unstable_by_key(|truth| truth.index);
        Ok(truths)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock that eBPF's `bpf_ktime_get_ns` reads.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative on this clock.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Who sends which request, shared by the threads.
struct Tickets {
    next: AtomicUsize,
    start: Instant,
    /// The same on `CLOCK_MONOTONIC`.
    start_ns: u64,
}

/// One thread's connections.
struct Worker<'a> {
    load: &'a Load,
    encoded: &'a [Vec<u8>],
    tickets: &'a Tickets,
    // A request that is this thread's to send, and not yet due.
    ticket: Option<usize>,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    // The service no longer takes connections.
    gone: bool,
    truths: Vec<Truth>,
    buffer: Vec<u8>,
}

/// What the next request of a thread is.
enum Next {
    Send(usize),
    WaitFor(Duration),
    None,
}

impl<'a> Worker<'a> {
    fn new(
        load: &'a Load,
        encoded: &'a [Vec<u8>],
        tickets: &'a Tickets,
        connections: usize,
    ) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot create an epoll")?;
        let mut worker = Self {
            load,
            encoded,
            tickets,
            ticket: None,
            epoll,
            connections: Vec::with_capacity(connections),
            idle: (0..connections).rev().collect(),
            gone: false,
            truths: Vec::new(),
            buffer: vec![0; READ],
        };
        for n in 0..connections {
            let connection = worker.connect(n)?;
            worker.connections.push(connection);
        }
        Ok(worker)
    }

    fn connect(&self, n: usize) -> Result<Connection> {
        let stream = Stream::connect(&self.load.target)
            .with_context(|| format!("cannot connect to {:?}", self.load.target))?;
        epoll::add(
            &self.epoll,
            &stream,
            EventData::new_u64(n as u64),
            EventFlags::IN,
        )
        .context("cannot watch a socket")?;
        Ok(Connection {
            local_port: stream.local_port(),
            stream,
            sequence: 0,
            current: None,
            reader: Reader::new(false),
        })
    }

    fn run(mut self) -> Result<Vec<Truth>> {
        let mut events: Vec<Event> = Vec::with_capacity(256);
        loop {
            if self.gone {
                for n in 0..self.connections.len() {
                    self.note(n, false);
                }
                return Ok(self.truths);
            }
            let mut wait = TICK;
            while let Some(n) = self.idle.pop() {
                match self.next() {
                    Next::Send(index) => self.send(n, index)?,
                    Next::WaitFor(time) => {
                        self.idle.push(n);
                        wait = wait.min(time);
                        break;
                    }
                    Next::None => {
                        self.idle.push(n);
                        if self.idle.len() == self.connections.len() {
                            return Ok(self.truths);
                        }
                        break;
                    }
                }
            }
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: wait.subsec_nanos().into(),
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(0) => self.give_up_late(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for sockets"),
            }
            for event in events.drain(..) {
                self.advance(usize::try_from(event.data.u64())?)?;
            }
        }
    }

    fn next(&mut self) -> Next {
        let elapsed = self.tickets.start.elapsed();
        if self.load.stop.load(Ordering::Relaxed) || self.load.is_over(elapsed) {
            return Next::None;
        }
        let index = match self.ticket.take() {
            Some(index) => index,
            None => self.tickets.next.fetch_add(1, Ordering::Relaxed),
        };
        if index >= self.load.count {
            self.ticket = Some(index);
            return Next::None;
        }
        if let Some(due) = self.load.due(index) {
            if self.load.duration.is_some_and(|limit| due >= limit) {
                self.ticket = Some(index);
                return Next::None;
            }
            if due > elapsed {
                self.ticket = Some(index);
                return Next::WaitFor(due - elapsed);
            }
        }
        Next::Send(index)
    }

    fn send(&mut self, n: usize, index: usize) -> Result<()> {
        let which = index % self.load.requests.len();
        let start = monotonic_ns();
        let due = self.load.due(index).map_or(start, |due| {
            // A load lasts no 500 years.
            let due = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
            self.tickets.start_ns.saturating_add(due).min(start)
        });
        let connection = &mut self.connections[n];
        connection
            .reader
            .reset(self.load.requests[which].method == "HEAD");
        connection.current = Some(Current {
            index,
            which,
            sent: 0,
            operations: 0,
            due,
            start,
        });
        self.advance(n)
    }

    /// Moves a connection on as far as its socket allows.
    fn advance(&mut self, n: usize) -> Result<()> {
        let connection = &mut self.connections[n];
        let outcome = connection.advance(self.encoded, &mut self.buffer);
        match outcome {
            Ok(Progress::Blocked { writing }) => {
                if writing != connection.stream.writing {
                    connection.stream.writing = writing;
                    let flags = if writing {
                        EventFlags::OUT
                    } else {
                        EventFlags::IN
                    };
                    epoll::modify(
                        &self.epoll,
                        &connection.stream,
                        EventData::new_u64(n as u64),
                        flags,
                    )
                    .context("cannot watch a socket")?;
                }
            }
            Ok(Progress::Done) => self.finish(n, true),
            Ok(Progress::Closed) | Err(_)
                if self.connections[n].closed_while_idle(&self.load.requests) =>
            {
                self.send_again(n)?;
            }
            // Whatever broke it, the truth is that this request got no whole answer.
            Ok(Progress::Closed) | Err(_) => self.finish(n, false),
        }
        Ok(())
    }

    /// Sends a connection's request over a new connection instead.
    fn send_again(&mut self, n: usize) -> Result<()> {
        let Ok(connection) = self.connect(n) else {
            self.finish(n, false);
            return Ok(());
        };
        let old = std::mem::replace(&mut self.connections[n], connection);
        match old.current {
            Some(current) => self.send(n, current.index),
            None => Ok(()),
        }
    }

    /// Ends a connection's request, and opens another connection where this one cannot be used again.
    fn finish(&mut self, n: usize, complete: bool) {
        self.note(n, complete);
        if !complete || self.connections[n].reader.response().close {
            match self.connect(n) {
                // The old socket leaves the epoll as it is closed.
                Ok(connection) => self.connections[n] = connection,
                // The service is gone: what is known of it until here is still worth having.
                Err(_) => self.gone = true,
            }
        }
    }

    /// Notes the truth about a connection's request, if it had one, and frees the connection.
    fn note(&mut self, n: usize, complete: bool) {
        let end = monotonic_ns();
        let connection = &mut self.connections[n];
        let response = connection.reader.response();
        if let Some(current) = connection.current.take() {
            self.truths.push(Truth {
                request: Arc::clone(&self.load.requests[current.which]),
                index: current.index,
                local_port: connection.local_port,
                sequence: connection.sequence,
                status: response.status,
                request_bytes: current.sent as u64,
                response_bytes: response.bytes,
                response_body_bytes: response.body_bytes,
                due: current.due,
                start: current.start,
                end,
                operations: current.operations,
                complete,
            });
            connection.sequence += 1;
            self.idle.push(n);
        }
    }

    fn give_up_late(&mut self) {
        let now = monotonic_ns();
        for n in 0..self.connections.len() {
            let late = self.connections[n]
                .current
                .as_ref()
                .is_some_and(|c| u128::from(now - c.start) > TIMEOUT.as_nanos());
            if late {
                self.finish(n, false);
            }
        }
    }
}

/// A request on its way.
#[derive(Debug)]
struct Current {
    index: usize,
    which: usize,
    sent: usize,
    operations: u32,
    due: u64,
    start: u64,
}

#[derive(Debug)]
struct Connection {
    stream: Stream,
    local_port: u16,
    sequence: u32,
    current: Option<Current>,
    reader: Reader,
}

enum Progress {
    /// The socket has nothing more to give, or (`writing`) takes nothing more.
    Blocked { writing: bool },
    /// The response is complete.
    Done,
    /// The server closed the connection before that.
    Closed,
}

impl Connection {
    /// Whether the server closed the connection when it had not yet seen the current request: the
    /// connection served one before, and not a byte came back. A request that may be repeated is then
    /// sent again, as every HTTP client does (RFC 9112, 9.3.1).
    fn closed_while_idle(&self, requests: &[Arc<Request>]) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let method = &*requests[current.which].method;
            self.sequence > 0
                && self.reader.response().bytes == 0
                && matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
        })
    }

    fn advance(&mut self, encoded: &[Vec<u8>], buffer: &mut [u8]) -> Result<Progress> {
        if let Some(current) = &mut self.current {
            let bytes = &encoded[current.which];
            while current.sent < bytes.len() {
                current.operations += 1;
                match self.stream.write(&bytes[current.sent..]) {
                    Ok(n) => current.sent += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Progress::Blocked { writing: true });
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if self.stream.fresh {
                // A response takes longer than this: the attempt to read it would be in vain.
                self.stream.fresh = false;
                return Ok(Progress::Blocked { writing: false });
            }
        }
        loop {
            if let Some(current) = &mut self.current {
                current.operations += 1;
            }
            match self.stream.read(buffer) {
                Ok(0) if self.current.is_some() && self.reader.close() => {
                    return Ok(Progress::Done);
                }
                Ok(0) => return Ok(Progress::Closed),
                Ok(n) => {
                    // Bytes nobody asked for: this is not HTTP.
                    if self.current.is_none() || self.reader.read(&buffer[..n])? < n {
                        return Ok(Progress::Closed);
                    }
                    if self.reader.done() {
                        self.stream.fresh = true;
                        return Ok(Progress::Done);
                    }
                    if n < buffer.len() {
                        return Ok(Progress::Blocked { writing: false });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Blocked { writing: false });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A connected, non-blocking socket.
#[derive(Debug)]
struct Stream {
    socket: Socket,
    /// Whether the epoll watches for room to write, instead of for something to read.
    writing: bool,
    /// Whether nothing was read since the last request was begun.
    fresh: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(target: &Target) -> io::Result<Self> {
        let socket = match target {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Socket::Tcp(stream)
            }
            Target::Uds(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Socket::Unix(stream)
            }
        };
        Ok(Self {
            socket,
            writing: false,
            fresh: true,
        })
    }

    fn local_port(&self) -> u16 {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr().map_or(0, |addr| addr.port()),
            Socket::Unix(_) => 0,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}
