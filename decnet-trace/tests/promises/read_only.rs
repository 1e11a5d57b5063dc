//! The programs only read: every helper that they call is on a list, with its reason.

use ::object::{File, Object as _, ObjectSection as _, SectionKind};
use decnet_trace::bpf;

/// The helpers that programs may call (include/uapi/linux/bpf.h), and what for. None of them changes
/// anything outside the programs' own maps and rings.
const ALLOWED: &[(i32, &str)] = &[
    (1, "map_lookup_elem: targets, counters, scratch"),
    (2, "map_update_elem: heads that go on, children of targets"),
    (3, "map_delete_elem: targets that ended"),
    (5, "ktime_get_ns: when a record was made"),
    (8, "get_smp_processor_id: which ring"),
    (14, "get_current_pid_tgid: who runs"),
    (16, "get_current_comm: the name of a process that began"),
    (67, "get_stack: the stacks of a sample"),
    (112, "probe_read_user: payload, interpreters"),
    (113, "probe_read_kernel: sockets, files, tasks"),
    (114, "probe_read_user_str: statements, names of databases"),
    (115, "probe_read_kernel_str: names"),
    (118, "jiffies64: how long a request waited"),
    (
        127,
        "seq_write: a line of the list of threads, to the agent that reads it",
    ),
    (130, "ringbuf_output: hands a record over"),
    (134, "ringbuf_query: how full a ring is"),
    (158, "get_current_task_btf: the running task"),
    (174, "get_attach_cookie: which library was hit"),
    (175, "task_pt_regs: the arguments of its system call"),
    (181, "loop: walks a Python stack"),
];

/// The kinds of programs: all of them watch, and cannot decide anything.
const KINDS: &[&str] = &[
    "tp_btf/",
    "tracepoint",
    "perf_event",
    "uprobe",
    "uretprobe",
    "iter/task",
    ".text",
];

const CALL: u8 = 0x85;
const LOAD_WIDE: u8 = 0x18;

/// What the programs of an object do that they should not.
fn forbidden(elf: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let file = File::parse(elf).unwrap();
    for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
        let name = section.name().unwrap();
        if !KINDS.iter().any(|kind| name.starts_with(kind)) {
            found.push(format!("{name} is another kind of program"));
        }
        let code = section.data().unwrap();
        let mut instructions = code.chunks_exact(8);
        while let Some(instruction) = instructions.next() {
            let source = instruction[1] >> 4;
            let immediate = i32::from_le_bytes(instruction[4..].try_into().unwrap());
            match (instruction[0], source) {
                (LOAD_WIDE, _) => _ = instructions.next(),
                (CALL, 0) if ALLOWED.iter().any(|(helper, _)| *helper == immediate) => {}
                (CALL, 0) => found.push(format!("{name} calls helper {immediate}")),
                // A function of the same object.
                (CALL, 1) => {}
                (CALL, _) => found.push(format!("{name} calls kernel function {immediate}")),
                _ => {}
            }
        }
    }
    found
}

fn embedded() -> Option<&'static [u8]> {
    let object = bpf::object::get(false);
    if let Err(error) = &object {
        println!("SKIPPED: {error}");
    }
    object.ok()
}

/// The object that the agent loads calls what is on the list, and nothing else.
#[test]
fn calls_only_what_is_allowed() {
    let Some(object) = embedded() else {
        return;
    };
    let found = forbidden(object);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A call that writes to a process, changes what a function returns, sends a signal or rewrites a packet
/// would be found wherever it stood.
#[test]
fn finds_what_is_forbidden() {
    let Some(object) = embedded() else {
        return;
    };
    // probe_write_user, override_return, send_signal, send_signal_thread, skb_store_bytes, msg_push_data,
    // redirect_map, d_path: the last is harmless, and still nobody put it on the list.
    for helper in [36, 58, 109, 117, 9, 90, 51, 147] {
        let file = File::parse(object).unwrap();
        for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
            let (start, _) = section.file_range().unwrap();
            let mut bytes = object.to_vec();
            let first = usize::try_from(start).unwrap();
            bytes[first..first + 2].copy_from_slice(&[CALL, 0]);
            bytes[first + 4..first + 8].copy_from_slice(&i32::to_le_bytes(helper));
            let name = section.name().unwrap();
            let want = format!("{name} calls helper {helper}");
            assert!(forbidden(&bytes).contains(&want), "{want}");
        }
    }
}
