//! Strengths of models from comparisons of two: Bradley-Terry by maximum likelihood, and the Elo scale.

use std::f64::consts::LN_10;

use serde::Serialize;

use crate::consistency::Choice;
use crate::{Error, Result};

/// Which models were compared, and how often each won. A tie is half a win of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Games {
    /// Twice the wins of the row's model over the column's: whole numbers, so that the order of adding never shows.
    half_wins: Vec<Vec<u64>>,
}

impl Games {
    /// Without comparisons yet, of `models` models numbered from 0.
    pub fn new(models: usize) -> Self {
        Self { half_wins: vec![vec![0; models]; models] }
    }

    /// Adds a comparison.
    pub fn add(&mut self, first: usize, second: usize, choice: Choice) -> Result<()> {
        let models = self.half_wins.len();
        if first == second || first >= models || second >= models {
            return Err(Error::Models { first, second, models });
        }
        let [of_first, of_second] = match choice {
            Choice::First => [2, 0],
            Choice::Second => [0, 2],
            Choice::Tie => [1, 1],
        };
        self.half_wins[first][second] += of_first;
        self.half_wins[second][first] += of_second;
        Ok(())
    }

    /// Wins as a matrix, with half a tie for each side of every tie, and `prior` virtual ties between every two models.
    fn wins(&self, prior: f64) -> Vec<Vec<f64>> {
        let entry = |i: usize, j: usize, half_wins: u64| if i == j { 0.0 } else { (half_wins as f64 + prior) / 2.0 };
        let row = |(i, row): (usize, &Vec<u64>)| row.iter().enumerate().map(|(j, half_wins)| entry(i, j, *half_wins)).collect();
        self.half_wins.iter().enumerate().map(row).collect()
    }
}

/// Strengths of models on the scale of logarithms, where `P(i beats j) = 1 / (1 + exp(βⱼ − βᵢ))`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BradleyTerry {
    /// `β`, of mean 0; larger is better.
    pub log_strengths: Vec<f64>,
    /// The standard error of each `β`, against the mean of all models.
    pub standard_errors: Vec<f64>,
    /// The covariance of the `β`; its rows sum to 0.
    pub covariance: Vec<Vec<f64>>,
}

/// A model on Elo's scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Elo {
    /// 400 points more are odds of 10 to 1.
    pub rating: f64,
    /// Of the rating, against the mean of all models.
    pub standard_error: f64,
}

const ITERATIONS: usize = 1_000_000;
/// Largest change of a log-strength at which the iteration ends, far below any standard error.
const SETTLED: f64 = 1e-14;

impl BradleyTerry {
    /// Fits strengths `p = exp(β)` to comparisons: the maximum of `Π_ij (pᵢ / (pᵢ + pⱼ))^{w_ij}`, with `w_ij` how often `i` beat `j` and a tie half
    /// a win of each, by the MM iteration
    ///
    /// `pᵢ ← Wᵢ / Σⱼ n_ij / (pᵢ + pⱼ)`, `Wᵢ = Σⱼ w_ij`, `n_ij = w_ij + w_ji`,
    ///
    /// which raises the likelihood at every step. Unlike Elo's running update it does not depend on the order of the comparisons.
    ///
    /// The maximum exists if, and only if, between any split of the models in two groups each group won or tied at least once; a model that
    /// never lost, or that was never compared, is an [`Error::Separated`] that names the groups. `prior` virtual ties between every two
    /// models (0 for maximum likelihood proper; 0.5 or 1 are mild) make it exist always, and draw all strengths together.
    ///
    /// Standard errors are from the observed information `H`, `H_ij = −n_ij pᵢ pⱼ / (pᵢ + pⱼ)²` off the diagonal and rows of sum 0: the
    /// covariance is its pseudo-inverse. Virtual ties count in `H`. They take comparisons as independent; if several are of one prompt they are too
    /// small.
    ///
    /// Source: Hunter, Annals of Statistics 32 (2004), sections 2 and 3 (the iteration, Assumption 1); Bradley and Terry, Biometrika 39 (1952).
    pub fn fit(games: &Games, prior: f64) -> Result<Self> {
        if !(prior >= 0.0 && prior.is_finite()) {
            return Err(Error::Prior(prior));
        }
        let wins = games.wins(prior);
        check_connected(&wins)?;
        let log_strengths = maximum_likelihood(&wins)?;
        let covariance = covariance(&wins, &log_strengths);
        let standard_errors = covariance.iter().enumerate().map(|(i, row)| row[i].sqrt()).collect();
        Ok(Self { log_strengths, standard_errors, covariance })
    }

    /// `β_first − β_second` and its standard error `√(C₁₁ + C₂₂ − 2 C₁₂)`. This tells whether two models differ; the standard errors of the two
    /// alone do not.
    pub fn difference(&self, first: usize, second: usize) -> (f64, f64) {
        let c = &self.covariance;
        let variance = c[first][first] + c[second][second] - 2.0 * c[first][second];
        (self.log_strengths[first] - self.log_strengths[second], variance.max(0.0).sqrt())
    }

