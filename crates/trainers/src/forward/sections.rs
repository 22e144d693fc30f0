//! The knobs that AWM, NFT and DGPO share.

use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::forward::{ForwardProcess, Shared};
use crate::policy::MOST_IMAGES;
use crate::policy::rollout::RolloutPlan;
use crate::regularizer::RegularizerConfig;

/// `[algo.<name>.sample]`: the images of an epoch. The defaults are those of DiffusionNFT's `config/nft.py`, on one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleSection {
    /// Images sampled at once, at least 1 (8).
    pub batch_size: usize,
    /// Batches of `batch_size` images per epoch, at least 1 (144).
    pub num_batches_per_epoch: usize,
    /// Images per prompt in an epoch, at least 2: the group within which advantages are computed (24).
    pub images_per_prompt: usize,
    /// Classifier-free guidance scale while sampling, at least 0; 1 for none (4.5, DGPO's; NFT and AWM have none, for flow models).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from; absent: no text.
    pub negative_prompt: Option<String>,
}

impl Default for SampleSection {
    fn default() -> Self {
        Self { batch_size: 8, num_batches_per_epoch: 144, images_per_prompt: 24, guidance_scale: 4.5, negative_prompt: None }
    }
}

/// `[algo.<name>.train]`: how an epoch's images are trained on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Images trained on at once, each at one timestep; at least 1 (8).
    pub batch_size: usize,
    /// Number of walks over an epoch's images, at least 1 (1).
    pub num_inner_epochs: usize,
    /// K, timesteps per image and walk, at least 1: one from each of K equal parts of `timestep_range` (4).
    pub num_timesteps: usize,
    /// The first and the last timestep that is trained on, as shares of the noise schedule, from 0 (no noise) to 1 (pure noise) ([0, 0.99]; NFT trains on
    /// the steps of its sampler).
    pub timestep_range: [f64; 2],
    /// Classifier-free guidance scale of the predictions in training, at least 0; 1 for none (1).
    pub guidance_scale: f64,
    /// A_max: advantages are clipped to ± this; above 0 (5).
    pub adv_clip_max: f64,
    /// Weight of the mean squared difference from the base model's predictions, at least 0; at 0 it is only reported (1e-4).
    pub kl_weight: f64,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            batch_size: 8,
            num_inner_epochs: 1,
            num_timesteps: 4,
            timestep_range: [0.0, 0.99],
            guidance_scale: 1.0,
            adv_clip_max: 5.0,
            kl_weight: 1e-4,
        }
    }
}

impl SampleSection {
    /// Images per epoch.
    pub fn num_images(&self) -> usize {
        self.batch_size.saturating_mul(self.num_batches_per_epoch)
    }

    /// The plan of an epoch's sampling.
    pub fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            num_images: self.num_images(),
            batch_size: self.batch_size,
            images_per_prompt: self.images_per_prompt,
            share_initial_latents: false,
            noise_window: None,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }
}

impl TrainSection {
    /// The timestep at `within`, in [0, 1), of part `part` of the range, on a schedule of `num_train_timesteps`.
    pub fn timestep(&self, part: usize, within: f64, num_train_timesteps: usize) -> f64 {
        let [low, high] = self.timestep_range;
        let share = low + (high - low) * (part as f64 + within) / self.num_timesteps as f64;
        (share * num_train_timesteps as f64).floor().min(num_train_timesteps as f64 - 1.0)
    }

    /// An advantage, clipped to ± A_max.
    pub fn clipped(&self, advantage: f32) -> f32 {
        advantage.clamp(-self.adv_clip_max as f32, self.adv_clip_max as f32)
    }
}

