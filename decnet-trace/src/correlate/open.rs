//! An exchange under way.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use decnet_trace_common::event::{SockOp, Tuple, flags};
use smol_str::SmolStr;

use super::exchange::{End, Ends, Exchange, Role, Unseen};
use crate::{
    protocol::http1::{Request, Text},
    text::Texts,
};

/// The most bytes of a target that are kept.
const TARGET_MAX: usize = 4096;

/// The most bytes of a header's value that are kept; `tracestate` is allowed that many.
const VALUE_MAX: usize = 512;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The operation that moved a message's first byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) ts: u64,
    pub(super) context: u64,
    sock: u64,
    queued: Option<u64>,
    tgid: u32,
    pub(super) tid: u32,
    fd: i32,
    unix: bool,
}

impl Stamp {
    pub(super) fn new(op: &SockOp) -> Self {
        let ts = op.header.ts;
        Self {
            ts,
            context: op.context,
            sock: op.sock,
            queued: (op.arrived != 0 && op.arrived <= ts).then(|| ts - op.arrived),
            tgid: op.header.tgid,
            tid: op.header.tid,
            fd: op.fd,
            unix: op.flags & flags::UNIX != 0,
        }
    }
}

/// An exchange under way: what is known of it so far, and what its end depends on.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) exchange: Exchange,
    /// The request's number on its connection.
    pub(super) number: u32,
    /// When the response's last byte so far was moved; before there is one, the request's.
    pub(super) last: u64,
    /// The request was `HEAD`: its response has no body.
    pub(super) to_head: bool,
    /// The request was `CONNECT`: success makes a tunnel of the connection.
    pub(super) to_connect: bool,
    /// The request's body may never come: it waits for a `100 Continue` that was not sent.
    pub(super) waits_for_continue: bool,
}

impl Open {
    pub(super) fn new(
        request: &Request<'_>,
        role: Role,
        tuple: &Tuple,
        number: u32,
        stamp: &Stamp,
        texts: &mut Texts,
    ) -> Self {
        let headers = &request.headers;
        let value =
            |text: Option<Text<'_>>| text.map(|text| SmolStr::from(text.to_text(VALUE_MAX)));
        // These are the same in many requests.
        let mut shared =
            |text: Option<Text<'_>>| text.map(|text| texts.get(&text.to_text(VALUE_MAX)));
        Self {
            exchange: Exchange {
                tgid: stamp.tgid,
                tid: stamp.tid,
                sock: stamp.sock,
                number,
                fd: stamp.fd,
                role,
                ends: ends(tuple, stamp.unix),
                unix_path: None,
                unix_peer: unix_peer(tuple, stamp.unix),
                before: 0,
                connect: None,
                pipelined: false,
                unseen: Unseen::default(),
                request_context: stamp.context,
                response_context: 0,
                response_tid: 0,
                start: stamp.ts,
                response_start: None,
                end: stamp.ts,
                queued: stamp.queued.filter(|_| role == Role::Server),
                method: method(request.method),
                target: request.target.to_text(TARGET_MAX).into(),
                minor_version: request.minor,
                host: shared(headers.host),
                user_agent: shared(headers.user_agent),
                traceparent: value(headers.traceparent),
                tracestate: value(headers.tracestate),
                headers: Vec::new(),
                status: None,
                request_bytes: 0,
                request_body: 0,
                response_bytes: 0,
                response_body: 0,
                ended_by: End::Idle,
            },
            number,
            last: stamp.ts,
            to_head: request.method == "HEAD",
            to_connect: request.method == "CONNECT",
            waits_for_continue: headers.expects_continue,
        }
    }

    /// About how many bytes of memory this holds.
    pub(super) fn memory(&self) -> usize {
        let exchange = &self.exchange;
        let texts = [
            &exchange.host,
            &exchange.user_agent,
            &exchange.traceparent,
            &exchange.tracestate,
        ];
        let values: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
        let kept = exchange.headers.iter();
        let kept: usize = kept.map(|kept| size_of_val(kept) + kept.1.len()).sum();
        size_of::<Self>() + exchange.method.len() + exchange.target.len() + values + kept
    }
}

/// The common methods cost no allocation.
fn method(method: &str) -> Cow<'static, str> {
    const KNOWN: [&str; 10] = [
        "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "QUERY",
    ];
    match KNOWN.into_iter().find(|known| *known == method) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(method.to_owned()),
    }
}

/// The inode number that the tuple of a unix socket begins its far end with.
fn unix_peer(tuple: &Tuple, unix: bool) -> u64 {
    match tuple.remote.first_chunk() {
        Some(inode) if unix => u64::from_le_bytes(*inode),
        _ => 0,
    }
}

fn ends(tuple: &Tuple, unix: bool) -> Ends {
    let ip: fn([u8; 16]) -> IpAddr = match tuple.family {
        _ if unix => return Ends::Unix,
        AF_INET => |[a, b, c, d, ..]| Ipv4Addr::new(a, b, c, d).into(),
        // A dual-stack socket's IPv4 peer is shown as what it is.
        AF_INET6 => |bytes| Ipv6Addr::from(bytes).to_canonical(),
        _ => return Ends::Unknown,
    };
    Ends::Ip {
        local: SocketAddr::new(ip(tuple.local), tuple.local_port),
        remote: SocketAddr::new(ip(tuple.remote), tuple.remote_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses of every family, and of none.
    #[test]
    fn ends_of_tuples() {
        let mut tuple = Tuple {
            family: AF_INET,
            local_port: 80,
            remote_port: 4000,
            ..Tuple::default()
        };
        tuple.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        tuple.remote[..4].copy_from_slice(&[10, 1, 2, 3]);
        let ip = |local: &str, remote: &str| Ends::Ip {
            local: local.parse().expect("an address"),
            remote: remote.parse().expect("an address"),
        };
        assert_eq!(ends(&tuple, false), ip("127.0.0.1:80", "10.1.2.3:4000"));
        assert_eq!(ends(&tuple, true), Ends::Unix);
        tuple.family = AF_INET6;
        tuple.local = Ipv6Addr::LOCALHOST.octets();
        tuple.remote = Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets();
        assert_eq!(ends(&tuple, false), ip("[::1]:80", "10.1.2.3:4000"));
        tuple.family = 0;
        assert_eq!(ends(&tuple, false), Ends::Unknown);
    }

    /// Common methods are not copied, others are kept as they stood.
    #[test]
    fn methods() {
        assert!(matches!(method("GET"), Cow::Borrowed("GET")));
        assert!(matches!(method("get"), Cow::Owned(own) if own == "get"));
    }
}
