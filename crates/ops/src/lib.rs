//! Fused tensor operations with their own backward pass.
//!
//! Ordinary functions on [`Tensor`](burn::tensor::Tensor)s. On the CPU (flex) each is one loop over memory that uses the vector
//! unit and all cores and keeps for the backward pass what that needs, no more; elsewhere it is composed of Burn's own
//! operations. Tests hold the two against each other, values and gradients.
//!
//! The output has the number format of the first input, and weights are cast to it. Norms, softmax and activations compute in f32
//! whatever the format. On the CPU so do linear maps, convolutions and attention, but for inputs and weights in bf16 where the processor
//! [multiplies that](multiplies_bf16): then products are of bf16, and sums f32.
//!
//! No operation takes an empty batch: there is nothing to compute, and whoever asks has lost something on the way.

mod activation;
mod affine;
mod attention;
pub mod composed;
mod conv;
mod fused;
mod kernel;
mod linear;
mod lora;
mod norm;
mod recompute;
mod tape;
mod tiles;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use affine::is_in_bf16;
pub use attention::{Mask, attention, is_attention_in_bf16};
pub use conv::{conv2d, conv2d_with_lora};
pub use fused::cast;
pub use kernel::vector_unit;
pub use kernel::words::multiplies_bf16;
pub use linear::{linear, linear_with_lora};
pub use lora::{LoraFactors, is_merged};
pub use norm::{group_norm, group_norm_silu, layer_norm, softmax};
pub use recompute::{Boundary, recompute, trains};

fn refuse_empty<const D: usize>(operation: &str, x: &burn::tensor::Tensor<D>) {
    assert!(x.dims().iter().product::<usize>() > 0, "{operation} of an empty tensor, {:?}", x.dims());
}
