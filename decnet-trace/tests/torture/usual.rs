//! What real servers and clients do.

use std::{thread::sleep, time::Duration};

use crate::{
    Server,
    client::{Book, Client, head, now, pause},
};

/// Connections on which [`on_tcp`] speaks TLS.
pub(crate) const TLS: u64 = 1;

/// A text frame from a client (RFC 6455 §5.2) whose mask leaves the payload as it is.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = 0x80 | u8::try_from(payload.len()).unwrap();
    [&[0x81, length, 0, 0, 0, 0], payload].concat()
}

/// A connection that has served a request when the agent comes.
pub(crate) fn before_the_agent<'a>(book: &'a Book, server: &Server) -> Client<'a> {
    let mut client = Client::connect(book, "older than the agent", server);
    client.ignored("/items/1");
    client
}

/// Its next request is the first that is seen.
pub(crate) fn after_the_agent(mut client: Client<'_>) {
    client.get("/items/2");
}

/// A connection that will be idle for seconds.
pub(crate) fn before_idleness<'a>(book: &'a Book, server: &Server) -> Client<'a> {
    let mut client = Client::connect(book, "idle", server);
    client.get("/items/3");
    client
}

/// It still works.
pub(crate) fn after_idleness(mut client: Client<'_>) {
    client.get("/items/4");
}

/// What works on every kind of socket.
pub(crate) fn on_any(book: &Book, server: &Server) {
    keep_alive(book, server);
    pipelining(book, server);
    chunked(book, server);
    no_bodies(book, server);
    expectations(book, server);
    http_1_0(book, server);
    upgrade(book, server);
    split_heads(book, server);
    big_head(book, server);
    queue(book, server);
    gone_before(book, server);
}

/// What only one server of each kind is put through.
pub(crate) fn on_tcp(book: &Book, server: &Server) {
    big_bodies(book, server);
    gone_in_between(book, server);
    no_http(book, server);
}

fn keep_alive(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "keep-alive", server);
    for path in ["/", "/items/7", "/items/8?verbose=yes", "/sync", "/nowhere"] {
        client.get(path);
    }
    client.request("DELETE", "/items/9");
    assert_eq!(client.response().status, 405);
    // It is logged, and the connection closed.
    assert_eq!(client.get("/error").status, 500);
    let mut client = Client::connect(book, "Connection: close", server);
    client.begin("GET", "/");
    client.send(&head("GET", "/", &["Connection: close"]));
    client.response();
    assert!(client.is_closed());
}

fn pipelining(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "pipelining", server);
    for _ in 0..2 {
        let paths = [
            "/",
            "/items/1",
            "/sized/100000",
            "/stream/3/100",
            "/nocontent",
        ];
        client.pipeline(&paths.map(|path| ("GET", path)));
        for _ in paths {
            client.response();
        }
    }
    // A request behind another's body.
    client.begin("POST", "/echo");
    let first = head("POST", "/echo", &["Content-Length: 10"]);
    let next = head("GET", "/items/5", &[]);
    client.send_behind(
        &[&first[..], b"0123456789"].concat(),
        "GET",
        "/items/5",
        &next,
    );
    client.response();
    client.response();
}

fn chunked(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "chunked requests", server);
    let announced = head("POST", "/echo", &["Transfer-Encoding: chunked"]);
    client.begin("POST", "/echo");
    client.send(&announced);
    for size in [1, 17, 4000, 70_000] {
        pause();
        client.send(format!("{size:x};name=value\r\n").as_bytes());
        client.send(&vec![b'G'; size]);
        client.send(b"\r\n");
    }
    pause();
    client.send(b"0\r\n\r\n");
    let response = client.response();
    assert_eq!(response.body, br#"{"bytes":74018}"#);
    client.begin("POST", "/echo");
    client.send(&[&announced[..], b"5\r\nhello\r\n0\r\n\r\n"].concat());
    client.response();
    client.get("/");

    let mut client = Client::connect(book, "chunked responses", server);
    for path in [
        "/stream/1/1",
        "/stream/5/1000",
        "/stream/40/30000",
        "/stream/0/0",
    ] {
        assert_eq!(client.get(path).end, "last_chunk");
    }
}

fn no_bodies(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "no bodies", server);
    client.request("HEAD", "/head");
    assert_eq!(client.response().status, 200);
    client.request("HEAD", "/");
    assert_eq!(client.response().status, 405);
    assert_eq!(client.get("/nocontent").status, 204);
    assert_eq!(client.get("/notmodified").status, 304);
    client.request("OPTIONS", "*");
    client.response();
    client.get("/items/1");
}

fn expectations(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "100-continue", server);
    let expects = ["Content-Length: 5000", "Expect: 100-continue"];
    for _ in 0..2 {
        client.begin("POST", "/echo");
        client.send(&head("POST", "/echo", &expects));
        let interim = client.peek_head();
        assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
        client.send(&[b'x'; 5000]);
        assert_eq!(client.response().status, 200);
    }
    // Refused at once: the client keeps its body, and goes.
    client.begin("POST", "/nowhere");
    client.send(&head("POST", "/nowhere", &expects));
    assert_eq!(client.response().status, 404);
}

