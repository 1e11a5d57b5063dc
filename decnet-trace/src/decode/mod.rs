//! Records from the rings, checked: bytes in, borrowed events out. Kernel types end here.

use std::mem::offset_of;

use decnet_trace_common::event::{self, Header, Kind, PyFrame};
use thiserror::Error;

/// A record, checked and borrowed from the ring.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A socket operation, its payload, and the address of the unix socket that it asks something of (empty
    /// for others).
    SockOp(event::SockOp, &'a [u8], &'a [u8]),
    /// A socket closed, or began to listen.
    SockState(event::SockState),
    /// A process forked, executed a program, or ended.
    Proc(event::Proc),
    /// A CPU sample and its stacks.
    Sample(event::Sample, Frames<'a>),
    /// A context copied or ended.
    Lineage(event::Lineage),
    /// A step of a statement, its text, and the name of its database's file.
    Statement(event::Statement, &'a [u8], &'a [u8]),
}

/// The stacks of a sample: addresses and Python frames, innermost first.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    kernel: &'a [u8],
    user: &'a [u8],
    python: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Kernel addresses.
    pub fn kernel(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        words(self.kernel)
    }

    /// User addresses of native frames.
    pub fn user(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        words(self.user)
    }

    /// Python frames.
    pub fn python(&self) -> impl ExactSizeIterator<Item = PyFrame> + use<'a> {
        self.python
            .chunks_exact(size_of::<PyFrame>())
            .map(|chunk| PyFrame {
                code: word(&chunk[..8]),
                instr: word(&chunk[8..]),
            })
    }

    /// The bytes of all three stacks: equal for equal stacks of one process.
    pub fn as_bytes(&self) -> [&'a [u8]; 3] {
        [self.kernel, self.user, self.python]
    }
}

/// Why a record was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the record says, or than its kind needs.
    #[error("record of {have} bytes, {need} needed")]
    Short {
        /// The bytes there are.
        have: usize,
        /// The bytes needed.
        need: usize,
    },
    /// A record of another ABI.
    #[error("record of ABI version {0}, {want} expected", want = event::ABI_VERSION)]
    Version(u8),
    /// A kind that does not exist.
    #[error("record of unknown kind {0}")]
    Kind(u8),
}

/// Decodes one record.
///
/// # Errors
///
/// When the record is cut short, of another ABI version, or of an unknown kind.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let header: Header = read(bytes)?.0;
    if header.version != event::ABI_VERSION {
        return Err(DecodeError::Version(header.version));
    }
    let bytes = take(bytes, usize::from(header.len))?.0;
    match Kind::from_u8(header.kind).ok_or(DecodeError::Kind(header.kind))? {
        Kind::SockOp => {
            let (op, rest): (event::SockOp, _) = read(bytes)?;
            let (payload, rest) = take(rest, usize::from(op.payload_len))?;
            let (path, _) = take(rest, usize::from(op.path_len))?;
            Ok(Event::SockOp(op, payload, path))
        }
        Kind::SockState => Ok(Event::SockState(read(bytes)?.0)),
        Kind::Proc => Ok(Event::Proc(read(bytes)?.0)),
        Kind::Lineage => Ok(Event::Lineage(read(bytes)?.0)),
        Kind::Statement => {
            let (step, rest): (event::Statement, _) = read(bytes)?;
            let (text, rest) = take(rest, usize::from(step.text_len))?;
            let (file, _) = take(rest, usize::from(step.file_len))?;
            Ok(Event::Statement(step, text, file))
        }
        Kind::Sample => {
            let (sample, rest): (event::Sample, _) = read(bytes)?;
            let (kernel, rest) = take(rest, usize::from(sample.kernel) * 8)?;
            let (user, rest) = take(rest, usize::from(sample.user) * 8)?;
            let (python, _) = take(rest, usize::from(sample.python) * size_of::<PyFrame>())?;
            Ok(Event::Sample(
                sample,
                Frames {
                    kernel,
                    user,
                    python,
                },
            ))
        }
    }
}

/// The time of a record that may not have been decoded yet, for ordering.
pub fn timestamp(bytes: &[u8]) -> Option<u64> {
    let at = offset_of!(Header, ts);
    bytes.get(at..at + 8).map(word)
}

/// Types of the ABI: `repr(C)`, integers only, no padding.
trait Record: Copy {}
impl Record for Header {}
impl Record for event::SockOp {}
impl Record for event::SockState {}
impl Record for event::Proc {}
impl Record for event::Sample {}
impl Record for event::Lineage {}
impl Record for event::Statement {}

/// Reads a struct from the front of the bytes, wherever they are aligned.
fn read<T: Record>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let (front, rest) = take(bytes, size_of::<T>())?;
    // SAFETY: `front` holds `size_of::<T>()` bytes, the read is unaligned, and a `Record` is made of
    // integers alone, for which any bytes are a value.
    let value = unsafe { front.as_ptr().cast::<T>().read_unaligned() };
    Ok((value, rest))
}

fn take(bytes: &[u8], need: usize) -> Result<(&[u8], &[u8]), DecodeError> {
    bytes.split_at_checked(need).ok_or(DecodeError::Short {
        have: bytes.len(),
        need,
    })
}

fn words<'a>(bytes: &'a [u8]) -> impl ExactSizeIterator<Item = u64> + use<'a> {
    bytes.chunks_exact(8).map(word)
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_ne_bytes(word)
}
