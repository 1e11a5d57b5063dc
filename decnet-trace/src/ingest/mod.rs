//! Records out of the CPUs' rings, in the order of their times.
//!
//! Each CPU has a ring of its own; a connection's operations may be spread over several. A round takes
//! all that the rings hold, and hands on what is older than the moment at which it began to look:
//! nothing older than that can still be in a ring that was looked at before another. Buffers are
//! kept: a round allocates nothing once they have grown to what the load needs.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};

use crate::{
    decode::timestamp,
    error::{Error, Result},
};

/// The reader of all rings.
pub struct Ingest {
    rings: Vec<RingBuf<MapData>>,
    epoll: OwnedFd,
    /// Records taken and not handed on, one behind the other.
    bytes: Vec<u8>,
    /// Where each of them is, and when it happened.
    order: Vec<Place>,
    /// What a round leaves for the next, while it is sorted out.
    spare: Vec<u8>,
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
    /// When the system has no file descriptor left.
    pub fn new(rings: Vec<RingBuf<MapData>>) -> Result<Self> {
        let epoll = watch(&rings)
            .map_err(|error| Error::failed(format!("cannot watch the rings for data: {error}")))?;
        Ok(Self {
            rings,
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
        let before = self.bytes.len();
        for ring in &mut self.rings {
            while let Some(item) = ring.next() {
                let start = self.bytes.len();
                self.order.push(Place {
                    // What is too short to have a time is handed on first, to be refused.
                    ts: timestamp(&item).unwrap_or(0),
                    start,
                    len: item.len(),
                });
                self.bytes.extend_from_slice(&item);
            }
        }
        self.bytes.len() - before
    }

    /// Hands on what was taken, in the order of time, as far as it is of before `horizon`: nanoseconds
    /// of `CLOCK_MONOTONIC`, read before the records were taken. Returns how many those were.
    pub fn hand_on(&mut self, horizon: u64, mut each: impl FnMut(&[u8])) -> usize {
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
