//! AutoencoderKL: images to latents and back.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py`, `models/autoencoders/vae.py`.

mod config;
mod stages;
mod tiles;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use regex::Regex;

use crate::blocks::attention::Attention;
use crate::blocks::resnet::{Downsample2D, ResnetBlock2D, ResnetOptions, Upsample2D};
use crate::footprint::{Ledger, Traced};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::{Conv2d, GroupNorm};
use crate::number_format::{NumberFormat, in_format};
use crate::weights::{LoadError, Weights};
use tiles::Tiles;

pub use config::AutoencoderConfig;
pub use stages::VaeStage;
pub use tiles::{Splitting, Tiling};

/// Epsilon of every norm of the autoencoder.
const EPS: f64 = 1e-6;

/// One level of the encoder: residual blocks, then a reduction except at the lowest.
#[derive(Module, Debug)]
pub struct DownEncoderBlock {
    resnets: Vec<ResnetBlock2D>,
    downsamplers: Vec<Downsample2D>,
}

/// The middle of the encoder or the decoder.
#[derive(Module, Debug)]
pub struct VaeMidBlock {
    attentions: Vec<Attention>,
    resnets: Vec<ResnetBlock2D>,
}

/// One level of the decoder: residual blocks, then an upsampling except at the last.
#[derive(Module, Debug)]
pub struct UpDecoderBlock {
    resnets: Vec<ResnetBlock2D>,
    upsamplers: Vec<Upsample2D>,
}

/// The half that turns images into moments.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock>,
    mid_block: VaeMidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The half that turns latents into images.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: VaeMidBlock,
    up_blocks: Vec<UpDecoderBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The autoencoder of latent diffusion. Field names are diffusers' keys.
#[derive(Module, Debug)]
pub struct AutoencoderKL {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    /// How much of each stage the tape keeps.
    #[module(skip)]
    pub gradient_checkpointing: GradientCheckpointing,
    /// The parts in which images and latents are taken.
    #[module(skip)]
    pub splitting: Splitting,
    /// The number format of the activations.
    #[module(skip)]
    format: NumberFormat,
    #[module(skip)]
    config: AutoencoderConfig,
}

/// The encoder's Gaussian, `[b, latent_channels, h, w]` each, unscaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// The mean of each latent.
    pub mean: Tensor<4>,
    /// The logarithm of the variance of each latent, clamped to [−30, 20] as the reference does.
    pub logvar: Tensor<4>,
}

impl Posterior {
    /// Draws latents, `mean + std · noise`, from standard normal noise of the same shape.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.logvar.clone() * 0.5).exp() * noise
    }

    /// KL(N(mean, std²) ‖ N(0, 1)) of each image, summed over its latents, `[b]`.
    ///
    /// Source: diffusers `models/autoencoders/vae.py`, `DiagonalGaussianDistribution.kl`.
    pub fn kl(&self) -> Tensor<1> {
        let [batch, ..] = self.mean.dims();
        let terms = self.mean.clone().square() + self.logvar.clone().exp() - self.logvar.clone() - 1.0;
        (terms.sum_dims(&[1, 2, 3]) * 0.5).reshape([batch])
    }
}

impl AutoencoderConfig {
    /// A network of this shape, its weights not loaded yet.
    pub fn init(&self, device: &Device) -> AutoencoderKL {
        let (channels, latent) = (&self.block_out_channels, self.latent_channels);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let norm_out = || GroupNorm::new(self.norm_num_groups, first, EPS, device);
        let encoder = Encoder {
            conv_in: Conv2d::same(self.in_channels, first, 3, device),
            down_blocks: (0..channels.len()).map(|level| self.down_block(level, device)).collect(),
            mid_block: self.mid_block(last, device),
            conv_norm_out: GroupNorm::new(self.norm_num_groups, last, EPS, device),
            conv_out: Conv2d::same(last, 2 * latent, 3, device),
        };
        let decoder = Decoder {
            conv_in: Conv2d::same(latent, last, 3, device),
            mid_block: self.mid_block(last, device),
            up_blocks: (0..channels.len()).rev().map(|level| self.up_block(level, device)).collect(),
            conv_norm_out: norm_out(),
            conv_out: Conv2d::same(first, self.out_channels, 3, device),
        };
        AutoencoderKL {
            encoder,
            decoder,
            quant_conv: self.use_quant_conv.then(|| Conv2d::same(2 * latent, 2 * latent, 1, device)),
            post_quant_conv: self.use_post_quant_conv.then(|| Conv2d::same(latent, latent, 1, device)),
            gradient_checkpointing: GradientCheckpointing::None,
            splitting: Splitting::default(),
            format: NumberFormat::F32,
            config: self.clone(),
        }
    }

