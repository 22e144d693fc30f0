//! More than two models in one order, by a reward: every prompt is a game of every two.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::CompareOptions;
use super::contrast::per_prompt;
use super::rows::{Images, paired};
use crate::bootstrap::{Method, interval_from, on_resamples};
use crate::consistency::Choice;
use crate::interval::Interval;
use crate::ranking::{BradleyTerry, Elo, Games};
use crate::{Result, normal};

/// The mean rating of all models.
const MEAN_ELO: f64 = 1500.0;
/// Virtual ties between every two models, so that one which always wins has a rating, on every resample.
const PRIOR: f64 = 1.0;
/// More resamples than this do not move an interval by what anyone reads.
const RESAMPLES: usize = 999;

/// A model among others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    pub model: String,
    /// Comparisons with another model on a prompt that both have.
    pub comparisons: usize,
    /// Of those, won; a tie is a half.
    pub wins: f64,
    /// On Elo's scale, 1500 being the mean of the models.
    pub elo: f64,
    /// The wider, at each end, of two intervals: bootstrap percentiles with prompts resampled whole, for comparisons on one prompt are not
    /// independent; and `elo ± z` standard errors of [`BradleyTerry`], which takes them to be, but knows that a model which won everywhere might
    /// have lost, as no resample does. `None` with fewer than two prompts.
    pub interval: Option<Interval>,
}

/// All models by one reward.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standings {
    pub reward: String,
    /// Prompts on which two or more models were compared.
    pub prompts: usize,
    /// Virtual ties between every two models that the fit started from.
    pub prior: f64,
    /// The strongest first.
    pub models: Vec<Standing>,
}

/// A comparison of two models, by number, on a prompt.
type Game = (usize, usize, Choice);

/// The standings by every reward, in the order of names. On each prompt two models are compared by their mean over the seeds that both have.
pub(super) fn standings(images: &[Images], models: &[&str], options: &CompareOptions) -> Result<Vec<Standings>> {
    let rewards: BTreeSet<&str> = images.iter().flat_map(Images::values).flat_map(|row| row.scores.keys()).map(String::as_str).collect();
    rewards.into_iter().map(|reward| standings_by(reward, images, models, options)).collect()
}

fn standings_by(reward: &str, images: &[Images], models: &[&str], options: &CompareOptions) -> Result<Standings> {
    let played = games(reward, images, models);
    let prompts: Vec<&[Game]> = played.values().map(Vec::as_slice).collect();
    let ratings = |sample: &[&[Game]]| -> Result<Vec<Elo>> {
        let mut all = Games::new(models.len());
        sample.iter().copied().flatten().try_for_each(|(first, second, choice)| all.add(*first, *second, *choice))?;
        Ok(BradleyTerry::fit(&all, PRIOR)?.elo(MEAN_ELO))
    };
    let estimates = ratings(&prompts)?;
    let level = options.bootstrap.level;
    let several = prompts.len() > 1;
    let resamples = if several { options.bootstrap.resamples.min(RESAMPLES) } else { 0 };
    let resampled = on_resamples(&prompts, ratings, resamples, options.bootstrap.seed).into_iter().collect::<Result<Vec<_>>>()?;
    let standing = |(place, model): (usize, &&str)| {
        let Elo { rating, standard_error } = estimates[place];
        let of_model = resampled.iter().map(|ratings| ratings[place].rating).collect();
        let bootstrap = interval_from(&prompts, |_| rating, of_model, level, Method::Percentile);
        let reach = normal::quantile((1.0 + level) / 2.0) * standard_error;
        let wider = |of: Interval| Interval { low: of.low.min(rating - reach), high: of.high.max(rating + reach), ..of };
        let (comparisons, wins) = record(&prompts, place);
        Standing { model: model.to_string(), comparisons, wins, elo: rating, interval: bootstrap.map(wider) }
    };
    let mut standings: Vec<_> = models.iter().enumerate().map(standing).collect();
    standings.sort_by(|one, other| other.elo.total_cmp(&one.elo));
    Ok(Standings { reward: reward.to_string(), prompts: prompts.len(), prior: PRIOR, models: standings })
}

/// The games of each prompt that has any.
fn games(reward: &str, images: &[Images], models: &[&str]) -> BTreeMap<usize, Vec<Game>> {
    let mut found = BTreeMap::<usize, Vec<Game>>::new();
    for first in 0..images.len() {
        for second in first + 1..images.len() {
            let (pairs, _) = paired(&images[second], &images[first], [models[second], models[first]]);
            for of_prompt in pairs.chunk_by(|one, next| one.index() == next.index()) {
                let (means, _) = per_prompt(of_prompt, |pair| pair.scores(reward));
                let choice = |(of_first, of_second): &(f64, f64)| match of_first.total_cmp(of_second) {
                    Ordering::Greater => Choice::First,
                    Ordering::Equal => Choice::Tie,
                    Ordering::Less => Choice::Second,
                };
                let game = means.iter().map(|means| (first, second, choice(means)));
                found.entry(of_prompt[0].index()).or_default().extend(game);
            }
        }
    }
    found.retain(|_, games| !games.is_empty());
    found
}

/// How many comparisons a model had, and how many it won.
fn record(prompts: &[&[Game]], model: usize) -> (usize, f64) {
    let games = prompts.iter().copied().flatten();
    let points = games.filter_map(|(first, second, choice)| match (*first == model, *second == model) {
        (true, _) => Some(*choice),
        (_, true) => Some(choice.swapped()),
        _ => None,
    });
    points.fold((0, 0.0), |(played, won), choice| {
        let point = match choice {
            Choice::First => 1.0,
            Choice::Tie => 0.5,
            Choice::Second => 0.0,
        };
        (played + 1, won + point)
    })
}
