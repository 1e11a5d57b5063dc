//! Random traffic, against the truth that made it; and arbitrary events, which must do no harm.

use std::collections::VecDeque;

use decnet_trace_common::event::{Header, Proc, SockOp, SockState, Tuple};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::wire::{Kernel, MS, TGID};
use crate::correlate::{
    Correlator, Limits,
    exchange::{End, Exchange, Role},
};

/// A body, and how it is sent.
#[derive(Clone, Debug)]
enum Sent {
    Nothing,
    Length(usize),
    Chunks(Vec<usize>, bool),
    UntilClose(usize),
}

/// One exchange to play.
#[derive(Clone, Debug)]
struct Plan {
    method: &'static str,
    empty_line: bool,
    padding: usize,
    request: Sent,
    interim: usize,
    status: u16,
    response: Sent,
}

/// One connection to play.
#[derive(Clone, Debug)]
struct Script {
    role: Role,
    plans: Vec<Plan>,
    /// The sizes of operations, used over and over.
    sizes: Vec<usize>,
    /// How many requests may be under way.
    depth: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        3 => Just(Sent::Nothing),
        3 => (0usize..9000).prop_map(Sent::Length),
        2 => (vec(prop_oneof![1usize..40, 1usize..5000], 0..6), any::<bool>())
            .prop_map(|(chunks, trailer)| Sent::Chunks(chunks, trailer)),
        1 => (0usize..9000).prop_map(Sent::UntilClose),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop::sample::select(&["GET", "HEAD", "POST", "PUT", "propfind", "M-SEARCH"][..]),
        any::<bool>(),
        prop_oneof![0usize..40, 0usize..3000],
        sent(),
        0usize..3,
        prop::sample::select(&[200u16, 201, 204, 304, 404, 500, 999][..]),
        sent(),
    )
        .prop_map(
            |(method, empty_line, padding, request, interim, status, response)| Plan {
                method,
                empty_line,
                padding,
                request,
                interim,
                status,
                response,
            },
        )
}

fn script() -> impl Strategy<Value = Script> {
    (
        prop::sample::select(&[Role::Server, Role::Client][..]),
        vec(plan(), 1..8),
        vec(prop_oneof![1usize..9, 1usize..300, 1usize..7000], 1..30),
        1usize..5,
    )
        .prop_map(|(role, plans, sizes, depth)| Script {
            role,
            plans,
            sizes,
            depth,
        })
}

/// A message on the wire.
struct Message {
    bytes: Vec<u8>,
    /// Where it begins, behind empty lines.
    begin: usize,
    /// Where its final head begins, behind interim ones.
    head: usize,
    /// Where its body begins.
    body: usize,
}

/// A body full of what could be mistaken for something else.
fn filler(len: usize) -> Vec<u8> {
    const LURES: &[u8] =
        b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nGET / HTTP/1.1\r\n\r\n\r\n0\r\n\r\n\x16\x03\x01abc";
    LURES.iter().copied().cycle().take(len).collect()
}

/// Where the sizes of chunks are out of sight, a body that looks like the end of a message followed
/// by the beginning of another cannot be told from these (docs/http.md); this one does not.
fn chunk_filler(len: usize) -> Vec<u8> {
    let lures = b"x0\r\nHTTP GET / \r\n\r\nxyz 5\r\n\x000\r\n\r\n.";
    lures.iter().copied().cycle().take(len).collect()
}

