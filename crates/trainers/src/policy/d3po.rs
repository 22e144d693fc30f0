//! D3PO: direct preference for denoising diffusion policy optimization (Yang et al., arXiv 2311.13231).
//!
//! | paper, d3po `scripts/rm/train_d3po.py` | here |
//! |---|---|
//! | two trajectories of a prompt, from the same initial latents | a pair: images 2k and 2k + 1 of a [`Rollout`] |
//! | h = (+1, −1), (−1, +1) or (0, 0) | `Rollout::advantages`, by the reward |
//! | π_ref | the base model: the frozen weights without the factors |
//! | β, the clamp of the ratios | `beta`, `clip_range` |
//!
//! The policy's probabilities are compared with those of the base model, not of the policy that sampled the images. The order of images and
//! timesteps is DDPO's.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, Kept, RewardDriven};
use crate::config::TrainConfig;
use crate::environment::Environment;
use crate::losses::{d3po_loss, transition_kl};
use crate::plan::{AtOnce, Demand};
use crate::policy::epochs::Epochs;
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::policy::walk::{Position, Walk};
use crate::policy::{EpochCounts, EpochKnobs, trained_steps};
use crate::ranks::Items;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::run::{Batch, Run, Values};

/// The knobs of `[algo.d3po]`. The defaults are those of the d3po code.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct D3po {
    /// Images sampled at once, at least 1; the two images of a pair are adjacent (10).
    pub sample_batch_size: usize,
    /// Batches of `sample_batch_size` images per epoch, at least 1 (2).
    pub num_batches_per_epoch: usize,
    /// Classifier-free guidance scale in sampling and training, at least 0; 1 for no guidance (5).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from; absent: no text.
    pub negative_prompt: Option<String>,
    /// Pairs trained on at once, each at one timestep; at least 1 (2).
    pub train_batch_size: usize,
    /// Number of walks over an epoch's pairs, at least 1 (1).
    pub num_inner_epochs: usize,
    /// Share of each pair's timesteps that is trained on per walk, above 0 and at most 1 (1).
    pub timestep_fraction: f64,
    /// Strength of the tie to the base model, above 0; the larger, the closer the model stays to it (0.1).
    pub beta: f64,
    /// Probability ratios to the base model are clamped to 1 ± this; above 0 and below 1 (0.1).
    pub clip_range: f64,
}

impl Default for D3po {
    fn default() -> Self {
        Self {
            sample_batch_size: 10,
            num_batches_per_epoch: 2,
            guidance_scale: 5.0,
            negative_prompt: None,
            train_batch_size: 2,
            num_inner_epochs: 1,
            timestep_fraction: 1.0,
            beta: 0.1,
            clip_range: 0.1,
        }
    }
}

impl<D: Denoiser> RewardDriven<D> for D3po {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, _: &mut Regularizer) -> Result<(), Error> {
        let plan = self.plan();
        let walk = self.walk(run.noise, environment.scheduler()?.timesteps().len());
        let mut epochs = Epochs::begin(run, environment, plan, walk)?;

        // 1. Sample two images of each prompt from the same latents, off the tape. 2. Score them. 3. Find which of the two is preferred.
        let weigh = |rollout: &mut Rollout, _: &mut Run<Trainable<D>>, _: &Environment<D>| {
            rollout.advantages = preferences(&rollout.rewards);
            Ok(())
        };
        while let Some(pairs) = epochs.next(run, environment, Rollout::sample, weigh)? {
            let images = pairs.into_iter().map(|(batch, pairs)| (batch, pairs.of_groups(2))).collect();
            let shared = &*environment;
            let loss = |model: &Trainable<D>, rollout: &Rollout, batch: Batch, at: &Position| {
                let scheduler = shared.scheduler()?;

                // 4. How much likelier the sampled steps are under the policy than under the base model.
                let minibatch = rollout.minibatch(shared, at);
                let policy = minibatch.transition(model, shared, &plan, &*scheduler);
                let reference = minibatch.transition(&shared.base, shared, &plan, &*scheduler);
                let log_ratios = policy.log_prob(minibatch.prev_sample.clone()) - reference.log_prob(minibatch.prev_sample.clone());

                // 5. The loss: −log σ of how much that favours the preferred image of each pair.
                let num_pairs = at.items.len() / 2;
                let preferred: Vec<f32> = at.items.iter().map(|image| rollout.advantages[*image]).collect();
                let preferred = Tensor::<1>::from_data(preferred.as_slice(), &log_ratios.device()).reshape([num_pairs, 2]);
                let loss = d3po_loss(log_ratios.clone().reshape([num_pairs, 2]), preferred, self.beta, self.clip_range).mean();
                let clipped = (log_ratios.without_autodiff().exp() - 1.0).abs().greater_elem(self.clip_range).float();
                let kl = transition_kl(&policy, &reference);
                let mut observed = vec![("clipfrac".to_string(), Values::from(&clipped)), ("kl".into(), Values::from(&kl))];
                if batch.begins_update {
                    observed.extend(rollout.observed());
                }
                Ok((loss, observed, minibatch))
            };

            // 6. Backward, accumulated over timesteps and minibatches; after the last micro-batch of an update: clip, step, moving
            //    average, journal, and a preview if one is due.
            let updated = epochs.backward(run, shared, images, loss)?;
            environment.preview_if_due(run, updated)?;
        }
        Ok(())
    }

    fn backwards_per_minibatch(&self, num_inference_steps: usize) -> usize {
        trained_steps(num_inference_steps, self.timestep_fraction)
    }

    fn kept(&self) -> Kept {
        Kept::Trajectories(self.num_images())
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        let drawn = AtOnce::new("sample_batch_size", self.sample_batch_size, self.guidance_scale);
        Demand::through_steps(drawn, AtOnce::pairs("train_batch_size", self.train_batch_size, self.guidance_scale), self.num_inner_epochs)
    }

    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::None(Default::default())
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        self.epoch_knobs(config, &[]).arithmetic(config, trained_steps(config.num_inference_steps(), self.timestep_fraction))
    }

    fn items(&self) -> Items {
        Items::of("algo.d3po.train_batch_size", self.train_batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        // Four steps, 32x32 pixels, and factors near the output, so that few images are enough to learn from.
        &[
            "run.num_train_steps=8",
            "model.size=[32, 32]",
            r"lora.targets=^unet\.(up_blocks\.3|conv_out)",
            "lora.alpha=16.0",
            "scheduler.num_inference_steps=4",
            "algo.d3po.sample_batch_size=64",
            "algo.d3po.num_batches_per_epoch=1",
            "algo.d3po.train_batch_size=32",
            "optimizer.gradient_accumulation_steps=1",
            "optimizer.learning_rate=6e-3",
            "preview.num_inference_steps=4",
        ]
    }
}

