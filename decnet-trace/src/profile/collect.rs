//! Counts and named stacks become a profile.

use std::{sync::Arc, time::Duration};

use super::{Frame, FrameKind, Meta, Process, Profile, Sample, Thread, aggregate::Counts};
use crate::symbolize::Client;

/// Makes a profile of what was counted. Waits for the stacks that are still being named, at most
/// `patience`; those that are not named by then, or never were, read `[unresolved]`.
pub fn collect(counts: Counts, symbolizer: &Client, meta: Meta, patience: Duration) -> Profile {
    symbolizer.flush(patience);
    let named = symbolizer.take(counts.end);
    let unresolved: Arc<[Arc<Frame>]> =
        [Arc::new(Frame::marker(FrameKind::Native, "[unresolved]"))].into();
    let samples = counts
        .stacks
        .into_iter()
        .map(|counted| {
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
            Sample {
                process,
                thread,
                stack,
                count: counted.count,
                first: counted.first,
                last: counted.last,
            }
        })
        .collect();
    Profile { meta, samples }
}
