//! HTTP/1.x (RFC 9112): heads, and where bodies end.
//!
//! An observer must be as lenient as the most lenient server that it watches, and must make do with
//! heads that arrive cut off; so heads are parsed here, line by line, and not by a parser made for an
//! end point (`httparse` refuses targets that are not UTF-8 and folded request headers, and gives no
//! headers of a head that is cut off). `httparse` is the judge in the tests: what it accepts, this
//! parser understands in the same way.

mod body;
mod head;
mod headers;

pub use body::{Body, Chunks, Progress, Tail};
pub use head::{
    Parsed, Request, Response, may_begin_request, may_begin_response, parse, parse_cut,
};
pub use headers::{ContentLength, Framing, Headers, Text, TransferCoding};

/// The position behind the empty line that ends a head, searching from `from` on.
///
/// `from` may be where an earlier search of the same, then shorter, bytes ended; the search goes back
/// as far as an empty line reaches.
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(2);
    memchr::memchr_iter(b'\n', bytes.get(from..)?)
        .map(|at| from + at + 1)
        .find_map(|next| match bytes.get(next..)? {
            [b'\n', ..] => Some(next + 1),
            [b'\r', b'\n', ..] => Some(next + 2),
            _ => None,
        })
}

/// Without the empty lines that may stand before a request (RFC 9112 §2.2).
pub fn skip_empty_lines(bytes: &[u8]) -> &[u8] {
    let empty = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    &bytes[empty.count()..]
}
