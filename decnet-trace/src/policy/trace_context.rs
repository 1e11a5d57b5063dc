//! The headers `traceparent` and `tracestate` of W3C Trace Context, level 1
//! (<https://www.w3.org/TR/trace-context-1/>).

use crate::span::trace_flags;

/// A `traceparent`, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace's id; never all zero.
    pub trace_id: [u8; 16],
    /// The id of the caller's span; never all zero.
    pub parent_id: [u8; 8],
    /// Whether the caller may have recorded its span.
    pub sampled: bool,
    /// Whether the low 56 bits of the trace's id are random, as level 2 of the specification tells.
    pub random: bool,
}

impl TraceParent {
    /// Reads the header's value, as strictly as the specification (§3.2) asks; `None` where the header
    /// must be ignored. Of a version that is still to come, the parts of version 00 are read.
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = value.trim_matches([' ', '\t']).as_bytes();
        let (known, more) = bytes.split_at_checked(55)?;
        let [version] = hex(&known[..2])?;
        let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let ends = match version {
            0xff => false,
            0 => more.is_empty(),
            _ => more.first().is_none_or(|b| *b == b'-'),
        };
        let trace_id = hex(&known[3..35])?;
        let parent_id = hex(&known[36..52])?;
        let [flags] = hex(&known[53..])?;
        (dashes && ends && trace_id != [0; 16] && parent_id != [0; 8]).then_some(Self {
            trace_id,
            parent_id,
            sampled: flags & trace_flags::SAMPLED != 0,
            random: flags & trace_flags::RANDOM != 0,
        })
    }
}

/// Lower-case hex digits, and as many as fill the array.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// The most members and bytes of a `tracestate` that are passed on (§3.3.1).
const STATE_MEMBERS_MAX: usize = 32;
const STATE_BYTES_MAX: usize = 512;

/// Checks a `tracestate` (§3.3.1): the value without the blanks around it, or `None` where it must be
/// dropped.
pub fn trace_state(value: &str) -> Option<&str> {
    let value = value.trim_matches([' ', '\t', ',']);
    if value.len() > STATE_BYTES_MAX {
        return None;
    }
    let mut members = 0;
    for member in value.split(',') {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        members += 1;
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) {
            return None;
        }
    }
    (1..=STATE_MEMBERS_MAX).contains(&members).then_some(value)
}

/// A vendor, or a tenant and a vendor.
fn is_key(key: &str) -> bool {
    let chars = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(&b))
    };
    let alpha = |part: &str| part.starts_with(|c: char| c.is_ascii_lowercase());
    match key.split_once('@') {
        None => alpha(key) && chars(key) && key.len() <= 256,
        Some((tenant, system)) => {
            let first = tenant.bytes().next();
            first.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && chars(tenant)
                && tenant.len() <= 241
                && alpha(system)
                && chars(system)
                && system.len() <= 14
        }
    }
}

fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && value
            .bytes()
            .all(|b| (0x20..=0x7e).contains(&b) && b != b'=' && b != b',')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    /// The specification's own examples are read.
    #[test]
    fn reads_the_examples() {
        let parsed = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-01"));
        assert_eq!(
            parsed,
            Some(TraceParent {
                trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes(),
                parent_id: 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes(),
                sampled: true,
                random: false,
            })
        );
        let unsampled = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-00"));
        assert!(unsampled.is_some_and(|p| !p.sampled));
    }

    /// What the specification, and its test suite, accept or refuse.
    #[test]
    fn is_as_strict_as_the_specification() {
        let upper = TRACE.to_uppercase();
        for (value, valid) in [
            (format!("00-{TRACE}-{SPAN}-02"), true),
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!(" 00-{TRACE}-{SPAN}-01\t"), true),
            // Versions that are still to come.
            (format!("01-{TRACE}-{SPAN}-01"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"), true),
            (format!("cc-{TRACE}-{SPAN}-01."), false),
            (format!("cc-{TRACE}-{SPAN}-01-"), true),
            (format!("fe-{TRACE}-{SPAN}-01"), true),
            // And versions that never come.
            (format!("ff-{TRACE}-{SPAN}-01"), false),
            (format!("0-{TRACE}-{SPAN}-01"), false),
            (format!("0x-{TRACE}-{SPAN}-01"), false),
            (format!("-{TRACE}-{SPAN}-01"), false),
            (format!("00-{TRACE}-{SPAN}-01-"), false),
            (format!("00-{TRACE}-{SPAN}-01-x"), false),
            (format!("00-{TRACE}-{SPAN}-1"), false),
            (format!("00-{TRACE}-{SPAN}-.0"), false),
            (format!("00-{TRACE}-{SPAN}"), false),
            (format!("00-{TRACE}-{SPAN}-"), false),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
            (format!("00-{upper}-{SPAN}-01"), false),
            (format!("00-{TRACE}-{}-01", &SPAN[1..]), false),
            (format!("00-{}-{SPAN}-01", &TRACE[1..]), false),
            (format!("00_{TRACE}_{SPAN}_01"), false),
            (format!("00-{}é-{SPAN}-01", &TRACE[2..]), false),
            (String::new(), false),
        ] {
            assert_eq!(TraceParent::parse(&value).is_some(), valid, "{value:?}");
        }
    }

    /// Trace states that keep the grammar pass as they came; others are dropped.
    #[test]
    fn checks_trace_states() {
        for (value, want) in [
            ("rojo=00f067aa0ba902b7", Some("rojo=00f067aa0ba902b7")),
            (
                " rojo=1,congo=t61rcWkgMzE ",
                Some("rojo=1,congo=t61rcWkgMzE"),
            ),
            ("rojo=1 ,\tcongo=2,", Some("rojo=1 ,\tcongo=2")),
            ("fw529a3039@dt=FfAEWuKbXg", Some("fw529a3039@dt=FfAEWuKbXg")),
            ("a=1,,b=2", Some("a=1,,b=2")),
            ("", None),
            ("rojo", None),
            ("Rojo=1", None),
            ("1a=1", None),
            ("a=", None),
            ("a=b=c", None),
            ("a=é", None),
            ("a@toolongasystemname=1", None),
        ] {
            assert_eq!(trace_state(value), want, "{value:?}");
        }
        let many = |n: usize| vec!["a=1"; n].join(",");
        assert!(trace_state(&many(32)).is_some());
        assert!(trace_state(&many(33)).is_none());
        assert!(trace_state(&format!("a={}", "x".repeat(256))).is_some());
        assert!(trace_state(&format!("a={}", "x".repeat(257))).is_none());
    }

    proptest! {
        /// Garbage never panics, and a context written down reads back.
        #[test]
        fn reads_back(
            garbage in "\\PC*",
            near in "[0-9a-f-]{50,60}",
            trace in 1u128..,
            span in 1u64..,
            flags in any::<u8>(),
        ) {
            let _ = TraceParent::parse(&garbage);
            let _ = TraceParent::parse(&near);
            let _ = trace_state(&garbage);
            let parsed = TraceParent::parse(&format!("00-{trace:032x}-{span:016x}-{flags:02x}"));
            prop_assert_eq!(parsed, Some(TraceParent {
                trace_id: trace.to_be_bytes(),
                parent_id: span.to_be_bytes(),
                sampled: flags & 1 != 0,
                random: flags & 2 != 0,
            }));
        }
    }
}
