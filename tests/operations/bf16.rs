//! Maps with input and weight in bf16 on the CPU: those of the same values in f32, rounded once.

use burn::tensor::{DType, Device, Tensor};
use vp_ops::{LoraFactors, Mask};

use crate::device::device;
use crate::{Draws, Given, each_draw};

/// Values that bf16 holds.
fn rounded<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.cast(DType::BF16).cast(DType::F32)
}

/// The output of `map` and the gradients of its inputs. The first `halves` inputs are in `format`, and so is the output; what follows them is f32.
/// The cotangent is one that bf16 holds.
fn run(inputs: &[Tensor<1>], halves: usize, format: DType, cotangent: &Tensor<1>, map: &impl Fn(&[Tensor<1>]) -> Given) -> Vec<Vec<f32>> {
    let leaf = |(i, tensor): (usize, &Tensor<1>)| {
        let tensor = if i < halves { tensor.clone().cast(format) } else { tensor.clone() };
        tensor.autodiff().require_grad()
    };
    let leaves: Vec<Tensor<1>> = inputs.iter().enumerate().map(leaf).collect();
    let output = map(&leaves).flat();
    assert_eq!(output.dtype(), format);
    let mut gradients = (output.clone().cast(DType::F32) * cotangent.clone().autodiff()).sum().backward();
    let mut found = vec![output];
    for leaf in &leaves {
        let gradient = leaf.grad_remove(&mut gradients).unwrap();
        assert_eq!(gradient.dtype(), leaf.dtype());
        found.push(gradient);
    }
    found.into_iter().map(|tensor| tensor.into_data().iter::<f32>().collect()).collect()
}

/// Holds `map` in bf16 against itself in f32. Each value may be off by `roundings` times half the distance to the next bf16. Where several rounded values
/// are summed, that distance is taken of the value and of `mixed` times the largest together.
fn check(
    what: &str,
    inputs: Vec<Given>,
    halves: usize,
    [roundings, mixed]: [f32; 2],
    draws: &mut Draws,
    map: impl Fn(&[Tensor<1>]) -> Given,
) {
    let inputs: Vec<Tensor<1>> = inputs.iter().map(|input| rounded(input.flat())).collect();
    let cotangent = rounded(draws.tensor([map(&inputs).flat().dims()[0]]));
    let [found, expected] = [DType::BF16, DType::F32].map(|format| run(&inputs, halves, format, &cotangent, &map));
    for (which, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let largest = expected.iter().fold(0.0, |largest, value| value.abs().max(largest));
        for (found, expected) in found.iter().zip(expected) {
            // And what sums in another order may differ by.
            let most = roundings * (expected.abs() + mixed * largest) / 256.0 + 1e-5 * largest;
            assert!(
                (found - expected).abs() <= most,
                "{what}, {}: {found}, expected {expected}",
                ["output".into(), format!("gradient {which}")][which.min(1)]
            );
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
        check(&format!("linear of {tokens} tokens, {d_in} to {d_out}"), inputs, 2, [1.0, 0.0], draws, |x| {
            vp_ops::linear(x[0].clone().reshape([b, tokens, d_in]), x[1].clone().reshape([d_out, d_in]), Some(x[2].clone())).into()
        });
        let [h, w, d_in, d_out, stride] = [draws.size(20), draws.size(20), draws.size(20), draws.size(20), draws.size(2)];
        let k = [1, 3][draws.size(2) - 1];
        let padding = if k == 1 { (0, 0) } else { (1, 1) };
        let inputs = vec![draws.tensor([b, d_in, h, w]).into(), draws.tensor([d_out, d_in, k, k]).into(), draws.tensor([d_out]).into()];
        check(&format!("conv2d of {h}x{w}, {d_in} to {d_out}, kernel {k}, stride {stride}"), inputs, 2, [1.0, 0.0], draws, |x| {
            let (image, weight) = (x[0].clone().reshape([b, d_in, h, w]), x[1].clone().reshape([d_out, d_in, k, k]));
            vp_ops::conv2d(image, weight, Some(x[2].clone()), stride, padding).into()
        });
    });
}

