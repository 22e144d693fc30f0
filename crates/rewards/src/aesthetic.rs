//! `aesthetic`: LAION's aesthetic predictor v2, an MLP on a CLIP's embedding of the image. Prompts play no part.
//!
//! ```text
//! score = mlp(CLIP(image) / |CLIP(image)|)        about 0 to 10
//! ```
//!
//! Source: github.com/christophschuhmann/improved-aesthetic-predictor, `simple_inference.py`, file `sac+logos+ava1-l14-linearMSE.pth`: five
//! linear layers with nothing between them, on OpenAI's CLIP ViT-L/14, which is in files of its own.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::RgbImage;
use vp_models::NumberFormat;
use vp_models::blip::RewardHead;
use vp_models::clip::{ClipConfig, ClipImageEncoder, ClipSource, OpenClipDefaults, without_prefix};
use vp_models::footprint::{ScoringKind, ScoringNetwork};
use vp_models::resize::{Antialias, preprocess};
use vp_models::reward_files::find_weights;
use vp_models::weights::Weights;

use crate::kind::{self, Kind};
use crate::{Build, Error, ImageEncoder, Result, Reward, Scored, ScoredRgb, check_batch, check_pairs, checked_format, pixel_values};

const NAME: &str = "aesthetic";
/// The names of the MLP's tensors begin so in a copy that holds the CLIP too.
const HEAD: &str = "mlp.";

/// The `[reward.aesthetic]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AestheticConfig {
    /// `sac+logos+ava1-l14-linearMSE.pth`, or imscore's safetensors copy, which holds the CLIP too.
    pub weights: PathBuf,
    /// The folder of openai/clip-vit-large-patch14, whose image encoder is used. Default: the folder `clip` beside the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<PathBuf>,
    /// Number format of the image encoder's weights and activations: `f32`, `bf16` or `f16`; absent: f32. The score is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<NumberFormat>,
}

impl AestheticConfig {
    /// The reward at `weights`, with the defaults of everything else.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self { weights: weights.into(), clip: None, dtype: None }
    }

    /// The CLIP's folder or file, if there is one.
    fn clip(&self) -> Option<PathBuf> {
        let beside = || {
            let file = find_weights(&self.weights).ok()?;
            Some(file.with_file_name("clip")).filter(|folder| folder.is_dir())
        };
        self.clip.clone().or_else(beside)
    }

    fn holds_clip(&self) -> Result<bool> {
        Ok(Weights::open(&find_weights(&self.weights)?)?.names().any(|name| name.starts_with(HEAD)))
    }

    fn clip_finding(&self) -> Option<String> {
        let Some(clip) = self.clip() else {
            let needs = !self.holds_clip().ok()?;
            return needs.then(|| {
                format!(
                    "reward.{NAME}: the predictor reads the embeddings of a CLIP, which {} does not hold; set reward.{NAME}.clip to the folder \
                     of openai/clip-vit-large-patch14, or put it beside the weights under the name clip",
                    self.weights.display()
                )
            });
        };
        if !clip.exists() {
            return Some(format!("reward.{NAME}.clip: {}", kind::missing(&clip)));
        }
        match Kind::of(&clip) {
            Ok(Kind::Clip | Kind::OpenClip { .. }) => None,
            Ok(kind) => Some(format!("reward.{NAME}.clip: {}; expected openai/clip-vit-large-patch14's folder", kind.answer(&clip))),
            Err(error) => Some(format!("reward.{NAME}.clip: {error}")),
        }
    }
}

impl Validate for AestheticConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if kind::is_found_later(&self.weights) {
            return;
        }
        match kind::finding(NAME, &self.weights, |kind| kind == Kind::Aesthetic) {
            Some(finding) => findings.push(finding),
            None => findings.extend(self.clip_finding()),
        }
    }
}