/// Appends a message for each shared knob that is out of range or does not fit another.
pub(super) fn findings(algorithm: &impl ForwardProcess, config: &TrainConfig, findings: &mut Vec<String>) {
    let Shared { algo, sample, train, .. } = algorithm.shared();
    let counts = [
        ("sample.batch_size", sample.batch_size),
        ("sample.num_batches_per_epoch", sample.num_batches_per_epoch),
        ("train.batch_size", train.batch_size),
        ("train.num_inner_epochs", train.num_inner_epochs),
        ("train.num_timesteps", train.num_timesteps),
    ];
    let zeros = counts.iter().filter(|(_, count)| *count == 0);
    findings.extend(zeros.map(|(name, _)| format!("algo.{algo}.{name} is 0; expected at least 1")));
    for (name, scale) in [("sample", sample.guidance_scale), ("train", train.guidance_scale)] {
        if !(scale >= 0.0 && scale.is_finite()) {
            findings.push(format!("algo.{algo}.{name}.guidance_scale is {scale}; expected a number of at least 0 (1 for none)"));
        }
    }
    let [low, high] = train.timestep_range;
    if !(0.0 <= low && low < high && high <= 1.0) {
        findings.push(format!(
            "algo.{algo}.train.timestep_range is [{low}, {high}]; expected two shares of the noise schedule, 0 <= first < second <= 1"
        ));
    }
    if !(train.adv_clip_max > 0.0 && train.adv_clip_max.is_finite()) {
        findings.push(format!("algo.{algo}.train.adv_clip_max is {}; expected a number above 0", train.adv_clip_max));
    }
    if !(train.kl_weight >= 0.0 && train.kl_weight.is_finite()) {
        findings.push(format!("algo.{algo}.train.kl_weight is {}; expected a number of at least 0", train.kl_weight));
    }
    if let Some(regularizer @ RegularizerConfig::BasePredictions(_)) = &config.regularizer {
        findings.push(format!("{}; algo.{algo}.train.kl_weight does that here", regularizer.unused_by(algo)));
    }
    let accumulation = config.optimizer.gradient_accumulation_steps;
    if counts.iter().all(|(_, count)| *count > 0) && accumulation > 0 {
        division_findings(algorithm, accumulation, findings);
    }
}

fn division_findings(algorithm: &impl ForwardProcess, accumulation: usize, findings: &mut Vec<String>) {
    let Shared { algo, sample, train, .. } = algorithm.shared();
    let (images, group) = (sample.num_images(), sample.images_per_prompt);
    let epoch = format!(
        "an epoch has {images} images (algo.{algo}.sample.batch_size {} x num_batches_per_epoch {})",
        sample.batch_size, sample.num_batches_per_epoch
    );
    if images > MOST_IMAGES {
        findings.push(format!("{epoch}, all kept until they are trained on; expected at most {MOST_IMAGES}"));
    }
    if group < 2 {
        findings.push(format!(
            "algo.{algo} compares the images of a prompt; algo.{algo}.sample.images_per_prompt is {group}, expected at least 2"
        ));
        return;
    }
    if !images.is_multiple_of(group) {
        findings.push(format!("{epoch}, which algo.{algo}.sample.images_per_prompt {group} does not divide; change one of them"));
    }
    if algorithm.trains_on_groups() && !train.batch_size.is_multiple_of(group) {
        findings.push(format!(
            "algo.{algo} trains on whole groups; algo.{algo}.train.batch_size is {}, expected a multiple of sample.images_per_prompt, {group}",
            train.batch_size
        ));
    }
    let update = train.batch_size.saturating_mul(accumulation);
    if !images.is_multiple_of(update) {
        findings.push(format!(
            "{epoch}, which an update of {update} (algo.{algo}.train.batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does \
             not divide; change one of them",
            train.batch_size
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timesteps_of_an_image_come_from_equal_parts_of_the_range() {
        let train = TrainSection { num_timesteps: 4, timestep_range: [0.2, 1.0], ..TrainSection::default() };
        let at = |part, within| train.timestep(part, within, 1000);
        assert_eq!([at(0, 0.0), at(1, 0.0), at(2, 0.5), at(3, 0.0)], [200.0, 400.0, 700.0, 800.0]);
        // The last timestep is the schedule's last, however the rounding falls.
        assert_eq!(at(3, 1.0 - f64::EPSILON), 999.0);
    }
}
