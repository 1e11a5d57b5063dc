//! Medians with bootstrap intervals, quantiles, and growth.

use serde::{Deserialize, Serialize};

/// How often samples are drawn anew for an interval.
const RESAMPLES: usize = 2000;

/// Every interval is drawn from the same numbers, so that the same samples give the same interval.
const SEED: u64 = 7;

/// A median, and the bounds of its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Estimate {
    /// The median of the samples.
    pub value: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Estimate {
    /// The median of `samples` with its interval; `None` where there are none, or one is no number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let value = median(samples)?;
        let mut random = fastrand::Rng::with_seed(SEED);
        let medians = (0..RESAMPLES)
            .filter_map(|_| median(&resample(samples, &mut random)))
            .collect();
        Some(Self::within(value, medians))
    }

    /// How the median of `new` compares with that of `old`, two runs that were not paired.
    pub fn ratio(new: &[f64], old: &[f64]) -> Option<Self> {
        let value = quotient(new, old)?;
        let mut random = fastrand::Rng::with_seed(SEED);
        let ratios = (0..RESAMPLES)
            .filter_map(|_| quotient(&resample(new, &mut random), &resample(old, &mut random)))
            .collect();
        Some(Self::within(value, ratios))
    }

    /// Whether `of` lies inside of the interval: then nothing else was shown.
    pub fn covers(&self, of: f64) -> bool {
        (self.low..=self.high).contains(&of)
    }

    fn within(value: f64, mut drawn: Vec<f64>) -> Self {
        drawn.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| quantile(&drawn, q).unwrap_or(value);
        Self {
            value,
            low: at(0.025),
            high: at(0.975),
        }
    }
}

/// The median: of an even number, the mean of the two in the middle. `None` where there are no values,
/// or one is no finite number.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    })
}

/// The quantile `q` of values in ascending order, by the nearest rank: the smallest value that `q` of
/// all values do not exceed.
pub fn quantile<T: Copy>(sorted: &[T], q: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank: small, and not negative"
    )]
    let rank = (q.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    Some(sorted[rank.saturating_sub(1).min(last)])
}

/// How much `y` grows per unit of `x`: the median of the slopes between all pairs (Theil and Sen), which
/// single outliers do not move. `None` for fewer than two different `x`.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::new();
    for (n, &(x, y)) in points.iter().enumerate() {
        for &(other, its) in &points[n + 1..] {
            if other != x {
                slopes.push((its - y) / (other - x));
            }
        }
    }
    median(&slopes)
}

fn quotient(new: &[f64], old: &[f64]) -> Option<f64> {
    let ratio = median(new)? / median(old)?;
    ratio.is_finite().then_some(ratio)
}

fn resample(samples: &[f64], random: &mut fastrand::Rng) -> Vec<f64> {
    samples
        .iter()
        .map(|_| samples[random.usize(..samples.len())])
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    /// Medians and quantiles of known values.
    #[test]
    fn known_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&hundred, 0.5), Some(50));
        assert_eq!(quantile(&hundred, 0.99), Some(99));
        assert_eq!(quantile(&hundred, 0.999), Some(100));
        assert_eq!(quantile(&hundred, 0.0), Some(1));
        assert_eq!(quantile::<u32>(&[], 0.5), None);
    }

    /// Growth is found behind an outlier, and is none where there is none.
    #[test]
    fn growth() {
        let mut points: Vec<_> = (0..20)
            .map(|n| (f64::from(n), 5.0 + 2.0 * f64::from(n)))
            .collect();
        points[10].1 = 1e6;
        assert_eq!(slope(&points), Some(2.0));
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]), Some(0.0));
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 2.0)]), None);
    }

    /// An interval is as honest as it says: of 200 sets of ten draws around a known median, about 95 %
    /// of the intervals hold it, and a wrong median by three standard deviations none.
    #[test]
    fn coverage() {
        let mut random = fastrand::Rng::with_seed(42);
        // The sum of twelve uniform draws: nearly normal, of mean 6 and standard deviation 1.
        let mut draw = || (0..12).map(|_| random.f64()).sum::<f64>();
        let (mut right, mut wrong) = (0, 0);
        for _ in 0..200 {
            let samples: Vec<_> = (0..10).map(|_| draw()).collect();
            let estimate = Estimate::of(&samples).unwrap();
            right += u32::from(estimate.covers(6.0));
            wrong += u32::from(estimate.covers(9.0));
        }
        assert!((175..=200).contains(&right), "{right} of 200");
        assert_eq!(wrong, 0);
    }

    /// Two runs of the same distribution do not differ; one twice as large is seen as such.
    #[test]
    fn ratios() {
        let old: Vec<_> = (0..10).map(|n| 100.0 + f64::from(n % 5)).collect();
        let new: Vec<_> = (0..10).map(|n| 100.0 + f64::from((n + 2) % 5)).collect();
        assert!(Estimate::ratio(&new, &old).unwrap().covers(1.0));
        let twice: Vec<_> = new.iter().map(|value| 2.0 * value).collect();
        let ratio = Estimate::ratio(&twice, &old).unwrap();
        assert!(ratio.covers(2.0) && !ratio.covers(1.0));
        assert_eq!(Estimate::ratio(&new, &[0.0]), None);
    }

    proptest! {
        /// Whatever the samples, the bounds stand around the median, and inside of the samples.
        #[test]
        fn bounds(samples in prop::collection::vec(-1e9..1e9_f64, 1..40)) {
            let estimate = Estimate::of(&samples).unwrap();
            let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(least <= estimate.low && estimate.high <= most);
            prop_assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
        }

        /// A quantile is one of the values, and grows with q.
        #[test]
        fn quantiles(mut values in prop::collection::vec(any::<u64>(), 1..100), q in 0.0..1.0_f64) {
            values.sort_unstable();
            let at = quantile(&values, q).unwrap();
            prop_assert!(values.contains(&at));
            prop_assert!(quantile(&values, (q + 0.1).min(1.0)).unwrap() >= at);
        }
    }
}
