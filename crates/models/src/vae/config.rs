//! `vae/config.json`.

use serde_json::{Map, Value, json};

use crate::config_json::{ConfigJson, NetworkConfig};
use crate::error::Result;

/// The shape of an AutoencoderKL. Lists have one entry per level, from the full resolution down.
///
/// Source: diffusers `models/autoencoders/autoencoder_kl.py`, whose defaults hold where the file is silent.
#[derive(Debug, Clone)]
pub struct AutoencoderConfig {
    /// Channels of the images that the encoder takes.
    pub in_channels: usize,
    /// Channels of the images that the decoder gives.
    pub out_channels: usize,
    /// Channels at each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more per level.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of channels in every group norm.
    pub norm_num_groups: usize,
    /// Latents are multiplied by this before diffusion.
    pub scaling_factor: f64,
    /// This is subtracted from latents before they are multiplied by `scaling_factor`.
    pub shift_factor: f64,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Height and width of the images that it was trained on, in pixels: the size of a [tile](super::Tiling).
    pub sample_size: Option<usize>,
    /// Whether the lowest level has self-attention over pixels.
    pub mid_block_add_attention: bool,
    /// The file as it was read, written again with a tuned model.
    pub raw: Map<String, Value>,
}

impl NetworkConfig for AutoencoderConfig {
    fn from_json(mut json: ConfigJson) -> Result<Self> {
        let raw = json.raw();
        json.only("_class_name", &[json!("AutoencoderKL")])?;
        json.only("act_fn", &[json!("silu"), json!("swish")])?;
        json.only("latents_mean", &[Value::Null])?;
        json.only("latents_std", &[Value::Null])?;
        // `force_upcast` is a hint for half precision.
        json.inert(&["force_upcast"]);
        let block_out_channels: Vec<usize> = json.take("block_out_channels", vec![64])?;
        let levels = block_out_channels.len();
        for (field, block) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types: Vec<String> = json.take(field, vec![block.into()])?;
            if types.len() != levels || types.iter().any(|name| name != block) {
                return Err(json.error(format!("{field} = {types:?} is not supported, expected {levels} times {block}")));
            }
        }
        let config = Self {
            in_channels: json.take("in_channels", 3)?,
            out_channels: json.take("out_channels", 3)?,
            layers_per_block: json.take("layers_per_block", 1)?,
            latent_channels: json.take("latent_channels", 4)?,
            norm_num_groups: json.take("norm_num_groups", 32)?,
            scaling_factor: json.take("scaling_factor", 0.18215)?,
            shift_factor: json.take("shift_factor", 0.0)?,
            use_quant_conv: json.take("use_quant_conv", true)?,
            use_post_quant_conv: json.take("use_post_quant_conv", true)?,
            sample_size: json.take_size("sample_size")?.map(|[height, _]| height),
            mid_block_add_attention: json.take("mid_block_add_attention", true)?,
            block_out_channels,
            raw,
        };
        if config.norm_num_groups == 0 || config.block_out_channels.is_empty() || config.layers_per_block == 0 {
            return Err(json.error("norm_num_groups, layers_per_block and the number of blocks must be at least 1"));
        }
        if let Some(channels) = config.block_out_channels.iter().find(|channels| *channels % config.norm_num_groups != 0) {
            return Err(json.error(format!("block_out_channels {channels} is not divisible by norm_num_groups {}", config.norm_num_groups)));
        }
        if !(config.scaling_factor.is_finite() && config.scaling_factor != 0.0) {
            return Err(json.error(format!("scaling_factor = {}, expected a finite number other than 0", config.scaling_factor)));
        }
        json.finish()?;
        Ok(config)
    }
}

impl AutoencoderConfig {
    /// Image pixels per latent pixel, along each axis.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
