//! One model against another on the images that both have drawn.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::CompareOptions;
use super::rows::{ImageResult, Pair, Unpaired};
use crate::bootstrap::{Bootstrap, bootstrap_paired_difference};
use crate::interval::{Interval, WinRate, win_rate};
use crate::pixels::PixelStats;
use crate::significance::{PermutationTest, SignTest, permutation_test, sign_test};

/// A number of two models on the same prompts. A prompt's value is the mean over its images; prompts weigh the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Prompts that counted.
    pub prompts: usize,
    /// The baseline's mean over prompts.
    pub baseline: f64,
    /// The candidate's mean over prompts.
    pub candidate: f64,
    /// `candidate − baseline`.
    pub difference: f64,
    /// The bootstrap interval of `difference`, prompts resampled whole; `None` with fewer than two. With fewer than about ten it is too narrow:
    /// so few prompts do not show how much prompts differ.
    pub interval: Option<Interval>,
}

impl Difference {
    /// Of per-prompt values, candidate first; `None` without a prompt.
    pub(super) fn of(prompts: &[(f64, f64)], options: &Bootstrap) -> Option<Self> {
        let mean = |side: fn(&(f64, f64)) -> f64| prompts.iter().map(side).sum::<f64>() / prompts.len() as f64;
        let (candidate, baseline) = (mean(|pair| pair.0), mean(|pair| pair.1));
        // The mean of differences, as the interval's estimate, and not the difference of means, which rounds otherwise.
        let difference = mean(|pair| pair.0 - pair.1);
        let interval = bootstrap_paired_difference(prompts, options);
        (!prompts.is_empty()).then_some(Self { prompts: prompts.len(), baseline, candidate, difference, interval })
    }
}

/// An image that a reward has not scored, or not with a finite number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unscored {
    /// The prompt's place in the prompt set.
    pub index: usize,
    pub seed: u64,
    /// Whose image it is.
    pub model: String,
}

/// Two models by one reward.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RewardContrast {
    pub reward: String,
    /// Pairs of images that both have a score.
    pub images: usize,
    /// Means and their difference; `None` if no pair has both scores.
    pub paired: Option<Difference>,
    /// How often the candidate's mean over a prompt's images is the larger, with Wilson's interval; `None` with fewer than two prompts.
    pub win_rate: Option<WinRate>,
    /// Over prompts; `None` with fewer than two.
    pub sign_test: Option<SignTest>,
    /// Over prompts; `None` with fewer than two. No p-value here is corrected for there being several rewards or categories.
    pub permutation_test: Option<PermutationTest>,
    /// Images of pairs that lack this score, and so are left out.
    pub unscored: Vec<Unscored>,
}

impl RewardContrast {
    fn of(reward: &str, pairs: &[Pair], options: &CompareOptions) -> Self {
        let (prompts, images) = per_prompt(pairs, |pair| pair.scores(reward));
        let several = prompts.len() > 1;
        let unscored = pairs.iter().flat_map(|pair| [pair.baseline, pair.candidate]).filter(|image| image.score(reward).is_none());
        let unscored = unscored.map(|image| Unscored { index: image.index, seed: image.seed, model: image.model.clone() });
        Self {
            reward: reward.to_string(),
            images,
            paired: Difference::of(&prompts, &options.bootstrap),
            win_rate: several.then(|| win_rate(&prompts, options.bootstrap.level)).flatten(),
            sign_test: several.then(|| sign_test(&prompts)).flatten(),
            permutation_test: several
                .then(|| permutation_test(&prompts, options.bootstrap.resamples as u64, options.bootstrap.seed))
                .flatten(),
            unscored: unscored.collect(),
        }
    }
}

/// The rewards on the prompts of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CategoryContrast {
    /// The category; `None` for prompts without one.
    pub category: Option<String>,
    /// By reward.
    pub rewards: Vec<RewardContrast>,
}

/// A statistic of pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PixelContrast {
    /// One of [`PixelStats::NAMES`].
    pub statistic: &'static str,
    /// Means and their difference.
    pub paired: Difference,
}

/// An image's score before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The prompt's place in the prompt set.
    pub index: usize,
    pub seed: u64,
    pub prompt: String,
    pub category: Option<String>,
    /// The baseline's score.
    pub baseline: f64,
    /// The candidate's score.
    pub candidate: f64,
    /// `candidate − baseline`.
    pub difference: f64,
}

/// The images that changed most by a reward.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes {
    pub reward: String,
    /// Images that lost, the worst first.
    pub regressions: Vec<Change>,
    /// Images that gained, the best first.
    pub improvements: Vec<Change>,
}

/// One model against the baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contrast {
    /// What is compared with the baseline.
    pub candidate: String,
    /// Pairs of images: same prompt, same seed.
    pub images: usize,
    /// Prompts with such a pair.
    pub prompts: usize,
    /// Images that one of the two has not drawn; they count nowhere else.
    pub unpaired: Vec<Unpaired>,
    /// By reward, in the order of names.
    pub rewards: Vec<RewardContrast>,
    /// By category, prompts without one first; empty if no prompt has one.
    pub categories: Vec<CategoryContrast>,
    /// By statistic; empty without a pair.
    pub pixels: Vec<PixelContrast>,
    /// By reward, in the order of names.
    pub changes: Vec<Changes>,
    /// How different images of one prompt are, if that was measured.
    pub diversity: Option<super::DiversityContrast>,
}

