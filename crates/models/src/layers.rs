//! The layers that every network here is made of.
//!
//! Fields are named as PyTorch names them and tensors keep PyTorch's layout (`Linear.weight` is `[out, in]`), so that the path
//! of a parameter in a module *is* its key in a published checkpoint and its bytes need no transposition, in or out.

use burn::module::{Module, Param, ParamId};
use burn::tensor::activation::{gelu, sigmoid, silu, softmax};
use burn::tensor::module::{conv2d, embedding, layer_norm};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::lora::LowRank;

/// A parameter that is filled with one value until weights are loaded or [initialised](crate::parameters::initialize).
/// Lazy, so that loading allocates once.
pub fn parameter<const D: usize>(shape: [usize; D], fill: f32, device: &Device) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad| Tensor::full(shape, fill, device).set_require_grad(require_grad);
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

/// `y = x Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// A layer with a bias.
    pub fn new(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { bias: Some(parameter([d_out], 0.0, device)), ..Self::without_bias(d_in, d_out, device) }
    }

    /// A layer without a bias.
    pub fn without_bias(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { weight: parameter([d_out, d_in], 0.0, device), bias: None }
    }

    /// `[.., in]` → `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let bias = self.bias.as_ref().map(Param::val);
        match self.weight.reparameterization::<LowRank>() {
            None => matmul_transposed(x, self.weight.val(), bias),
            Some(factors) => matmul_transposed(x.clone(), self.weight.base(), bias) + low_rank(x, factors),
        }
    }
}

/// `(α/r) B A x` over the last axis.
fn low_rank<const D: usize>(x: Tensor<D>, factors: &LowRank) -> Tensor<D> {
    matmul_transposed(matmul_transposed(x, factors.down.val(), None), factors.up.val(), None) * factors.scale
}

/// `x Wᵀ + b` over the last axis, as one product whatever the rank of `x`.
fn matmul_transposed<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let mut dims = x.dims();
    let [d_out, d_in] = weight.dims();
    let rows = dims[..D - 1].iter().product();
    let y = x.reshape([rows, d_in]).matmul(weight.transpose());
    dims[D - 1] = d_out;
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
    .reshape(dims)
}

/// A 2-D convolution.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, k, k]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    stride: usize,
    /// (top, left) and (bottom, right), as one number each.
    #[module(skip)]
    padding: (usize, usize),
}

impl Conv2d {
    /// A `k`×`k` convolution that keeps the size: stride 1, padding `k / 2`.
    pub fn same(d_in: usize, d_out: usize, k: usize, device: &Device) -> Self {
        Self::strided(d_in, d_out, k, 1, (k / 2, k / 2), device)
    }

    /// A convolution with a stride and its own padding: (top and left, bottom and right).
    pub fn strided(d_in: usize, d_out: usize, k: usize, stride: usize, padding: (usize, usize), device: &Device) -> Self {
        Self { weight: parameter([d_out, d_in, k, k], 0.0, device), bias: Some(parameter([d_out], 0.0, device)), stride, padding }
    }

    /// `[b, in, h, w]` → `[b, out, h', w']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions { stride: [self.stride; 2], padding: [self.padding; 2], dilation: [1, 1], groups: 1 };
        let bias = self.bias.as_ref().map(Param::val);
        let Some(factors) = self.weight.reparameterization::<LowRank>() else { return conv2d(x, self.weight.val(), bias, options) };
        let [d_out, d_in, k, _] = self.weight.dims();
        let rank = factors.down.dims()[0];
        let down = factors.down.val().reshape([rank, d_in, k, k]);
        let up = factors.up.val().reshape([d_out, rank, 1, 1]);
        let pointwise = ConvOptions { stride: [1, 1], padding: [(0, 0); 2], dilation: [1, 1], groups: 1 };
        let low_rank = conv2d(conv2d(x.clone(), down, None, options.clone()), up, None, pointwise);
        conv2d(x, self.weight.base(), bias, options) + low_rank * factors.scale
    }

    /// A 1×1 convolution as the matrix product it is: `[b, tokens, in]` → `[b, tokens, out]`.
    pub fn forward_tokens(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [d_out, d_in, ..] = self.weight.dims();
        let (bias, base) = (self.bias.as_ref().map(Param::val), self.weight.base().reshape([d_out, d_in]));
        match self.weight.reparameterization::<LowRank>() {
            None => matmul_transposed(tokens, base, bias),
            Some(factors) => matmul_transposed(tokens.clone(), base, bias) + low_rank(tokens, factors),
        }
    }
}

/// Group normalisation with an affine map per channel.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    eps: f64,
}

impl GroupNorm {
    /// # Panics
    /// When `groups` does not divide `channels`; configs are checked before this is called.
    pub fn new(groups: usize, channels: usize, eps: f64, device: &Device) -> Self {
        assert_eq!(channels % groups, 0, "{channels} channels in {groups} groups");
        Self { weight: parameter([channels], 1.0, device), bias: parameter([channels], 0.0, device), groups, eps }
    }

