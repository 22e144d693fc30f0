//! The layers that every network here is made of.
//!
//! Fields are named as PyTorch names them and tensors keep PyTorch's layout (`Linear.weight` is `[out, in]`), so that the path
//! of a parameter in a module *is* its key in a published checkpoint and its bytes need no transposition, in or out.

use burn::module::{Module, Param, ParamId, Reparameterization};
use burn::tensor::module::embedding;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};
use vp_ops::{LoraFactors, conv2d, conv2d_with_lora, linear, linear_with_lora};

use crate::footprint::{Ledger, Traced, Weight};
use crate::number_format::NumberFormat;

pub use vp_ops::{Mask, attention};

/// A parameter that is filled with one value until weights are loaded or [initialised](crate::parameters::initialize).
/// It is allocated only when it is first used, so that loading weights allocates once.
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
            None => linear(x, self.weight.val(), bias),
            Some(factors) => linear_with_lora(x, self.weight.base(), bias, factors.of_weight()),
        }
    }

    /// [`forward`](Self::forward) of shapes; `format` is that of the network's frozen weights.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let (weight, bias) = (ledger.weight(&self.weight, format), self.bias.as_ref().map(|bias| ledger.weight(bias, format)));
        match self.weight.reparameterization::<LowRank>() {
            None => ledger.linear(x, &weight, bias.as_ref()),
            Some(factors) => ledger.linear_with_lora(x, &weight, bias.as_ref(), factors.traced(ledger).each_ref()),
        }
    }
}

/// The low-rank factors that a [LoRA](crate::lora) puts beside the weight of a linear map or a convolution, where they train in its stead.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `[rank, in]`; of a `k`×`k` convolution `[rank, in · k · k]`.
    pub down: Param<Tensor<2>>,
    /// `[out, rank]`.
    pub up: Param<Tensor<2>>,
    /// What the factors' product is multiplied by: alpha / rank.
    pub scale: f64,
}

impl LowRank {
    fn of_weight(&self) -> LoraFactors {
        LoraFactors { down: self.down.val(), up: self.up.val(), scale: self.scale }
    }

    /// Down and up.
    fn traced(&self, ledger: &Ledger) -> [Weight; 2] {
        [&self.down, &self.up].map(|factor| ledger.weight(factor, NumberFormat::F32))
    }
}

impl Reparameterization for LowRank {
    const NAME: &'static str = "lora";

