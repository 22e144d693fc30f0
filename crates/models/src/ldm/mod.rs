//! Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL, in the layout of the original code (LDM, SGM), which A1111 and ComfyUI read:
//! the UNet behind `model.diffusion_model.`, the autoencoder behind `first_stage_model.`, the text encoders behind `cond_stage_model.` or
//! `conditioner.embedders.`.

mod configs;
mod names;
mod recognize;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;

use crate::clip::ClipTextConfig;
use crate::family::Family;
use crate::layers::Activation;
use crate::parameters::parameter_names;
use crate::tokenizer::published::END_OF_TEXT;
use crate::unet::UNetConfig;
use crate::vae;
use crate::weights::{LoadError, Weights, corrupt};

pub use configs::{model_index, published_vae as published_autoencoder, scheduler, text_encoder, unet, vae as autoencoder};
pub use names::unet_name;
pub use write::tensors;

/// How the UNet's tensors begin.
const UNET: &str = "model.diffusion_model.";
/// How the autoencoder's tensors begin.
const VAE: &str = "first_stage_model.";

/// The generation of a single-file checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Stable Diffusion 1.x: OpenAI's CLIP.
    One,
    /// Stable Diffusion 2.x: open_clip's text encoder.
    Two,
    /// Stable Diffusion XL: both.
    Xl,
}

/// What a single-file checkpoint was recognised as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Its generation.
    pub version: Version,
}

/// Where a text encoder's tensors are, and in whose names.
#[derive(Debug, Clone, Copy)]
struct TextLayout {
    prefix: &'static str,
    open_clip: bool,
}

impl Layout {
    /// The layout of a model of this family whose first text encoder has this config, for writing one. That of 2.x is open_clip's, whose
    /// activation is the exact GELU.
    pub fn of(family: Family, text_encoder: &ClipTextConfig) -> Self {
        let version = match (family, text_encoder.hidden_act) {
            (Family::StableDiffusionXl, _) => Version::Xl,
            (Family::StableDiffusion, Activation::Gelu) => Version::Two,
            (Family::StableDiffusion, Activation::QuickGelu) => Version::One,
        };
        Self { version }
    }

    /// The token with which a text encoder's prompts are padded.
    pub fn padding(self, component: &str) -> &'static str {
        if self.text_encoder(component).open_clip { "!" } else { END_OF_TEXT }
    }

    /// The pipeline that such a file is loaded into.
    pub fn family(self) -> Family {
        match self.version {
            Version::One | Version::Two => Family::StableDiffusion,
            Version::Xl => Family::StableDiffusionXl,
        }
    }

    fn text_encoder(self, component: &str) -> TextLayout {
        match (self.version, component) {
            (Version::One, _) => TextLayout { prefix: "cond_stage_model.transformer.text_model.", open_clip: false },
            (Version::Two, _) => TextLayout { prefix: "cond_stage_model.model.", open_clip: true },
            (Version::Xl, "text_encoder") => TextLayout { prefix: "conditioner.embedders.0.transformer.text_model.", open_clip: false },
            (Version::Xl, _) => TextLayout { prefix: "conditioner.embedders.1.model.", open_clip: true },
        }
    }
}

/// An opened single-file checkpoint: its tensors, under the names that the published file of its generation has.
#[derive(Debug)]
pub struct SingleFile {
    /// What it is.
    pub layout: Layout,
    /// Whether it predicts velocities instead of noise.
    pub v_prediction: bool,
    /// Whether its last training level is pure noise.
    pub zero_terminal_snr: bool,
    weights: Weights,
}

