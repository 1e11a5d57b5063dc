//! One stack out of the frames of a sample.
//!
//! Python and native frames are walked independently of each other. On the native stack the
//! interpreter shows as its own functions: evaluation loops (`_PyEval_EvalFrameDefault`), and what
//! calls them. Each loop stands for the Python frames that it was running, and is replaced by them.
//!
//! Which those are is certain where the Python stack says where each loop began, and has as many loops
//! as the native one: from CPython 3.12 on the interpreter keeps a frame of its own there, in 3.11 it marks the
//! frame that a loop began with, and up to 3.10 each Python frame has its loop. Otherwise (the two do not
//! agree, or a stack was cut) the order of calls would be a guess, so none is made: the Python frames stay together, the native frames between the
//! outermost and the innermost loop are left out, and those outside them stand where they certainly
//! are.

use std::sync::Arc;

use super::{Frame, FrameKind, interpreter::Role};

/// A native frame with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeFrame {
    /// The frame.
    pub frame: Arc<Frame>,
    /// Its role.
    pub role: Role,
}

/// The Python frames of a sample, outermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PythonStack {
    /// The frames.
    pub frames: Vec<Arc<Frame>>,
    /// Where in them each evaluation loop begins; empty where the interpreter does not say.
    pub loops: Vec<usize>,
    /// Whether outer frames are missing.
    pub cut: bool,
}

impl PythonStack {
    /// The frames that each of so many loops was running; `None` where that is not certain.
    fn parts(&self, loops: usize) -> Option<Vec<&[Arc<Frame>]>> {
        if self.cut {
            return None;
        }
        if self.loops.is_empty() {
            let one_each = self.frames.len() == loops;
            return one_each.then(|| self.frames.chunks(1).collect());
        }
        if self.loops.len() != loops || self.loops[0] != 0 {
            return None;
        }
        let ends = self.loops[1..].iter().copied().chain([self.frames.len()]);
        self.loops
            .iter()
            .zip(ends)
            .map(|(&start, end)| self.frames.get(start..end))
            .collect()
    }
}

/// Merges the frames of a sample, all outermost first, into one stack, outermost first.
pub fn merge(
    native: &[NativeFrame],
    python: &PythonStack,
    kernel: &[Arc<Frame>],
) -> Vec<Arc<Frame>> {
    let mut stack = Vec::with_capacity(native.len() + python.frames.len() + kernel.len());
    merge_user(native, python, &mut stack);
    stack.extend_from_slice(kernel);
    stack
}

fn merge_user(native: &[NativeFrame], python: &PythonStack, stack: &mut Vec<Arc<Frame>>) {
    if python.frames.is_empty() {
        // Nothing to put in the interpreter's place.
        stack.extend(native.iter().map(|frame| frame.frame.clone()));
        return;
    }
    let is_loop = |frame: &NativeFrame| frame.role == Role::Evaluation;
    let outermost = native.iter().position(is_loop).unwrap_or(0);
    let (outside, inside) = native.split_at(outermost);
    // What starts a program or a thread tells nothing outside Python, and splits the main thread from
    // the others.
    let mut starts = false;
    for frame in others(outside) {
        starts = frame.role == Role::Startup || starts && is_unnamed_libc(&frame.frame);
        if !starts {
            stack.push(own(frame));
        }
    }
    if let Some(parts) = python.parts(inside.iter().filter(|frame| is_loop(frame)).count()) {
        let mut parts = parts.into_iter();
        for frame in inside {
            if is_loop(frame) {
                stack.extend_from_slice(parts.next().unwrap_or_default());
            } else {
                stack.extend(others(std::slice::from_ref(frame)).map(own));
            }
        }
        return;
    }
    stack.extend_from_slice(&python.frames);
    // A native stack without a loop ended before it reached one: all of it is what Python called.
    let innermost = inside.iter().rposition(is_loop).map_or(0, |at| at + 1);
    stack.extend(others(&inside[innermost..]).map(own));
}

/// Whether this is a function of the C library that has no name: what it exports are few of those that begin
/// a program or a thread.
fn is_unnamed_libc(frame: &Frame) -> bool {
    frame.name.starts_with("[libc.") || frame.name.starts_with("[libpthread")
}

/// The frames that are not the interpreter's.
fn others(frames: &[NativeFrame]) -> impl Iterator<Item = &NativeFrame> {
    frames
        .iter()
        .filter(|frame| matches!(frame.role, Role::Other | Role::Startup))
}

