//! From the kernel's clock to the wall clock.

/// What to add to a time of `CLOCK_MONOTONIC` to get the time since the Unix epoch.
///
/// The policy has no clock: whoever wires the pipeline measures the offset, and measures it again
/// from time to time, because the wall clock is set and slewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset(i64);

impl ClockOffset {
    /// The offset from one reading of both clocks at the same moment, in nanoseconds.
    pub const fn from_readings(monotonic: u64, unix: u64) -> Self {
        Self(unix.wrapping_sub(monotonic) as i64)
    }

    /// The Unix time of a monotonic time, in nanoseconds.
    pub const fn to_unix(self, monotonic: u64) -> u64 {
        monotonic.saturating_add_signed(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reading that the offset was made from maps onto itself, and others keep their distance.
    #[test]
    fn keeps_distances() {
        let offset = ClockOffset::from_readings(1_000, 1_700_000_000_000_000_000);
        assert_eq!(offset.to_unix(1_000), 1_700_000_000_000_000_000);
        assert_eq!(offset.to_unix(1_007), 1_700_000_000_000_000_007);
        assert_eq!(ClockOffset::from_readings(500, 100).to_unix(10), 0);
    }
}
