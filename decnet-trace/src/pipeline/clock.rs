//! The clocks, read in one place; everything to the right of the rings is told the time.

use crate::policy::ClockOffset;

/// `CLOCK_MONOTONIC` in nanoseconds, as the kernel side stamps its records.
pub(super) fn monotonic() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// How the wall clock relates to the kernel side's stamps now.
pub(super) fn offset() -> ClockOffset {
    ClockOffset::from_readings(monotonic(), read(libc::CLOCK_REALTIME))
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is there to be written to, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
