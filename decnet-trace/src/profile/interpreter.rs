//! Which native functions are CPython's own machinery: what stands on the native stack where Python
//! frames run.

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
    "PyGen_am_send",
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
    "slot_",
    "call_unbound",
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "/usr/lib/libpython3.12.so.1.0";

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
