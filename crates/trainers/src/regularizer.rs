//! Regularisers: losses beside the reward's that keep the tuned model close to real images or to its base. The released ReFL code has none,
//! and its users miss it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::{ImageFolder, ImageFolderOptions, OnProblem, ShuffledOrder, to_tensor};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Guidance, predict};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::data::images::fingerprint;
use crate::denoising::DenoisingBatch;
use crate::environment::Environment;
use crate::losses::mean_squared_error;
use crate::run::Draw;

vp_core::registry! {
    /// The `[regularizer.<name>]` section.
    pub enum RegularizerConfig {
        /// The denoising loss on captioned images, the L_pre of ReFL's paper.
        Images = "images" => Images,
        /// The distance to the frozen base model's predictions, along the trajectories that training draws.
        BasePredictions = "base_predictions" => BasePredictions,
        /// No regulariser: the reward alone decides.
        None = "none" => Nothing,
    }
}

/// `[regularizer.none]`, which has no settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// `[regularizer.images]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Folder of the images, with captions in `metadata.jsonl` or in a `.txt` file beside each image.
    pub folder: PathBuf,
    /// Factor of this loss when it is added to the reward's, above 0 (0.01).
    #[serde(default = "default_weight")]
    pub weight: f64,
    /// What to do about images that cannot be used: `refuse` (the default) or `skip`.
    #[serde(default)]
    pub on_problem: OnProblem,
}

/// `[regularizer.base_predictions]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasePredictions {
    /// Factor of this loss when it is added to the reward's, above 0 (0.01).
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// With this weight and ReFL's grad_scale of 1e-3, a mean squared drift of 0.1 weighs as much as one unit of reward.
fn default_weight() -> f64 {
    1e-2
}

impl Default for RegularizerConfig {
    fn default() -> Self {
        Self::BasePredictions(BasePredictions { weight: default_weight() })
    }
}

impl RegularizerConfig {
    /// The message for an algorithm that has a knob of its own for staying close to the base model.
    pub fn unused_by(&self, algo: &str) -> String {
        format!(
            "[regularizer.{}] is not used by [algo.{algo}], which has its own knob for staying close to the base model; remove it",
            self.name()
        )
    }
}

impl Validate for RegularizerConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let (Self::Images(Images { weight, .. }) | Self::BasePredictions(BasePredictions { weight })) = self else { return };
        if !(*weight > 0.0 && weight.is_finite()) {
            findings.push(format!(
                "regularizer.{}.weight is {weight}; expected a number above 0 (for no regulariser, [regularizer.none])",
                self.name()
            ));
        }
    }
}

/// A regulariser, ready to compute its loss.
#[derive(Debug)]
pub enum Regularizer {
    /// The denoising loss on captioned images.
    Images {
        /// The images and their captions.
        folder: ImageFolder,
        /// The order in which the images are used.
        order: Mutex<ShuffledOrder>,
        /// Factor of the loss.
        weight: f64,
    },
    /// The distance to the frozen base model's predictions, with this factor.
    BasePredictions(f64),
    /// No loss.
    None,
}

/// A point of a sampling chain: the latents before a scheduler step.
#[derive(Debug, Clone)]
pub struct Visited {
    /// The scheduler step, counted from 0.
    pub step: usize,
    /// The latents before this step, `[b, c, h, w]`.
    pub latents: Tensor<4>,
}

/// The images that the reward's loss was computed on: their prompts, and the points of their sampling chain.
#[derive(Debug, Clone, Copy)]
pub struct SampledBatch<'a> {
    /// The points of the chain. Only base predictions need them; empty if the algorithm has no whole chain at hand.
    pub visited: &'a [Visited],
    /// One prompt per row.
    pub prompts: &'a [String],
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
}

