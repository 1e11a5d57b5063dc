//! decnet-trace's eBPF programs: hook → gate → one small record → the CPU's ring.
//!
//! Nothing here writes to a traced process: the helpers used are an allow-list that a test holds the
//! object to.
#![no_std]
#![no_main]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unstable_features,
        reason = "inline assembly for BPF is not stable; see `read::mask`"
    ),
    feature(asm_experimental_arch)
)]

#[macro_use]
mod log;

mod emit;
mod gate;
mod hooks;
mod maps;
mod offsets;
mod python;
mod read;
mod sock;
mod syscall;
mod unwind;

/// The licence that the kernel asks for before it lends its tracing helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that can get here: there is no panic at run time.
    loop {}
}