impl SingleFile {
    /// Opens a file and recognises what it is. Headers alone are read, and of a 2.x one the tensor that tells its prediction type.
    ///
    /// # Errors
    /// When it cannot be read, or is something else, which is named.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let mut weights = Weights::open(path)?;
        weights.unwrap_names();
        let layout = recognize::layout(&mut weights).map_err(|found| corrupt(path, &found))?;
        let v_prediction = recognize::is_v_prediction(&weights, layout)?;
        let zero_terminal_snr = weights.shape("ztsnr").is_some();
        Ok(Self { layout, v_prediction, zero_terminal_snr, weights })
    }

    /// The tensors, to read their shapes.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The UNet's tensors under diffusers' names; with `ema`, the averages that the trainer kept.
    ///
    /// # Errors
    /// When `ema` is asked for and the file has none.
    pub fn unet<M: Module>(mut self, network: &M, config: &UNetConfig, ema: bool) -> Result<Weights, LoadError> {
        let originals = parameter_names(network).into_iter().filter_map(|name| Some((unet_name(&name, config)?, name)));
        if !ema {
            return Ok(renamed(self.weights.split_off(UNET), &originals.collect()));
        }
        let origin = self.weights.origin().to_string();
        let averages = self.weights.split_off("model_ema.");
        // The key is the other one's after `model.`, without its dots.
        let originals: BTreeMap<String, String> =
            originals.map(|(original, name)| (format!("diffusion_model{}", original.replace('.', "")), name)).collect();
        let mut averages = averages;
        averages.retain(|name| originals.contains_key(name));
        if averages.is_empty() {
            return Err(corrupt(Path::new(&origin), "has no averaged (EMA) weights: no tensors named model_ema.*"));
        }
        Ok(renamed(averages, &originals))
    }

    /// The autoencoder's tensors under diffusers' names.
    pub fn vae<M: Module>(mut self, network: &M, levels: usize) -> Weights {
        vae_under_diffusers_names(self.weights.split_off(VAE), network, levels)
    }

    /// A text encoder's tensors under transformers' names, without `text_model.`.
    pub fn text_encoder<M: Module>(mut self, network: &M, component: &str, config: &ClipTextConfig) -> Weights {
        let TextLayout { prefix, open_clip } = self.layout.text_encoder(component);
        let mut weights = self.weights.split_off(prefix);
        if !open_clip {
            // A projection beside the encoder is of a whole CLIP; nothing here reads it.
            weights.ignore(&["embeddings.position_ids", "text_projection.weight"]);
            return weights;
        }
        for layer in 0..config.num_hidden_layers {
            for (joint, parameter) in [("in_proj_weight", "weight"), ("in_proj_bias", "bias")] {
                let parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("encoder.layers.{layer}.self_attn.{part}.{parameter}"));
                weights.split_rows(&format!("transformer.resblocks.{layer}.attn.{joint}"), &parts);
            }
        }
        weights.ignore(&["logit_scale", "attn_mask"]);
        if self.layout.version == Version::Two {
            // The last layer and the projection are in the file and in nothing else.
            weights.ignore(&["text_projection"]);
            let used = |name: &str| {
                let layer = name.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
                layer.is_none_or(|layer| layer < config.num_hidden_layers)
            };
            weights.retain(used);
        }
        weights.transpose("text_projection");
        let originals = parameter_names(network).into_iter().filter_map(|name| Some((names::open_clip_name(&name)?, name)));
        renamed(weights, &originals.collect())
    }
}

/// An autoencoder's tensors from a file of its own, under diffusers' names: an original one, with or without `first_stage_model.` and with
/// what its trainer left, or one that diffusers wrote.
///
/// # Errors
/// When the file cannot be read, or has no autoencoder in it.
pub fn open_vae<M: Module>(path: &Path, network: &M, levels: usize) -> Result<Weights, LoadError> {
    let mut weights = Weights::open(path)?;
    weights.unwrap_names();
    let inner = weights.split_off(VAE);
    let mut weights = if inner.is_empty() { weights } else { inner };
    if weights.shape("encoder.conv_in.weight").is_none() {
        let found = format!("holds no autoencoder (no encoder.conv_in.weight); it is {}", recognize::what_it_is(&weights));
        return Err(corrupt(path, &found));
    }
    if weights.names().any(|name| name.starts_with("encoder.down.")) {
        return Ok(vae_under_diffusers_names(weights, network, levels));
    }
    vae::rename_published(&mut weights);
    Ok(weights)
}

fn vae_under_diffusers_names<M: Module>(mut weights: Weights, network: &M, levels: usize) -> Weights {
    // What training an autoencoder leaves: its discriminator, averages, and counters.
    weights.retain(|name| !["loss.", "model_ema."].iter().any(|prefix| name.starts_with(prefix)));
    let originals = parameter_names(network).into_iter().filter_map(|name| Some((names::vae_name(&name, levels)?, name)));
    let mut weights = renamed(weights, &originals.collect());
    vae::rename_published(&mut weights);
    weights
}

/// `weights` with the names that `originals` maps replaced. The others stay, so that they are reported as unexpected.
fn renamed(mut weights: Weights, originals: &BTreeMap<String, String>) -> Weights {
    weights.rename(|name| originals.get(name).cloned().unwrap_or_else(|| name.into()));
    weights
}
