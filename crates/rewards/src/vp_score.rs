//! `vp_score`: a BLIP reward model, VP-Score's, ImageReward's or CycleReward's.
//!
//! ```text
//! score = (mlp(BERT([CLS] prompt [SEP], ViT(image))[0]) − mean) / std
//! ```
//!
//! Source: ImageReward (arXiv 2304.05977), `score_gard` in `ImageReward/ImageReward.py`, through which ReFL differentiates. It resizes
//! images as tensors, with antialiasing. Python's `score` of a *file* resizes 8-bit images with Pillow instead, and so does
//! [`Reward::score_rgb`] here. CycleReward (arXiv 2506.02095) is the same network with GELU in its head, prompts of 128 tokens, and neither
//! mean nor standard deviation.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::{Aspect, AspectWeights, RgbImage};
use vp_models::GradientCheckpointing;
use vp_models::NumberFormat;
use vp_models::blip::{AspectHeads, BlipConfig, BlipFiles, BlipReward, RewardHead, TextInputs};
use vp_models::footprint::{ScoringKind, ScoringNetwork};
use vp_models::resize::{Antialias, preprocess};
use vp_models::tokenizer::BertTokenizer;
use vp_models::weights::Weights;

use crate::kind::{self, Kind};
use crate::{
    Build, Error, ImageEncoder, Result, Reward, Scored, ScoredRgb, Warning, aspect_weights, check_batch, check_pairs, checked_format,
    pixel_values,
};

const NAME: &str = "vp_score";

/// The `[reward.vp_score]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpScoreConfig {
    /// A file of weights (safetensors, or `.pt` like `ImageReward.pt`, or `CycleReward-Combo.pth`), the folder that it is in, or `embedded:shapes/vp-score`.
    pub weights: PathBuf,
    /// The file of the network's sizes. Default: `config.json` beside the weights; without one, the sizes follow from the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// The file of BERT's word pieces. Default: `vocab.txt` beside the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab: Option<PathBuf>,
    /// What is subtracted from the network's output. Default: that of `<weights>.json`, else of `config.json`, else ImageReward's, or 0 of a
    /// CycleReward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// What the difference is divided by. Default: from the same place as `mean`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Whether images are resized with antialiasing. ReFL's released script resizes without.
    #[serde(default = "antialias")]
    pub antialias: bool,
    /// How much each aspect counts, for a model with a head per aspect: the score is then the sum of the heads' outputs with these weights,
    /// divided by their mean. Default: each counts as much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aspects: Option<AspectWeights>,
    /// Number format of the encoders' weights and activations: `f32`, `bf16` or `f16`; absent: f32. The score is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<NumberFormat>,
}

fn antialias() -> bool {
    true
}

impl VpScoreConfig {
    /// The reward at `weights`, with the defaults of everything else.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self {
            weights: weights.into(),
            config: None,
            vocab: None,
            mean: None,
            std: None,
            antialias: antialias(),
            aspects: None,
            dtype: None,
        }
    }

    fn files(&self) -> Result<BlipFiles> {
        let mut files = BlipFiles::find(&self.weights)?;
        files.config = self.config.clone().or(files.config);
        files.vocab = self.vocab.clone().or(files.vocab);
        Ok(files)
    }
}

impl Validate for VpScoreConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if kind::is_found_later(&self.weights) {
            // What is beside it is not known yet.
        } else if let Some(finding) = kind::finding(NAME, &self.weights, |kind| kind == Kind::Blip) {
            findings.push(finding);
        } else {
            match self.files() {
                Ok(BlipFiles { vocab: None, weights, .. }) => findings.push(format!(
                    "reward.{NAME}: there is no vocab.txt beside {}; put bert-base-uncased's there, or set reward.{NAME}.vocab",
                    weights.display()
                )),
                Ok(_) => {}
                Err(error) => findings.push(format!("reward.{NAME}.weights: {error}")),
            }
        }
        for (key, path) in [("config", &self.config), ("vocab", &self.vocab)] {
            if let Some(path) = path
                && !path.is_file()
            {
                findings.push(format!("reward.{NAME}.{key}: there is no file {}", path.display()));
            }
        }
        if let Some(mean) = self.mean
            && !mean.is_finite()
        {
            findings.push(format!("reward.{NAME}.mean = {mean} is not finite"));
        }
        if let Some(aspects) = self.aspects {
            aspects.findings_in(&format!("reward.{NAME}.aspects"), findings);
        }
        if let Some(std) = self.std
            && !(std > 0.0 && std.is_finite())
        {
            findings.push(format!("reward.{NAME}.std = {std}: expected a positive number"));
        }
    }
}