    fn resnet(&self, d_in: usize, d_out: usize, device: &Device) -> ResnetBlock2D {
        let options = ResnetOptions { groups: self.norm_num_groups, eps: EPS, time_embedding_dim: None, output_scale_factor: 1.0 };
        ResnetBlock2D::new(d_in, d_out, options, device)
    }

    fn down_block(&self, level: usize, device: &Device) -> DownEncoderBlock {
        let (channels, above) = (self.block_out_channels[level], self.block_out_channels[level.saturating_sub(1)]);
        let resnet = |layer| self.resnet(if layer == 0 { above } else { channels }, channels, device);
        let is_last = level + 1 == self.block_out_channels.len();
        DownEncoderBlock {
            resnets: (0..self.layers_per_block).map(resnet).collect(),
            downsamplers: if is_last { vec![] } else { vec![Downsample2D::asymmetric(channels, device)] },
        }
    }

    fn mid_block(&self, channels: usize, device: &Device) -> VaeMidBlock {
        let attention = self.mid_block_add_attention.then(|| Attention::over_pixels(channels, self.norm_num_groups, EPS, device));
        VaeMidBlock {
            attentions: attention.into_iter().collect(),
            resnets: (0..2).map(|_| self.resnet(channels, channels, device)).collect(),
        }
    }

    fn up_block(&self, level: usize, device: &Device) -> UpDecoderBlock {
        let channels = self.block_out_channels[level];
        let below = self.block_out_channels[(level + 1).min(self.block_out_channels.len() - 1)];
        let resnet = |layer| self.resnet(if layer == 0 { below } else { channels }, channels, device);
        UpDecoderBlock {
            resnets: (0..=self.layers_per_block).map(resnet).collect(),
            upsamplers: if level == 0 { vec![] } else { vec![Upsample2D::new(channels, device)] },
        }
    }
}

/// Renames published tensors to today's names. Files from before 2023 call the attention's layers `query`, `key`, `value` and
/// `proj_attn`, and some hold 1×1 kernels instead of matrices.
pub fn rename_published(weights: &mut Weights) {
    const OLD: [(&str, &str); 4] = [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    weights.rename(|name| {
        if !name.contains(".mid_block.attentions.") {
            return name.into();
        }
        OLD.iter().fold(name.to_string(), |name, (old, new)| name.replace(old, new))
    });
    for half in ["encoder", "decoder"] {
        for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
            weights.squeeze(&format!("{half}.mid_block.attentions.0.{projection}.weight"));
        }
    }
}

impl VaeMidBlock {
    fn stages(&self) -> impl Iterator<Item = VaeStage<'_>> {
        let (before, after) = self.resnets.split_at(1);
        before.iter().map(VaeStage::Resnet).chain(self.attentions.iter().map(VaeStage::Attention)).chain(after.iter().map(VaeStage::Resnet))
    }
}

