//! How often a reward agrees with people: the protocols under which published accuracies were computed. They differ by several points on the
//! same scores, so every number carries the name of its own.
//!
//! | protocol | unit | human tie | predicted tie | average |
//! |---|---|---|---|---|
//! | [`imagereward_accuracy`] | pair | dropped | wrong | over all pairs |
//! | [`imagereward_accuracy_per_prompt`] | pair | dropped | wrong | over a prompt's pairs, then over prompts |
//! | [`hpsv2_inversion`] | pair | right | broken by index | over a prompt's pairs, then over prompts |
//! | [`pickscore_accuracy`] | pair | a third label | when probabilities are within τ | over all pairs |
//! | [`recall_at`], [`filter_at`] | prompt | any of the tied | counts against | over prompts |

use std::cmp::Ordering;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::bootstrap::{Bootstrap, bootstrap};
use crate::interval::Interval;
use crate::{Error, Result};

/// The images of one prompt: a reward's scores and people's ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    scores: Vec<f64>,
    ranks: Vec<u32>,
}

impl Ranked {
    /// `scores`: larger is better; one that is NaN is wrong in every pair. `ranks`: 1 is best, ties share a number.
    pub fn new(scores: Vec<f64>, ranks: Vec<u32>) -> Result<Self> {
        if scores.len() != ranks.len() {
            return Err(Error::Lengths { scores: scores.len(), ranks: ranks.len() });
        }
        Ok(Self { scores, ranks })
    }

    /// All pairs of images `a < b`.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let n = self.scores.len();
        (0..n).flat_map(move |a| (a + 1..n).map(move |b| (a, b)))
    }

    /// Pairs that people ordered, the better first.
    fn ordered_pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pairs()
            .filter(|&(a, b)| self.ranks[a] != self.ranks[b])
            .map(|(a, b)| if self.ranks[a] < self.ranks[b] { (a, b) } else { (b, a) })
    }

    /// Pairs that people ordered, and those of them that the scores order alike, strictly.
    fn ordered_and_right(&self) -> (usize, usize) {
        let right = self.ordered_pairs().filter(|&(better, worse)| self.scores[better] > self.scores[worse]).count();
        (self.ordered_pairs().count(), right)
    }
}

/// The rule by which an accuracy was computed; serialized as its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Protocol {
    /// [`imagereward_accuracy`].
    ImageRewardPooled,
    /// [`imagereward_accuracy_per_prompt`].
    ImageRewardPerPrompt,
    /// [`hpsv2_inversion`].
    Hpsv2Inversion,
    /// [`pickscore_accuracy`] at this tie threshold.
    PickScore {
        /// The largest difference of probabilities for which a tie is predicted.
        tie_threshold: f64,
    },
    /// [`recall_at`] this many.
    RecallAt(usize),
    /// [`filter_at`] this many.
    FilterAt(usize),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImageRewardPooled => f.write_str("imagereward-pooled"),
            Self::ImageRewardPerPrompt => f.write_str("imagereward-per-prompt"),
            Self::Hpsv2Inversion => f.write_str("hpsv2-inversion"),
            Self::PickScore { tie_threshold } => write!(f, "pickscore-ties@{tie_threshold}"),
            Self::RecallAt(k) => write!(f, "imagereward-recall@{k}"),
            Self::FilterAt(k) => write!(f, "imagereward-filter@{k}"),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An accuracy, its protocol, and how much data it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    pub protocol: Protocol,
    /// In [0, 1].
    pub value: f64,
    /// Prompts that counted.
    pub prompts: usize,
    /// Pairs that counted; 0 where the protocol looks at whole prompts.
    pub pairs: usize,
    /// What was left out because people tied it: pairs, or prompts where the protocol looks at whole prompts.
    pub ties_dropped: usize,
    /// What it would have been on other prompts of the same kind, of [`imagereward_accuracy`]: bootstrap over prompts, 95 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

impl fmt::Display for Accuracy {
    /// `66.30 % (imagereward-pooled, 6399 pairs of 466 prompts, 831 ties dropped; 95 %: 64.81 to 67.74)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} % ({}, ", 100.0 * self.value, self.protocol)?;
        if self.pairs > 0 {
            write!(f, "{} pairs of ", self.pairs)?;
        }
        write!(f, "{} prompts, {} ties dropped", self.prompts, self.ties_dropped)?;
        if let Some(Interval { low, high, level, .. }) = self.interval {
            write!(f, "; {:.0} %: {:.2} to {:.2}", 100.0 * level, 100.0 * low, 100.0 * high)?;
        }
        f.write_str(")")
    }
}

