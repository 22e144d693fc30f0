//! Turns rewards into advantages: how much better an image is than comparable images, in standard deviations.
//!
//! Source: ddpo-pytorch `ddpo_pytorch/stat_tracking.py` (per prompt) and `scripts/train.py` (batch); DanceGRPO `fastvideo/train_grpo_sd.py`
//! (group); Flow-GRPO (arXiv 2505.05470) `flow_grpo/stat_tracking.py` (`global_std`). Standard deviations are those of the population, as
//! in numpy.

use std::collections::{BTreeMap, VecDeque};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;

use crate::optim::NamedTensors;
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

impl AdvantagesConfig {
    /// The advantage of each reward. `prompts` are the indices of the images' prompts in the list of prompts. The images of a group are
    /// adjacent, `group_size` of them. If the statistics are per prompt, the rewards are added to `tracker`.
    pub fn compute(&self, rewards: &[f32], prompts: &[usize], group_size: usize, tracker: &mut Tracker) -> Vec<f32> {
        match self {
            Self::Batch(_) => normalised(rewards, rewards, 1e-8),
            Self::Group(GroupStatistics { global_std }) => {
                let of_all = statistics(rewards).1;
                let one = |group: &[f32]| {
                    let (mean, std) = statistics(group);
                    standardised(group, mean, if *global_std { of_all } else { std }, 1e-8)
                };
                rewards.chunks(group_size).flat_map(one).collect()
            }
            Self::PerPrompt(section) => section.compute(rewards, prompts, tracker),
        }
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
        let rewards = [1.0, 2.0, 6.0, -3.0, -3.0, 0.5];
        let advantages =
            AdvantagesConfig::Group(GroupStatistics::default()).compute(&rewards, &[0, 0, 0, 1, 1, 1], 3, &mut Tracker::default());
        for group in advantages.chunks(3) {
            assert!(group.iter().sum::<f32>().abs() < 1e-6, "{group:?}");
            assert!((group.iter().map(|a| a * a).sum::<f32>() / 3.0 - 1.0).abs() < 1e-6, "{group:?}");
        }
        // Nothing to learn where all are alike.
        assert_eq!(AdvantagesConfig::Group(GroupStatistics::default()).compute(&[2.0; 3], &[0; 3], 3, &mut Tracker::default()), [0.0; 3]);
    }

    /// Two groups with means 2 and 10; all six have mean 6 and variance (25 + 16 + 9 + 1 + 16 + 49) / 6 = 58/3.
    #[test]
    fn with_the_epochs_deviation_a_group_of_likes_says_little() {
        let rewards = [1.0, 2.0, 3.0, 7.0, 10.0, 13.0];
        let group = AdvantagesConfig::Group(GroupStatistics { global_std: true });
        let advantages = group.compute(&rewards, &[0, 0, 0, 1, 1, 1], 3, &mut Tracker::default());
        let std = (58.0f32 / 3.0).sqrt();
        for (found, expected) in advantages.iter().zip([-1.0, 0.0, 1.0, -3.0, 0.0, 3.0]) {
            assert!((found - expected / std).abs() < 1e-6, "{advantages:?}");
        }
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
