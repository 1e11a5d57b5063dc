//! Counts and named stacks become a profile.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;

use super::{Frame, FrameKind, Meta, Process, Profile, Sample, Thread, aggregate::Counts};
use crate::symbolize::{Client, StackId};

/// Makes a profile of what was counted. Waits for the stacks that are still being named, at most
/// `patience`; those that are not named by then, or never were, read `[unresolved]`.
pub fn collect(counts: Counts, symbolizer: &Client, meta: Meta, patience: Duration) -> Profile {
    symbolizer.flush(patience);
    let named = symbolizer.take(counts.end);
    let unresolved: Arc<[Arc<Frame>]> =
        [Arc::new(Frame::marker(FrameKind::Native, "[unresolved]"))].into();
    let mut samples: Vec<Sample> = Vec::with_capacity(counts.stacks.len());
    // Where those are that others may be the same as.
    let mut places: FxHashMap<StackId, usize> = FxHashMap::default();
    for counted in counts.stacks {
        if let Some(earlier) = counted.again_of
            && let Some(sample) = places.get(&earlier).and_then(|&at| samples.get_mut(at))
        {
            let (now, before) = (named.get(&counted.id), named.get(&earlier));
            let is_same = match (now, before) {
                (Some(now), Some(before)) => now.is_again(before),
                (now, _) => now.is_none(),
            };
            if is_same {
                sample.count += counted.count;
                sample.first = sample.first.min(counted.first);
                sample.last = sample.last.max(counted.last);
                continue;
            }
        }
        let (process, thread, stack) = match named.get(&counted.id) {
            Some(stack) => (
                stack.process.clone(),
                stack.thread.clone(),
                stack.frames.clone(),
            ),
            None => (
                Arc::new(Process {
                    tgid: counted.tgid,
                    command: "".into(),
                }),
                counted.tid.map(|tid| Thread {
                    tid,
                    name: "".into(),
                }),
                unresolved.clone(),
            ),
        };
        places.insert(counted.id, samples.len());
        samples.push(Sample {
            process,
            thread,
            stack,
            count: counted.count,
            first: counted.first,
            last: counted.last,
        });
    }
    Profile { meta, samples }
}