    /// Elo ratings `mean + 400 / ln 10 · β`. `mean` is the mean rating of all models: 1000 or 1500 by custom.
    pub fn elo(&self, mean: f64) -> Vec<Elo> {
        let scale = 400.0 / LN_10;
        let models = self.log_strengths.iter().zip(&self.standard_errors);
        models.map(|(beta, error)| Elo { rating: mean + scale * beta, standard_error: scale * error }).collect()
    }
}

/// Finds a group that was never beaten by the rest, if there is one: whom model 0 beats, directly or through others, must be all, and so must
/// those who beat it.
fn check_connected(wins: &[Vec<f64>]) -> Result<()> {
    let models = wins.len();
    let reach = |beats: &dyn Fn(usize, usize) -> bool| {
        let mut is_reached = vec![false; models];
        let mut open: Vec<_> = (0..models.min(1)).collect();
        while let Some(i) = open.pop() {
            if !std::mem::replace(&mut is_reached[i], true) {
                open.extend((0..models).filter(|j| beats(i, *j)));
            }
        }
        (0..models).partition::<Vec<_>, _>(|i| is_reached[*i])
    };
    let (losers, winners) = reach(&|i, j| wins[i][j] > 0.0);
    if !winners.is_empty() {
        // Nobody among those that model 0 beats ever won against the rest.
        return Err(Error::Separated { winners, losers });
    }
    let (winners, losers) = reach(&|i, j| wins[j][i] > 0.0);
    if losers.is_empty() { Ok(()) } else { Err(Error::Separated { winners, losers }) }
}

fn maximum_likelihood(wins: &[Vec<f64>]) -> Result<Vec<f64>> {
    let models = wins.len();
    let won: Vec<f64> = wins.iter().map(|row| row.iter().sum()).collect();
    let mut strengths = vec![1.0; models];
    let mut step = f64::INFINITY;
    for _ in 0..ITERATIONS {
        if models < 2 || step <= SETTLED {
            return Ok(strengths.iter().map(|strength: &f64| strength.ln()).collect());
        }
        let updated = |i: usize| {
            let games = (0..models).filter(|j| *j != i).map(|j| (wins[i][j] + wins[j][i]) / (strengths[i] + strengths[j]));
            won[i] / games.sum::<f64>()
        };
        let mut next: Vec<f64> = (0..models).map(updated).collect();
        // The likelihood knows ratios only; of geometric mean 1, β has mean 0.
        let mean = next.iter().map(|strength| strength.ln()).sum::<f64>() / models as f64;
        next.iter_mut().for_each(|strength| *strength /= mean.exp());
        step = next.iter().zip(&strengths).map(|(new, old)| (new / old - 1.0).abs()).fold(0.0, f64::max);
        strengths = next;
    }
    Err(Error::Unsettled { step, iterations: ITERATIONS })
}

/// The pseudo-inverse of the observed information. Its null space is the shift of all β, spanned by ones, so it is
/// `(H + 11ᵀ / k)⁻¹ − 11ᵀ / k`.
fn covariance(wins: &[Vec<f64>], log_strengths: &[f64]) -> Vec<Vec<f64>> {
    let models = wins.len();
    let share = 1.0 / models as f64;
    let mut shifted = vec![vec![share; models]; models];
    for i in 0..models {
        for j in (0..models).filter(|j| *j != i) {
            let probability = 1.0 / (1.0 + (log_strengths[j] - log_strengths[i]).exp());
            let information = (wins[i][j] + wins[j][i]) * probability * (1.0 - probability);
            shifted[i][j] -= information;
            shifted[i][i] += information;
        }
    }
    let mut inverse = inverted(shifted);
    inverse.iter_mut().flatten().for_each(|entry| *entry -= share);
    inverse
}