    /// `[b, channels, h, w]`, normalised over each group of channels and all pixels.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let x = x.reshape([b, self.groups, c / self.groups * h * w]);
        let x = x.clone() - x.mean_dim(2);
        let variance = x.clone().square().mean_dim(2);
        let x = (x / (variance + self.eps).sqrt()).reshape([b, c, h, w]);
        x * self.weight.val().reshape([1, c, 1, 1]) + self.bias.val().reshape([1, c, 1, 1])
    }

    /// The norm followed by SiLU, the pair that residual blocks are made of.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        silu(self.forward(x))
    }
}

/// Layer normalisation over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// A norm over `channels` values.
    pub fn new(channels: usize, eps: f64, device: &Device) -> Self {
        Self { weight: parameter([channels], 1.0, device), bias: parameter([channels], 0.0, device), eps }
    }

    /// `[b, tokens, channels]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        layer_norm(x, self.weight.val(), Some(self.bias.val()), self.eps)
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[entries, channels]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// A table of `entries` vectors.
    pub fn new(entries: usize, channels: usize, device: &Device) -> Self {
        Self { weight: parameter([entries, channels], 0.0, device) }
    }

    /// `[b, tokens]` → `[b, tokens, channels]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.weight.val(), ids)
    }

    /// The first `count` rows, `[1, count, channels]`: position embeddings.
    pub fn first(&self, count: usize) -> Tensor<3> {
        self.weight.val().narrow(0, 0, count).unsqueeze()
    }
}

/// The activations that published text and image encoders name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x σ(1.702 x)`, OpenAI CLIP's.
    QuickGelu,
    /// The exact GELU, with erf.
    Gelu,
}

impl Activation {
    /// Elementwise.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Self::Gelu => gelu(x),
        }
    }
}

/// What is added to the scores before the softmax.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every query sees every key.
    None,
    /// A query sees the keys at or before its own place.
    Causal,
    /// `[b, 1, 1, keys]`, added to the scores of every query (BERT's −10000 on padding).
    Additive(&'a Tensor<4>),
}

/// Scaled dot-product attention over `heads` heads: `softmax(QKᵗ/√d + mask) V`.
///
/// # Shapes
/// `q` `[b, queries, heads·d]`, `k` and `v` `[b, keys, heads·d]` → `[b, queries, heads·d]`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask<'_>) -> Tensor<3> {
    let [b, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let split = |x: Tensor<3>, tokens| x.reshape([b, tokens, heads, channels / heads]).swap_dims(1, 2);
    let (q, k, v) = (split(q, queries), split(k, keys), split(v, keys));
    let scale = ((channels / heads) as f64).powf(-0.5);
    let scores = (q * scale).matmul(k.transpose());
    let scores = match mask {
        Mask::None => scores,
        Mask::Causal => {
            let future = Tensor::<2, burn::tensor::Bool>::tril_mask([queries, keys], 0, &scores.device());
            scores.mask_fill(future.reshape([1, 1, queries, keys]), f32::NEG_INFINITY)
        }
        Mask::Additive(mask) => scores + mask.clone(),
    };
    softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([b, queries, channels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn linear_uses_pytorchs_layout() {
        let device = Device::flex();
        let mut layer = Linear::new(2, 3, &device);
        layer.weight = Param::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        layer.bias = Some(Param::from_data([0.5, 0.0, -0.5], &device));
        let y = layer.forward(Tensor::<2>::from_data([[1.0, 10.0]], &device));
        // 1*1 + 2*10 + 0.5, 3*1 + 4*10, 5*1 + 6*10 - 0.5
        y.into_data().assert_approx_eq::<f32>(&[[21.5, 43.0, 64.5]].into(), Tolerance::default());
    }

    #[test]
    fn causal_attention_sees_no_later_token() {
        let device = Device::flex();
        let x = Tensor::<3>::from_data([[[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]], &device);
        let y = attention(x.clone(), x.clone(), x.clone(), 1, Mask::Causal);
        // The first query sees itself alone.
        y.clone().narrow(1, 0, 1).into_data().assert_approx_eq::<f32>(&[[[1.0, 0.0]]].into(), Tolerance::default());
        let shorter = x.narrow(1, 0, 2);
        let z = attention(shorter.clone(), shorter.clone(), shorter, 1, Mask::Causal);
        y.narrow(1, 0, 2).into_data().assert_approx_eq::<f32>(&z.into_data(), Tolerance::default());
    }

    #[test]
    fn heads_are_consecutive_channels() {
        let device = Device::flex();
        let q = Tensor::<3>::from_data([[[1.0, 0.0], [0.0, 2.0]]], &device);
        let both = attention(q.clone(), q.clone(), q.clone(), 2, Mask::None);
        let first = attention(q.clone().narrow(2, 0, 1), q.clone().narrow(2, 0, 1), q.narrow(2, 0, 1), 1, Mask::None);
        both.narrow(2, 0, 1).into_data().assert_approx_eq::<f32>(&first.into_data(), Tolerance::default());
    }
}