impl Build for VpScoreConfig {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(VpScore::load(self, device)?))
    }

    /// The weights or their folder; and the other files, where they are not in that folder.
    fn weights(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.weights.clone()];
        match self.files() {
            Ok(files) if !self.weights.is_dir() => paths.extend([files.config, files.vocab, files.scale].into_iter().flatten()),
            _ => paths.extend([self.config.clone(), self.vocab.clone()].into_iter().flatten()),
        }
        paths
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.weights]
    }

    /// ImageReward's network, if the files are not there.
    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        let format = self.dtype.unwrap_or_default();
        if !self.weights.exists() {
            return Ok(vec![ScoringNetwork { kind: ScoringKind::Blip(BlipConfig::image_reward()), format, assumed: Some("ImageReward") }]);
        }
        let files = self.files()?;
        let config = match &files.config {
            Some(path) => BlipConfig::read(path)?,
            None => BlipConfig::from_weights(&Weights::open(&files.weights)?)?,
        };
        Ok(vec![ScoringNetwork { kind: ScoringKind::Blip(config), format, assumed: None }])
    }
}

/// A loaded BLIP reward. Its weights are constants: only images get gradients.
#[derive(Debug)]
pub struct VpScore {
    model: BlipReward,
    config: BlipConfig,
    tokenizer: BertTokenizer,
    antialias: Antialias,
    /// What the head of each aspect counts, with a mean of 1; `None` for the head of their sum.
    aspects: Option<[f64; 4]>,
    device: Device,
}

impl VpScore {
    /// Reads the reward onto `device`, without autodiff; the vocabulary first, because it is small.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn load(section: &VpScoreConfig, device: &Device) -> Result<Self> {
        let files = section.files()?;
        let device = device.clone().without_autodiff();
        let vocab = files.vocab.clone().unwrap_or_else(|| files.weights.with_file_name("vocab.txt"));
        let tokenizer = BertTokenizer::from_vocab(&vocab)?;
        let checkpoint = files.load(&device)?;
        let config = checkpoint.config;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::VocabularyTooLarge {
                vocab: vocab.display().to_string(),
                words: tokenizer.vocab_size(),
                weights: files.weights.display().to_string(),
                embeddings: config.vocab_size,
            });
        }
        if section.aspects.is_some() && !config.aspects {
            return Err(Error::Invalid {
                reward: NAME,
                findings: vec![format!(
                    "aspects weighs heads, and {} has one head for all aspects; expected a model with a head per aspect \
                     (algo.reward_model.aspects = true); remove aspects",
                    files.weights.display()
                )],
            });
        }
        let aspects = section.aspects.map(|weights| {
            let (weights, mean) = (weights.as_array(), weights.as_array().iter().sum::<f64>() / 4.0);
            weights.map(|weight| weight / mean)
        });
        let config = BlipConfig { mean: section.mean.unwrap_or(config.mean), std: section.std.unwrap_or(config.std), ..config };
        let antialias = if section.antialias { Antialias::On } else { Antialias::Off };
        let tokenizer = tokenizer.with_length(config.max_length);
        let format = checked_format(NAME, section.dtype, &device)?;
        Ok(Self { model: checkpoint.model.in_format(format)?, tokenizer, config, antialias, aspects, device })
    }

    /// The network's sizes, with the mean and the standard deviation in use.
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// Scores of images that are preprocessed already: `[b, 3, image_size, image_size]`, normalised.
    ///
    /// # Panics
    /// When the images have another size, or there is not one prompt for each.
    pub fn score_pixel_values(&self, pixel_values: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        self.scores(&self.model.features(pixel_values, &self.text(prompts)))
    }

    /// The scores `[b]` of features `[b, hidden]`.
    fn scores(&self, features: &Tensor<2>) -> Tensor<1> {
        let of = |head: &RewardHead| head.forward(features.clone()).reshape([features.dims()[0]]);
        let raw = match (&self.model.aspect_heads, self.aspects) {
            (Some(heads), Some(weights)) => {
                let weighed = heads.all().into_iter().zip(weights).map(|(head, weight)| of(head) * weight);
                weighed.reduce(|sum, next| sum + next).expect("four heads")
            }
            _ => of(&self.model.mlp),
        };
        (raw - self.config.mean) / self.config.std
    }

    /// The scores; and those of the aspects, as their heads put them out, if the model has heads for aspects.
    fn score_pixel_values_with_terms(&self, pixel_values: Tensor<4>, prompts: &[String]) -> Scored {
        let features = self.model.features(pixel_values, &self.text(prompts));
        let of = |head: &RewardHead| head.forward(features.clone()).reshape([prompts.len()]);
        let scores = self.scores(&features);
        let heads = self.model.aspect_heads.as_ref().map(AspectHeads::all);
        let named = heads.into_iter().flat_map(|heads| Aspect::ALL.into_iter().zip(heads));
        Scored { scores, terms: named.map(|(aspect, head)| (aspect.name().to_string(), of(head).without_autodiff())).collect() }
    }

    fn text(&self, prompts: &[String]) -> TextInputs {
        TextInputs::encode(&self.tokenizer, prompts, &self.device)
    }
}