fn push_body(message: &mut Message, sent: &Sent) {
    let (header, body) = match sent {
        Sent::Nothing => (String::new(), Vec::new()),
        Sent::Length(len) => (format!("Content-Length: {len}\r\n"), filler(*len)),
        Sent::UntilClose(len) => (String::new(), filler(*len)),
        Sent::Chunks(chunks, trailer) => {
            let mut body = Vec::new();
            for len in chunks {
                body.extend_from_slice(format!("{len:x}\r\n").as_bytes());
                body.extend_from_slice(&chunk_filler(*len));
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(if *trailer {
                b"0\r\nX: y\r\n\r\n"
            } else {
                b"0\r\n\r\n"
            });
            ("Transfer-Encoding: chunked\r\n".to_owned(), body)
        }
    };
    message.bytes.extend_from_slice(header.as_bytes());
    message.bytes.extend_from_slice(b"\r\n");
    message.body = message.bytes.len();
    message.bytes.extend_from_slice(&body);
}

/// What is played of a plan: only a last response can go on until the close, and trailers out of sight
/// are a matter of their own.
fn sane(plan: &Plan, last: bool) -> Plan {
    let mut plan = plan.clone();
    if let Sent::UntilClose(len) = plan.request {
        plan.request = Sent::Length(len);
    }
    if matches!(plan.response, Sent::UntilClose(_) | Sent::Nothing) && !last {
        plan.response = Sent::Length(7);
    }
    if plan.method == "HEAD" || matches!(plan.status, 204 | 304) {
        plan.response = Sent::Nothing;
    }
    for sent in [&mut plan.request, &mut plan.response] {
        if let Sent::Chunks(chunks, trailer) = sent {
            *trailer &= chunks.is_empty();
        }
    }
    plan
}

fn request(plan: &Plan, number: usize, empty_line: bool) -> Message {
    let empty = if empty_line { "\r\n" } else { "" };
    let head = format!(
        "{empty}{} /{number} HTTP/1.1\r\nHost: h\r\nX-Padding: {}\r\n",
        plan.method,
        "p".repeat(plan.padding)
    );
    let mut message = Message {
        bytes: head.into_bytes(),
        begin: empty.len(),
        head: empty.len(),
        body: 0,
    };
    push_body(&mut message, &plan.request);
    message
}

fn response(plan: &Plan) -> Message {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(plan.interim);
    let head = format!(
        "{interim}HTTP/1.1 {} Reason Phrase\r\nX-Padding: {}\r\n",
        plan.status,
        "p".repeat(plan.padding)
    );
    let mut message = Message {
        bytes: head.into_bytes(),
        begin: 0,
        head: interim.len(),
        body: 0,
    };
    push_body(&mut message, &plan.response);
    message
}

/// One direction of a connection: its messages, and the operations made of them so far.
struct Stream {
    bytes: Vec<u8>,
    /// Where each message begins, and at last where the stream ends.
    bounds: Vec<usize>,
    at: usize,
    /// The end and the time of each operation.
    operations: Vec<(usize, u64)>,
}

impl Stream {
    fn new(messages: &[Message]) -> Self {
        let mut bounds = vec![0];
        let mut bytes = Vec::new();
        for message in messages {
            bytes.extend_from_slice(&message.bytes);
            bounds.push(bytes.len());
        }
        Self {
            bytes,
            bounds,
            at: 0,
            operations: Vec::new(),
        }
    }

    /// How many messages were sent in full.
    fn whole(&self) -> usize {
        self.bounds[1..]
            .iter()
            .filter(|end| **end <= self.at)
            .count()
    }

    /// The next operation's bytes, up to the end of this many messages. A message begins within an
    /// operation only if all of that is in sight, else it could not be seen (docs/http.md).
    fn cut(&mut self, size: usize, messages: usize, now: u64) -> Option<Vec<u8>> {
        let limit = self.bounds[messages.min(self.bounds.len() - 1)];
        let mut to = (self.at + size).min(limit);
        if to <= self.at {
            return None;
        }
        let in_sight = self.bounds.contains(&self.at) && to - self.at <= 4096;
        if !in_sight {
            let next = self.bounds.iter().find(|bound| **bound > self.at)?;
            to = to.min(*next);
        }
        let bytes = self.bytes[self.at..to].to_vec();
        self.at = to;
        self.operations.push((to, now));
        Some(bytes)
    }

    /// When the byte at this position was moved.
    fn time(&self, at: usize) -> u64 {
        self.operations.iter().find(|(end, _)| *end > at).unwrap().1
    }
}

/// A connection being played.
struct Player {
    sock: u64,
    role: Role,
    plans: Vec<Plan>,
    messages: (Vec<Message>, Vec<Message>),
    requests: Stream,
    responses: Stream,
    sizes: VecDeque<usize>,
    depth: usize,
}

impl Player {
    fn new(sock: u64, script: &Script) -> Self {
        let last = script.plans.len() - 1;
        let plans: Vec<_> = script
            .plans
            .iter()
            .enumerate()
            .map(|(i, plan)| sane(plan, i == last))
            .collect();
        let chunked = |i: usize| matches!(plans[i].request, Sent::Chunks(..));
        let requests: Vec<_> = plans
            .iter()
            .enumerate()
            .map(|(i, plan)| request(plan, i, plan.empty_line && (i == 0 || !chunked(i - 1))))
            .collect();
        let responses: Vec<_> = plans.iter().map(response).collect();
        Self {
            sock,
            role: script.role,
            requests: Stream::new(&requests),
            responses: Stream::new(&responses),
            messages: (requests, responses),
            plans,
            sizes: script.sizes.clone().into(),
            depth: script.depth,
        }
    }

    fn is_done(&self) -> bool {
        self.responses.at == self.responses.bytes.len()
    }

    /// The bytes of the next operation, and whether it is a write. None where the direction that was
    /// asked for has to wait for the other.
    fn next(&mut self, request: bool, now: u64) -> Option<(bool, Vec<u8>)> {
        let size = self.sizes[0];
        let bytes = if request {
            let allowed = self.responses.whole() + self.depth;
            self.requests.cut(size, allowed, now)
        } else {
            let allowed = self.requests.whole();
            self.responses.cut(size, allowed, now)
        }?;
        self.sizes.rotate_left(1);
        Some((request == (self.role == Role::Client), bytes))
    }

    /// What must have come out.
    fn truth(&self, i: usize) -> impl PartialEq + std::fmt::Debug + use<> {
        let (request, response) = (&self.messages.0[i], &self.messages.1[i]);
        let plan = &self.plans[i];
        let (from, to) = (self.requests.bounds[i], self.responses.bounds[i]);
        (
            (
                self.role,
                plan.method.to_owned(),
                format!("/{i}"),
                Some(plan.status),
            ),
            (
                (request.bytes.len() - request.begin) as u64,
                (request.bytes.len() - request.body) as u64,
                response.bytes.len() as u64,
                (response.bytes.len() - response.body) as u64,
            ),
            self.requests.time(from + request.begin),
            Some(self.responses.time(to + response.head)),
            self.responses.time(self.responses.bounds[i + 1] - 1),
            match plan.response {
                Sent::Chunks(..) => End::LastChunk,
                Sent::Nothing if plan.method == "HEAD" || matches!(plan.status, 204 | 304) => {
                    End::Length
                }
                Sent::Nothing | Sent::UntilClose(_) => End::Close,
                Sent::Length(_) => End::Length,
            },
        )
    }
}

/// What came out, in the form of [`Player::truth`].
fn told(e: &Exchange) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (e.role, e.method.to_string(), e.target.to_string(), e.status),
        (
            e.request_bytes,
            e.request_body,
            e.response_bytes,
            e.response_body,
        ),
        e.start,
        e.response_start,
        e.end,
        e.ended_by,
    )
}

