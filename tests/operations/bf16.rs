//! Maps with input and weight in bf16 on the CPU: those of the same values in f32, rounded once.

use burn::tensor::{DType, Device, Tensor};

use crate::device::device;
use crate::{Draws, Given, each_draw};

/// Values that bf16 holds.
fn rounded<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(DType::BF16).cast(DType::F32)
}

/// The output of `map` and the gradients of its input and its weight, with both in `format`. The cotangent is one that bf16 holds.
fn run(inputs: &[Tensor<1>], format: DType, cotangent: &Tensor<1>, map: &impl Fn(&[Tensor<1>]) -> Given) -> Vec<Vec<f32>> {
    let leaf = |(i, tensor): (usize, &Tensor<1>)| match i {
        0 | 1 => tensor.clone().cast(format).autodiff().require_grad(),
        _ => tensor.clone().autodiff(),
    };
    let leaves: Vec<Tensor<1>> = inputs.iter().enumerate().map(leaf).collect();
    let output = map(&leaves).flat();
    assert_eq!(output.dtype(), format);
    let mut gradients = (output.clone().cast(DType::F32) * cotangent.clone().autodiff()).sum().backward();
    let found = [output, leaves[0].grad_remove(&mut gradients).unwrap(), leaves[1].grad_remove(&mut gradients).unwrap()];
    found.into_iter().map(|tensor| tensor.into_data().iter::<f32>().collect()).collect()
}

fn check(what: &str, inputs: Vec<Given>, draws: &mut Draws, map: impl Fn(&[Tensor<1>]) -> Given) {
    let inputs: Vec<Tensor<1>> = inputs.iter().map(|input| rounded(input.flat())).collect();
    let cotangent = rounded(draws.tensor([map(&inputs).flat().dims()[0]]));
    let [found, expected] = [DType::BF16, DType::F32].map(|format| run(&inputs, format, &cotangent, &map));
    for (which, (found, expected)) in ["output", "input's gradient", "weight's gradient"].iter().zip(found.iter().zip(&expected)) {
        let largest = expected.iter().fold(0.0, |largest, value| value.abs().max(largest));
        for (found, expected) in found.iter().zip(expected) {
            // Half the distance to the next bf16, and what sums in another order may differ by.
            let most = expected.abs() / 256.0 + 1e-5 * largest;
            assert!((found - expected).abs() <= most, "{what}, {which}: {found}, expected {expected}");
        }
    }
}

/// Odd widths too, which no whole words of two fit into.
#[test]
fn a_map_in_bf16_is_that_in_f32_rounded_once() {
    if device() != Device::flex() {
        return;
    }
    each_draw(|draws| {
        let [b, tokens, d_in, d_out] = [draws.size(3), draws.size(150), draws.size(90), draws.size(90)];
        let inputs = vec![draws.tensor([b, tokens, d_in]).into(), draws.tensor([d_out, d_in]).into(), draws.tensor([d_out]).into()];
        check(&format!("linear of {tokens} tokens, {d_in} to {d_out}"), inputs, draws, |x| {
            vp_ops::linear(x[0].clone().reshape([b, tokens, d_in]), x[1].clone().reshape([d_out, d_in]), Some(x[2].clone())).into()
        });
        let [h, w, d_in, d_out, stride] = [draws.size(20), draws.size(20), draws.size(20), draws.size(20), draws.size(2)];
        let k = [1, 3][draws.size(2) - 1];
        let padding = if k == 1 { (0, 0) } else { (1, 1) };
        let inputs = vec![draws.tensor([b, d_in, h, w]).into(), draws.tensor([d_out, d_in, k, k]).into(), draws.tensor([d_out]).into()];
        check(&format!("conv2d of {h}x{w}, {d_in} to {d_out}, kernel {k}, stride {stride}"), inputs, draws, |x| {
            let (image, weight) = (x[0].clone().reshape([b, d_in, h, w]), x[1].clone().reshape([d_out, d_in, k, k]));
            vp_ops::conv2d(image, weight, Some(x[2].clone()), stride, padding).into()
        });
    });
}
