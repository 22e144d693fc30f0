//! Turns rewards into advantages: how much better an image is than comparable images, in standard deviations.
//!
//! Source: ddpo-pytorch `ddpo_pytorch/stat_tracking.py` (per prompt) and `scripts/train.py` (batch); DanceGRPO `fastvideo/train_grpo_sd.py`
//! (group); Flow-GRPO (arXiv 2505.05470) `flow_grpo/stat_tracking.py` (`global_std`); GDPO (arXiv 2601.05242) `trl/trainer/grpo_trainer.py` and
//! Flow-Factory `advantage_processor.py`, `compute_gdpo` (`per_reward`). Standard deviations are those of the population, as in numpy.

use std::collections::{BTreeMap, VecDeque};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;

use crate::optim::NamedTensors;
use crate::policy::rollout::Rollout;
use crate::statistics::mean_and_std;

vp_core::registry! {
    /// The `[algo.ddpo.advantages.<name>]` section: the rewards that each image is compared with.
    pub enum AdvantagesConfig {
        /// Compares with the last rewards of the same prompt, remembered over epochs: for few prompts that come back often.
        PerPrompt = "per_prompt" => PromptStatistics,
        /// Compares with the images of the same prompt in the same epoch: for any number of prompts.
        Group = "group" => GroupStatistics,
        /// Compares with all images of the epoch.
        Batch = "batch" => EpochStatistics,
    }
}

/// `[algo.ddpo.advantages.per_prompt]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptStatistics {
    /// How many rewards are remembered per prompt, at least 1 (16).
    pub buffer_size: usize,
    /// Smallest number of remembered rewards with which a prompt's own statistics are used, 1 to `buffer_size` (16). Below it, those of the
    /// whole epoch are used.
    pub min_count: usize,
}

impl Default for PromptStatistics {
    fn default() -> Self {
        Self { buffer_size: 16, min_count: 16 }
    }
}

/// `[algo.ddpo.advantages.group]`: a group is the `images_per_prompt` images of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupStatistics {
    /// Whether distances from the group's mean are divided by the standard deviation of the whole epoch rather than of the group (false).
    /// If so, a group of nearly equal rewards gives only small advantages.
    pub global_std: bool,
    /// Whether each term of the reward is normalised by itself, and the sum of the results, by the terms' weights, once more over the epoch, as
    /// in GDPO (false). If so, a term counts as its weight says, whatever its scale and however much the others vary; otherwise the term that
    /// varies most counts most.
    pub per_reward: bool,
}

/// `[algo.ddpo.advantages.batch]`, which has no settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochStatistics {}

impl Default for AdvantagesConfig {
    fn default() -> Self {
        Self::PerPrompt(PromptStatistics::default())
    }
}

impl Validate for AdvantagesConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let Self::PerPrompt(PromptStatistics { buffer_size, min_count }) = self else { return };
        if *buffer_size == 0 || *min_count == 0 || min_count > buffer_size {
            findings.push(format!(
                "algo.ddpo.advantages.per_prompt has buffer_size {buffer_size} and min_count {min_count}; expected 1 <= min_count <= buffer_size"
            ));
        }
    }
}

/// The remembered rewards of each prompt, oldest first, by the prompt's index in the list of prompts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tracker(BTreeMap<usize, VecDeque<f32>>);

/// Added to a standard deviation, as in ddpo-pytorch. The programs of AWM, NFT, DGPO and GDPO have 1e-4, with which the scale of a reward would
/// count.
const EPSILON: f64 = 1e-8;

impl AdvantagesConfig {
    /// Whether the terms of the reward are needed, and not the reward alone.
    pub fn needs_terms(&self) -> bool {
        matches!(self, Self::Group(GroupStatistics { per_reward: true, .. }))
    }

    /// The advantage of each image of a rollout: [`compute`](Self::compute) of its rewards, or of its reward's terms if that is what the config
    /// says. `weights` are the terms' names and weights, as [`Reward::term_weights`](vp_rewards::Reward::term_weights) has them.
    ///
    /// # Panics
    /// When the terms are needed, and the rollout has no scores of one of them.
    pub fn of_rollout(&self, rollout: &Rollout, weights: &[(String, f64)], group_size: usize, tracker: &mut Tracker) -> Vec<f32> {
        match self {
            Self::Group(group) => group.of_rollout(rollout, weights, group_size),
            _ => self.compute(&rollout.rewards, &rollout.prompts, group_size, tracker),
        }
    }

    /// The advantage of each reward, taken as a whole. `prompts` are the indices of the images' prompts in the list of prompts. The images of a group are
    /// adjacent, `group_size` of them. If the statistics are per prompt, the rewards are added to `tracker`.
    pub fn compute(&self, rewards: &[f32], prompts: &[usize], group_size: usize, tracker: &mut Tracker) -> Vec<f32> {
        match self {
            Self::Batch(_) => normalised(rewards, rewards, EPSILON),
            Self::Group(section) => section.compute(rewards, group_size),
            Self::PerPrompt(section) => section.compute(rewards, prompts, tracker),
        }
    }
}

