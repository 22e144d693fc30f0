//! Floor 4: images and prompts to scores.
//!
//! Images are tensors `[b, 3, h, w]`, RGB in `[0, 1]`. A reward does its own preprocessing, has a scale of its own and draws no random
//! numbers. Its weights are on the device without autodiff, so they never get gradients; images on an autodiff device do.
//!
//! A new reward is one file (a config that is [`Build`] and [`Validate`], a type that is [`Reward`]) and one line in the table below.

mod aesthetic;
mod batch_json;
mod brightness;
mod clip_score;
mod command;
mod error;
mod hps_v2;
mod http;
mod jpeg;
mod judge;
mod kind;
mod pixels;
#[cfg(unix)]
mod process_group;
mod ranking;
mod saturation;
mod vlm;
mod vp_score;
mod weighted_sum;

pub use aesthetic::{Aesthetic, AestheticConfig};
pub use brightness::{Brightness, BrightnessConfig};
pub use clip_score::{ClipScore, ClipScoreConfig};
pub use command::{CommandConfig, CommandReward};
pub use error::{Error, Result};
pub use hps_v2::HpsV2Config;
pub use http::{HttpConfig, HttpReward};
pub use jpeg::{JpegCompressibilityConfig, JpegConfig, JpegIncompressibilityConfig, JpegSize};
pub use judge::{Judge, JudgeConfig};
#[cfg(unix)]
pub use process_group::end_programs;
pub use ranking::{pair_losses, ranking_loss, tie_losses};
pub use saturation::{Saturation, SaturationConfig};
pub use vlm::{Vlm, VlmConfig};
pub use vp_score::{VpScore, VpScoreConfig};
pub use weighted_sum::{Term, WeightedSum, WeightedSumConfig};

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use toml::{Table, Value};
use vp_core::config::Validate;
use vp_data::{Aspect, RgbImage, to_tensor};
use vp_models::GradientCheckpointing;
use vp_models::NumberFormat;
use vp_models::footprint::ScoringNetwork;
use vp_models::resize::preprocess_bytes;

use kind::Kind;

/// A function from an image and its prompt to a number: the better the image, the larger.
pub trait Reward: Send + Sync {
    /// The name under which it is registered.
    fn name(&self) -> &'static str;

    /// Whether gradients reach the images. ReFL needs them; DDPO does not.
    fn differentiable(&self) -> bool;

    /// Scores `[b]` of `images` `[b, 3, h, w]` in `[0, 1]` (values a little outside are fine) for `b` prompts. An image's score does
    /// not depend on the rest of its batch, and an image with a NaN in it scores NaN.
    ///
    /// # Errors
    /// When there are no images, they do not have three channels, or there is not one prompt for each.
    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>>;

    /// The scores together with those of the terms that they are made of, if any: a sum's rewards, or the aspects of a rating.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    fn score_with_terms(&self, images: Tensor<4>, prompts: &[String]) -> Result<Scored> {
        Ok(Scored { scores: self.score(images, prompts)?, terms: Vec::new() })
    }

    /// The terms that the score is a weighted sum of, up to a scale of the whole: their names, as [`Scored::terms`] has them, and their weights.
    /// Empty if the score is no such sum.
    fn term_weights(&self) -> Vec<(String, f64)> {
        Vec::new()
    }

    /// Scores of 8-bit images, as files hold them, each of its own size; with those of the terms. They equal those of
    /// [`score_with_terms`](Self::score_with_terms), except where a reward's original preprocesses files in another way than tensors.
    /// `device` is the one that the reward was built on.
    ///
    /// # Errors
    /// When an image has no pixels, or there is not one prompt for each.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], device: &Device) -> Result<ScoredRgb> {
        check_pairs(self.name(), images, prompts)?;
        let device = device.clone().without_autodiff();
        let mut all = ScoredRgb::default();
        for (image, prompt) in images.iter().zip(prompts) {
            let image = to_tensor(std::slice::from_ref(image), &device).expect("a single image has a single size");
            all.append(self.score_with_terms(image, std::slice::from_ref(prompt))?.into());
        }
        Ok(all)
    }

    /// The network that looks at images whatever their prompts, if the reward has one.
    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        None
    }

    /// Chooses what autodiff keeps of the reward's network between the forward and the backward pass, if the reward has one.
    fn set_gradient_checkpointing(&mut self, kept: GradientCheckpointing) {
        let _ = kept;
    }

    /// A warning for each prompt of which the reward cannot read everything; worth showing once, before a run.
    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let _ = prompts;
        Vec::new()
    }
}

/// A reward's network as a measure of how alike images are.
pub trait ImageEncoder {
    /// Features `[b, width]` of `b` 8-bit images of any size.
    ///
    /// # Panics
    /// When there are no images.
    fn image_features(&self, images: &[RgbImage]) -> Tensor<2>;
}

