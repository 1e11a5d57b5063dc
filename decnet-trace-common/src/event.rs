//! The records that travel through the ring buffers.
//!
//! Each begins with a [`Header`]. Times are nanoseconds of `CLOCK_MONOTONIC`. Process and thread ids
//! are those of the initial pid namespace.

use crate::assert_layout;

/// The version of this ABI; a record of another version is refused.
pub const ABI_VERSION: u8 = 1;

/// What a record is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`SockOp`].
    SockOp = 1,
    /// A [`SockState`].
    SockState = 2,
    /// A [`Proc`].
    Proc = 3,
    /// A [`Sample`].
    Sample = 4,
    /// A [`Lineage`].
    Lineage = 5,
    /// A [`Statement`].
    Statement = 6,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub const fn from_u8(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::SockOp,
            2 => Self::SockState,
            3 => Self::Proc,
            4 => Self::Sample,
            5 => Self::Lineage,
            6 => Self::Statement,
            _ => return None,
        })
    }
}

/// The first bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub ts: u64,
    /// The process (thread group) it happened in.
    pub tgid: u32,
    /// The thread it happened on.
    pub tid: u32,
    /// The CPU it happened on.
    pub cpu: u32,
    /// The length of the whole record, in bytes.
    pub len: u16,
    /// A [`Kind`].
    pub kind: u8,
    /// [`ABI_VERSION`].
    pub version: u8,
}

/// The two ends of a connection, as the traced process sees them. Of a unix socket, [`Self::remote`]
/// begins with the peer's inode number (little-endian), 0 as long as nobody has accepted it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// The process's own address, in network order; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// The peer's address, likewise.
    pub remote: [u8; 16],
    /// The process's own port, in host order.
    pub local_port: u16,
    /// The peer's port, in host order.
    pub remote_port: u16,
    /// `AF_UNIX` (1), `AF_INET` (2) or `AF_INET6` (10); 0 where there is no tuple.
    pub family: u16,
    /// Zero.
    pub reserved: u16,
}

/// One read from, or write to, a stream socket of a traced process, after the data moved.
///
/// Behind it, [`SockOp::payload_len`] bytes of payload. An operation that cannot begin or continue a
/// message head carries none: bodies are counted, not copied.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockOp {
    /// The common header.
    pub header: Header,
    /// The socket: its inode number, unique among live sockets of the machine.
    pub sock: u64,
    /// The `PyContext*` that the thread had entered; 0 where unknown. With [`flags::HEAD`] only.
    pub context: u64,
    /// When the data read by this operation reached the socket, in nanoseconds of
    /// `CLOCK_MONOTONIC`, late by up to two ticks of the kernel's clock; 0 where the kernel does not tell. On reads
    /// that begin a head only.
    pub arrived: u64,
    /// The two ends; all zero unless [`flags::TUPLE`] is set.
    pub tuple: Tuple,
    /// Bytes moved; 0 at the end of the stream; a negated errno.
    pub ret: i32,
    /// The file descriptor.
    pub fd: i32,
    /// A set of [`flags`].
    pub flags: u16,
    /// Bytes of payload behind this struct, at most [`crate::limits::PAYLOAD_MAX`].
    pub payload_len: u16,
    /// How many of [`Self::tail`]'s bytes hold data; they are its last ones.
    pub tail_len: u16,
    /// Bytes of the peer's address behind the payload, where a process asks something of a unix socket: the
    /// path that it is bound to, or, with a NUL before it, a name. At most
    /// [`crate::limits::UNIX_PATH_MAX`].
    pub path_len: u16,
    /// The first bytes moved; as many as [`Self::ret`] says, at most eight.
    pub first: [u8; 8],
    /// The last bytes moved (the end of a chunked body shows there), right-aligned.
    pub tail: [u8; 8],
}

/// The bits of [`SockOp::flags`].
pub mod flags {
    /// A write; a read otherwise.
    pub const SEND: u16 = 1;
    /// The payload may begin a request or response head.
    pub const HEAD: u16 = 1 << 1;
    /// The payload continues a head that did not end in the operations before.
    pub const CONTINUATION: u16 = 1 << 2;
    /// A unix-domain socket.
    pub const UNIX: u16 = 1 << 3;
    /// [`super::SockOp::tuple`] is filled in.
    pub const TUPLE: u16 = 1 << 4;
    /// The bytes moved could not be read: [`super::SockOp::first`], the tail and the payload are
    /// empty though data moved.
    pub const UNREAD: u16 = 1 << 5;
    /// The payload is shorter than what moved.
    pub const CUT: u16 = 1 << 6;
    /// Seen by the syscall tracepoints, not by the socket hooks.
    pub const FALLBACK: u16 = 1 << 7;
    /// The read would have waited for data: the thread serves this connection and nothing beside it.
    /// Never with [`FALLBACK`].
    pub const BLOCKING: u16 = 1 << 8;
}

