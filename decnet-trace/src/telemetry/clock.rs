//! Reads the clocks that the policy has none of.

use crate::policy::ClockOffset;

/// How often the clocks are read for one offset.
const READINGS: usize = 3;

/// What to add to `CLOCK_MONOTONIC` to get the Unix time, now. The wall clock is read between two
/// readings of the other; of a few tries the one with the shortest time between them counts.
pub fn unix_offset() -> ClockOffset {
    let mut best = (u64::MAX, ClockOffset::from_readings(0, 0));
    for _ in 0..READINGS {
        let before = read(libc::CLOCK_MONOTONIC);
        let unix = read(libc::CLOCK_REALTIME);
        let between = read(libc::CLOCK_MONOTONIC).saturating_sub(before);
        if between < best.0 {
            let offset = ClockOffset::from_readings(before + between / 2, unix);
            best = (between, offset);
        }
    }
    best.1
}

/// A clock's time, in nanoseconds.
pub fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec of ours to write to. Of the clocks asked for here both always
    // exist, and if one did not, the time would stay zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// A monotonic time of now becomes the wall clock's now.
    #[test]
    fn agrees_with_the_system() {
        let offset = unix_offset();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let want = now.map_or(0, |now| now.as_nanos() as u64);
        let have = offset.to_unix(read(libc::CLOCK_MONOTONIC));
        assert!(have.abs_diff(want) < 50_000_000, "{have} {want}");
    }
}
