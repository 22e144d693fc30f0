//! `clip_score`: how alike a CLIP's embeddings of image and prompt are. With the matching weights this is CLIP score, PickScore, HPS v2, or
//! what `train-reward` made of a CLIP.
//!
//! ```text
//! score = cos(image, prompt)  or  exp(logit_scale) · cos(image, prompt)
//! ```
//!
//! Source: PickScore (arXiv 2305.01569) multiplies by the temperature; HPS v2 (arXiv 2306.09341) and CLIPScore (arXiv 2104.08718) do not.
//! The weights are a folder as transformers writes it for a `CLIPModel`, with its tokenizer.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::RgbImage;
use vp_models::NumberFormat;
use vp_models::clip::{ClipCheckpoint, ClipConfig, ClipModel};
use vp_models::resize::{Antialias, preprocess};
use vp_models::tokenizer::ClipTokenizer;

use crate::{Build, ImageEncoder, Result, Reward, Scored, ScoredRgb, Warning, check_batch, check_pairs, checked_format, pixel_values};

const NAME: &str = "clip_score";

/// The `[reward.clip_score]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipScoreConfig {
    /// The folder with `config.json`, weights and tokenizer.
    pub weights: PathBuf,
    /// Whether cosines are multiplied by the learnt temperature (about 100). PickScore does; CLIP score and HPS v2 do not.
    #[serde(default)]
    pub logit_scale: bool,
    /// Number format of the encoders' weights and activations: `f32`, `bf16` or `f16`; absent: f32. The score is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<NumberFormat>,
}

impl Validate for ClipScoreConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let folder = &self.weights;
        if !folder.is_dir() {
            findings.push(format!(
                "reward.{NAME}.weights: there is no folder {}; expected a CLIPModel's, as transformers writes it",
                folder.display()
            ));
        } else if let Err(error) = ClipConfig::read(&folder.join("config.json")) {
            findings.push(format!("reward.{NAME}.weights: {error}"));
        }
    }
}

impl Build for ClipScoreConfig {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(ClipScore::load(self, device)?))
    }

    fn weights(&self) -> Vec<PathBuf> {
        vec![self.weights.clone()]
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.weights]
    }
}

/// A loaded CLIP. Its weights are constants: only images get gradients.
#[derive(Debug)]
pub struct ClipScore {
    model: ClipModel,
    image_size: usize,
    tokenizer: ClipTokenizer,
    logit_scale: bool,
    device: Device,
}

impl ClipScore {
    /// Reads the folder onto `device`, without autodiff.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn load(section: &ClipScoreConfig, device: &Device) -> Result<Self> {
        let device = device.clone().without_autodiff();
        let tokenizer = ClipTokenizer::from_folder(&section.weights)?;
        let ClipCheckpoint { model, config } = ClipCheckpoint::load(&section.weights, &device)?;
        let model = model.in_format(checked_format(NAME, section.dtype, &device)?);
        Ok(Self { model, image_size: config.vision.image_size, tokenizer, logit_scale: section.logit_scale, device })
    }

    /// Scores of images that are preprocessed already: `[b, 3, image_size, image_size]`, normalised.
    ///
    /// # Panics
    /// When the images have another size, or there is not one prompt for each.
    pub fn score_pixel_values(&self, pixel_values: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| self.tokenizer.encode(prompt).ids).collect();
        if self.logit_scale {
            self.model.logits(pixel_values, &ids, &self.device)
        } else {
            self.model.cosine(pixel_values, &ids, &self.device)
        }
    }
}

impl Reward for ClipScore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        check_batch(NAME, &images, prompts)?;
        Ok(self.score_pixel_values(preprocess(images, self.image_size, Antialias::On), prompts))
    }

    /// Resizes and rounds as Pillow does, like `CLIPImageProcessor` of transformers.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], _: &Device) -> Result<ScoredRgb> {
        check_pairs(NAME, images, prompts)?;
        if images.is_empty() {
            return Ok(ScoredRgb::default());
        }
        let scores = self.score_pixel_values(pixel_values(images, self.image_size, &self.device), prompts);
        Ok(Scored { scores, terms: Vec::new() }.into())
    }

    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        Some(self)
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let lost = |(index, prompt): (usize, &String)| {
            let message = format!("{NAME}: {}", self.tokenizer.encode(prompt).warning()?);
            Some(Warning { index, message })
        };
        prompts.iter().enumerate().filter_map(lost).collect()
    }
}

impl ImageEncoder for ClipScore {
    /// The images' embeddings, of length 1.
    fn image_features(&self, images: &[RgbImage]) -> Tensor<2> {
        self.model.image_embeds(pixel_values(images, self.image_size, &self.device))
    }
}
