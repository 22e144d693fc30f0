//! Operations of which one output and the gradients of all inputs are checked.

use burn::tensor::{Int, Tensor, TensorData, activation};
use vp_ops::Mask;

use super::Computed;
use super::inputs::{Input, Place, values};
#[cfg(test)]
use super::reference::{self, Exact};

/// Heads of the attention cases.
pub const HEADS: usize = 4;
/// Groups of the group-norm case.
pub const GROUPS: usize = 8;
/// Added to variances.
pub const EPS: f64 = 1e-5;
/// Uniform values in [-1, 1) times this spread a softmax.
pub const SPREAD: f64 = 4.0;
/// What BERT adds to the scores of padding.
pub const PADDING: f32 = -10000.0;

/// A function of tensors.
pub struct Operation {
    /// From the inputs to the output, flattened.
    pub forward: fn(&Given<'_>) -> Tensor<1>,
    /// The same in f64.
    #[cfg(test)]
    pub exact: Exact,
}

/// The inputs of an operation on a device, in the order of the case.
pub struct Given<'a> {
    inputs: &'a [Input],
    tensors: &'a [Tensor<1>],
}

impl Given<'_> {
    /// Input number `i`, in its shape.
    pub fn tensor<const D: usize>(&self, i: usize) -> Tensor<D> {
        let shape: [usize; D] = self.inputs[i].shape.try_into().expect("the case gives inputs of the operation's ranks");
        self.tensors[i].clone().reshape(shape)
    }
}

impl Operation {
    /// The output.
    pub fn output(&self, inputs: &[Input], place: &Place) -> Vec<Computed> {
        let tensors: Vec<Tensor<1>> = inputs.iter().map(|input| place.flat(input)).collect();
        vec![Computed::new("output", on_host((self.forward)(&Given { inputs, tensors: &tensors })))]
    }

    /// The gradients of the output times known weights, by the inputs' names.
    pub fn gradients(&self, inputs: &[Input], place: &Place) -> Vec<Computed> {
        let tensors: Vec<Tensor<1>> = inputs.iter().map(|input| place.leaf(input)).collect();
        let output = (self.forward)(&Given { inputs, tensors: &tensors });
        let weights = place.constant("output gradient", output.dims()).autodiff();
        let mut gradients = (output * weights).sum().backward();
        let gradient = |tensor: &Tensor<1>| on_host(tensor.grad_remove(&mut gradients).expect("every input is used"));
        inputs.iter().map(|input| input.name).zip(tensors.iter().map(gradient)).map(|(name, values)| Computed::new(name, values)).collect()
    }
}

/// The values of a tensor.
pub fn on_host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    tensor.flatten(0, D - 1)
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $forward:expr, $exact:expr;)+) => {
        $($(#[$doc])* pub static $name: Operation = Operation {
            forward: $forward,
            #[cfg(test)]
            exact: $exact,
        };)+
    };
}

