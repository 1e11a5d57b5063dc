//! What a thread that is on no CPU runs, as the kernel side would read it if it ran.

use decnet_trace_common::{
    event::{PyFrame, Sample, sample_flags},
    limits::PYTHON_FRAMES_MAX,
};

use super::{
    check::PyProcess,
    frames::{self, End},
    memory::ProcessMemory,
    stack::holds_gil,
};

impl PyProcess {
    /// Reads the stack of the thread with this thread pointer: fills in what a [`Sample`] says of Python,
    /// and appends the frames. `false` where the thread runs no Python, or its state cannot be read.
    ///
    /// What is read is of one moment only if the thread does not run meanwhile; that is for the caller to
    /// find out.
    pub fn read_waiting(
        &self,
        thread_pointer: u64,
        sample: &mut Sample,
        found: &mut Vec<PyFrame>,
    ) -> bool {
        let memory = ProcessMemory::new(self.pid);
        let state = match self.place.read(&memory, thread_pointer) {
            None | Some(0) => return false,
            Some(state) => state,
        };
        sample.thread_state = state;
        if holds_gil(self, &memory, state) {
            sample.flags |= sample_flags::GIL;
        }
        let before = found.len();
        match frames::walk_marked(&memory, &self.kernel, state, PYTHON_FRAMES_MAX, found) {
            End::Complete => {}
            End::Truncated => sample.flags |= sample_flags::PYTHON_TRUNCATED,
            End::Broken => sample.flags |= sample_flags::PYTHON_BROKEN,
        }
        // At most `PYTHON_FRAMES_MAX`, which fits.
        sample.python = u16::try_from(found.len() - before).unwrap_or(u16::MAX);
        true
    }
}
