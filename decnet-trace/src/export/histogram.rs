//! A log-linear histogram of durations: 16 buckets for each power of two, so that a value is known to
//! within 6 %, in 2 KiB at most.

/// Sub-buckets of a power of two: 2 to this.
const LINEAR_BITS: u32 = 4;

/// Values below 2 to this (a microsecond, when they are nanoseconds) share the first bucket.
const LOW_BITS: u32 = 10;

/// Values from 2 to this on (73 minutes, in nanoseconds) share the last bucket.
const HIGH_BITS: u32 = 42;

const BUCKETS: usize = ((HIGH_BITS - LOW_BITS) << LINEAR_BITS) as usize + 2;

/// Counts of values, by size.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// As many as the largest value so far needs.
    buckets: Vec<u32>,
    count: u64,
    max: u64,
    min: Option<u64>,
}

impl Histogram {
    pub(super) fn record(&mut self, value: u64) {
        let at = bucket(value);
        if at >= self.buckets.len() {
            self.buckets.resize(at + 1, 0);
        }
        self.buckets[at] = self.buckets[at].saturating_add(1);
        self.count += 1;
        self.max = self.max.max(value);
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The value that the share `q` of the values is not above; 0 when there are none.
    pub(super) fn quantile(&self, q: f64) -> u64 {
        let rank = ((self.count as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return middle(at).clamp(self.min.unwrap_or(0), self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    if bits <= LOW_BITS {
        return 0;
    }
    if bits > HIGH_BITS {
        return BUCKETS - 1;
    }
    let power = bits - 1 - LOW_BITS;
    let linear = (value >> (bits - 1 - LINEAR_BITS)) as usize & ((1 << LINEAR_BITS) - 1);
    1 + ((power as usize) << LINEAR_BITS) + linear
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let Some(inner) = bucket.checked_sub(1) else {
        return 1 << (LOW_BITS - 1);
    };
    let power = (inner >> LINEAR_BITS) as u32 + LOW_BITS;
    let linear = (inner & ((1 << LINEAR_BITS) - 1)) as u64;
    let width = 1u64 << (power - LINEAR_BITS);
    (1 << power) + linear * width + width / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// No values, no quantile; one value is every quantile.
    #[test]
    fn ends() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.99), 0);
        histogram.record(123_456_789);
        assert_eq!(histogram.quantile(0.01), 123_456_789);
        assert_eq!(histogram.quantile(1.0), 123_456_789);
        histogram.record(u64::MAX);
        assert_eq!(histogram.max(), u64::MAX);
        assert_eq!(histogram.buckets.len(), BUCKETS);
    }

    proptest! {
        /// A quantile is within a bucket's width of what sorting the values says, where the buckets
        /// reach.
        #[test]
        fn agrees_with_sorting(
            mut values in proptest::collection::vec(1u64 << LOW_BITS..1 << 41, 1..300),
            q in 0.0..=1.0f64,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.record(value));
            values.sort_unstable();
            let rank = ((values.len() as f64 * q).ceil() as usize).max(1);
            let (have, want) = (histogram.quantile(q) as f64, values[rank - 1] as f64);
            prop_assert!((have - want).abs() <= want / 16.0, "{} {}", have, want);
        }

        /// Any value has a bucket, larger values have no smaller ones, and memory is bounded.
        #[test]
        fn any_value_has_a_bucket(a in any::<u64>(), b in any::<u64>()) {
            prop_assert!(bucket(a.min(b)) <= bucket(a.max(b)));
            prop_assert!(bucket(a) < BUCKETS);
        }
    }
}
