//! A metric of a run of any length in bounded memory: neighbouring points share a bucket as soon as there are many.

/// More buckets than this are merged in pairs.
const MOST: usize = 1024;

/// Consecutive points.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    /// Steps of the first and the last point.
    steps: (f64, f64),
    points: usize,
    /// Those whose values are finite, their sum, the least and the largest.
    finite: usize,
    sum: f64,
    low: f64,
    high: f64,
    /// The sum of the squared standard errors of the values; not finite where one has none.
    squared_errors: f64,
}

impl Bucket {
    fn of(step: f64, value: f64, error: f64) -> Self {
        let is_finite = value.is_finite();
        let (sum, low, high) = if is_finite { (value, value, value) } else { (0.0, f64::INFINITY, f64::NEG_INFINITY) };
        let squared_errors = if is_finite { error * error } else { 0.0 };
        Self { steps: (step, step), points: 1, finite: usize::from(is_finite), sum, low, high, squared_errors }
    }

    fn with(self, next: Self) -> Self {
        Self {
            steps: (self.steps.0, next.steps.1),
            points: self.points + next.points,
            finite: self.finite + next.finite,
            sum: self.sum + next.sum,
            low: self.low.min(next.low),
            high: self.high.max(next.high),
            squared_errors: self.squared_errors + next.squared_errors,
        }
    }
}

/// A part of a curve, ready to be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// In the middle of the part.
    pub step: f64,
    /// The mean of its values; NaN where none is finite.
    pub mean: f64,
    /// What is drawn around it: see [`Band`].
    pub low: f64,
    pub high: f64,
}

/// What the band around a curve means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Band {
    /// The 95 % interval of the mean.
    Interval,
    /// From the least to the largest value of each part.
    Range,
    /// There is none: each value is a point.
    Nothing,
}

/// The values of a metric.
#[derive(Debug, Clone, Default)]
pub struct Series {
    buckets: Vec<Bucket>,
    /// How many points a bucket holds when it is full.
    per: usize,
    latest: Option<f64>,
}

impl Series {
    /// Adds a value, which may be NaN, with its standard error, which is NaN where it is not known. Steps come in order.
    pub fn push(&mut self, step: f64, value: f64, error: f64) {
        (self.latest, self.per) = (Some(value), self.per.max(1));
        let one = Bucket::of(step, value, error);
        match self.buckets.last_mut() {
            Some(last) if last.points < self.per => *last = last.with(one),
            _ => self.buckets.push(one),
        }
        if self.buckets.len() > MOST {
            self.buckets = merged(&self.buckets, 2);
            self.per *= 2;
        }
    }

    /// The value that came last.
    pub fn latest(&self) -> Option<f64> {
        self.latest
    }

    /// At most about `most` points of the curve, and what is around them.
    pub fn curve(&self, most: usize) -> (Band, Vec<Point>) {
        let together = self.buckets.len().div_ceil(most.max(1)).max(1);
        let buckets = merged(&self.buckets, together);
        let has_errors = buckets.iter().any(|bucket| bucket.finite > 0) && buckets.iter().all(|bucket| bucket.squared_errors.is_finite());
        let band = match (has_errors, self.per * together) {
            (true, _) => Band::Interval,
            (false, 0 | 1) => Band::Nothing,
            (false, _) => Band::Range,
        };
        let point = |bucket: &Bucket| {
            let mean = if bucket.finite > 0 { bucket.sum / bucket.finite as f64 } else { f64::NAN };
            // The mean of independent values.
            let reach = 1.96 * bucket.squared_errors.sqrt() / bucket.finite as f64;
            let (low, high) = if band == Band::Interval { (mean - reach, mean + reach) } else { (bucket.low, bucket.high) };
            Point { step: (bucket.steps.0 + bucket.steps.1) / 2.0, mean, low, high }
        };
        (band, buckets.iter().map(point).collect())
    }
}

fn merged(buckets: &[Bucket], together: usize) -> Vec<Bucket> {
    buckets.chunks(together).map(|some| some[1..].iter().fold(some[0], |sum, next| sum.with(*next))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_points_are_a_thousand_buckets_and_lose_no_spike() {
        let mut series = Series::default();
        for step in 0..100_000 {
            series.push(f64::from(step), if step == 54_321 { 9.0 } else { 0.5 }, f64::NAN);
        }
        assert!(series.buckets.len() <= MOST && series.buckets.capacity() <= 4 * MOST, "{}", series.buckets.len());
        let (band, points) = series.curve(300);
        assert!((150..=300).contains(&points.len()), "{}", points.len());
        assert_eq!((band, series.latest()), (Band::Range, Some(0.5)));
        assert_eq!(points.iter().filter(|point| point.high == 9.0).count(), 1);
        assert!(points.iter().all(|point| point.low == 0.5) && points.is_sorted_by(|one, next| one.step < next.step));
        let total: usize = series.buckets.iter().map(|bucket| bucket.points).sum();
        assert_eq!(total, 100_000);
    }

    #[test]
    fn standard_errors_become_an_interval_and_nan_is_a_gap() {
        let mut series = Series::default();
        for (step, value) in [(1.0, 1.0), (2.0, 3.0), (3.0, f64::NAN), (4.0, f64::NAN)] {
            series.push(step, value, 0.5);
        }
        let (band, points) = series.curve(2);
        assert_eq!(band, Band::Interval);
        // Two means with an error of 0.5 each: √0.5 / 2.
        assert!((points[0].high - (2.0 + 1.96 * 0.5f64.sqrt() / 2.0)).abs() < 1e-12, "{points:?}");
        assert_eq!((points[0].step, points[0].mean), (1.5, 2.0));
        assert!(points[1].mean.is_nan());
        let (_, single) = series.curve(10);
        assert_eq!((single.len(), single[1].mean), (4, 3.0));
        series.push(5.0, 1.0, f64::NAN);
        assert_eq!(series.curve(10).0, Band::Nothing);
    }
}
