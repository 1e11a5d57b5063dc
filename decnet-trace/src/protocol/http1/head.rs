//! Request and status lines, and the lines behind them.

use decnet_trace_common::limits::PAYLOAD_MAX;

use super::headers::{Headers, Text};

/// The longest method that is believed to be one.
const METHOD_MAX: usize = 32;

/// What every response begins with.
const RESPONSE: &[u8] = b"HTTP/1.";

/// A request's head.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The bytes of the head, its empty line included.
    pub len: usize,
    /// The method: a token of ASCII, of any case.
    pub method: &'a str,
    /// The target, as it stood; in whatever form.
    pub target: Text<'a>,
    /// The minor version.
    pub minor: u8,
    /// The headers.
    pub headers: Headers<'a>,
}

/// A response's head.
#[derive(Clone, Debug)]
pub struct Response<'a> {
    /// The bytes of the head, its empty line included.
    pub len: usize,
    /// The status: 100 to 999.
    pub status: u16,
    /// The headers.
    pub headers: Headers<'a>,
}

/// What some bytes are, taken as the beginning of a message.
#[derive(Clone, Debug)]
pub enum Parsed<'a> {
    /// A whole request head.
    Request(Request<'a>),
    /// A whole response head.
    Response(Response<'a>),
    /// What may become a head with more bytes.
    Partial,
    /// The preface of HTTP/2 (RFC 9113 §3.4).
    Http2,
    /// Something else.
    NotHttp,
}

/// Parses the head that these bytes begin with.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    lines(bytes, false)
}

/// Takes from a head that was cut off what it still shows: never [`Parsed::Partial`].
///
/// The request or status line must be whole, save for a target so long that it filled a whole
/// capture: then the target is what there is of it.
pub fn parse_cut(bytes: &[u8]) -> Parsed<'_> {
    lines(bytes, true)
}

/// Whether a request head, or the beginning of one, stands here. (`H` begins a request as well as a
/// response.)
pub fn may_begin_request(bytes: &[u8]) -> bool {
    !bytes.starts_with(b"HTTP/") && matches!(parse(bytes), Parsed::Request(_) | Parsed::Partial)
}

/// Whether a response head, or the beginning of one, stands here.
pub fn may_begin_response(bytes: &[u8]) -> bool {
    let len = bytes.len().min(RESPONSE.len());
    len > 0 && bytes[..len] == RESPONSE[..len]
}

/// The first line of a head.
enum First<'a> {
    Request(&'a str, &'a [u8], u8),
    Response(u16),
    Http2,
}

fn lines(bytes: &[u8], cut: bool) -> Parsed<'_> {
    let Some((line, mut at)) = next_line(bytes, 0) else {
        return match (may_become_first(bytes), cut) {
            (true, false) => Parsed::Partial,
            (true, true) => long_target(bytes),
            (false, _) => Parsed::NotHttp,
        };
    };
    let Some(first) = first_line(line) else {
        return Parsed::NotHttp;
    };
    if matches!(first, First::Http2) {
        return Parsed::Http2;
    }
    let mut headers = Headers::default();
    let begin = at;
    loop {
        let Some((line, end, next)) = header_line(bytes, at) else {
            if cut {
                break;
            }
            return Parsed::Partial;
        };
        if line.is_empty() {
            at = next;
            break;
        }
        if let Some(colon) = memchr::memchr(b':', line) {
            headers.take(&line[..colon], bytes[at + colon + 1..end].trim_ascii());
        }
        at = next;
    }
    headers.lines = &bytes[begin..at];
    match first {
        First::Request(method, target, minor) => Parsed::Request(Request {
            len: at,
            method,
            target: Text(target),
            minor,
            headers,
        }),
        First::Response(status) => Parsed::Response(Response {
            len: at,
            status,
            headers,
        }),
        First::Http2 => Parsed::Http2,
    }
}

/// A header's first line, where its value ends, and where the next header begins.
fn header_line(bytes: &[u8], at: usize) -> Option<(&[u8], usize, usize)> {
    let (line, mut next) = next_line(bytes, at)?;
    let mut end = at + line.len();
    // Obsolete folding (RFC 9112 §5.2): a line that begins with a blank continues the one before.
    while !line.is_empty() && matches!(bytes.get(next), Some(b' ' | b'\t')) {
        let Some((folded, after)) = next_line(bytes, next) else {
            break;
        };
        end = next + folded.len();
        next = after;
    }
    Some((line, end, next))
}

/// The headers in some lines.
pub(super) struct HeaderLines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for HeaderLines<'a> {
    type Item = (&'a [u8], Text<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let bytes = self.0;
            let (line, end, next) = header_line(bytes, 0)?;
            self.0 = &bytes[next..];
            if let Some(colon) = memchr::memchr(b':', line) {
                let value = bytes[colon + 1..end].trim_ascii();
                return Some((&line[..colon], Text(value)));
            }
        }
    }
}

