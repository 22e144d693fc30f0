//! What the votes say so far: who wins, whether voters look at the place, whether they are of one mind, and who agrees with them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vp_data::{Comparison, Preferred, Record};
use vp_evaluation::consistency::{Choice, position_bias, self_consistency};
use vp_evaluation::interval::{Interval, wilson, win_rate};

use super::ballot::Ballot;
use super::votes::{Repeat, Said, Vote};

/// The confidence level of every interval.
const LEVEL: f64 = 0.95;

/// The answers of one voter, or of all together.
pub fn of(ballot: &Ballot, voter: Option<&str>) -> Value {
    let votes: Vec<&Vote> =
        ballot.votes.all().filter(|(name, _)| voter.is_none_or(|voter| voter == *name)).flat_map(|(_, votes)| votes).collect();
    let voters: Vec<Value> = ballot.votes.all().map(|(name, votes)| json!({ "voter": name, "votes": votes.len() })).collect();
    let compared: Vec<(&Vote, &Record, Comparison)> = votes.iter().filter_map(|vote| comparison(ballot, vote)).collect();
    let first: Vec<&(&Vote, &Record, Comparison)> = compared.iter().filter(|(vote, ..)| vote.repeat.is_none()).collect();
    json!({
        "votes": votes.len(),
        "voters": voters,
        "wins": wins(&first),
        "left": left(&first),
        "swapped": swapped(&compared),
        "same": same(&compared),
        "agreement": agreement(ballot, &first),
        "ratings": ratings(ballot, &votes),
    })
}

fn comparison<'a>(ballot: &'a Ballot, vote: &'a Vote) -> Option<(&'a Vote, &'a Record, Comparison)> {
    let Said::Compared { shown, preferred, both_bad } = &vote.said else { return None };
    let preferred = if *both_bad { Preferred::Tie } else { *preferred };
    Some((vote, ballot.record_of(vote)?, Comparison { shown: *shown, preferred, rationale: String::new() }))
}

/// 1 where the completion of the lower index is better, −1 where the other one is, 0 for a tie.
fn sign(comparison: &Comparison) -> f64 {
    let of_first = match comparison.preferred {
        Preferred::First => 1.0,
        Preferred::Second => -1.0,
        Preferred::Tie => 0.0,
    };
    if comparison.shown[0] < comparison.shown[1] { of_first } else { -of_first }
}

fn interval(interval: &Interval) -> Value {
    json!({ "estimate": interval.estimate, "low": interval.low, "high": interval.high })
}

/// For every two models, how often the second named is preferred, a tie counting one half.
fn wins(first: &[&(&Vote, &Record, Comparison)]) -> Vec<Value> {
    let mut of_models: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for (_, record, comparison) in first {
        let [low, high] = [comparison.shown[0].min(comparison.shown[1]), comparison.shown[0].max(comparison.shown[1])];
        let model = |index: usize| record.completions[index].model.clone().unwrap_or_default();
        if model(low) == model(high) {
            continue;
        }
        let outcome = (1.0 - sign(comparison), 1.0 + sign(comparison));
        // The same two models, whichever of them comes first in a record.
        let known = of_models.contains_key(&(model(high), model(low)));
        let (key, outcome) = if known { ((model(high), model(low)), (outcome.1, outcome.0)) } else { ((model(low), model(high)), outcome) };
        of_models.entry(key).or_default().push(outcome);
    }
    let shown = |((base, model), outcomes): ((String, String), Vec<(f64, f64)>)| {
        let rate = win_rate(&outcomes, LEVEL)?;
        Some(
            json!({ "model": model, "against": base, "rate": interval(&rate.rate), "won": rate.wins, "tied": rate.ties, "lost": rate.losses }),
        )
    };
    of_models.into_iter().filter_map(shown).collect()
}

