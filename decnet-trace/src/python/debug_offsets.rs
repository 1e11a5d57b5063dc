//! `_Py_DebugOffsets`: what a CPython 3.13 or newer publishes about its own layout, at the start of
//! `_PyRuntime`.
//!
//! The process may be anyone's, so this is untrusted input. It is refused as a whole where the
//! cookie, the version or any offset is not possible; nothing falls back to the table then, because
//! a runtime that begins with garbage is not the one that the table was made for. Where it is
//! sound and differs from the table (another patch release), the process is right.

use super::layout::Layout;

/// `_Py_DebugOffsets.cookie`
const COOKIE: [u8; 8] = *b"xdebugpy";

/// The most bytes of it that are read; CPython 3.15 has 888.
pub(super) const SIZE_MAX: usize = 4096;

/// Why it was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is shorter than its version's.
    #[error("its debug offsets are cut off")]
    Short,
    /// It does not begin with the cookie.
    #[error("its debug offsets do not begin with \"xdebugpy\"")]
    Cookie,
    /// It is for another version than the process says it is.
    #[error("its debug offsets are those of version {0:#x}")]
    Version(u64),
    /// The build has no GIL.
    #[error("it is built without the GIL")]
    FreeThreaded,
    /// An offset cannot be.
    #[error("its debug offsets put {field} at {value}")]
    Offset {
        /// The field.
        field: &'static str,
        /// Where it is said to be.
        value: u64,
    },
}

/// The layout that the process publishes in `bytes`, resting on the table's `base` for what it does
/// not publish.
pub(super) fn apply(base: &Layout, bytes: &[u8]) -> Result<Layout, Refusal> {
    let own = Layout::own_of_minor(base.minor()).unwrap_or_default();
    let word = |position: u32| {
        let start = position as usize;
        let bytes = bytes.get(start..start + 8).ok_or(Refusal::Short)?;
        Ok(u64::from_le_bytes(
            bytes.try_into().map_err(|_| Refusal::Short)?,
        ))
    };
    if word(0)?.to_le_bytes() != COOKIE {
        return Err(Refusal::Cookie);
    }
    // PY_VERSION_HEX: major, minor, micro, and a byte of release level and serial.
    let version = word(8)?;
    if version >> 16 != u64::from(base.version) {
        return Err(Refusal::Version(version));
    }
    match word(16)? {
        0 => {}
        1 => return Err(Refusal::FreeThreaded),
        value => {
            return Err(Refusal::Offset {
                field: "free_threaded",
                value,
            });
        }
    }
    let mut layout = base.clone();
    for (name, position) in own {
        let value = word(*position)?;
        let refused = Refusal::Offset { field: name, value };
        let Some(field) = layout.field_mut(name) else {
            continue;
        };
        *field = u32::try_from(value).map_err(|_| refused)?;
    }
    check(&layout, own)?;
    Ok(layout)
}

/// The structs whose sizes bound the fields in them: what a field's name begins with, the most that
/// is believed for the size, and the size that is published or known.
fn bound(layout: &Layout, name: &str) -> u32 {
    match name.split_once('_').map_or(name, |(head, _)| head) {
        // The main interpreter is part of the runtime.
        "runtime" => layout.runtime_size.min(64 << 20),
        "interp" => layout.interp_size.min(64 << 20),
        "thread" => layout.thread_size.min(16 << 10),
        "frame" => layout.frame_localsplus.saturating_add(8).min(128),
        "code" => layout.code_instructions.saturating_add(8).min(1024),
        _ => 1024,
    }
}

