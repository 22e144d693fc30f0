//! What people say of images that models drew: which model they prefer, and which rewards agree with them.
//!
//! Prompts are what is counted, as in [`crate::comparison`]: the votes on the images of one prompt, by however many people and on however many seeds,
//! are averaged, for they are not independent evidence.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::comparison::ImageResult;
use crate::interval::{Interval, wilson};

/// What somebody said of two images of the same prompt and seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Vote {
    /// The prompt's place in the prompt set.
    pub index: usize,
    pub seed: u64,
    /// Who drew the two images.
    pub models: [String; 2],
    /// 1 if the first model's image is better, 0 if the second's is, ½ for a tie.
    pub first_is_better: f64,
    /// Who says so.
    pub voter: String,
}

/// What the votes come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoteCounts {
    /// How many votes there are.
    pub votes: usize,
    /// By how many people.
    pub voters: usize,
    /// Every model that was voted on against the baseline.
    pub wins: Vec<VoteWins>,
    /// By reward, in the order of names.
    pub agreement: Vec<VoteAgreement>,
}

/// How often people prefer a model to the baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoteWins {
    pub candidate: String,
    /// Prompts with a vote.
    pub prompts: usize,
    /// Votes for the candidate.
    pub won: usize,
    /// Votes for neither.
    pub tied: usize,
    /// Votes for the baseline.
    pub lost: usize,
    /// The mean over prompts of the share of votes for the candidate, a tie counting one half, with Wilson's interval over prompts.
    pub rate: Interval,
}

/// How often a reward prefers the image that people prefer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoteAgreement {
    pub reward: String,
    /// Prompts with such a vote.
    pub prompts: usize,
    /// Votes that are no tie, on images that the reward has scored.
    pub votes: usize,
    /// The mean over prompts of the share of votes in which the reward prefers the same image, equal scores counting one half, with Wilson's interval
    /// over prompts.
    pub rate: Interval,
}

/// Counts votes on the images of `rows`. Votes between two other models than the baseline tell of rewards alone; votes on images that have no row tell
/// of models alone.
///
/// `None` without a vote, or for a level outside (0, 1).
pub fn count_votes(votes: &[Vote], rows: &[ImageResult], baseline: &str, level: f64) -> Option<VoteCounts> {
    wilson(0.0, 1, level)?;
    let voters: BTreeSet<&str> = votes.iter().map(|vote| vote.voter.as_str()).collect();
    let mut candidates: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
    for vote in votes {
        match vote.models.each_ref().map(String::as_str) {
            [first, second] if second == baseline => candidates.entry(first).or_default().push((vote.index, vote.first_is_better)),
            [first, second] if first == baseline => candidates.entry(second).or_default().push((vote.index, 1.0 - vote.first_is_better)),
            _ => {}
        }
    }
    let wins = |(candidate, outcomes): (&str, Vec<(usize, f64)>)| {
        let count = |wanted: f64| outcomes.iter().filter(|(_, outcome)| *outcome == wanted).count();
        let (prompts, rate) = over_prompts(&outcomes, level)?;
        Some(VoteWins { candidate: candidate.to_string(), prompts, won: count(1.0), tied: count(0.5), lost: count(0.0), rate })
    };
    (!votes.is_empty()).then(|| VoteCounts {
        votes: votes.len(),
        voters: voters.len(),
        wins: candidates.into_iter().filter_map(wins).collect(),
        agreement: agreement(votes, rows, level),
    })
}

fn agreement(votes: &[Vote], rows: &[ImageResult], level: f64) -> Vec<VoteAgreement> {
    let by_image: BTreeMap<(&str, usize, u64), &ImageResult> =
        rows.iter().map(|row| ((row.model.as_str(), row.index, row.seed), row)).collect();
    let mut of_rewards: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
    for vote in votes.iter().filter(|vote| vote.first_is_better != 0.5) {
        let [first, second] = vote.models.each_ref().map(|model| by_image.get(&(model.as_str(), vote.index, vote.seed)).copied());
        let (Some(first), Some(second)) = (first, second) else { continue };
        for reward in first.scores.keys() {
            let (Some(a), Some(b)) = (first.score(reward), second.score(reward)) else { continue };
            let first_is_better = if a == b { 0.5 } else { f64::from(u8::from(a > b)) };
            of_rewards.entry(reward).or_default().push((vote.index, 1.0 - (first_is_better - vote.first_is_better).abs()));
        }
    }
    let of = |(reward, outcomes): (&str, Vec<(usize, f64)>)| {
        let (prompts, rate) = over_prompts(&outcomes, level)?;
        Some(VoteAgreement { reward: reward.to_string(), prompts, votes: outcomes.len(), rate })
    };
    of_rewards.into_iter().filter_map(of).collect()
}

