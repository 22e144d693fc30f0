//! The table of cases. A row more is a case more; `VP_BLESS=1 cargo test --release -p visionprefer device_check` writes its numbers.

use super::inputs::Input;
use super::operations::{self as op, Operation};
use super::{Case, Network, Work, networks};

/// What forward values may deviate by, relative to the largest: as in the golden tests.
const FORWARD: f64 = 1e-4;
/// The same for gradients, and after ten steps of sampling.
const GRADIENT: f64 = 1e-3;
/// The same for gradients without a sum in them, which are as exact as forward values. It tells GELU's derivative from that of the
/// tanh approximation of GELU, which deviates by 7e-4.
const ELEMENTWISE_GRADIENT: f64 = 1e-4;

const fn row(name: &'static str, tolerance: f64, work: Work) -> Case {
    Case { name, tolerance, quick: true, skip: None, work }
}

const fn forward(name: &'static str, operation: &'static Operation, inputs: &'static [Input]) -> Case {
    row(name, FORWARD, Work::Forward(operation, inputs))
}

const fn gradient(name: &'static str, operation: &'static Operation, inputs: &'static [Input]) -> Case {
    row(name, GRADIENT, Work::Gradient(operation, inputs))
}

const fn elementwise_gradient(name: &'static str, operation: &'static Operation, inputs: &'static [Input]) -> Case {
    row(name, ELEMENTWISE_GRADIENT, Work::Gradient(operation, inputs))
}

const fn network(name: &'static str, tolerance: f64, network: &'static Network) -> Case {
    row(name, tolerance, Work::Network(network))
}

macro_rules! inputs {
    ($($name:literal $shape:expr),+) => { &[$(Input::of($name, &$shape)),+] };
}

/// Odd sizes leave tiles half filled.
const CHAIN: &[Input] = inputs!("x" [61, 83], "row" [1, 83], "column" [61, 1]);
const MATMUL: &[Input] = inputs!("a" [64, 96], "b" [96, 80]);
const MATMUL_BATCHED: &[Input] = inputs!("a" [3, 17, 33], "b" [3, 33, 65]);
const MATMUL_COLUMN: &[Input] = inputs!("a" [130, 64], "b" [64, 1]);
const MATMUL_ROW: &[Input] = inputs!("a" [1, 64], "b" [64, 130]);
const MATMUL_LARGE: &[Input] = inputs!("a" [256, 320], "b" [320, 192]);
const LINEAR: &[Input] = inputs!("x" [2, 77, 40], "weight" [48, 40]);
const NARROW_HEAD: &[Input] = inputs!("x" [64, 24], "weight" [48, 24], "bias" [48], "head" [1, 48]);
const CONV_3X3: &[Input] = inputs!("x" [2, 6, 13, 11], "weight" [10, 6, 3, 3]);
const CONV_1X1: &[Input] = inputs!("x" [1, 104, 8, 8], "weight" [208, 104, 1, 1]);
const GROUP_NORM: &[Input] = inputs!("x" [2, 32, 7, 5], "weight" [32], "bias" [32]);
const LAYER_NORM: &[Input] = inputs!("x" [2, 19, 48], "weight" [48], "bias" [48]);
const GELU: &[Input] = inputs!("x" [31, 67]);
const GEGLU: &[Input] = inputs!("x" [2, 17, 62]);
const SOFTMAX: &[Input] = inputs!("x" [40, 77]);
const ATTENTION: &[Input] = inputs!("q" [2, 25, 32], "k" [2, 17, 32], "v" [2, 17, 32]);
const SELF_ATTENTION: &[Input] = inputs!("q" [2, 19, 32], "k" [2, 19, 32], "v" [2, 19, 32]);
const TABLE: &[Input] = inputs!("table" [37, 20]);