/// ImageReward's accuracy: `#{pairs that scores and people order alike} / #{pairs that people order}`, the pairs of all prompts in one pool, in
/// [0, 1]; a predicted tie is wrong. `None` if people ordered no pair.
///
/// Source: THUDM/ImageReward `test.py`, `acc`. (The paper's table says "averaged per prompt"; its code pools.)
pub fn imagereward_accuracy(prompts: &[Ranked]) -> Option<Accuracy> {
    let counts: Vec<_> = prompts.iter().map(Ranked::ordered_and_right).collect();
    let pairs: usize = counts.iter().map(|(ordered, _)| ordered).sum();
    let right: usize = counts.iter().map(|(_, right)| right).sum();
    let all: usize = prompts.iter().map(|prompt| prompt.pairs().count()).sum();
    let value = ratio(right, pairs)?;
    let share = |counts: &[(usize, usize)]| {
        let sum = |part: fn(&(usize, usize)) -> usize| counts.iter().map(part).sum::<usize>() as f64;
        sum(|(_, right)| *right) / sum(|(ordered, _)| *ordered)
    };
    let ordered: Vec<(usize, usize)> = counts.into_iter().filter(|(ordered, _)| *ordered > 0).collect();
    let interval = bootstrap(&ordered, share, &Bootstrap::default());
    Some(Accuracy { protocol: Protocol::ImageRewardPooled, value, prompts: ordered.len(), pairs, ties_dropped: all - pairs, interval })
}

/// As [`imagereward_accuracy`], but the share of right pairs is taken per prompt and averaged over prompts with an ordered pair, in [0, 1].
///
/// Source: tgxs002/HPSv2 `hpsv2/evaluation.py`, `evaluate_IR`: how HPSv2 reports on ImageReward's test set.
pub fn imagereward_accuracy_per_prompt(prompts: &[Ranked]) -> Option<Accuracy> {
    let pooled = imagereward_accuracy(prompts)?;
    let shares = prompts.iter().map(Ranked::ordered_and_right).filter_map(|(ordered, right)| ratio(right, ordered));
    Some(Accuracy {
        protocol: Protocol::ImageRewardPerPrompt,
        value: shares.sum::<f64>() / pooled.prompts as f64,
        interval: None,
        ..pooled
    })
}

/// HPSv2's accuracy: per prompt `1 − #discordant / (n (n − 1) / 2)` between the predicted and the true ranks, averaged over prompts of two or
/// more images, in [0, 1]. A pair that people tied is never discordant. Scores that tie are ranked by index, the earlier image better, as a stable
/// `argsort(−score)` does (PyTorch promises no order there). `None` without such a prompt.
///
/// Source: tgxs002/HPSv2 `hpsv2/evaluation.py`, `evaluate_rank`; `hpsv2/src/training/train.py`, `inversion_score`.
pub fn hpsv2_inversion(prompts: &[Ranked]) -> Option<Accuracy> {
    let scored: Vec<_> = prompts.iter().filter(|prompt| prompt.scores.len() > 1).collect();
    let concordance = |prompt: &Ranked| {
        let precedes = |a: usize, b: usize| prompt.scores[a] > prompt.scores[b] || (prompt.scores[a] == prompt.scores[b] && a < b);
        let discordant = prompt.ordered_pairs().filter(|&(better, worse)| !precedes(better, worse)).count();
        1.0 - discordant as f64 / prompt.pairs().count() as f64
    };
    let total: f64 = scored.iter().map(|prompt| concordance(prompt)).sum();
    let pairs = scored.iter().map(|prompt| prompt.pairs().count()).sum();
    let value = (!scored.is_empty()).then_some(total / scored.len() as f64)?;
    Some(Accuracy { protocol: Protocol::Hpsv2Inversion, value, prompts: scored.len(), pairs, ties_dropped: 0, interval: None })
}

