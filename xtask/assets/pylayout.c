/* Prints where one CPython keeps the struct fields that decnet-trace reads: a line "name value" each.
 * From 3.13 on also, as "own.name value", where in its _Py_DebugOffsets it says so itself.
 *
 * Compiled by `cargo xtask pylayout` against the headers of each CPython at hand, internal ones
 * included; nothing of CPython is linked or run. A field that a version lacks is not printed.
 * The names are those of decnet-trace/src/python/layout.rs.
 */
#define PY_SSIZE_T_CLEAN
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#if PY_VERSION_HEX < 0x03080000 || PY_VERSION_HEX >= 0x03100000
#error "CPython 3.8 to 3.15 only"
#endif

#include "internal/pycore_pystate.h"
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_gil.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#endif
#if PY_VERSION_HEX < 0x030b0000
#include <frameobject.h>
#else
#include "internal/pycore_code.h"
#include "internal/pycore_dict.h"
#include "internal/pycore_frame.h"
#endif
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interpframe.h"
#include "internal/pycore_interpframe_structs.h"
#include "internal/pycore_runtime_structs.h"
#include "internal/pycore_stackref.h"
#include "internal/pycore_tstate.h"
#endif

#if PY_VERSION_HEX < 0x030b0000
/* Objects/dict-common.h, which is not installed; the same from 3.6 to 3.10. */
typedef struct {
    Py_ssize_t dk_refcnt;
    Py_ssize_t dk_size;
    void *dk_lookup;
    Py_ssize_t dk_usable;
    Py_ssize_t dk_nentries;
    char dk_indices[];
} keys_t;
#else
typedef struct _dictkeysobject keys_t;
#endif

static void put(const char *name, unsigned long value)
{
    printf("%s %lu\n", name, value);
}

#define FIELD(name, type, field) put(name, offsetof(type, field))

/* The bits that setting a bit-field sets, as a mask of the 32-bit word at `word`. */
#define MASK(name, type, word, field, value)                                                       \
    do {                                                                                           \
        type object;                                                                               \
        unsigned int bits;                                                                         \
        memset(&object, 0, sizeof object);                                                         \
        object.field = (value);                                                                    \
        memcpy(&bits, (char *)&object + (word), sizeof bits);                                      \
        put(name, bits);                                                                           \
    } while (0)

/* Where _Py_DebugOffsets holds the field `name`. */
#define OWN(name, member) put("own." name, offsetof(struct _Py_DebugOffsets, member))

#if PY_VERSION_HEX >= 0x030d0000
static void debug_offsets(void)
{
    OWN("runtime_size", runtime_state.size);
    OWN("runtime_interpreters_head", runtime_state.interpreters_head);
    OWN("interp_size", interpreter_state.size);
    OWN("interp_next", interpreter_state.next);
    OWN("interp_id", interpreter_state.id);
    OWN("interp_threads_head", interpreter_state.threads_head);
    OWN("interp_modules", interpreter_state.imports_modules);
    OWN("thread_size", thread_state.size);
    OWN("thread_next", thread_state.next);
    OWN("thread_interp", thread_state.interp);
    OWN("thread_frame", thread_state.current_frame);
    OWN("thread_thread_id", thread_state.thread_id);
    OWN("thread_native_thread_id", thread_state.native_thread_id);
    OWN("frame_previous", interpreter_frame.previous);
    OWN("frame_code", interpreter_frame.executable);
    OWN("frame_instr", interpreter_frame.instr_ptr);
    OWN("frame_localsplus", interpreter_frame.localsplus);
    OWN("frame_owner", interpreter_frame.owner);
    OWN("code_filename", code_object.filename);
    OWN("code_name", code_object.name);
    OWN("code_qualname", code_object.qualname);
    OWN("code_linetable", code_object.linetable);
    OWN("code_firstlineno", code_object.firstlineno);
    OWN("code_argcount", code_object.argcount);
    OWN("code_instructions", code_object.co_code_adaptive);
    OWN("object_type", pyobject.ob_type);
    OWN("object_var_size", bytes_object.ob_size);
    OWN("type_name", type_object.tp_name);
    OWN("type_flags", type_object.tp_flags);
    OWN("unicode_state", unicode_object.state);
    OWN("unicode_length", unicode_object.length);
    OWN("unicode_ascii_data", unicode_object.asciiobject_size);
    OWN("bytes_data", bytes_object.ob_sval);
    OWN("list_items", list_object.ob_item);
    OWN("dict_keys", dict_object.ma_keys);
    OWN("dict_values", dict_object.ma_values);
#if PY_VERSION_HEX >= 0x030e0000
    OWN("frame_stack_top", interpreter_frame.stackpointer);
    OWN("set_mask", set_object.mask);
    OWN("set_table", set_object.table);
    OWN("coro_frame", gen_object.gi_iframe);
    OWN("coro_frame_state", gen_object.gi_frame_state);
#endif
#if PY_VERSION_HEX >= 0x030f0000
    OWN("thread_gil", thread_state.holds_gil);
    OWN("unicode_compact_data", unicode_object.compactunicodeobject_size);
#endif
    put("own_size", sizeof(struct _Py_DebugOffsets));
}
#endif

