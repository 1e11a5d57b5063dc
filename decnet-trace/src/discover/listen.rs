//! Which stream sockets a process listens on.
//!
//! /proc/PID/net/{tcp,tcp6,unix} list the sockets of the process's network namespace by inode; the
//! process's descriptors say which of them it holds. The tables are read once per namespace and look.

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use rustc_hash::FxHashMap;
use serde::{Serialize, Serializer};

use super::procfs;

/// The most descriptors of one process that are looked at. Servers open their listening sockets
/// early, and so among the lowest numbers.
const DESCRIPTORS_MAX: usize = 8192;
/// The most listening sockets of one namespace that are kept.
const LISTENING_MAX: usize = 65_536;
/// The most namespaces that are kept within one look.
const NAMESPACES_MAX: usize = 4096;
/// The longest line of a table that is read, in bytes: a unix socket's path has at most 108.
const LINE_MAX: usize = 1024;

/// `TCP_LISTEN` as /proc/net/tcp prints it.
const TCP_LISTEN: &str = "0A";
/// `__SO_ACCEPTCON`: the flag of a listening unix socket (include/linux/net.h).
const SO_ACCEPTCON: u32 = 1 << 16;
/// `SOCK_STREAM`, and `SOCK_SEQPACKET`, as /proc/net/unix prints them.
const CONNECTED_TYPES: [&str; 2] = ["0001", "0005"];

/// An address that a process listens on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix-domain socket's path; `@` begins an abstract name, nothing an unnamed socket's.
    Unix(String),
}

