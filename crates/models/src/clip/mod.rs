//! CLIP: its text encoder alone, and [the whole model](ClipModel).
//!
//! Source: transformers `models/clip/modeling_clip.py`.

mod config;
mod dual;
mod files;
mod image_encoder;
mod open_clip;

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use regex::Regex;

use crate::footprint::{Ledger, Traced};
use crate::layers::{Activation, Embedding, LayerNorm, Linear, Mask, attention};
use crate::number_format::{NumberFormat, in_format};
use crate::weights::{LoadError, Weights};

pub use config::ClipTextConfig;
pub use dual::{ClipCheckpoint, ClipConfig, ClipModel, ClipVisionConfig, ClipVisionEmbeddings, ClipVisionModel, is_clip};
pub use files::{ClipNames, ClipSource, without_prefix};
pub use image_encoder::ClipImageEncoder;
pub use open_clip::{OpenClipDefaults, is_open_clip};

/// Token and position embeddings.
#[derive(Module, Debug)]
pub struct ClipEmbeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

/// Multi-head attention with biases.
#[derive(Module, Debug)]
pub struct ClipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

impl ClipAttention {
    /// Attention of width `d`, divided among `heads` heads.
    pub fn new(d: usize, heads: usize, device: &Device) -> Self {
        let linear = || Linear::new(d, d, device);
        Self { q_proj: linear(), k_proj: linear(), v_proj: linear(), out_proj: linear(), heads }
    }

    /// `[b, tokens, d]` → `[b, tokens, d]`.
    pub fn forward(&self, x: Tensor<3>, mask: Mask<'_>) -> Tensor<3> {
        let (q, k, v) = (self.q_proj.forward(x.clone()), self.k_proj.forward(x.clone()), self.v_proj.forward(x));
        self.out_proj.forward(attention(q, k, v, self.heads, mask))
    }

    fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let q = self.q_proj.trace(ledger, x.clone(), format);
        let k = self.k_proj.trace(ledger, x.clone(), format);
        let v = self.v_proj.trace(ledger, x, format);
        self.out_proj.trace(ledger, ledger.attention([q, k, v], self.heads), format)
    }
}

/// Two linear layers around an activation.
#[derive(Module, Debug)]
pub struct ClipMlp {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

/// A pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct ClipEncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: ClipAttention,
    layer_norm2: LayerNorm,
    mlp: ClipMlp,
}

impl ClipEncoderLayer {
    /// A layer of width `d`, with `d_inner` channels inside its MLP.
    pub fn new(d: usize, d_inner: usize, heads: usize, activation: Activation, eps: f64, device: &Device) -> Self {
        Self {
            layer_norm1: LayerNorm::new(d, eps, device),
            self_attn: ClipAttention::new(d, heads, device),
            layer_norm2: LayerNorm::new(d, eps, device),
            mlp: ClipMlp { fc1: Linear::new(d, d_inner, device), fc2: Linear::new(d_inner, d, device), activation },
        }
    }

    /// `[b, tokens, d]` → `[b, tokens, d]`.
    pub fn forward(&self, x: Tensor<3>, mask: Mask<'_>) -> Tensor<3> {
        let x = self.self_attn.forward(self.layer_norm1.forward(x.clone()), mask) + x;
        let inner = self.mlp.activation.forward(self.mlp.fc1.forward(self.layer_norm2.forward(x.clone())));
        self.mlp.fc2.forward(inner) + x
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let normed = self.layer_norm1.trace(ledger, x.clone(), format);
        let x = ledger.add(self.self_attn.trace(ledger, normed, format), x);
        let normed = self.layer_norm2.trace(ledger, x.clone(), format);
        let inner = ledger.activation(self.mlp.fc1.trace(ledger, normed, format));
        ledger.add(self.mlp.fc2.trace(ledger, inner, format), x)
    }
}

/// The transformer layers, in order.
#[derive(Module, Debug)]
pub struct ClipEncoder {
    layers: Vec<ClipEncoderLayer>,
}

/// CLIP's text encoder; with a projection, `CLIPTextModelWithProjection`. Field names are transformers' keys, less the prefix
/// `text_model.` that published files carry.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    embeddings: ClipEmbeddings,
    encoder: ClipEncoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    /// The number format of the activations.
    #[module(skip)]
    format: NumberFormat,
    #[module(skip)]
    config: ClipTextConfig,
}