/// The inverse of a symmetric positive definite matrix, which Gauss-Jordan elimination finds without exchanging rows.
fn inverted(mut matrix: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = matrix.len();
    for pivot in 0..n {
        let scale = 1.0 / matrix[pivot][pivot];
        matrix[pivot][pivot] = 1.0;
        matrix[pivot].iter_mut().for_each(|entry| *entry *= scale);
        let row = matrix[pivot].clone();
        for (_, other) in matrix.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
            let factor = std::mem::replace(&mut other[pivot], 0.0);
            other.iter_mut().zip(&row).for_each(|(entry, of_pivot)| *entry -= factor * of_pivot);
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::Choice::{First, Second, Tie};
    use super::*;

    fn games(models: usize, results: &[(usize, usize, Choice, usize)]) -> Games {
        let mut games = Games::new(models);
        for (first, second, choice, times) in results {
            (0..*times).for_each(|_| games.add(*first, *second, *choice).unwrap());
        }
        games
    }

    #[test]
    fn two_models_have_the_log_odds_of_their_wins() {
        // 30 wins and 4 ties against 14 losses and 4 ties: 32 and 16. The variance of the log odds is 1/32 + 1/16.
        let fit = BradleyTerry::fit(&games(2, &[(0, 1, First, 30), (1, 0, First, 14), (1, 0, Tie, 4)]), 0.0);
        let fit = fit.unwrap();
        let (difference, error) = fit.difference(0, 1);
        assert!((difference - 2f64.ln()).abs() < 1e-12 && (error - (3f64 / 32.0).sqrt()).abs() < 1e-12);
        // Against the mean of the two, each is half of the difference.
        assert!((fit.standard_errors[1] - error / 2.0).abs() < 1e-12);
        let elo = fit.elo(1500.0);
        assert!((elo[0].rating - elo[1].rating - 400.0 * 2f64.log10()).abs() < 1e-9);
        assert!((elo[0].rating + elo[1].rating - 3000.0).abs() < 1e-9);
        assert!((elo[0].standard_error / fit.standard_errors[0] - 400.0 / LN_10).abs() < 1e-9);
    }

    #[test]
    fn neither_order_nor_numbers_of_models_matter() {
        let mut results: Vec<_> =
            (0..60).map(|i| (i % 5, (i % 5 + 1 + i / 5 % 4) % 5, [First, Second, First, Tie][i % 7 % 4], 1)).collect();
        let fit = BradleyTerry::fit(&games(5, &results), 0.0).unwrap();
        results.reverse();
        assert_eq!(fit, BradleyTerry::fit(&games(5, &results), 0.0).unwrap());
        results.iter_mut().for_each(|(first, second, _, _)| (*first, *second) = (4 - *first, 4 - *second));
        let renumbered = BradleyTerry::fit(&games(5, &results), 0.0).unwrap();
        for i in 0..5 {
            assert!((fit.log_strengths[i] - renumbered.log_strengths[4 - i]).abs() < 1e-10);
            assert!((fit.standard_errors[i] - renumbered.standard_errors[4 - i]).abs() < 1e-10);
        }
        assert!(fit.log_strengths.iter().any(|beta| beta.abs() > 0.1), "{fit:?}");
    }

    #[test]
    fn groups_without_a_way_back_are_named() {
        let separated = |games: &Games| match BradleyTerry::fit(games, 0.0) {
            Err(Error::Separated { winners, losers }) => (winners, losers),
            other => panic!("{other:?}"),
        };
        // Model 2 never lost; model 2 never won; model 2 was never compared.
        assert_eq!(separated(&games(3, &[(0, 1, Tie, 1), (2, 0, First, 3)])), (vec![2], vec![0, 1]));
        assert_eq!(separated(&games(3, &[(0, 1, Tie, 1), (2, 0, Second, 3)])), (vec![0, 1], vec![2]));
        assert_eq!(separated(&games(3, &[(0, 1, Tie, 1)])), (vec![2], vec![0, 1]));
        let error = BradleyTerry::fit(&games(2, &[(0, 1, First, 3)]), 0.0).unwrap_err().to_string();
        assert!(error.contains("models [0] never lost, nor tied, against models [1]") && error.contains("prior"), "{error}");
    }

    #[test]
    fn a_prior_ranks_the_undefeated_and_is_a_virtual_tie() {
        let results = [(0, 1, First, 3), (1, 2, First, 3)];
        let fit = BradleyTerry::fit(&games(3, &results), 1.0).unwrap();
        assert!(fit.log_strengths[0] > fit.log_strengths[1] && fit.log_strengths[1] > fit.log_strengths[2]);
        let ties = [(0, 1, Tie, 1), (1, 2, Tie, 1), (0, 2, Tie, 1)];
        assert_eq!(fit, BradleyTerry::fit(&games(3, &[&results[..], &ties[..]].concat()), 0.0).unwrap());
        // Two models: log odds 3.5 to 0.5.
        let two = BradleyTerry::fit(&games(2, &[(0, 1, First, 3)]), 1.0).unwrap();
        assert!((two.difference(0, 1).0 - 7f64.ln()).abs() < 1e-12);
        for prior in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(BradleyTerry::fit(&Games::new(2), prior), Err(Error::Prior(_))), "{prior}");
        }
    }

    #[test]
    fn one_model_and_none_are_fitted() {
        let one = BradleyTerry::fit(&Games::new(1), 0.0).unwrap();
        assert_eq!((one.log_strengths, one.standard_errors), (vec![0.0], vec![0.0]));
        assert!(BradleyTerry::fit(&Games::new(0), 0.0).unwrap().log_strengths.is_empty());
    }

    #[test]
    fn a_model_is_not_compared_with_itself_or_with_none() {
        let mut games = Games::new(2);
        assert_eq!(games.add(1, 1, Tie), Err(Error::Models { first: 1, second: 1, models: 2 }));
        assert_eq!(games.add(0, 2, First), Err(Error::Models { first: 0, second: 2, models: 2 }));
        assert_eq!(games, Games::new(2));
    }
}