fn http_1_0(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "HTTP/1.0", server);
    client.begin("GET", "/items/1");
    client.send(b"GET /items/1 HTTP/1.0\r\n\r\n");
    client.response();
    assert!(client.is_closed());

    let mut client = Client::connect(book, "HTTP/1.0 with keep-alive", server);
    for _ in 0..3 {
        client.begin("GET", "/items/2");
        client.send(b"GET /items/2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let head = client.response().head.to_ascii_lowercase();
        if head.contains("connection: close") {
            assert!(client.is_closed());
            break;
        }
    }

    // Without a length, the close of the connection is the end; one server sends chunks all the same.
    let mut client = Client::connect(book, "HTTP/1.0 stream", server);
    client.begin("GET", "/stream/3/50000");
    client.send(b"GET /stream/3/50000 HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert!(["close", "last_chunk"].contains(&response.end));
    assert!(client.is_closed());
}

fn upgrade(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "upgrade", server);
    client.get("/");
    client.begin("GET", "/upgrade");
    client.send(&head(
        "GET",
        "/upgrade",
        &[
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ],
    ));
    assert_eq!(client.response().status, 101);
    for text in [
        "hello",
        "GET /ghost HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let frame = frame(text.as_bytes());
        client.send_raw(&frame[..6]);
        pause();
        client.send_raw(&frame[6..]);
        // The answer's frame is not masked.
        let answer = client.read_raw(2 + text.len());
        assert_eq!(&answer[2..], text.as_bytes());
    }
}

fn split_heads(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "split heads", server);
    let whole = head("GET", "/items/6", &["Accept: */*", "X-Long: 0123456789"]);
    // In the method, in the target, in the version, at a line's end, in a header, at the end.
    for cut in [1, 7, 15, 21, 22, 23, 30, whole.len() - 3, whole.len() - 1] {
        client.begin("GET", "/items/6");
        client.send(&whole[..cut]);
        pause();
        client.send(&whole[cut..]);
        client.response();
    }
    client.begin("GET", "/items/6");
    for byte in &whole {
        client.send(&[*byte]);
        sleep(Duration::from_millis(1));
    }
    client.response();
    client.get("/");
    let mut client = Client::connect(book, "split body", server);
    client.begin("POST", "/echo");
    client.send(&head("POST", "/echo", &["Content-Length: 26"]));
    for letter in b'A'..=b'Z' {
        pause();
        client.send(&[letter]);
    }
    client.response();
}

fn big_head(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "big head", server);
    for size in [3000, 4096, 8192] {
        let cookie = format!("Cookie: session={}", "0123456789abcdef".repeat(size / 16));
        client.begin("GET", "/items/1");
        client.send(&head("GET", "/items/1", &[&cookie]));
        client.response();
        client.begin("POST", "/echo");
        client.send(&head("POST", "/echo", &[&cookie, "Content-Length: 3000"]));
        client.send(&[b'x'; 3000]);
        client.response();
        client.begin("GET", "/items/2");
        let whole = head("GET", "/items/2", &[&cookie]);
        for piece in whole.chunks(1000) {
            client.send(piece);
            pause();
        }
        client.response();
    }
    client.get("/");
}

/// While the event loop is blocked, another request waits in its socket.
fn queue(book: &Book, server: &Server) {
    // Where this side stands still for a moment, the event loop is free again before the other request is sent.
    let waited = (0..5).any(|_| waits(book, server) > 80_000_000);
    assert!(waited, "the event loop was not blocked");
}

/// How long a request took that was sent while the event loop was blocked, in nanoseconds.
fn waits(book: &Book, server: &Server) -> u64 {
    let mut waiting = Client::connect(book, "waiting", server);
    waiting.get("/items/1");
    let mut blocking = Client::connect(book, "blocking", server);
    blocking.get("/items/1");
    blocking.request("GET", "/block?ms=150");
    sleep(Duration::from_millis(50));
    waiting.request("GET", "/items/2");
    let sent = now();
    let body = String::from_utf8(blocking.response().body).unwrap();
    let unblocked: u64 = body.trim().parse().unwrap();
    waiting.response_after(|began, ended| {
        let at_least = unblocked.saturating_sub(sent);
        (at_least, ended - began)
    })
}

/// A client that asks and goes before there is an answer.
fn gone_before(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "gone before the answer", server);
    client.request("GET", "/slow?ms=300");
    pause();
    client.fails("peer_gone", None);
}

fn big_bodies(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "big bodies", server);
    client.get("/file/256");
    client.begin("POST", "/echo");
    client.send(&head("POST", "/echo", &["Content-Length: 67108864"]));
    let piece = vec![b'P'; 1 << 20];
    for _ in 0..64 {
        client.send(&piece);
    }
    assert_eq!(client.response().body, br#"{"bytes":67108864}"#);
    client.get("/");
}

fn gone_in_between(book: &Book, server: &Server) {
    let mut client = Client::connect(book, "gone in between", server);
    client.request("GET", "/file/64");
    let status = client.part(1 << 20);
    client.fails("peer_gone", Some(status));
    drop(client);
    let mut client = Client::connect(book, "reset in between", server);
    client.request("GET", "/file/64");
    let status = client.part(1 << 20);
    client.fails("peer_gone", Some(status));
    client.reset();
}

/// What is no HTTP makes no spans, and spoils none.
fn no_http(book: &Book, server: &Server) {
    let mut noise = noise_bytes(5000);
    // Not by chance the beginning of something.
    noise[0] = 0xff;
    let hello = [
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03".as_slice(),
        &noise[..190],
    ]
    .concat();
    for bytes in [
        &noise[..],
        b"EHLO mail.example.org\r\nMAIL FROM:<a@example.org>\r\n",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /",
        b"\0",
        &hello,
    ] {
        let mut client = Client::connect(book, "no HTTP", server);
        client.send_raw(bytes);
        pause();
    }
    Client::connect(book, "after no HTTP", server).get("/");
    // A good request first, garbage behind it.
    let mut client = Client::connect(book, "garbage behind", server);
    client.get("/items/1");
    client.send_raw(&[&noise[..], b"\r\n\r\n"].concat());
    assert!(client.is_closed());
}

/// Bytes without a pattern, and the same each time.
fn noise_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(count)
    .collect()
}