fn close(correlator: &mut Correlator, player: &Player, now: u64, out: &mut Vec<Exchange>) {
    match player.role {
        Role::Server => {
            let mut state = SockState {
                sock: player.sock,
                new: 4,
                ..SockState::default()
            };
            state.header = header(now);
            correlator.on_sock_state(&state, out);
        }
        Role::Client => {
            let mut op = SockOp {
                sock: player.sock,
                ..SockOp::default()
            };
            op.header = header(now);
            correlator.on_sock_op(&op, &[], out);
        }
    }
}

fn header(ts: u64) -> Header {
    Header {
        ts,
        tgid: TGID,
        ..Header::default()
    }
}

proptest! {
    /// Any valid traffic, on several connections at once, pipelined or not, cut into operations
    /// anywhere: every exchange comes out once, in order, with every figure right.
    #[test]
    fn traffic_is_told_truly(
        scripts in vec(script(), 1..4),
        turns in vec((any::<Index>(), any::<bool>()), 1..50),
    ) {
        let mut correlator = Correlator::new(Limits::default());
        let mut kernel = Kernel::default();
        let mut out = Vec::new();
        let mut players: Vec<_> =
            scripts.iter().zip(1..).map(|(script, sock)| Player::new(sock, script)).collect();
        let mut now = 0;
        for (index, request) in turns.iter().cycle() {
            if players.iter().all(Player::is_done) {
                break;
            }
            now += MS / 10;
            // Where one direction has to wait, the other goes on; where both do, another player.
            let first = index.index(players.len());
            for turn in 0..2 * players.len() {
                let player = &mut players[(first + turn / 2) % scripts.len()];
                if let Some((send, bytes)) = player.next(request ^ (turn % 2 == 1), now) {
                    let (mut op, payload) =
                        kernel.operation(player.sock, send, player.sock == 2, &[&bytes]);
                    op.header.ts = now;
                    correlator.on_sock_op(&op, &payload, &mut out);
                    break;
                }
            }
        }
        for player in &players {
            now += MS;
            close(&mut correlator, player, now, &mut out);
        }
        correlator.tick(now + 1000 * MS, &mut out);
        prop_assert_eq!(correlator.memory(), (0, 0));
        for player in &players {
            let mine: Vec<_> = out.iter().filter(|e| e.sock == player.sock).map(told).collect();
            prop_assert_eq!(mine.len(), player.plans.len());
            for (i, told) in mine.into_iter().enumerate() {
                let told = format!("{told:?}");
                prop_assert_eq!(told, format!("{:?}", player.truth(i)));
            }
        }
        let counters = correlator.counters();
        prop_assert_eq!(counters.exchanges, out.len() as u64);
        prop_assert_eq!(counters.unpaired_responses + counters.stray_bytes, 0);
        prop_assert_eq!(counters.heads_cut + counters.connections_lost, 0);
    }
}

