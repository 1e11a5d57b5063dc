//! What /proc says about one process. Every function tolerates a process that ends meanwhile, and
//! reads a bounded number of bytes.

use std::{
    fs::{self, File},
    hash::Hasher,
    io::{self, Read},
    path::PathBuf,
};

use rustc_hash::FxHasher;

/// The most bytes read of a command line. Longer ones are cut off.
const CMDLINE_MAX: u64 = 64 << 10;
/// The most bytes read of an environment. Variables behind them are not seen.
const ENVIRON_MAX: u64 = 512 << 10;
/// The most bytes read of the other, small files.
const SMALL_MAX: u64 = 16 << 10;

/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;

/// What /proc/PID/stat says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// The command's name, at most 15 bytes.
    pub comm: String,
    /// The state's letter (proc(5)).
    pub state: u8,
    /// The parent, 0 where it has none.
    pub ppid: u32,
    /// Whether it is a thread of the kernel.
    pub kernel_thread: bool,
    /// When it started, in clock ticks since the machine did: with the pid, it names a process.
    pub start: u64,
    /// Where the program's code, stack and arguments begin. Address space layout randomisation
    /// gives each executed program others, while a forked child keeps its parent's: equal values
    /// mean the same program, executed once.
    pub image: u64,
}

impl Stat {
    /// Whether it has ended and waits for its parent.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// A file or link under /proc/PID.
pub(super) fn path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Reads /proc/PID/stat.
///
/// # Errors
///
/// When the process has gone.
pub(super) fn stat(pid: u32) -> io::Result<Stat> {
    let bytes = read(pid, "stat", SMALL_MAX)?;
    parse_stat(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Parses the line of /proc/PID/stat. The name, in parentheses, may itself contain any byte.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = memchr::memchr(b'(', bytes)?;
    let close = memchr::memrchr(b')', bytes)?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    // Numbered as in proc(5), where the state is field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| -> Option<u64> { fields.get(field - 3)?.parse().ok() };
    let mut image = FxHasher::default();
    for field in [26, 28, 48] {
        image.write_u64(number(field).unwrap_or(0));
    }
    Some(Stat {
        comm,
        state: *fields.first()?.as_bytes().first()?,
        ppid: u32::try_from(number(4)?).ok()?,
        kernel_thread: number(9)? & PF_KTHREAD != 0,
        start: number(22)?,
        image: image.finish(),
    })
}

/// What is of interest in /proc/PID/status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The process that this thread belongs to.
    pub tgid: u32,
    /// The effective user.
    pub uid: u32,
    /// The pid in the innermost pid namespace.
    pub inner_pid: u32,
}

/// Reads /proc/PID/status.
///
/// # Errors
///
/// When the process has gone.
pub(super) fn status(pid: u32) -> io::Result<Status> {
    let bytes = read(pid, "status", SMALL_MAX)?;
    Ok(parse_status(&String::from_utf8_lossy(&bytes)))
}

fn parse_status(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let mut numbers = value
            .split_ascii_whitespace()
            .map(|word| word.parse::<u32>().unwrap_or(0));
        match key {
            "Tgid" => status.tgid = numbers.next().unwrap_or(0),
            "Uid" => status.uid = numbers.nth(1).unwrap_or(0),
            "NSpid" => status.inner_pid = numbers.next_back().unwrap_or(0),
            _ => {}
        }
    }
    status
}

/// The path of the executable, as the process sees it.
///
/// # Errors
///
/// When the process has gone, is a kernel thread, or may not be looked at.
pub(super) fn exe(pid: u32) -> io::Result<PathBuf> {
    let path = fs::read_link(path(pid, "exe"))?;
    // The kernel marks an executable that was replaced since, as package upgrades do.
    Ok(match path.to_str() {
        Some(text) => PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)),
        None => path,
    })
}

/// The arguments; none for kernel threads and processes that wiped theirs.
///
/// # Errors
///
/// When the process has gone.
pub(super) fn cmdline(pid: u32) -> io::Result<Vec<String>> {
    Ok(parse_cmdline(&read(pid, "cmdline", CMDLINE_MAX)?))
}