impl GroupStatistics {
    /// The advantage of each image of a rollout, as [`AdvantagesConfig::of_rollout`] has it.
    ///
    /// # Panics
    /// As there.
    pub fn of_rollout(&self, rollout: &Rollout, weights: &[(String, f64)], group_size: usize) -> Vec<f32> {
        if !self.per_reward {
            return self.compute(&rollout.rewards, group_size);
        }
        let scores = |name: &str| rollout.term(name).unwrap_or_else(|| panic!("the reward told no scores of its term {name}"));
        let terms: Vec<(f64, &[f32])> = weights.iter().map(|(name, weight)| (*weight, scores(name))).collect();
        Self::of_terms(&terms, group_size)
    }

    fn compute(&self, rewards: &[f32], group_size: usize) -> Vec<f32> {
        let of_all = statistics(rewards).1;
        let one = |group: &[f32]| {
            let (mean, std) = statistics(group);
            standardised(group, mean, if self.global_std { of_all } else { std }, EPSILON)
        };
        rewards.chunks(group_size).flat_map(one).collect()
    }

    /// Σ weight · the advantages by each term within its group, normalised over all images, whatever `global_std` says. What a term is scaled by in the
    /// reward has no effect.
    fn of_terms(terms: &[(f64, &[f32])], group_size: usize) -> Vec<f32> {
        let mut sums = vec![0.0; terms.first().map_or(0, |(_, scores)| scores.len())];
        for (weight, scores) in terms {
            let advantages = Self::default().compute(scores, group_size);
            sums.iter_mut().zip(advantages).for_each(|(sum, advantage)| *sum += weight * f64::from(advantage));
        }
        let (mean, std) = mean_and_std(&sums);
        sums.into_iter().map(|sum| ((sum - mean) / (std + EPSILON)) as f32).collect()
    }
}

impl PromptStatistics {
    fn compute(&self, rewards: &[f32], prompts: &[usize], tracker: &mut Tracker) -> Vec<f32> {
        for (prompt, reward) in prompts.iter().zip(rewards) {
            let seen = tracker.0.entry(*prompt).or_default();
            seen.push_back(*reward);
            if seen.len() > self.buffer_size {
                seen.pop_front();
            }
        }
        let one = |(prompt, reward): (&usize, &f32)| {
            let seen: Vec<f32> = tracker.0[prompt].iter().copied().collect();
            let among = if seen.len() < self.min_count { rewards } else { &seen };
            normalised(&[*reward], among, 1e-6)[0]
        };
        prompts.iter().zip(rewards).map(one).collect()
    }
}

/// `(r − mean) / (std + eps)`, with the mean and the population standard deviation of `among`.
fn normalised(rewards: &[f32], among: &[f32], eps: f64) -> Vec<f32> {
    let (mean, std) = statistics(among);
    standardised(rewards, mean, std, eps)
}

fn standardised(rewards: &[f32], mean: f64, std: f64, eps: f64) -> Vec<f32> {
    rewards.iter().map(|r| ((f64::from(*r) - mean) / (std + eps)) as f32).collect()
}

/// The mean and the population standard deviation.
fn statistics(rewards: &[f32]) -> (f64, f64) {
    mean_and_std(&rewards.iter().map(|reward| f64::from(*reward)).collect::<Vec<_>>())
}

const PREFIX: &str = "tracker.";

impl Tracker {
    /// Puts the tracker into a run's `memory`, in place of an earlier one.
    pub fn save(&self, memory: &mut NamedTensors, device: &Device) {
        memory.retain(|name, _| !name.starts_with(PREFIX));
        for (prompt, rewards) in &self.0 {
            let rewards: Vec<f32> = rewards.iter().copied().collect();
            memory.insert(format!("{PREFIX}{prompt}"), Tensor::from_data(rewards.as_slice(), device));
        }
    }

