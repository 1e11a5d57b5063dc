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

use super::{Frame, FrameKind};

/// What a native frame is to the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A loop that evaluates bytecode: at least one Python frame.
    Evaluation,
    /// Another part of the interpreter's calling machinery, or an unnamed part of the interpreter.
    Interpreter,
    /// What comes before `main`, or begins a thread.
    Startup,
    /// Anything else, built-in functions of Python among it.
    Other,
}

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

/// The role of a native function.
///
/// `name` is its demangled symbol, `None` where it has none; `module` the path of the file that it is
/// in.
pub fn role(name: Option<&str>, module: &str) -> Role {
    let python = is_python(module);
    let Some(name) = name else {
        return if python {
            Role::Interpreter
        } else {
            Role::Other
        };
    };
    // GCC appends .cold, .part.0, .isra.0, .constprop.0, .lto_priv.0 to the parts of a function.
    let name = name.split_once('.').map_or(name, |(base, _)| base);
    if matches!(name, "_PyEval_EvalFrameDefault" | "PyEval_EvalFrameEx")
        || name.starts_with("_TAIL_CALL_")
    {
        return Role::Evaluation;
    }
    if STARTUP.contains(&name) {
        return Role::Startup;
    }
    let machinery = MACHINERY.iter().any(|prefix| name.starts_with(prefix))
        || (python
            && STATIC_MACHINERY
                .iter()
                .any(|prefix| name.starts_with(prefix)));
    if machinery {
        Role::Interpreter
    } else {
        Role::Other
    }
}

/// Whether a module is CPython itself: `libpython3.12.so.1.0`, `python3`, `python3.11`.
fn is_python(module: &str) -> bool {
    let file = module.rsplit('/').next().unwrap_or(module);
    if let Some(rest) = file.strip_prefix("libpython") {
        return rest.starts_with(|character: char| character.is_ascii_digit());
    }
    file.strip_prefix("python").is_some_and(|rest| {
        rest.bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b't' | b'd' | b'm'))
    })
}

/// Functions that run before `main`, or begin a thread.
const STARTUP: &[&str] = &[
    "_start",
    "main",
    "__libc_start_main",
    "__libc_start_call_main",
    "__libc_start_main_impl",
    "clone",
    "clone3",
    "__clone",
    "__clone3",
    "start_thread",
    "thread_run",
    "pythread_wrapper",
    "thread_bootstrap",
    "t_bootstrap",
];

/// Exported parts of the machinery by which CPython calls Python and C functions (prefixes).
const MACHINERY: &[&str] = &[
    "_PyEval_",
    "PyEval_Eval",
    "PyEval_Call",
    "_PyFunction_",
    "PyObject_Call",
    "_PyObject_Call",
    "_PyObject_FastCall",
    "_PyObject_MakeTpCall",
    "PyObject_Vectorcall",
    "_PyObject_Vectorcall",
    "PyVectorcall_",
    "_PyVectorcall_",
    "_PyMethodDef_RawFastCall",
    "_PyMethodDescr_",
    "_PyCFunction_",
    "PyCFunction_Call",
    "_PyGen_Send",
    "PyIter_Send",
    "Py_BytesMain",
    "Py_Main",
    "Py_RunMain",
    "_Py_UnixMain",
    "PyRun_",
    "_PyRun_",
    "_Py_HandlePending",
    // `python -X perf` makes one for each Python function, named `py::function:file`.
    "_Py_trampoline_func_start",
    "py::",
];

/// Static parts of it (prefixes), whose names mean this inside CPython's own files only.
const STATIC_MACHINERY: &[&str] = &[
    "cfunction_",
    "method_vectorcall",
    "method_call",
    "vectorcall_",
    "slot_tp_call",
    "slot_tp_init",
    "slot_tp_new",
    "slot_tp_iternext",
    "type_call",
    "call_function",
    "do_call_core",
    "function_code_fastcall",
    "object_vacall",
    "property_descr_get",
    "classmethoddescr_call",
    "gen_send_ex",
    "gen_iternext",
    "gen_send",
    "wrap_call",
    "wrapper_call",
    "wrapperdescr_call",
    "run_eval_code_obj",
    "run_mod",
    "pyrun_",
    "pymain_",
    "fast_function",
    "builtin_exec",
    "py_trampoline_evaluator",
];

/// A frame that says that the outer frames of the stack are missing.
pub fn truncated(kind: FrameKind) -> Frame {
    Frame::marker(kind, "[truncated]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture;

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

    /// Roles follow names, and where there is no name, the module.
    #[test]
    fn roles_follow_names_then_modules() {
        for (name, module, expected) in [
            (Some("_PyEval_EvalFrameDefault.cold"), LIB, Role::Evaluation),
            (Some("_TAIL_CALL_BINARY_OP"), LIB, Role::Evaluation),
            (Some("_PyEval_Vector"), LIB, Role::Interpreter),
            (
                Some("_PyFunction_Vectorcall"),
                "/usr/sbin/uwsgi",
                Role::Interpreter,
            ),
            (
                Some("cfunction_vectorcall_FASTCALL"),
                LIB,
                Role::Interpreter,
            ),
            (Some("cfunction_table"), "/srv/ext.so", Role::Other),
            (Some("py::handler:/srv/app.py"), "", Role::Interpreter),
            (Some("builtin_sorted"), LIB, Role::Other),
            (Some("main"), "/usr/bin/python3.11", Role::Startup),
            (None, "/usr/bin/python3.11", Role::Interpreter),
            (None, "/usr/bin/python3", Role::Interpreter),
            (None, "/opt/libpython3.13t.so.1.0", Role::Interpreter),
            (None, "/usr/bin/pythonista", Role::Other),
            (None, "/lib/libc.so.6", Role::Other),
        ] {
            assert_eq!(role(name, module), expected, "{name:?} in {module}");
        }
    }
}
