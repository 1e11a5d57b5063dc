//! Bounded reads of kernel and user memory.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str,
};

/// Reads a value from user memory; `None` where it is not there, or not resident.
#[inline(always)]
pub(crate) fn user<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes or fails; `T` is plain data.
    unsafe {
        if bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        ) != 0
        {
            return None;
        }
        Some(value.assume_init())
    }
}

/// Reads `len` bytes of user memory to `to`; whether that worked.
#[inline(always)]
pub(crate) fn user_bytes(to: *mut u8, len: u32, address: u64) -> bool {
    // SAFETY: the verifier proves `to` writable for `len` bytes.
    unsafe { bpf_probe_read_user(to.cast(), len, address as *const _) == 0 }
}

/// Reads a string of less than `room` bytes to `to`; its length without its NUL.
#[inline(always)]
pub(crate) fn user_string(to: *mut u8, room: u32, address: u64) -> u64 {
    // SAFETY: the verifier proves `to` writable for `room` bytes.
    let len = unsafe { bpf_probe_read_user_str(to.cast(), room, address as *const _) };
    if len > 0 { len as u64 - 1 } else { 0 }
}

/// Reads `len` bytes of kernel memory to `to`; whether that worked.
#[inline(always)]
pub(crate) fn kernel_bytes(to: *mut u8, len: u32, address: u64) -> bool {
    // SAFETY: the verifier proves `to` writable for `len` bytes.
    unsafe { bpf_probe_read_kernel(to.cast(), len, address as *const _) == 0 }
}

/// Reads a value from kernel memory at `base + offset`.
#[inline(always)]
pub(crate) fn kernel<T: Copy>(base: u64, offset: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes or fails; `T` is plain data.
    unsafe {
        if bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + offset as u64) as *const _,
        ) != 0
        {
            return None;
        }
        Some(value.assume_init())
    }
}

/// Reads a field of a struct that the verifier knows by its BTF type.
///
/// # Safety
///
/// `base` must be a pointer that the kernel handed to the program with its type, and `offset` that
/// of a `T` in it, from the kernel's own BTF. The verifier checks both.
#[inline(always)]
pub(crate) unsafe fn typed<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: as above.
    unsafe { base.add(offset).cast::<T>().read_volatile() }
}

/// `value & MASK`, in a way that the compiler cannot reason away, for the verifier to see.
#[inline(always)]
pub(crate) fn mask<const MASK: i32>(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut masked = value;
        // SAFETY: one arithmetic instruction on one register.
        unsafe {
            core::arch::asm!("{0} &= {1}", inout(reg) masked, const MASK, options(pure, nomem, nostack));
        }
        masked
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value & MASK as u64
    }
}