    /// The tracker that [`save`](Self::save) put into `memory`; an empty one if there is none.
    pub fn recall(memory: &NamedTensors) -> Self {
        let entries = memory.iter().filter_map(|(name, rewards)| Some((name.strip_prefix(PREFIX)?.parse().ok()?, rewards)));
        Self(entries.map(|(prompt, rewards)| (prompt, rewards.to_data().iter::<f32>().collect())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_sums_to_zero() {
        let group = AdvantagesConfig::Group(GroupStatistics::default());
        let compute = |rewards: &[f32], prompts: &[usize]| group.compute(rewards, prompts, 3, &mut Tracker::default());
        let advantages = compute(&[1.0, 2.0, 6.0, -3.0, -3.0, 0.5], &[0, 0, 0, 1, 1, 1]);
        for group in advantages.chunks(3) {
            assert!(group.iter().sum::<f32>().abs() < 1e-6, "{group:?}");
            assert!((group.iter().map(|a| a * a).sum::<f32>() / 3.0 - 1.0).abs() < 1e-6, "{group:?}");
        }
        assert_eq!(compute(&[2.0; 3], &[0; 3]), [0.0; 3], "nothing to learn where all are alike");
    }

    /// Two groups with means 2 and 10; all six have mean 6 and variance (25 + 16 + 9 + 1 + 16 + 49) / 6 = 58/3.
    #[test]
    fn with_the_epochs_deviation_a_group_of_likes_says_little() {
        let rewards = [1.0, 2.0, 3.0, 7.0, 10.0, 13.0];
        let group = AdvantagesConfig::Group(GroupStatistics { global_std: true, per_reward: false });
        let advantages = group.compute(&rewards, &[0, 0, 0, 1, 1, 1], 3, &mut Tracker::default());
        let std = (58.0f32 / 3.0).sqrt();
        for (found, expected) in advantages.iter().zip([-1.0, 0.0, 1.0, -3.0, 0.0, 3.0]) {
            assert!((found - expected / std).abs() < 1e-6, "{advantages:?}");
        }
    }

    /// Of one prompt: the first term varies a hundred times as much as the second, and both count alike.
    #[test]
    fn terms_count_by_their_weights_and_not_by_their_scales() {
        let (large, small): ([f32; 4], [f32; 4]) = ([0.0, 0.0, 100.0, 100.0], [0.0, 1.0, 0.0, 1.0]);
        let of = |weights: [f64; 2]| GroupStatistics::of_terms(&[(weights[0], &large[..]), (weights[1], &small[..])], 4);
        // −1, −1, 1, 1 and −1, 1, −1, 1; their sum −2, 0, 0, 2 has the deviation √2.
        let two = 2f32.sqrt();
        for (found, expected) in of([1.0, 1.0]).iter().zip([-two, 0.0, 0.0, two]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        // −4, −2, 2, 4 have the deviation √10; a weight below 0 turns a term round, and 0 leaves it out.
        for (found, expected) in of([3.0, 1.0]).iter().zip([-4.0, -2.0, 2.0, 4.0]) {
            assert!((found - expected / 10f32.sqrt()).abs() < 1e-6, "{found} {expected}");
        }
        for (found, expected) in of([-2.0, 0.0]).iter().zip([1.0, 1.0, -1.0, -1.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        // The sum itself would see little of the second term.
        let sum: Vec<f32> = large.iter().zip(small).map(|(large, small)| large + small).collect();
        let whole = AdvantagesConfig::Group(GroupStatistics::default()).compute(&sum, &[0; 4], 4, &mut Tracker::default());
        assert!((whole[0] - whole[1]).abs() < 0.05, "{whole:?}");
    }

    /// With one term, the term's own advantages: groups that vary have a deviation of 1 together, too.
    #[test]
    fn a_single_term_has_the_advantages_of_its_group() {
        let rewards = [1.0, 2.0, 6.0, -3.0, -2.0, 0.5];
        let rollout = Rollout {
            rewards: rewards.to_vec(),
            prompts: vec![0, 0, 0, 1, 1, 1],
            observed: vec![("watch/a".into(), vec![7.0; 6]), ("reward/a".into(), rewards.to_vec()), ("reward/b".into(), vec![0.0; 6])],
            ..Default::default()
        };
        let of = |per_reward, weights: &[(String, f64)]| {
            let config = AdvantagesConfig::Group(GroupStatistics { per_reward, ..Default::default() });
            assert_eq!(config.needs_terms(), per_reward);
            config.of_rollout(&rollout, weights, 3, &mut Tracker::default())
        };
        let whole = of(false, &[]);
        // A second term in which no image is better than another adds nothing.
        for weights in [vec![("a".to_string(), 0.3)], vec![("a".to_string(), 2.0), ("b".to_string(), 5.0)]] {
            for (found, expected) in of(true, &weights).iter().zip(&whole) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
        assert_eq!(rollout.watched(), [&[7.0; 6]]);
    }

    /// ddpo-pytorch's tracker, by hand: until a prompt has been seen `min_count` times, the statistics of the epoch are used.
    #[test]
    fn a_prompt_is_held_against_its_own_past() {
        let (section, mut tracker) = (PromptStatistics { buffer_size: 3, min_count: 2 }, Tracker::default());
        // Mean 4, population standard deviation √(26/3), of all three; prompt 0 has been seen twice, prompt 7 once.
        let advantages = section.compute(&[1.0, 3.0, 8.0], &[0, 0, 7], &mut tracker);
        let std = (26.0f32 / 3.0).sqrt();
        let expected = [-1.0, 1.0, 4.0 / std];
        assert!(advantages.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{advantages:?}");
        // The oldest of prompt 0 falls out: 3, 5 and 7 are left.
        let advantages = section.compute(&[5.0, 7.0], &[0, 0], &mut tracker);
        assert_eq!(tracker.0[&0], [3.0, 5.0, 7.0]);
        assert!((advantages[0]).abs() < 1e-6 && (advantages[1] - 2.0 / (8.0f32 / 3.0).sqrt()).abs() < 1e-5, "{advantages:?}");
    }

    #[test]
    fn a_tracker_survives_a_checkpoint() {
        let tracker = Tracker([(3, VecDeque::from([0.1, 0.7])), (12, VecDeque::from([-1.0]))].into());
        let mut memory = NamedTensors::new();
        tracker.save(&mut memory, &Device::flex());
        assert_eq!(Tracker::recall(&memory), tracker);
    }
}
