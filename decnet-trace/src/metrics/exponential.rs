//! Base-2 exponential histograms, as OpenTelemetry's data model has them
//! (<https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram>).
//!
//! Bucket `i` of scale `s` holds values above `2^(i / 2^s)` up to `2^((i + 1) / 2^s)`. There are at
//! most [`SIZE`] of them: when a value needs more, the scale is lowered, which makes one bucket of two.

use std::f64::consts::LOG2_E;

/// The most buckets.
pub const SIZE: usize = 160;

/// The scale that a histogram begins with, and the lowest: two buckets for all numbers.
const SCALE_MAX: i8 = 20;
const SCALE_MIN: i8 = -10;

/// Counts of values that are not negative.
#[derive(Clone, Debug, PartialEq)]
pub struct ExponentialHistogram {
    scale: i8,
    count: u64,
    zero: u64,
    sum: f64,
    min: f64,
    max: f64,
    /// The index of the first bucket.
    offset: i32,
    /// How many buckets are in use.
    len: usize,
    counts: Box<[u64; SIZE]>,
}

impl Default for ExponentialHistogram {
    fn default() -> Self {
        Self {
            scale: SCALE_MAX,
            count: 0,
            zero: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            offset: 0,
            len: 0,
            counts: Box::new([0; SIZE]),
        }
    }
}

impl ExponentialHistogram {
    /// Counts a value. One below zero counts as zero, and one that is no number not at all.
    pub fn record(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        let value = value.max(0.0);
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        // The next above zero that is kept apart is the smallest normal number.
        if value < f64::MIN_POSITIVE {
            self.zero += 1;
            return;
        }
        let mut index = index(value, self.scale);
        let delta = self.too_wide(index, index);
        if delta > 0 {
            self.downscale(delta);
            index >>= delta;
        }
        *self.bucket(index) += 1;
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.zero += other.zero;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.len == 0 {
            return;
        }
        if other.scale < self.scale {
            self.downscale((self.scale - other.scale) as u32);
        }
        let (mut low, mut high) = (other.offset, other.offset + other.len as i32 - 1);
        let mut finer = (other.scale - self.scale) as u32;
        (low, high) = (low >> finer, high >> finer);
        let delta = self.too_wide(low, high);
        self.downscale(delta);
        finer += delta;
        for (at, &count) in other.buckets().iter().enumerate() {
            if count > 0 {
                *self.bucket((other.offset + at as i32) >> finer) += count;
            }
        }
    }

    /// Values, zeros too.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Values that are zero.
    pub const fn zeros(&self) -> u64 {
        self.zero
    }

    /// The sum of the values.
    pub const fn sum(&self) -> f64 {
        self.sum
    }

    /// The smallest and the largest value, if there is one.
    pub fn range(&self) -> Option<(f64, f64)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// The scale.
    pub const fn scale(&self) -> i8 {
        self.scale
    }

    /// The index of the first bucket.
    pub const fn offset(&self) -> i32 {
        self.offset
    }

    /// The buckets' counts, from the first in use to the last.
    pub fn buckets(&self) -> &[u64] {
        &self.counts[..self.len]
    }