/// How often the image on the left is preferred, among answers that are not ties; ½ if its place does not matter to the voter.
fn left(first: &[&(&Vote, &Record, Comparison)]) -> Option<Value> {
    let count = |wanted| first.iter().filter(|(.., comparison)| comparison.preferred == wanted).count();
    let (left, right) = (count(Preferred::First), count(Preferred::Second));
    wilson(left as f64, left + right, LEVEL).map(|found| interval(&found))
}

/// What happens to answers when the two images change places.
fn swapped(compared: &[(&Vote, &Record, Comparison)]) -> Option<Value> {
    let pairs: Vec<(Choice, Choice)> =
        again(compared, Repeat::Swapped).map(|(before, after)| (choice(before.preferred), choice(after.preferred))).collect();
    position_bias(&pairs, LEVEL).map(|bias| json!({ "pairs": bias.pairs, "changed": interval(&bias.flip_rate) }))
}

/// How often the same answer is given when the same is asked again.
fn same(compared: &[(&Vote, &Record, Comparison)]) -> Option<Value> {
    let answers: Vec<Vec<f64>> = again(compared, Repeat::Same).map(|(before, after)| vec![sign(before), sign(after)]).collect();
    self_consistency(&answers, LEVEL).map(|found| json!({ "items": found.items, "same": interval(&found.unanimous) }))
}

/// The first answer and the repeated one, of those that were repeated.
fn again<'a>(compared: &'a [(&Vote, &Record, Comparison)], repeat: Repeat) -> impl Iterator<Item = (&'a Comparison, &'a Comparison)> {
    compared.iter().filter(move |(vote, ..)| vote.repeat == Some(repeat)).filter_map(move |(later, record, after)| {
        let two = |shown: [usize; 2]| [shown[0].min(shown[1]), shown[0].max(shown[1])];
        let is_first = |(vote, other, before): &&(&Vote, &Record, Comparison)| {
            vote.repeat.is_none() && vote.voter == later.voter && other.id == record.id && two(before.shown) == two(after.shown)
        };
        compared.iter().find(is_first).map(|(.., before)| (before, after))
    })
}

fn choice(preferred: Preferred) -> Choice {
    match preferred {
        Preferred::First => Choice::First,
        Preferred::Second => Choice::Second,
        Preferred::Tie => Choice::Tie,
    }
}

/// How often others, rewards and annotators, prefer the same image, where both prefer one.
fn agreement(ballot: &Ballot, first: &[&(&Vote, &Record, Comparison)]) -> Vec<Value> {
    let with = |(name, opinions): (&String, &BTreeMap<(String, usize, usize), f64>)| {
        let both: Vec<bool> = first
            .iter()
            .filter_map(|(_, record, comparison)| {
                let [low, high] = [comparison.shown[0].min(comparison.shown[1]), comparison.shown[0].max(comparison.shown[1])];
                let (theirs, ours) = (opinions.get(&(record.id.clone(), low, high))?, sign(comparison));
                (ours != 0.0).then_some(*theirs == ours)
            })
            .collect();
        let rate = wilson(both.iter().filter(|agree| **agree).count() as f64, both.len(), LEVEL)?;
        Some(json!({ "with": name, "n": both.len(), "rate": interval(&rate) }))
    };
    ballot.contest.others.iter().filter_map(with).collect()
}

/// The mean rating of each model on each aspect.
fn ratings(ballot: &Ballot, votes: &[&Vote]) -> Vec<Value> {
    let mut of_models: BTreeMap<(String, &str), Vec<f64>> = BTreeMap::new();
    for vote in votes.iter().filter(|vote| vote.repeat.is_none()) {
        let (Said::Rated { completion, ratings }, Some(record)) = (&vote.said, ballot.record_of(vote)) else { continue };
        let model = record.completions[*completion].model.clone().unwrap_or_default();
        ratings.iter().for_each(|(aspect, rating)| of_models.entry((model.clone(), aspect.name())).or_default().push(*rating));
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    of_models
        .into_iter()
        .map(|((model, aspect), values)| json!({ "model": model, "aspect": aspect, "mean": mean(&values), "n": values.len() }))
        .collect()
}