impl Listen {
    /// The TCP port.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The listening sockets of network namespaces, by inode: read when first asked for, and good for one
/// look at the system.
#[derive(Default)]
pub(super) struct NetTables {
    namespaces: FxHashMap<PathBuf, FxHashMap<u64, Listen>>,
}

impl NetTables {
    /// The addresses that the process listens on, in order. Empty also where it has gone or may not
    /// be looked at.
    pub(super) fn listening(&mut self, pid: u32) -> Vec<Listen> {
        let Some(table) = self.table(pid) else {
            return Vec::new();
        };
        let mut found: Vec<Listen> = sockets(pid)
            .filter_map(|inode| table.get(&inode).cloned())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether anybody listens on one of these TCP ports in the process's network namespace.
    pub(super) fn has_port(&mut self, pid: u32, ports: &[u16]) -> bool {
        self.table(pid).is_some_and(|table| {
            table
                .values()
                .any(|listen| listen.port().is_some_and(|port| ports.contains(&port)))
        })
    }

    fn table(&mut self, pid: u32) -> Option<&FxHashMap<u64, Listen>> {
        let namespace = fs::read_link(procfs::path(pid, "ns/net")).ok()?;
        if !self.namespaces.contains_key(&namespace) {
            if self.namespaces.len() >= NAMESPACES_MAX {
                self.namespaces.clear();
            }
            self.namespaces.insert(namespace.clone(), read_tables(pid));
        }
        self.namespaces.get(&namespace)
    }
}

/// The inodes of the sockets that a process holds.
fn sockets(pid: u32) -> impl Iterator<Item = u64> {
    fs::read_dir(procfs::path(pid, "fd"))
        .into_iter()
        .flatten()
        .take(DESCRIPTORS_MAX)
        .filter_map(|entry| {
            let link = fs::read_link(entry.ok()?.path()).ok()?;
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
}

fn read_tables(pid: u32) -> FxHashMap<u64, Listen> {
    let mut found = FxHashMap::default();
    for name in ["net/tcp", "net/tcp6"] {
        // The kernel prints the listening sockets before all others (`tcp_get_idx`), so that a
        // hundred thousand connections need not be printed to find them.
        each_line(pid, name, |line| match parse_tcp(line) {
            TcpLine::Listening(inode, address) => {
                found.insert(inode, Listen::Tcp(address));
                found.len() < LISTENING_MAX
            }
            TcpLine::Other => false,
            TcpLine::Unknown => true,
        });
    }
    each_line(pid, "net/unix", |line| {
        if let Some((inode, path)) = parse_unix(line) {
            found.insert(inode, Listen::Unix(path.to_owned()));
        }
        found.len() < LISTENING_MAX
    });
    found
}

/// Hands over the lines behind the heading, as long as `more` returns true.
fn each_line(pid: u32, name: &str, mut more: impl FnMut(&str) -> bool) {
    let Ok(file) = File::open(procfs::path(pid, name)) else {
        return;
    };
    let mut reader = BufReader::with_capacity(16 << 10, file);
    let mut line = Vec::new();
    let mut heading = true;
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        line.truncate(LINE_MAX);
        if !heading && !more(String::from_utf8_lossy(&line).trim_end_matches('\n')) {
            return;
        }
        heading = false;
    }
}

/// A line of /proc/net/tcp or tcp6.
#[derive(Debug, PartialEq, Eq)]
enum TcpLine {
    Listening(u64, SocketAddr),
    /// A socket in another state.
    Other,
    /// Not such a line.
    Unknown,
}

fn parse_tcp(line: &str) -> TcpLine {
    let mut fields = line.split_ascii_whitespace();
    let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else {
        return TcpLine::Unknown;
    };
    if state != TCP_LISTEN {
        return TcpLine::Other;
    }
    let inode = fields.nth(5).and_then(|field| field.parse().ok());
    match (inode, parse_address(local)) {
        (Some(inode), Some(address)) => TcpLine::Listening(inode, address),
        _ => TcpLine::Unknown,
    }
}

/// Parses `ADDRESS:PORT` in hexadecimal. The address is printed as words in the order of the machine.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| -> Option<[u8; 4]> {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            bytes.copy_from_slice(words.as_flattened());
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Parses a line of /proc/net/unix: the inode and path of a listening stream socket.
fn parse_unix(line: &str) -> Option<(u64, &str)> {
    // Num RefCount Protocol Flags Type St Inode Path; the path may contain spaces, or be absent.
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start_matches(' ');
        let end = rest.find(' ').unwrap_or(rest.len());
        let (field, behind) = rest.split_at(end);
        rest = behind;
        field
    };
    let [_num, _references, _protocol, flags, kind, _state, inode] =
        std::array::from_fn(|_| field());
    if !CONNECTED_TYPES.contains(&kind) || u32::from_str_radix(flags, 16).ok()? & SO_ACCEPTCON == 0
    {
        return None;
    }
    Some((inode.parse().ok()?, rest.strip_prefix(' ').unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
    };

    use proptest::prelude::*;

    use super::*;

    /// Lines of the three tables, as kernels print them.
    #[test]
    fn parses_lines() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                    1000        0 52113 1 ffff888 100 0 0 10 0";
        assert_eq!(
            parse_tcp(line),
            TcpLine::Listening(52113, "127.0.0.1:8080".parse().unwrap())
        );
        let line = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 \
                    0A 00000000:00000000 00:00000000 00000000     0        0 7 1 ffff 100 0 0 10 0";
        assert_eq!(
            parse_tcp(line),
            TcpLine::Listening(7, "[::1]:80".parse().unwrap())
        );
        assert_eq!(parse_tcp(&line.replace(" 0A ", " 01 ")), TcpLine::Other);
        assert_eq!(parse_tcp("nonsense"), TcpLine::Unknown);
        let unix = "ffff8880: 00000002 00000000 00010000 0001 01 23456 /run/my app.sock";
        assert_eq!(parse_unix(unix), Some((23456, "/run/my app.sock")));
        assert_eq!(
            parse_unix("ffff8880: 00000002 00000000 00010000 0001 01 99 @abstract"),
            Some((99, "@abstract"))
        );
        assert_eq!(
            parse_unix("ffff8880: 00000002 00000000 00010000 0001 01     5"),
            Some((5, ""))
        );
        assert_eq!(parse_unix(&unix.replace("00010000", "00000000")), None);
        assert_eq!(parse_unix(&unix.replace(" 0001 ", " 0002 ")), None);
    }

    /// The sockets that this process listens on are found; its connections are not taken for them.
    #[test]
    fn finds_own_sockets() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").ok();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        let _unix = UnixListener::bind(&path).unwrap();
        let client = TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let _pair = UnixStream::pair().unwrap();

        let mut tables = NetTables::default();
        let found = tables.listening(std::process::id());
        assert!(found.contains(&Listen::Tcp(v4.local_addr().unwrap())));
        if let Some(v6) = v6 {
            assert!(found.contains(&Listen::Tcp(v6.local_addr().unwrap())));
        }
        assert!(found.contains(&Listen::Unix(path.to_str().unwrap().to_owned())));
        assert!(!found.contains(&Listen::Tcp(client.local_addr().unwrap())));
        let port = v4.local_addr().unwrap().port();
        assert!(tables.has_port(std::process::id(), &[port]));
        assert!(!tables.has_port(std::process::id(), &[]));
    }

    proptest! {
        /// No line makes a parser panic.
        #[test]
        fn survives_any_line(line in "\\PC*", hex in "[0-9A-F:é ]{0,80}") {
            for line in [&line, &hex] {
                let _ = parse_tcp(line);
                let _ = parse_unix(line);
                let _ = parse_address(line);
            }
        }

        /// Every address that the kernel can print is read back.
        #[test]
        fn reads_addresses_back(ip: [u8; 16], port: u16) {
            let words: String = ip
                .chunks_exact(4)
                .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())))
                .collect();
            let parsed = parse_address(&format!("{words}:{port:04X}"));
            prop_assert_eq!(parsed, Some(SocketAddr::new(Ipv6Addr::from(ip).into(), port)));
        }
    }
}
