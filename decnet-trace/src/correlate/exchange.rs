//! A request and its response, as seen on one connection.

use std::{borrow::Cow, net::SocketAddr};

use smol_str::SmolStr;

use super::wanted::Kept;

/// Which side of the exchange the traced process is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It answered.
    Server,
    /// It asked.
    Client,
}

/// How the end of an exchange was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The body's length was known (Content-Length, or a status or method that has no body).
    Length,
    /// The last chunk was seen.
    LastChunk,
    /// The connection switched protocols (101, or 2xx to CONNECT): the exchange ends at its head.
    Upgrade,
    /// The side that sent the response closed the connection, which is how such a response ends.
    Close,
    /// The next request on the connection showed that this one was over.
    NextRequest,
    /// The peer went away before the response was whole.
    PeerGone,
    /// The traced process closed the connection before the response was whole.
    Aborted,
    /// The traced process ended before the response was whole.
    ProcessExit,
    /// Nothing more was seen for so long that the exchange was given up.
    Idle,
    /// The agent stopped while the exchange was under way.
    AgentStop,
}

impl End {
    /// The value of the attribute `decnet.end`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::LastChunk => "last_chunk",
            Self::Upgrade => "upgrade",
            Self::Close => "close",
            Self::NextRequest => "next_request",
            Self::PeerGone => "peer_gone",
            Self::Aborted => "aborted",
            Self::ProcessExit => "process_exit",
            Self::Idle => "idle",
            Self::AgentStop => "agent_stop",
        }
    }

    /// Whether the response came to its proper end.
    pub const fn is_complete(self) -> bool {
        matches!(
            self,
            Self::Length | Self::LastChunk | Self::Upgrade | Self::Close | Self::NextRequest
        )
    }
}

/// The two ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// TCP over IPv4 or IPv6.
    Ip {
        /// The traced process's own end.
        local: SocketAddr,
        /// The other end.
        remote: SocketAddr,
    },
    /// A unix-domain socket.
    Unix,
    /// Not known.
    Unknown,
}

/// What may have been out of sight around a request, on its own connection. Of clients nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Requests may have been read before it that were not seen: its response may be another's.
    pub before: bool,
    /// Requests may stand behind it, in what was read together with it.
    pub behind: bool,
}

/// A request and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The process.
    pub tgid: u32,
    /// The thread that moved the request's first byte.
    pub tid: u32,
    /// The socket's inode number.
    pub sock: u64,
    /// The exchange's number on its connection; wraps.
    pub number: u32,
    /// The file descriptor of the socket in the process.
    pub fd: i32,
    /// The side that the process is on.
    pub role: Role,
    /// The two ends of the connection.
    pub ends: Ends,
    /// The address of the unix socket that the process asked something of, as `ss` shows it; of clients
    /// only, and where known.
    pub unix_path: Option<SmolStr>,
    /// The inode number of the socket at a unix socket's other end; 0 where unknown.
    pub unix_peer: u64,
    /// When bytes were last read on the connection before the request, or when it began; 0 where that is not
    /// known. Of clients only.
    pub before: u64,
    /// How long the connection took to be made, in nanoseconds, if it was made for this exchange: that of a
    /// client over TCP which is the first on its connection.
    pub connect: Option<u64>,
    /// Another exchange was under way on the connection at the same time.
    pub pipelined: bool,
    /// What may have been out of sight around it.
    pub unseen: Unseen,
    /// The `PyContext*` in which the request's first byte was moved; 0 where unknown.
    pub request_context: u64,
    /// The `PyContext*` in which the final response's first byte was moved; 0 where unknown.
    pub response_context: u64,
    /// The thread that moved the final response's first byte; 0 where there was none.
    pub response_tid: u32,
    /// When the request's first byte was moved by the process, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start: u64,
    /// When the final response's first byte was moved; `None` where there was none.
    pub response_start: Option<u64>,
    /// When the response's last byte was moved; where it is not whole, when that was known ([`End::Idle`]:
    /// when the last byte was moved).
    pub end: u64,
    /// How long the request waited in the socket before the process read it, in nanoseconds.
    pub queued: Option<u64>,
    /// The request's method, as it stood.
    pub method: Cow<'static, str>,
    /// The request's target, as it stood (a path with its query, as a rule), up to 4 KiB of it; bytes
    /// that are not UTF-8 replaced.
    pub target: SmolStr,
    /// The minor version of HTTP/1 that the request spoke.
    pub minor_version: u8,
    /// The value of the request's `Host`. Of this and the headers below, up to 512 bytes are kept.
    pub host: Option<SmolStr>,
    /// The value of the request's `User-Agent`.
    pub user_agent: Option<SmolStr>,
    /// The value of the request's `traceparent`.
    pub traceparent: Option<SmolStr>,
    /// The value of the request's `tracestate`.
    pub tracestate: Option<SmolStr>,
    /// The headers that the configuration asks for, of the request and of the final response.
    pub headers: Vec<Kept>,
    /// The final status; `None` where there was no response.
    pub status: Option<u16>,
    /// The request's bytes on the wire, head included.
    pub request_bytes: u64,
    /// The bytes of the request's body that were moved until `end`; with the chunks' frames where it
    /// came in chunks.
    pub request_body: u64,
    /// The response's bytes on the wire, heads (interim ones too) included.
    pub response_bytes: u64,
    /// The bytes of the final response's body, likewise.
    pub response_body: u64,
    /// How the end was known.
    pub ended_by: End,
}
