//! The same operations composed of Burn's own: what every backend but flex runs, and what the fused ones are held against.
//!
//! Each works in the number format of its input. The caller sees to it that what must not be rounded is f32.

use std::f64::consts::FRAC_1_SQRT_2;

use burn::tensor::activation;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Bool, Tensor};

use crate::{LoraFactors, Mask, tiles};

/// As [`silu`](crate::silu).
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x)
}

/// As [`gelu`](crate::gelu).
///
/// Not `burn::tensor::activation::gelu`: off the CPU, its gradient is that of the tanh approximation, which is off by up to 7e-4.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let phi = ((x.clone() * FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    x * phi
}

/// As [`quick_gelu`](crate::quick_gelu).
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}

/// As [`geglu`](crate::geglu).
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let [value, gate]: [Tensor<D>; 2] = x.chunk(2, D - 1).try_into().expect("two halves of an even width");
    value * gelu(gate)
}

/// As [`softmax`](crate::softmax).
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::softmax(x, D - 1)
}

/// As [`layer_norm`](crate::layer_norm).
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    burn::tensor::module::layer_norm(x, weight, Some(bias), eps)
}

/// As [`group_norm`](crate::group_norm).
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let x = x.reshape([b, groups, c / groups * h * w]);
    let x = x.clone() - x.mean_dim(2);
    let variance = x.clone().square().mean_dim(2);
    let x = (x / (variance + eps).sqrt()).reshape([b, c, h, w]);
    x * weight.reshape([1, c, 1, 1]) + bias.reshape([1, c, 1, 1])
}

/// As [`conv2d`](crate::conv2d).
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: (usize, usize)) -> Tensor<4> {
    burn::tensor::module::conv2d(x, weight, bias, ConvOptions { stride: [stride; 2], padding: [padding; 2], dilation: [1, 1], groups: 1 })
}

/// As [`linear`](crate::linear).
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
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

/// As [`linear_with_lora`](crate::linear_with_lora): what the factors make of the input, in their number format, is added to the output.
pub fn linear_with_lora<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, factors: LoraFactors) -> Tensor<D> {
    // By the operations of this crate, not of this module: on the CPU that is what large weights are computed with.
    let (format, LoraFactors { down, up, scale }) = (x.dtype(), factors);
    let inner = crate::linear(crate::cast(x.clone(), down.dtype()), down, None);
    crate::linear(x, weight, bias) + crate::cast(crate::linear(inner, up, None) * scale, format)
}

/// As [`conv2d_with_lora`](crate::conv2d_with_lora), likewise.
pub fn conv2d_with_lora(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: (usize, usize),
    factors: LoraFactors,
) -> Tensor<4> {
    let (format, LoraFactors { down, up, scale }) = (x.dtype(), factors);
    let ([d_out, d_in, k, _], rank) = (weight.dims(), down.dims()[0]);
    let (down, up) = (down.reshape([rank, d_in, k, k]), up.reshape([d_out, rank, 1, 1]));
    let inner = crate::conv2d(crate::cast(x.clone(), down.dtype()), down, None, stride, padding);
    crate::conv2d(x, weight, bias, stride, padding) + crate::cast(crate::conv2d(inner, up, None, 1, (0, 0)) * scale, format)
}

/// As [`attention`](crate::attention), a tile of queries at a time; as many as 128 MiB of scores allow, or `rows`.
pub fn attention_in_tiles(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask<'_>, rows: Option<usize>) -> Tensor<3> {
    tiles::attention(q, k, v, heads, mask, rows)
}

/// As [`attention`](crate::attention), all scores at once and on the tape: what the others are held against.
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
            let future = Tensor::<2, Bool>::tril_mask([queries, keys], 0, &scores.device());
            scores.mask_fill(future.reshape([1, 1, queries, keys]), f32::NEG_INFINITY)
        }
        Mask::Additive(mask) => scores + mask.clone(),
    };
    softmax(scores).matmul(v).swap_dims(1, 2).reshape([b, queries, channels])
}