static void runtime(void)
{
    put("runtime_size", sizeof(_PyRuntimeState));
    FIELD("runtime_initialized", _PyRuntimeState, initialized);
    FIELD("runtime_interpreters_head", _PyRuntimeState, interpreters.head);
    FIELD("runtime_main_thread", _PyRuntimeState, main_thread);
#if PY_VERSION_HEX < 0x030c0000
    FIELD("runtime_auto_tss_key", _PyRuntimeState, gilstate.autoTSSkey);
    FIELD("runtime_current_thread", _PyRuntimeState, gilstate.tstate_current);
#elif PY_VERSION_HEX < 0x030f0000
    FIELD("runtime_auto_tss_key", _PyRuntimeState, autoTSSkey);
#endif
    put("interp_size", sizeof(PyInterpreterState));
    FIELD("interp_next", PyInterpreterState, next);
    FIELD("interp_id", PyInterpreterState, id);
#if PY_VERSION_HEX < 0x030b0000
    FIELD("interp_threads_head", PyInterpreterState, tstate_head);
#else
    FIELD("interp_threads_head", PyInterpreterState, threads.head);
#endif
#if PY_VERSION_HEX < 0x030c0000
    FIELD("interp_modules", PyInterpreterState, modules);
#else
    FIELD("interp_modules", PyInterpreterState, imports.modules);
#endif
}

static void thread(void)
{
    put("thread_size", sizeof(PyThreadState));
    FIELD("thread_next", PyThreadState, next);
    FIELD("thread_interp", PyThreadState, interp);
#if PY_VERSION_HEX < 0x030b0000
    FIELD("thread_frame", PyThreadState, frame);
#elif PY_VERSION_HEX < 0x030d0000
    FIELD("thread_frame", PyThreadState, cframe);
    FIELD("cframe_current_frame", _PyCFrame, current_frame);
#else
    FIELD("thread_frame", PyThreadState, current_frame);
#endif
#if PY_VERSION_HEX >= 0x030a0000 && PY_VERSION_HEX < 0x030c0000
    /* A variable of the evaluation loop's C function; 3.12's thread states tell by themselves. */
    FIELD("thread_c_frame", PyThreadState, cframe);
#endif
    FIELD("thread_thread_id", PyThreadState, thread_id);
#if PY_VERSION_HEX >= 0x030b0000
    FIELD("thread_native_thread_id", PyThreadState, native_thread_id);
#endif
    FIELD("thread_context", PyThreadState, context);
#if PY_VERSION_HEX >= 0x030e0000
    FIELD("thread_gil", PyThreadState, holds_gil);
    put("thread_gil_mask", 0xffffffffUL);
#elif PY_VERSION_HEX >= 0x030d0000
    FIELD("thread_gil", PyThreadState, _status);
    MASK("thread_gil_mask", PyThreadState, offsetof(PyThreadState, _status), _status.holds_gil, 1);
#elif PY_VERSION_HEX >= 0x030c0000
    /* A thread state is active exactly while its thread holds the interpreter's GIL. */
    FIELD("thread_gil", PyThreadState, _status);
    MASK("thread_gil_mask", PyThreadState, offsetof(PyThreadState, _status), _status.active, 1);
#endif
}

static void frame(void)
{
#if PY_VERSION_HEX < 0x030b0000
    put("frame_size", offsetof(PyFrameObject, f_localsplus));
    FIELD("frame_previous", PyFrameObject, f_back);
    FIELD("frame_code", PyFrameObject, f_code);
    FIELD("frame_instr", PyFrameObject, f_lasti);
    FIELD("frame_localsplus", PyFrameObject, f_localsplus);
#if PY_VERSION_HEX < 0x030a0000
    FIELD("frame_stack_top", PyFrameObject, f_stacktop);
    FIELD("frame_state", PyFrameObject, f_executing);
#else
    FIELD("frame_stack_base", PyFrameObject, f_valuestack);
    FIELD("frame_stack_depth", PyFrameObject, f_stackdepth);
    FIELD("frame_state", PyFrameObject, f_state);
#endif
#else
    put("frame_size", offsetof(_PyInterpreterFrame, localsplus));
    FIELD("frame_previous", _PyInterpreterFrame, previous);
    FIELD("frame_owner", _PyInterpreterFrame, owner);
#if PY_VERSION_HEX < 0x030c0000
    FIELD("frame_entry", _PyInterpreterFrame, is_entry);
#endif
    FIELD("frame_localsplus", _PyInterpreterFrame, localsplus);
#if PY_VERSION_HEX < 0x030d0000
    FIELD("frame_code", _PyInterpreterFrame, f_code);
    FIELD("frame_instr", _PyInterpreterFrame, prev_instr);
#else
    FIELD("frame_code", _PyInterpreterFrame, f_executable);
    FIELD("frame_instr", _PyInterpreterFrame, instr_ptr);
#endif
#if PY_VERSION_HEX < 0x030e0000
    FIELD("frame_stack_depth", _PyInterpreterFrame, stacktop);
#else
    FIELD("frame_stack_top", _PyInterpreterFrame, stackpointer);
    put("frame_code_tag", Py_TAG_BITS);
#endif
#if PY_VERSION_HEX >= 0x030e0000
    put("frame_owner_shim", FRAME_OWNED_BY_INTERPRETER);
#elif PY_VERSION_HEX >= 0x030c0000
    put("frame_owner_shim", FRAME_OWNED_BY_CSTACK);
#endif
#endif
}