fn parse_cmdline(bytes: &[u8]) -> Vec<String> {
    // A process that wrote its own title (setproctitle) leaves padding behind it.
    let end = bytes.iter().rposition(|&byte| byte != 0);
    let Some(end) = end else { return Vec::new() };
    bytes[..=end]
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The values of some environment variables, in the order asked for. Nothing else of the environment
/// is kept.
///
/// # Errors
///
/// When the process has gone, or may not be looked at.
pub(super) fn environment<const N: usize>(
    pid: u32,
    names: [&str; N],
) -> io::Result<[Option<String>; N]> {
    Ok(parse_environment(
        &read(pid, "environ", ENVIRON_MAX)?,
        names,
    ))
}

fn parse_environment<const N: usize>(bytes: &[u8], names: [&str; N]) -> [Option<String>; N] {
    names.map(|name| {
        bytes.split(|&byte| byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    })
}

/// Reads a small text file of the process.
///
/// # Errors
///
/// When the process has gone, or may not be looked at.
pub(super) fn text(pid: u32, name: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read(pid, name, SMALL_MAX)?).into_owned())
}

/// The pids of all processes, in the order of /proc.
///
/// # Errors
///
/// When /proc cannot be listed.
pub(super) fn pids() -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The children of a process. None where it has ended, or the kernel was built without `CONFIG_PROC_CHILDREN`
/// (Linux, Documentation/filesystems/proc.rst, section 3.7).
pub(super) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(path(pid, "task")) else {
        return Vec::new();
    };
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

fn read(pid: u32, name: &str, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path(pid, name))?
        .take(most)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    /// A name full of spaces and parentheses does not shift the fields behind it.
    #[test]
    fn parses_stat() {
        let line = b"42 (a) R (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 \
            9876 1 2 3 100 200 300 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 400 500 600 700 800 900 1 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.comm, "a) R (b");
        assert_eq!((stat.state, stat.ppid, stat.start), (b'S', 7, 9876));
        assert!(!stat.kernel_thread && !stat.is_dead());
    }

    /// This very process is described as the system describes it.
    #[test]
    fn reads_this_process() {
        let pid = std::process::id();
        let stat = stat(pid).unwrap();
        assert_eq!(stat.ppid, std::os::unix::process::parent_id());
        let status = status(pid).unwrap();
        assert_eq!(status.tgid, pid);
        // SAFETY: geteuid takes nothing and cannot fail.
        assert_eq!(status.uid, unsafe { libc::geteuid() });
        assert_eq!(exe(pid).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(cmdline(pid).unwrap(), std::env::args().collect::<Vec<_>>());
        assert!(pids().unwrap().any(|other| other == pid));
    }

    /// The innermost pid and the effective user are taken.
    #[test]
    fn parses_status() {
        let text = "Name:\tpython3\nTgid:\t900\nUid:\t0\t33\t0\t0\nNSpid:\t900\t12\t1\n";
        let expected = Status {
            tgid: 900,
            uid: 33,
            inner_pid: 1,
        };
        assert_eq!(parse_status(text), expected);
    }

    /// Empty arguments are kept; the padding behind a title is not.
    #[test]
    fn splits_command_lines() {
        assert_eq!(parse_cmdline(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(
            parse_cmdline(b"gunicorn: master [x:app]\0\0\0\0"),
            ["gunicorn: master [x:app]"]
        );
        assert_eq!(parse_cmdline(b"\0\0"), [""; 0]);
    }

    /// A variable is found by its whole name only.
    #[test]
    fn picks_variables() {
        let environ = b"XOTEL=1\0OTEL=a=b\0OTELX=2\0EMPTY=\0";
        assert_eq!(
            parse_environment(environ, ["OTEL", "EMPTY", "NONE"]),
            [Some("a=b".into()), Some(String::new()), None]
        );
    }

    proptest! {
        /// No contents of these files make their parsers panic.
        #[test]
        fn survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_stat(&bytes);
            let _ = parse_status(&String::from_utf8_lossy(&bytes));
            let _ = parse_cmdline(&bytes);
            let _ = parse_environment(&bytes, ["A", ""]);
        }
    }
}
