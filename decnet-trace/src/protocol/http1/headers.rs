//! The headers that are wanted; no others are looked at, let alone kept.

use std::borrow::Cow;

use super::head::HeaderLines;

/// A header's value: its bytes as they stood, folded lines included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a>(pub &'a [u8]);

impl<'a> Text<'a> {
    /// The value on one line, with what is not UTF-8 replaced, and no longer than `max` bytes. A copy only
    /// where it is folded, or not UTF-8.
    pub fn to_text(self, max: usize) -> Cow<'a, str> {
        match self.unfolded() {
            Cow::Borrowed(raw) => lossy(raw, max),
            Cow::Owned(raw) => Cow::Owned(lossy(&raw, max).into_owned()),
        }
    }

    /// The value with each fold replaced by one space (RFC 9112 §5.2).
    fn unfolded(self) -> Cow<'a, [u8]> {
        if memchr::memchr(b'\n', self.0).is_none() {
            return Cow::Borrowed(self.0);
        }
        let mut out = Vec::with_capacity(self.0.len());
        for line in self.0.split(|&b| b == b'\n') {
            let line = line.trim_ascii();
            if !out.is_empty() && !line.is_empty() {
                out.push(b' ');
            }
            out.extend_from_slice(line);
        }
        Cow::Owned(out)
    }
}

fn lossy(raw: &[u8], max: usize) -> Cow<'_, str> {
    // A character of UTF-8 has at most four bytes: what lies further back cannot be needed.
    let raw = &raw[..raw.len().min(max.saturating_add(4))];
    match String::from_utf8_lossy(raw) {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..text.floor_char_boundary(max)]),
        Cow::Owned(mut text) => {
            text.truncate(text.floor_char_boundary(max));
            Cow::Owned(text)
        }
    }
}

/// What the `Content-Length` headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentLength {
    /// There is none.
    #[default]
    Absent,
    /// So many bytes.
    Bytes(u64),
    /// No number, too large a number, or several different ones.
    Invalid,
}

/// What the `Transfer-Encoding` headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransferCoding {
    /// There is none (or the `identity` of old).
    #[default]
    Absent,
    /// The last one is `chunked`.
    Chunked,
    /// The last one is another, so that only the end of the connection ends the message.
    Other,
}

/// How the end of a message's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes, at least one.
    Length(u64),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
    /// The message contradicts itself, or its head was cut off.
    Unknown,
}

/// The headers that are wanted.
#[derive(Clone, Debug, Default)]
pub struct Headers<'a> {
    /// `Content-Length`
    pub content_length: ContentLength,
    /// `Transfer-Encoding`
    pub transfer_coding: TransferCoding,
    /// Whether `Expect` is `100-continue`.
    pub expects_continue: bool,
    /// `Host`
    pub host: Option<Text<'a>>,
    /// `User-Agent`
    pub user_agent: Option<Text<'a>>,
    /// `traceparent`; none where there are several, as W3C Trace Context demands.
    pub traceparent: Option<Text<'a>>,
    /// `tracestate`; the first.
    pub tracestate: Option<Text<'a>>,
    /// The lines that all of them stand in.
    pub(super) lines: &'a [u8],
    traceparents: u8,
}

impl<'a> Headers<'a> {
    /// All headers, those that nobody asked for too: names as they stand, and values.
    pub fn all(&self) -> impl Iterator<Item = (&'a [u8], Text<'a>)> {
        HeaderLines(self.lines)
    }

    /// Takes one header, which may be folded over several lines.
    pub(super) fn take(&mut self, name: &[u8], value: &'a [u8]) {
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        let text = Text(value);
        match name.len() {
            4 if is(b"host") => _ = self.host.get_or_insert(text),
            6 if is(b"expect") => {
                self.expects_continue = text.unfolded().eq_ignore_ascii_case(b"100-continue");
            }
            10 if is(b"user-agent") => _ = self.user_agent.get_or_insert(text),
            10 if is(b"tracestate") => _ = self.tracestate.get_or_insert(text),
            11 if is(b"traceparent") => {
                self.traceparents = self.traceparents.saturating_add(1);
                self.traceparent = (self.traceparents == 1).then_some(text);
            }
            14 if is(b"content-length") => self.take_content_length(&text.unfolded()),
            17 if is(b"transfer-encoding") => self.take_transfer_coding(&text.unfolded()),
            _ => {}
        }
    }

    /// How the end of a request with these headers is told (RFC 9112 §6.3).
    pub fn request_framing(&self) -> Framing {
        match (self.transfer_coding, self.content_length) {
            (TransferCoding::Chunked, _) => Framing::Chunked,
            (TransferCoding::Other, _) | (_, ContentLength::Invalid) => Framing::Unknown,
            (_, ContentLength::Bytes(0) | ContentLength::Absent) => Framing::Empty,
            (_, ContentLength::Bytes(bytes)) => Framing::Length(bytes),
        }
    }

    /// How the end of a final response with these headers is told (RFC 9112 §6.3), in answer to a
    /// request that was `HEAD` or not.
    pub fn response_framing(&self, status: u16, to_head: bool) -> Framing {
        if to_head || matches!(status, 204 | 304) {
            return Framing::Empty;
        }
        match (self.transfer_coding, self.content_length) {
            (TransferCoding::Chunked, _) => Framing::Chunked,
            (TransferCoding::Other, _) => Framing::UntilClose,
            (_, ContentLength::Invalid) => Framing::Unknown,
            (_, ContentLength::Bytes(0)) => Framing::Empty,
            (_, ContentLength::Bytes(bytes)) => Framing::Length(bytes),
            (_, ContentLength::Absent) => Framing::UntilClose,
        }
    }