impl D3po {
    fn num_images(&self) -> usize {
        self.sample_batch_size * self.num_batches_per_epoch
    }

    /// The order in which an epoch's pairs, sampled in `num_inference_steps`, are trained on.
    fn walk(&self, noise: Noise, num_inference_steps: usize) -> Walk {
        Walk {
            noise,
            num_items: self.num_images() / 2,
            batch_size: self.train_batch_size,
            num_inner_epochs: self.num_inner_epochs,
            num_trained_steps: trained_steps(num_inference_steps, self.timestep_fraction),
            num_steps: num_inference_steps,
        }
    }

    fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            num_images: self.num_images(),
            batch_size: self.sample_batch_size,
            images_per_prompt: 2,
            share_initial_latents: true,
            noise_window: None,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }

    fn counts(&self) -> [(&'static str, usize); 4] {
        [
            ("sample_batch_size", self.sample_batch_size),
            ("num_batches_per_epoch", self.num_batches_per_epoch),
            ("train_batch_size", self.train_batch_size),
            ("num_inner_epochs", self.num_inner_epochs),
        ]
    }

    fn epoch_knobs<'a>(&self, config: &TrainConfig, counts: &'a [(&'static str, usize)]) -> EpochKnobs<'a> {
        EpochKnobs {
            algo: "d3po",
            counts,
            guidance_scale: self.guidance_scale,
            timestep_fraction: self.timestep_fraction,
            counts_of_epoch: EpochCounts {
                num_images: self.num_images(),
                images_per_update: 2 * self.train_batch_size * config.optimizer.gradient_accumulation_steps,
                num_inner_epochs: self.num_inner_epochs,
            },
        }
    }
}

impl Algorithm for D3po {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let counts = self.counts();
        let knobs = self.epoch_knobs(config, &counts);
        knobs.findings(config, findings);
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            findings.push(format!("algo.d3po.beta is {}; expected a number above 0", self.beta));
        }
        if !(self.clip_range > 0.0 && self.clip_range < 1.0) {
            findings.push(format!("algo.d3po.clip_range is {}; expected above 0 and below 1", self.clip_range));
        }
        let accumulation = config.optimizer.gradient_accumulation_steps;
        let counted = counts.iter().all(|(_, count)| *count > 0) && accumulation > 0;
        if counted && !knobs.counts_of_epoch.num_images.is_multiple_of(knobs.counts_of_epoch.images_per_update) {
            findings.push(format!(
                "an epoch has {} images (algo.d3po.sample_batch_size {} x num_batches_per_epoch {}), which an update of {} (2 x \
                 train_batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does not divide; change one of them",
                knobs.counts_of_epoch.num_images,
                self.sample_batch_size,
                self.num_batches_per_epoch,
                knobs.counts_of_epoch.images_per_update,
                self.train_batch_size
            ));
        }
        if let Some(regularizer) = &config.regularizer {
            findings.push(regularizer.unused_by("d3po"));
        }
    }
}

/// +1 for the better image of each pair, −1 for the other; 0 for both if their rewards are equal.
fn preferences(rewards: &[f32]) -> Vec<f32> {
    let sign = |a: f32, b: f32| {
        if a > b {
            1.0
        } else if a < b {
            -1.0
        } else {
            0.0
        }
    };
    rewards.chunks_exact(2).flat_map(|pair| [sign(pair[0], pair[1]), sign(pair[1], pair[0])]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_prefer_neither() {
        assert_eq!(preferences(&[1.0, 2.0, 3.0, 3.0]), [-1.0, 1.0, 0.0, 0.0]);
    }
}
