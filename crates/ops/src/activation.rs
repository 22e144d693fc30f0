//! Activations.

use burn::tensor::Tensor;

use crate::composed;
use crate::fused::{Fused, Input, Values, apply, in_f32, written};
use crate::kernel::activation::{self as kernel, Function};

#[derive(Debug, Clone)]
struct Activation(Function);

impl Fused<1> for Activation {
    type Saved = Values;

    fn forward(&self, [x]: [Values; 1], _: [bool; 1]) -> (Values, Values) {
        let y = written(x.len(), |y| kernel::forward(self.0, &x, y));
        (Values::from_vec(y, x.shape()), x)
    }

    fn backward(self, x: Values, output: Values, _: [bool; 1]) -> [Option<Values>; 1] {
        [Some(output.overwritten(|dy| kernel::backward(self.0, &x, dy)))]
    }
}

fn activate<const D: usize>(function: Function, x: Tensor<D>) -> Option<Tensor<D>> {
    apply(Activation(function), [Input::of(&x)])
}

/// `x σ(x)`, elementwise.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    in_f32(x, |x| activate(Function::Silu, x.clone()).unwrap_or_else(|| composed::silu(x)))
}

/// The exact GELU, `x Φ(x)` with Φ the normal distribution's, elementwise (Hendrycks and Gimpel, arXiv 1606.08415).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    in_f32(x, |x| activate(Function::Gelu, x.clone()).unwrap_or_else(|| composed::gelu(x)))
}

/// `x σ(1.702 x)`, elementwise: OpenAI CLIP's.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    in_f32(x, |x| activate(Function::QuickGelu, x.clone()).unwrap_or_else(|| composed::quick_gelu(x)))
}

#[derive(Debug, Clone)]
struct Geglu;

impl Fused<1> for Geglu {
    type Saved = Values;

    fn forward(&self, [x]: [Values; 1], _: [bool; 1]) -> (Values, Values) {
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] /= 2;
        let y = written(x.len() / 2, |y| kernel::geglu(shape[last], &x, y));
        (Values::from_vec(y, shape), x)
    }

    fn backward(self, x: Values, output: Values, _: [bool; 1]) -> [Option<Values>; 1] {
        let shape = output.shape();
        let dx = written(x.len(), |dx| kernel::geglu_backward(shape[shape.num_dims() - 1], &x, &output, dx));
        [Some(Values::from_vec(dx, x.shape()))]
    }
}

/// `value ⊙ GELU(gate)`, where value and gate are the halves of the last axis: `[.., 2 d]` → `[.., d]` (Shazeer, arXiv 2002.05202).
///
/// # Panics
/// When the last axis is odd.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let width = x.dims()[D - 1];
    assert!(width > 0 && width.is_multiple_of(2), "GEGLU halves the last axis, which is {width} wide");
    in_f32(x, |x| apply(Geglu, [Input::of(&x)]).unwrap_or_else(|| composed::geglu(x)))
}
