//! Whether annotators say the same: raw agreement, Cohen's kappa, Krippendorff's alpha.
//!
//! Two annotators are a list of pairs, an item a pair; items that one of the two did not rate are left out. Categories are numbers: ratings
//! as they are, anything else numbered by the caller. A value that is NaN makes a statistic `None`.

use serde::{Deserialize, Serialize};

/// How much a disagreement between two values counts, in [`cohen_kappa`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// 1 if they differ: categories without an order.
    Unweighted,
    /// `|a − b|`.
    Linear,
    /// `(a − b)²`.
    Quadratic,
}

impl Weights {
    fn between(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Unweighted => f64::from(u8::from(a != b)),
            Self::Linear => (a - b).abs(),
            Self::Quadratic => (a - b) * (a - b),
        }
    }
}

/// The scale that [`krippendorff_alpha`] takes values to be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Categories: `δ² = [c ≠ k]`.
    Nominal,
    /// Only the order counts: `δ² = (Σ_{c ≤ g ≤ k} n_g − (n_c + n_k) / 2)²`, with `n_g` how often the value `g` was given.
    Ordinal,
    /// Differences count: `δ² = (c − k)²`.
    Interval,
}

/// The share of items on which both say exactly the same, in [0, 1]. Not corrected for chance: two who always say 5 agree fully. `None` for
/// no item.
pub fn raw_agreement(pairs: &[(f64, f64)]) -> Option<f64> {
    let usable = !pairs.is_empty() && !has_nan(pairs);
    usable.then(|| pairs.iter().filter(|(a, b)| a == b).count() as f64 / pairs.len() as f64)
}

/// Cohen's kappa, `κ = 1 − Σ_ij w_ij o_ij / Σ_ij w_ij e_ij`: `o_ij` is how often the first said `i` and the second `j`, `e_ij` how often that is
/// expected of two who answer independently with these frequencies. 1 is full agreement, 0 is agreement by chance, and less than 0 is less than chance.
///
/// Weights are of the values themselves, so a rating that nobody used still lies between its neighbours; scikit-learn's `cohen_kappa_score` gives
/// the same when its `labels` list the whole scale evenly. `None` with fewer than 2 items, and where chance cannot disagree (both always say
/// one and the same value).
///
/// Source: Cohen, Educational and Psychological Measurement 20 (1960); weighted: Psychological Bulletin 70 (1968).
pub fn cohen_kappa(pairs: &[(f64, f64)], weights: Weights) -> Option<f64> {
    if pairs.len() < 2 || has_nan(pairs) {
        return None;
    }
    let observed: f64 = pairs.iter().map(|(a, b)| weights.between(*a, *b)).sum();
    let first = counts(pairs.iter().map(|(a, _)| *a));
    let second = counts(pairs.iter().map(|(_, b)| *b));
    let cells = first.iter().flat_map(|a| second.iter().map(move |b| (a, b)));
    let expected: f64 = cells.map(|((a, of_a), (b, of_b))| weights.between(*a, *b) * of_a * of_b).sum::<f64>() / pairs.len() as f64;
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// Krippendorff's alpha, `α = 1 − D_o / D_e`, for any number of annotators and with missing values. A unit is an item with the values that it was
/// given, by whomever; who did not rate it is left out, and units with fewer than 2 values do not count. With `m_u` values in unit `u` and `n` in all,
///
/// - `D_o = (1 / n) Σ_u Σ_{i ≠ j in u} δ²(v_i, v_j) / (m_u − 1)`,
/// - `D_e = (1 / (n (n − 1))) Σ_{c, k} n_c n_k δ²(c, k)`.
///
/// 1 is full agreement, 0 is agreement by chance, and less than 0 is less than chance. `None` with fewer than 2 units that count, and where all values are equal.
///
/// Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), its δ² among it.
pub fn krippendorff_alpha(units: &[Vec<f64>], scale: Scale) -> Option<f64> {
    let units: Vec<_> = units.iter().filter(|unit| unit.len() > 1).collect();
    if units.len() < 2 || units.iter().any(|unit| unit.iter().any(|value| value.is_nan())) {
        return None;
    }
    let values = counts(units.iter().flat_map(|unit| unit.iter().copied()));
    let n: f64 = values.iter().map(|(_, count)| count).sum();
    let positions = positions_on(&values, scale);
    let distance = |a: f64, b: f64| match scale {
        Scale::Nominal => f64::from(u8::from(a != b)),
        Scale::Ordinal | Scale::Interval => (a - b) * (a - b),
    };
    let place = |value: f64| positions[values.partition_point(|(other, _)| *other < value)];
    let within = |unit: &&Vec<f64>| {
        let places: Vec<_> = unit.iter().map(|value| place(*value)).collect();
        let ordered_pairs = places.iter().flat_map(|a| places.iter().map(|b| distance(*a, *b)));
        ordered_pairs.sum::<f64>() / (places.len() - 1) as f64
    };
    let observed = units.iter().map(within).sum::<f64>() / n;
    let weighted = || positions.iter().zip(&values).map(|(position, (_, count))| (*position, *count));
    let pairs = weighted().flat_map(|a| weighted().map(move |b| (a, b)));
    let expected = pairs.map(|((a, of_a), (b, of_b))| of_a * of_b * distance(a, b)).sum::<f64>() / (n * (n - 1.0));
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// Where each value lies, so that δ is the distance of two places. On the ordinal scale that is its mean rank: between two values lie all values
/// in between and half of each of the two.
fn positions_on(values: &[(f64, f64)], scale: Scale) -> Vec<f64> {
    let mut below = 0.0;
    let mean_rank = |(_, count): &(f64, f64)| {
        below += count;
        below - count / 2.0
    };
    match scale {
        Scale::Nominal | Scale::Interval => values.iter().map(|(value, _)| *value).collect(),
        Scale::Ordinal => values.iter().map(mean_rank).collect(),
    }
}

/// Each value with how often it occurs, ascending.
fn counts(values: impl Iterator<Item = f64>) -> Vec<(f64, f64)> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as f64)).collect()
}

