//! A LoRA's factors beside a weight.

use burn::tensor::Tensor;

/// The factors: the weight is `W + s B A`.
#[derive(Debug, Clone)]
pub struct Lora {
    /// A, `[rank, in]`; of a convolution `[rank, in · k · k]`.
    pub down: Tensor<2>,
    /// B, `[out, rank]`.
    pub up: Tensor<2>,
    /// s: alpha / rank.
    pub scale: f64,
}

/// The most values of a weight that is merged: 4 MiB.
const MERGED: usize = 1 << 20;

/// Whether a weight of so many values is added to its factors' product before it is used on the CPU. That takes one map of the input in place
/// of three, but a copy of the weight for the moment: it pays where the weight is small beside the input. Larger weights are used
/// as they are, and what the factors make of the input is added to the output.
///
/// The number of rows does not decide, so that images are the same whatever batch they are drawn in.
pub fn is_merged(values: usize) -> bool {
    values <= MERGED
}
