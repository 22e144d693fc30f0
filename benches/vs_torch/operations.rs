//! Single operations as the networks call them, forward alone and with the gradients of every input and weight.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use vp_core::noise::Noise;
use vp_models::layers::{Activation, Conv2d, GroupNorm, LayerNorm, Linear, Mask, attention};
use vp_models::parameters::initialize;
use vp_ops::{silu, softmax};

use crate::{Case, random};

/// Batch, channels, height and width of the 3×3 convolutions: three levels and the middle of SD 1.5's UNet, its autoencoder's decoder,
/// and two of a small network.
const CONVOLUTIONS: [[usize; 4]; 7] =
    [[1, 320, 64, 64], [1, 640, 32, 32], [1, 1280, 16, 16], [1, 1280, 8, 8], [1, 128, 256, 256], [8, 64, 16, 16], [8, 128, 8, 8]];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // 8 heads of 40 channels, side by side in the channels as the networks hold them; queries, keys and values are three leaves.
    cases.extend(both("attention_8x4096x40", [[1, 4096, 320]; 3], |_| (), |_, [q, k, v]| attention(q, k, v, 8, Mask::None)));
    for shape in CONVOLUTIONS {
        let [b, c, h, w] = shape;
        let layer = move |device: &Device| drawn(Conv2d::same(c, c, 3, device));
        cases.extend(both(&format!("conv3x3_{b}x{c}x{h}x{w}"), [shape], layer, |conv, [x]| conv.forward(x)));
    }
    cases.extend(both("conv1x1_1x320x64x64", [[1, 320, 64, 64]], |d| drawn(Conv2d::same(320, 320, 1, d)), |conv, [x]| conv.forward(x)));
    for [rows, d_in, d_out] in [[4096, 320, 2560], [577, 1024, 4096]] {
        let layer = move |device: &Device| drawn(Linear::new(d_in, d_out, device));
        cases.extend(both(&format!("linear_{rows}x{d_in}_{d_out}"), [[rows, d_in]], layer, |linear, [x]| linear.forward(x)));
    }
    let norm = |device: &Device| GroupNorm::new(32, 320, 1e-5, device);
    cases.extend(both("group_norm_silu_1x320x64x64", [[1, 320, 64, 64]], norm, |norm, [x]| norm.forward_silu(x)));
    cases.extend(both("layer_norm_4096x320", [[1, 4096, 320]], |d| LayerNorm::new(320, 1e-5, d), |norm, [x]| norm.forward(x)));
    cases.extend(both("softmax_8x1024x1024", [[8, 1024, 1024]], |_| (), |_, [x]| softmax(x)));
    cases.extend(both("gelu_4096x1280", [[4096, 1280]], |_| (), |_, [x]| Activation::Gelu.forward(x)));
    cases.extend(both("silu_1x320x64x64", [[1, 320, 64, 64]], |_| (), |_, [x]| silu(x)));
    cases
}

fn drawn<M: Module>(layer: M) -> M {
    initialize(layer, &Noise::new(0))
}

/// `NAME_forward` on the plain device, and `NAME_backward` on the tape: forward, sum, and the gradients of all inputs and parameters.
fn both<M: 'static, const D: usize, const N: usize>(
    name: &str,
    shapes: [[usize; D]; N],
    layer: impl Fn(&Device) -> M + Copy + 'static,
    apply: impl Fn(&M, [Tensor<D>; N]) -> Tensor<D> + Copy + 'static,
) -> [Case; 2] {
    let forward = Case::of(format!("{name}_forward"), move || {
        let device = Device::flex();
        let (layer, inputs) = (layer(&device), shapes.map(|shape| random(shape, &device)));
        Box::new(move || apply(&layer, inputs.clone()))
    });
    let backward = Case::of(format!("{name}_backward"), move || {
        let device = Device::flex().autodiff();
        let (layer, inputs) = (layer(&device), shapes.map(|shape| random(shape, &device).require_grad()));
        Box::new(move || apply(&layer, inputs.clone()).sum().backward())
    });
    [forward, backward]
}
