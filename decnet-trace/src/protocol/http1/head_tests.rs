#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::protocol::http1::{Framing, head_end};

fn request(bytes: &[u8]) -> Request<'_> {
    match parse(bytes) {
        Parsed::Request(request) => request,
        other => panic!("no request: {other:?}"),
    }
}

fn response(bytes: &[u8]) -> Response<'_> {
    match parse(bytes) {
        Parsed::Response(response) => response,
        other => panic!("no response: {other:?}"),
    }
}

fn text(text: Option<Text<'_>>) -> Option<String> {
    text.map(|text| text.to_text(1000).into_owned())
}

/// A request as browsers send it: every wanted header is found, and the head's length is exact.
#[test]
fn a_whole_request() {
    let head = b"GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nUser-Agent:curl/8 \r\nAccept: */*\r\n\
        traceparent: 00-1-2-01\r\nTraceState: a=b\r\nExpect: 100-Continue\r\nContent-Length: 7\r\n\r\n";
    let bytes = [&head[..], b"body..."].concat();
    let got = request(&bytes);
    assert_eq!(got.len, head.len());
    assert_eq!(
        (got.method, got.target.0, got.minor),
        ("GET", &b"/a?b=c"[..], 1)
    );
    assert_eq!(text(got.headers.host).unwrap(), "example.com");
    assert_eq!(text(got.headers.user_agent).unwrap(), "curl/8");
    assert_eq!(text(got.headers.traceparent).unwrap(), "00-1-2-01");
    assert_eq!(text(got.headers.tracestate).unwrap(), "a=b");
    assert!(got.headers.expects_continue);
    assert_eq!(got.headers.request_framing(), Framing::Length(7));
}

/// All forms of target (RFC 9112 §3.2), unknown and lower-case methods, bytes that are not UTF-8,
/// and a target with a space in it.
#[test]
fn request_lines() {
    for (line, method, target) in [
        (&b"PROPFIND /x HTTP/1.1"[..], "PROPFIND", &b"/x"[..]),
        (b"get / HTTP/1.0", "get", b"/"),
        (b"M-SEARCH * HTTP/1.1", "M-SEARCH", b"*"),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", b"*"),
        (b"CONNECT a.b:443 HTTP/1.1", "CONNECT", b"a.b:443"),
        (b"GET http://a.b/c HTTP/1.1", "GET", b"http://a.b/c"),
        (b"GET /\xff\xfe HTTP/1.1", "GET", b"/\xff\xfe"),
        (b"GET /a b HTTP/1.1", "GET", b"/a b"),
        (b"GET   /a   HTTP/1.1", "GET", b"/a"),
    ] {
        for end in ["\r\n\r\n", "\n\n", "\n\r\n", "\r\n\n"] {
            let bytes = [line, end.as_bytes()].concat();
            let got = request(&bytes);
            assert_eq!((got.method, got.target.0), (method, target));
            assert_eq!(got.len, bytes.len());
        }
    }
}

/// What is no request line of HTTP/1 is refused at its first line, whatever follows.
#[test]
fn no_request_lines() {
    for line in [
        &b"GET /"[..],
        b"GET  HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.10",
        b"GET / http/1.1",
        b"GET /\0 HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"1ET / HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1",
        b"PING",
        b"some text, and more",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.x 200 OK",
        b"Q\0\0\0\x10SELECT",
        b"",
    ] {
        let bytes = [line, b"\r\n"].concat();
        assert!(matches!(parse(&bytes), Parsed::NotHttp), "{line:?}");
        assert!(matches!(parse_cut(&bytes), Parsed::NotHttp), "{line:?}");
    }
}

/// Every proper beginning of a head is partial, byte by byte: never refused, never taken for whole.
#[test]
fn beginnings_are_partial() {
    for head in [
        &b"GET /a?b HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"[..],
        b"PROPFIND / HTTP/1.0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.0 404\r\n\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n",
    ] {
        for len in 1..head.len() {
            let parsed = parse(&head[..len]);
            assert!(matches!(parsed, Parsed::Partial), "{len}: {parsed:?}");
            assert_eq!(head_end(&head[..len], 0), None);
        }
        assert!(!matches!(parse(head), Parsed::Partial | Parsed::NotHttp));
        assert_eq!(head_end(head, 0), Some(head.len()));
    }
}

/// Status lines with and without a reason, and with a reason that is no ASCII.
#[test]
fn status_lines() {
    for (line, status) in [
        (&b"HTTP/1.1 200 OK"[..], 200),
        (b"HTTP/1.0 404", 404),
        (b"HTTP/1.1 599 ", 599),
        (b"HTTP/1.1 503 D\xe9bord\xe9", 503),
    ] {
        let bytes = [line, b"\r\n\r\n"].concat();
        assert_eq!(response(&bytes).status, status);
    }
}

