//! Walks one thread's Python frames, with nothing but what the kernel side has: the reference for
//! the walk in eBPF, and what `dump` reads with.

use decnet_trace_common::{
    event::PyFrame,
    python::{ABSENT, FRAME_SIZE_MAX, PyLayout, flags},
};

use super::memory::Memory;

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the outermost frame.
    Complete,
    /// At the most frames asked for.
    Truncated,
    /// At memory that could not be read.
    Broken,
}

/// How many of the interpreter's own frames are stepped over for each one asked for; they alternate
/// with others, so this is never reached but on garbage.
const SHIMS_PER_FRAME: usize = 4;

/// Appends the frames of a thread, innermost first, at most `max`.
pub fn walk(
    memory: &impl Memory,
    layout: &PyLayout,
    thread_state: u64,
    max: usize,
    frames: &mut Vec<PyFrame>,
) -> End {
    let Some(frame) = top(memory, layout, thread_state) else {
        return End::Broken;
    };
    walk_from(memory, layout, frame, max, frames)
}

/// The same, with a mark for each of the interpreter's own frames, as the kernel side makes it: stacks
/// read by both are equal where they are the same.
pub(super) fn walk_marked(
    memory: &impl Memory,
    layout: &PyLayout,
    thread_state: u64,
    max: usize,
    frames: &mut Vec<PyFrame>,
) -> End {
    let Some(frame) = top(memory, layout, thread_state) else {
        return End::Broken;
    };
    walk_with(memory, layout, frame, max, true, frames)
}

/// The innermost frame of a thread; 0 where it runs none.
fn top(memory: &impl Memory, layout: &PyLayout, thread_state: u64) -> Option<u64> {
    let top = memory
        .u64(thread_state.wrapping_add(u64::from(layout.frame)))
        .ok()?;
    if layout.cframe == ABSENT || top == 0 {
        return Some(top);
    }
    memory.u64(top.wrapping_add(u64::from(layout.cframe))).ok()
}

/// The same from a frame on.
pub(super) fn walk_from(
    memory: &impl Memory,
    layout: &PyLayout,
    frame: u64,
    max: usize,
    frames: &mut Vec<PyFrame>,
) -> End {
    walk_with(memory, layout, frame, max, false, frames)
}

fn walk_with(
    memory: &impl Memory,
    layout: &PyLayout,
    mut frame: u64,
    max: usize,
    marks: bool,
    frames: &mut Vec<PyFrame>,
) -> End {
    let mut block = [0; FRAME_SIZE_MAX];
    let Some(block) = block.get_mut(..usize::from(layout.frame_size)) else {
        return End::Broken;
    };
    let mut left = max;
    for _ in 0..max.saturating_mul(SHIMS_PER_FRAME) {
        if frame == 0 {
            return End::Complete;
        }
        if left == 0 {
            return End::Truncated;
        }
        if memory.read(frame, block).is_err() {
            return End::Broken;
        }
        let Some((mut python, previous)) = read_frame(layout, block) else {
            return End::Broken;
        };
        if previous == frame || previous & 7 != 0 {
            return End::Broken;
        }
        if python.code != 0 || marks {
            let entry = block.get(usize::from(layout.entry)).copied();
            if marks && python.code != 0 && layout.entry != ABSENT {
                python.code |= u64::from(entry.unwrap_or(0)) & PyFrame::ENTRY;
            }
            frames.push(python);
            left -= 1;
        }
        frame = previous;
    }
    if frame == 0 {
        End::Complete
    } else {
        End::Broken
    }
}

