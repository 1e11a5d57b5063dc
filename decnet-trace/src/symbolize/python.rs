//! What symbolizing asks of whoever reads CPython's code objects.

use std::sync::Arc;

use decnet_trace_common::event::PyFrame;

/// Where a Python frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonLocation {
    /// The function's name (`co_qualname`, or `co_name` before CPython 3.11).
    pub name: Arc<str>,
    /// The source file (`co_filename`).
    pub file: Arc<str>,
    /// The line that was running; 0 where unknown.
    pub line: u32,
    /// The line on which the function begins (`co_firstlineno`); 0 where unknown.
    pub first_line: u32,
}

impl PythonLocation {
    /// Whether this is code of the interpreter's own, which its programs do not see: between a class that
    /// is called and its `__init__`, 3.12 on have a frame for what comes after (`_Py_InitCleanup`,
    /// Python/specialize.c), whose file is called like its function.
    pub fn is_internal(&self) -> bool {
        &*self.name == "__init__" && &*self.file == "__init__"
    }
}

/// Reads Python frames out of traced processes. Called on the symbolizer's thread, soon after the
/// sample, while the code objects are likely to be alive.
pub trait PythonFrames: Send {
    /// Appends to `found` where each frame is, in their order; `None` where its code object cannot be
    /// read any more, or is no code object.
    fn resolve(&mut self, tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>);

    /// A process ended or executed another program: what is known of it is void.
    fn process_ended(&mut self, tgid: u32);
}

/// No Python: every frame is unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPython;

impl PythonFrames for NoPython {
    fn resolve(&mut self, _tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>) {
        found.resize(found.len() + frames.len(), None);
    }

    fn process_ended(&mut self, _tgid: u32) {}
}
