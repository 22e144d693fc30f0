//! UNet2DConditionModel: the denoiser of Stable Diffusion 1.x, 2.x and XL.
//!
//! Source: diffusers `models/unets/unet_2d_condition.py`, `models/unets/unet_2d_blocks.py`.

mod config;
pub mod embeddings;
mod stages;
pub mod transformer;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use regex::Regex;
use serde_json::{Map, Value};

use crate::blocks::resnet::{Downsample2D, ResnetBlock2D, ResnetOptions, Upsample2D};
use crate::denoiser::{AddedConditioning, Conditioning, Denoiser};
use crate::footprint::{Ledger, Traced};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::{Conv2d, GroupNorm};
use crate::number_format::{NumberFormat, in_format};
use crate::weights::LoadError;
use embeddings::{AddEmbedding, TextTimeEmbedding, TimeEmbedding, sinusoidal};
use stages::{TracedContext, TracedState};
use transformer::{Transformer2DModel, TransformerOptions};

pub use config::{Addition, TextTime, UNetConfig};
pub use stages::{Context, State, UNetStage};

/// One level on the way down, from high to low resolution.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
    downsamplers: Vec<Downsample2D>,
}

/// The blocks at the lowest resolution, between the way down and the way up.
#[derive(Module, Debug)]
pub struct UNetMidBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
}

/// One level on the way up, from low to high resolution.
#[derive(Module, Debug)]
pub struct UpBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
    upsamplers: Vec<Upsample2D>,
}

/// The denoiser of Stable Diffusion. Field names are diffusers' keys.
#[derive(Module, Debug)]
pub struct UNet2DConditionModel {
    time_embedding: TimeEmbedding,
    add_embedding: Option<AddEmbedding>,
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: UNetMidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// How much of each stage the tape keeps.
    #[module(skip)]
    pub gradient_checkpointing: GradientCheckpointing,
    /// The number format of the activations.
    #[module(skip)]
    format: NumberFormat,
    #[module(skip)]
    config: UNetConfig,
}

impl UNetConfig {
    /// A network of this shape, its weights not loaded yet.
    pub fn init(&self, device: &Device) -> UNet2DConditionModel {
        let (first, last) = (self.block_out_channels[0], self.block_out_channels.len() - 1);
        UNet2DConditionModel {
            time_embedding: TimeEmbedding::new(first, self.time_embedding_dim, device),
            add_embedding: self.addition.map(|addition| self.add_embedding(addition, device)),
            conv_in: Conv2d::same(self.in_channels, first, 3, device),
            down_blocks: (0..=last).map(|level| self.down_block(level, device)).collect(),
            mid_block: self.mid_block(device),
            up_blocks: (0..=last).map(|step| self.up_block(step, device)).collect(),
            conv_norm_out: GroupNorm::new(self.norm_num_groups, first, self.norm_eps, device),
            conv_out: Conv2d::same(first, self.out_channels, 3, device),
            gradient_checkpointing: GradientCheckpointing::None,
            format: NumberFormat::F32,
            config: self.clone(),
        }
    }

    fn add_embedding(&self, addition: Addition, device: &Device) -> AddEmbedding {
        let time = self.time_embedding_dim;
        match addition {
            Addition::Text { heads } => AddEmbedding::Text(TextTimeEmbedding::new(self.cross_attention_dim[0], time, heads, device)),
            Addition::TextTime(t) => AddEmbedding::TextTime(TimeEmbedding::new(t.projection_class_embeddings_input_dim, time, device)),
        }
    }

    fn resnet_options(&self, output_scale_factor: f64) -> ResnetOptions {
        ResnetOptions {
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            time_embedding_dim: Some(self.time_embedding_dim),
            output_scale_factor,
        }
    }