    /// Several equal lengths are one (RFC 9110 §8.6); several different ones are an attack.
    fn take_content_length(&mut self, value: &[u8]) {
        for part in value.split(|&b| b == b',') {
            let part = match decimal(part.trim_ascii()) {
                Some(bytes) => ContentLength::Bytes(bytes),
                None => ContentLength::Invalid,
            };
            self.content_length = match self.content_length {
                ContentLength::Absent => part,
                before if before == part => part,
                _ => ContentLength::Invalid,
            };
        }
    }

    fn take_transfer_coding(&mut self, value: &[u8]) {
        for part in value.split(|&b| b == b',') {
            let part = part.trim_ascii();
            if part.is_empty() || part.eq_ignore_ascii_case(b"identity") {
                continue;
            }
            self.transfer_coding = if part.eq_ignore_ascii_case(b"chunked") {
                TransferCoding::Chunked
            } else {
                TransferCoding::Other
            };
        }
    }
}

/// A number of decimal digits only.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &'static str)]) -> Headers<'static> {
        let mut headers = Headers::default();
        for (name, value) in lines {
            headers.take(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    /// Lengths: equal ones are one, different or malformed ones are none.
    #[test]
    fn content_lengths() {
        let length = |values: &[&'static str]| {
            let lines: Vec<_> = values.iter().map(|v| ("Content-Length", *v)).collect();
            headers(&lines).content_length
        };
        assert_eq!(length(&[]), ContentLength::Absent);
        assert_eq!(length(&["0"]), ContentLength::Bytes(0));
        assert_eq!(
            length(&["18446744073709551615"]),
            ContentLength::Bytes(u64::MAX)
        );
        assert_eq!(length(&["18446744073709551616"]), ContentLength::Invalid);
        assert_eq!(length(&["42", "42"]), ContentLength::Bytes(42));
        assert_eq!(length(&["42, 42"]), ContentLength::Bytes(42));
        assert_eq!(length(&["42", "43"]), ContentLength::Invalid);
        for bad in ["", "+5", "-1", "0x10", "5 5", "5;", "٣"] {
            assert_eq!(length(&[bad]), ContentLength::Invalid, "{bad:?}");
        }
    }

    /// Chunked wins over a length, but only where it is the last coding.
    #[test]
    fn transfer_codings() {
        let coding = |value| headers(&[("transfer-encoding", value)]).transfer_coding;
        assert_eq!(coding("chunked"), TransferCoding::Chunked);
        assert_eq!(coding("gzip, Chunked"), TransferCoding::Chunked);
        assert_eq!(coding("chunked, gzip"), TransferCoding::Other);
        assert_eq!(coding("identity"), TransferCoding::Absent);
        assert_eq!(coding("xchunked"), TransferCoding::Other);
        let both = headers(&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")]);
        assert_eq!(both.request_framing(), Framing::Chunked);
        assert_eq!(both.response_framing(200, false), Framing::Chunked);
    }

    /// Every rule of RFC 9112 §6.3, in its order.
    #[test]
    fn framings() {
        let none = headers(&[]);
        let five = headers(&[("content-length", "5")]);
        let bad = headers(&[("content-length", "5"), ("content-length", "6")]);
        let gzip = headers(&[("transfer-encoding", "gzip"), ("content-length", "5")]);
        assert_eq!(none.request_framing(), Framing::Empty);
        assert_eq!(none.response_framing(200, false), Framing::UntilClose);
        assert_eq!(five.request_framing(), Framing::Length(5));
        assert_eq!(five.response_framing(200, false), Framing::Length(5));
        assert_eq!(five.response_framing(200, true), Framing::Empty);
        assert_eq!(five.response_framing(204, false), Framing::Empty);
        assert_eq!(five.response_framing(304, false), Framing::Empty);
        assert_eq!(bad.request_framing(), Framing::Unknown);
        assert_eq!(bad.response_framing(200, false), Framing::Unknown);
        assert_eq!(gzip.request_framing(), Framing::Unknown);
        assert_eq!(gzip.response_framing(200, false), Framing::UntilClose);
    }

    /// Folds become one space, bytes that are not UTF-8 are replaced, and length is bounded in bytes
    /// without cutting a character.
    #[test]
    fn texts() {
        assert_eq!(&*Text(b"a\r\n \t b\r\n  c").to_text(99), "a b c");
        assert_eq!(&*Text(b"/\xff/x").to_text(99), "/\u{fffd}/x");
        assert_eq!(&*Text("aéé".as_bytes()).to_text(4), "aé");
        assert_eq!(&*Text(&[0xff; 5000]).to_text(4), "\u{fffd}");
        assert_eq!(&*Text(b"abc").to_text(0), "");
    }

    /// Two `traceparent`s are none.
    #[test]
    fn several_traceparents_are_none() {
        assert!(headers(&[("traceparent", "a")]).traceparent.is_some());
        for many in 2..=300 {
            let lines = vec![("Traceparent", "a"); many];
            assert!(headers(&lines).traceparent.is_none());
        }
    }
}
