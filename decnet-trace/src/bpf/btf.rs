//! A reader of the kernel's own type information, for the offsets of struct fields.
//!
//! The format is BTF as Documentation/bpf/btf.rst of the kernel describes it. Only what an offset
//! needs is read: names, structs, unions, typedefs. The file is checked as a whole when it is loaded;
//! lookups afterwards cannot fail but by finding nothing.

use std::{fs, io, ops::Range, path::Path};

use thiserror::Error;

/// Where the kernel shows its own BTF (`CONFIG_DEBUG_INFO_BTF`).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC`, in the byte order of the machine that wrote the file.
const MAGIC: u16 = 0xeb9f;
/// The header's size up to `str_len`; later versions may append to it.
const HEADER: usize = 24;
/// `struct btf_type`.
const TYPE: usize = 12;
/// `struct btf_member`.
const MEMBER: usize = 12;
/// The largest file taken: kernels' are 4 to 12 MiB.
const FILE_MAX: u64 = 256 << 20;
/// How deep typedefs and nested structs are followed.
const DEPTH_MAX: u32 = 32;
/// How many members one lookup looks at: the largest struct has some hundreds, but a corrupt file
/// can nest its structs in each other without end.
const VISITS_MAX: u32 = 100_000;

/// The kinds of BTF types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why type information could not be read.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error(
        "cannot read the kernel's BTF at {path}: {source}; the kernel needs CONFIG_DEBUG_INFO_BTF=y"
    )]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// It does not begin as BTF of this machine does.
    #[error("not BTF of this machine: its first bytes are {0:#06x}")]
    Magic(u16),
    /// A version that does not exist yet.
    #[error("BTF version {0}, 1 expected")]
    Version(u8),
    /// It ends before it should, or points outside itself.
    #[error("BTF is cut off or corrupt: {what} at byte {at}")]
    Corrupt {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the start.
        at: usize,
    },
    /// A kind of type that this reader does not know, whose size it cannot tell therefore.
    #[error("BTF has a type of unknown kind {0}")]
    Kind(u32),
}

/// A kernel's types.
pub struct KernelBtf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type stands in `bytes`; type ids begin at 1, so id `n` is at index `n - 1`.
    types: Vec<u32>,
}

/// A type's common part (`struct btf_type`).
#[derive(Clone, Copy)]
struct Type {
    /// Where it stands.
    at: usize,
    name: u32,
    info: u32,
    /// The size or the type referred to.
    size_or_type: u32,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn vlen(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether members carry the sizes of bit fields in the high byte of their offsets.
    fn kind_flag(self) -> bool {
        self.info >> 31 != 0
    }

    fn is_composite(self) -> bool {
        matches!(self.kind(), kind::STRUCT | kind::UNION)
    }
}

/// What of a member is of interest.
struct Member {
    name: u32,
    ty: u32,
    /// Bits from the start of the struct.
    bits: u32,
    /// The size of the bit field in bits, 0 for an ordinary member.
    bitfield: u32,
}

impl KernelBtf {
    /// Reads and checks a BTF file, usually [`VMLINUX`].
    ///
    /// # Errors
    ///
    /// When there is no such file, or it is not whole and valid BTF of this machine.
    pub fn load(path: &Path) -> Result<Self, BtfError> {
        let failed = |source| BtfError::Read {
            path: path.display().to_string(),
            source,
        };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > FILE_MAX {
            return Err(failed(io::Error::other(format!(
                "{length} bytes are too many"
            ))));
        }
        Self::parse(fs::read(path).map_err(failed)?)
    }

    /// Checks the bytes of a BTF file.
    ///
    /// # Errors
    ///
    /// When they are not whole and valid BTF of this machine.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let corrupt = |what, at| BtfError::Corrupt { what, at };
        let (Some(magic), Some(&version)) = (u16_at(&bytes, 0), bytes.get(2)) else {
            return Err(corrupt("the header", 0));
        };
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        if version != 1 {
            return Err(BtfError::Version(version));
        }
        let field = |index: usize| {
            u32_at(&bytes, 4 + 4 * index)
                .map(|value| value as usize)
                .ok_or(corrupt("the header", 4 + 4 * index))
        };
        let header = field(0)?;
        if header < HEADER {
            return Err(corrupt("the header's length", 4));
        }
        // A section: its offset counts from the end of the header.
        let section = |offset: usize, length: usize, what| {
            let start = header.checked_add(offset).ok_or(corrupt(what, 4))?;
            let end = start.checked_add(length).ok_or(corrupt(what, start))?;
            if end > bytes.len() {
                return Err(corrupt(what, start));
            }
            Ok(start..end)
        };
        let type_section = section(field(1)?, field(2)?, "the types")?;
        let strings = section(field(3)?, field(4)?, "the strings")?;
        let types = index(&bytes[..type_section.end], type_section.start)?;
        Ok(Self {
            bytes,
            strings,
            types,
        })
    }

