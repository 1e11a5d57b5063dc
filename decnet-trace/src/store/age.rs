//! How old rows are, whatever the wall clock does.
//!
//! A machine's wall clock leaps: it starts in 1970 and is set by the network, or somebody sets it. By
//! that clock everything in a store may at once be years old. The store has a clock of its own, which
//! only runs forward: by the machine's uptime while the machine runs, and from one start of the machine
//! to the next by the wall clock, if that says less than [`across_boots`].

use std::time::Duration;

/// The clocks, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock, in nanoseconds since the Unix epoch.
    pub unix: u64,
    /// Seconds since the machine was started, sleep included.
    pub uptime: u64,
}

impl Now {
    /// Reads the clocks.
    pub fn read() -> Self {
        Self {
            unix: crate::telemetry::clock::read(libc::CLOCK_REALTIME),
            uptime: crate::telemetry::clock::read(libc::CLOCK_BOOTTIME) / 1_000_000_000,
        }
    }
}

/// What the store says of the last minute in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Last {
    /// The wall clock then, in nanoseconds.
    pub(super) start: u64,
    /// The store's own clock then, in seconds.
    pub(super) clock: u64,
    /// The machine's uptime then, in seconds.
    pub(super) uptime: u64,
    /// Which start of the machine it was.
    pub(super) boot: String,
}

/// The store's own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgeClock {
    clock: u64,
    uptime: u64,
}

impl AgeClock {
    /// The clock of a store that is opened now.
    pub(super) fn open(last: Option<&Last>, now: &Now, boot: &str, max_age: Duration) -> Self {
        let clock = last.map_or(0, |last| {
            let passed = if last.boot == boot {
                now.uptime.saturating_sub(last.uptime)
            } else {
                let passed = now.unix.saturating_sub(last.start) / 1_000_000_000;
                passed.min(across_boots(max_age).as_secs())
            };
            last.clock.saturating_add(passed)
        });
        Self {
            clock,
            uptime: now.uptime,
        }
    }

    /// Its time, in seconds.
    pub(super) fn at(&self, now: &Now) -> u64 {
        self.clock + now.uptime.saturating_sub(self.uptime)
    }
}

/// The most that may seem to have passed while the machine was down: what was just stored before is
/// then kept an hour longer, or half of `max_age` where that is less.
fn across_boots(max_age: Duration) -> Duration {
    max_age
        .saturating_sub(Duration::from_hours(1))
        .max(max_age / 2)
}

/// Which start of the machine this is.
pub(super) fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn last() -> Last {
        Last {
            start: 1_800_000_000_000_000_000,
            clock: 1000,
            uptime: 500,
            boot: "a".into(),
        }
    }

    fn now(unix_seconds: u64, uptime: u64) -> Now {
        Now {
            unix: unix_seconds * 1_000_000_000,
            uptime,
        }
    }

    /// While the machine runs, its uptime alone counts, whatever the wall clock says.
    #[test]
    fn ignores_the_wall_clock() {
        for unix in [0, 1_800_000_000, 4_000_000_000] {
            let now_ = now(unix, 560);
            let clock = AgeClock::open(Some(&last()), &now_, "a", DAY);
            assert_eq!(clock.at(&now_), 1060);
            assert_eq!(clock.at(&now(0, 570)), 1070);
            assert_eq!(clock.at(&now(9_000_000_000, 570)), 1070);
        }
    }

    /// After a start of the machine the wall clock counts, but never backwards, and never so far that all
    /// would be too old at once.
    #[test]
    fn bounds_the_time_between_starts() {
        let seconds = |unix, max_age| {
            let now = now(unix, 5);
            AgeClock::open(Some(&last()), &now, "b", max_age).at(&now)
        };
        assert_eq!(seconds(1_800_000_300, DAY), 1300);
        assert_eq!(seconds(0, DAY), 1000);
        assert_eq!(seconds(9_000_000_000, DAY), 1000 + 23 * 3600);
        assert_eq!(seconds(9_000_000_000, Duration::from_secs(600)), 1300);
    }

    /// A store without a minute begins at zero.
    #[test]
    fn begins() {
        assert_eq!(AgeClock::open(None, &now(7, 7), "a", DAY).at(&now(7, 9)), 2);
    }
}