/// The tie thresholds that PickScore tries.
pub const PICKSCORE_THRESHOLDS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// PickScore's accuracy over all pairs, ties among them, in [0, 1]. With `(p₀, p₁) = softmax(s₀, s₁)`, a tie is predicted if `|p₀ − p₁| ≤ τ`, else
/// the image of larger p; a pair counts 1 if prediction and label (first, second, tie) agree, 0.5 if just one of them is a tie, 0 otherwise
/// and where a score is NaN. `None` without a pair.
///
/// The scores must be logits (PickScore's are `exp(logit_scale) · cos`): τ is a difference of probabilities. Source: yuvalkirstain/PickScore
/// `trainer/scripts/eval_preference_predictor.py`.
pub fn pickscore_accuracy(prompts: &[Ranked], tie_threshold: f64) -> Option<Accuracy> {
    let mut pairs = 0;
    let mut half_points = 0;
    for prompt in prompts {
        for (a, b) in prompt.pairs() {
            // p₀ − p₁ = tanh((s₀ − s₁) / 2), which keeps small differences that two rounded softmaxes lose.
            let difference = ((prompt.scores[a] - prompt.scores[b]) / 2.0).tanh();
            let predicted = if difference.abs() <= tie_threshold { 0.0 } else { difference.signum() };
            let label = f64::from(prompt.ranks[b].cmp(&prompt.ranks[a]) as i8);
            pairs += 1;
            half_points += match predicted {
                predicted if predicted.is_nan() => 0,
                predicted if predicted == label => 2,
                predicted => usize::from(predicted == 0.0 || label == 0.0),
            };
        }
    }
    let value = ratio(half_points, 2 * pairs)?;
    let prompts = prompts.iter().filter(|prompt| prompt.scores.len() > 1).count();
    Some(Accuracy { protocol: Protocol::PickScore { tie_threshold }, value, prompts, pairs, ties_dropped: 0, interval: None })
}

/// The first of [`PICKSCORE_THRESHOLDS`] with the highest [`pickscore_accuracy`] on a validation set, to be used on the test set. `None` without a
/// pair.
pub fn pickscore_threshold(validation: &[Ranked]) -> Option<f64> {
    let mut best: Option<Accuracy> = None;
    for threshold in PICKSCORE_THRESHOLDS {
        let found = pickscore_accuracy(validation, threshold)?;
        if best.is_none_or(|best| found.value > best.value) {
            best = Some(found);
        }
    }
    let Protocol::PickScore { tie_threshold } = best?.protocol else { return None };
    Some(tie_threshold)
}

/// ImageReward's Recall@k: the share of prompts for which an image that people ranked best is among the `k` with the highest scores, in [0, 1].
/// A score that ties with it, or is NaN, counts as higher. Prompts whose images all tie have no best image and are dropped. `None` if no
/// prompt is left.
///
/// Source: the ImageReward paper (arXiv 2304.05977), Table 3; THUDM/ImageReward, README.
pub fn recall_at(prompts: &[Ranked], k: usize) -> Option<Accuracy> {
    extreme_found(prompts, k, Protocol::RecallAt(k), Ranked::clone)
}

/// ImageReward's Filter@k: the share of prompts for which an image that people ranked worst is among the `k` with the lowest scores, in [0, 1].
/// Ties and NaN as in [`recall_at`], with "lower" for "higher".
pub fn filter_at(prompts: &[Ranked], k: usize) -> Option<Accuracy> {
    let upside_down = |prompt: &Ranked| Ranked {
        scores: prompt.scores.iter().map(|score| -score).collect(),
        ranks: prompt.ranks.iter().map(|rank| u32::MAX - rank).collect(),
    };
    extreme_found(prompts, k, Protocol::FilterAt(k), upside_down)
}

fn extreme_found(prompts: &[Ranked], k: usize, protocol: Protocol, view: impl Fn(&Ranked) -> Ranked) -> Option<Accuracy> {
    let ordered: Vec<_> = prompts.iter().filter(|prompt| prompt.ordered_pairs().next().is_some()).map(view).collect();
    let is_found = |prompt: &&Ranked| {
        let best = prompt.ranks.iter().min();
        let images = || prompt.scores.iter().zip(&prompt.ranks);
        let highest = images().filter(|(score, rank)| Some(*rank) == best && !score.is_nan()).map(|(score, _)| *score).reduce(f64::max);
        let is_lower = |score: &f64, highest| score.partial_cmp(&highest) == Some(Ordering::Less);
        // Only images that are not best can push the highest of the best out.
        highest.is_some_and(|highest| images().filter(|(score, rank)| Some(*rank) != best && !is_lower(score, highest)).count() < k)
    };
    let value = ratio(ordered.iter().filter(is_found).count(), ordered.len())?;
    Some(Accuracy { protocol, value, prompts: ordered.len(), pairs: 0, ties_dropped: prompts.len() - ordered.len(), interval: None })
}

