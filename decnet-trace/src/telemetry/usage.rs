//! What the agent itself costs: CPU time and memory, from `/proc/self`.

use std::{
    fs, io,
    time::{Duration, Instant},
};

/// The agent's own use of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// CPU time of all threads since the last reading (since the start at the first), in per cent of
    /// one core.
    pub cpu_percent: f64,
    /// CPU time of all threads since the start.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// The most resident memory so far, in bytes.
    pub rss_peak: u64,
}

/// Reads [`Usage`] time after time.
#[derive(Debug)]
pub struct SelfUsage {
    at: Instant,
    cpu: Duration,
}

impl SelfUsage {
    /// Begins to measure now.
    ///
    /// # Errors
    ///
    /// When `/proc/self` cannot be read.
    pub fn start() -> io::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            cpu: cpu_time()?,
        })
    }

    /// What was used since the last call.
    ///
    /// # Errors
    ///
    /// When `/proc/self` cannot be read.
    pub fn read(&mut self) -> io::Result<Usage> {
        let (now, cpu) = (Instant::now(), cpu_time()?);
        let wall = now.duration_since(self.at).as_secs_f64();
        let used = cpu.saturating_sub(self.cpu).as_secs_f64();
        *self = Self { at: now, cpu };
        let status = fs::read_to_string("/proc/self/status")?;
        Ok(Usage {
            cpu_percent: if wall > 0.0 { 100.0 * used / wall } else { 0.0 },
            cpu,
            rss: kib_of(&status, "VmRSS:")?,
            rss_peak: kib_of(&status, "VmHWM:")?,
        })
    }
}

/// CPU time of all threads: user and system, fields 14 and 15 of proc_pid_stat(5).
fn cpu_time() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let ticks = ticks_of(&stat).ok_or_else(|| malformed("/proc/self/stat"))?;
    // SAFETY: `sysconf` takes a constant and touches no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    Ok(Duration::from_nanos(
        ticks.saturating_mul(1_000_000_000 / per_second),
    ))
}

/// User and system ticks of a line of `/proc/PID/stat`; the command's name in it may hold anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn kib_of(status: &str, key: &str) -> io::Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| malformed("/proc/self/status"))
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{file} does not read as proc(5) says"),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::telemetry::clock;

    /// A name with spaces and parentheses does not shift the fields.
    #[test]
    fn reads_ticks_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 41 1 0 0 20 0 1 0 5";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (cut"), None);
        assert_eq!(ticks_of("7 (a) S 1 2"), None);
    }

    /// Work done between two readings shows as CPU time, and memory is what a process has.
    #[test]
    fn sees_its_own_work() {
        let mut usage = SelfUsage::start().unwrap();
        // CPU time: others may have the CPUs meanwhile.
        let used = || clock::read(libc::CLOCK_PROCESS_CPUTIME_ID);
        let begin = used();
        let mut x = 1u64;
        while used() < begin + 80_000_000 {
            x = std::hint::black_box(x.wrapping_mul(31));
        }
        let read = usage.read().unwrap();
        assert!(read.cpu_percent > 0.0, "{read:?}");
        assert!(read.rss > 1 << 20, "{read:?}");
        assert!(read.rss_peak >= read.rss, "{read:?}");
    }
}
