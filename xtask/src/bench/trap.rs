//! What a uprobe costs by itself: the trap into the kernel and back, without a program.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// `PERF_FLAG_FD_CLOEXEC` (Linux, include/uapi/linux/perf_event.h).
const FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Calls in one measurement.
const CALLS: u32 = 50_000;

/// The prices of a trap, in nanoseconds of the traced thread's time.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// At a function's entry.
    pub entry: Vec<f64>,
    /// At its entry and its return, as a return probe takes both.
    pub entry_and_return: Vec<f64>,
}

/// Measures them, so often, on a function of this program: nobody else is disturbed.
///
/// # Errors
/// The kernel has no uprobes for perf events, or this is not root.
pub fn prices(samples: usize) -> Result<Prices> {
    let probed = Probed::find()?;
    let mut prices = Prices {
        entry: Vec::new(),
        entry_and_return: Vec::new(),
    };
    for _ in 0..samples {
        let without = nanos_per_call();
        let probe = probed.attach(false)?;
        let entry = nanos_per_call();
        drop(probe);
        let probe = probed.attach(true)?;
        let both = nanos_per_call();
        drop(probe);
        prices.entry.push(entry - without);
        prices.entry_and_return.push(both - without);
    }
    Ok(prices)
}

/// A function that begins as most do, with an instruction that the kernel need not single-step.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn probed() {
    std::arch::naked_asm!("push rbp", "mov rbp, rsp", "pop rbp", "ret")
}

/// A function of its own.
#[cfg(not(target_arch = "x86_64"))]
#[inline(never)]
extern "C" fn probed() {
    std::hint::black_box(0);
}

fn nanos_per_call() -> f64 {
    let function = std::hint::black_box(probed as extern "C" fn());
    let now = || clock_gettime(ClockId::ThreadCPUTime);
    let before = now();
    for _ in 0..CALLS {
        function();
    }
    let after = now();
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    let nanos =
        ((after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec) as f64;
    nanos / f64::from(CALLS)
}

/// Where the function lies in this program's file.
struct Probed {
    kind: u32,
    file: CString,
    offset: u64,
}

/// `struct perf_event_attr` as of its first extension (Linux, include/uapi/linux/perf_event.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    /// Of a uprobe: a pointer to the file's path.
    config1: u64,
    /// Of a uprobe: the offset in it.
    config2: u64,
}

impl Probed {
    fn find() -> Result<Self> {
        let path = "/sys/bus/event_source/devices/uprobe/type";
        let kind = fs::read_to_string(path)
            .context("this kernel has no uprobes for perf events")?
            .trim()
            .parse()
            .with_context(|| format!("{path} holds no number"))?;
        let exe = fs::read_link("/proc/self/exe").context("cannot find this program")?;
        let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
        let at = probed as extern "C" fn() as usize as u64;
        let offset =
            offset_in(&maps, &exe, at).context("this program is not where it should be")?;
        let file = CString::new(exe.as_os_str().as_bytes()).context("a path with a NUL")?;
        Ok(Self { kind, file, offset })
    }

    fn attach(&self, at_return: bool) -> Result<OwnedFd> {
        let attributes = Attributes {
            kind: self.kind,
            size: u32::try_from(size_of::<Attributes>())?,
            config: u64::from(at_return),
            config1: self.file.as_ptr() as u64,
            config2: self.offset,
            ..Attributes::default()
        };
        // SAFETY: `attributes` is as large as it says, and it and the path outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                0,
                -1,
                -1,
                FD_CLOEXEC,
            )
        };
        if fd < 0 {
            bail!("cannot attach a uprobe: {}", io::Error::last_os_error());
        }
        // SAFETY: the call above made it, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
    }
}

/// Where an address of a mapped file lies in the file (proc_pid_maps(5)).
fn offset_in(maps: &str, file: &Path, at: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (begin, end) = (hex(begin)?, hex(end)?);
        let offset = hex(fields.nth(1)?)?;
        let path = fields.nth(2)?;
        ((begin..end).contains(&at) && Path::new(path) == file).then(|| at - begin + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses become offsets by the mapping that holds them.
    #[test]
    fn offsets() {
        let maps = "1000-2000 r--p 00000000 fe:00 7 /bin/x\n\
                    2000-4000 r-xp 00000800 fe:00 7 /bin/x\n\
                    5000-6000 r-xp 00000000 fe:00 8 /bin/y\n\
                    7000-8000 rw-p 00000000 00:00 0\n";
        let of = |at| offset_in(maps, Path::new("/bin/x"), at);
        assert_eq!(of(0x2010), Some(0x810));
        assert_eq!(of(0x1fff), Some(0xfff));
        assert_eq!(of(0x5001), None);
        assert_eq!(of(0x9000), None);
    }
}
