//! Where a thread keeps its `PyThreadState*`: found once per process, from outside.
//!
//! * Up to 3.14 CPython keeps it under a thread-specific key, `_PyRuntime.autoTSSkey`, also while
//!   the thread has released the GIL. (3.12 to 3.14 have it in thread-local storage too, in
//!   `_Py_tss_tstate`; but that is NULL while the GIL is released, so it is not used.)
//! * From 3.15 on it is thread-local storage, `_Py_tss_gilstate`, with `_Py_tss_tstate` beside it.
//!
//! Whatever the symbols and the table say, a place counts only when it holds the thread state that
//! the interpreter's own list names for that thread, in every thread looked at.

use rustc_hash::FxHashMap;

use super::{interpreter::Interpreter, layout::Layout, memory::Memory};

/// Where a thread's `PyThreadState*` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From the thread pointer, the pointer to the block that the offset is in; `None` for the
    /// thread pointer itself.
    pub(super) block: Option<u16>,
    /// The offset.
    pub(super) offset: i64,
}

/// The thread states that the interpreter lists, by the thread pointer of their threads. A thread
/// has several where it has run in several interpreters.
pub(super) type Listed = FxHashMap<u64, Vec<u64>>;

/// glibc x86-64, `struct pthread`: `specific_1stblock`, 32 entries of {seq, data}; behind it
/// `specific`, the pointers to blocks of 32.
const GLIBC_FIRST_BLOCK: u32 = 0x310;
const GLIBC_BLOCK_KEYS: u32 = 32;

/// musl x86-64, `struct pthread`: `tsd`, a pointer to an array of pointers.
const MUSL_BLOCK: u16 = 0x80;

/// `PTHREAD_KEYS_MAX`
const KEYS_MAX: u32 = 1024;

/// How far around the table's offset `autoTSSkey` is looked for, in bytes: patch releases and build
/// options move it.
const KEY_WINDOW: u32 = 1024;

/// How far below the thread pointer thread-local storage is looked through, in bytes.
const TLS_WINDOW: usize = 32 << 10;

/// How far around the known place the first block of keys is looked for, in bytes.
const BLOCK_WINDOW: u32 = 0x300;

/// What looking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// Found, and right in every thread.
    At(Place),
    /// Several places are right as yet; another look later may tell.
    Ambiguous,
    /// Found nowhere.
    Nowhere,
}

impl Place {
    /// The `PyThreadState*` of the thread with this thread pointer, or 0.
    pub(super) fn read(self, memory: &impl Memory, thread_pointer: u64) -> Option<u64> {
        let base = match self.block {
            Some(block) => match memory
                .u64(thread_pointer.wrapping_add(u64::from(block)))
                .ok()?
            {
                0 => return Some(0),
                base => base,
            },
            None => thread_pointer,
        };
        memory.u64(base.wrapping_add_signed(self.offset)).ok()
    }

    /// Whether it is right: in one thread at least the listed state, and no stranger in any. (A
    /// sub-interpreter's thread state is listed under the thread that made it, whichever runs it.)
    fn is_right(self, memory: &impl Memory, listed: &Listed) -> bool {
        let mut right = false;
        for (thread_pointer, states) in listed {
            match self.read(memory, *thread_pointer) {
                Some(0) | None => {}
                Some(state) if states.contains(&state) => right = true,
                Some(state) if listed.values().flatten().any(|known| *known == state) => {}
                Some(_) => return false,
            }
        }
        right
    }
}

/// Looks for the place.
pub(super) fn find(
    memory: &impl Memory,
    interpreter: &Interpreter,
    layout: &Layout,
    listed: &Listed,
) -> Search {
    match Layout::get(layout.runtime_auto_tss_key) {
        Some(key) => match by_key(
            memory,
            interpreter.runtime,
            key,
            layout.runtime_size,
            listed,
        ) {
            Some(place) => Search::At(place),
            None => Search::Nowhere,
        },
        None => by_tls(memory, interpreter, listed),
    }
}

