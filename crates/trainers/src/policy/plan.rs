//! The plan of a rollout: how many images, of which prompts, from which latents and with which noise.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use vp_core::noise::{Noise, Purpose};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Guidance, Request, Trainable};

use crate::environment::Environment;
use crate::policy::walk::Position;
use crate::ranks::Ranks;

/// `size` steps in a row within `min_step..=max_step`. Where they begin is drawn for each prompt of each epoch.
///
/// Images that differ in the noise of a few steps alone differ in their rewards because of it, so an advantage says more about the steps
/// that are trained on than where all steps have noise of their own. Flow-GRPO-Fast and MixGRPO (arXiv 2507.21802) take the other steps
/// without noise; here they have it, shared, so that every image is drawn as the policy draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseWindow {
    /// Steps in the window, at least 1.
    pub size: usize,
    /// The first step that may be in it, counted from 0.
    pub min_step: usize,
    /// The last step that may be in it.
    pub max_step: usize,
}

impl NoiseWindow {
    /// The window's first step for the images of a prompt, the first of which is image `first` of `draw`.
    fn start(self, noise: Noise, draw: u64, first: u64) -> usize {
        noise.integer(WINDOW, draw, first, self.min_step, self.max_step + 1 - self.size)
    }
}

const WINDOW: Purpose = Purpose::named("ddpo.noise_window");

/// The draw of an epoch, counted from 0. Draw 0 belongs to the previews.
pub(super) fn draw_of(epoch: u64) -> u64 {
    epoch + 1
}

/// The knobs for sampling an epoch.
#[derive(Debug, Clone, Copy)]
pub struct RolloutPlan<'a> {
    /// Images per epoch.
    pub num_images: usize,
    /// Images sampled at once.
    pub batch_size: usize,
    /// Images per prompt; they are adjacent in the epoch.
    pub images_per_prompt: usize,
    /// Whether the images of a prompt start from the same latents.
    pub share_initial_latents: bool,
    /// The steps whose noise is each image's own, if the images of a prompt share the noise of all others.
    pub noise_window: Option<NoiseWindow>,
    /// Classifier-free guidance scale; 1 for no guidance.
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from.
    pub negative_prompt: Option<&'a str>,
}

impl RolloutPlan<'_> {
    /// The batches of images that a rank samples together, as ranges of their numbers in the epoch: of the run's batches, or of this rank's share of
    /// the images if that is less.
    pub(super) fn batches_of(&self, ranks: &Ranks) -> impl Iterator<Item = Range<usize>> + use<> {
        let (Range { start, end }, batch_size) = (ranks.share(self.num_images), self.batch_size);
        (start..end).step_by(batch_size).map(move |start| start..(start + batch_size).min(end))
    }

    /// How many batches the rank with the most of them samples.
    pub(super) fn most_batches(&self, ranks: &Ranks) -> usize {
        ranks.longest_share(self.num_images).div_ceil(self.batch_size)
    }

    /// The first image of the prompt of `image`.
    fn first_of_prompt(&self, image: u64) -> u64 {
        let group = self.images_per_prompt as u64;
        image / group * group
    }

    /// The image whose initial latents each of `images` starts from: itself, or the first image of its prompt.
    pub(super) fn starts(&self, images: &[u64]) -> Vec<u64> {
        images.iter().map(|image| if self.share_initial_latents { self.first_of_prompt(*image) } else { *image }).collect()
    }

    /// The image whose noise each of `images` gets at `step` of `draw`: itself, or outside of the window the first image of its prompt.
    pub(super) fn noises(&self, noise: Noise, draw: u64, step: usize, images: &[u64]) -> Vec<u64> {
        let Some(window) = self.noise_window else { return images.to_vec() };
        let of = |image: &u64| {
            let first = self.first_of_prompt(*image);
            let start = window.start(noise, draw, first);
            if (start..start + window.size).contains(&step) { *image } else { first }
        };
        images.iter().map(of).collect()
    }

    /// Turns the steps of `at`, counted within the windows of its images, into steps of the chain.
    pub fn in_windows(&self, at: Position, noise: Noise) -> Position {
        let Some(window) = self.noise_window else { return at };
        let start = |image: &usize| window.start(noise, draw_of(at.epoch), self.first_of_prompt(*image as u64));
        let steps = at.items.iter().zip(&at.steps).map(|(image, step)| start(image) + step).collect();
        Position { steps, ..at }
    }

    /// The guidance for `prompts`, encoded by the model's own text encoders if they train.
    pub fn guidance<D: Denoiser>(&self, model: &Trainable<D>, environment: &Environment<D>, prompts: &[String]) -> Guidance {
        let Self { negative_prompt, guidance_scale, .. } = *self;
        let request = Request { prompts, negative_prompt, guidance_scale, size: environment.size };
        environment.pipeline.encode(&model.text(&environment.pipeline.text), &request)
    }
}
