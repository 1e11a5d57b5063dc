//! Reads HTTP/1.1 responses from a byte stream, as they come in pieces, and counts their bytes.

use anyhow::{Result, bail};

/// Headers that a response may have; the bed's own services send fewer than ten.
const MAX_HEADERS: usize = 64;

/// A head longer than this is not one that the bed's services send.
const MAX_HEAD: usize = 64 * 1024;

/// The longest line that frames a chunk.
const MAX_LINE: usize = 1024;

/// Reads one response; after it is done, [`Reader::reset`] makes it ready for the next.
#[derive(Debug)]
pub struct Reader {
    state: State,
    // The head so far, or the line that frames a chunk.
    buffer: Vec<u8>,
    head_request: bool,
    response: Response,
}

/// What is known of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status; 0 before the head is complete.
    pub status: u16,
    /// All its bytes: head, body and framing.
    pub bytes: u64,
    /// The bytes of its body, without the framing of chunks.
    pub body_bytes: u64,
    /// Whether the server closes the connection after it.
    pub close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of the body are still to come.
    Sized(u64),
    ChunkSize,
    /// So many bytes of the chunk, with the line end after it, are still to come.
    Chunk(u64),
    Trailer,
    UntilClose,
    Done,
}

impl Reader {
    /// A reader for the response to a request; `head_request` says that its method was HEAD, whose
    /// response has no body, whatever its headers say.
    pub fn new(head_request: bool) -> Self {
        Self {
            state: State::Head,
            buffer: Vec::new(),
            head_request,
            response: Response::default(),
        }
    }

    /// Makes it as new; its buffer stays.
    pub fn reset(&mut self, head_request: bool) {
        self.state = State::Head;
        self.buffer.clear();
        self.head_request = head_request;
        self.response = Response::default();
    }

    /// The response, as far as it was read.
    pub fn response(&self) -> Response {
        self.response
    }

    /// Whether the response is complete.
    pub fn done(&self) -> bool {
        self.state == State::Done
    }

    /// The connection was closed by the server. Returns whether that completes the response.
    pub fn close(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.done()
    }

