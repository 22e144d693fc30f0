//! A CLIP on disk in any of its published forms: a folder or a file of transformers or of open_clip.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::dual::{LOGIT_SCALE, UNUSED};
use super::open_clip::{OpenClipConfig, OpenClipDefaults, is_open_clip, rename_open_clip};
use super::{ClipCheckpoint, ClipConfig, ClipImageEncoder, ClipVisionConfig};
use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::parameters::load;
use crate::resize::Preprocessing;
use crate::reward_files::find_weights;
use crate::weights::Weights;

/// What published files put before all names of a CLIP: trainers, imscore's copies.
const PREFIXES: [&str; 3] = ["module.", "model.", "clip."];
/// Channels of a head in the image encoders that OpenAI published.
const HEAD_WIDTH: usize = 64;

/// Whose names the tensors have, and with them whose tokenizer and preprocessing the network was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipNames {
    Transformers,
    OpenClip,
}

/// A CLIP whose sizes are known and whose values are still in the file.
#[derive(Debug)]
pub struct ClipSource {
    pub names: ClipNames,
    pub config: ClipConfig,
    /// What makes the image encoder's input.
    pub preprocessing: Preprocessing,
    /// The file that says what the tensors do not: transformers' `config.json` or `open_clip_config.json`.
    pub config_file: Option<PathBuf>,
    weights: Weights,
}

/// Takes a prefix off all names, if these are a CLIP's with one. What is not under the prefix is left out.
pub fn without_prefix(mut weights: Weights) -> Weights {
    let is_clips = |name: &str| ["visual.", "vision_model."].iter().any(|encoder| name.starts_with(encoder));
    while !weights.names().any(is_clips)
        && let Some(prefix) = PREFIXES.iter().find(|prefix| weights.names().any(|name| name.starts_with(*prefix)))
    {
        weights = weights.split_off(prefix);
    }
    weights
}

impl ClipSource {
    /// Opens a folder or a file: transformers' weights with `config.json` beside them, or open_clip's, with `open_clip_config.json` if it is
    /// there. `defaults` hold where that config is silent.
    ///
    /// # Errors
    /// When a file is missing or cannot be read, or does not say what the network is.
    pub fn open(path: &Path, defaults: OpenClipDefaults) -> Result<Self> {
        let file = find_weights(path)?;
        let mut weights = without_prefix(Weights::open(&file)?);
        let beside = |name: &str| file.with_file_name(name);
        if !is_open_clip(&weights) {
            let config_file = beside("config.json");
            let config = ClipConfig::read(&config_file)?;
            let preprocessing = Preprocessing::clip(config.vision.image_size);
            weights.ignore(&UNUSED);
            weights.unsqueeze_scalar(LOGIT_SCALE);
            return Ok(Self { names: ClipNames::Transformers, config, preprocessing, config_file: Some(config_file), weights });
        }
        let config_file = Some(beside("open_clip_config.json")).filter(|path| path.exists());
        let said = config_file.as_deref().map(OpenClipConfig::read).transpose()?.unwrap_or_default();
        let config = said.network(&weights, defaults)?;
        let preprocessing = said.preprocessing(config.vision.image_size);
        rename_open_clip(&mut weights);
        weights.unsqueeze_scalar(LOGIT_SCALE);
        Ok(Self { names: ClipNames::OpenClip, config, preprocessing, config_file, weights })
    }

    /// Loads both encoders onto `device`.
    ///
    /// # Errors
    /// When the values cannot be read or the tensors are not those of the network; every tensor at fault is named.
    pub fn load(self, device: &Device) -> Result<ClipCheckpoint> {
        Ok(ClipCheckpoint { model: load(self.config.init(device), self.weights)?, config: self.config })
    }

    /// Loads the image encoder alone onto `device`.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_image_encoder(self, device: &Device) -> Result<ClipImageEncoder> {
        load_image_encoder(&self.config.vision, self.config.projection_dim, self.weights, device)
    }
}

fn load_image_encoder(config: &ClipVisionConfig, projection_dim: usize, mut weights: Weights, device: &Device) -> Result<ClipImageEncoder> {
    weights.ignore(&UNUSED);
    weights.retain(|name| name.starts_with("vision_model.") || name.starts_with("visual_projection."));
    Ok(load(ClipImageEncoder::new(config, projection_dim, device), weights)?)
}

impl ClipImageEncoder {
    /// Loads the image encoder of OpenAI's CLIP from tensors under transformers' names. Without a `config`, shapes tell the sizes; heads are
    /// 64 channels wide and the activation is QuickGELU, as in everything that OpenAI published.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing, and as [`ClipSource::load`].
    pub fn from_weights(weights: Weights, config: Option<&ClipVisionConfig>, device: &Device) -> Result<Self> {
        let size = |name: &str, axis: usize| {
            let found = weights.shape(name).and_then(|shape| shape.get(axis)).copied();
            found.ok_or_else(|| Error::Config {
                path: weights.origin().into(),
                message: format!("lacks {name}, as a CLIP's image encoder has it"),
            })
        };
        let is_layer = |i: &usize| weights.shape(&format!("vision_model.encoder.layers.{i}.mlp.fc1.weight")).is_some();
        let projection_dim = size("visual_projection.weight", 0)?;
        let hidden_size = size("visual_projection.weight", 1)?;
        let patch_size = size("vision_model.embeddings.patch_embedding.weight", 2)?;
        let patches = size("vision_model.embeddings.position_embedding.weight", 0)?.saturating_sub(1);
        let shaped = ClipVisionConfig {
            hidden_size,
            intermediate_size: size("vision_model.encoder.layers.0.mlp.fc1.weight", 0)?,
            num_hidden_layers: (0..).take_while(is_layer).count(),
            num_attention_heads: (hidden_size / HEAD_WIDTH).max(1),
            image_size: patches.isqrt() * patch_size,
            patch_size,
            hidden_act: Activation::QuickGelu,
            ..ClipVisionConfig::default()
        };
        if patch_size == 0 || hidden_size == 0 || !hidden_size.is_multiple_of(shaped.num_attention_heads) || patches == 0 {
            let message =
                format!("a CLIP's image encoder of {patches} patches of {patch_size} pixels and {hidden_size} channels cannot be");
            return Err(Error::Config { path: weights.origin().into(), message });
        }
        load_image_encoder(config.unwrap_or(&shaped), projection_dim, weights, device)
    }
}
