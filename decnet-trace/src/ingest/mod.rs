//! Records out of the CPUs' rings, in the order of their times.
//!
//! Each CPU has a ring of its own; a connection's operations may be spread over several. A round takes
//! all that the rings hold, and hands on what is older than the moment at which it began to look:
//! nothing older than that can still be in a ring that was looked at before another. Unless a ring was not
//! read to its end: a program may have been interrupted while it wrote a record, and those behind it
//! cannot be read before that one. Then a round hands on what the last one that read all may have.
//! Buffers are kept: a round allocates nothing once they have grown to what the load needs.

mod positions;

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};

use crate::{
    decode::timestamp,
    error::{Error, Result},
};
use positions::Positions;

/// How long a ring that cannot be read to its end holds up the others, in nanoseconds. A program that
/// is interrupted goes on when its CPU gets to it.
const STUCK_MAX: u64 = 2_000_000_000;

/// The reader of all rings.
pub struct Ingest {
    rings: Vec<(RingBuf<MapData>, Positions)>,
    /// Whether the last round read all rings to their ends.
    drained: bool,
    horizon: Horizon,
    epoll: OwnedFd,
    /// Records taken and not handed on, one behind the other.
    bytes: Vec<u8>,
    /// Where each of them is, and when it happened.
    order: Vec<Place>,
    /// What a round leaves for the next, while it is sorted out.
    spare: Vec<u8>,
}

/// Up to when all records have been taken.
#[derive(Debug, Default)]
struct Horizon {
    at: u64,
    /// Since when rings are not read to their ends.
    stuck: Option<u64>,
    /// How often they were waited for in vain.
    given_up: u64,
}

impl Horizon {
    /// A round that began at `now` took all that the rings held, or not: up to when it may hand on.
    /// `u64::MAX`: nothing comes after it.
    fn advance(&mut self, now: u64, drained: bool) -> u64 {
        let stuck = *self.stuck.get_or_insert(now);
        let is_over = !drained && (now == u64::MAX || now.saturating_sub(stuck) > STUCK_MAX);
        if drained || is_over {
            self.given_up += u64::from(is_over);
            self.stuck = None;
            self.at = now;
        }
        self.at
    }
}

/// A record in the buffer.
#[derive(Clone, Copy)]
struct Place {
    ts: u64,
    start: usize,
    len: usize,
}