/// A folded header is one header; a folded length is read across the fold.
#[test]
fn folded_headers() {
    let got = request(b"GET / HTTP/1.1\r\nUser-Agent: a\r\n\tb\r\n  c\r\nHost:\r\n x\r\n\r\n");
    assert_eq!(text(got.headers.user_agent).unwrap(), "a b c");
    assert_eq!(text(got.headers.host).unwrap(), "x");
    let got = request(b"PUT / HTTP/1.1\r\nContent-Length:\r\n 12\r\n\r\n");
    assert_eq!(got.headers.request_framing(), Framing::Length(12));
}

/// Prose is refused before its line ends, so that it is not waited for.
#[test]
fn prose_is_refused_early() {
    for prose in [
        "hello my friend",
        "GET /a b",
        "Lorem ipsum dolor",
        "a b HTTP/1.1x",
        "HTTP/1.1 2x",
    ] {
        assert!(
            matches!(parse(prose.as_bytes()), Parsed::NotHttp),
            "{prose}"
        );
    }
}

/// The preface of HTTP/2 is known by its first line.
#[test]
fn http2_preface() {
    assert!(matches!(
        parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        Parsed::Http2
    ));
    assert!(matches!(parse(b"PRI * HTT"), Parsed::Partial));
}

/// A head that was cut off shows its line and the headers before the cut.
#[test]
fn cut_heads() {
    let cut = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nCookie: aaaaaaaaaaaaaaaa";
    let Parsed::Request(got) = parse_cut(cut) else {
        panic!("no request");
    };
    assert_eq!((got.method, got.target.0), ("POST", &b"/a"[..]));
    assert_eq!(text(got.headers.host).unwrap(), "x");
    let long = [b"GET /", &[b'a'; PAYLOAD_MAX][..]].concat();
    let Parsed::Request(got) = parse_cut(&long) else {
        panic!("no request");
    };
    assert_eq!((got.method, got.target.0.len()), ("GET", PAYLOAD_MAX + 1));
    for prose in ["Lorem ipsum dolor", "GET /a", "get a"] {
        assert!(matches!(parse_cut(prose.as_bytes()), Parsed::NotHttp));
    }
}

proptest! {
    /// Arbitrary bytes never panic, and no two ways to ask contradict each other.
    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        consistent(&bytes);
    }

    /// Nor do bytes that look more like heads.
    #[test]
    fn arbitrary_heads(bytes in "(GET|get|PRI|HTTP/1\\.1|HTTP/1\\.0|P)?[ /*a0-9]{0,6}( HTTP/[12]\\.[0-9])?\
        (\r?\n(Host|Content-Length|Transfer-Encoding|x)?[ \t:,;a-z0-9]{0,12}){0,6}(\r?\n){0,2}[ -~]{0,5}") {
        consistent(bytes.as_bytes());
    }

    /// What `httparse` accepts, this parser understands in the same way.
    #[test]
    fn agrees_with_httparse(
        bytes in "(GET|PUT|HTTP/1\\.1|patch|M-X) /?[!-~]{0,6}( HTTP/1\\.[01]| [0-9]{3}| 200 OK)\
            (\r\n(Host|content-length|Transfer-Encoding|X-Y): ?[!-~]{0,8}){0,4}\r\n\r\n[ -~]{0,9}"
    ) {
        let bytes = bytes.as_bytes();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut theirs = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(len)) = theirs.parse(bytes) {
            let ours = request(bytes);
            prop_assert_eq!(ours.len, len);
            prop_assert_eq!(Some(ours.method), theirs.method);
            prop_assert_eq!(ours.target.0, theirs.path.unwrap().as_bytes());
            prop_assert_eq!(Some(ours.minor), theirs.version);
            let host = theirs.headers.iter().find(|h| h.name.eq_ignore_ascii_case("host"));
            prop_assert_eq!(ours.headers.host.map(|h| h.0), host.map(|h| h.value.trim_ascii()));
        }
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut theirs = httparse::Response::new(&mut headers);
        if let Ok(httparse::Status::Complete(len)) = theirs.parse(bytes)
            && theirs.code >= Some(100)
        {
            let ours = response(bytes);
            prop_assert_eq!(ours.len, len);
            prop_assert_eq!(Some(ours.status), theirs.code);
        }
    }
}

fn consistent(bytes: &[u8]) {
    let end = head_end(bytes, 0);
    for from in 0..=bytes.len() {
        // A search that goes on where an earlier one stopped finds the same end.
        if head_end(&bytes[..from], 0).is_none() {
            assert_eq!(head_end(bytes, from), end);
        }
    }
    match parse(bytes) {
        Parsed::Request(Request { len, .. }) | Parsed::Response(Response { len, .. }) => {
            assert_eq!(end, Some(len));
        }
        Parsed::Partial => {
            assert!(end.is_none() && !bytes.is_empty());
        }
        Parsed::Http2 | Parsed::NotHttp => {}
    }
    if let Parsed::Request(request) = parse_cut(bytes) {
        assert!(bytes.starts_with(request.method.as_bytes()));
    }
}