operations! {
    /// `x` `[rows, columns]`, `row` `[1, columns]`, `column` `[rows, 1]`: what fusion makes one kernel of, with broadcasting.
    CHAIN = |given| flat(chain(given)), Exact::Function(reference::chain);
    /// The mean of the chain over each row: a reduction with elementwise operations before and after it.
    CHAIN_MEAN = |given| flat(chain(given).mean_dim(1).exp() * 2.0), Exact::Function(reference::chain_mean);
    /// The sum of all values.
    SUM = |given| given.tensor::<2>(0).square().sum(), Exact::Function(reference::sum);
    /// `[.., m, k]` by `[.., k, n]`.
    MATMUL = |given| flat(given.tensor::<2>(0).matmul(given.tensor::<2>(1))), Exact::Bilinear(reference::matmul);
    /// The same in batches.
    MATMUL_BATCHED = |given| flat(given.tensor::<3>(0).matmul(given.tensor::<3>(1))), Exact::Bilinear(reference::matmul);
    /// `x Wᵀ`, which reads its second operand across.
    LINEAR = |given| flat(vp_ops::linear(given.tensor::<3>(0), given.tensor::<2>(1), None)), Exact::Bilinear(reference::linear);
    /// The head of a reward: a batched perceptron with one output, `[n, 1]`.
    NARROW_HEAD = narrow_head, Exact::Function(reference::narrow_head);
    /// A 3×3 convolution of stride 1, padding 1.
    CONV_3X3 = |given| conv(given, 1, 1), Exact::Bilinear(|shapes, visit| reference::conv(shapes, 1, 1, visit));
    /// A 3×3 convolution of stride 2, padding 1.
    CONV_3X3_STRIDE_2 = |given| conv(given, 2, 1), Exact::Bilinear(|shapes, visit| reference::conv(shapes, 2, 1, visit));
    /// A 1×1 convolution.
    CONV_1X1 = |given| conv(given, 1, 0), Exact::Bilinear(|shapes, visit| reference::conv(shapes, 1, 0, visit));
    /// Group norm followed by SiLU.
    GROUP_NORM_SILU = |given| flat(vp_ops::group_norm_silu(given.tensor(0), given.tensor(1), given.tensor(2), GROUPS, EPS)),
        Exact::Function(reference::group_norm_silu);
    /// Layer norm over the last axis.
    LAYER_NORM = |given| flat(vp_ops::layer_norm(given.tensor::<3>(0), given.tensor(1), given.tensor(2), EPS)),
        Exact::Function(reference::layer_norm);
    /// GELU with the error function, over [-4, 4).
    GELU = |given| flat(vp_ops::gelu(given.tensor::<2>(0) * SPREAD)), Exact::Function(reference::gelu);
    /// One half of the last axis times the GELU of the other.
    GEGLU = |given| flat(vp_ops::geglu(given.tensor::<3>(0) * SPREAD)), Exact::Function(reference::geglu);
    /// CLIP's GELU.
    QUICK_GELU = |given| flat(vp_ops::quick_gelu(given.tensor::<2>(0) * SPREAD)), Exact::Function(reference::quick_gelu);
    /// Softmax over the last axis.
    SOFTMAX = |given| flat(vp_ops::softmax(given.tensor::<2>(0) * SPREAD)), Exact::Function(reference::softmax);
    /// Attention in which every query sees every key.
    ATTENTION = |given| attention(given, Mask::None), Exact::Function(|given| reference::attention(given, |_, _, _| 0.0));
    /// Attention in which a query sees no later key.
    ATTENTION_CAUSAL = |given| attention(given, Mask::Causal),
        Exact::Function(|given| reference::attention(given, |_, query, key| if key > query { f64::NEG_INFINITY } else { 0.0 }));
    /// Attention over keys some of which are padding.
    ATTENTION_PADDED = attention_padded,
        Exact::Function(|given| reference::attention(given, |row, _, key| padding(row, key, given.shape(1)[1]).into()));
    /// Rows of a table, some of them several times: gradients of a row add up.
    EMBEDDING = embedding, Exact::Function(reference::embedding);
}

fn chain(given: &Given<'_>) -> Tensor<2> {
    let (x, row, column) = (given.tensor::<2>(0), given.tensor::<2>(1), given.tensor::<2>(2));
    let shifted = x.clone() * 1.7 + row;
    let gated = shifted.clone().tanh() * activation::sigmoid(x.clone() - column.clone());
    let ratio = (x.square() + 1.0).sqrt() / (column.exp() + 0.5);
    gated * ratio.clone() - (ratio + shifted.abs()).log()
}

fn narrow_head(given: &Given<'_>) -> Tensor<1> {
    let hidden = vp_ops::silu(vp_ops::linear(given.tensor::<2>(0), given.tensor(1), Some(given.tensor(2))));
    flat(vp_ops::linear(hidden, given.tensor(3), None))
}

fn conv(given: &Given<'_>, stride: usize, padding: usize) -> Tensor<1> {
    flat(vp_ops::conv2d(given.tensor(0), given.tensor(1), None, stride, (padding, padding)))
}

fn attention(given: &Given<'_>, mask: Mask<'_>) -> Tensor<1> {
    flat(vp_ops::attention(given.tensor(0), given.tensor(1), given.tensor(2), HEADS, mask))
}

/// What is added to the scores of key number `key` of `keys`: the last four keys of batch row 0 are padding, the last five of row 1 ...
pub fn padding(row: usize, key: usize, keys: usize) -> f32 {
    if key + 4 + row >= keys { PADDING } else { 0.0 }
}

fn attention_padded(given: &Given<'_>) -> Tensor<1> {
    let (batch, keys) = (given.inputs[1].shape[0], given.inputs[1].shape[1]);
    let mask = (0..batch * keys).map(|place| padding(place / keys, place % keys, keys)).collect();
    // On the device of the inputs, but for the tape: a mask is a constant.
    let device = given.tensors[0].clone().without_autodiff().device();
    let mask = Tensor::<4>::from_data(TensorData::new(mask, [batch, 1, 1, keys]), &device);
    let mask = if given.tensors[0].is_autodiff() { mask.autodiff() } else { mask };
    attention(given, Mask::Additive(&mask))
}

/// The rows that the embedding case looks up: `[2, 24]` of a table of `entries`.
pub fn looked_up(entries: usize) -> Vec<usize> {
    values("token", 48).into_iter().map(|value| ((value + 1.0) / 2.0 * entries as f32) as usize).collect()
}

fn embedding(given: &Given<'_>) -> Tensor<1> {
    let table = given.tensor::<2>(0);
    let rows: Vec<i32> = looked_up(table.dims()[0]).into_iter().map(|row| row as i32).collect();
    let rows = Tensor::<2, Int>::from_data(TensorData::new(rows, [2, 24]), &table.device());
    flat(burn::tensor::module::embedding(table, rows))
}