static void code(void)
{
#if PY_VERSION_HEX < 0x030b0000
    put("code_size", sizeof(PyCodeObject));
#else
    put("code_size", offsetof(PyCodeObject, co_code_adaptive));
    FIELD("code_instructions", PyCodeObject, co_code_adaptive);
    FIELD("code_qualname", PyCodeObject, co_qualname);
#endif
#if PY_VERSION_HEX >= 0x030c0000
    FIELD("code_version", PyCodeObject, co_version);
#endif
    FIELD("code_argcount", PyCodeObject, co_argcount);
    FIELD("code_flags", PyCodeObject, co_flags);
    FIELD("code_firstlineno", PyCodeObject, co_firstlineno);
    FIELD("code_filename", PyCodeObject, co_filename);
    FIELD("code_name", PyCodeObject, co_name);
#if PY_VERSION_HEX < 0x030a0000
    FIELD("code_linetable", PyCodeObject, co_lnotab);
#else
    FIELD("code_linetable", PyCodeObject, co_linetable);
#endif
}

static void objects(void)
{
    FIELD("object_type", PyObject, ob_type);
    FIELD("object_var_size", PyVarObject, ob_size);
    FIELD("type_name", PyTypeObject, tp_name);
    FIELD("type_flags", PyTypeObject, tp_flags);
    FIELD("type_basicsize", PyTypeObject, tp_basicsize);
    FIELD("type_dictoffset", PyTypeObject, tp_dictoffset);
    FIELD("type_cached_keys", PyHeapTypeObject, ht_cached_keys);
    FIELD("unicode_length", PyASCIIObject, length);
    FIELD("unicode_state", PyASCIIObject, state);
    MASK("unicode_kind_mask", PyASCIIObject, offsetof(PyASCIIObject, state), state.kind, 7);
    MASK("unicode_compact_mask", PyASCIIObject, offsetof(PyASCIIObject, state), state.compact, 1);
    MASK("unicode_ascii_mask", PyASCIIObject, offsetof(PyASCIIObject, state), state.ascii, 1);
    put("unicode_ascii_data", sizeof(PyASCIIObject));
    put("unicode_compact_data", sizeof(PyCompactUnicodeObject));
    FIELD("bytes_data", PyBytesObject, ob_sval);
    FIELD("list_items", PyListObject, ob_item);
    FIELD("set_mask", PySetObject, mask);
    FIELD("set_table", PySetObject, table);
    FIELD("weakref_object", PyWeakReference, wr_object);
    FIELD("dict_keys", PyDictObject, ma_keys);
    FIELD("dict_values", PyDictObject, ma_values);
    FIELD("keys_entries", keys_t, dk_nentries);
    FIELD("keys_indices", keys_t, dk_indices);
#if PY_VERSION_HEX < 0x030b0000
    FIELD("keys_size", keys_t, dk_size);
#else
    FIELD("keys_log2_size", keys_t, dk_log2_size);
    FIELD("keys_log2_index_bytes", keys_t, dk_log2_index_bytes);
    FIELD("keys_kind", keys_t, dk_kind);
    FIELD("values_items", struct _dictvalues, values);
#endif
}

static void coroutines(void)
{
#if PY_VERSION_HEX < 0x030b0000
    FIELD("coro_frame", PyCoroObject, cr_frame);
    FIELD("coro_code", PyCoroObject, cr_code);
#else
    FIELD("coro_frame", PyCoroObject, cr_iframe);
    FIELD("coro_frame_state", PyCoroObject, cr_frame_state);
#endif
#if PY_VERSION_HEX >= 0x030a0000
    /* Signed bytes; in all versions created < suspended < executing < finished. */
    put("state_created", (unsigned char)FRAME_CREATED);
    put("state_executing", (unsigned char)FRAME_EXECUTING);
#endif
#if PY_VERSION_HEX >= 0x030e0000
    FIELD("thread_asyncio_running_task", _PyThreadStateImpl, asyncio_running_task);
#endif
}

int main(void)
{
    printf("# CPython %s\n", PY_VERSION);
    put("version", PY_VERSION_HEX >> 16);
    runtime();
    thread();
    frame();
    code();
    objects();
    coroutines();
#if PY_VERSION_HEX >= 0x030d0000
    debug_offsets();
#endif
    return 0;
}
