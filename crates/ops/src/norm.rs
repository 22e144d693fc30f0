//! Softmax, layer norm, group norm.

use burn::tensor::{DType, Tensor};

use crate::composed;
use crate::fused::{Fused, Input, Values, apply, in_f32, written};
use crate::kernel::norm::{self as kernel, Groups};

fn last(values: &Values) -> usize {
    let shape = values.shape();
    shape[shape.num_dims() - 1]
}

#[derive(Debug, Clone)]
struct Softmax;

impl Fused<1> for Softmax {
    type Saved = Values;

    fn forward(&self, [x]: [Values; 1], _: [bool; 1]) -> (Values, Values) {
        let y = written(x.len(), |y| kernel::softmax(last(&x), &x, y));
        let y = Values::from_vec(y, x.shape());
        (y.clone(), y)
    }

    fn backward(self, y: Values, output: Values, _: [bool; 1]) -> [Option<Values>; 1] {
        [Some(output.overwritten(|dy| kernel::softmax_backward(last(&y), &y, dy)))]
    }
}

/// Softmax over the last axis.
///
/// # Panics
/// When the tensor is empty.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    crate::refuse_empty("softmax", &x);
    in_f32(x, |x| apply(Softmax, [Input::of(&x)]).unwrap_or_else(|| composed::softmax(x)))
}

/// Mean and 1 / standard deviation of each row or group.
type Moments = std::sync::Arc<Vec<[f32; 2]>>;

#[derive(Debug, Clone)]
struct LayerNorm(f64);

impl Fused<3> for LayerNorm {
    type Saved = (Values, Values, Moments);

    fn forward(&self, [x, weight, bias]: [Values; 3], _: [bool; 3]) -> (Values, Self::Saved) {
        let mut moments = vec![[0.0; 2]; x.len() / weight.len()];
        let y = written(x.len(), |y| kernel::layer_norm([&x, &weight, &bias], self.0, y, &mut moments));
        (Values::from_vec(y, x.shape()), (x, weight, moments.into()))
    }

    fn backward(self, (x, weight, moments): Self::Saved, output: Values, [_, dw, db]: [bool; 3]) -> [Option<Values>; 3] {
        let [mut dweight, mut dbias] = [(); 2].map(|()| vec![0.0; if dw || db { weight.len() } else { 0 }]);
        let affine = (dw || db).then_some([&mut dweight[..], &mut dbias]);
        let dx = written(x.len(), |dx| kernel::layer_norm_backward([&x, &weight, &output], &moments, dx, affine));
        let of_weight = |values: Vec<f32>| Values::from_vec(values, weight.shape());
        [Some(Values::from_vec(dx, x.shape())), dw.then(|| of_weight(dweight)), db.then(|| of_weight(dbias))]
    }
}

/// Layer normalisation over the last axis (Ba et al., arXiv 1607.06450): `[.., d]`, weight and bias `[d]`.
///
/// # Panics
/// When the tensor is empty, or weight and bias are not as wide as the last axis.
pub fn layer_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    crate::refuse_empty("layer_norm", &x);
    let (d, widths) = (x.dims()[D - 1], [weight.dims()[0], bias.dims()[0]]);
    assert_eq!(widths, [d; 2], "layer_norm over {d} values with a weight of {} and a bias of {}", widths[0], widths[1]);
    let [weight, bias] = [weight, bias].map(|parameter| parameter.cast(DType::F32));
    in_f32(x, |x| {
        apply(LayerNorm(eps), [Input::of(&x), Input::of(&weight), Input::of(&bias)])
            .unwrap_or_else(|| composed::layer_norm(x, weight, bias, eps))
    })
}

#[derive(Debug, Clone)]
struct GroupNorm(Groups);

impl Fused<3> for GroupNorm {
    type Saved = ([Values; 3], Moments);

    fn forward(&self, [x, weight, bias]: [Values; 3], _: [bool; 3]) -> (Values, Self::Saved) {
        let Groups { channels, pixels, groups, .. } = self.0;
        let mut moments = vec![[0.0; 2]; x.len() / (channels * pixels) * groups];
        let y = written(x.len(), |y| kernel::group_norm(&self.0, [&x, &weight, &bias], y, &mut moments));
        (Values::from_vec(y, x.shape()), ([x, weight, bias], moments.into()))
    }

    fn backward(self, ([x, weight, bias], moments): Self::Saved, output: Values, [_, dw, db]: [bool; 3]) -> [Option<Values>; 3] {
        let [mut dweight, mut dbias] = [(); 2].map(|()| vec![0.0; if dw || db { weight.len() } else { 0 }]);
        let affine = (dw || db).then_some([&mut dweight[..], &mut dbias]);
        let dx = written(x.len(), |dx| kernel::group_norm_backward(&self.0, [&x, &weight, &bias, &output], &moments, dx, affine));
        let of_weight = |values: Vec<f32>| Values::from_vec(values, weight.shape());
        [Some(Values::from_vec(dx, x.shape())), dw.then(|| of_weight(dweight)), db.then(|| of_weight(dbias))]
    }
}

fn grouped(x: Tensor<4>, [weight, bias]: [Tensor<1>; 2], groups: usize, eps: f64, silu: bool) -> Tensor<4> {
    crate::refuse_empty("group_norm", &x);
    let [_, channels, h, w] = x.dims();
    let widths = [weight.dims()[0], bias.dims()[0]];
    assert!(groups > 0 && channels.is_multiple_of(groups), "{channels} channels in {groups} groups");
    assert_eq!(widths, [channels; 2], "group_norm over {channels} channels with a weight of {} and a bias of {}", widths[0], widths[1]);
    let operation = GroupNorm(Groups { channels, pixels: h * w, groups, eps, silu });
    let [weight, bias] = [weight, bias].map(|parameter| parameter.cast(DType::F32));
    in_f32(x, |x| {
        apply(operation, [Input::of(&x), Input::of(&weight), Input::of(&bias)]).unwrap_or_else(|| {
            let y = composed::group_norm(x, weight, bias, groups, eps);
            if silu { composed::silu(y) } else { y }
        })
    })
}

/// Group normalisation (Wu and He, arXiv 1803.08494): `[b, channels, h, w]` over each group of channels and all pixels, weight and
/// bias `[channels]`.
///
/// # Panics
/// When the tensor is empty, `groups` does not divide the channels, or weight and bias do not have one value per channel.
pub fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    grouped(x, [weight, bias], groups, eps, false)
}

/// [`group_norm`], then SiLU: the pair that residual blocks are made of, in two passes over memory.
///
/// # Panics
/// As [`group_norm`].
pub fn group_norm_silu(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, groups: usize, eps: f64) -> Tensor<4> {
    grouped(x, [weight, bias], groups, eps, true)
}
