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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use aya_obj::{Object, generated::BPF_PSEUDO_CALL};

    use super::*;

    /// No program calls a function beside it: with such calls in the hooks, the verifier of Linux
    /// 5.15 came to no end in minutes.
    #[test]
    fn programs_are_of_one_piece() {
        const CALL: u8 = 0x85;
        let Some(object) = OBJECT else {
            println!("SKIPPED: this was built without its eBPF object");
            return;
        };
        let object = Object::parse(object).unwrap();
        assert!(!object.programs.is_empty());
        for (name, program) in &object.programs {
            let function = &object.functions[&program.function_key()];
            let calls = function
                .instructions
                .iter()
                .filter(|insn| insn.code == CALL && u32::from(insn.src_reg()) == BPF_PSEUDO_CALL)
                .count();
            assert_eq!(calls, 0, "{name}");
        }
    }
}
