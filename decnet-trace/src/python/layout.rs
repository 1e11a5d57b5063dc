//! Where one CPython keeps the fields that are read from outside.
//!
//! A layout begins as the row of [`super::layout_table`] for the minor version. From 3.13 on the
//! process itself publishes most of the same offsets ([`super::debug_offsets`]); those then count.

use decnet_trace_common::python::{self as abi, PyLayout};

use super::layout_table as table;

/// The value of a field that a version lacks.
const NONE: u32 = u32::MAX;

/// Defines the layout's fields once: the struct, the layout without any, and access by name.
macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Offsets and sizes in bytes; a field that the version lacks is `u32::MAX`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(super) struct Layout {
            $($(#[$doc])* pub(super) $name: u32,)+
        }

        impl Layout {
            /// A layout without any field.
            pub(super) const ABSENT: Self = Self { $($name: NONE,)+ };

            /// The field of that name.
            pub(super) fn field_mut(&mut self, name: &str) -> Option<&mut u32> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)+
                    _ => None,
                }
            }
        }
    };
}

layout! {
    /// Major × 256 + minor.
    version,
    /// `sizeof(_PyRuntimeState)`
    runtime_size,
    /// `_PyRuntime.initialized`, an `int`
    runtime_initialized,
    /// `_PyRuntime.interpreters.head`
    runtime_interpreters_head,
    /// `_PyRuntime.main_thread`, a `pthread_t`
    runtime_main_thread,
    /// `_PyRuntime.(gilstate.)autoTSSkey`, a `Py_tss_t` (until 3.14)
    runtime_auto_tss_key,
    /// `_PyRuntime.gilstate.tstate_current` (until 3.11)
    runtime_current_thread,
    /// `sizeof(PyInterpreterState)`
    interp_size,
    /// `PyInterpreterState.next`
    interp_next,
    /// `PyInterpreterState.id`
    interp_id,
    /// `PyInterpreterState.tstate_head` or `.threads.head`
    interp_threads_head,
    /// `PyInterpreterState.(imports.)modules`, a dict
    interp_modules,
    /// `sizeof(PyThreadState)`
    thread_size,
    /// `PyThreadState.next`
    thread_next,
    /// `PyThreadState.interp`
    thread_interp,
    /// `PyThreadState.frame`, `.cframe` or `.current_frame`
    thread_frame,
    /// `PyThreadState.cframe`, where it tells which thread runs (3.10, 3.11)
    thread_c_frame,
    /// `PyThreadState.thread_id`, a `pthread_t`
    thread_thread_id,
    /// `PyThreadState.native_thread_id` (3.11 on)
    thread_native_thread_id,
    /// `PyThreadState.context`
    thread_context,
    /// `PyThreadState._status` or `.holds_gil` (3.12 on)
    thread_gil,
    /// The bits there that say whether the thread holds the GIL
    thread_gil_mask,
    /// `_PyThreadStateImpl.asyncio_running_task` (3.14 on)
    thread_asyncio_running_task,
    /// `_PyCFrame.current_frame` (3.11, 3.12)
    cframe_current_frame,
    /// The bytes of a frame before its locals
    frame_size,
    /// `f_back` or `previous`
    frame_previous,
    /// `f_code` or `f_executable`
    frame_code,
    /// The tag bits in the latter (3.14 on)
    frame_code_tag,
    /// `f_lasti` (until 3.10), `prev_instr` (3.11, 3.12) or `instr_ptr`
    frame_instr,
    /// `owner` (3.11 on)
    frame_owner,
    /// `is_entry`, a byte (3.11)
    frame_entry,
    /// The least owner of the interpreter's own frames (3.12 on)
    frame_owner_shim,
    /// `f_localsplus` or `localsplus`
    frame_localsplus,
    /// `f_stacktop` or `stackpointer`: a pointer past the top of the value stack
    frame_stack_top,
    /// `f_valuestack` (3.10): a pointer to the bottom of the value stack
    frame_stack_base,
    /// `f_stackdepth` or `stacktop`: an `int`, from the stack's bottom (3.10) or the locals
    frame_stack_depth,
    /// `f_executing` or `f_state`, a byte (until 3.10)
    frame_state,
    /// The bytes of a code object before its instructions
    code_size,
    /// `co_argcount`
    code_argcount,
    /// `co_flags`
    code_flags,
    /// `co_firstlineno`
    code_firstlineno,
    /// `co_filename`
    code_filename,
    /// `co_name`
    code_name,
    /// `co_qualname` (3.11 on)
    code_qualname,
    /// `co_lnotab` (until 3.9) or `co_linetable`
    code_linetable,
    /// `co_version`: another one for each code object of an interpreter, 0 when they are used up (3.12 on)
    code_version,
    /// `co_code_adaptive` (3.11 on)
    code_instructions,
    /// `ob_type`
    object_type,
    /// `ob_size`
    object_var_size,
    /// `tp_name`
    type_name,
    /// `tp_flags`
    type_flags,
    /// `tp_basicsize`
    type_basicsize,
    /// `tp_dictoffset`
    type_dictoffset,
    /// `ht_cached_keys`
    type_cached_keys,
    /// `PyASCIIObject.length`
    unicode_length,
    /// `PyASCIIObject.state`, a `u32`
    unicode_state,
    /// The bits of it that hold the width of a character
    unicode_kind_mask,
    /// The bit of it that says that the characters follow the header
    unicode_compact_mask,
    /// The bit of it that says that they are ASCII
    unicode_ascii_mask,
    /// `sizeof(PyASCIIObject)`: where ASCII characters begin
    unicode_ascii_data,
    /// `sizeof(PyCompactUnicodeObject)`: where other characters begin
    unicode_compact_data,
    /// `ob_sval`
    bytes_data,
    /// `PyListObject.ob_item`
    list_items,
    /// `PySetObject.mask`
    set_mask,
    /// `PySetObject.table`
    set_table,
    /// `PyWeakReference.wr_object`
    weakref_object,
    /// `ma_keys`
    dict_keys,
    /// `ma_values`
    dict_values,
    /// `dk_nentries`
    keys_entries,
    /// `dk_indices`
    keys_indices,
    /// `dk_size` (until 3.10)
    keys_size,
    /// `dk_log2_size` (3.11 on)
    keys_log2_size,
    /// `dk_log2_index_bytes` (3.11 on)
    keys_log2_index_bytes,
    /// `dk_kind` (3.11 on)
    keys_kind,
    /// The first value in a dict's or instance's values (3.11 on)
    values_items,
    /// `cr_frame` (until 3.10: a pointer) or `cr_iframe` (the frame itself)
    coro_frame,
    /// `cr_code` (until 3.10)
    coro_code,
    /// `cr_frame_state` (3.11 on), a signed byte
    coro_frame_state,
    /// `FRAME_CREATED` as a byte (3.10 on)
    state_created,
    /// `FRAME_EXECUTING` as a byte (3.10 on)
    state_executing,
    /// `sizeof(_Py_DebugOffsets)` (3.13 on)
    own_size,
}

