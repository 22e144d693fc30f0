//! Two-dimensional convolution.

use burn::tensor::{DType, Tensor};

use crate::composed;
use crate::fused::{Fused, Input, Values, apply, in_f32, on_cpu};
use crate::kernel::conv::{self as kernel, Geometry};

#[derive(Debug, Clone)]
struct Conv {
    geometry: Geometry,
    biased: bool,
}

impl Fused<3> for Conv {
    /// The input where the weight wants a gradient, the weight where the input does: a frozen layer keeps no image.
    type Saved = (Option<Values>, Option<Values>);

    fn forward(&self, [x, weight, bias]: [Values; 3], [dx, dw, _]: [bool; 3]) -> (Values, Self::Saved) {
        let Geometry { batch, d_out, .. } = self.geometry;
        let [height, width] = self.geometry.out_size();
        let mut y = vec![0.0; batch * d_out * height * width];
        kernel::forward(&self.geometry, &x, &weight, self.biased.then_some(&bias), &mut y);
        (Values::from_vec(y, [batch, d_out, height, width]), (dw.then_some(x), dx.then_some(weight)))
    }

    fn backward(self, (x, weight): Self::Saved, output: Values, [_, _, db]: [bool; 3]) -> [Option<Values>; 3] {
        let Geometry { batch, d_in, d_out, size: [height, width], kernel: k, .. } = self.geometry;
        let dx = weight.map(|weight| {
            let mut dx = vec![0.0; batch * d_in * height * width];
            kernel::input_gradient(&self.geometry, &output, &weight, &mut dx);
            Values::from_vec(dx, [batch, d_in, height, width])
        });
        let dw = x.map(|x| {
            let mut dw = vec![0.0; d_out * d_in * k * k];
            kernel::weight_gradient(&self.geometry, &x, &output, &mut dw);
            Values::from_vec(dw, [d_out, d_in, k, k])
        });
        let db = db.then(|| {
            let mut db = vec![0.0; d_out];
            kernel::bias_gradient(&self.geometry, &output, &mut db);
            Values::from_vec(db, [d_out])
        });
        [dx, dw, db]
    }
}

/// A convolution with a square kernel: `[b, in, h, w]`, weight `[out, in, k, k]`, bias `[out]` → `[b, out, h', w']` with
/// `h' = (h + padding.0 + padding.1 − k) / stride + 1`. `padding` is that above and left, that below and right.
///
/// # Panics
/// When the input is empty, smaller than the kernel, or of other channels than the weight.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>, stride: usize, padding: (usize, usize)) -> Tensor<4> {
    crate::refuse_empty("conv2d", &x);
    let ([batch, d_in, height, width], [d_out, channels, k, across]) = (x.dims(), weight.dims());
    assert!(k == across && k > 0 && stride > 0, "conv2d with a kernel of {k}x{across} and stride {stride}");
    assert_eq!(d_in, channels, "conv2d of {d_in} channels with a weight for {channels}");
    assert!(
        height.min(width) + padding.0 + padding.1 >= k && padding.0 < k,
        "conv2d of {height}x{width} pixels, padded by {padding:?}, with a kernel of {k}"
    );
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [d_out], "conv2d to {d_out} channels with a bias of {}", bias.dims()[0]);
    }
    if !on_cpu(&x) {
        let format = x.dtype();
        return composed::conv2d(x, weight.cast(format), bias.map(|bias| bias.cast(format)), stride, padding);
    }
    let (weight, bias) = (weight.cast(DType::F32), bias.map(|bias| bias.cast(DType::F32)));
    let geometry = Geometry { batch, d_in, d_out, size: [height, width], kernel: k, stride, padding };
    let operation = Conv { geometry, biased: bias.is_some() };
    let bias = bias.as_ref().map_or_else(|| Some(Input::absent()), Input::of);
    in_f32(x, |x| apply(operation, [Input::of(&x), Input::of(&weight), bias]).expect("f32 on the CPU"))
}
