//! Embeddings of time, of sizes, and of a whole text.
//!
//! Source: diffusers `models/embeddings.py`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::layers::{LayerNorm, Linear, Mask, attention, parameter};

/// Sinusoidal embedding of `values`: `[values.len(), dim]`, computed on the host in f64.
///
/// Half the channels are sines, half cosines, of `value · 10000^(−i / (dim/2 − freq_shift))`; cosines first when
/// `flip_sin_to_cos`. An odd `dim` ends with a zero.
pub fn sinusoidal(values: &[f32], dim: usize, flip_sin_to_cos: bool, freq_shift: f64, device: &Device) -> Tensor<2> {
    let half = dim / 2;
    let mut data = Vec::with_capacity(values.len() * dim);
    for value in values {
        let angle = |i: usize| f64::from(*value) * (-(10000f64.ln()) * i as f64 / (half as f64 - freq_shift)).exp();
        let sines = (0..half).map(|i| angle(i).sin() as f32);
        let cosines = (0..half).map(|i| angle(i).cos() as f32);
        if flip_sin_to_cos {
            data.extend(cosines.chain(sines));
        } else {
            data.extend(sines.chain(cosines));
        }
        data.extend(std::iter::repeat_n(0.0, dim - 2 * half));
    }
    Tensor::from_data(TensorData::new(data, [values.len(), dim]), device)
}

/// Linear, SiLU, linear.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    /// Two layers, from `d_in` to `d_out` and from `d_out` to `d_out`.
    pub fn new(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { linear_1: Linear::new(d_in, d_out, device), linear_2: Linear::new(d_out, d_out, device) }
    }

    /// `[b, d_in]` → `[b, d_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(vp_ops::silu(self.linear_1.forward(x)))
    }
}

/// The network whose output is added to the time embedding. Both kinds have the key `add_embedding` in a checkpoint.
// A network has only one of these: a box would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum AddEmbedding {
    /// `addition_embed_type = "text"`: embeds the text.
    Text(TextTimeEmbedding),
    /// `addition_embed_type = "text_time"`: embeds SDXL's pooled text and sizes.
    TextTime(TimeEmbedding),
}

/// A whole text as one vector beside the time embedding: pooled by attention between two norms.
#[derive(Module, Debug)]
pub struct TextTimeEmbedding {
    norm1: LayerNorm,
    pool: AttentionPooling,
    proj: Linear,
    norm2: LayerNorm,
}

impl TextTimeEmbedding {
    /// From text embeddings of width `d_text` to `d_out`, pooled by `heads` heads.
    pub fn new(d_text: usize, d_out: usize, heads: usize, device: &Device) -> Self {
        Self {
            norm1: LayerNorm::new(d_text, 1e-5, device),
            pool: AttentionPooling::new(d_text, heads, device),
            proj: Linear::new(d_text, d_out, device),
            norm2: LayerNorm::new(d_out, 1e-5, device),
        }
    }

    /// `[b, tokens, d_text]` → `[b, d_out]`.
    pub fn forward(&self, text: Tensor<3>) -> Tensor<2> {
        self.norm2.forward(self.proj.forward(self.pool.forward(self.norm1.forward(text)))).squeeze_dim(1)
    }
}

/// Attention of one query, the mean token and a learned vector, over itself and all tokens. No projection of the output.
///
/// Source: DeepFloyd IF's `AttentionPooling`, as diffusers has it.
#[derive(Module, Debug)]
pub struct AttentionPooling {
    /// `[1, d]`.
    positional_embedding: Param<Tensor<2>>,
    k_proj: Linear,
    q_proj: Linear,
    v_proj: Linear,
    #[module(skip)]
    heads: usize,
}

impl AttentionPooling {
    /// Over tokens of width `d`, which `heads` divides.
    pub fn new(d: usize, heads: usize, device: &Device) -> Self {
        let linear = || Linear::new(d, d, device);
        Self { positional_embedding: parameter([1, d], 0.0, device), k_proj: linear(), q_proj: linear(), v_proj: linear(), heads }
    }

    /// `[b, tokens, d]` → `[b, 1, d]`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let position = self.positional_embedding.val().cast(tokens.dtype());
        let class_token = tokens.clone().mean_dim(1) + position.unsqueeze();
        let all = Tensor::cat(vec![class_token.clone(), tokens], 1);
        let (q, k, v) = (self.q_proj.forward(class_token), self.k_proj.forward(all.clone()), self.v_proj.forward(all));
        attention(q, k, v, self.heads, Mask::None)
    }
}