impl AutoencoderKL {
    /// The config this was built from.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// The same autoencoder with weights and activations in `format`; parameters whose names (`vae.…`) match `exact` stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, format: NumberFormat, exact: Option<&Regex>) -> Result<Self, LoadError> {
        Ok(Self { format, ..in_format(self, "vae", format, exact)? })
    }

    /// The stages one after the other, in the autoencoder's number format.
    fn fold(&self, stages: &[VaeStage<'_>], x: Tensor<4>) -> Tensor<4> {
        stages.iter().fold(x.cast(self.format.dtype()), |x, stage| stage.forward(x, self.gradient_checkpointing)).cast(DType::F32)
    }

    /// The same autoencoder with another factor by which latents are multiplied before diffusion.
    pub fn with_scaling_factor(mut self, factor: f64) -> Self {
        self.config.scaling_factor = factor;
        self.config.raw.insert("scaling_factor".into(), factor.into());
        self
    }

    /// The encoder's stages in order, from image to moments.
    pub fn encoder_stages(&self) -> Vec<VaeStage<'_>> {
        let mut stages = vec![VaeStage::Conv(&self.encoder.conv_in)];
        for block in &self.encoder.down_blocks {
            stages.extend(block.resnets.iter().map(VaeStage::Resnet));
            stages.extend(block.downsamplers.iter().map(VaeStage::Downsample));
        }
        stages.extend(self.encoder.mid_block.stages());
        stages.push(VaeStage::Out(&self.encoder.conv_norm_out, &self.encoder.conv_out));
        stages.extend(self.quant_conv.iter().map(VaeStage::Conv));
        stages
    }

    /// The decoder's stages in order, from latents to image.
    pub fn decoder_stages(&self) -> Vec<VaeStage<'_>> {
        let mut stages: Vec<_> = self.post_quant_conv.iter().map(VaeStage::Conv).collect();
        stages.push(VaeStage::Conv(&self.decoder.conv_in));
        stages.extend(self.decoder.mid_block.stages());
        for block in &self.decoder.up_blocks {
            stages.extend(block.resnets.iter().map(VaeStage::Resnet));
            stages.extend(block.upsamplers.iter().map(VaeStage::Upsample));
        }
        stages.push(VaeStage::Out(&self.decoder.conv_norm_out, &self.decoder.conv_out));
        stages
    }

    /// The encoder's raw moments, mean and log-variance stacked: `[b, 3, h, w]` in [−1, 1] → `[b, 2·latent, h/f, w/f]`.
    pub fn moments(&self, images: Tensor<4>) -> Tensor<4> {
        let tiles = self.splitting.tiling.pixels(&self.config).map(|pixels| Tiles::of_images(pixels, self.config.downscale()));
        self.splitting.run(images, tiles, |images| self.fold(&self.encoder_stages(), images))
    }

    /// `[b, 3, h, w]` in [−1, 1] → the Gaussian of unscaled latents.
    pub fn encode(&self, images: Tensor<4>) -> Posterior {
        let moments = self.moments(images);
        let latent = self.config.latent_channels;
        Posterior { mean: moments.clone().narrow(1, 0, latent), logvar: moments.narrow(1, latent, latent).clamp(-30.0, 20.0) }
    }

    /// Unscaled latents `[b, latent, h, w]` → `[b, 3, f·h, f·w]`, around [−1, 1].
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let tiles = self.splitting.tiling.pixels(&self.config).map(|pixels| Tiles::of_latents(pixels, self.config.downscale()));
        self.splitting.run(latents, tiles, |latents| self.fold(&self.decoder_stages(), latents))
    }

    /// Diffusion's latents to images in [0, 1]: unscale, decode, `(x / 2 + 0.5)` clamped.
    pub fn decode_to_images(&self, latents: Tensor<4>) -> Tensor<4> {
        let unscaled = latents / self.config.scaling_factor + self.config.shift_factor;
        (self.decode(unscaled) / 2.0 + 0.5).clamp(0.0, 1.0)
    }

    fn trace_stages(&self, ledger: &Ledger, stages: &[VaeStage<'_>], x: Traced, format: NumberFormat) -> Traced {
        let x = ledger.cast(x, format);
        let y = stages.iter().fold(x, |x, stage| stage.trace(ledger, x, self.gradient_checkpointing, format));
        ledger.cast(y, NumberFormat::F32)
    }

    /// [`decode_to_images`](Self::decode_to_images) of shapes, with weights and activations in `format`: latents `[b, latent, h, w]`.
    pub fn trace_decode(&self, ledger: &Ledger, latents: Traced, format: NumberFormat) -> Traced {
        let tiles = self.splitting.tiling.pixels(&self.config).map(|pixels| Tiles::of_latents(pixels, self.config.downscale()));
        let factor = self.config.downscale();
        let latents = ledger.scale(latents);
        let decode = |latents| self.trace_stages(ledger, &self.decoder_stages(), latents, format);
        let images = self.splitting.trace(ledger, latents, tiles, (self.config.out_channels, factor, 1), decode);
        ledger.clamped(ledger.scale(images))
    }

    /// [`moments`](Self::moments) of shapes: images `[b, 3, h, w]`.
    pub fn trace_moments(&self, ledger: &Ledger, images: Traced, format: NumberFormat) -> Traced {
        let tiles = self.splitting.tiling.pixels(&self.config).map(|pixels| Tiles::of_images(pixels, self.config.downscale()));
        let encode = |images| self.trace_stages(ledger, &self.encoder_stages(), images, format);
        self.splitting.trace(ledger, images, tiles, (2 * self.config.latent_channels, 1, self.config.downscale()), encode)
    }

    /// Scales the autoencoder's latents to those of diffusion.
    pub fn scale(&self, latents: Tensor<4>) -> Tensor<4> {
        (latents - self.config.shift_factor) * self.config.scaling_factor
    }
}