impl Reward for VpScore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        check_batch(NAME, &images, prompts)?;
        Ok(self.score_pixel_values(preprocess(images, self.config.image_size, self.antialias), prompts))
    }

    fn score_with_terms(&self, images: Tensor<4>, prompts: &[String]) -> Result<Scored> {
        check_batch(NAME, &images, prompts)?;
        Ok(self.score_pixel_values_with_terms(preprocess(images, self.config.image_size, self.antialias), prompts))
    }

    /// Those of the aspects, if there is a head for each; the head of their sum weighs them equally.
    fn term_weights(&self) -> Vec<(String, f64)> {
        self.model.aspect_heads.as_ref().map_or_else(Vec::new, |_| aspect_weights(self.aspects.unwrap_or([1.0; 4])))
    }

    /// Resizes and rounds as Pillow does, like `score` of files in `ImageReward.py`; always with antialiasing.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], _: &Device) -> Result<ScoredRgb> {
        check_pairs(NAME, images, prompts)?;
        if images.is_empty() {
            return Ok(ScoredRgb::default());
        }
        Ok(self.score_pixel_values_with_terms(pixel_values(images, self.config.image_size, &self.device), prompts).into())
    }

    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        Some(self)
    }

    fn set_gradient_checkpointing(&mut self, kept: GradientCheckpointing) {
        self.model.gradient_checkpointing = kept;
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let lost = |(index, prompt): (usize, &String)| {
            let lost = self.tokenizer.encode(prompt).lost?;
            let message = format!("{NAME} reads {} tokens of a prompt and cuts the rest: {lost:?}", self.config.max_length);
            Some(Warning { index, message })
        };
        prompts.iter().enumerate().filter_map(lost).collect()
    }
}

impl ImageEncoder for VpScore {
    /// The class token of the image encoder.
    fn image_features(&self, images: &[RgbImage]) -> Tensor<2> {
        let tokens = self.model.blip.visual_encoder.forward(pixel_values(images, self.config.image_size, &self.device));
        let [b, _, width] = tokens.dims();
        tokens.narrow(1, 0, 1).reshape([b, width])
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The score and the terms of a gray image, with these weights.
    fn scored(aspects: Option<AspectWeights>) -> (f32, Vec<f32>) {
        let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/shapes/vp-score");
        let reward = VpScore::load(&VpScoreConfig { aspects, ..VpScoreConfig::new(weights) }, &Device::flex()).unwrap();
        let images = Tensor::full([1, 3, 32, 32], 0.5, &Device::flex());
        let Scored { scores, terms } = reward.score_with_terms(images, &["a small red circle on a gray background".into()]).unwrap();
        let rescaled = f64::from(scores.into_scalar::<f32>()) * reward.config.std + reward.config.mean;
        (rescaled as f32, terms.into_iter().map(|(_, term)| term.into_scalar()).collect())
    }

    #[test]
    fn aspects_weigh_the_heads() {
        let (sum, terms) = scored(None);
        let equal = scored(Some(AspectWeights::default())).0;
        assert!((equal - sum).abs() < 1e-4 && (terms.iter().sum::<f32>() - sum).abs() < 1e-4, "{equal} {sum} {terms:?}");
        let some = AspectWeights { prompt_following: 3.0, aesthetic: 1.0, fidelity: 0.0, harmlessness: 0.0 };
        let weighed = scored(Some(some)).0;
        assert!((weighed - (3.0 * terms[0] + terms[1])).abs() < 1e-4, "{weighed} {terms:?}");
    }
}
