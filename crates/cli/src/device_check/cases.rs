//! The cases, from single operations to a whole model.

use super::inputs::Input;
use super::operations::{self as op, Operation};
use super::{Case, Work, networks};

/// Of values, and of what a few operations make of them.
const VALUE: f64 = 1e-4;
/// Of gradients and of chains of steps.
const LONG: f64 = 1e-3;

const fn forward(name: &'static str, operation: &'static Operation, inputs: &'static [Input]) -> Case {
    Case { name, tolerance: VALUE, quick: true, skip: None, work: Work::Forward(operation, inputs) }
}

const fn gradient(name: &'static str, operation: &'static Operation, inputs: &'static [Input]) -> Case {
    Case { name, tolerance: LONG, quick: true, skip: None, work: Work::Gradient(operation, inputs) }
}

const fn of_the_model(name: &'static str, compute: fn(&super::Place) -> anyhow::Result<Vec<super::Computed>>) -> Case {
    let skip = if cfg!(feature = "embedded") { None } else { Some("this build has no model inside") };
    Case { name, tolerance: LONG, quick: false, skip, work: Work::Network(compute) }
}

const CHAIN: &[Input] = &[Input::of("x", &[37, 65]), Input::of("row", &[1, 65]), Input::of("column", &[37, 1])];
const IMAGE: &[Input] = &[Input::of("x", &[2, 16, 12, 12]), Input::of("weight", &[24, 16, 3, 3])];
const POINTWISE: &[Input] = &[Input::of("x", &[2, 16, 12, 12]), Input::of("weight", &[24, 16, 1, 1])];
const GROUPS: &[Input] = &[Input::of("x", &[2, 16, 12, 12]), Input::of("weight", &[16]), Input::of("bias", &[16])];
const TOKENS: &[Input] = &[Input::of("x", &[2, 17, 48])];
const LAYER: &[Input] = &[Input::of("x", &[2, 17, 48]), Input::of("weight", &[48]), Input::of("bias", &[48])];
const MATRIX: &[Input] = &[Input::of("x", &[33, 70])];
const HEAD: &[Input] = &[Input::of("x", &[9, 40]), Input::of("weight", &[24, 40]), Input::of("bias", &[24]), Input::of("head", &[1, 24])];
const SELF_ATTENTION: &[Input] = &[Input::of("q", &[2, 24, 64]), Input::of("k", &[2, 24, 64]), Input::of("v", &[2, 24, 64])];
const CROSS_ATTENTION: &[Input] = &[Input::of("q", &[2, 40, 64]), Input::of("k", &[2, 13, 64]), Input::of("v", &[2, 13, 64])];

/// Every case, the simplest first.
pub static CASES: &[Case] = &[
    forward("sum", &op::SUM, MATRIX),
    forward("fused chain", &op::CHAIN, CHAIN),
    gradient("fused chain, gradients", &op::CHAIN, CHAIN),
    gradient("fused chain and mean, gradients", &op::CHAIN_MEAN, CHAIN),
    forward("matrix product 64x96x80", &op::MATMUL, &[Input::of("a", &[64, 96]), Input::of("b", &[96, 80])]),
    forward("matrix product 128x64x1", &op::MATMUL, &[Input::of("a", &[128, 64]), Input::of("b", &[64, 1])]),
    forward("matrix products in batches", &op::MATMUL_BATCHED, &[Input::of("a", &[3, 20, 33]), Input::of("b", &[3, 33, 17])]),
    gradient("linear map, gradients", &op::LINEAR, &[Input::of("x", &[2, 17, 48]), Input::of("weight", &[80, 48])]),
    gradient("head of one output, gradients", &op::NARROW_HEAD, HEAD),
    forward("convolution 3x3", &op::CONV_3X3, IMAGE),
    gradient("convolution 3x3, gradients", &op::CONV_3X3, IMAGE),
    gradient("convolution 3x3 of stride 2, gradients", &op::CONV_3X3_STRIDE_2, IMAGE),
    gradient("convolution 1x1, gradients", &op::CONV_1X1, POINTWISE),
    gradient("group norm and SiLU, gradients", &op::GROUP_NORM_SILU, GROUPS),
    gradient("layer norm, gradients", &op::LAYER_NORM, LAYER),
    forward("GELU", &op::GELU, MATRIX),
    gradient("GELU, gradients", &op::GELU, MATRIX),
    gradient("GEGLU, gradients", &op::GEGLU, TOKENS),
    gradient("quick GELU, gradients", &op::QUICK_GELU, MATRIX),
    gradient("softmax, gradients", &op::SOFTMAX, MATRIX),
    forward("attention", &op::ATTENTION, CROSS_ATTENTION),
    gradient("attention, gradients", &op::ATTENTION, CROSS_ATTENTION),
    gradient("causal attention, gradients", &op::ATTENTION_CAUSAL, SELF_ATTENTION),
    gradient("attention with padding, gradients", &op::ATTENTION_PADDED, CROSS_ATTENTION),
    gradient("embedding, gradients", &op::EMBEDDING, &[Input::of("table", &[30, 16])]),
    of_the_model("sampling with the model inside", networks::sampling),
    of_the_model("gradient through UNet and decoder", networks::gradient),
];
