//! Walks the interpreter's own lists: interpreters, and the thread states of each.

use super::{
    layout::Layout,
    memory::{Memory, ReadError},
};

/// The most interpreters of a process that are walked.
const INTERPRETERS_MAX: usize = 256;

/// The most thread states of a process that are walked.
const THREADS_MAX: usize = 32_768;

/// glibc x86-64, `struct pthread.tid`; musl's.
const GLIBC_TID: u64 = 0x2d0;
const MUSL_TID: u64 = 0x30;

/// A thread state that an interpreter lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadState {
    /// Its address.
    pub(super) address: u64,
    /// Its interpreter.
    pub(super) interpreter: u64,
    /// The interpreter's number; 0 is the main one's.
    pub(super) interpreter_id: i64,
    /// `pthread_self` of its thread: the thread pointer.
    pub(super) thread_pointer: u64,
    /// The thread's id in its own pid namespace (3.11 on). After a fork, 3.11.0 still has the
    /// parent's.
    pub(super) native_id: Option<u32>,
}

/// Why the lists could not be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WalkError {
    /// Memory could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A list does not end.
    #[error("a list of {0} does not end")]
    Endless(&'static str),
}

/// The thread states of all interpreters of a process.
pub(super) fn thread_states(
    memory: &impl Memory,
    layout: &Layout,
    runtime: u64,
) -> Result<Vec<ThreadState>, WalkError> {
    let at = |base: u64, field: u32| memory.u64(base.wrapping_add(u64::from(field)));
    let mut found = Vec::new();
    let mut interpreters = 0;
    let mut interpreter = at(runtime, layout.runtime_interpreters_head)?;
    while interpreter != 0 {
        interpreters += 1;
        if interpreters > INTERPRETERS_MAX {
            return Err(WalkError::Endless("interpreters"));
        }
        let id = at(interpreter, layout.interp_id)?;
        let mut address = at(interpreter, layout.interp_threads_head)?;
        while address != 0 {
            if found.len() == THREADS_MAX {
                return Err(WalkError::Endless("thread states"));
            }
            let native_id = match Layout::get(layout.thread_native_thread_id) {
                Some(field) => u32::try_from(memory.u64(address.wrapping_add(field))?).ok(),
                None => None,
            };
            found.push(ThreadState {
                address,
                interpreter,
                interpreter_id: id.cast_signed(),
                thread_pointer: at(address, layout.thread_thread_id)?,
                native_id,
            });
            address = at(address, layout.thread_next)?;
        }
        interpreter = at(interpreter, layout.interp_next)?;
    }
    Ok(found)
}

/// Whether this is a thread's thread pointer: both C libraries keep it at its own address.
pub(super) fn is_thread_pointer(memory: &impl Memory, address: u64) -> bool {
    address != 0 && memory.u64(address) == Ok(address)
}

/// The thread's id in its own pid namespace, as its C library keeps it: the first of `alive` that
/// one of the known places names. Unlike the interpreter's, the C library's is right after a fork.
pub(super) fn libc_tid(
    memory: &impl Memory,
    thread_pointer: u64,
    alive: impl Fn(u32) -> bool,
) -> Option<u32> {
    if !is_thread_pointer(memory, thread_pointer) {
        return None;
    }
    [GLIBC_TID, MUSL_TID]
        .iter()
        .filter_map(|offset| memory.u32(thread_pointer.wrapping_add(*offset)).ok())
        .find(|tid| *tid != 0 && alive(*tid))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::{super::memory::tests::Image, *};

    /// Lists that run in circles or into unmapped memory end with an error.
    #[test]
    fn lists_end() {
        let layout = Layout::of_minor(11).unwrap();
        let mut bytes = vec![0; 0x4000];
        let mut set =
            |at: u32, value: u64| bytes[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        // The runtime at 0x1000, its one interpreter at 0x2000, a thread state at 0x3000 after itself.
        set(layout.runtime_interpreters_head, 0x2000);
        set(0x1000 + layout.interp_threads_head, 0x3000);
        set(0x2000 + layout.thread_next, 0x3000);
        let memory = Image(vec![(0x1000, bytes.clone())]);
        let endless = thread_states(&memory, layout, 0x1000);
        assert_eq!(endless, Err(WalkError::Endless("thread states")));
        bytes[0x2000 + layout.thread_next as usize..][..8]
            .copy_from_slice(&0x9000u64.to_le_bytes());
        let memory = Image(vec![(0x1000, bytes.clone())]);
        assert!(matches!(
            thread_states(&memory, layout, 0x1000),
            Err(WalkError::Read(ReadError::Unmapped(_)))
        ));
        bytes[0x2000 + layout.thread_next as usize..][..8].copy_from_slice(&0u64.to_le_bytes());
        let memory = Image(vec![(0x1000, bytes)]);
        assert_eq!(thread_states(&memory, layout, 0x1000).unwrap().len(), 1);
    }
}
