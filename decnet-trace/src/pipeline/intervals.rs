//! Profiles of one stretch of time after another, for whoever watches.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    profile::{self, Profile, aggregate::Counts, collect::collect},
    symbolize::Client,
};

/// How many profiles may wait for their reader.
const WAITING_MAX: usize = 4;

/// How long naming the stacks of one may take: less than the shortest interval that makes sense.
const PATIENCE: Duration = Duration::from_millis(200);

/// The reader's end.
pub(super) struct Intervals {
    counts: Receiver<(Counts, profile::Meta)>,
    symbolizer: Client,
}

/// The pipeline's end.
pub(super) struct IntervalClock {
    every: Duration,
    begun: Instant,
    /// `None` once there is nothing more to come.
    out: Option<Sender<(Counts, profile::Meta)>>,
    lost: u64,
}

/// Both ends, for profiles of `every` so long.
pub(super) fn intervals(every: Duration, symbolizer: Client) -> (IntervalClock, Intervals) {
    let (out, counts) = bounded(WAITING_MAX);
    let clock = IntervalClock {
        every,
        begun: Instant::now(),
        out: Some(out),
        lost: 0,
    };
    (clock, Intervals { counts, symbolizer })
}

impl Intervals {
    /// The next profile, if it comes in that time.
    pub(super) fn next(&self, timeout: Duration) -> Option<Profile> {
        let (counts, meta) = self.counts.recv_timeout(timeout).ok()?;
        Some(collect(counts, &self.symbolizer, meta, PATIENCE))
    }

    /// The next profile, when it comes; `None` when there is nothing more to come.
    pub(super) fn wait(&self) -> Option<Profile> {
        let (counts, meta) = self.counts.recv().ok()?;
        Some(collect(counts, &self.symbolizer, meta, PATIENCE))
    }
}

impl IntervalClock {
    /// How long the stretch was that has just ended; `None` while it goes on.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Duration> {
        (now.saturating_duration_since(self.begun) >= self.every).then(|| self.cut(now))
    }

    /// Ends the stretch here, and says how long it was.
    pub(super) fn cut(&mut self, now: Instant) -> Duration {
        let duration = now.saturating_duration_since(self.begun);
        self.begun = now;
        duration
    }

    /// Hands a stretch's counts over. What the reader has no room for is counted.
    pub(super) fn send(&mut self, counts: Counts, meta: profile::Meta) {
        let samples: u64 = counts.stacks.iter().map(|counted| counted.count).sum();
        let sent = self.out.as_ref().map(|out| out.try_send((counts, meta)));
        if !matches!(sent, Some(Ok(()))) {
            self.lost += samples;
        }
    }

    /// Lets the reader know that there is nothing more to come.
    pub(super) fn end(&mut self) {
        self.out = None;
    }

    /// Samples that the reader had no room for.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::{
        profile::{Meta, aggregate::Counted},
        symbolize::{self, Limits, NoPython, StackId},
    };

    fn counts(count: u64) -> Counts {
        Counts {
            stacks: vec![Counted {
                id: StackId(0),
                again_of: None,
                tgid: 1,
                tid: None,
                count,
                first: 0,
                last: 0,
            }],
            end: StackId(1),
        }
    }

    fn meta() -> Meta {
        Meta {
            rate: 10,
            start: 0,
            duration: Duration::from_secs(1),
            command: String::new(),
            lost: 0,
            wall: false,
        }
    }

    /// A stretch ends when its time is over and the next begins there; a reader that does not keep up
    /// costs the newest ones, which are counted.
    #[test]
    fn stretches_follow_each_other() {
        let (client, _) = symbolize::spawn(Limits::default(), Box::new(NoPython)).unwrap();
        let every = Duration::from_secs(1);
        let (mut clock, reader) = intervals(every, client);
        let begun = clock.begun;
        assert_eq!(clock.ended(begun + every / 2), None);
        assert_eq!(clock.ended(begun + every * 2), Some(every * 2));
        assert_eq!(clock.ended(begun + every * 2), None);
        for count in 1..=WAITING_MAX as u64 + 1 {
            clock.send(counts(count), meta());
        }
        assert_eq!(clock.lost(), WAITING_MAX as u64 + 1);
        for count in 1..=WAITING_MAX as u64 {
            assert_eq!(reader.next(Duration::ZERO).unwrap().total(), count);
        }
        assert!(reader.next(Duration::ZERO).is_none());
        clock.send(counts(9), meta());
        clock.end();
        assert_eq!(reader.wait().unwrap().total(), 9);
        assert!(reader.wait().is_none());
    }
}