impl Build for AestheticConfig {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Aesthetic::load(self, device)?))
    }

    fn weights(&self) -> Vec<PathBuf> {
        std::iter::once(self.weights.clone()).chain(self.clip()).collect()
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.weights]
    }

    /// The image encoder of the CLIP beside the predictor, or of OpenAI's ViT-L/14, which every published predictor reads.
    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        let format = self.dtype.unwrap_or_default();
        let (config, assumed) = match self.clip().filter(|clip| clip.exists()) {
            Some(clip) => (openai(&clip)?.config, None),
            None => (ClipConfig::vit_l(), Some("CLIP ViT-L/14")),
        };
        Ok(vec![ScoringNetwork { kind: ScoringKind::ClipImage(config), format, assumed }])
    }
}

/// A loaded predictor. Its weights are constants: only images get gradients.
#[derive(Debug)]
pub struct Aesthetic {
    encoder: ClipImageEncoder,
    head: RewardHead,
    device: Device,
}

impl Aesthetic {
    /// Reads the predictor and its CLIP onto `device`, without autodiff.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn load(section: &AestheticConfig, device: &Device) -> Result<Self> {
        let device = device.clone().without_autodiff();
        let format = checked_format(NAME, section.dtype, &device)?;
        let mut weights = Weights::open(&find_weights(&section.weights)?)?;
        let inner = weights.split_off(HEAD);
        let (head, clip) = if inner.is_empty() { (weights, None) } else { (inner, Some(without_prefix(weights))) };
        let head = RewardHead::from_weights(head, &device)?;
        let encoder = match (clip, section.clip()) {
            (Some(weights), config) => {
                let config = config.map(|path| path.join("config.json")).filter(|path| path.is_file());
                let config = config.map(|path| ClipConfig::read(&path)).transpose()?;
                ClipImageEncoder::from_weights(weights, config.as_ref().map(|config| &config.vision), &device)?
            }
            (None, Some(clip)) => openai(&clip)?.load_image_encoder(&device)?,
            (None, None) => return Err(Error::Invalid { reward: NAME, findings: section.clip_finding().into_iter().collect() }),
        };
        let (found, expected) = (encoder.visual_projection.weight.dims()[0], head.hidden_size());
        if found != expected {
            let finding = format!(
                "reward.{NAME}.clip embeds images in {found} channels, but {} reads {expected}; expected openai/clip-vit-large-patch14",
                section.weights.display()
            );
            return Err(Error::Invalid { reward: NAME, findings: vec![finding] });
        }
        Ok(Self { encoder: encoder.in_format(format)?, head, device })
    }

    /// The images' embeddings, of length 1, of pixels that are preprocessed already.
    pub fn image_embeds(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        self.encoder.image_embeds(pixel_values)
    }

    /// Scores of images that are preprocessed already: `[b, 3, image_size, image_size]`, normalised.
    pub fn score_pixel_values(&self, pixel_values: Tensor<4>) -> Tensor<1> {
        let b = pixel_values.dims()[0];
        self.head.forward(self.image_embeds(pixel_values)).reshape([b])
    }
}

/// A CLIP of OpenAI's, whose activation is known if its files are open_clip's.
fn openai(clip: &Path) -> Result<ClipSource> {
    Ok(ClipSource::open(clip, OpenClipDefaults { heads: None, quick_gelu: Some(true) })?)
}

impl Reward for Aesthetic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        check_batch(NAME, &images, prompts)?;
        Ok(self.score_pixel_values(preprocess(images, self.encoder.image_size(), Antialias::On)))
    }

    /// Resizes and rounds as Pillow does, like OpenAI's `clip.load`.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], _: &Device) -> Result<ScoredRgb> {
        check_pairs(NAME, images, prompts)?;
        if images.is_empty() {
            return Ok(ScoredRgb::default());
        }
        let scores = self.score_pixel_values(pixel_values(images, self.encoder.image_size(), &self.device));
        Ok(Scored { scores, terms: Vec::new() }.into())
    }

    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        Some(self)
    }
}

impl ImageEncoder for Aesthetic {
    /// The images' embeddings, of length 1.
    fn image_features(&self, images: &[RgbImage]) -> Tensor<2> {
        self.image_embeds(pixel_values(images, self.encoder.image_size(), &self.device))
    }
}