/// An event, or a call, of any kind.
#[derive(Clone, Debug)]
enum Any {
    Op {
        op: Box<SockOp>,
        payload: Vec<u8>,
    },
    Bytes {
        sock: u64,
        send: bool,
        bytes: Vec<u8>,
    },
    State {
        sock: u64,
        tgid: u32,
        new: u8,
    },
    Exit(u32),
    Tick(u64),
    Closed(u64),
    Lost,
}

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        Just(&b"GET /x HTTP/1.1\r\n"[..]),
        Just(&b"POST /y HTTP/1.0\r\n"[..]),
        Just(&b"CONNECT z HTTP/1.1\r\n"[..]),
        Just(&b"HTTP/1.1 200 OK\r\n"[..]),
        Just(&b"HTTP/1.1 100 C\r\n\r\n"[..]),
        Just(&b"HTTP/1.1 101 S\r\n\r\n"[..]),
        Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        Just(&b"Content-Length: 5\r\n"[..]),
        Just(&b"Content-Length: 18446744073709551615\r\n"[..]),
        Just(&b"Expect: 100-continue\r\n"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"5\r\nhello\r\n"[..]),
        Just(&b"ffffffffffffffff\r\n"[..]),
        Just(&b"0\r\n\r\n"[..]),
        Just(&b"hello"[..]),
        Just(&b"G"[..]),
        Just(&b"\0\xff\x16\x03"[..]),
        Just(&[b'a'; 3000][..]),
    ];
    vec(fragment, 1..6).prop_map(|fragments| fragments.concat())
}