impl Ingest {
    /// A reader of these rings.
    ///
    /// # Errors
    ///
    /// When the system has no file descriptor or no room for a mapping left.
    pub fn new(rings: Vec<RingBuf<MapData>>) -> Result<Self> {
        let refused =
            |error: io::Error| Error::failed(format!("cannot watch the rings for data: {error}"));
        let epoll = watch(&rings).map_err(refused)?;
        let rings = rings.into_iter().map(|ring| {
            // SAFETY: the ring keeps its descriptor open meanwhile.
            let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
            let positions = Positions::new(fd)?;
            Ok((ring, positions))
        });
        let rings = rings.collect::<io::Result<_>>().map_err(refused)?;
        Ok(Self {
            rings,
            drained: true,
            horizon: Horizon::default(),
            epoll,
            bytes: Vec::new(),
            order: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Sleeps for so long, or until the kernel side finds a ring a quarter full.
    pub fn wait(&self, at_most: Duration) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let millis = libc::c_int::try_from(at_most.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `event` has room for the one event that is asked for. An interrupted wait is a short
        // one, which does no harm.
        unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, millis) };
    }

    /// Takes what the rings hold; how many bytes that were.
    pub fn take(&mut self) -> usize {
        let Self {
            rings,
            drained,
            bytes,
            order,
            ..
        } = self;
        let before = bytes.len();
        *drained = true;
        for (ring, positions) in rings {
            loop {
                // First: what is reserved afterwards is younger than this round.
                let is_drained = positions.is_drained();
                if let Some(item) = ring.next() {
                    let start = bytes.len();
                    order.push(Place {
                        // What is too short to have a time is handed on first, to be refused.
                        ts: timestamp(&item).unwrap_or(0),
                        start,
                        len: item.len(),
                    });
                    bytes.extend_from_slice(&item);
                } else {
                    *drained &= is_drained;
                    break;
                }
            }
        }
        bytes.len() - before
    }

    /// Whether the last round read all rings to their ends.
    pub const fn is_drained(&self) -> bool {
        self.drained
    }

    /// How often a ring could not be read to its end for so long that it was not waited for any more: what
    /// was handed on since may be older than what was before.
    pub fn given_up(&self) -> u64 {
        self.horizon.given_up
    }

    /// Hands on what was taken, in the order of time, as far as it is of before `horizon`: nanoseconds
    /// of `CLOCK_MONOTONIC`, read before the records were taken. Less, where not all of them could be.
    /// Returns how many those were.
    pub fn hand_on(&mut self, horizon: u64, mut each: impl FnMut(&[u8])) -> usize {
        let horizon = self.horizon.advance(horizon, self.drained);
        // A merge sort: it finds the rings' runs, which are sorted already.
        self.order.sort_by_key(|place| place.ts);
        let due = self.order.partition_point(|place| place.ts < horizon);
        for place in &self.order[..due] {
            each(&self.bytes[place.start..place.start + place.len]);
        }
        self.spare.clear();
        self.order.drain(..due);
        for place in &mut self.order {
            let start = self.spare.len();
            self.spare
                .extend_from_slice(&self.bytes[place.start..place.start + place.len]);
            place.start = start;
        }
        std::mem::swap(&mut self.bytes, &mut self.spare);
        due
    }
}

/// An epoll instance that reports wake-ups of the rings. Edge-triggered: a ring that merely holds data
/// is no reason to wake.
fn watch(rings: &[RingBuf<MapData>]) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made it, and nobody else has it.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    for ring in rings {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        // SAFETY: both descriptors are open and `event` is initialised.
        let ret = unsafe {
            libc::epoll_ctl(
                epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                ring.as_raw_fd(),
                &raw mut event,
            )
        };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While a ring cannot be read to its end, nothing is handed on that may be younger than what is hidden in
    /// it; until it can be, or has been waited for long enough.
    #[test]
    fn hidden_records_are_waited_for() {
        let mut horizon = Horizon::default();
        assert_eq!(horizon.advance(1_000, true), 1_000);
        assert_eq!(horizon.advance(2_000, false), 1_000);
        assert_eq!(horizon.advance(3_000, false), 1_000);
        assert_eq!(horizon.advance(4_000, true), 4_000);
        assert_eq!(horizon.advance(5_000, false), 4_000);
        assert_eq!(horizon.advance(5_000 + STUCK_MAX, false), 4_000);
        assert_eq!(horizon.given_up, 0);
        let late = 5_001 + STUCK_MAX;
        assert_eq!(horizon.advance(late, false), late);
        assert_eq!(horizon.given_up, 1);
        assert_eq!(horizon.advance(late + 1, false), late);
        assert_eq!(horizon.advance(u64::MAX, true), u64::MAX);
    }

    /// At the end nothing is kept back, even where a ring cannot be read to its end at that moment alone.
    #[test]
    fn the_last_round_waits_for_nothing() {
        let mut horizon = Horizon::default();
        assert_eq!(horizon.advance(1_000, true), 1_000);
        assert_eq!(horizon.advance(u64::MAX, false), u64::MAX);
        assert_eq!(horizon.given_up, 1);
    }

    /// A ring that never was read to its end hands on nothing before it is given up.
    #[test]
    fn a_ring_that_is_stuck_from_the_start() {
        let mut horizon = Horizon::default();
        assert_eq!(horizon.advance(1_000, false), 0);
        assert_eq!(horizon.advance(2_000, false), 0);
        assert_eq!(horizon.given_up, 0);
    }
}
