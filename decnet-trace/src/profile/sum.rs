//! Profiles of one stretch of time after another become one.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Frame, Profile, Sample, Thread};

/// What makes samples of several profiles the same.
type Key = (u32, Arc<str>, Option<Thread>, Arc<[Arc<Frame>]>);

/// The sum of profiles.
#[derive(Debug)]
pub struct Sum {
    places: FxHashMap<Key, usize>,
    samples: Vec<Sample>,
    stacks_max: usize,
    /// Samples of stacks beyond that.
    dropped: u64,
}

impl Sum {
    /// Of none yet; it keeps at most `stacks_max` distinct stacks.
    pub fn new(stacks_max: usize) -> Self {
        Self {
            places: FxHashMap::default(),
            samples: Vec::new(),
            stacks_max,
            dropped: 0,
        }
    }

    /// Adds samples.
    pub fn add(&mut self, samples: Vec<Sample>) {
        for sample in samples {
            let key = (
                sample.process.tgid,
                Arc::clone(&sample.process.command),
                sample.thread.clone(),
                Arc::clone(&sample.stack),
            );
            if let Some(&place) = self.places.get(&key) {
                let known = &mut self.samples[place];
                known.count += sample.count;
                known.first = known.first.min(sample.first);
                known.last = known.last.max(sample.last);
            } else if self.samples.len() < self.stacks_max {
                self.places.insert(key, self.samples.len());
                self.samples.push(sample);
            } else {
                self.dropped += sample.count;
            }
        }
    }

    /// All of them with the last one, which says what there is to say of the whole.
    pub fn finish(mut self, last: Profile) -> Profile {
        self.add(last.samples);
        let mut meta = last.meta;
        meta.lost += self.dropped;
        Profile {
            meta,
            samples: self.samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

    /// Equal stacks of equal threads are one, with the time from the first to the last; no sample is
    /// missing.
    #[test]
    fn adds_up() {
        let profile = fixture::busy();
        let mut sum = Sum::new(100);
        let mut later = profile.samples.clone();
        for sample in &mut later {
            sample.last += 1_000_000;
        }
        later[0].process = Arc::new(crate::profile::Process {
            tgid: 9,
            command: "other".into(),
        });
        sum.add(later);
        let whole = sum.finish(profile.clone());
        assert_eq!(whole.total(), 2 * profile.total());
        assert_eq!(whole.samples.len(), profile.samples.len() + 1);
        assert_eq!(whole.samples[1].count, 2 * profile.samples[1].count);
        assert_eq!(whole.samples[1].first, profile.samples[1].first);
        assert_eq!(whole.samples[1].last, profile.samples[1].last + 1_000_000);
    }

    /// Stacks beyond the bound are dropped, counted, and said; known ones go on counting.
    #[test]
    fn is_bounded() {
        let profile = fixture::busy();
        let mut sum = Sum::new(2);
        sum.add(profile.samples.clone());
        let whole = sum.finish(profile.clone());
        assert_eq!(whole.samples.len(), 2);
        let lost = whole.meta.lost - profile.meta.lost;
        assert_eq!(whole.total() + lost, 2 * profile.total());
    }
}