/// Whether every offset that was published can be.
fn check(layout: &Layout, own: &[(&'static str, u32)]) -> Result<(), Refusal> {
    let mut probe = layout.clone();
    for (name, _) in own {
        let Some(&mut value) = probe.field_mut(name) else {
            continue;
        };
        let refused = Err(Refusal::Offset {
            field: name,
            value: u64::from(value),
        });
        let size = name.ends_with("_size") && !name.ends_with("var_size");
        let limit = match *name {
            "runtime_size" | "interp_size" => 64 << 20,
            "thread_size" => 16 << 10,
            _ => bound(layout, name),
        };
        let (width, align) = match *name {
            "frame_owner" | "coro_frame_state" => (1, 1),
            "code_firstlineno" | "code_argcount" | "unicode_state" | "thread_gil" => (4, 4),
            // The data of a bytes object and of the strings need no alignment.
            "bytes_data" | "unicode_ascii_data" | "unicode_compact_data" => (0, 1),
            _ => (8, 8),
        };
        if !value.is_multiple_of(align)
            || value > limit
            || (!size && value + width > limit)
            || (size && value == 0)
        {
            return refused;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    /// What a process of that version publishes.
    fn published(minor: u8) -> Vec<u8> {
        let mut layout = Layout::of_minor(minor).unwrap().clone();
        let mut bytes = vec![0; layout.own_size as usize];
        bytes[..8].copy_from_slice(&COOKIE);
        bytes[8..16].copy_from_slice(&(u64::from(layout.version) << 16 | 0x00f0).to_le_bytes());
        for (name, position) in Layout::own_of_minor(minor).unwrap() {
            let value = u64::from(*layout.field_mut(name).unwrap());
            bytes[*position as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// The table's own values are accepted, and give the table's layout back.
    #[test]
    fn accepts_what_is_right() {
        for minor in 13..=15 {
            let base = Layout::of_minor(minor).unwrap();
            assert_eq!(apply(base, &published(minor)).as_ref(), Ok(base));
        }
    }

    /// A field that moved in another patch release is taken from the process.
    #[test]
    fn the_process_is_right() {
        let base = Layout::of_minor(14).unwrap();
        let position = Layout::own_of_minor(14)
            .unwrap()
            .iter()
            .find(|(name, _)| *name == "interp_modules")
            .unwrap()
            .1;
        let mut bytes = published(14);
        bytes[position as usize..][..8].copy_from_slice(&7700u64.next_multiple_of(8).to_le_bytes());
        assert_eq!(apply(base, &bytes).unwrap().interp_modules, 7704);
    }

    /// Each thing that can be wrong with it has its own reason.
    #[test]
    fn refuses_what_is_wrong() {
        let base = Layout::of_minor(13).unwrap();
        let broken = |position: usize, value: u64| {
            let mut bytes = published(13);
            bytes[position..][..8].copy_from_slice(&value.to_le_bytes());
            apply(base, &bytes).unwrap_err()
        };
        assert_eq!(broken(0, 1), Refusal::Cookie);
        assert_eq!(broken(8, 0x030e_00f0), Refusal::Version(0x030e_00f0));
        assert_eq!(broken(16, 1), Refusal::FreeThreaded);
        assert!(matches!(
            broken(16, 2),
            Refusal::Offset {
                field: "free_threaded",
                ..
            }
        ));
        for (name, position) in Layout::own_of_minor(13).unwrap() {
            assert_eq!(
                broken(*position as usize, u64::MAX),
                Refusal::Offset {
                    field: name,
                    value: u64::MAX
                }
            );
            assert!(
                matches!(broken(*position as usize, 1 << 30), Refusal::Offset { .. }),
                "{name}"
            );
        }
        assert_eq!(apply(base, &published(13)[..100]), Err(Refusal::Short));
        assert_eq!(apply(base, &[]), Err(Refusal::Short));
    }

    proptest! {
        /// Bytes overwritten at random either are refused or give a layout whose every published
        /// field is inside its struct; nothing panics.
        #[test]
        fn survives_corruption(
            minor in 13u8..=15,
            changes in proptest::collection::vec((0usize..900, any::<u8>()), 1..20),
            cut in 0usize..900,
        ) {
            let mut bytes = published(minor);
            for (position, value) in changes {
                if let Some(byte) = bytes.get_mut(position) {
                    *byte = value;
                }
            }
            bytes.truncate(cut.max(bytes.len() / 2));
            if let Ok(layout) = apply(Layout::of_minor(minor).unwrap(), &bytes) {
                prop_assert!(layout.thread_frame < layout.thread_size);
                prop_assert!(layout.frame_instr < layout.frame_localsplus + 8);
                prop_assert!(layout.kernel(None).is_some());
            }
        }

        /// Garbage is refused.
        #[test]
        fn survives_garbage(minor in 13u8..=15, bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            prop_assert!(apply(Layout::of_minor(minor).unwrap(), &bytes).is_err());
        }
    }
}