/// The scores of a batch of image tensors.
#[derive(Debug, Clone)]
pub struct Scored {
    /// `[b]`, with the gradient if the reward is differentiable.
    pub scores: Tensor<1>,
    /// The name and the scores `[b]` of each term, before they are normalised and weighed; without gradient.
    pub terms: Vec<(String, Tensor<1>)>,
}

/// The scores of 8-bit images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScoredRgb {
    /// One score per image.
    pub scores: Vec<f64>,
    /// The name and the scores of each term, as in [`Scored::terms`].
    pub terms: Vec<(String, Vec<f64>)>,
}

impl ScoredRgb {
    fn append(&mut self, other: Self) {
        self.scores.extend(other.scores);
        match self.terms.is_empty() {
            true => self.terms = other.terms,
            false => self.terms.iter_mut().zip(other.terms).for_each(|((_, all), (_, scores))| all.extend(scores)),
        }
    }
}

impl From<Scored> for ScoredRgb {
    fn from(scored: Scored) -> Self {
        let values = |scores: Tensor<1>| scores.into_data().iter::<f64>().collect();
        let terms = scored.terms.into_iter().map(|(name, scores)| (name, values(scores))).collect();
        Self { scores: values(scored.scores), terms }
    }
}

/// The aspects of a rating with their weights, as [`Reward::term_weights`].
fn aspect_weights(weights: [f64; 4]) -> Vec<(String, f64)> {
    Aspect::ALL.into_iter().map(|aspect| aspect.name().to_string()).zip(weights).collect()
}

/// A prompt of which a reward cannot read everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The prompt's place among those that were checked.
    pub index: usize,
    /// What the reward does not read, and what that does to the score.
    pub message: String,
}

/// A reward's configuration: the section `[reward.<name>]`, which makes the reward.
///
/// A reward with weights has a key `weights` for their path, and [`findings`](Validate::findings) when another kind of weights lies there.
/// `score --reward PATH` asks `kind.rs` whose weights these are, and of those that it does not know takes the first reward in the table
/// that has no findings with the path.
pub trait Build: Validate {
    /// Makes the reward, ready to score, with its weights on `device` without autodiff.
    ///
    /// # Errors
    /// When its files cannot be read or do not fit together.
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>>;

    /// The files and folders that [`build`](Self::build) reads. A folder stands for everything in it.
    fn weights(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The values of the keys that may name a model inside the program (`embedded:…`) instead of a path.
    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        Vec::new()
    }

    /// The networks that [`build`](Self::build) would load, from their configs: no weight is read. Where the files are not there yet, the
    /// published network that is usually meant. Empty for a reward without one.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        Ok(Vec::new())
    }

    /// Blanks the keys that say where and how fast the reward is computed, not what it is: a run may be resumed with others.
    fn blank_connection(&mut self) {}
}

vp_core::registry! {
    /// The `[reward.<name>]` section.
    pub enum RewardConfig: Build {
        /// A BLIP reward model (VP-Score, ImageReward, CycleReward): how well an image fits its prompt and pleases people.
        VpScore = "vp_score" => VpScoreConfig,
        /// A CLIP's image and prompt embeddings, compared: CLIP score, PickScore.
        ClipScore = "clip_score" => ClipScoreConfig,
        /// The Human Preference Score v2 or v2.1: a CLIP tuned on people's choices, which sees the whole image.
        HpsV2 = "hps_v2" => HpsV2Config,
        /// LAION's aesthetic predictor v2 on a CLIP's image embedding; prompts play no part.
        Aesthetic = "aesthetic" => AestheticConfig,
        /// Mean luma; needs no weights.
        Brightness = "brightness" => BrightnessConfig,
        /// Mean colour saturation; needs no weights.
        Saturation = "saturation" => SaturationConfig,
        /// Negative JPEG size in kB; needs no weights, not differentiable.
        JpegCompressibility = "jpeg_compressibility" => JpegCompressibilityConfig,
        /// JPEG size in kB; needs no weights, not differentiable.
        JpegIncompressibility = "jpeg_incompressibility" => JpegIncompressibilityConfig,
        /// The judge of the world of shapes: prompt following, aesthetic, fidelity, harmlessness; not differentiable.
        Judge = "judge" => JudgeConfig,
        /// Other rewards, each normalised and weighed; differentiable if all of them are.
        WeightedSum = "weighted_sum" => WeightedSumConfig,
        /// A server of one's own: images and prompts to a URL, scores back; not differentiable.
        Http = "http" => HttpConfig,
        /// A program of one's own, which reads images and prompts as JSON lines and answers with scores; not differentiable.
        Command = "command" => CommandConfig,
        /// A multimodal language model behind an OpenAI-compatible server, which rates four aspects; not differentiable.
        Vlm = "vlm" => VlmConfig,
    }
}

