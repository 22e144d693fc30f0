//! A LoRA's factors beside a weight.

use burn::tensor::{DType, Tensor};

use crate::affine::is_in_bf16;

/// The factors: the weight is `W + s B A`.
#[derive(Debug, Clone)]
pub struct LoraFactors {
    /// A, `[rank, in]`; of a convolution `[rank, in · k · k]`.
    pub down: Tensor<2>,
    /// B, `[out, rank]`.
    pub up: Tensor<2>,
    /// s: alpha / rank.
    pub scale: f64,
}

/// The most values of a weight that is merged: 4 MiB.
const MERGED: usize = 1 << 20;

/// Whether on the CPU a weight of this shape is merged with its factors when it meets an input, in these number formats: their product is added
/// to it before it is used. That takes one map of the input in place of three, but a copy of the weight for the moment: it pays where the weight is
/// small beside the input. Larger weights are used as they are, and what the factors make of the input is added to the output. So are weights
/// that are multiplied in bf16, which would round most of the change away.
///
/// The number of rows does not decide, so that images are the same whatever batch they are drawn in.
pub fn is_merged(input: DType, weight: DType, shape: &[usize]) -> bool {
    shape.iter().product::<usize>() <= MERGED && !is_in_bf16(input, weight, shape)
}