/// A socket of a traced process was closed or is being connected by it, or any process began to listen. That
/// a connection is there ([`tcp_state::ESTABLISHED`]) is told in the name of whoever ran at that moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockState {
    /// The common header; the process is the one whose call caused the change.
    pub header: Header,
    /// The socket: its inode number.
    pub sock: u64,
    /// The two ends.
    pub tuple: Tuple,
    /// The TCP state left (include/net/tcp_states.h).
    pub old: u8,
    /// The TCP state entered.
    pub new: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// TCP states (Linux, include/net/tcp_states.h).
pub mod tcp_state {
    /// `TCP_ESTABLISHED`
    pub const ESTABLISHED: u8 = 1;
    /// `TCP_SYN_SENT`
    pub const SYN_SENT: u8 = 2;
    /// `TCP_FIN_WAIT1`
    pub const FIN_WAIT1: u8 = 4;
    /// `TCP_CLOSE`
    pub const CLOSE: u8 = 7;
    /// `TCP_LAST_ACK`
    pub const LAST_ACK: u8 = 9;
    /// `TCP_LISTEN`
    pub const LISTEN: u8 = 10;
}

/// What happened to a process.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcWhat {
    /// A traced process made a new process; the header names the child.
    Fork = 1,
    /// Any process executed a program.
    Exec = 2,
    /// The last thread of a traced process ended.
    Exit = 3,
    /// Another thread of a process ended whose threads take work out of queues; the header names it.
    ThreadExit = 4,
}

/// The life of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proc {
    /// The common header.
    pub header: Header,
    /// A [`ProcWhat`].
    pub what: u32,
    /// The parent (thread group) of a fork; 0 otherwise.
    pub parent: u32,
    /// The command's name, NUL-padded.
    pub comm: [u8; 16],
}

/// One CPU sample of a traced process.
///
/// Behind it: [`Sample::kernel`] and then [`Sample::user`] addresses of eight bytes, innermost
/// first, and then [`Sample::python`] [`PyFrame`]s, innermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The common header.
    pub header: Header,
    /// The `PyContext*` that the thread had entered; 0 where unknown.
    pub context: u64,
    /// The `PyThreadState*` of the thread; 0 where it has none or none was looked for.
    pub thread_state: u64,
    /// The number of kernel frames.
    pub kernel: u16,
    /// The number of native user frames.
    pub user: u16,
    /// The number of Python frames.
    pub python: u16,
    /// A set of [`sample_flags`].
    pub flags: u16,
}

/// The bits of [`Sample::flags`].
pub mod sample_flags {
    /// There were more Python frames than fit.
    pub const PYTHON_TRUNCATED: u16 = 1;
    /// The Python stack could not be read to its end.
    pub const PYTHON_BROKEN: u16 = 1 << 1;
    /// The thread held the GIL.
    pub const GIL: u16 = 1 << 2;
    /// The sample was taken because the thread exists, not because it ran (`--wall`).
    pub const WALL: u16 = 1 << 3;
    /// The native stack, followed by tables, did not come to its end.
    pub const NATIVE_BROKEN: u16 = 1 << 4;
    /// It led to an address in no known code: the process may have mapped more.
    pub const NATIVE_UNMAPPED: u16 = 1 << 5;
}

/// A Python frame: which code object, and where in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyFrame {
    /// The `PyCodeObject*`, with [`Self::ENTRY`]; 0 for a frame of the interpreter's own, which stands
    /// where C called into Python (3.12 on).
    pub code: u64,
    /// The instruction: up to CPython 3.10 `f_lasti`, from 3.11 the instruction pointer. Decoded
    /// with the process's version.
    pub instr: u64,
}

impl PyFrame {
    /// In [`Self::code`], which is aligned to words: an evaluation loop began with this frame, so that C
    /// called into Python here (3.11).
    pub const ENTRY: u64 = 1;