    /// The value that the share `q` of the values is not above, to within a bucket; `None` where there
    /// are none.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (min, max) = self.range()?;
        let rank = ((self.count as f64 * q).ceil() as u64).max(1);
        let mut seen = self.zero;
        if seen >= rank {
            return Some(0.0);
        }
        for (at, count) in self.buckets().iter().enumerate() {
            seen += count;
            if seen >= rank {
                let middle = f64::from(self.offset + at as i32) + 0.5;
                return Some(
                    (middle * (-f64::from(self.scale)).exp2())
                        .exp2()
                        .clamp(min, max),
                );
            }
        }
        Some(max)
    }

    /// How many times two buckets have to become one so that these fit in with those in use.
    fn too_wide(&self, low: i32, high: i32) -> u32 {
        let (mut low, mut high) = match self.len {
            0 => (low, high),
            len => (low.min(self.offset), high.max(self.offset + len as i32 - 1)),
        };
        let mut delta = 0;
        while i64::from(high) - i64::from(low) >= SIZE as i64
            && self.scale - (delta as i8) > SCALE_MIN
        {
            (low, high) = (low >> 1, high >> 1);
            delta += 1;
        }
        delta
    }

    fn downscale(&mut self, delta: u32) {
        if delta == 0 {
            return;
        }
        self.scale -= delta as i8;
        if self.len == 0 {
            return;
        }
        let offset = self.offset >> delta;
        let mut len = 0;
        for at in 0..self.len {
            let count = std::mem::take(&mut self.counts[at]);
            let to = (((self.offset + at as i32) >> delta) - offset) as usize;
            // Never behind the place that is read.
            self.counts[to] += count;
            len = to + 1;
        }
        (self.offset, self.len) = (offset, len);
    }

    /// The bucket of an index that fits.
    fn bucket(&mut self, index: i32) -> &mut u64 {
        if self.len == 0 {
            (self.offset, self.len) = (index, 1);
        } else if index < self.offset {
            let more = (self.offset - index) as usize;
            self.counts.copy_within(..self.len, more);
            self.counts[..more.min(self.len)].fill(0);
            self.counts[self.len.min(more)..more].fill(0);
            (self.offset, self.len) = (index, self.len + more);
        } else {
            self.len = self.len.max((index - self.offset) as usize + 1);
        }
        &mut self.counts[(index - self.offset) as usize]
    }
}