impl RewardConfig {
    /// The reward whose weights are at `path`, told by what is in them. Its other keys have their defaults; something that it needs may still
    /// be missing there, which is among its [`findings`](Validate::findings).
    ///
    /// # Errors
    /// [`Error::UnknownWeights`] when these are the weights of no reward.
    pub fn from_weights(path: &Path) -> Result<Self> {
        let kind = if path.exists() { Kind::of(path).map_err(|error| error.to_string()) } else { Err(kind::missing(path)) };
        if let Some(name) = kind.as_ref().ok().and_then(|kind| kind.reward()) {
            return Ok(Self::with_weights(path).find(|config| config.name() == name).expect("kinds of weights name rows of the table"));
        }
        let mut findings = Vec::new();
        for config in Self::with_weights(path) {
            let before = findings.len();
            config.findings(&mut findings);
            if findings.len() == before {
                return Ok(config);
            }
        }
        let found = kind.map_or_else(|missing| missing, |kind| kind.answer(path));
        Err(Error::UnknownWeights { path: path.display().to_string(), findings: vec![found] })
    }

    /// The names of the rewards for which a path to weights is enough.
    pub fn names_with_weights() -> impl Iterator<Item = &'static str> {
        Self::with_weights(Path::new("")).map(|config| config.name())
    }

    /// A configuration of each reward for which a path to weights is enough, with this path.
    fn with_weights(path: &Path) -> impl Iterator<Item = Self> {
        let section = |key: &str, value: Value| Value::Table(Table::from_iter([(key.to_owned(), value)]));
        let weights = section("weights", path.to_string_lossy().into_owned().into());
        Self::ENTRIES.iter().filter_map(move |entry| section(entry.name, weights.clone()).try_into().ok())
    }

    /// The files and folders that the reward reads. A folder stands for everything in it.
    pub fn weights(&self) -> Vec<PathBuf> {
        self.chosen().weights()
    }

    /// The networks of the reward, from their configs.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        self.chosen().networks()
    }

    /// Replaces each path that names weights by what `resolve` makes of it.
    ///
    /// # Errors
    /// The first error of `resolve`.
    pub fn resolve<E>(&mut self, resolve: impl Fn(&Path) -> std::result::Result<PathBuf, E>) -> std::result::Result<(), E> {
        for path in self.chosen_mut().weights_mut() {
            *path = resolve(path)?;
        }
        Ok(())
    }

    /// Checks the configuration, then makes the reward, ready to score, with its weights on `device` without autodiff.
    ///
    /// # Errors
    /// When the configuration has findings (nothing is read then), or its files cannot be read or do not fit together.
    pub fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        let mut findings = Vec::new();
        self.findings(&mut findings);
        if !findings.is_empty() {
            return Err(Error::Invalid { reward: self.name(), findings });
        }
        self.chosen().build(device)
    }
}

impl Validate for RewardConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.chosen().findings(findings);
    }
}

/// The input of BLIP and CLIP, `[b, 3, size, size]`, of 8-bit images: resized as Pillow does, and normalised.
///
/// # Panics
/// When there are no images.
pub fn pixel_values(images: &[RgbImage], size: usize, device: &Device) -> Tensor<4> {
    let one = |image: &RgbImage| preprocess_bytes(image.as_raw(), [image.height() as usize, image.width() as usize], size, device);
    Tensor::cat(images.iter().map(one).collect(), 0)
}

/// Checks what every reward demands of its input. Returns `images.dims()`.
fn check_batch(reward: &'static str, images: &Tensor<4>, prompts: &[String]) -> Result<[usize; 4]> {
    let dims = images.dims();
    let [b, channels, h, w] = dims;
    if channels != 3 || b == 0 || h == 0 || w == 0 {
        return Err(Error::NotImages { reward, found: dims });
    }
    if prompts.len() != b {
        return Err(Error::PromptCount { reward, images: b, prompts: prompts.len() });
    }
    Ok(dims)
}

/// The number format that a reward is to have, f32 if absent.
fn checked_format(reward: &'static str, format: Option<NumberFormat>, device: &Device) -> Result<NumberFormat> {
    let format = format.unwrap_or_default();
    match format.check(device) {
        Ok(()) => Ok(format),
        Err(reason) => Err(Error::Invalid { reward, findings: vec![format!("reward.{reward}.dtype is \"{}\": {reason}", format.name())] }),
    }
}

/// Checks what every reward demands of images that are not tensors yet.
fn check_pairs(reward: &'static str, images: &[RgbImage], prompts: &[String]) -> Result<()> {
    if prompts.len() != images.len() {
        return Err(Error::PromptCount { reward, images: images.len(), prompts: prompts.len() });
    }
    match images.iter().find(|image| image.is_empty()) {
        Some(image) => Err(Error::NotImages { reward, found: [1, 3, image.height() as usize, image.width() as usize] }),
        None => Ok(()),
    }
}