/// Every case, the smallest parts first: the first that is wrong says most.
pub static CASES: &[Case] = &[
    forward("elementwise chain", &op::CHAIN, CHAIN),
    elementwise_gradient("elementwise chain, gradient", &op::CHAIN, CHAIN),
    forward("elementwise chain and mean", &op::CHAIN_MEAN, CHAIN),
    gradient("elementwise chain and mean, gradient", &op::CHAIN_MEAN, CHAIN),
    forward("sum of 32,033 values", &op::SUM, inputs!("x" [103, 311])),
    forward("matmul 64x96 by 96x80", &op::MATMUL, MATMUL),
    forward("matmul 256x320 by 320x192", &op::MATMUL, MATMUL_LARGE),
    forward("matmul 3 times 17x33 by 33x65", &op::MATMUL_BATCHED, MATMUL_BATCHED),
    gradient("matmul 3 times 17x33 by 33x65, gradient", &op::MATMUL_BATCHED, MATMUL_BATCHED),
    forward("matmul 130x64 by a column", &op::MATMUL, MATMUL_COLUMN),
    gradient("matmul 130x64 by a column, gradient", &op::MATMUL, MATMUL_COLUMN),
    forward("matmul of a row by 64x130", &op::MATMUL, MATMUL_ROW),
    forward("linear 40 to 48", &op::LINEAR, LINEAR),
    gradient("linear 40 to 48, gradient", &op::LINEAR, LINEAR),
    network("linear with a LoRA, and gradient", GRADIENT, &networks::LORA),
    forward("perceptron with one output", &op::NARROW_HEAD, NARROW_HEAD),
    gradient("perceptron with one output, gradient", &op::NARROW_HEAD, NARROW_HEAD),
    forward("convolution 3x3", &op::CONV_3X3, CONV_3X3),
    gradient("convolution 3x3, gradient", &op::CONV_3X3, CONV_3X3),
    forward("convolution 3x3 of stride 2", &op::CONV_3X3_STRIDE_2, CONV_3X3),
    gradient("convolution 3x3 of stride 2, gradient", &op::CONV_3X3_STRIDE_2, CONV_3X3),
    forward("convolution 1x1", &op::CONV_1X1, CONV_1X1),
    gradient("convolution 1x1, gradient", &op::CONV_1X1, CONV_1X1),
    forward("group norm and SiLU", &op::GROUP_NORM_SILU, GROUP_NORM),
    gradient("group norm and SiLU, gradient", &op::GROUP_NORM_SILU, GROUP_NORM),
    forward("layer norm", &op::LAYER_NORM, LAYER_NORM),
    gradient("layer norm, gradient", &op::LAYER_NORM, LAYER_NORM),
    forward("GELU", &op::GELU, GELU),
    elementwise_gradient("GELU, gradient", &op::GELU, GELU),
    forward("GEGLU", &op::GEGLU, GEGLU),
    elementwise_gradient("GEGLU, gradient", &op::GEGLU, GEGLU),
    elementwise_gradient("quick GELU, gradient", &op::QUICK_GELU, GELU),
    forward("softmax", &op::SOFTMAX, SOFTMAX),
    gradient("softmax, gradient", &op::SOFTMAX, SOFTMAX),
    forward("attention", &op::ATTENTION, ATTENTION),
    gradient("attention, gradient", &op::ATTENTION, ATTENTION),
    forward("attention, causal", &op::ATTENTION_CAUSAL, SELF_ATTENTION),
    gradient("attention, causal, gradient", &op::ATTENTION_CAUSAL, SELF_ATTENTION),
    forward("attention, padded", &op::ATTENTION_PADDED, ATTENTION),
    gradient("attention, padded, gradient", &op::ATTENTION_PADDED, ATTENTION),
    gradient("embedding, gradient", &op::EMBEDDING, TABLE),
    network("AdamW, two steps", FORWARD, &networks::ADAMW),
    network("UNet, decoder and reward, gradient", GRADIENT, &networks::REWARD_GRADIENT),
    Case {
        quick: false,
        skip: if cfg!(feature = "embedded") { None } else { Some("this binary was built without the feature `embedded`") },
        ..network("sampling, ten DDIM steps", GRADIENT, &networks::SAMPLING)
    },
];