fn own(frame: &NativeFrame) -> Arc<Frame> {
    frame.frame.clone()
}

/// A frame that says that the outer frames of the stack are missing.
pub fn truncated(kind: FrameKind) -> Frame {
    Frame::marker(kind, "[truncated]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{fixture, interpreter::role};

    const LIB: &str = "/usr/lib/libpython3.12.so.1.0";

    fn native(names: &[&str]) -> Vec<NativeFrame> {
        names
            .iter()
            .map(|name| {
                let module = if name.starts_with("ext_") || *name == "app_main" {
                    "/srv/ext.so"
                } else {
                    LIB
                };
                NativeFrame {
                    frame: Arc::new(fixture::native(name, module)),
                    role: role(Some(name), module),
                }
            })
            .collect()
    }

    fn python(names: &[&str]) -> Vec<Arc<Frame>> {
        names
            .iter()
            .map(|name| Arc::new(fixture::python(name, "app.py", 1, 1)))
            .collect()
    }

    /// `|` among the Python names: here a loop begins.
    fn python_stack(names: &[&str]) -> PythonStack {
        let mut stack = PythonStack::default();
        for &name in names {
            match name {
                "|" => stack.loops.push(stack.frames.len()),
                name => stack.frames.extend(python(&[name])),
            }
        }
        stack
    }

    fn merged(names: &[&str], python_names: &[&str]) -> Vec<String> {
        let kernel = [Arc::new(fixture::kernel("do_syscall_64"))];
        merge(&native(names), &python_stack(python_names), &kernel)
            .iter()
            .map(|frame| frame.name.to_string())
            .collect()
    }

    const EVAL: &str = "_PyEval_EvalFrameDefault";

    /// With one run of the interpreter, all Python frames stand in its place, between what embeds
    /// Python and what Python called.
    #[test]
    fn one_run_is_replaced_by_all_python_frames() {
        assert_eq!(
            merged(
                &[
                    "_start",
                    "main",
                    "app_main",
                    "Py_RunMain",
                    "PyEval_EvalCode",
                    EVAL,
                    "cfunction_call",
                    "zlib_Compress",
                    "deflate"
                ],
                &["<module>", "handler", "compress"],
            ),
            [
                "app_main",
                "<module>",
                "handler",
                "compress",
                "zlib_Compress",
                "deflate",
                "do_syscall_64"
            ],
        );
    }

    /// Where each Python frame has its evaluation loop on the native stack, as up to CPython 3.10, the
    /// native frames between them stay between them.
    #[test]
    fn as_many_loops_as_python_frames_interleave() {
        assert_eq!(
            merged(
                &[
                    "main",
                    "PyEval_EvalCode",
                    EVAL,
                    "_PyFunction_Vectorcall",
                    EVAL,
                    "list_sort",
                    "_PyFunction_Vectorcall",
                    EVAL,
                    "ext_leaf"
                ],
                &["<module>", "order", "key"],
            ),
            [
                "<module>",
                "order",
                "list_sort",
                "key",
                "ext_leaf",
                "do_syscall_64"
            ],
        );
    }

    /// Where the interpreter says where its loops begin, as from CPython 3.12 on, each loop is replaced
    /// by what it ran, which may be nothing yet.
    #[test]
    fn marked_loops_interleave() {
        assert_eq!(
            merged(
                &[
                    "main",
                    EVAL,
                    "context_run",
                    "task_step",
                    EVAL,
                    "list_sort",
                    EVAL
                ],
                &["|", "<module>", "run", "|", "handler", "order", "|"],
            ),
            [
                "<module>",
                "run",
                "context_run",
                "task_step",
                "handler",
                "order",
                "list_sort",
                "do_syscall_64",
            ],
        );
    }

    /// Marks that are not as many as the native loops, or of a stack that was cut, prove nothing.
    #[test]
    fn marks_that_do_not_match_prove_nothing() {
        let names = [EVAL, "list_sort", EVAL, "ext_leaf"];
        let together = ["f", "g", "ext_leaf", "do_syscall_64"];
        assert_eq!(merged(&names, &["|", "f", "|", "g", "|"]), together);
        assert_eq!(merged(&names, &["f", "|", "g"]), together);
        let cut = PythonStack {
            cut: true,
            ..python_stack(&["|", "f", "|", "g"])
        };
        let stack = merge(&native(&names), &cut, &[]);
        let stack: Vec<&str> = stack.iter().map(|frame| &*frame.name).collect();
        assert_eq!(stack, together[..3]);
    }

    /// Where it cannot be known which Python frames a loop ran, native frames between them are left
    /// out rather than guessed; those outside are certain.
    #[test]
    fn an_uncertain_order_is_not_guessed() {
        assert_eq!(
            merged(
                &[
                    "app_main",
                    EVAL,
                    "context_run",
                    "task_step",
                    EVAL,
                    "ext_leaf"
                ],
                &["<module>", "run", "run_once", "handler"],
            ),
            [
                "app_main",
                "<module>",
                "run",
                "run_once",
                "handler",
                "ext_leaf",
                "do_syscall_64"
            ],
        );
    }

    /// More loops than Python frames (the Python stack was cut) are no reason to guess either.
    #[test]
    fn more_loops_than_python_frames_are_not_guessed() {
        assert_eq!(
            merged(
                &[EVAL, "list_sort", EVAL, "list_sort", EVAL, "ext_leaf"],
                &["key"]
            ),
            ["key", "ext_leaf", "do_syscall_64"],
        );
    }

    /// A native stack that ends before it reaches the interpreter is what the innermost Python
    /// function called.
    #[test]
    fn a_native_stack_without_a_loop_goes_under_python() {
        assert_eq!(
            merged(&["ext_outer", "ext_leaf"], &["<module>", "handler"]),
            [
                "<module>",
                "handler",
                "ext_outer",
                "ext_leaf",
                "do_syscall_64"
            ],
        );
    }

    /// What begins a program is left out though the C library has no name for a part of it; what it calls
    /// otherwise stays.
    #[test]
    fn unnamed_beginnings_are_left_out() {
        assert_eq!(
            merged(
                &["_start", "[libc.so.6+0x271d0]", "main", EVAL],
                &["<module>"]
            ),
            ["<module>", "do_syscall_64"],
        );
        assert_eq!(
            merged(
                &["_start", "main", "app_main", "[libc.so.6+0x271d0]", EVAL],
                &["<module>"]
            ),
            [
                "app_main",
                "[libc.so.6+0x271d0]",
                "<module>",
                "do_syscall_64"
            ],
        );
    }

    /// Without Python frames, native frames stay as they are; without native ones, Python frames do.
    #[test]
    fn either_side_alone_is_kept_whole() {
        assert_eq!(
            merged(&["_start", "main", EVAL], &[]),
            ["_start", "main", EVAL, "do_syscall_64"],
        );
        assert_eq!(
            merged(&[], &["<module>", "f"]),
            ["<module>", "f", "do_syscall_64"]
        );
    }

    /// A stack of CPython 3.8 in asyncio, as a debugger shows it, outermost first.
    const CPYTHON_3_8: &str = "\
_start __libc_start_main_impl __libc_start_call_main Py_BytesMain pymain_main Py_RunMain \
pymain_run_python pymain_run_file PyRun_AnyFileExFlags PyRun_SimpleFileExFlags \
pyrun_simple_file pyrun_file run_mod run_eval_code_obj PyEval_EvalCode PyEval_EvalCodeEx \
_PyEval_EvalCodeWithName _PyEval_EvalFrameDefault call_function _PyObject_Vectorcall \
_PyFunction_Vectorcall _PyEval_EvalCodeWithName _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault do_call_core \
PyCFunction_Call PyVectorcall_Call cfunction_vectorcall_FASTCALL_KEYWORDS context_run \
_PyObject_Vectorcall _PyObject_MakeTpCall TaskStepMethWrapper_call task_step task_step_impl \
gen_send_ex _PyEval_EvalFrameDefault gen_send_ex _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall function_code_fastcall _PyEval_EvalFrameDefault call_function \
_PyObject_Vectorcall cfunction_vectorcall_FASTCALL_KEYWORDS builtin_sorted \
_PyObject_Vectorcall cfunction_vectorcall_FASTCALL_KEYWORDS list_sort list_sort_impl \
binarysort unsafe_object_compare slot_tp_richcompare call_unbound _PyObject_FastCall_Prepend \
_PyObject_FastCall _PyObject_Vectorcall function_code_fastcall _Py_DECREF frame_dealloc";

    /// One of CPython 3.12.
    const CPYTHON_3_12: &str = "\
_start __libc_start_main_impl __libc_start_call_main Py_BytesMain pymain_main Py_RunMain \
pymain_run_python pymain_run_file pymain_run_file_obj _PyRun_AnyFileObject \
_PyRun_SimpleFileObject pyrun_file run_mod run_eval_code_obj PyEval_EvalCode _PyEval_Vector \
_PyEval_EvalFrame _PyEval_EvalFrameDefault cfunction_vectorcall_FASTCALL_KEYWORDS \
context_run _PyObject_VectorcallTstate _PyObject_MakeTpCall task_step task_step_impl \
PyGen_am_send gen_send_ex2 _PyEval_EvalFrame _PyEval_EvalFrameDefault PyObject_Vectorcall \
_PyObject_VectorcallTstate method_vectorcall_FASTCALL_KEYWORDS_METHOD _sre_SRE_Pattern_sub \
_sre_SRE_Pattern_sub_impl pattern_subx state_reset data_stack_dealloc _PyObject_Free \
_PyObject_Free";

    fn shown(stack: &str, python_names: &[&str]) -> Vec<String> {
        let names: Vec<&str> = stack.split_ascii_whitespace().collect();
        let mut shown = merged(&names, python_names);
        assert_eq!(shown.pop().as_deref(), Some("do_syscall_64"));
        shown
    }

    /// On a real stack of CPython 3.8, which has a loop for each Python frame, what asyncio and
    /// `sorted` are made of stands where it is called.
    #[test]
    fn a_real_stack_of_3_8_interleaves() {
        let python = [
            "<module>",
            "run",
            "run_until_complete",
            "run_forever",
            "_run_once",
            "_run",
            "handler",
            "inner",
            "heavy",
            "order",
        ];
        assert_eq!(
            shown(CPYTHON_3_8, &python),
            [
                "<module>",
                "run",
                "run_until_complete",
                "run_forever",
                "_run_once",
                "_run",
                "context_run",
                "TaskStepMethWrapper_call",
                "task_step",
                "task_step_impl",
                "handler",
                "inner",
                "heavy",
                "order",
                "builtin_sorted",
                "list_sort",
                "list_sort_impl",
                "binarysort",
                "unsafe_object_compare",
                "_Py_DECREF",
                "frame_dealloc",
            ]
        );
    }

    /// On a real stack of CPython 3.12, where two loops run eleven Python frames, the innermost
    /// function's callees stand under it; with the loops marked, asyncio's own stand between.
    #[test]
    fn a_real_stack_of_3_12_interleaves_where_marked() {
        let outer = [
            "<module>",
            "run",
            "run",
            "run_until_complete",
            "run_forever",
            "_run_once",
            "_run",
        ];
        let asyncio = ["context_run", "task_step", "task_step_impl"];
        let inner = ["handler", "inner", "heavy", "sub"];
        let leaf = [
            "_sre_SRE_Pattern_sub",
            "_sre_SRE_Pattern_sub_impl",
            "pattern_subx",
            "state_reset",
            "data_stack_dealloc",
            "_PyObject_Free",
            "_PyObject_Free",
        ];
        let unmarked = [&outer[..], &inner].concat();
        assert_eq!(
            shown(CPYTHON_3_12, &unmarked),
            [&unmarked[..], &leaf].concat()
        );
        let marked = [&["|"], &outer[..], &["|"], &inner].concat();
        assert_eq!(
            shown(CPYTHON_3_12, &marked),
            [&outer[..], &asyncio, &inner, &leaf].concat()
        );
    }

    /// Each Python and kernel frame appears exactly once and in order, whatever the native stack is.
    #[test]
    fn no_python_frame_is_lost_or_doubled() {
        use proptest::prelude::*;
        let name = prop::sample::select(vec![EVAL, "cfunction_call", "ext_a", "main", "list_sort"]);
        proptest!(|(names in prop::collection::vec(name, 0..12), depth in 0usize..8, loops in prop::collection::vec(0usize..8, 0..4))| {
            let own: Vec<String> = (0..depth).map(|at| format!("py{at}")).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let stack = PythonStack { loops, ..python_stack(&own) };
            let kernel = [Arc::new(fixture::kernel("do_syscall_64"))];
            let out: Vec<String> = merge(&native(&names), &stack, &kernel).iter().map(|frame| frame.name.to_string()).collect();
            let left: Vec<&str> = out.iter().map(String::as_str).filter(|n| n.starts_with("py")).collect();
            prop_assert_eq!(left, own);
            prop_assert_eq!(out.last().map(String::as_str), Some("do_syscall_64"));
        });
    }
}