/// How many prompts there are, and the mean over them of their outcomes' means.
fn over_prompts(outcomes: &[(usize, f64)], level: f64) -> Option<(usize, Interval)> {
    let mut of_prompts: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (index, outcome) in outcomes {
        let (sum, count) = of_prompts.entry(*index).or_default();
        (*sum, *count) = (*sum + outcome, *count + 1.0);
    }
    let prompts = of_prompts.len();
    let sum: f64 = of_prompts.values().map(|(sum, count)| sum / count).sum();
    // Rounding may lead beyond the number of prompts.
    Some((prompts, wilson(sum.min(prompts as f64), prompts, level)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::PixelStats;

    fn row(model: &str, index: usize, judge: f64) -> ImageResult {
        let scores = [("judge", judge), ("always", 1.0), ("lost", f64::NAN)];
        ImageResult {
            index,
            prompt: format!("prompt {index}"),
            category: None,
            seed: 3,
            model: model.into(),
            scores: scores.map(|(name, score)| (name.to_string(), score)).into(),
            pixels: PixelStats::of(&[0, 0, 0], 1, 1).unwrap(),
        }
    }

    fn vote(voter: &str, models: [&str; 2], index: usize, first_is_better: f64) -> Vote {
        Vote { index, seed: 3, models: models.map(String::from), first_is_better, voter: voter.into() }
    }

    #[test]
    fn votes_on_a_prompt_are_averaged_and_prompts_are_counted() {
        let votes = [
            vote("a", ["base", "tuned"], 0, 0.0),
            vote("b", ["tuned", "base"], 0, 0.5),
            vote("a", ["tuned", "base"], 1, 1.0),
            vote("a", ["base", "tuned"], 2, 1.0),
            vote("a", ["tuned", "other"], 2, 1.0),
        ];
        let found = count_votes(&votes, &[], "base", 0.95).unwrap();
        assert_eq!((found.votes, found.voters, found.wins.len(), found.agreement.len()), (5, 2, 1, 0));
        let wins = &found.wins[0];
        assert_eq!((&*wins.candidate, wins.prompts, wins.won, wins.tied, wins.lost), ("tuned", 3, 2, 1, 1));
        // Prompt means 3/4, 1 and 0.
        assert_eq!(wins.rate, wilson(1.75, 3, 0.95).unwrap());
        assert_eq!(count_votes(&[], &[], "base", 0.95), None);
        assert_eq!(count_votes(&votes, &[], "base", 1.0), None);
    }

    #[test]
    fn a_reward_agrees_where_it_prefers_the_same_image() {
        let rows = [row("base", 0, 1.0), row("tuned", 0, 2.0), row("base", 1, 5.0), row("tuned", 1, 4.0)];
        let votes = [
            vote("a", ["base", "tuned"], 0, 0.0),
            vote("a", ["base", "tuned"], 1, 0.0),
            vote("b", ["tuned", "base"], 1, 0.5),
            vote("b", ["tuned", "base"], 7, 1.0),
        ];
        let found = count_votes(&votes, &rows, "base", 0.95).unwrap();
        let about: Vec<_> = found.agreement.iter().map(|of| (of.reward.as_str(), of.prompts, of.votes, of.rate.estimate)).collect();
        assert_eq!(about, [("always", 2, 2, 0.5), ("judge", 2, 2, 0.5)], "a tie and images without scores tell nothing of rewards");
        assert_eq!(found.wins[0].prompts, 3);
    }
}
