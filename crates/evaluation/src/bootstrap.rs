//! Bootstrap confidence intervals: how a statistic varies over other samples of the same kind.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::interval::{Interval, is_level};
use crate::normal;

/// How an interval is read off the resampled statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Their quantiles `(1 ∓ level) / 2`.
    Percentile,
    /// Quantiles corrected for bias and skewness (bias-corrected and accelerated), see [`interval_from`].
    Bca,
}

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// How many samples to draw, 1 or more.
    pub resamples: usize,
    /// The confidence level, in (0, 1).
    pub level: f64,
    /// How to read off the interval.
    pub method: Method,
    /// Of the ChaCha8 stream that draws: the same seed gives the same interval on every machine.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 9999 resamples, 95 %, BCa, as `scipy.stats.bootstrap`; seed 0.
    fn default() -> Self {
        Self { resamples: 9999, level: 0.95, method: Method::Bca, seed: 0 }
    }
}

/// The bootstrap interval of any statistic of a list of items, resampled whole and with replacement. Items must be what was drawn independently:
/// prompts, not the several images of one.
///
/// `None` with fewer than 2 items, no resample, a level outside (0, 1), a statistic that is not finite on some resample, or under BCa a statistic
/// that lies beyond all resampled ones. A statistic that never varies gives an interval of no width. Takes
/// `resamples` calls of `statistic`, and `items.len()` more for BCa's jackknife.
///
/// Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 14; `scipy.stats.bootstrap`.
pub fn bootstrap<T: Copy>(items: &[T], statistic: impl Fn(&[T]) -> f64, options: &Bootstrap) -> Option<Interval> {
    if items.len() < 2 {
        return None;
    }
    let resampled = on_resamples(items, &statistic, options.resamples, options.seed);
    interval_from(items, statistic, resampled, options.level, options.method)
}

/// The values of a statistic on samples of the items, each as large as the list and drawn with replacement.
pub(crate) fn on_resamples<T: Copy, R>(items: &[T], statistic: impl Fn(&[T]) -> R, resamples: usize, seed: u64) -> Vec<R> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The high half of a 64 × 64 bit product; its bias, n / 2⁶⁴, is far below what any number of resamples shows.
    let mut draw = || ((u128::from(random.next_u64()) * items.len() as u128) >> 64) as usize;
    let mut sample = items.to_vec();
    let mut next = || {
        sample.iter_mut().for_each(|item| *item = items[draw()]);
        statistic(&sample)
    };
    (0..resamples).map(|_| next()).collect()
}

/// The bootstrap interval of the mean.
pub fn bootstrap_mean(values: &[f64], options: &Bootstrap) -> Option<Interval> {
    bootstrap(values, mean, options)
}

