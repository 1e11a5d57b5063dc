//! Where the running kernel keeps the struct fields that the hooks read.
//!
//! Rust's eBPF objects carry no CO-RE relocations, so the user side resolves these from the kernel's
//! own BTF at start and hands them over as a read-only global. The verifier then knows them as
//! constants, and checks each typed access against the same BTF.

use crate::{assert_layout, pod};

/// Byte offsets in kernel structs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `struct sock.sk_socket`
    pub sock_socket: u32,
    /// `struct sock.sk_type`
    pub sock_type: u32,
    /// `struct sock_common.skc_family`
    pub skc_family: u32,
    /// `struct sock_common.skc_daddr`
    pub skc_daddr: u32,
    /// `struct sock_common.skc_rcv_saddr`
    pub skc_rcv_saddr: u32,
    /// `struct sock_common.skc_dport`
    pub skc_dport: u32,
    /// `struct sock_common.skc_num`
    pub skc_num: u32,
    /// `struct sock_common.skc_v6_daddr`; [`ABSENT`] without IPv6.
    pub skc_v6_daddr: u32,
    /// `struct sock_common.skc_v6_rcv_saddr`; [`ABSENT`] without IPv6.
    pub skc_v6_rcv_saddr: u32,
    /// `struct socket_alloc.vfs_inode`
    pub socket_inode: u32,
    /// `struct inode.i_ino`
    pub inode_ino: u32,
    /// `struct inode.i_mode`
    pub inode_mode: u32,
    /// `struct inet_connection_sock.icsk_ack.lrcvtime`; [`ABSENT`] where the kernel lacks it.
    pub icsk_lrcvtime: u32,
    /// `struct task_struct.signal`
    pub task_signal: u32,
    /// `struct signal_struct.live`
    pub signal_live: u32,
    /// `struct task_struct.tgid`
    pub task_tgid: u32,
    /// `struct task_struct.pid`
    pub task_pid: u32,
    /// `struct task_struct.comm`
    pub task_comm: u32,
    /// `struct task_struct.thread.fsbase` (x86-64)
    pub task_fsbase: u32,
    /// `struct task_struct.files`
    pub task_files: u32,
    /// `struct files_struct.fdt`
    pub files_fdt: u32,
    /// `struct fdtable.fd`
    pub fdtable_fd: u32,
    /// `struct fdtable.max_fds`
    pub fdtable_max_fds: u32,
    /// `struct file.f_inode`
    pub file_inode: u32,
    /// `struct file.private_data`
    pub file_private_data: u32,
    /// `struct socket.sk`
    pub socket_sk: u32,
    /// `struct sock.sk_protocol`
    pub sock_protocol: u32,
    /// `struct task_struct.__state`; [`ABSENT`] where the kernel lacks it, like the next three.
    pub task_state: u32,
    /// `struct task_struct.on_cpu`
    pub task_on_cpu: u32,
    /// `struct task_struct.nvcsw`
    pub task_nvcsw: u32,
    /// `struct task_struct.nivcsw`
    pub task_nivcsw: u32,
    /// `struct task_struct.sched_info.last_queued`; [`ABSENT`] where the kernel lacks it, like the next.
    pub task_last_queued: u32,
    /// `struct task_struct.sched_info.last_arrival`
    pub task_last_arrival: u32,
    /// `struct unix_sock.peer`; [`ABSENT`] where the kernel's BTF lacks any of these four.
    pub unix_peer: u32,
    /// `struct unix_sock.addr`
    pub unix_addr: u32,
    /// `struct unix_address.len`
    pub unix_address_len: u32,
    /// `struct unix_address.name`
    pub unix_address_name: u32,
    /// Zero.
    pub reserved: u32,
}

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

assert_layout! { KernelOffsets = 152 }
pod!(KernelOffsets);