    fn transformer(&self, level: usize, device: &Device) -> Transformer2DModel {
        let options = TransformerOptions {
            channels: self.block_out_channels[level],
            heads: self.num_attention_heads[level],
            layers: self.transformer_layers_per_block[level],
            cross_attention_dim: self.cross_attention_dim[level],
            groups: self.norm_num_groups,
            use_linear_projection: self.use_linear_projection,
        };
        Transformer2DModel::new(options, device)
    }

    fn down_block(&self, level: usize, device: &Device) -> DownBlock {
        let channels = self.block_out_channels[level];
        let d_in = |layer| if layer > 0 { channels } else { self.block_out_channels[level.saturating_sub(1)] };
        let layers = self.layers_per_block[level];
        let attentions = if self.down_attention[level] { layers } else { 0 };
        let is_last = level + 1 == self.block_out_channels.len();
        DownBlock {
            resnets: (0..layers).map(|layer| ResnetBlock2D::new(d_in(layer), channels, self.resnet_options(1.0), device)).collect(),
            attentions: (0..attentions).map(|_| self.transformer(level, device)).collect(),
            downsamplers: if is_last { vec![] } else { vec![Downsample2D::symmetric(channels, device)] },
        }
    }

    fn mid_block(&self, device: &Device) -> UNetMidBlock {
        let lowest = self.block_out_channels.len() - 1;
        let channels = self.block_out_channels[lowest];
        let resnet = || ResnetBlock2D::new(channels, channels, self.resnet_options(self.mid_block_scale_factor), device);
        UNetMidBlock { resnets: vec![resnet(), resnet()], attentions: vec![self.transformer(lowest, device)] }
    }

    /// `step` counts from the lowest resolution.
    fn up_block(&self, step: usize, device: &Device) -> UpBlock {
        let lowest = self.block_out_channels.len() - 1;
        let level = lowest - step;
        let channels = self.block_out_channels[level];
        let from_below = self.block_out_channels[(level + 1).min(lowest)];
        let layers = self.layers_per_block[level] + 1;
        let resnet = |layer: usize| {
            let hidden = if layer == 0 { from_below } else { channels };
            // The last skip of a level was pushed before that level widened.
            let skip = if layer + 1 == layers { self.block_out_channels[level.saturating_sub(1)] } else { channels };
            ResnetBlock2D::new(hidden + skip, channels, self.resnet_options(1.0), device)
        };
        let attentions = if self.up_attention[step] { layers } else { 0 };
        UpBlock {
            resnets: (0..layers).map(resnet).collect(),
            attentions: (0..attentions).map(|_| self.transformer(level, device)).collect(),
            upsamplers: if level == 0 { vec![] } else { vec![Upsample2D::new(channels, device)] },
        }
    }
}

impl UNet2DConditionModel {
    /// The config this was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The same network with frozen weights and activations in `format`; parameters whose names (`unet.…`) match `exact` train and stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, format: NumberFormat, exact: Option<&Regex>) -> Result<Self, LoadError> {
        Ok(Self { format, ..in_format(self, Self::COMPONENT, format, exact)? })
    }

    /// The sinusoidal embedding of `values`, `[values.len(), dim]`.
    fn embed(&self, values: &[f32], dim: usize, device: &Device) -> Tensor<2> {
        sinusoidal(values, dim, self.config.flip_sin_to_cos, self.config.freq_shift, device)
    }

    /// The part of the time embedding that comes from the text and, in SDXL, from the sizes: `[b, time]`.
    fn embed_addition(&self, conditioning: &Conditioning) -> Option<Tensor<2>> {
        match (self.add_embedding.as_ref()?, self.config.addition, &conditioning.added) {
            (AddEmbedding::Text(pooled), ..) => Some(pooled.forward(conditioning.encoder_hidden_states.clone())),
            (
                AddEmbedding::TextTime(embedding),
                Some(Addition::TextTime(text_time)),
                Some(AddedConditioning { text_embeds, time_ids: Some(time_ids) }),
            ) => {
                let (b, dim) = (time_ids.len(), text_time.addition_time_embed_dim);
                let sizes = self.embed(time_ids.as_flattened(), dim, &conditioning.encoder_hidden_states.device()).reshape([b, 6 * dim]);
                Some(embedding.forward(Tensor::cat(vec![text_embeds.clone(), sizes], 1)))
            }
            (AddEmbedding::TextTime(_), ..) => panic!(
                "a UNet with addition_embed_type \"text_time\" (SDXL) needs pooled text embeddings and time ids; the conditioning lacks them"
            ),
        }
    }

    /// The time embedding `[b, time]`, with [`embed_addition`](Self::embed_addition) added to it.
    fn embed_time(&self, timesteps: &[f32], conditioning: &Conditioning) -> Tensor<2> {
        let device = conditioning.encoder_hidden_states.device();
        let time = self.time_embedding.forward(self.embed(timesteps, self.config.block_out_channels[0], &device));
        match self.embed_addition(conditioning) {
            Some(addition) => time + addition,
            None => time,
        }
    }
}