/// Picks the frame and the next outer one out of the bytes of one; a frame of the interpreter's own is one
/// without a code object.
fn read_frame(layout: &PyLayout, block: &[u8]) -> Option<(PyFrame, u64)> {
    let word = |at: u16| {
        let bytes = block.get(usize::from(at)..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    };
    let lasti = layout.flags & flags::LASTI != 0;
    if lasti && word(0)? == 0 {
        // Up to 3.10 a frame is an object; one without references has returned.
        return None;
    }
    let previous = word(layout.previous)?;
    let instr = if lasti {
        let bytes = block.get(usize::from(layout.instr)..)?.first_chunk::<4>()?;
        u64::from(u32::from_le_bytes(*bytes))
    } else {
        word(layout.instr)?
    };
    if layout.owner != ABSENT && layout.owner_shim != ABSENT {
        let owner = *block.get(usize::from(layout.owner))?;
        if u16::from(owner) >= layout.owner_shim {
            return Some((PyFrame { code: 0, instr }, previous));
        }
    }
    let code = word(layout.code)? & !u64::from(layout.code_tag);
    if code == 0 {
        // From 3.13 on a frame that has returned loses its code.
        return None;
    }
    Some((PyFrame { code, instr }, previous))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::{
        super::{layout::Layout, memory::tests::Image},
        *,
    };

    /// Two frames of CPython 3.14 with a shim between them: the code pointers lose their tags, the
    /// shim is stepped over.
    #[test]
    fn steps_over_shims() {
        let layout = Layout::of_minor(14).unwrap().kernel(None).unwrap();
        let mut bytes = vec![0u8; 0x1000];
        let mut set = |at: u64, field: u16, value: u64| {
            bytes[usize::try_from(at - 0x1000).unwrap() + usize::from(field)..][..8]
                .copy_from_slice(&value.to_le_bytes());
        };
        set(0x1000, layout.frame, 0x1200);
        for (frame, previous, code) in [
            (0x1200, 0x1300, 0xaaa1),
            (0x1300, 0x1400, 0xbbb1),
            (0x1400, 0, 0xccc0),
        ] {
            set(frame, layout.previous, previous);
            set(frame, layout.code, code);
            set(frame, layout.instr, frame + 0x10_0000);
        }
        bytes[0x300 + usize::from(layout.owner)] = 3;
        let memory = Image(vec![(0x1000, bytes)]);
        let mut frames = Vec::new();
        assert_eq!(
            walk(&memory, &layout, 0x1000, 10, &mut frames),
            End::Complete
        );
        let expected = [
            PyFrame {
                code: 0xaaa0,
                instr: 0x10_1200,
            },
            PyFrame {
                code: 0xccc0,
                instr: 0x10_1400,
            },
        ];
        assert_eq!(frames, expected);
        frames.clear();
        assert_eq!(
            walk(&memory, &layout, 0x1000, 1, &mut frames),
            End::Truncated
        );
        assert_eq!(frames, expected[..1]);
        frames.clear();
        assert_eq!(walk(&memory, &layout, 0x9000, 10, &mut frames), End::Broken);
    }

    /// Frames of CPython 3.11 tell where evaluation loops begin, in stacks that are to be like the kernel
    /// side's; and a frame that leads to itself, or nowhere, ends the walk.
    #[test]
    fn marks_where_loops_begin() {
        let layout = Layout::of_minor(11).unwrap().kernel(None).unwrap();
        let stack = |previous: u64| {
            let mut bytes = vec![0u8; 0x1000];
            let mut set = |at: usize, field: u16, value: u64| {
                bytes[at + usize::from(field)..][..8].copy_from_slice(&value.to_le_bytes());
            };
            set(0, layout.frame, 0x1100);
            set(0x100, layout.cframe, 0x1200);
            set(0x200, layout.code, 0xaaa0);
            set(0x200, layout.previous, 0x1300);
            set(0x300, layout.code, 0xbbb0);
            set(0x300, layout.previous, previous);
            bytes[0x300 + usize::from(layout.entry)] = 1;
            Image(vec![(0x1000, bytes)])
        };
        let mut frames = Vec::new();
        let end = walk_marked(&stack(0), &layout, 0x1000, 10, &mut frames);
        let codes: Vec<u64> = frames.iter().map(|frame| frame.code).collect();
        assert_eq!((end, codes), (End::Complete, vec![0xaaa0, 0xbbb1]));
        frames.clear();
        walk(&stack(0), &layout, 0x1000, 10, &mut frames);
        assert_eq!(frames[1].code, 0xbbb0);
        for previous in [0x1300, 0x1204] {
            frames.clear();
            let end = walk(&stack(previous), &layout, 0x1000, 10, &mut frames);
            assert_eq!((end, frames.len()), (End::Broken, 1));
        }
    }

    proptest::proptest! {
        /// Whatever memory holds, a walk ends within its bound.
        #[test]
        fn ends(
            minor in 8u8..=15,
            words in proptest::collection::vec(0x1000u64..0x1400, 160),
            max in 0usize..50,
        ) {
            let layout = Layout::of_minor(minor).unwrap().kernel(None).unwrap();
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut frames = Vec::new();
            walk(&Image(vec![(0x1000, bytes)]), &layout, 0x1000, max, &mut frames);
            proptest::prop_assert!(frames.len() <= max);
        }
    }
}