    /// The offset of a member in a struct, in bytes.
    ///
    /// `path` names the member; members of anonymous structs and unions are found as C finds them,
    /// and dots lead into named ones (`"thread.fsbase"`). `None` where the kernel has no such struct
    /// or member, where the member is a bit field that does not start and end at a byte, and where
    /// several structs of this name disagree.
    pub fn member_offset(&self, structure: &str, path: &str) -> Option<u32> {
        if structure.is_empty() || path.split('.').any(str::is_empty) {
            return None;
        }
        let mut found = None;
        for ty in self.iter().filter(|ty| ty.is_composite()) {
            if self.name_is(ty.name, structure)
                && let Some(offset) = self.path_offset(ty, path)
                && *found.get_or_insert(offset) != offset
            {
                return None;
            }
        }
        found
    }

    /// Whether the kernel has a typedef of this name, as `btf_trace_NAME` for the tracepoint `NAME`.
    pub fn has_typedef(&self, name: &str) -> bool {
        self.iter()
            .any(|ty| ty.kind() == kind::TYPEDEF && self.name_is(ty.name, name))
    }

    /// Whether the kernel has a struct of this name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.iter()
            .any(|ty| ty.kind() == kind::STRUCT && self.name_is(ty.name, name))
    }

    fn iter(&self) -> impl Iterator<Item = Type> + '_ {
        self.types
            .iter()
            .filter_map(|&at| type_at(&self.bytes, at as usize))
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(id.checked_sub(1)? as usize)?;
        type_at(&self.bytes, at as usize)
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        self.bytes[self.strings.clone()]
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn members(&self, ty: Type) -> impl Iterator<Item = Member> + '_ {
        let count = if ty.is_composite() { ty.vlen() } else { 0 };
        (0..count).filter_map(move |index| {
            let at = ty.at + TYPE + index * MEMBER;
            let raw = u32_at(&self.bytes, at + 8)?;
            let (bits, bitfield) = if ty.kind_flag() {
                (raw & 0x00ff_ffff, raw >> 24)
            } else {
                (raw, 0)
            };
            Some(Member {
                name: u32_at(&self.bytes, at)?,
                ty: u32_at(&self.bytes, at + 4)?,
                bits,
                bitfield,
            })
        })
    }

    fn path_offset(&self, structure: Type, path: &str) -> Option<u32> {
        let mut visits = VISITS_MAX;
        let mut at = structure;
        let mut offset = 0u32;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let (bits, ty) = self.find_member(at, name, DEPTH_MAX, &mut visits)?;
            offset = offset.checked_add(bits)?;
            if names.peek().is_some() {
                at = self.composite(ty)?;
            }
        }
        offset.is_multiple_of(8).then_some(offset / 8)
    }

    /// A member by name: its offset in bits and its type. Anonymous members are searched in depth.
    fn find_member(
        &self,
        ty: Type,
        name: &str,
        depth: u32,
        visits: &mut u32,
    ) -> Option<(u32, u32)> {
        let depth = depth.checked_sub(1)?;
        for member in self.members(ty) {
            *visits = visits.checked_sub(1)?;
            if self.name_is(member.name, name) {
                let whole = member.bitfield.is_multiple_of(8);
                return whole.then_some((member.bits, member.ty));
            }
            if self.name_is(member.name, "")
                && let Some(inner) = self.composite(member.ty)
                && let Some((bits, found)) = self.find_member(inner, name, depth, visits)
            {
                return Some((member.bits.checked_add(bits)?, found));
            }
        }
        None
    }

    /// The struct or union behind typedefs and qualifiers.
    fn composite(&self, id: u32) -> Option<Type> {
        let mut ty = self.by_id(id)?;
        for _ in 0..DEPTH_MAX {
            match ty.kind() {
                kind::STRUCT | kind::UNION => return Some(ty),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    ty = self.by_id(ty.size_or_type)?
                }
                _ => return None,
            }
        }
        None
    }
}

/// Finds where each type begins. `bytes` ends with the section of types, which begins at `start`.
fn index(bytes: &[u8], start: usize) -> Result<Vec<u32>, BtfError> {
    let mut types = Vec::with_capacity((bytes.len() - start) / 32);
    let mut at = start;
    while at < bytes.len() {
        let corrupt = BtfError::Corrupt { what: "a type", at };
        let Some(ty) = type_at(bytes, at) else {
            return Err(corrupt);
        };
        let vlen = ty.vlen();
        let extra = match ty.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION => vlen * MEMBER,
            kind::ENUM | kind::FUNC_PROTO => vlen * 8,
            kind::DATASEC | kind::ENUM64 => vlen * 12,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            unknown => return Err(BtfError::Kind(unknown)),
        };
        let Ok(position) = u32::try_from(at) else {
            return Err(corrupt);
        };
        types.push(position);
        at += TYPE + extra;
        if at > bytes.len() {
            return Err(corrupt);
        }
    }
    Ok(types)
}

fn type_at(bytes: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        at,
        name: u32_at(bytes, at)?,
        info: u32_at(bytes, at + 4)?,
        size_or_type: u32_at(bytes, at + 8)?,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