/// The index of a positive, normal value's bucket.
fn index(value: f64, scale: i8) -> i32 {
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let is_power_of_two = bits & ((1 << 52) - 1) == 0;
    // A bucket's upper bound belongs to it.
    if scale <= 0 {
        return (exponent - i32::from(is_power_of_two)) >> -scale;
    }
    if is_power_of_two {
        return (exponent << scale) - 1;
    }
    // The logarithm of the fraction alone keeps its digits.
    let fraction = f64::from_bits(bits & ((1 << 52) - 1) | (1022 << 52));
    let factor = LOG2_E * f64::from(1u32 << scale);
    ((exponent + 1) << scale) + (fraction.ln() * factor).ceil() as i32 - 1
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use opentelemetry::{KeyValue, metrics::MeterProvider as _};
    use opentelemetry_sdk::metrics::{
        Aggregation, InMemoryMetricExporter, PeriodicReader, SdkMeterProvider, Stream,
        data::{AggregatedMetrics, MetricData},
    };
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> ExponentialHistogram {
        let mut histogram = ExponentialHistogram::default();
        for &value in values {
            histogram.record(value);
        }
        histogram
    }

    /// What OpenTelemetry's own SDK makes of the same values: count, zeros, scale, offset, buckets.
    fn of_sdk(values: &[f64]) -> (u64, u64, i8, i32, Vec<u64>) {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(exporter.clone()).build())
            .with_view(|_: &opentelemetry_sdk::metrics::Instrument| {
                let aggregation = Aggregation::Base2ExponentialHistogram {
                    max_size: SIZE as u32,
                    max_scale: SCALE_MAX,
                    record_min_max: true,
                };
                Stream::builder().with_aggregation(aggregation).build().ok()
            })
            .build();
        let histogram = provider.meter("m").f64_histogram("h").build();
        for &value in values {
            histogram.record(value, &[KeyValue::new("a", "b")]);
        }
        provider.force_flush().unwrap();
        let all = exporter.get_finished_metrics().unwrap();
        let metric = all[0]
            .scope_metrics()
            .next()
            .unwrap()
            .metrics()
            .next()
            .unwrap();
        let AggregatedMetrics::F64(MetricData::ExponentialHistogram(data)) = metric.data() else {
            panic!("not an exponential histogram");
        };
        let point = data.data_points().next().unwrap();
        let buckets = point.positive_bucket();
        (
            point.count() as u64,
            point.zero_count(),
            point.scale(),
            buckets.offset(),
            buckets.counts().collect(),
        )
    }

    fn parts(histogram: &ExponentialHistogram) -> (u64, u64, i8, i32, Vec<u64>) {
        (
            histogram.count,
            histogram.zero,
            histogram.scale,
            histogram.offset,
            histogram.buckets().to_vec(),
        )
    }

    /// Durations from microseconds to minutes fall into the very buckets into which OpenTelemetry's SDK
    /// puts them.
    #[test]
    fn agrees_with_the_sdk() {
        let mut rng = fastrand::Rng::with_seed(5);
        for spread in [0.1, 2.0, 6.0, 12.0] {
            let values: Vec<f64> = (0..3000)
                .map(|_| 10f64.powf(-5.0 + spread * rng.f64()))
                .chain([0.0, 1.0, 0.5, 0.25, 2.0])
                .collect();
            assert_eq!(parts(&of(&values)), of_sdk(&values), "{spread}");
        }
    }

    /// The specification's own examples of bounds: a power of two is the upper bound of its bucket.
    #[test]
    fn upper_bounds_belong_to_their_buckets() {
        assert_eq!(index(1.0, 0), -1);
        assert_eq!(index(1.000_001, 0), 0);
        assert_eq!(index(2.0, 0), 0);
        assert_eq!(index(4.0, 0), 1);
        assert_eq!(index(4.0, -1), 0);
        assert_eq!(index(5.0, -1), 1);
        assert_eq!(index(1.0, 3), -1);
        assert_eq!(index(2.0, 3), 7);
        assert_eq!(index(2.1, 3), 8);
    }

    /// What is no duration is no harm: nothing is counted of it, or a zero.
    #[test]
    fn odd_numbers() {
        let histogram = of(&[f64::NAN, f64::INFINITY, -1.0, f64::MIN_POSITIVE / 2.0, 0.0]);
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.zeros(), 3);
        assert_eq!(histogram.quantile(0.5), Some(0.0));
        assert_eq!(ExponentialHistogram::default().quantile(0.5), None);
        let wide = of(&[f64::MIN_POSITIVE, f64::MAX]);
        assert_eq!(wide.count(), 2);
        assert_eq!(wide.buckets().iter().sum::<u64>(), 2);
    }

    proptest! {
        /// However values are spread over two histograms, merged they count the same as in one, and no
        /// count is lost on the way.
        #[test]
        fn merging_loses_nothing(
            a in proptest::collection::vec(0.0..1e4f64, 0..200),
            b in proptest::collection::vec(1e-9..1e-3f64, 0..200),
        ) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let both: Vec<f64> = a.iter().chain(&b).copied().collect();
            let whole = of(&both);
            prop_assert_eq!(merged.count(), whole.count());
            prop_assert_eq!(merged.range(), whole.range());
            prop_assert_eq!(merged.buckets().iter().sum::<u64>() + merged.zeros(), whole.count());
            prop_assert_eq!(
                (merged.scale, merged.offset, merged.buckets()),
                (whole.scale, whole.offset, whole.buckets())
            );
        }

        /// A quantile is off by no more than the width of its bucket.
        #[test]
        fn quantiles_are_within_a_bucket(
            mut values in proptest::collection::vec(1e-6..1e2f64, 1..500),
            q in 0.01..1.0f64,
        ) {
            let histogram = of(&values);
            values.sort_by(f64::total_cmp);
            let rank = ((values.len() as f64 * q).ceil() as usize).max(1);
            let truth = values[rank - 1];
            let width = (-f64::from(histogram.scale())).exp2().exp2();
            let have = histogram.quantile(q).unwrap();
            prop_assert!(have <= truth * width && truth <= have * width, "{have} {truth} {width}");
        }
    }
}
