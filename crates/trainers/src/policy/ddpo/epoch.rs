//! The epochs that the knobs of `[algo.ddpo]` describe.

use vp_core::noise::Noise;

use super::Ddpo;
use crate::config::TrainConfig;
use crate::policy::rollout::RolloutPlan;
use crate::policy::walk::Walk;
use crate::policy::{EpochCounts, EpochKnobs, trained_steps};

impl Ddpo {
    pub(super) fn num_images(&self) -> usize {
        self.sample_batch_size * self.num_batches_per_epoch
    }

    /// Of `num_inference_steps`, those with noise that the images of a prompt do not share.
    fn steps_with_noise(&self, num_inference_steps: usize) -> usize {
        self.noise_window.map_or(num_inference_steps, |window| window.size)
    }

    /// Timesteps of each image that are trained on per walk.
    pub(super) fn trained_steps(&self, num_inference_steps: usize) -> usize {
        trained_steps(self.steps_with_noise(num_inference_steps), self.timestep_fraction)
    }

    /// The order in which an epoch's images, sampled in `num_inference_steps`, are trained on.
    pub(super) fn walk(&self, noise: Noise, num_inference_steps: usize) -> Walk {
        Walk {
            noise,
            num_items: self.num_images(),
            batch_size: self.train_batch_size,
            num_inner_epochs: self.num_inner_epochs,
            num_trained_steps: self.trained_steps(num_inference_steps),
            num_steps: self.steps_with_noise(num_inference_steps),
        }
    }

    pub(super) fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            num_images: self.num_images(),
            batch_size: self.sample_batch_size,
            images_per_prompt: self.images_per_prompt,
            share_initial_latents: self.share_initial_latents,
            noise_window: self.noise_window,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }

    pub(super) fn counts(&self) -> [(&'static str, usize); 5] {
        [
            ("sample_batch_size", self.sample_batch_size),
            ("num_batches_per_epoch", self.num_batches_per_epoch),
            ("images_per_prompt", self.images_per_prompt),
            ("train_batch_size", self.train_batch_size),
            ("num_inner_epochs", self.num_inner_epochs),
        ]
    }

    pub(super) fn epoch_knobs<'a>(&self, config: &TrainConfig, counts: &'a [(&'static str, usize)]) -> EpochKnobs<'a> {
        EpochKnobs {
            algo: "ddpo",
            counts,
            guidance_scale: self.guidance_scale,
            timestep_fraction: self.timestep_fraction,
            counts_of_epoch: EpochCounts {
                num_images: self.num_images(),
                images_per_update: self.train_batch_size * config.optimizer.gradient_accumulation_steps,
                num_inner_epochs: self.num_inner_epochs,
            },
        }
    }
}
