//! What the agent needed for a moment and needs no more goes back to the system.
//!
//! Reading what a process runs takes tens of MiB, and spans are made in one thread and freed in another: the C
//! library keeps what lies free between them.

use std::time::{Duration, Instant};

/// How long after the start for the first time: services' source files have been read for the second time by then.
const FIRST: Duration = Duration::from_secs(8);

/// How long from one time to the next.
const EVERY: Duration = Duration::from_secs(60);

/// Gives memory back time after time.
#[derive(Debug)]
pub struct Giveback {
    next: Instant,
}

impl Giveback {
    /// Begins now.
    pub fn new(now: Instant) -> Self {
        Self { next: now + FIRST }
    }

    /// Gives back what is free, when it is due. Others that allocate meanwhile wait: for some milliseconds the first
    /// time, for less after that.
    pub fn tick(&mut self, now: Instant) {
        if now >= self.next {
            self.next = now + EVERY;
            trim();
        }
    }
}

/// Gives the pages that nothing is allocated in back to the system: `malloc_trim(3)`. Other C libraries than the GNU
/// one have nothing of the kind.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number and may be called from any thread at any time; it touches free memory alone.
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::telemetry::usage::SelfUsage;

    /// What lies free between what is in use is resident until it is given back, which is done when it is due and not
    /// before.
    #[test]
    fn free_memory_goes_back() {
        const PIECES: usize = 64 << 10;
        const SIZE: usize = 1 << 10;
        let mut usage = SelfUsage::start().unwrap();
        let mut resident = || usage.read().unwrap().rss as usize;
        let begin = Instant::now();
        let mut giveback = Giveback::new(begin);
        let mut pieces: Vec<Box<[u8]>> = (0..PIECES).map(|_| vec![1; SIZE].into()).collect();
        let mut at = 0;
        pieces.retain(|_| {
            at += 1;
            at % 64 == 0
        });
        giveback.tick(begin + FIRST - Duration::from_millis(1));
        let before = resident();
        giveback.tick(begin + FIRST);
        let after = resident();
        assert_eq!(pieces.len(), PIECES / 64);
        assert!(after + PIECES * SIZE / 2 < before, "{before} {after}");
        assert_eq!(giveback.next, begin + FIRST + EVERY);
    }
}
