//! Where in a function a uprobe is cheapest.
//!
//! A probe is a breakpoint. Behind it the kernel either emulates the instruction that stood there, or executes
//! a copy of it in single step, which takes a second exception: some microseconds where a hypervisor wants to
//! know of it (20 to 30 have been seen), for each hit.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    Register,
};

/// How many bytes of a function are looked at.
pub const BYTES: usize = 64;

/// How many instructions.
const INSTRUCTIONS: usize = 12;

/// What a probe is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The function's first three arguments.
    Arguments,
    /// Its return: the return address must still be the last thing on the stack.
    Return,
}

/// The cheapest place for a probe on the function at an offset in a file, as an offset in the file.
///
/// # Errors
///
/// When the file cannot be read.
pub fn place(file: &Path, function: u64, sight: Sight) -> io::Result<u64> {
    let mut code = [0; BYTES];
    let read = File::open(file)?.read_at(&mut code, function)?;
    Ok(function + cheapest(code.get(..read).unwrap_or_default(), sight))
}

/// The instructions at the beginning of a function, as far as they follow each other.
pub fn straight(code: &[u8]) -> impl Iterator<Item = Instruction> + '_ {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended || !decoder.can_decode() {
            return None;
        }
        let instruction = decoder.decode();
        ended = instruction.is_invalid()
            || !matches!(
                instruction.flow_control(),
                FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::Call
            );
        (!instruction.is_invalid()).then_some(instruction)
    })
    .take(INSTRUCTIONS)
}

/// The offset in a function of the first instruction that the kernel emulates (arch/x86/kernel/uprobes.c:
/// `branch_setup_xol_ops`, `push_setup_xol_ops`), as far as a probe there sees what it is to see; the
/// function's beginning where there is none.
pub fn cheapest(code: &[u8], sight: Sight) -> u64 {
    let needed: &[Register] = match sight {
        Sight::Arguments => &[Register::RDI, Register::RSI, Register::RDX],
        Sight::Return => &[Register::RSP],
    };
    let mut info = InstructionInfoFactory::new();
    for instruction in straight(code) {
        if is_emulated(&instruction) {
            return instruction.ip();
        }
        let keeps_all = info.info(&instruction).used_registers().iter().all(|used| {
            let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            reads || !needed.contains(&used.register().full_register())
        });
        if !keeps_all {
            break;
        }
    }
    0
}

fn is_emulated(instruction: &Instruction) -> bool {
    instruction.is_jcc_short_or_near()
        || matches!(
            instruction.code(),
            Code::Push_r64 | Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64
        )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::{Sight::*, *};

    /// The probe goes to the jump behind a test, to a push, or, past an instruction that changes an
    /// argument, to the beginning.
    #[test]
    fn probes_where_it_is_cheap() {
        let jump = [
            0x31, 0xc0, 0x48, 0x85, 0xff, 0x74, 0x03, 0x8b, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(cheapest(&jump, Arguments), 5);
        let push = [0x41, 0x54, 0x55, 0x31, 0xed];
        assert_eq!(cheapest(&push, Arguments), 0);
        // sub $16,%rsp; mov %rcx,%r9; mov $128,%ecx; push %r8
        let prepare = [
            0x48, 0x83, 0xec, 0x10, 0x49, 0x89, 0xc9, 0xb9, 0x80, 0, 0, 0, 0x41, 0x50,
        ];
        assert_eq!(cheapest(&prepare, Arguments), 12);
        // mov %rsi,%rdi; push %rbx
        assert_eq!(cheapest(&[0x48, 0x89, 0xf7, 0x53], Arguments), 0);
        assert_eq!(cheapest(&[0xc3, 0x53], Arguments), 0);
        // endbr64; push %rbp, as compilers begin functions with CET
        let cet = [0xf3, 0x0f, 0x1e, 0xfa, 0x55];
        assert_eq!(cheapest(&cet, Arguments), 4);
        assert_eq!(cheapest(&cet, Return), 4);
    }

    /// A probe of the return may pass arguments that change, but not the stack: behind `sub $16,%rsp` the
    /// return address would not be found.
    #[test]
    fn returns_keep_the_stack() {
        assert_eq!(cheapest(&[0x48, 0x89, 0xf7, 0x53], Return), 3);
        // test %rcx,%rcx; jne
        assert_eq!(cheapest(&[0x48, 0x85, 0xc9, 0x75, 0x13], Return), 3);
        assert_eq!(cheapest(&[0x48, 0x83, 0xec, 0x10, 0x53], Return), 0);
        assert_eq!(cheapest(&[0x48, 0x83, 0xec, 0x10, 0x53], Arguments), 4);
    }

    proptest::proptest! {
        /// No bytes make it panic, and a probe always stands inside of them.
        #[test]
        fn survives_anything(code in proptest::collection::vec(proptest::num::u8::ANY, 0..BYTES)) {
            for sight in [Arguments, Return] {
                let at = usize::try_from(cheapest(&code, sight)).unwrap();
                proptest::prop_assert!(at == 0 || at < code.len());
            }
        }
    }
}