/// The output of the text encoder.
#[derive(Debug, Clone)]
pub struct ClipTextOutput {
    /// The last layer after the final norm, `[b, tokens, d]`.
    pub last_hidden_state: Tensor<3>,
    /// The last layer but one, no norm (`hidden_states[-2]`), `[b, tokens, d]`.
    pub penultimate: Tensor<3>,
    /// The last hidden state at the end-of-text token, `[b, d]`.
    pub pooled: Tensor<2>,
    /// The projected pooled state, `[b, projection_dim]`, if the model has a projection.
    pub text_embeds: Option<Tensor<2>>,
}

impl ClipTextConfig {
    /// A network of this shape, its weights not loaded yet.
    pub fn init(&self, device: &Device) -> ClipTextModel {
        let d = self.hidden_size;
        let layer =
            || ClipEncoderLayer::new(d, self.intermediate_size, self.num_attention_heads, self.hidden_act, self.layer_norm_eps, device);
        ClipTextModel {
            embeddings: ClipEmbeddings {
                token_embedding: Embedding::new(self.vocab_size, d, device),
                position_embedding: Embedding::new(self.max_position_embeddings, d, device),
            },
            encoder: ClipEncoder { layers: (0..self.num_hidden_layers).map(|_| layer()).collect() },
            final_layer_norm: LayerNorm::new(d, self.layer_norm_eps, device),
            text_projection: self.with_projection.then(|| Linear::without_bias(d, self.projection_dim, device)),
            format: NumberFormat::F32,
            config: self.clone(),
        }
    }
}

/// Renames published tensors to the names used here, and drops the buffer that nobody reads.
pub fn rename_published(weights: &mut Weights) {
    weights.rename(|name| name.strip_prefix("text_model.").unwrap_or(name).into());
    weights.ignore(&["embeddings.position_ids"]);
}

/// The name under which a parameter is published, the inverse of [`rename_published`].
pub fn published_name(name: &str) -> String {
    if name.starts_with("text_projection.") { name.into() } else { format!("text_model.{name}") }
}

impl ClipTextModel {
    /// The config this was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The same encoder with frozen weights and activations in `format`; parameters whose names (`component.…`) match `exact` train and
    /// stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, component: &str, format: NumberFormat, exact: Option<&Regex>) -> Result<Self, LoadError> {
        Ok(Self { format, ..in_format(self, component, format, exact)? })
    }

    /// The number format of the activations.
    pub fn format(&self) -> NumberFormat {
        self.format
    }

    /// [`forward`](Self::forward) of shapes, with weights and activations in `format`: rows of `max_position_embeddings` tokens.
    pub fn trace(&self, ledger: &Ledger, rows: usize, format: NumberFormat) -> Traced {
        let embedded = ledger.constant(&[rows, self.config.max_position_embeddings, self.config.hidden_size], format);
        let last = self.encoder.layers.iter().fold(embedded, |x, layer| layer.trace(ledger, x, format));
        ledger.cast(self.final_layer_norm.trace(ledger, last, format), NumberFormat::F32)
    }

    /// Encodes rows of token ids of equal length.
    ///
    /// # Panics
    /// When a row is longer than `max_position_embeddings`.
    pub fn forward(&self, ids: &[Vec<u32>], device: &Device) -> ClipTextOutput {
        let (b, tokens) = (ids.len(), ids[0].len());
        let flat: Vec<i64> = ids.iter().flatten().map(|id| i64::from(*id)).collect();
        let input = Tensor::<2, Int>::from_data(TensorData::new(flat, [b, tokens]), device);
        let format = self.format.dtype();
        let token = self.embeddings.token_embedding.forward(input).cast(format);
        let embedded = token + self.embeddings.position_embedding.first(tokens).cast(format);
        let (last, rest) = self.encoder.layers.split_last().expect("config checks num_hidden_layers >= 1");
        let penultimate = rest.iter().fold(embedded, |x, layer| layer.forward(x, Mask::Causal));
        let last_hidden_state = self.final_layer_norm.forward(last.forward(penultimate.clone(), Mask::Causal));
        let [penultimate, last_hidden_state] = [penultimate, last_hidden_state].map(|states| states.cast(DType::F32));
        let ends = ids.iter().enumerate().map(|(row, ids)| {
            let end = self.config.end_of_text(ids);
            last_hidden_state.clone().slice([row..row + 1, end..end + 1]).reshape([1, self.config.hidden_size])
        });
        let pooled = Tensor::cat(ends.collect(), 0);
        let text_embeds = self.text_projection.as_ref().map(|projection| projection.forward(pooled.clone()));
        ClipTextOutput { last_hidden_state, penultimate, pooled, text_embeds }
    }
}
