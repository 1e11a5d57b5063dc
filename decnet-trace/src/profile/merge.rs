//! One stack out of the frames of a sample.
//!
//! Python and native frames are walked independently of each other. On the native stack the
//! interpreter shows as runs of its own functions (`_PyEval_EvalFrameDefault`, `_PyEval_Vector`, …);
//! each run stands for the Python frames that it was executing, and is replaced by them.
//!
//! Which Python frames belong to which run is certain in two cases: where there is one run, and where
//! the native stack shows as many evaluation loops as there are Python frames (up to CPython 3.10
//! each Python call has a loop of its own; from 3.11 a loop also runs what it calls). Otherwise the
//! order of calls would be a guess, so none is made: the Python frames stay together, and of the
//! native frames only those outside them remain, which are certain again.

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

/// Merges the frames of a sample, all outermost first, into one stack, outermost first.
pub fn merge(
    native: &[NativeFrame],
    python: &[Arc<Frame>],
    kernel: &[Arc<Frame>],
) -> Vec<Arc<Frame>> {
    let mut stack = Vec::with_capacity(native.len() + python.len() + kernel.len());
    merge_user(native, python, &mut stack);
    stack.extend_from_slice(kernel);
    stack
}

fn merge_user(native: &[NativeFrame], python: &[Arc<Frame>], stack: &mut Vec<Arc<Frame>>) {
    if python.is_empty() {
        // Nothing to put in the interpreter's place.
        stack.extend(native.iter().map(|frame| frame.frame.clone()));
        return;
    }
    let is_part = |frame: &NativeFrame| matches!(frame.role, Role::Evaluation | Role::Interpreter);
    let loops = |run: &[NativeFrame]| {
        run.iter()
            .filter(|frame| frame.role == Role::Evaluation)
            .count()
    };
    let runs = || {
        native
            .chunk_by(|a, b| is_part(a) == is_part(b))
            .filter(|run| loops(run) > 0)
    };
    let one_loop_each = loops(native) == python.len();
    if runs().count() <= 1 || one_loop_each {
        let mut rest = python;
        let mut seen_loop = runs().next().is_none();
        if seen_loop {
            // The native stack does not reach the interpreter: it is what Python called.
            stack.append(&mut rest.to_vec());
        }
        for run in native.chunk_by(|a, b| is_part(a) == is_part(b)) {
            if !is_part(&run[0]) {
                extend_others(run, seen_loop, stack);
                continue;
            }
            let count = if one_loop_each {
                loops(run)
            } else if loops(run) > 0 {
                rest.len()
            } else {
                0
            };
            let (here, later) = rest.split_at(count);
            stack.extend_from_slice(here);
            rest = later;
            seen_loop |= count > 0;
        }
        return;
    }
    let first = native.iter().position(|f| f.role == Role::Evaluation);
    let last = native.iter().rposition(|f| f.role == Role::Evaluation);
    extend_others(&native[..first.unwrap_or(0)], false, stack);
    stack.extend_from_slice(python);
    extend_others(&native[last.map_or(0, |at| at + 1)..], true, stack);
}

/// Appends the frames that are not the interpreter's; what starts a program or a thread tells
/// nothing outside Python, and splits the main thread from the others.
fn extend_others(run: &[NativeFrame], inside: bool, stack: &mut Vec<Arc<Frame>>) {
    stack.extend(
        run.iter()
            .filter(|frame| match frame.role {
                Role::Other => true,
                Role::Startup => inside,
                Role::Evaluation | Role::Interpreter => false,
            })
            .map(|frame| frame.frame.clone()),
    );
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

    fn merged(names: &[&str], python_names: &[&str]) -> Vec<String> {
        let kernel = [Arc::new(fixture::kernel("do_syscall_64"))];
        merge(&native(names), &python(python_names), &kernel)
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

    /// On a real stack of CPython 3.12, where two loops run eleven Python frames, what the innermost
    /// called stands under it.
    #[test]
    fn a_real_stack_of_3_12_keeps_its_leaf() {
        let python = [
            "<module>",
            "run",
            "run",
            "run_until_complete",
            "run_forever",
            "_run_once",
            "_run",
            "handler",
            "inner",
            "heavy",
            "sub",
        ];
        let mut expected: Vec<&str> = python.to_vec();
        expected.extend([
            "_sre_SRE_Pattern_sub",
            "_sre_SRE_Pattern_sub_impl",
            "pattern_subx",
            "state_reset",
            "data_stack_dealloc",
            "_PyObject_Free",
            "_PyObject_Free",
        ]);
        assert_eq!(shown(CPYTHON_3_12, &python), expected);
    }

    /// Each Python and kernel frame appears exactly once and in order, whatever the native stack is.
    #[test]
    fn no_python_frame_is_lost_or_doubled() {
        use proptest::prelude::*;
        let name = prop::sample::select(vec![EVAL, "cfunction_call", "ext_a", "main", "list_sort"]);
        proptest!(|(names in prop::collection::vec(name, 0..12), depth in 0usize..8)| {
            let own: Vec<String> = (0..depth).map(|at| format!("py{at}")).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let out = merged(&names, &own);
            let left: Vec<&str> = out.iter().map(String::as_str).filter(|n| n.starts_with("py")).collect();
            prop_assert_eq!(left, own);
            prop_assert_eq!(out.last().map(String::as_str), Some("do_syscall_64"));
        });
    }
}
