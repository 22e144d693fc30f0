//! Linear maps over the last axis.

use burn::tensor::{DType, Tensor};

use crate::composed;
use crate::fused::{Fused, Input, Values, apply, in_f32, on_cpu};
use crate::kernel::linear as kernel;

#[derive(Debug, Clone)]
struct Linear {
    rows: usize,
    d_in: usize,
    d_out: usize,
    biased: bool,
}

impl Fused<3> for Linear {
    /// The input where the weight wants a gradient, the weight where the input does; the input's shape.
    type Saved = (Option<Values>, Option<Values>, burn::tensor::Shape);

    fn forward(&self, [x, weight, bias]: [Values; 3], [dx, dw, _]: [bool; 3]) -> (Values, Self::Saved) {
        let mut y = vec![0.0; self.rows * self.d_out];
        kernel::forward([self.rows, self.d_out, self.d_in], &x, &weight, self.biased.then_some(&bias), &mut y);
        let (from, mut to) = (x.shape(), x.shape());
        let last = to.num_dims() - 1;
        to[last] = self.d_out;
        (Values::from_vec(y, to), (dw.then_some(x), dx.then_some(weight), from))
    }

    fn backward(self, (x, weight, from): Self::Saved, output: Values, [_, _, db]: [bool; 3]) -> [Option<Values>; 3] {
        let Self { rows, d_in, d_out, .. } = self;
        let dx = weight.map(|weight| {
            let mut dx = vec![0.0; rows * d_in];
            kernel::input_gradient([rows, d_out, d_in], &output, &weight, &mut dx);
            Values::from_vec(dx, from)
        });
        let dw = x.map(|x| {
            let mut dw = vec![0.0; d_out * d_in];
            kernel::weight_gradient([rows, d_out, d_in], &x, &output, &mut dw);
            Values::from_vec(dw, [d_out, d_in])
        });
        let db = db.then(|| {
            let mut db = vec![0.0; d_out];
            kernel::bias_gradient(&output, &mut db);
            Values::from_vec(db, [d_out])
        });
        [dx, dw, db]
    }
}

/// `y = x Wᵀ + b` over the last axis: `[.., in]`, weight `[out, in]`, bias `[out]` → `[.., out]`.
///
/// # Panics
/// When the input is empty or its width is not the weight's.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    crate::refuse_empty("linear", &x);
    let (dims, [d_out, d_in]) = (x.dims(), weight.dims());
    assert_eq!(dims[D - 1], d_in, "linear over {} values with a weight for {d_in}", dims[D - 1]);
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [d_out], "linear to {d_out} values with a bias of {}", bias.dims()[0]);
    }
    if !on_cpu(&x) {
        let format = x.dtype();
        return composed::linear(x, weight.cast(format), bias.map(|bias| bias.cast(format)));
    }
    let (weight, bias) = (weight.cast(DType::F32), bias.map(|bias| bias.cast(DType::F32)));
    let operation = Linear { rows: dims[..D - 1].iter().product(), d_in, d_out, biased: bias.is_some() };
    let bias = bias.as_ref().map_or_else(|| Some(Input::absent()), Input::of);
    in_f32(x, |x| apply(operation, [Input::of(&x), Input::of(&weight), bias]).expect("f32 on the CPU"))
}
