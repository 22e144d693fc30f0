//! Maps with a LoRA's factors beside the weight: merged with it against added to the output.

use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_ops::{LoraFactors, composed};

use crate::device::device;
use crate::{Draws, Given, agree, each_draw};

#[test]
fn linear_maps_with_a_lora() {
    each_draw(|draws| {
        let [b, tokens, d_in, d_out, rank] = [draws.size(3), draws.size(150), draws.size(90), draws.size(90), draws.size(20)];
        let mut inputs = vec![
            draws.tensor([b, tokens, d_in]).into(),
            draws.tensor([d_out, d_in]).into(),
            draws.tensor([rank, d_in]).into(),
            draws.tensor([d_out, rank]).into(),
        ];
        inputs.extend((draws.size(2) == 1).then(|| Given::from(draws.tensor([d_out]))));
        let run = |map: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>, LoraFactors) -> Tensor<3>| {
            move |x: &[Tensor<1>]| {
                let factors =
                    LoraFactors { down: x[2].clone().reshape([rank, d_in]), up: x[3].clone().reshape([d_out, rank]), scale: 0.75 };
                map(x[0].clone().reshape([b, tokens, d_in]), x[1].clone().reshape([d_out, d_in]), x.get(4).cloned(), factors).into()
            }
        };
        agree("linear with a LoRA", inputs, draws, run(vp_ops::linear_with_lora), run(composed::linear_with_lora));
    });
}

#[test]
fn convolutions_with_a_lora() {
    each_draw(|draws| {
        let [b, d_in, d_out, h, w, rank] = [draws.size(3), draws.size(20), draws.size(20), draws.size(20), draws.size(20), draws.size(9)];
        let (k, stride) = ([1, 3][draws.size(2) - 1], draws.size(2));
        let padding = if k == 1 { (0, 0) } else { [(1, 1), (1, 2)][draws.size(2) - 1] };
        let mut inputs = vec![
            draws.tensor([b, d_in, h, w]).into(),
            draws.tensor([d_out, d_in, k, k]).into(),
            draws.tensor([rank, d_in * k * k]).into(),
            draws.tensor([d_out, rank]).into(),
        ];
        inputs.extend((draws.size(2) == 1).then(|| Given::from(draws.tensor([d_out]))));
        type Convolution = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, usize, (usize, usize), LoraFactors) -> Tensor<4>;
        let run = |convolution: Convolution| {
            move |x: &[Tensor<1>]| {
                let (image, weight) = (x[0].clone().reshape([b, d_in, h, w]), x[1].clone().reshape([d_out, d_in, k, k]));
                let factors =
                    LoraFactors { down: x[2].clone().reshape([rank, d_in * k * k]), up: x[3].clone().reshape([d_out, rank]), scale: 0.75 };
                convolution(image, weight, x.get(4).cloned(), stride, padding, factors).into()
            }
        };
        let what = format!("conv2d {k} {stride} {padding:?} with a LoRA");
        agree(&what, inputs, draws, run(vp_ops::conv2d_with_lora), run(composed::conv2d_with_lora));
    });
}

/// Whether a LoRA is merged depends on the weight alone, so images are the same in every batch.
#[test]
fn images_are_the_same_in_every_batch() {
    if device() != Device::flex() {
        return;
    }
    let mut draws = Draws(ChaCha8Rng::seed_from_u64(7));
    let factors = LoraFactors { down: draws.tensor([4, 24 * 9]), up: draws.tensor([32, 4]), scale: 1.0 };
    let (images, weight) = (draws.tensor([40, 24, 8, 8]), draws.tensor([32, 24, 3, 3]));
    let map = |images: Tensor<4>| vp_ops::conv2d_with_lora(images, weight.clone(), None, 1, (1, 1), factors.clone());
    let together = map(images.clone());
    for image in [0, 17, 39] {
        let alone = map(images.clone().narrow(0, image, 1));
        together.clone().narrow(0, image, 1).into_data().assert_eq(&alone.into_data(), true);
    }
    // Few rows are multiplied in another way than many.
    let factors = LoraFactors { down: draws.tensor([4, 24]), up: draws.tensor([32, 4]), scale: 1.0 };
    let (tokens, weight, bias) = (draws.tensor([40, 20, 24]), draws.tensor([32, 24]), draws.tensor([32]));
    let map = |tokens: Tensor<3>| vp_ops::linear_with_lora(tokens, weight.clone(), Some(bias.clone()), factors.clone());
    let alone = map(tokens.clone().narrow(0, 17, 1));
    map(tokens).narrow(0, 17, 1).into_data().assert_eq(&alone.into_data(), true);
}
