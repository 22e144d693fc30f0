//! Two-dimensional convolution.

use burn::tensor::Tensor;

use crate::affine::{Map, affine};
use crate::fused::on_cpu;
use crate::kernel::conv::Geometry;
use crate::lora::LoraFactors;
use crate::{composed, lora};

/// A convolution with a square kernel: `[b, in, h, w]`, weight `[out, in, k, k]`, bias `[out]` → `[b, out, h', w']` with
/// `h' = (h + padding.0 + padding.1 − k) / stride + 1`. `padding` is that above and left, that below and right.
///
/// # Panics
/// When the input is empty, smaller than the kernel, or of other channels than the weight.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: (usize, usize)) -> Tensor<4> {
    let (map, to) = map_of(&x, &weight, bias.as_ref(), stride, padding);
    if !on_cpu(&x) {
        let format = x.dtype();
        return composed::conv2d(x, weight.cast(format), bias.map(|bias| bias.cast(format)), stride, padding);
    }
    affine(map, to, x, weight, bias, None)
}

/// [`conv2d`] with the weight `W + s B A`, as PEFT and kohya's programs put a LoRA beside a convolution.
///
/// # Panics
/// As [`conv2d`], and when the factors are not those of such a weight.
pub fn conv2d_with_lora(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: (usize, usize),
    factors: LoraFactors,
) -> Tensor<4> {
    let (map, to) = map_of(&x, &weight, bias.as_ref(), stride, padding);
    if !on_cpu(&x) || !lora::is_merged(x.dtype(), weight.dtype(), &weight.dims()) {
        return composed::conv2d_with_lora(x, weight, bias, stride, padding, factors);
    }
    affine(map, to, x, weight, bias, Some(factors))
}

fn map_of(x: &Tensor<4>, weight: &Tensor<4>, bias: Option<&Tensor<1>>, stride: usize, padding: (usize, usize)) -> (Map, [usize; 4]) {
    crate::refuse_empty("conv2d", x);
    let ([batch, d_in, height, width], [d_out, channels, k, across]) = (x.dims(), weight.dims());
    assert!(k == across && k > 0 && stride > 0, "conv2d with a kernel of {k}x{across} and stride {stride}");
    assert_eq!(d_in, channels, "conv2d of {d_in} channels with a weight for {channels}");
    assert!(
        height.min(width) + padding.0 + padding.1 >= k && padding.0 < k,
        "conv2d of {height}x{width} pixels, padded by {padding:?}, with a kernel of {k}"
    );
    if let Some(bias) = bias {
        assert_eq!(bias.dims(), [d_out], "conv2d to {d_out} channels with a bias of {}", bias.dims()[0]);
    }
    let geometry = Geometry { batch, d_in, d_out, size: [height, width], kernel: k, stride, padding };
    let [height, width] = geometry.out_size();
    (Map::Images(geometry), [batch, d_out, height, width])
}