impl Regularizer {
    /// Builds the regulariser that `config` describes.
    ///
    /// # Errors
    /// When the image folder cannot be used.
    pub fn new(config: &RegularizerConfig, noise: Noise) -> Result<Self, Error> {
        Ok(match config {
            RegularizerConfig::Images(Images { folder, weight, on_problem }) => {
                let options = ImageFolderOptions { on_problem: *on_problem, ..ImageFolderOptions::default() };
                let folder = ImageFolder::open(folder, &options)?;
                let order = ShuffledOrder::new(folder.entries.len(), noise, Purpose::IMAGE_ORDER);
                Self::Images { folder, order: Mutex::new(order), weight: *weight }
            }
            RegularizerConfig::BasePredictions(BasePredictions { weight }) => Self::BasePredictions(*weight),
            RegularizerConfig::None(_) => Self::None,
        })
    }

    /// What was left out or passed over of the image folder, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let Self::Images { folder, .. } = self else { return Vec::new() };
        folder.skipped.iter().map(|problem| format!("left out: {problem}")).chain(folder.notes.iter().cloned()).collect()
    }

    /// The checksum of the images' names and captions; `None` for a regulariser without images.
    pub fn fingerprint(&self) -> Option<String> {
        let Self::Images { folder, .. } = self else { return None };
        Some(fingerprint(&folder.entries))
    }

    /// The weighted loss `[1]`, on the tape of `model`; `None` without a regulariser. Its random choices depend on `draw` alone.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn loss<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        environment: &Environment<D>,
        scheduler: &dyn Scheduler,
        sampled: SampledBatch<'_>,
        draw: Draw,
    ) -> Result<Option<Tensor<1>>, Error> {
        let Environment { pipeline, base, .. } = environment;
        let SampledBatch { visited, prompts, size } = sampled;
        // Without guidance: the model itself should stay close to the base, not the guided mixture of its two predictions.
        let encode =
            |model: &Trainable<D>, prompts: &[String]| Guidance::none(model.text(&pipeline.text).encode(prompts, size, pipeline.device()));
        match self {
            Self::None => Ok(None),
            Self::BasePredictions(weight) => {
                let Visited { step, latents } = &visited[draw.integer(Purpose::DENOISING_TIMESTEP, 0, visited.len() - 1)];
                let input = scheduler.scale_model_input(latents.clone(), &vec![*step; prompts.len()]);
                let timesteps = vec![scheduler.timesteps()[*step] as f32; prompts.len()];
                let (kept, tuned) = (encode(base, prompts), encode(model, prompts));
                let loss = profile::time(Stage::TrackedStep, || {
                    let target = predict(&base.denoiser, input.clone(), &timesteps, &kept);
                    mean_squared_error(predict(&model.denoiser, input, &timesteps, &tuned), target)
                });
                Ok(Some(loss * *weight))
            }
            Self::Images { folder, order, weight } => {
                // As many as the micro-batch has rows, of which these are some.
                let count = prompts.len() * draw.part.of;
                let entries = order.lock().unwrap_or_else(PoisonError::into_inner).entries((draw.number - 1) * count as u64, count);
                let entries = &entries[draw.part.rows(count)];
                let (images, captions) = profile::time(Stage::Io, || read_images(folder, entries, size, pipeline.device()))?;
                let batch = DenoisingBatch { images, captions: &captions, size };
                Ok(Some(batch.loss(model, pipeline, scheduler, draw) * *weight))
            }
        }
    }
}

fn read_images(
    folder: &ImageFolder,
    entries: &[usize],
    [height, width]: [usize; 2],
    device: &Device,
) -> Result<(Tensor<4>, Vec<String>), Error> {
    let entries: Vec<_> = entries.iter().map(|index| &folder.entries[*index]).collect();
    let images = entries.iter().map(|entry| entry.load((width as u32, height as u32))).collect::<Result<Vec<_>, _>>()?;
    Ok((to_tensor(&images, device)?, entries.iter().map(|entry| entry.caption.clone()).collect()))
}
