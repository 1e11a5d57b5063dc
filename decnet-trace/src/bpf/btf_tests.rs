//! Tests of the BTF reader: against the C compiler's own `offsetof`, and against broken files.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{fmt::Write as _, fs, path::Path, process::Command};

use proptest::prelude::*;

use super::*;
use crate::bpf::offsets::{MissingOffsets, resolve_offsets};

/// Builds small BTF files.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    fn new() -> Self {
        Self {
            strings: vec![0],
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        at
    }

    /// Adds a type and gives its id.
    fn ty(&mut self, kind: u32, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        let words = [name, kind << 24 | info, size_or_type];
        for word in words.iter().chain(rest) {
            self.types.extend(word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    fn int(&mut self) -> u32 {
        self.ty(kind::INT, "int", 0, 4, &[32])
    }

    /// Adds a struct or union of members `(name, type, bit offset)`.
    fn composite(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        self.flagged(kind, name, 0, members)
    }

    fn flagged(&mut self, kind: u32, name: &str, flag: u32, members: &[(&str, u32, u32)]) -> u32 {
        let rest: Vec<u32> = members
            .iter()
            .flat_map(|&(name, ty, bits)| [self.name(name), ty, bits])
            .collect();
        self.ty(kind, name, flag << 31 | members.len() as u32, 64, &rest)
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let types = self.types.len() as u32;
        for word in [HEADER as u32, 0, types, types, self.strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// A file with what kernels have: anonymous unions, embedded structs, qualifiers, bit fields, types
/// of every kind in between.
fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int();
    let pointer = b.ty(kind::PTR, "", 0, int, &[]);
    b.ty(kind::ARRAY, "", 0, 0, &[int, int, 4]);
    let addresses = b.composite(
        kind::STRUCT,
        "",
        &[("skc_daddr", int, 0), ("skc_rcv_saddr", int, 32)],
    );
    let union = b.composite(kind::UNION, "", &[("skc_pair", int, 0), ("", addresses, 0)]);
    let common = b.composite(
        kind::STRUCT,
        "sock_common",
        &[("", union, 0), ("skc_family", int, 64)],
    );
    let constant = b.ty(kind::CONST, "", 0, common, &[]);
    let alias = b.ty(kind::TYPEDEF, "sock_common_t", 0, constant, &[]);
    b.composite(
        kind::STRUCT,
        "sock",
        &[("sk_first", pointer, 0), ("__sk_common", alias, 128)],
    );
    b.flagged(
        kind::STRUCT,
        "packed",
        1,
        &[
            ("nibble", int, 4 << 24 | 8),
            ("byte", int, 8 << 24 | 16),
            ("word", int, 32),
        ],
    );
    b.ty(kind::ENUM, "colour", 1, 4, &[0, 7]);
    b.ty(kind::ENUM64, "wide", 1, 8, &[0, 7, 0]);
    let proto = b.ty(kind::FUNC_PROTO, "", 1, 0, &[0, int]);
    b.ty(kind::FUNC, "call", 0, proto, &[]);
    b.ty(kind::DECL_TAG, "tag", 0, int, &[u32::MAX]);
    b.ty(kind::TYPE_TAG, "user", 0, int, &[]);
    b.ty(kind::VAR, "variable", 0, int, &[0]);
    b.ty(kind::DATASEC, ".data", 1, 0, &[1, 0, 4]);
    b.ty(kind::FLOAT, "float", 0, 4, &[]);
    b.ty(kind::FWD, "later", 0, 0, &[]);
    b.ty(kind::TYPEDEF, "btf_trace_sock_send_length", 0, pointer, &[]);
    b.composite(kind::STRUCT, "last", &[("end", int, 96)]);
    b.build()
}

/// Members are found through anonymous unions, typedefs and dotted paths, past types of every kind.
#[test]
fn finds_members_as_c_does() {
    let btf = KernelBtf::parse(sample()).unwrap();
    assert_eq!(btf.member_offset("sock_common", "skc_rcv_saddr"), Some(4));
    assert_eq!(
        btf.member_offset("sock", "__sk_common.skc_family"),
        Some(24)
    );
    assert_eq!(btf.member_offset("sock", "__sk_common.skc_daddr"), Some(16));
    assert_eq!(btf.member_offset("last", "end"), Some(12));
    for (structure, path) in [
        ("sock", "skc_family"),
        ("sock", "__sk_common."),
        ("sock", ""),
        ("sock", "sk_first.skc_family"),
        ("", "skc_daddr.x"),
        ("soc", "sk_first"),
        ("later", "sk_first"),
    ] {
        assert_eq!(
            btf.member_offset(structure, path),
            None,
            "{structure}.{path}"
        );
    }
}

/// A bit field has a byte offset only where it is whole bytes.
#[test]
fn refuses_partial_bit_fields() {
    let btf = KernelBtf::parse(sample()).unwrap();
    assert_eq!(btf.member_offset("packed", "nibble"), None);
    assert_eq!(btf.member_offset("packed", "byte"), Some(2));
    assert_eq!(btf.member_offset("packed", "word"), Some(4));
}

/// A typedef and a struct are found by their whole names, and not one as the other.
#[test]
fn finds_typedefs() {
    let btf = KernelBtf::parse(sample()).unwrap();
    assert!(btf.has_typedef("btf_trace_sock_send_length"));
    assert!(!btf.has_typedef("btf_trace_sock_send"));
    assert!(!btf.has_typedef("sock"));
    assert!(btf.has_struct("sock") && !btf.has_struct("btf_trace_sock_send_length"));
}

/// Two structs of one name that disagree give no offset rather than a wrong one.
#[test]
fn refuses_ambiguous_structs() {
    let mut b = Builder::new();
    let int = b.int();
    b.composite(
        kind::STRUCT,
        "twin",
        &[("same", int, 0), ("other", int, 32)],
    );
    b.composite(
        kind::STRUCT,
        "twin",
        &[("same", int, 0), ("other", int, 64)],
    );
    let btf = KernelBtf::parse(b.build()).unwrap();
    assert_eq!(btf.member_offset("twin", "same"), Some(0));
    assert_eq!(btf.member_offset("twin", "other"), None);
}

/// Structs that contain themselves, as only a corrupt file has them, end a lookup instead of hanging.
#[test]
fn ends_on_endless_nesting() {
    let mut b = Builder::new();
    let next = b.count + 1;
    let members: Vec<(&str, u32, u32)> = (0..1000).map(|_| ("", next, 0)).collect();
    assert_eq!(b.composite(kind::STRUCT, "knot", &members), next);
    let circle = b.count + 1;
    b.ty(kind::TYPEDEF, "circle", 0, circle, &[]);
    b.composite(kind::STRUCT, "holder", &[("inner", circle, 0)]);
    let btf = KernelBtf::parse(b.build()).unwrap();
    assert_eq!(btf.member_offset("knot", "absent"), None);
    assert_eq!(btf.member_offset("holder", "inner.absent"), None);
}

/// Files of another byte order, version, or kind are refused by name; so is every cut-off file.
#[test]
fn refuses_what_is_not_whole() {
    let good = sample();
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    assert!(matches!(
        KernelBtf::parse(swapped),
        Err(BtfError::Magic(0x9feb))
    ));
    let mut newer = good.clone();
    newer[2] = 2;
    assert!(matches!(KernelBtf::parse(newer), Err(BtfError::Version(2))));
    let mut b = Builder::new();
    b.ty(31, "", 0, 0, &[]);
    assert!(matches!(
        KernelBtf::parse(b.build()),
        Err(BtfError::Kind(31))
    ));
    for length in 0..good.len() {
        let cut = KernelBtf::parse(good[..length].to_vec());
        assert!(
            matches!(cut, Err(BtfError::Corrupt { .. })),
            "{length} bytes"
        );
    }
}

/// A kernel without the structs is refused with the names of all that is missing, the fallback's and
/// the optional ones not among them.
#[test]
fn names_what_is_missing() {
    let btf = KernelBtf::parse(sample()).unwrap();
    let MissingOffsets { names } = resolve_offsets(&btf).unwrap_err();
    assert!(names.contains(&"sock.sk_socket".to_owned()));
    assert!(names.contains(&"task_struct.tgid".to_owned()));
    assert!(
        !names
            .iter()
            .any(|name| name == "sock.__sk_common.skc_family")
    );
    for absent in [
        "fdtable.fd",
        "inet_connection_sock.icsk_ack.lrcvtime",
        "sock.__sk_common.skc_v6_daddr",
    ] {
        assert!(!names.iter().any(|name| name == absent), "{absent}");
    }
}

/// The offsets of the running kernel are those that a C compiler computes from its types.
#[test]
fn agrees_with_the_c_compiler() {
    let paths = [
        ("sock", "sk_socket"),
        ("sock", "sk_type"),
        ("sock", "__sk_common.skc_family"),
        ("sock", "__sk_common.skc_daddr"),
        ("sock", "__sk_common.skc_rcv_saddr"),
        ("sock", "__sk_common.skc_dport"),
        ("sock", "__sk_common.skc_num"),
        ("sock", "__sk_common.skc_v6_daddr"),
        ("sock", "__sk_common.skc_v6_rcv_saddr"),
        ("socket_alloc", "vfs_inode"),
        ("inode", "i_ino"),
        ("inode", "i_mode"),
        ("inet_connection_sock", "icsk_ack.lrcvtime"),
        ("task_struct", "signal"),
        ("signal_struct", "live"),
        ("task_struct", "tgid"),
        ("task_struct", "pid"),
        ("task_struct", "comm"),
        ("task_struct", "files"),
        ("files_struct", "fdt"),
        ("fdtable", "fd"),
        ("fdtable", "max_fds"),
        ("file", "f_inode"),
        ("file", "private_data"),
        ("socket", "sk"),
        #[cfg(target_arch = "x86_64")]
        ("task_struct", "thread.fsbase"),
    ];
    let dump = Command::new("bpftool")
        .args(["btf", "dump", "file", VMLINUX, "format", "c"])
        .output();
    let Ok(dump) = dump else {
        println!("SKIPPED: no bpftool to compare with");
        return;
    };
    if !dump.status.success() {
        println!("SKIPPED: bpftool cannot read {VMLINUX}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut source = String::from_utf8(dump.stdout).unwrap();
    source.push_str("int printf(const char *, ...);\nint main(void) {\n");
    for (structure, path) in paths {
        writeln!(
            source,
            "printf(\"%lu\\n\", __builtin_offsetof(struct {structure}, {path}));"
        )
        .unwrap();
    }
    source.push_str("return 0;\n}\n");
    let (file, program) = (dir.path().join("offsets.c"), dir.path().join("offsets"));
    fs::write(&file, source).unwrap();
    let compiled = Command::new("cc")
        .args(["-w", "-o"])
        .args([&program, &file])
        .output();
    let Ok(compiled) = compiled else {
        println!("SKIPPED: no C compiler to compare with");
        return;
    };
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let printed = String::from_utf8(Command::new(program).output().unwrap().stdout).unwrap();
    let btf = KernelBtf::load(Path::new(VMLINUX)).unwrap();
    assert_eq!(printed.lines().count(), paths.len());
    for ((structure, path), expected) in paths.into_iter().zip(printed.lines()) {
        assert_eq!(
            btf.member_offset(structure, path),
            Some(expected.parse().unwrap()),
            "{structure}.{path}"
        );
    }
    let resolved = resolve_offsets(&btf).unwrap();
    assert_eq!(resolved.fallback_missing, Vec::<String>::new());
    assert_eq!(
        Some(resolved.offsets.task_tgid),
        btf.member_offset("task_struct", "tgid")
    );
}

proptest! {
    /// No bytes make the reader panic.
    #[test]
    fn survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = KernelBtf::parse(bytes);
    }

    /// A valid file with some bytes changed is read or refused, and looked through either way.
    #[test]
    fn survives_changed_bytes(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(btf) = KernelBtf::parse(bytes) {
            let _ = btf.member_offset("sock", "__sk_common.skc_family");
            let _ = btf.has_typedef("btf_trace_sock_send_length");
            let _ = resolve_offsets(&btf);
        }
    }
}