/// The line at `at` without its end (LF, or CR and LF), and where the next one begins.
fn next_line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = &bytes[at..];
    let end = memchr::memchr(b'\n', rest)?;
    let line = &rest[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), at + end + 1))
}

fn first_line(line: &[u8]) -> Option<First<'_>> {
    if line.starts_with(RESPONSE) {
        return status_line(line);
    }
    let method = method(line)?;
    let rest = line.get(method.len() + 1..)?;
    // The last space: a target with a space in it is wrong, but more telling than none.
    let space = memchr::memrchr(b' ', rest)?;
    let target = rest[..space].trim_ascii();
    let version = &rest[space + 1..];
    if method == "PRI" && target == b"*" && version == b"HTTP/2.0" {
        return Some(First::Http2);
    }
    match *version.strip_prefix(RESPONSE)? {
        [minor @ b'0'..=b'9'] if !target.is_empty() && is_target(target) => {
            Some(First::Request(method, target, minor - b'0'))
        }
        _ => None,
    }
}

fn status_line(line: &[u8]) -> Option<First<'_>> {
    match *line.strip_prefix(RESPONSE)? {
        [
            b'0'..=b'9',
            b' ',
            a @ b'1'..=b'9',
            b @ b'0'..=b'9',
            c @ b'0'..=b'9',
            ref reason @ ..,
        ] if matches!(reason, [] | [b' ', ..]) => {
            let digit = |byte: u8| u16::from(byte - b'0');
            Some(First::Response(digit(a) * 100 + digit(b) * 10 + digit(c)))
        }
        _ => None,
    }
}

/// The method that the bytes begin with, which must have a space behind it.
fn method(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().take(METHOD_MAX + 1).position(|&b| b == b' ')?;
    let method = &bytes[..end];
    (method.first()?.is_ascii_alphabetic() && method.iter().all(|&b| is_token(b)))
        .then(|| str::from_utf8(method).ok())?
}

/// Whether more bytes may make the first line of a head of these.
fn may_become_first(bytes: &[u8]) -> bool {
    if bytes.len() >= RESPONSE.len() && bytes.starts_with(RESPONSE) {
        return may_become_status_line(bytes);
    }
    if may_begin_response(bytes) {
        return true;
    }
    match method(bytes) {
        Some(method) => may_become_target(&bytes[method.len() + 1..]),
        None => {
            bytes.len() <= METHOD_MAX
                && bytes.first().is_some_and(u8::is_ascii_alphabetic)
                && bytes.iter().all(|&b| is_token(b))
        }
    }
}

/// Whether this may become a target and a version. A target with spaces in it is taken for prose
/// while its line is not whole.
fn may_become_target(bytes: &[u8]) -> bool {
    const PATTERN: &[u8] = b"HTTP/1.1\r";
    let bytes = bytes.trim_ascii_start();
    let Some(space) = memchr::memchr(b' ', bytes) else {
        return is_target(bytes);
    };
    let version = bytes[space..].trim_ascii_start();
    is_target(&bytes[..space]) && version.len() <= PATTERN.len() && is_like(version, PATTERN)
}

fn may_become_status_line(bytes: &[u8]) -> bool {
    const PATTERN: &[u8] = b"HTTP/1.1 200";
    is_like(bytes, PATTERN) && bytes.iter().skip(PATTERN.len()).all(|&b| is_text(b))
}

/// Whether the bytes are those of the pattern, as far as both go; any digit stands for any.
fn is_like(bytes: &[u8], pattern: &[u8]) -> bool {
    let same =
        |(byte, like): (&u8, &u8)| byte == like || byte.is_ascii_digit() && like.is_ascii_digit();
    bytes.iter().zip(pattern).all(same)
}

/// A request line that filled a whole capture without ending.
fn long_target(bytes: &[u8]) -> Parsed<'_> {
    let Some(method) = method(bytes).filter(|_| bytes.len() >= PAYLOAD_MAX) else {
        return Parsed::NotHttp;
    };
    let target = &bytes[method.len() + 1..];
    if memchr::memchr(b' ', target).is_some() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
        // Prose, more likely.
        return Parsed::NotHttp;
    }
    Parsed::Request(Request {
        len: bytes.len(),
        method,
        target: Text(target),
        minor: 1,
        headers: Headers::default(),
    })
}

/// Bytes that may stand in a target, blanks and CR (of the line's end) included.
fn is_target(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| is_text(b))
}

/// No control character, save tab and CR.
fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || matches!(byte, b'\t' | b'\r')
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
