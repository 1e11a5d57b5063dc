//! The offsets that the hooks read kernel structs by, resolved from the kernel's own BTF.

use decnet_trace_common::offsets::{ABSENT, KernelOffsets};
use thiserror::Error;

use super::btf::KernelBtf;

/// Where a thread's thread pointer is kept while it is in the kernel.
const THREAD_POINTER: &str = if cfg!(target_arch = "aarch64") {
    "thread.uw.tp_value"
} else {
    "thread.fsbase"
};

/// The offsets of a kernel.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The offsets; [`ABSENT`] where optional or in [`Self::fallback_missing`].
    pub offsets: KernelOffsets,
    /// Fields that only the fallback hooks (syscall tracepoints) read and that this kernel lacks, as
    /// `struct.member`. Not empty: those hooks must not be loaded.
    pub fallback_missing: Vec<String>,
}

/// The kernel lacks fields that every hook needs.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("this kernel's BTF lacks {}; the hooks cannot read its structs", names.join(", "))]
pub struct MissingOffsets {
    /// The fields, as `struct.member`.
    pub names: Vec<String>,
}

/// Resolves every field of [`KernelOffsets`].
///
/// # Errors
///
/// When a field is missing that is neither optional nor read by the fallback hooks alone.
pub fn resolve_offsets(btf: &KernelBtf) -> Result<Resolved, MissingOffsets> {
    let mut names = Vec::new();
    let mut fallback_missing = Vec::new();
    let or_note = |missing: &mut Vec<String>, structure: &str, path: &str| {
        btf.member_offset(structure, path).unwrap_or_else(|| {
            missing.push(format!("{structure}.{path}"));
            ABSENT
        })
    };
    let mut need = |structure, path| or_note(&mut names, structure, path);
    let mut fallback = |structure, path| or_note(&mut fallback_missing, structure, path);
    let optional = |structure, path| btf.member_offset(structure, path).unwrap_or(ABSENT);
    // All of these or none.
    let has_unix = [
        ("unix_sock", "peer"),
        ("unix_sock", "addr"),
        ("unix_address", "len"),
        ("unix_address", "name"),
    ]
    .into_iter()
    .all(|(structure, path)| btf.member_offset(structure, path).is_some());
    let unix = |structure, path| match has_unix {
        true => optional(structure, path),
        false => ABSENT,
    };

    // The hooks hold a `struct sock *`, so the fields of the `struct sock_common` that it begins with
    // are counted from the sock; so are those of the `struct inet_connection_sock` that begins with it.
    let offsets = KernelOffsets {
        sock_socket: need("sock", "sk_socket"),
        sock_type: need("sock", "sk_type"),
        skc_family: need("sock", "__sk_common.skc_family"),
        skc_daddr: need("sock", "__sk_common.skc_daddr"),
        skc_rcv_saddr: need("sock", "__sk_common.skc_rcv_saddr"),
        skc_dport: need("sock", "__sk_common.skc_dport"),
        skc_num: need("sock", "__sk_common.skc_num"),
        skc_v6_daddr: optional("sock", "__sk_common.skc_v6_daddr"),
        skc_v6_rcv_saddr: optional("sock", "__sk_common.skc_v6_rcv_saddr"),
        socket_inode: need("socket_alloc", "vfs_inode"),
        inode_ino: need("inode", "i_ino"),
        inode_mode: need("inode", "i_mode"),
        icsk_lrcvtime: optional("inet_connection_sock", "icsk_ack.lrcvtime"),
        task_signal: need("task_struct", "signal"),
        signal_live: need("signal_struct", "live"),
        task_tgid: need("task_struct", "tgid"),
        task_pid: need("task_struct", "pid"),
        task_comm: need("task_struct", "comm"),
        task_fsbase: need("task_struct", THREAD_POINTER),
        task_files: fallback("task_struct", "files"),
        files_fdt: fallback("files_struct", "fdt"),
        fdtable_fd: fallback("fdtable", "fd"),
        fdtable_max_fds: fallback("fdtable", "max_fds"),
        file_inode: fallback("file", "f_inode"),
        file_private_data: fallback("file", "private_data"),
        socket_sk: fallback("socket", "sk"),
        sock_protocol: need("sock", "sk_protocol"),
        task_state: optional("task_struct", "__state"),
        task_on_cpu: optional("task_struct", "on_cpu"),
        task_nvcsw: optional("task_struct", "nvcsw"),
        task_nivcsw: optional("task_struct", "nivcsw"),
        task_last_queued: optional("task_struct", "sched_info.last_queued"),
        task_last_arrival: optional("task_struct", "sched_info.last_arrival"),
        unix_peer: unix("unix_sock", "peer"),
        unix_addr: unix("unix_sock", "addr"),
        unix_address_len: unix("unix_address", "len"),
        unix_address_name: unix("unix_address", "name"),
        reserved: 0,
    };
    if names.is_empty() {
        Ok(Resolved {
            offsets,
            fallback_missing,
        })
    } else {
        Err(MissingOffsets { names })
    }
}