impl Layout {
    /// The layout of CPython 3.`minor`, where it is in the table.
    pub(super) fn of_minor(minor: u8) -> Option<&'static Self> {
        static LAYOUTS: [Layout; 8] = [
            table::CPYTHON_3_8,
            table::CPYTHON_3_9,
            table::CPYTHON_3_10,
            table::CPYTHON_3_11,
            table::CPYTHON_3_12,
            table::CPYTHON_3_13,
            table::CPYTHON_3_14,
            table::CPYTHON_3_15,
        ];
        LAYOUTS.get(usize::from(minor.checked_sub(8)?))
    }

    /// Where CPython 3.`minor` publishes fields of the layout in its own `_Py_DebugOffsets`.
    pub(super) fn own_of_minor(minor: u8) -> Option<&'static [(&'static str, u32)]> {
        match minor {
            13 => Some(table::OWN_3_13),
            14 => Some(table::OWN_3_14),
            15 => Some(table::OWN_3_15),
            _ => None,
        }
    }

    /// The minor version.
    pub(super) const fn minor(&self) -> u8 {
        (self.version & 0xff) as u8
    }

    /// A field that not every version has.
    pub(super) fn get(field: u32) -> Option<u64> {
        (field != NONE).then_some(u64::from(field))
    }

    /// What the kernel side needs of it; `thread_block` as in [`PyLayout::thread_block`]. `None`
    /// where a field does not fit, which no checked layout's does.
    pub(super) fn kernel(&self, thread_block: Option<u16>) -> Option<PyLayout> {
        let field = |value: u32| match value {
            NONE => Some(abi::ABSENT),
            value => u16::try_from(value)
                .ok()
                .filter(|value| *value != abi::ABSENT),
        };
        let lasti = self.minor() <= 10;
        let ends = [
            self.frame_previous.checked_add(8)?,
            self.frame_code.checked_add(8)?,
            self.frame_instr.checked_add(if lasti { 4 } else { 8 })?,
            if self.frame_owner == NONE {
                0
            } else {
                self.frame_owner.checked_add(1)?
            },
            if self.frame_entry == NONE {
                0
            } else {
                self.frame_entry.checked_add(1)?
            },
        ];
        let frame_size = ends.into_iter().max().unwrap_or(0).next_multiple_of(8);
        if frame_size as usize > abi::FRAME_SIZE_MAX {
            return None;
        }
        Some(PyLayout {
            version: field(self.version)?,
            flags: if lasti { abi::flags::LASTI } else { 0 },
            thread_block: thread_block.unwrap_or(abi::ABSENT),
            interp: field(self.thread_interp)?,
            context: field(self.thread_context)?,
            frame: field(self.thread_frame)?,
            cframe: field(self.cframe_current_frame)?,
            native_thread_id: field(self.thread_native_thread_id)?,
            gil: field(self.thread_gil)?,
            c_frame: field(self.thread_c_frame)?,
            entry: field(self.frame_entry)?,
            frame_size: field(frame_size)?,
            previous: field(self.frame_previous)?,
            code: field(self.frame_code)?,
            code_tag: if self.frame_code_tag == NONE {
                0
            } else {
                field(self.frame_code_tag)?
            },
            instr: field(self.frame_instr)?,
            owner: field(self.frame_owner)?,
            owner_shim: field(self.frame_owner_shim)?,
            // Of a field that has the word to itself (3.14 on), every bit counts.
            gil_mask: self.thread_gil_mask,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// Each supported version has a row of its own that fits the kernel's struct; no other has one.
    #[test]
    fn every_version_has_its_row() {
        for minor in 8..=15 {
            let layout = Layout::of_minor(minor).unwrap();
            assert_eq!(layout.minor(), minor);
            let kernel = layout.kernel(None).unwrap();
            assert_eq!(kernel.version, 0x0300 | u16::from(minor));
            assert_ne!(kernel.context, abi::ABSENT);
            assert!(usize::from(kernel.frame_size) <= abi::FRAME_SIZE_MAX);
            // From 3.12 on the thread state says who holds the GIL.
            assert_eq!(kernel.gil != abi::ABSENT, minor >= 12);
            assert_ne!(kernel.gil_mask, 0);
        }
        assert!(Layout::of_minor(7).is_none());
        assert!(Layout::of_minor(16).is_none());
    }

    /// Each offset that a process publishes is a field of the layout, inside the published struct.
    #[test]
    fn own_offsets_are_fields() {
        for minor in 13..=15 {
            let mut layout = Layout::of_minor(minor).unwrap().clone();
            for (name, position) in Layout::own_of_minor(minor).unwrap() {
                assert!(position + 8 <= layout.own_size, "{name}");
                assert_ne!(*layout.field_mut(name).unwrap(), NONE, "{name}");
            }
        }
    }
}
