//! The eBPF object that was embedded when this was built, if one was.

use crate::error::{Error, Result};

/// Object files must be aligned for the parser.
#[cfg(any(bpf_object, bpf_log_object))]
macro_rules! embedded {
    ($variable:literal) => {
        Some(aya::include_bytes_aligned!(env!($variable)))
    };
}

#[cfg(bpf_object)]
const OBJECT: Option<&[u8]> = embedded!("DECNET_TRACE_BPF_OBJECT");
#[cfg(not(bpf_object))]
const OBJECT: Option<&[u8]> = None;

#[cfg(bpf_log_object)]
const LOG_OBJECT: Option<&[u8]> = embedded!("DECNET_TRACE_BPF_LOG_OBJECT");
#[cfg(not(bpf_log_object))]
const LOG_OBJECT: Option<&[u8]> = None;

/// The object; with `log`, the one whose programs say what they do.
///
/// # Errors
///
/// When this was built without it.
pub fn get(log: bool) -> Result<&'static [u8]> {
    let (object, command) = if log {
        (LOG_OBJECT, "cargo xtask build-ebpf --log")
    } else {
        (OBJECT, "cargo xtask build-ebpf")
    };
    object.ok_or_else(|| {
        Error::unsupported(format!(
            "this decnet-trace was built without its eBPF object; run `{command}` and build again"
        ))
    })
}