fn any_event() -> impl Strategy<Value = Any> {
    let sock = 0u64..6;
    let tgid = TGID..TGID + 3;
    let op = (
        (
            sock.clone(),
            tgid.clone(),
            any::<i32>(),
            any::<u16>(),
            any::<u16>(),
            any::<u64>(),
        ),
        (
            any::<[u8; 8]>(),
            any::<[u8; 8]>(),
            any::<u16>(),
            any::<i32>(),
        ),
        prop_oneof![fragments(), vec(any::<u8>(), 0..50)],
    )
        .prop_map(
            |((sock, tgid, ret, flags, family, arrived), (first, tail, tail_len, fd), payload)| {
                Any::Op {
                    op: Box::new(SockOp {
                        header: Header {
                            tgid,
                            ..Header::default()
                        },
                        sock,
                        context: arrived,
                        arrived,
                        tuple: Tuple {
                            family: family % 12,
                            ..Tuple::default()
                        },
                        ret,
                        fd,
                        flags,
                        payload_len: payload.len() as u16,
                        tail_len,
                        first,
                        tail,
                        ..SockOp::default()
                    }),
                    payload,
                }
            },
        );
    prop_oneof![
        2 => op,
        9 => (sock.clone(), any::<bool>(), fragments())
            .prop_map(|(sock, send, bytes)| Any::Bytes { sock, send, bytes }),
        1 => (sock.clone(), tgid.clone(), any::<u8>())
            .prop_map(|(sock, tgid, new)| Any::State { sock, tgid, new: new % 12 }),
        1 => tgid.prop_map(Any::Exit),
        1 => prop_oneof![0..100 * MS, any::<u64>()].prop_map(Any::Tick),
        1 => sock.prop_map(Any::Closed),
        1 => Just(Any::Lost),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        // One case is a long story.
        cases: ProptestConfig::default().cases / 4,
        ..ProptestConfig::default()
    })]

    /// Arbitrary events in arbitrary order, times that jump included: nothing panics, every limit
    /// holds, what comes out makes sense, and nothing is left behind.
    #[test]
    fn arbitrary_events_do_no_harm(
        events in vec((any_event(), prop_oneof![9 => 0..MS, 1 => any::<u64>()]), 1..150),
        connections in 1usize..8,
    ) {
        let limits = Limits {
            connections,
            pipelined: 4,
            head: 8000,
            heads_memory: 20_000,
            open_memory: 8_000,
            ..Limits::default()
        };
        let mut correlator = Correlator::new(limits);
        let mut kernel = Kernel::default();
        let mut out = Vec::new();
        let mut now = 0u64;
        for (event, step) in &events {
            now = now.checked_add(*step).unwrap_or(0);
            match event {
                Any::Op { op, payload } => {
                    let mut op = **op;
                    op.header.ts = now;
                    correlator.on_sock_op(&op, payload, &mut out);
                }
                Any::Bytes { sock, send, bytes } => {
                    let (mut op, payload) = kernel.operation(*sock, *send, false, &[bytes]);
                    op.header.ts = now;
                    correlator.on_sock_op(&op, &payload, &mut out);
                }
                Any::State { sock, tgid, new } => {
                    let mut state = SockState { sock: *sock, new: *new, ..SockState::default() };
                    state.header = Header { tgid: *tgid, ..header(now) };
                    correlator.on_sock_state(&state, &mut out);
                }
                Any::Exit(tgid) => {
                    let mut proc = Proc { what: 3, ..Proc::default() };
                    proc.header = Header { tgid: *tgid, ..header(now) };
                    correlator.on_proc(&proc, &mut out);
                }
                Any::Tick(step) => correlator.tick(now.saturating_add(*step), &mut out),
                Any::Closed(sock) => correlator.closed(*sock, now, &mut out),
                Any::Lost => correlator.events_lost(),
            }
            prop_assert!(correlator.connections() <= connections);
            let (heads, open) = correlator.memory();
            prop_assert!(heads <= 20_000 && open <= 8_000);
            prop_assert!(correlator.quiet_close_delimited().count() <= connections);
        }
        correlator.finish(now, &mut out);
        prop_assert_eq!((correlator.connections(), correlator.memory()), (0, (0, 0)));
        prop_assert_eq!(correlator.counters().exchanges, out.len() as u64);
        for exchange in &out {
            prop_assert!(exchange.start <= exchange.end);
            prop_assert!(exchange.response_start.is_none_or(|at| at >= exchange.start));
            prop_assert!(exchange.request_body <= exchange.request_bytes);
            prop_assert!(exchange.response_body <= exchange.response_bytes);
            prop_assert_eq!(exchange.status.is_some(), exchange.response_start.is_some());
        }
    }
}