impl Contrast {
    /// The rewards, each with its terms: the term `fidelity` of `judge` is named `judge/fidelity`.
    pub fn families(&self) -> Vec<(&RewardContrast, Vec<&RewardContrast>)> {
        let terms_of = |of: &RewardContrast| self.rewards.iter().filter(|term| is_term_of(&term.reward, &of.reward)).collect();
        self.rewards.iter().filter(|of| !self.is_term(&of.reward)).map(|of| (of, terms_of(of))).collect()
    }

    /// Whether a score is a term of another one that is there too.
    pub fn is_term(&self, reward: &str) -> bool {
        self.rewards.iter().any(|other| is_term_of(reward, &other.reward))
    }

    /// Everything but diversity.
    pub(super) fn of(candidate: &str, pairs: &[Pair], unpaired: Vec<Unpaired>, options: &CompareOptions) -> Self {
        let names = pairs.iter().flat_map(|pair| pair.baseline.scores.keys().chain(pair.candidate.scores.keys()));
        let names: BTreeSet<&str> = names.map(String::as_str).collect();
        let by_reward = |pairs: &[Pair]| names.iter().map(|reward| RewardContrast::of(reward, pairs, options)).collect();
        Self {
            candidate: candidate.to_string(),
            images: pairs.len(),
            prompts: pairs.chunk_by(|one, next| one.index() == next.index()).count(),
            unpaired,
            rewards: by_reward(pairs),
            categories: categories(pairs, by_reward),
            pixels: pixels(pairs, &options.bootstrap),
            changes: names.iter().map(|reward| changes(reward, pairs, options.extremes)).collect(),
            diversity: None,
        }
    }
}

/// Whether `name` is that of a term of `reward`, such as `judge/pass` of `judge`.
pub(crate) fn is_term_of(name: &str, reward: &str) -> bool {
    name.strip_prefix(reward).is_some_and(|rest| rest.starts_with('/'))
}

/// The means of candidate and baseline over the pairs of each prompt that have a value, and how many pairs have. Pairs are in order of prompts.
pub(super) fn per_prompt<'a>(pairs: &[Pair<'a>], value: impl Fn(&Pair<'a>) -> Option<(f64, f64)>) -> (Vec<(f64, f64)>, usize) {
    let mut counted = 0;
    let mut prompts = Vec::new();
    for images in pairs.chunk_by(|one, next| one.index() == next.index()) {
        let values: Vec<_> = images.iter().filter_map(&value).collect();
        counted += values.len();
        let mean = |side: fn(&(f64, f64)) -> f64| values.iter().map(side).sum::<f64>() / values.len() as f64;
        if !values.is_empty() {
            prompts.push((mean(|value| value.0), mean(|value| value.1)));
        }
    }
    (prompts, counted)
}

fn categories<'a>(pairs: &[Pair<'a>], by_reward: impl Fn(&[Pair<'a>]) -> Vec<RewardContrast>) -> Vec<CategoryContrast> {
    let mut groups: BTreeMap<&Option<String>, Vec<Pair>> = BTreeMap::new();
    pairs.iter().for_each(|pair| groups.entry(&pair.baseline.category).or_default().push(*pair));
    if groups.keys().all(|category| category.is_none()) {
        return Vec::new();
    }
    groups.iter().map(|(category, pairs)| CategoryContrast { category: (*category).clone(), rewards: by_reward(pairs) }).collect()
}

fn pixels(pairs: &[Pair], options: &Bootstrap) -> Vec<PixelContrast> {
    let of = |(place, statistic): (usize, &'static str)| {
        let value = |image: &ImageResult| image.pixels.values()[place];
        let (prompts, _) = per_prompt(pairs, |pair| Some((value(pair.candidate), value(pair.baseline))));
        Difference::of(&prompts, options).map(|paired| PixelContrast { statistic, paired })
    };
    PixelStats::NAMES.into_iter().enumerate().filter_map(of).collect()
}

fn changes(reward: &str, pairs: &[Pair], extremes: usize) -> Changes {
    let scored = pairs.iter().filter_map(|pair| pair.scores(reward).map(|(candidate, baseline)| (candidate - baseline, pair)));
    let mut scored: Vec<_> = scored.collect();
    // Stable, so that equal changes stay in the order of prompt and seed.
    scored.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let lost = scored.iter().filter(|(change, _)| *change < 0.0).take(extremes).map(|(_, pair)| change(reward, pair));
    let regressions = lost.collect();
    scored.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let gained = scored.iter().filter(|(change, _)| *change > 0.0).take(extremes).map(|(_, pair)| change(reward, pair));
    // The second sort keeps the first one's order of ties, which was that of prompt and seed.
    Changes { reward: reward.to_string(), regressions, improvements: gained.collect() }
}

fn change(reward: &str, pair: &Pair) -> Change {
    let (candidate, baseline) = (pair.candidate.scores[reward], pair.baseline.scores[reward]);
    let ImageResult { index, seed, prompt, category, .. } = pair.baseline;
    Change {
        index: *index,
        seed: *seed,
        prompt: prompt.clone(),
        category: category.clone(),
        baseline,
        candidate,
        difference: candidate - baseline,
    }
}
