//! Consistent probability sampling, as OpenTelemetry specifies it: a trace is kept where the randomness
//! that its id carries is not below a threshold, so that all who sample it at the same ratio decide the
//! same (<https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/>).

use std::fmt::Write as _;

/// Randomness and thresholds are of so many bits.
const BITS: u32 = 56;
const ALL: u64 = 1 << BITS;

/// The key of OpenTelemetry's member of `tracestate`.
const VENDOR: &str = "ot";

/// What a trace's randomness is compared with: the share of traces that are *not* kept, of 2^56.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold(u64);

impl Threshold {
    /// Keeps every trace.
    pub const KEEP: Self = Self(0);

    /// Keeps this share of all traces.
    pub fn of_ratio(ratio: f64) -> Self {
        Self(ALL - (ratio.clamp(0.0, 1.0) * ALL as f64) as u64)
    }

    /// Whether a trace with this randomness is kept.
    pub const fn keeps(self, randomness: u64) -> bool {
        randomness >= self.0
    }

    /// How many traces one stands for that was kept.
    pub fn adjusted_count(self) -> f64 {
        ALL as f64 / (ALL - self.0.min(ALL - 1)) as f64
    }
}

/// The randomness of a trace: what its `tracestate` says, else the low 56 bits of its id.
pub fn randomness(trace_id: &[u8; 16], trace_state: &str) -> u64 {
    if let Some(rv) = own(trace_state).and_then(|own| field(own, "rv"))
        && rv.len() == 14
        && let Ok(randomness) = u64::from_str_radix(rv, 16)
    {
        return randomness;
    }
    let mut low = [0; 8];
    low[1..].copy_from_slice(&trace_id[9..]);
    u64::from_be_bytes(low)
}

/// The threshold at which a caller kept the trace, where it says so.
pub fn threshold(trace_state: &str) -> Option<Threshold> {
    let th = field(own(trace_state)?, "th")?;
    if !(1..=14).contains(&th.len()) {
        return None;
    }
    let digits = u64::from_str_radix(th, 16).ok()?;
    Some(Threshold(digits << (4 * (14 - th.len()))))
}

/// The `tracestate` with this threshold in it, in front, as one's own member is after a change.
pub fn with_threshold(trace_state: &str, threshold: Threshold) -> Box<str> {
    let mut out = String::with_capacity(trace_state.len() + 24);
    let digits = format!("{:014x}", threshold.0);
    let digits = match digits.trim_end_matches('0') {
        "" => "0",
        digits => digits,
    };
    let _ = write!(out, "{VENDOR}=th:{digits}");
    for field in own(trace_state).into_iter().flat_map(|own| own.split(';')) {
        if !field.starts_with("th:") && !field.is_empty() {
            let _ = write!(out, ";{field}");
        }
    }
    for member in members(trace_state).filter(|(key, _)| *key != VENDOR) {
        let _ = write!(out, ",{}={}", member.0, member.1);
    }
    out.into()
}

fn members(trace_state: &str) -> impl Iterator<Item = (&str, &str)> {
    let members = trace_state.split(',').map(str::trim);
    members.filter_map(|member| member.split_once('='))
}

/// OpenTelemetry's own member.
fn own(trace_state: &str) -> Option<&str> {
    let (_, own) = members(trace_state).find(|(key, _)| *key == VENDOR)?;
    Some(own)
}

fn field<'a>(own: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = own.split(';').filter_map(|field| field.split_once(':'));
    Some(fields.find(|(key, _)| *key == name)?.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of the specification.
    #[test]
    fn reads_and_writes_the_examples() {
        // 100 %, 50 %, 25 %, 10 %.
        for (ratio, th) in [(1.0, "0"), (0.5, "8"), (0.25, "c")] {
            let written = with_threshold("", Threshold::of_ratio(ratio));
            assert_eq!(*written, *format!("ot=th:{th}"));
        }
        let tenth = with_threshold("", Threshold::of_ratio(0.1));
        assert!(tenth.starts_with("ot=th:e66666666666"), "{tenth}");
        assert_eq!(threshold("ot=th:c"), Some(Threshold::of_ratio(0.25)));
        assert_eq!(
            threshold("a=b, ot=rv:00000000000001;th:8"),
            Some(Threshold::of_ratio(0.5))
        );
        assert_eq!(threshold("a=th:8"), None);
        assert_eq!(threshold("ot=th:"), None);
        assert_eq!(
            randomness(&[0xff; 16], "ot=rv:6e6d1a75832a2f"),
            0x6e_6d1a_7583_2a2f
        );
        assert_eq!(randomness(&[0xff; 16], "ot=rv:xyz"), (1 << 56) - 1);
        assert_eq!(randomness(&[0x12; 16], ""), 0x12_1212_1212_1212);
        assert_eq!(
            *with_threshold(
                "rojo=1,ot=th:c;rv:6e6d1a75832a2f,congo=2",
                Threshold::of_ratio(0.5)
            ),
            *"ot=th:8;rv:6e6d1a75832a2f,rojo=1,congo=2"
        );
    }

    proptest! {
        /// What is kept at a ratio is kept at any higher one, and a threshold written down reads back.
        #[test]
        fn is_consistent(a in 0.0..=1.0f64, b in 0.0..=1.0f64, id in any::<[u8; 16]>(), junk in "\\PC{0,40}") {
            let (low, high) = (a.min(b), a.max(b));
            let r = randomness(&id, "");
            let (low, high) = (Threshold::of_ratio(low), Threshold::of_ratio(high));
            prop_assert!(!low.keeps(r) || high.keeps(r));
            if low.0 < ALL {
                prop_assert_eq!(threshold(&with_threshold("a=b", low)), Some(low));
            }
            let _ = (randomness(&id, &junk), threshold(&junk), with_threshold(&junk, low));
        }
    }
}
