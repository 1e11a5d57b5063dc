//! What a few instructions at the beginning of a function say.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

/// How many bytes of a function are looked at.
pub(super) const BYTES: usize = 64;

/// How many instructions.
const INSTRUCTIONS: usize = 12;

/// The instructions at the beginning of a function, as far as they follow each other.
fn straight(code: &[u8]) -> impl Iterator<Item = Instruction> + '_ {
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

/// The offset of the field that a function returns of the struct that its first argument points to,
/// where it does nothing else: `return p ? p->field : 0`.
pub(super) fn field_returned(code: &[u8]) -> Option<u16> {
    let mut found = None;
    for instruction in straight(code) {
        match instruction.mnemonic() {
            Mnemonic::Ret => return found,
            Mnemonic::Endbr64 | Mnemonic::Nop | Mnemonic::Test | Mnemonic::Xor => {}
            _ if instruction.is_jcc_short_or_near() => {}
            // What is returned where there is no struct.
            _ if instruction.code() == Code::Mov_r32_imm32
                && instruction.op0_register() == Register::EAX
                && instruction.immediate32() == 0
                && found.is_none() => {}
            Mnemonic::Mov | Mnemonic::Movsx | Mnemonic::Movzx | Mnemonic::Movsxd => {
                let is_field = instruction.op1_kind() == OpKind::Memory
                    && instruction.memory_base() == Register::RDI
                    && instruction.memory_index() == Register::None
                    && instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register().full_register() == Register::RAX;
                if !is_field || found.is_some() {
                    return None;
                }
                found = u16::try_from(instruction.memory_displacement64()).ok();
            }
            _ => return None,
        }
    }
    None
}

/// The offset in a function at which a probe is cheapest and still sees its first three arguments: an
/// instruction that the kernel emulates rather than to execute it apart, which costs a second trap
/// (arch/x86/kernel/uprobes.c: `branch_setup_xol_ops`, `push_setup_xol_ops`). The function's beginning
/// where there is none.
pub(super) fn cheapest(code: &[u8]) -> u64 {
    let mut info = InstructionInfoFactory::new();
    for instruction in straight(code) {
        if is_emulated(&instruction) {
            return instruction.ip();
        }
        let keeps_arguments = info.info(&instruction).used_registers().iter().all(|used| {
            let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            reads
                || !matches!(
                    used.register().full_register(),
                    Register::RDI | Register::RSI | Register::RDX
                )
        });
        if !keeps_arguments {
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
    use super::*;

    /// `sqlite3_sql` and `sqlite3_bind_parameter_count` as Debian 12 has them, and the latter with a
    /// 16-bit field and CET.
    #[test]
    fn reads_what_accessors_return() {
        let sql = [
            0x48, 0x85, 0xff, 0x74, 0x0b, 0x48, 0x8b, 0x87, 0xf8, 0, 0, 0, 0xc3,
        ];
        assert_eq!(field_returned(&sql), Some(0xf8));
        let count = [
            0x31, 0xc0, 0x48, 0x85, 0xff, 0x74, 0x03, 0x8b, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(field_returned(&count), Some(0x20));
        let short = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x85, 0xff, 0x74, 0x05, 0x0f, 0xbf, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(field_returned(&short), Some(0x20));
        let unoptimised = [
            0xb8, 0, 0, 0, 0, 0x48, 0x85, 0xff, 0x74, 0x04, 0x0f, 0xbf, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(field_returned(&unoptimised), Some(0x20));
        let constant = [
            0xb8, 1, 0, 0, 0, 0x48, 0x85, 0xff, 0x74, 0x04, 0x0f, 0xbf, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(field_returned(&constant), None);
    }

    /// A function that does more than return a field tells nothing: here two loads, a call, and another
    /// register.
    #[test]
    fn refuses_what_is_no_accessor() {
        assert_eq!(
            field_returned(&[0x48, 0x8b, 0x47, 0x08, 0x48, 0x8b, 0x47, 0x10, 0xc3]),
            None
        );
        assert_eq!(
            field_returned(&[0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x47, 0x10, 0xc3]),
            None
        );
        assert_eq!(field_returned(&[0x48, 0x8b, 0x46, 0x10, 0xc3]), None);
        assert_eq!(field_returned(&[]), None);
    }

    /// The probe goes to the jump behind a test, to a push, or, past an instruction that changes an
    /// argument, to the beginning.
    #[test]
    fn probes_where_it_is_cheap() {
        let jump = [
            0x31, 0xc0, 0x48, 0x85, 0xff, 0x74, 0x03, 0x8b, 0x47, 0x20, 0xc3,
        ];
        assert_eq!(cheapest(&jump), 5);
        let push = [0x41, 0x54, 0x55, 0x31, 0xed];
        assert_eq!(cheapest(&push), 0);
        // sub $16,%rsp; mov %rcx,%r9; mov $128,%ecx; push %r8
        let prepare = [
            0x48, 0x83, 0xec, 0x10, 0x49, 0x89, 0xc9, 0xb9, 0x80, 0, 0, 0, 0x41, 0x50,
        ];
        assert_eq!(cheapest(&prepare), 12);
        // mov %rsi,%rdi; push %rbx
        assert_eq!(cheapest(&[0x48, 0x89, 0xf7, 0x53]), 0);
        let ends = [0xc3, 0x53];
        assert_eq!(cheapest(&ends), 0);
    }

    proptest::proptest! {
        /// No bytes make it panic, and a probe always stands inside of them.
        #[test]
        fn survives_anything(code in proptest::collection::vec(proptest::num::u8::ANY, 0..BYTES)) {
            field_returned(&code);
            let at = usize::try_from(cheapest(&code)).unwrap();
            proptest::prop_assert!(at == 0 || at < code.len());
        }
    }
}
