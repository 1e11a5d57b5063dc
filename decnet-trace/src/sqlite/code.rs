//! What a few instructions at the beginning of a function say.

use iced_x86::{Code, Mnemonic, OpKind, Register};

use crate::bpf::site::straight;

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

#[cfg(test)]
mod tests {
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

    proptest::proptest! {
        /// No bytes make it panic.
        #[test]
        fn survives_anything(code in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            field_returned(&code);
        }
    }
}