pub(crate) fn has_nan(pairs: &[(f64, f64)]) -> bool {
    pairs.iter().any(|(a, b)| a.is_nan() || b.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cohen's own arithmetic on a 2 × 2 table: 20, 5, 10, 15 of 50 give p_o = 0.7, p_e = 0.5, κ = 0.4.
    #[test]
    fn kappa_of_a_table_by_hand() {
        let cells = [((0.0, 0.0), 20), ((0.0, 1.0), 5), ((1.0, 0.0), 10), ((1.0, 1.0), 15)];
        let pairs: Vec<_> = cells.into_iter().flat_map(|(pair, times)| std::iter::repeat_n(pair, times)).collect();
        assert!((cohen_kappa(&pairs, Weights::Unweighted).unwrap() - 0.4).abs() < 1e-15);
        assert_eq!(raw_agreement(&pairs), Some(0.7));
    }

    #[test]
    fn unused_ratings_still_lie_in_between() {
        // Of 1, 2, 5 the distance 1-2 is a quarter of 1-5, though they are neighbours alike.
        let near = [(1.0, 2.0), (5.0, 5.0), (1.0, 1.0)];
        let far = [(1.0, 5.0), (5.0, 2.0), (1.0, 1.0)];
        let linear = |pairs: &[_]| cohen_kappa(pairs, Weights::Linear).unwrap();
        // By hand: observed 1, expected (2·(0 + 1 + 4) + 1·(4 + 3 + 0)) / 3 = 17 / 3.
        assert!((linear(&near) - (1.0 - 3.0 / 17.0)).abs() < 1e-15);
        assert!(linear(&far) < 0.0);
    }

    #[test]
    fn negative_zero_is_zero() {
        assert_eq!(cohen_kappa(&[(0.0, -0.0), (-0.0, 0.0), (1.0, 1.0)], Weights::Unweighted), Some(1.0));
        let alpha = |zero: f64| krippendorff_alpha(&[vec![0.0, zero, 1.0], vec![1.0, 2.0], vec![zero, 0.0]], Scale::Ordinal);
        assert_eq!(alpha(-0.0), alpha(0.0));
    }

    #[test]
    fn alpha_forgets_who_rated_and_units_rated_once() {
        let units = [vec![1.0, 2.0, 1.0], vec![4.0, 5.0], vec![3.0, 3.0]];
        let shuffled = [vec![3.0, 3.0], vec![9.0], vec![2.0, 1.0, 1.0], vec![], vec![5.0, 4.0]];
        for scale in [Scale::Nominal, Scale::Ordinal, Scale::Interval] {
            let (one, other) = (krippendorff_alpha(&units, scale).unwrap(), krippendorff_alpha(&shuffled, scale).unwrap());
            assert!((one - other).abs() < 1e-14, "{scale:?}: {one} and {other}");
        }
    }

    #[test]
    fn what_chance_alone_explains_is_none() {
        for weights in [Weights::Unweighted, Weights::Linear, Weights::Quadratic] {
            assert_eq!(cohen_kappa(&[(3.0, 3.0); 5], weights), None);
            assert_eq!(cohen_kappa(&[(3.0, 4.0)], weights), None);
            assert_eq!(cohen_kappa(&[(3.0, f64::NAN), (1.0, 2.0)], weights), None);
        }
        for scale in [Scale::Nominal, Scale::Ordinal, Scale::Interval] {
            assert_eq!(krippendorff_alpha(&[vec![2.0, 2.0], vec![2.0, 2.0]], scale), None);
            assert_eq!(krippendorff_alpha(&[vec![1.0, 2.0], vec![3.0]], scale), None);
            assert_eq!(krippendorff_alpha(&[vec![1.0, 2.0], vec![3.0, f64::NAN]], scale), None);
        }
        assert_eq!(raw_agreement(&[]), None);
        assert_eq!(raw_agreement(&[(f64::NAN, 1.0)]), None);
    }
}