    /// The dense weight, for those who ask for it; our own layers do not.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let delta = (self.up.val() * self.scale).matmul(self.down.val());
        let (shape, format) = (base.shape(), base.dtype());
        base + delta.reshape(shape).cast(format)
    }
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

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }

    /// `[b, in, h, w]` → `[b, out, h', w']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (bias, stride, padding) = (self.bias.as_ref().map(Param::val), self.stride, self.padding);
        match self.weight.reparameterization::<LowRank>() {
            None => conv2d(x, self.weight.val(), bias, stride, padding),
            Some(factors) => conv2d_with_lora(x, self.weight.base(), bias, stride, padding, factors.of_weight()),
        }
    }

    /// [`forward`](Self::forward) of shapes; `format` is that of the network's frozen weights.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let (weight, bias) = (ledger.weight(&self.weight, format), self.bias.as_ref().map(|bias| ledger.weight(bias, format)));
        match self.weight.reparameterization::<LowRank>() {
            None => ledger.conv2d(x, &weight, bias.as_ref(), self.stride, self.padding),
            Some(factors) => {
                let geometry = (self.stride, self.padding);
                ledger.conv2d_with_lora(x, &weight, bias.as_ref(), geometry, factors.traced(ledger).each_ref())
            }
        }
    }

    /// [`forward_patches`](Self::forward_patches) of shapes.
    pub fn trace_patches(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let weight = ledger.weight(&self.weight, format);
        let &[b, channels, h, w] = x.dims() else { panic!("patches of {:?}", x.dims()) };
        let [width, patch] = [weight.dims()[0], weight.dims()[2]];
        let (count, pixels) = ((h / patch) * (w / patch), channels * patch * patch);
        let rows = ledger.resized(x, &[b, count, pixels]);
        ledger.linear(rows, &weight.shaped(&[width, pixels]), None)
    }

    /// [`forward_tokens`](Self::forward_tokens) of shapes.
    pub fn trace_tokens(&self, ledger: &Ledger, tokens: Traced, format: NumberFormat) -> Traced {
        let (weight, bias) = (ledger.weight(&self.weight, format), self.bias.as_ref().map(|bias| ledger.weight(bias, format)));
        match self.weight.reparameterization::<LowRank>() {
            None => ledger.linear(tokens, &weight, bias.as_ref()),
            Some(factors) => ledger.linear_with_lora(tokens, &weight, bias.as_ref(), factors.traced(ledger).each_ref()),
        }
    }

    /// A convolution whose kernel is as large as its stride, as the matrix product it is (and so is its gradient):
    /// `[b, in, h, w]` → `[b, h/k · w/k, out]`, row by row.
    pub fn forward_patches(&self, x: Tensor<4>) -> Tensor<3> {
        let [b, channels, h, w] = x.dims();
        let [width, _, patch, _] = self.weight.dims();
        let (rows, columns, pixels) = (h / patch, w / patch, channels * patch * patch);
        let x = x.reshape([b, channels, rows, patch, columns, patch]).permute([0, 2, 4, 1, 3, 5]).reshape([b * rows * columns, pixels]);
        let y = linear(x, self.weight.val().reshape([width, pixels]), self.bias.as_ref().map(Param::val));
        y.reshape([b, rows * columns, width])
    }

    /// A 1×1 convolution as the matrix product it is: `[b, tokens, in]` → `[b, tokens, out]`.
    pub fn forward_tokens(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [d_out, d_in, ..] = self.weight.dims();
        let (bias, base) = (self.bias.as_ref().map(Param::val), self.weight.base().reshape([d_out, d_in]));
        match self.weight.reparameterization::<LowRank>() {
            None => linear(tokens, base, bias),
            Some(factors) => linear_with_lora(tokens, base, bias, factors.of_weight()),
        }
    }
}

/// Group normalisation with an affine map per channel.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// The factor per channel, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// The offset per channel, `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    eps: f64,
}

impl GroupNorm {
    /// A norm over `groups` groups of equally many channels.
    ///
    /// # Panics
    /// When `groups` does not divide `channels`; configs are checked before this is called.
    pub fn new(groups: usize, channels: usize, eps: f64, device: &Device) -> Self {
        assert_eq!(channels % groups, 0, "{channels} channels in {groups} groups");
        Self { weight: parameter([channels], 1.0, device), bias: parameter([channels], 0.0, device), groups, eps }
    }

    /// `[b, channels, h, w]`, normalised over each group of channels and all pixels.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        vp_ops::group_norm(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }

    /// The norm followed by SiLU, the pair that residual blocks are made of.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        vp_ops::group_norm_silu(x, self.weight.val(), self.bias.val(), self.groups, self.eps)
    }

    /// [`forward`](Self::forward) of shapes, or [`forward_silu`](Self::forward_silu).
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat, with_silu: bool) -> Traced {
        let [weight, bias] = [&self.weight, &self.bias].map(|parameter| ledger.weight(parameter, format));
        ledger.norm(x, [&weight, &bias], with_silu)
    }
}

/// Layer normalisation over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The factor per channel, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// The offset per channel, `[channels]`.
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
        vp_ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let [weight, bias] = [&self.weight, &self.bias].map(|parameter| ledger.weight(parameter, format));
        ledger.norm(x, [&weight, &bias], false)
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
    /// The exact GELU, written with the error function.
    Gelu,
}

impl Activation {
    /// Applies the activation to each value of `x`.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => vp_ops::quick_gelu(x),
            Self::Gelu => vp_ops::gelu(x),
        }
    }
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