impl UNet2DConditionModel {
    /// The context that the stages share, and the state before the first of them. The time is embedded in f32.
    fn begin(&self, sample: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> (Context, State) {
        let context = Context {
            time: self.embed_time(timesteps, conditioning).cast(self.format.dtype()),
            encoder_hidden_states: conditioning.encoder_hidden_states.clone().cast(self.format.dtype()),
            gradient_checkpointing: self.gradient_checkpointing,
        };
        let sample = if self.config.center_input_sample { sample * 2.0 - 1.0 } else { sample };
        (context, State { hidden: sample.cast(self.format.dtype()), skips: Vec::new() })
    }
}

impl UNet2DConditionModel {
    /// [`forward`](Denoiser::forward) of shapes, with weights and activations in `format`: latents `[b, c, h, w]` and text embeddings
    /// `[b, tokens, cross_attention_dim]`. The embeddings of times and sizes, one vector per image, are left out.
    pub fn trace(&self, ledger: &Ledger, sample: Traced, text: Traced, format: NumberFormat) -> Traced {
        let context = TracedContext {
            time: ledger.constant(&[sample.dims()[0], self.config.time_embedding_dim], format),
            encoder_hidden_states: ledger.cast(text, format),
            gradient_checkpointing: self.gradient_checkpointing,
            format,
        };
        let state = TracedState { hidden: ledger.cast(sample, format), skips: Vec::new() };
        let hidden = self.stages().into_iter().fold(state, |state, (_, stage)| stage.trace(ledger, state, &context)).hidden;
        ledger.cast(hidden, NumberFormat::F32)
    }
}

impl Denoiser for UNet2DConditionModel {
    const COMPONENT: &'static str = "unet";

    fn config_json(&self) -> Map<String, Value> {
        self.config.raw.clone()
    }

    fn forward(&self, sample: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> Tensor<4> {
        let (context, state) = self.begin(sample, timesteps, conditioning);
        self.stages().into_iter().fold(state, |state, (_, stage)| stage.forward(state, &context)).hidden.cast(DType::F32)
    }

    fn first_non_finite(&self, sample: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> Option<String> {
        let finite = |tensor: Tensor<1>| tensor.cast(DType::F32).sum().into_scalar::<f32>().is_finite();
        let (context, mut state) = self.begin(sample, timesteps, conditioning);
        if !finite(context.time.clone().without_autodiff().flatten(0, 1)) {
            let of_addition = self.embed_addition(conditioning).is_some_and(|added| !finite(added.without_autodiff().flatten(0, 1)));
            return Some(if of_addition { "add_embedding" } else { "time_embedding" }.into());
        }
        for (name, stage) in self.stages() {
            state = stage.forward(state, &context);
            if !finite(state.hidden.clone().without_autodiff().flatten(0, 3)) {
                return Some(name);
            }
        }
        None
    }
}
