//! Requests of a process whose contexts nobody knows: that were never answered, or not seen, or answered in
//! a context that is not certain. What they caused must not be taken for what another request did.

use std::collections::{BTreeSet, VecDeque};

/// How many are remembered of a process, the youngest ones. Of a request from before the youngest that was
/// forgotten, nothing is said any more but what was done in its very own context.
const UNANSWERED_MAX: usize = 1 << 12;

/// Requests of a process whose contexts nobody knows.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    /// The connection and the start of each.
    starts: BTreeSet<(u64, u64)>,
    /// The same and their ends, in the order in which they were told.
    order: VecDeque<Span>,
    /// The latest start and the latest end of those that were forgotten.
    horizon: Option<(u64, u64)>,
    forgotten: u64,
}

/// The time of a request.
#[derive(Clone, Copy, Debug)]
struct Span {
    connection: u64,
    start: u64,
    end: u64,
}

impl Unanswered {
    /// A request came by this connection and was begun at `start`, or later, and it or one like it was
    /// under way until `end`.
    pub(super) fn add(&mut self, connection: u64, start: u64, end: u64) {
        if !self.starts.insert((connection, start)) {
            let is_it = |span: &&mut Span| (span.connection, span.start) == (connection, start);
            if end > start
                && let Some(span) = self.order.iter_mut().rev().find(is_it)
            {
                span.end = span.end.max(end);
            }
            return;
        }
        self.order.push_back(Span {
            connection,
            start,
            end,
        });
        if self.order.len() > UNANSWERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.starts.remove(&(oldest.connection, oldest.start));
            self.forget(oldest.start, oldest.end);
            self.forgotten += 1;
        }
    }

    /// Any requests may have been that are not known, from before then.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        let (known_start, known_end) = self.horizon.unwrap_or_default();
        self.horizon = Some((start.max(known_start), end.max(known_end)));
    }

    /// The connection is no more: what was open on it without an end ended then.
    pub(super) fn closed(&mut self, connection: u64, at: u64) {
        for span in &mut self.order {
            if span.connection == connection && span.end == u64::MAX {
                span.end = at.max(span.start);
            }
        }
    }

    /// Whether a context whose youngest ancestor below a request's own was made at `made` may be that of one of
    /// these instead. A server may start a request from the context of one before it on the same connection
    /// (where it waited behind that, or is read by what that one set up), so in a copy of that, made when it was
    /// read or later. `start` is when the other was read.
    pub(super) fn may_descend(&self, connection: u64, start: u64, made: u64) -> bool {
        if self.horizon.is_some_and(|(horizon, _)| start <= horizon) {
            return true;
        }
        start <= made
            && self
                .starts
                .range((connection, start)..=(connection, made))
                .next()
                .is_some()
    }

    /// Whether one of these, of any connection, was under way at a time.
    pub(super) fn overlap(&self, at: u64) -> bool {
        self.horizon.is_some_and(|(_, end)| at <= end)
            || self
                .order
                .iter()
                .any(|span| span.start <= at && at <= span.end)
    }

    /// How many were forgotten for want of room.
    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request descends from one before it on its connection, if it does, and in a context from after its
    /// start.
    #[test]
    fn descent() {
        let mut all = Unanswered::default();
        all.add(1, 30, 40);
        assert!(all.may_descend(1, 10, 31), "made for it");
        assert!(all.may_descend(1, 10, 50), "or by it, or queued behind");
        assert!(!all.may_descend(1, 10, 29), "older than it");
        assert!(!all.may_descend(1, 31, 50), "of a request behind it");
        assert!(!all.may_descend(2, 10, 31), "another connection");
        assert!(!all.may_descend(1, 31, 20), "no time at all");
        all.add(2, 30, u64::MAX);
        assert!(all.overlap(30) && all.overlap(41) && !all.overlap(29));
        all.closed(2, 50);
        assert!(all.overlap(50) && !all.overlap(51));
    }

    /// What is forgotten for want of room is counted, and anything may descend from it.
    #[test]
    fn forgotten_ones_may_be_anything() {
        let mut all = Unanswered::default();
        let max = UNANSWERED_MAX as u64;
        for n in 0..max {
            all.add(n, 10 + n, 20 + n);
            all.add(n, 10 + n, 20 + n);
        }
        assert!(!all.may_descend(max + 1, 5, 1 << 40) && !all.overlap(5));
        assert_eq!(all.forgotten(), 0);
        all.add(max, 10 + max, 20 + max);
        assert_eq!(all.forgotten(), 1);
        assert!(all.may_descend(max + 1, 10, 11) && all.overlap(5));
        assert!(
            !all.may_descend(max + 1, 11, 12),
            "younger than all of them"
        );
        assert_eq!(all.order.len(), all.starts.len());
    }
}
