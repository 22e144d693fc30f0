//! Linear maps over the last axis.

use burn::tensor::Tensor;

use crate::affine::{Map, affine};
use crate::fused::on_cpu;
use crate::lora::LoraFactors;
use crate::{composed, lora};

/// `y = x Wᵀ + b` over the last axis: `[.., in]`, weight `[out, in]`, bias `[out]` → `[.., out]`.
///
/// # Panics
/// When the input is empty or its width is not the weight's.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let (map, to) = map_of(&x, &weight, bias.as_ref());
    if !on_cpu(&x) {
        let format = x.dtype();
        return composed::linear(x, weight.cast(format), bias.map(|bias| bias.cast(format)));
    }
    affine(map, to, x, weight, bias, None)
}

/// [`linear`] with the weight `W + s B A`: a LoRA (arXiv 2106.09685, equation 3) of a frozen weight.
///
/// # Panics
/// As [`linear`], and when the factors are not those of such a weight.
pub fn linear_with_lora<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>, factors: LoraFactors) -> Tensor<D> {
    let (map, to) = map_of(&x, &weight, bias.as_ref());
    if !on_cpu(&x) || !lora::is_merged(x.dtype(), weight.dtype(), &weight.dims()) {
        return composed::linear_with_lora(x, weight, bias, factors);
    }
    affine(map, to, x, weight, bias, Some(factors))
}

fn map_of<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> (Map, [usize; D]) {
    crate::refuse_empty("linear", x);
    let (mut dims, [d_out, d_in]) = (x.dims(), weight.dims());
    assert_eq!(dims[D - 1], d_in, "linear over {} values with a weight for {d_in}", dims[D - 1]);
    if let Some(bias) = bias {
        assert_eq!(bias.dims(), [d_out], "linear to {d_out} values with a bias of {}", bias.dims()[0]);
    }
    let rows = dims[..D - 1].iter().product();
    dims[D - 1] = d_out;
    (Map::Rows([rows, d_out, d_in]), dims)
}
