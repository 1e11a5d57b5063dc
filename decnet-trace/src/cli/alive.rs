//! Whether processes live still, however often their numbers are used again.

use std::os::fd::OwnedFd;

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Some processes, by handles of their own.
pub(super) struct Alive(Vec<OwnedFd>);

impl Alive {
    /// Takes hold of processes; of those that are gone, nothing is kept.
    pub(super) fn of(pids: &[u32]) -> Self {
        let handles = pids.iter().filter_map(|&pid| {
            let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        });
        Self(handles.collect())
    }

    /// Whether any of them lives; zombies do not.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|handle| {
            let mut ended = [PollFd::new(handle, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // A handle becomes readable when its process ends.
            !matches!(poll(&mut ended, Some(&now)), Ok(1..))
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::process::Command;

    use super::*;

    /// One that ended is gone though nobody has waited for it, and one that never was is no matter.
    #[test]
    fn ended_processes_are_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let alive = Alive::of(&[child.id(), 4_194_305, u32::MAX, 0]);
        assert!(alive.any());
        child.kill().unwrap();
        while alive.any() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!Alive::of(&[]).any());
    }
}