    /// Takes bytes from the connection and returns how many of them belong to this response; fewer
    /// than there are only when it is done.
    ///
    /// # Errors
    /// The bytes are not an HTTP/1.1 response.
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut used = 0;
        while used < bytes.len() && self.state != State::Done {
            used += self.step(&bytes[used..])?;
        }
        self.response.bytes += used as u64;
        Ok(used)
    }

    /// Takes at least one of `bytes`, which are not empty.
    fn step(&mut self, bytes: &[u8]) -> Result<usize> {
        match self.state {
            State::Head => self.head(bytes),
            State::Sized(left) => {
                let n = left.min(bytes.len() as u64);
                self.response.body_bytes += n;
                self.state = if n == left {
                    State::Done
                } else {
                    State::Sized(left - n)
                };
                Ok(usize::try_from(n)?)
            }
            State::Chunk(left) => {
                let n = left.min(bytes.len() as u64);
                // The last two are the line end after the chunk.
                let body = |left: u64| left.saturating_sub(2);
                self.response.body_bytes += body(left) - body(left - n);
                self.state = if n == left {
                    State::ChunkSize
                } else {
                    State::Chunk(left - n)
                };
                Ok(usize::try_from(n)?)
            }
            State::ChunkSize | State::Trailer => self.line(bytes),
            State::UntilClose => {
                self.response.body_bytes += bytes.len() as u64;
                Ok(bytes.len())
            }
            State::Done => Ok(0),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize> {
        let before = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = parsed.parse(&self.buffer)? else {
            if self.buffer.len() > MAX_HEAD {
                bail!("no end of the response's head in {MAX_HEAD} bytes");
            }
            return Ok(bytes.len());
        };
        let status = parsed.code.unwrap_or_default();
        let mut length_header = None;
        let (mut chunked, mut close) = (false, parsed.version == Some(0));
        for header in parsed.headers.iter() {
            let value = str::from_utf8(header.value).unwrap_or_default().trim();
            if header.name.eq_ignore_ascii_case("content-length") {
                length_header = Some(value.parse::<u64>()?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with("chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case("close");
            }
        }
        self.buffer.clear();
        let used = length - before;
        if (100..200).contains(&status) && status != 101 {
            // An interim response: the real one follows.
            return Ok(used);
        }
        self.response.status = status;
        self.response.close = close;
        self.state = if self.head_request || matches!(status, 101 | 204 | 304) {
            State::Done
        } else if chunked {
            State::ChunkSize
        } else {
            match length_header {
                Some(0) => State::Done,
                Some(length) => State::Sized(length),
                None => State::UntilClose,
            }
        };
        if self.state == State::UntilClose {
            self.response.close = true;
        }
        Ok(used)
    }

    /// Gathers a line: a chunk's size, or a trailer.
    fn line(&mut self, bytes: &[u8]) -> Result<usize> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        if self.buffer.len() + used > MAX_LINE {
            bail!("a chunk's size or a trailer is longer than {MAX_LINE} bytes");
        }
        self.buffer.extend_from_slice(&bytes[..used]);
        if end.is_none() {
            return Ok(used);
        }
        let line = self.buffer.trim_ascii();
        self.state = if self.state == State::Trailer {
            if line.is_empty() {
                State::Done
            } else {
                State::Trailer
            }
        } else {
            // After the size there may be extensions.
            let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
            match u64::from_str_radix(str::from_utf8(size)?.trim(), 16)? {
                0 => State::Trailer,
                size => match size.checked_add(2) {
                    Some(size) => State::Chunk(size),
                    None => bail!("a chunk of {size} bytes"),
                },
            }
        };
        self.buffer.clear();
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Reads `bytes` in pieces of `size`; what belongs to the response, and the response.
    fn read(bytes: &[u8], size: usize, head_request: bool) -> (usize, Reader) {
        let mut reader = Reader::new(head_request);
        let mut used = 0;
        for piece in bytes.chunks(size) {
            used += reader.read(piece).unwrap();
        }
        (used, reader)
    }

    /// However the bytes are cut, a body with Content-Length is counted right, and no byte of the
    /// next response is taken.
    #[test]
    fn sized() {
        let first = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let both = [first.as_slice(), b"HTTP/1.1 404"].concat();
        for size in 1..both.len() + 1 {
            let (used, reader) = read(&both, size, false);
            assert!(reader.done());
            assert_eq!(used, first.len());
            let response = reader.response();
            assert_eq!((response.status, response.body_bytes), (200, 5));
            assert_eq!(response.bytes, first.len() as u64);
            assert!(!response.close);
        }
    }

    /// However the bytes are cut, chunks are counted without their framing.
    #[test]
    fn chunked() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nconnection: close\r\n\r\n\
                      5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\nrest";
        for size in 1..bytes.len() + 1 {
            let (used, reader) = read(bytes, size, false);
            assert!(reader.done());
            assert_eq!(used, bytes.len() - 4);
            assert_eq!(reader.response().body_bytes, 15);
            assert!(reader.response().close);
        }
    }

    /// Responses without a body end with their head: 204, 304, and those to HEAD.
    #[test]
    fn without_body() {
        for status in ["204 No Content", "304 Not Modified"] {
            let head = format!("HTTP/1.1 {status}\r\netag: 1\r\n\r\n");
            assert!(read(head.as_bytes(), 7, false).1.done());
        }
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert!(read(head, 100, true).1.done());
        assert!(!read(head, 100, false).1.done());
    }

    /// An interim response is not the response.
    #[test]
    fn interim() {
        let bytes =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
        for size in [1, 30, 100] {
            let (used, reader) = read(bytes, size, false);
            assert_eq!(used, bytes.len());
            assert_eq!(reader.response().status, 201);
        }
    }

    /// Without a length, the body lasts until the connection is closed; a sized one cut short does
    /// not count as complete.
    #[test]
    fn until_close() {
        let (_, mut reader) = read(b"HTTP/1.0 200 OK\r\n\r\nsome text", 100, false);
        assert!(!reader.done());
        assert!(reader.close());
        assert_eq!(reader.response().body_bytes, 9);
        let (_, mut cut) = read(
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsome",
            100,
            false,
        );
        assert!(!cut.close());
    }

    /// Bytes that are no response are refused, and never a panic.
    #[test]
    fn garbage() {
        for bytes in [
            b"SSH-2.0-x\r\n".as_slice(),
            b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(Reader::new(false).read(bytes).is_err());
        }
        assert!(Reader::new(false).read(&[b'x'; 100_000]).is_err());
    }
}