    /// The `PyCodeObject*` alone; 0 for a frame of the interpreter's own.
    pub const fn code_object(&self) -> u64 {
        self.code & !Self::ENTRY
    }
}

/// A step in the descent of contexts, or in the way of work through a queue.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The common header.
    pub header: Header,
    /// The `PyContext*` that the thread had entered; 0 where it had none.
    pub context: u64,
    /// The `PyContext*`, or the object in a queue, that [`Self::what`] speaks of.
    pub object: u64,
    /// The code object of the Python function that called; 0 where unknown. With
    /// [`LineageWhat::Taken`] only.
    pub caller: u64,
    /// A [`LineageWhat`].
    pub what: u32,
    /// Zero.
    pub reserved: u32,
}

/// What happened in a [`Lineage`] record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineageWhat {
    /// `PyContext_CopyCurrent` made the context `object`, a copy of the entered one.
    Copied = 1,
    /// The context `object` ends; its address may be another's next.
    Ended = 2,
    /// `object` is put into a `queue.SimpleQueue`.
    Put = 3,
    /// `object` was taken out of one; 0 where that failed.
    Taken = 4,
}

impl LineageWhat {
    /// The step with this number, if there is one.
    pub const fn from_u32(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Copied,
            2 => Self::Ended,
            3 => Self::Put,
            4 => Self::Taken,
            _ => return None,
        })
    }
}

/// A step in the life of a statement of SQLite.
///
/// Behind it, [`Statement::text_len`] bytes of the statement's text and [`Statement::file_len`] bytes of
/// the database's file name, neither with a NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statement {
    /// The common header.
    pub header: Header,
    /// The `PyContext*` that the thread had entered; 0 where unknown. Of [`StatementWhat::Prepared`] and
    /// [`StatementWhat::Begun`] only.
    pub context: u64,
    /// The `sqlite3_stmt*`; 0 where there is none (yet).
    pub object: u64,
    /// The `sqlite3*`; 0 where unknown.
    pub db: u64,
    /// Four words of the statement's `Vdbe`: those that follow `nMem` (see [`crate::sqlite`]). All zero
    /// where they could not be read, or there is no statement.
    pub state: [u32; 4],
    /// A [`StatementWhat`].
    pub what: u16,
    /// The index of the library's [`SqliteLayout`](crate::sqlite::SqliteLayout).
    pub library: u16,
    /// Bytes of text, at most [`crate::limits::STATEMENT_MAX`]; that many mean that there was more.
    pub text_len: u16,
    /// Bytes of the file name, at most [`crate::limits::FILE_NAME_MAX`], likewise.
    pub file_len: u16,
    /// With [`StatementWhat::Failed`], the code of the error.
    pub code: i32,
    /// Zero.
    pub reserved: u32,
}

/// What happened in a [`Statement`] record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementWhat {
    /// A text is about to become a statement, with `sqlite3_prepare_v2` or `_v3`.
    Prepared = 1,
    /// A statement is about to be given its parameters, and then executed.
    Begun = 2,
    /// A statement is reset: an execution is over, if there was one.
    Ended = 3,
    /// A statement ends altogether.
    Finalized = 4,
    /// The program asked for the error of the last call on this thread.
    Failed = 5,
    /// SQLite begins to sleep, for it met a lock.
    Waiting = 6,
    /// It woke up.
    Waited = 7,
    /// The program called `executemany`, of a cursor or a connection.
    Many = 8,
    /// The program called `execute`.
    One = 9,
}

impl StatementWhat {
    /// The step with this number, if there is one.
    pub const fn from_u16(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Prepared,
            2 => Self::Begun,
            3 => Self::Ended,
            4 => Self::Finalized,
            5 => Self::Failed,
            6 => Self::Waiting,
            7 => Self::Waited,
            8 => Self::Many,
            9 => Self::One,
            _ => return None,
        })
    }
}

impl ProcWhat {
    /// The event with this number, if there is one.
    pub const fn from_u32(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Fork,
            2 => Self::Exec,
            3 => Self::Exit,
            4 => Self::ThreadExit,
            _ => return None,
        })
    }
}

assert_layout! {
    Lineage = 56,
    Statement = 80,
    Header = 24,
    Tuple = 40,
    SockOp = 120,
    SockState = 80,
    Proc = 48,
    Sample = 48,
    PyFrame = 16,
}
