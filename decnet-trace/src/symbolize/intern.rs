//! Equal frames as one allocation, for as long as something holds them.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::profile::Frame;

/// The frames in use.
#[derive(Debug)]
pub(super) struct Interner {
    frames: FxHashSet<Arc<Frame>>,
    sweep_at: usize,
}

/// Frames nobody holds any more are looked for when there are this many, at least.
const SWEEP_MIN: usize = 4096;

impl Default for Interner {
    fn default() -> Self {
        Self {
            frames: FxHashSet::default(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl Interner {
    /// The one allocation of this frame.
    pub(super) fn intern(&mut self, frame: Frame) -> Arc<Frame> {
        if let Some(known) = self.frames.get(&frame) {
            return known.clone();
        }
        if self.frames.len() >= self.sweep_at {
            self.frames.retain(|frame| Arc::strong_count(frame) > 1);
            self.sweep_at = (self.frames.len() * 2).max(SWEEP_MIN);
        }
        let frame = Arc::new(frame);
        self.frames.insert(frame.clone());
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture::native;

    /// Equal frames are one allocation; those let go do not pile up.
    #[test]
    fn frames_are_shared_and_let_go() {
        let mut interner = Interner::default();
        let kept = interner.intern(native("kept", "m"));
        for at in 0..10 * SWEEP_MIN {
            interner.intern(native(&at.to_string(), "m"));
        }
        assert!(interner.frames.len() <= SWEEP_MIN);
        assert!(Arc::ptr_eq(&kept, &interner.intern(native("kept", "m"))));
    }
}