/// Through `autoTSSkey`, at the table's offset or, failing that, around it.
fn by_key(
    memory: &impl Memory,
    runtime: u64,
    offset: u64,
    size: u32,
    listed: &Listed,
) -> Option<Place> {
    // Py_tss_t is { int is_initialized; pthread_key_t key; }
    let key_at = |offset: u64| {
        let word = memory.u64(runtime.wrapping_add(offset)).ok()?;
        let (initialized, key) = (word as u32, (word >> 32) as u32);
        (initialized == 1 && key < KEYS_MAX).then_some(key)
    };
    let known = |key: u32| {
        places(key)
            .into_iter()
            .find(|place| place.is_right(memory, listed))
    };
    if let Some(key) = key_at(offset) {
        if let Some(place) = known(key) {
            return Some(place);
        }
        // A libc whose struct differs.
        if let Some(place) = shifted(key).find(|place| place.is_right(memory, listed)) {
            return Some(place);
        }
    }
    (1..KEY_WINDOW / 4)
        .flat_map(|step| {
            [
                offset.checked_add(u64::from(step) * 4),
                offset.checked_sub(u64::from(step) * 4),
            ]
        })
        .flatten()
        .filter(|offset| offset + 8 <= u64::from(size))
        .find_map(|offset| known(key_at(offset)?))
}

/// Where the C libraries keep the value of a thread-specific key.
fn places(key: u32) -> Vec<Place> {
    let mut places = Vec::with_capacity(2);
    if key < GLIBC_BLOCK_KEYS {
        places.push(Place {
            block: None,
            offset: i64::from(GLIBC_FIRST_BLOCK + key * 16 + 8),
        });
    } else {
        let table = GLIBC_FIRST_BLOCK + GLIBC_BLOCK_KEYS * 16;
        places.push(Place {
            block: u16::try_from(table + key / GLIBC_BLOCK_KEYS * 8).ok(),
            offset: i64::from(key % GLIBC_BLOCK_KEYS * 16 + 8),
        });
    }
    places.push(Place {
        block: Some(MUSL_BLOCK),
        offset: i64::from(key * 8),
    });
    places
}

/// The places of a key in a glibc whose `struct pthread` is laid out otherwise.
fn shifted(key: u32) -> impl Iterator<Item = Place> {
    let first = GLIBC_FIRST_BLOCK - BLOCK_WINDOW;
    let last = if key < GLIBC_BLOCK_KEYS {
        GLIBC_FIRST_BLOCK + BLOCK_WINDOW
    } else {
        first
    };
    (first..last).step_by(8).map(move |block| Place {
        block: None,
        offset: i64::from(block + key * 16 + 8),
    })
}

/// Through thread-local storage: `_Py_tss_gilstate`.
fn by_tls(memory: &impl Memory, interpreter: &Interpreter, listed: &Listed) -> Search {
    let code = |symbol| {
        let mut bytes = [0; 64];
        memory.read(interpreter.address(symbol)?, &mut bytes).ok()?;
        tls_access(&bytes)
    };
    let gilstate = code("PyGILState_GetThisThreadState");
    if let Some(TlsAccess::ThreadPointer(offset)) = gilstate {
        let place = Place {
            block: None,
            offset: i64::from(offset),
        };
        if place.is_right(memory, listed) {
            return Search::At(place);
        }
    }
    let found = scan_tls(memory, listed);
    match *found.as_slice() {
        [] => Search::Nowhere,
        [offset] if listed.len() > 1 => Search::At(Place {
            block: None,
            offset,
        }),
        _ => {
            // Two variables of one module: which is which, their offsets in it tell.
            let Some((TlsAccess::Module(gilstate), TlsAccess::Module(current))) =
                gilstate.zip(code("_PyThreadState_GetCurrent"))
            else {
                return Search::Ambiguous;
            };
            let distance = i64::from(gilstate) - i64::from(current);
            let pair = found
                .iter()
                .find(|offset| found.contains(&(**offset - distance)));
            match (pair, found.as_slice()) {
                (Some(offset), _) if distance != 0 => Search::At(Place {
                    block: None,
                    offset: *offset,
                }),
                // The thread has released the GIL: only the one that outlasts this is left.
                (None, [offset]) => Search::At(Place {
                    block: None,
                    offset: *offset,
                }),
                _ => Search::Ambiguous,
            }
        }
    }
}

