//! Bodies: they are counted, never copied, so their end must be found in what is visible of them.

use crate::protocol::visible::Visible;

use super::headers::Framing;

/// A body under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes are missing; at least one.
    Length(u64),
    /// In chunks, each of whose sizes was seen.
    Chunks(Chunks),
    /// In chunks whose sizes are out of sight: the end shows in the last bytes only.
    Tail(Tail),
    /// Until the connection closes.
    UntilClose,
    /// How the body ends is not known.
    Unknown,
}

/// What an operation did to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The bytes that belong to the body.
    pub bytes: u64,
    /// Whether the body ended with the last of them.
    pub ended: bool,
}

impl Body {
    /// The body that this framing announces; `None` where there is none.
    pub const fn new(framing: Framing) -> Option<Self> {
        Some(match framing {
            Framing::Empty | Framing::Length(0) => return None,
            Framing::Length(bytes) => Self::Length(bytes),
            Framing::Chunked => Self::Chunks(Chunks::Start),
            Framing::UntilClose => Self::UntilClose,
            Framing::Unknown => Self::Unknown,
        })
    }

    /// Consumes what belongs to the body.
    pub fn advance(&mut self, seen: &mut Visible<'_>) -> Progress {
        match self {
            Self::Length(left) => {
                let bytes = seen.skip(*left);
                *left -= bytes;
                Progress {
                    bytes,
                    ended: *left == 0,
                }
            }
            Self::Chunks(chunks) => {
                let before = seen.len();
                let step = chunks.advance(seen);
                if let Step::Lost { trailers } = step {
                    let mut tail = Tail::new(trailers);
                    tail.advance(seen);
                    *self = Self::Tail(tail);
                }
                Progress {
                    bytes: before - seen.len(),
                    ended: step == Step::Ended,
                }
            }
            Self::Tail(tail) => Progress {
                bytes: tail.advance(seen),
                ended: false,
            },
            Self::UntilClose | Self::Unknown => Progress {
                bytes: seen.skip_all(),
                ended: false,
            },
        }
    }
}

/// Where in a chunked body (RFC 9112 §7.1) the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Before a chunk's size.
    Start,
    /// In a chunk's size, of which this was read.
    Size(u64),
    /// Behind the size, before the end of its line.
    Extension(u64),
    /// In a chunk's data, of which this is missing; at least one byte.
    Data(u64),
    /// In the end of line behind a chunk's data.
    DataEnd,
    /// Behind the last chunk, in a line that is empty so far, or is not.
    Trailer {
        /// Whether the line is empty so far.
        empty: bool,
    },
}

/// How far an operation led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To its end.
    OnWay,
    /// To the end of the body.
    Ended,
    /// To where the chunks' sizes are out of sight, or are none.
    Lost { trailers: bool },
}

impl Chunks {
    fn advance(&mut self, seen: &mut Visible<'_>) -> Step {
        loop {
            if let Self::Data(left) = self {
                *left -= seen.skip(*left);
                if *left > 0 {
                    return Step::OnWay;
                }
                *self = Self::DataEnd;
            }
            if seen.is_empty() {
                return Step::OnWay;
            }
            let Some(byte) = seen.next_visible() else {
                return self.hidden(seen);
            };
            *self = match (*self, byte) {
                (Self::DataEnd, b'\r') => Self::DataEnd,
                (Self::DataEnd, b'\n') => Self::Start,
                (Self::Start, _) if byte.is_ascii_hexdigit() => Self::Size(hex(byte)),
                (Self::Size(size), _) if byte.is_ascii_hexdigit() => match size.checked_mul(16) {
                    Some(size) => Self::Size(size + hex(byte)),
                    None => return Step::Lost { trailers: false },
                },
                (Self::Size(size), b';' | b' ' | b'\t' | b'\r') => Self::Extension(size),
                (Self::Size(0) | Self::Extension(0), b'\n') => Self::Trailer { empty: true },
                (Self::Size(size) | Self::Extension(size), b'\n') => Self::Data(size),
                (Self::Extension(size), _) => Self::Extension(size),
                (Self::Trailer { empty: true }, b'\n') => return Step::Ended,
                (Self::Trailer { empty: false }, b'\n') => Self::Trailer { empty: true },
                (Self::Trailer { empty }, b'\r') => Self::Trailer { empty },
                (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
                (Self::DataEnd | Self::Start | Self::Size(_) | Self::Data(_), _) => {
                    return Step::Lost { trailers: false };
                }
            };
        }
    }

    /// The next byte is out of sight: what the number of bytes left tells.
    fn hidden(&mut self, seen: &mut Visible<'_>) -> Step {
        match (*self, seen.len()) {
            // The end of line behind the data, and nothing more.
            (Self::DataEnd, 2) => {
                seen.skip_all();
                *self = Self::Start;
                Step::OnWay
            }
            // That and the last chunk: between two ends of line nothing else has five bytes, save a
            // chunk whose size and data were parted by the writer.
            (Self::DataEnd, 7) => {
                seen.skip_all();
                Step::Ended
            }
            (state, _) => Step::Lost {
                trailers: matches!(state, Self::Trailer { .. }),
            },
        }
    }
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u64 {
    char::from(digit).to_digit(16).map_or(0, u64::from)
}

/// The last bytes of a chunked body whose chunks are out of sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The last bytes, right-aligned; zeros where they are not known.
    last: [u8; 7],
    /// Whether the last chunk was seen, so that an empty line ends the body.
    trailers: bool,
}

impl Tail {
    const fn new(trailers: bool) -> Self {
        Self {
            last: [0; 7],
            trailers,
        }
    }

    /// Whether the bytes so far end as a chunked body does. A body may do so by chance, so this is
    /// true only if nothing of it follows.
    pub fn may_be_end(&self) -> bool {
        self.last == *b"\r\n0\r\n\r\n" || self.trailers && self.last.ends_with(b"\r\n\r\n")
    }

    fn advance(&mut self, seen: &mut Visible<'_>) -> u64 {
        self.push(seen.front());
        if !seen.is_whole() {
            self.last = [0; 7];
        }
        self.push(seen.back());
        seen.skip_all()
    }

    fn push(&mut self, bytes: &[u8]) {
        let len = self.last.len();
        let new = bytes.len().min(len);
        self.last.copy_within(new.., 0);
        self.last[len - new..].copy_from_slice(&bytes[bytes.len() - new..]);
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