/// The accuracy by every protocol that is defined on these prompts; each says which one it is. PickScore's tie threshold is 0: a larger one
/// has to be chosen on other prompts than these.
pub fn by_every_protocol(prompts: &[Ranked]) -> Vec<Accuracy> {
    let accuracies = [
        imagereward_accuracy(prompts),
        imagereward_accuracy_per_prompt(prompts),
        hpsv2_inversion(prompts),
        pickscore_accuracy(prompts, 0.0),
        recall_at(prompts, 1),
        recall_at(prompts, 2),
        filter_at(prompts, 1),
        filter_at(prompts, 2),
    ];
    accuracies.into_iter().flatten().collect()
}

fn ratio(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(scores: &[f64], ranks: &[u32]) -> Ranked {
        Ranked::new(scores.to_vec(), ranks.to_vec()).unwrap()
    }

    #[test]
    fn protocols_differ_on_the_same_scores() {
        // Human order 0 > {1, 2}: pairs (0, 1) and (0, 2) count, (1, 2) is a tie. The scores tie 0 and 1.
        let prompts = [ranked(&[2.0, 2.0, 1.0], &[1, 2, 2])];
        assert_eq!(imagereward_accuracy(&prompts).unwrap().value, 0.5);
        assert_eq!(hpsv2_inversion(&prompts).unwrap().value, 1.0);
        // τ = 0: a tie for an order ½, right 1, an order for a tie ½.
        assert_eq!(pickscore_accuracy(&prompts, 0.0).unwrap().value, 2.0 / 3.0);
        // The later of two tied images is the worse for HPSv2.
        assert_eq!(hpsv2_inversion(&[ranked(&[2.0, 2.0, 1.0], &[2, 1, 3])]).unwrap().value, 1.0 - 1.0 / 3.0);
    }

    #[test]
    fn pooling_weighs_pairs_and_averaging_weighs_prompts() {
        // 3 right of 3; 0 right of 1.
        let prompts = [ranked(&[3.0, 2.0, 1.0], &[1, 2, 3]), ranked(&[0.0, 1.0], &[1, 2])];
        assert_eq!(imagereward_accuracy(&prompts).unwrap().value, 0.75);
        assert_eq!(imagereward_accuracy_per_prompt(&prompts).unwrap().value, 0.5);
    }

    #[test]
    fn nan_is_wrong_everywhere() {
        let nan = [ranked(&[f64::NAN, 1.0], &[1, 2]), ranked(&[1.0, f64::NAN], &[1, 2]), ranked(&[f64::NAN, 1.0], &[2, 1])];
        assert_eq!(imagereward_accuracy(&nan).unwrap().value, 0.0);
        assert_eq!(hpsv2_inversion(&nan).unwrap().value, 0.0);
        assert_eq!(pickscore_accuracy(&nan, 0.5).unwrap().value, 0.0);
        assert_eq!(pickscore_accuracy(&[ranked(&[f64::NAN, 1.0], &[1, 1])], 1.0).unwrap().value, 0.0);
        assert_eq!(recall_at(&nan, 1).unwrap().value, 0.0);
        // Nor is it among all the images that there are.
        assert_eq!(recall_at(&nan[..1], 2).unwrap().value, 0.0);
        assert_eq!(filter_at(&nan, 1).unwrap().value, 0.0);
    }

    #[test]
    fn the_lowest_of_the_best_thresholds_is_chosen() {
        // A tie that is predicted from τ = 0.3 on (tanh(0.25) = 0.245), and an order that is predicted below 0.8 (tanh(1) = 0.76).
        let validation = [ranked(&[0.0, 0.5], &[1, 1]), ranked(&[2.0, 0.0], &[1, 2])];
        assert_eq!(pickscore_threshold(&validation), Some(0.3));
        assert_eq!(pickscore_accuracy(&validation, 0.3).unwrap().value, 1.0);
        assert_eq!(pickscore_accuracy(&validation, 0.2).unwrap().value, 0.75);
        assert_eq!(pickscore_accuracy(&validation, 0.8).unwrap().value, 0.75);
    }

    #[test]
    fn best_and_worst_are_looked_for_among_k() {
        let prompts =
            [ranked(&[0.1, 0.9, 0.5, 0.2], &[1, 2, 3, 4]), ranked(&[0.9, 0.1, 0.2, 0.3], &[1, 1, 2, 3]), ranked(&[1.0, 2.0], &[1, 1])];
        // First prompt: the best is lowest, the worst second lowest. Second: one of two best is highest, the worst third lowest.
        let recall = |k| recall_at(&prompts, k).unwrap().value;
        let filter = |k| filter_at(&prompts, k).unwrap().value;
        assert_eq!([recall(0), recall(1), recall(3), recall(4)], [0.0, 0.5, 0.5, 1.0]);
        assert_eq!([filter(1), filter(2), filter(3)], [0.0, 0.5, 1.0]);
        assert_eq!(recall_at(&prompts, 1).unwrap().ties_dropped, 1);
        // All scores equal: nothing was recalled before all images are.
        assert_eq!(recall_at(&[ranked(&[1.0; 3], &[1, 2, 3])], 2).unwrap().value, 0.0);
    }

    #[test]
    fn nothing_to_count_is_none() {
        let tied = [ranked(&[1.0, 2.0], &[1, 1]), ranked(&[1.0], &[1]), ranked(&[], &[])];
        assert_eq!(imagereward_accuracy(&tied), None);
        assert_eq!(imagereward_accuracy_per_prompt(&tied), None);
        assert_eq!(recall_at(&tied, 1), None);
        assert_eq!(filter_at(&tied, 1), None);
        assert_eq!(hpsv2_inversion(&tied[1..]), None);
        assert_eq!(pickscore_accuracy(&tied[1..], 0.1), None);
        assert_eq!(pickscore_threshold(&tied[1..]), None);
        assert_eq!(Ranked::new(vec![1.0], vec![]).unwrap_err(), Error::Lengths { scores: 1, ranks: 0 });
    }

    #[test]
    fn an_interval_is_over_prompts_and_not_over_their_pairs() {
        // Half of the prompts all right, half all wrong: 60 pairs, but only 20 prompts, whose mean has a standard error of 0.115.
        let [right, wrong] = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]].map(|scores| ranked(&scores, &[1, 2, 3]));
        let prompts = [vec![right; 10], vec![wrong; 10]].concat();
        let accuracy = imagereward_accuracy(&prompts).unwrap();
        let interval = accuracy.interval.unwrap();
        assert!((interval.low - 0.275).abs() < 0.06 && (interval.high - 0.725).abs() < 0.06, "{interval}");
        assert!(
            accuracy.to_string().starts_with("50.00 % (imagereward-pooled, 60 pairs of 20 prompts, 0 ties dropped; 95 %: "),
            "{accuracy}"
        );
        assert!(serde_json::to_string(&accuracy).unwrap().contains(r#""interval":{"estimate":0.5,"#));
        assert_eq!(imagereward_accuracy_per_prompt(&prompts).unwrap().interval, None);
    }

    #[test]
    fn the_protocol_is_in_the_output() {
        let prompts = [ranked(&[3.0, 2.0, 1.0], &[1, 2, 2])];
        let accuracy = imagereward_accuracy(&prompts).unwrap();
        assert_eq!(accuracy.to_string(), "100.00 % (imagereward-pooled, 2 pairs of 1 prompts, 1 ties dropped)");
        let json = serde_json::to_string(&accuracy).unwrap();
        assert_eq!(json, r#"{"protocol":"imagereward-pooled","value":1.0,"prompts":1,"pairs":2,"ties_dropped":1}"#);
        assert_eq!(recall_at(&prompts, 2).unwrap().to_string(), "100.00 % (imagereward-recall@2, 1 prompts, 0 ties dropped)");
        assert_eq!(pickscore_accuracy(&prompts, 0.3).unwrap().protocol.to_string(), "pickscore-ties@0.3");
    }
}