/// The offsets below the thread pointer that hold the listed state in every thread.
fn scan_tls(memory: &impl Memory, listed: &Listed) -> Vec<i64> {
    let mut common: Option<Vec<i64>> = None;
    for (thread_pointer, states) in listed {
        let mut offsets = Vec::new();
        let mut page = [0; 4096];
        for below in (4096..=TLS_WINDOW).step_by(4096) {
            let Some(start) = thread_pointer.checked_sub(below as u64) else {
                break;
            };
            if memory.read(start, &mut page).is_err() {
                break;
            }
            for (index, word) in page.as_chunks::<8>().0.iter().enumerate() {
                if states.contains(&u64::from_le_bytes(*word)) {
                    offsets.push((index * 8) as i64 - below as i64);
                }
            }
        }
        match &mut common {
            None => common = Some(offsets),
            Some(common) => common.retain(|offset| offsets.contains(offset)),
        }
    }
    common.unwrap_or_default()
}

/// How a function that does nothing else reads a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsAccess {
    /// At this offset from the thread pointer.
    ThreadPointer(i32),
    /// At this offset in its module's thread-local block.
    Module(i32),
}

/// Reads the one load of such a function (x86-64): `mov %fs:disp32,%rax` in a program, or
/// `call __tls_get_addr` and `mov disp(%rax),%rax` in a library.
fn tls_access(code: &[u8]) -> Option<TlsAccess> {
    let word = |at: usize| Some(i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?));
    let end = memchr::memchr(0xc3, code)?;
    let find =
        |pattern: &[u8]| memchr::memmem::find(&code[..end], pattern).map(|at| at + pattern.len());
    if let Some(at) = find(&[0x64, 0x48, 0x8b, 0x04, 0x25]) {
        return word(at).map(TlsAccess::ThreadPointer);
    }
    let call = memchr::memchr(0xe8, &code[..end])?;
    let loads = code.get(call + 5..end)?;
    if let Some(at) = memchr::memmem::find(loads, &[0x48, 0x8b, 0x80]) {
        return word(call + 5 + at + 3).map(TlsAccess::Module);
    }
    let at = memchr::memmem::find(loads, &[0x48, 0x8b, 0x40])?;
    Some(TlsAccess::Module(i32::from(*loads.get(at + 3)? as i8)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::{super::memory::tests::Image, *};

    /// Memory with 64-bit words set.
    fn image(words: &[(u64, u64)]) -> Image {
        let mut bytes = vec![0; 0x8000];
        for (address, value) in words {
            let at = usize::try_from(address - 0x10_0000).unwrap();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        Image(vec![(0x10_0000, bytes)])
    }

    const RUNTIME: u64 = 0x10_0000;
    const FIRST: u64 = 0x10_4000;
    const SECOND: u64 = 0x10_6000;

    fn listed() -> Listed {
        [(FIRST, vec![0xaaa0]), (SECOND, vec![0xbbb0, 0xccc0])]
            .into_iter()
            .collect()
    }

    fn tss(key: u64) -> u64 {
        key << 32 | 1
    }

    /// A key of glibc's first block, at the table's offset.
    #[test]
    fn glibc_key() {
        let slot = 0x310 + 3 * 16 + 8;
        let memory = image(&[
            (RUNTIME + 600, tss(3)),
            (FIRST + slot, 0xaaa0),
            (SECOND + slot, 0xccc0),
        ]);
        let place = by_key(&memory, RUNTIME, 600, 4096, &listed()).unwrap();
        assert_eq!(
            place,
            Place {
                block: None,
                offset: slot.cast_signed()
            }
        );
        assert_eq!(place.read(&memory, SECOND), Some(0xccc0));
    }

    /// A key beyond glibc's first block is reached through the pointer to its block.
    #[test]
    fn glibc_second_block() {
        let memory = image(&[
            (RUNTIME + 600, tss(33)),
            (FIRST + 0x518, 0x10_7000),
            (0x10_7000 + 24, 0xaaa0),
        ]);
        let place = by_key(&memory, RUNTIME, 600, 4096, &listed()).unwrap();
        assert_eq!(
            place,
            Place {
                block: Some(0x518),
                offset: 24
            }
        );
        // The second thread never had that block.
        assert_eq!(place.read(&memory, SECOND), Some(0));
    }

    /// musl keeps all keys behind one pointer.
    #[test]
    fn musl_key() {
        let memory = image(&[
            (RUNTIME + 600, tss(2)),
            (FIRST + 0x80, 0x10_7000),
            (0x10_7010, 0xaaa0),
        ]);
        let place = by_key(&memory, RUNTIME, 600, 4096, &listed()).unwrap();
        assert_eq!(
            place,
            Place {
                block: Some(0x80),
                offset: 16
            }
        );
    }

    /// A key that another patch release keeps elsewhere is found, and a word that only looks like a
    /// key is not taken for it.
    #[test]
    fn moved_key() {
        let slot = 0x310 + 8;
        let memory = image(&[
            (RUNTIME + 600, tss(9)),
            (RUNTIME + 660, tss(0)),
            (FIRST + slot, 0xaaa0),
        ]);
        let place = by_key(&memory, RUNTIME, 600, 4096, &listed()).unwrap();
        assert_eq!(place.offset, slot.cast_signed());
    }

    /// A place that holds a stranger's pointer in any thread is wrong.
    #[test]
    fn one_wrong_thread_is_enough() {
        let slot = 0x310 + 8;
        let memory = image(&[
            (RUNTIME + 600, tss(0)),
            (FIRST + slot, 0xaaa0),
            (SECOND + slot, 0xddd0),
        ]);
        assert_eq!(by_key(&memory, RUNTIME, 600, 4096, &listed()), None);
    }

    /// Thread-local storage: only the offset that is right in both threads remains.
    #[test]
    fn scans_tls() {
        let memory = image(&[
            (FIRST - 0x28, 0xaaa0),
            (FIRST - 0x20, 0xaaa0),
            (SECOND - 0x28, 0xbbb0),
        ]);
        assert_eq!(scan_tls(&memory, &listed()), [-0x28]);
    }

    /// The loads of real builds: Debian's python3.15 and its libpython3.15.
    #[test]
    fn reads_the_load() {
        let program = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x64, 0x48, 0x8b, 0x04, 0x25, 0xd8, 0xff, 0xff, 0xff, 0xc3,
        ];
        assert_eq!(tls_access(&program), Some(TlsAccess::ThreadPointer(-0x28)));
        let library = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x3d, 0x61, 0xa6, 0x4a,
            0x00, 0xe8, 0x5c, 0x9d, 0xcf, 0xff, 0x5d, 0x48, 0x8b, 0x80, 0x28, 0x00, 0x00, 0x00,
            0xc3,
        ];
        assert_eq!(tls_access(&library), Some(TlsAccess::Module(0x28)));
        assert_eq!(tls_access(&[0x90; 64]), None);
        assert_eq!(tls_access(&[]), None);
    }

    proptest::proptest! {
        /// No code makes the reader panic.
        #[test]
        fn survives_any_code(code in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = tls_access(&code);
        }
    }
}