/// The bootstrap interval of the mean of `first − second` over pairs, resampling pairs: two models on the same prompts, where most of the variance
/// is the prompts' and cancels.
pub fn bootstrap_paired_difference(pairs: &[(f64, f64)], options: &Bootstrap) -> Option<Interval> {
    let differences: Vec<_> = pairs.iter().map(|(first, second)| first - second).collect();
    bootstrap_mean(&differences, options)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The interval of a statistic, given its values on resamples however they were drawn.
///
/// BCa takes, in place of the quantiles `α = (1 ∓ level) / 2`, those of `Φ(z₀ + (z₀ + z_α) / (1 − a (z₀ + z_α)))`, with
///
/// - `z₀ = Φ⁻¹(share of resampled values below the estimate, those equal to it counting half)`, the bias, and
/// - `a = Σ dᵢ³ / (6 (Σ dᵢ²)^{3/2})`, the skewness, where `dᵢ` is how far the statistic without item `i` lies below the mean of such statistics.
///
/// Quantiles interpolate linearly between neighbours. `None` as in [`bootstrap`]. Source: as there, equations 14.9 to 14.15.
pub fn interval_from<T: Copy>(
    items: &[T],
    statistic: impl Fn(&[T]) -> f64,
    mut resampled: Vec<f64>,
    level: f64,
    method: Method,
) -> Option<Interval> {
    if items.len() < 2 {
        return None;
    }
    let estimate = statistic(items);
    if resampled.is_empty() || !is_level(level) || !estimate.is_finite() || resampled.iter().any(|value| !value.is_finite()) {
        return None;
    }
    resampled.sort_by(f64::total_cmp);
    let alpha = (1.0 - level) / 2.0;
    let [low, high] = match method {
        Method::Percentile => [alpha, 1.0 - alpha],
        Method::Bca => {
            let below = resampled.partition_point(|value| *value < estimate);
            let not_above = resampled.partition_point(|value| *value <= estimate);
            let bias = normal::quantile((below + not_above) as f64 / (2 * resampled.len()) as f64);
            let acceleration = acceleration(items, statistic);
            let corrected = |z: f64| normal::cdf(bias + (bias + z) / (1.0 - acceleration * (bias + z)));
            let z = normal::quantile(alpha);
            [corrected(z), corrected(-z)]
        }
    };
    let is_share = |share: &f64| (0.0..=1.0).contains(share);
    let [low, high] = [low, high].iter().all(is_share).then(|| [low, high].map(|share| quantile(&resampled, share)))?;
    Some(Interval { estimate, low, high, level })
}

/// A sixth of the skewness of the jackknife's influence values; 0 where nothing varies.
fn acceleration<T: Copy>(items: &[T], statistic: impl Fn(&[T]) -> f64) -> f64 {
    let mut without = items[1..].to_vec();
    let mut left_out = Vec::with_capacity(items.len());
    for i in 0..items.len() {
        left_out.push(statistic(&without));
        if i < without.len() {
            without[i] = items[i];
        }
    }
    let centre = mean(&left_out);
    let power = |exponent| left_out.iter().map(|value| (centre - value).powi(exponent)).sum::<f64>();
    let variation = power(2);
    if variation > 0.0 { power(3) / (6.0 * variation.powf(1.5)) } else { 0.0 }
}

/// Of sorted values, linearly interpolated: NumPy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 8] = [0.1, 2.5, 0.3, 0.7, 4.0, 0.2, 1.1, 0.9];

    #[test]
    fn the_seed_decides() {
        let options = Bootstrap { resamples: 200, ..Bootstrap::default() };
        let first = bootstrap_mean(&VALUES, &options).unwrap();
        assert_eq!(Some(first), bootstrap_mean(&VALUES, &options));
        assert_ne!(Some(first), bootstrap_mean(&VALUES, &Bootstrap { seed: 1, ..options }));
        // A change of stream or of how numbers become indices changes what users have published.
        let percentile = bootstrap_mean(&VALUES, &Bootstrap { method: Method::Percentile, ..options }).unwrap();
        assert_eq!(format!("{percentile:.6}"), "1.225000 [0.474688, 2.175000] 95 %");
    }

    #[test]
    fn a_mean_is_covered_as_often_as_promised() {
        // Samples of 30 uniform numbers, mean ½. 90 % of 600 is 540, its standard deviation 7.3; small samples cover a little less.
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut uniform = || random.next_u64() as f64 / 2f64.powi(64);
        for method in [Method::Percentile, Method::Bca] {
            let covered = (0..600).filter(|seed| {
                let sample: Vec<f64> = (0..30).map(|_| uniform()).collect();
                let options = Bootstrap { resamples: 400, level: 0.9, method, seed: *seed };
                let interval = bootstrap_mean(&sample, &options).unwrap();
                interval.low <= 0.5 && 0.5 <= interval.high
            });
            let covered = covered.count();
            assert!((505..=562).contains(&covered), "{method:?}: {covered} of 600");
        }
    }

    #[test]
    fn pairs_are_resampled_together() {
        // Scores far apart between prompts, differences constant: no uncertainty is left.
        let pairs: Vec<_> = VALUES.iter().map(|value| (value * 64.0 + 0.25, value * 64.0)).collect();
        let interval = bootstrap_paired_difference(&pairs, &Bootstrap::default()).unwrap();
        assert!((interval.low - 0.25).abs() < 1e-12 && (interval.high - 0.25).abs() < 1e-12, "{interval:?}");
        let differences: Vec<_> = VALUES.iter().map(|value| (value + 1.0, 1.0)).collect();
        let of_values = bootstrap_mean(&VALUES, &Bootstrap::default()).unwrap();
        assert!((bootstrap_paired_difference(&differences, &Bootstrap::default()).unwrap().low - of_values.low).abs() < 1e-12);
    }

    #[test]
    fn what_never_varies_has_no_width() {
        for method in [Method::Percentile, Method::Bca] {
            let interval = bootstrap_mean(&[2.0; 5], &Bootstrap { method, ..Bootstrap::default() }).unwrap();
            assert_eq!((interval.low, interval.estimate, interval.high), (2.0, 2.0, 2.0));
        }
    }

    #[test]
    fn too_little_or_impossible_is_none() {
        let options = Bootstrap { resamples: 50, ..Bootstrap::default() };
        assert_eq!(bootstrap_mean(&[], &options), None);
        assert_eq!(bootstrap_mean(&[1.0], &options), None);
        for method in [Method::Percentile, Method::Bca] {
            let options = Bootstrap { resamples: 50, method, ..Bootstrap::default() };
            assert_eq!(bootstrap_mean(&[1.0, f64::NAN, 2.0], &options), None);
            assert_eq!(bootstrap_mean(&[1.0, f64::INFINITY, 2.0], &options), None);
            assert_eq!(bootstrap_mean(&VALUES, &Bootstrap { resamples: 0, ..options }), None);
            for level in [0.0, 1.0, -0.5, f64::NAN] {
                assert_eq!(bootstrap_mean(&VALUES, &Bootstrap { level, ..options }), None);
            }
        }
        let count = |items: &[f64]| items.len() as f64;
        assert_eq!(interval_from(&[], count, vec![0.0; 20], 0.95, Method::Bca), None);
        assert_eq!(interval_from(&[1.0], count, vec![1.0; 20], 0.95, Method::Bca), None);
        // Every resampled value lies above the estimate: the bias is infinite.
        assert_eq!(interval_from(&VALUES, mean, vec![9.0; 20], 0.95, Method::Bca), None);
        assert!(interval_from(&VALUES, mean, vec![9.0; 20], 0.95, Method::Percentile).is_some());
    }
}
