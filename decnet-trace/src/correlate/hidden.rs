//! Requests that were read and not seen. Who they belong to cannot be known, but that they were there must be:
//! what they cause is not to be taken for what an earlier request of their connection caused.

/// The most of these that wait to be fetched.
const HIDDEN_MAX: usize = 1 << 14;

/// What is known of requests that were read out of sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The process that serves them.
    pub tgid: u32,
    /// The connection that they came by, the socket's inode number.
    pub connection: u64,
    /// Since when, or until when.
    pub when: When,
}

/// A time, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The first of them was read then, at the earliest.
    Since(u64),
    /// The connection is no more since then.
    Closed(u64),
}

/// Requests that were read out of sight, to be fetched.
#[derive(Debug, Default)]
pub(super) struct HiddenList {
    list: Vec<Hidden>,
    /// The latest time of one that found no room.
    lost: Option<u64>,
}

impl HiddenList {
    pub(super) fn push(&mut self, hidden: Hidden) {
        if self.list.len() < HIDDEN_MAX {
            self.list.push(hidden);
        } else if let When::Since(since) = hidden.when {
            self.lost = self.lost.max(Some(since));
        }
    }

    /// All of them, and the latest time of one that found no room.
    pub(super) fn take(&mut self) -> (Vec<Hidden>, Option<u64>) {
        (std::mem::take(&mut self.list), self.lost.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What finds no room is not forgotten altogether, and once fetched there is room again.
    #[test]
    fn bounded() {
        let mut all = HiddenList::default();
        let hidden = |since| Hidden {
            tgid: 1,
            connection: since,
            when: When::Since(since),
        };
        for since in 0..HIDDEN_MAX as u64 + 10 {
            all.push(hidden(since));
        }
        let (list, lost) = all.take();
        assert_eq!(list.len(), HIDDEN_MAX);
        assert_eq!(lost, Some(HIDDEN_MAX as u64 + 9));
        all.push(hidden(5));
        assert_eq!(all.take(), (vec![hidden(5)], None));
    }
}