/// Weights in bf16 beside a LoRA in f32, as they train: the factors' part is rounded only together with the output.
#[test]
fn factors_beside_a_weight_in_bf16_have_the_gradients_of_f32() {
    if device() != Device::flex() {
        return;
    }
    each_draw(|draws| {
        let [b, tokens, d_in, d_out, rank] = [draws.size(3), draws.size(150), draws.size(90), draws.size(90), draws.size(8)];
        let factors = [draws.tensor([rank, d_in]).into(), draws.tensor([d_out, rank]).into()];
        let inputs = [vec![draws.tensor([b, tokens, d_in]).into(), draws.tensor([d_out, d_in]).into()], factors.into()].concat();
        check(&format!("linear with a LoRA, {tokens} tokens, {d_in} to {d_out}"), inputs, 2, [3.0, 1.0], draws, |x| {
            let factors = LoraFactors { down: x[2].clone().reshape([rank, d_in]), up: x[3].clone().reshape([d_out, rank]), scale: 0.75 };
            vp_ops::linear_with_lora(x[0].clone().reshape([b, tokens, d_in]), x[1].clone().reshape([d_out, d_in]), None, factors).into()
        });
        let [h, w, d_in, d_out] = [draws.size(20), draws.size(20), draws.size(20), draws.size(20)];
        let factors = [draws.tensor([rank, d_in * 9]).into(), draws.tensor([d_out, rank]).into()];
        let inputs = [vec![draws.tensor([b, d_in, h, w]).into(), draws.tensor([d_out, d_in, 3, 3]).into()], factors.into()].concat();
        check(&format!("conv2d with a LoRA, {h}x{w}, {d_in} to {d_out}"), inputs, 2, [3.0, 1.0], draws, |x| {
            let factors =
                LoraFactors { down: x[2].clone().reshape([rank, d_in * 9]), up: x[3].clone().reshape([d_out, rank]), scale: 0.75 };
            let (image, weight) = (x[0].clone().reshape([b, d_in, h, w]), x[1].clone().reshape([d_out, d_in, 3, 3]));
            vp_ops::conv2d_with_lora(image, weight, None, 1, (1, 1), factors).into()
        });
    });
}

/// With every mask, odd and even heads, keys of another number than queries; and of three inputs the first alone in bf16.
#[test]
fn attention_in_bf16_is_that_in_f32_rounded() {
    if device() != Device::flex() {
        return;
    }
    each_draw(|draws| {
        let [b, heads, d, queries] = [draws.size(2), draws.size(4), draws.size(24), draws.size(150)];
        let kind = draws.size(3);
        let (keys, c) = (if kind == 1 { queries } else { draws.size(150) }, heads * d);
        let mask = draws.tensor([b, 1, 1, keys]) * 5.0;
        for halves in [3, 1] {
            let inputs: Vec<Given> = [queries, keys, keys].map(|tokens| draws.tensor([b, tokens, c]).into()).into();
            check(&format!("attention of {heads} heads of {d}, {queries} to {keys}, {kind}"), inputs, halves, [3.0, 2.0], draws, |x| {
                let mask = match kind {
                    1 => Mask::Causal,
                    2 => Mask::Additive(&mask),
                    _ => Mask::None,
                };
                let [q, k, v] = [(0, queries), (1, keys), (2, keys)].map(|(i, tokens)| x[i].clone().reshape([b, tokens, c]));
                vp_ops::attention(q, k, v, heads, mask).into()
            });
        }
    });
}

/// A tensor that lies strangely in memory is the same tensor.
#[test]
fn views_in_bf16_are_read_as_what_they_are() {
    let mut draws = Draws(rand::SeedableRng::seed_from_u64(99));
    let half = |tensor: Tensor<4>| tensor.cast(DType::BF16);
    let (x, weight) = (half(draws.tensor([2, 6, 6, 8])), half(draws.tensor([6, 6, 3, 3])));
    let views = [x.clone().swap_dims(1, 2), x.clone().narrow(3, 1, 5), x.clone().flip([1]), x.narrow(0, 1, 1).expand([3, 6, 6, 8])];
    for view in views {
        let copy = Tensor::<4>::from_data(view.to_data(), (&Device::flex(), DType::BF16));
        let same = |map: &dyn Fn(Tensor<4>) -> Tensor<4>| map(view.clone()).into_data().assert_eq(&map(copy.clone()).into_data(), true);
        same(&|x| vp_ops::conv2d(x, weight.clone(), None, 1, (1, 1)));
        same(&|x| vp_ops::conv2d(x, weight.clone().swap_dims(0, 1), None, 2, (1, 1)));
        let width = copy.dims()[3];
        same(&|x| vp_ops::linear(x, half(draws_of(width)).reshape([width, width]), None));
        same(&|x| vp_ops::cast(vp_ops::cast(x, DType::F32), DType::BF16));
    }
}

fn draws_of(width: usize) -> Tensor<4> {
    Draws(rand::SeedableRng::seed_from_u64(3)).tensor([1, 1, width, width])
}
