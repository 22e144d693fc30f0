//! The cases in f64, written as loops over memory, with neither Burn nor anything of ours in them. Gradients are those of the loops by
//! central differences, but for maps that are linear in each of two operands, whose gradients are sums of the same products.

use super::Computed;
use super::inputs::{Input, values};
use super::networks::{LEARNING_RATE, LORA_ALPHA, LORA_RANK};
use super::operations::{EPS, GROUPS, HEADS, SPREAD, looked_up};

/// An operation in f64.
pub enum Exact {
    /// From the inputs to the output.
    Function(fn(&Values<'_>) -> Vec<f64>),
    /// Every product (place in the output, place in the first input, place in the second input) that the output is a sum of.
    Bilinear(fn(&Shapes<'_>, &mut dyn FnMut(usize, usize, usize))),
}

/// The shapes of an operation's inputs.
pub type Shapes<'a> = [&'a [usize]];

/// The inputs of an operation.
pub struct Values<'a> {
    inputs: &'a [Input],
    values: Vec<Vec<f64>>,
}

impl Values<'_> {
    /// The shape of input number `i`.
    pub fn shape(&self, i: usize) -> &[usize] {
        self.inputs[i].shape
    }

    fn last(&self, i: usize) -> usize {
        *self.shape(i).last().expect("a tensor has axes")
    }
}

fn wide(name: &str, count: usize) -> Vec<f64> {
    values(name, count).into_iter().map(f64::from).collect()
}

impl Exact {
    /// The output.
    pub fn output(&self, inputs: &[Input]) -> Vec<Computed> {
        vec![Computed::new("output", self.forward(&given(inputs)))]
    }

    /// The gradients of the output times the weights that the cases take.
    pub fn gradients(&self, inputs: &[Input]) -> Vec<Computed> {
        let mut given = given(inputs);
        let weights = wide("output gradient", self.forward(&given).len());
        let gradients: Vec<Vec<f64>> = match self {
            Self::Bilinear(products) => {
                let mut gradients: Vec<Vec<f64>> = given.values.iter().map(|values| vec![0.0; values.len()]).collect();
                products(&shapes(inputs), &mut |out, a, b| {
                    gradients[0][a] += weights[out] * given.values[1][b];
                    gradients[1][b] += weights[out] * given.values[0][a];
                });
                gradients
            }
            Self::Function(function) => {
                let weighted = |given: &Values<'_>| function(given).iter().zip(&weights).map(|(value, weight)| value * weight).sum();
                (0..inputs.len()).map(|i| differences(&mut given, i, &weighted)).collect()
            }
        };
        inputs.iter().zip(gradients).map(|(input, values)| Computed::new(input.name, values)).collect()
    }

    fn forward(&self, given: &Values<'_>) -> Vec<f64> {
        match self {
            Self::Function(function) => function(given),
            Self::Bilinear(products) => {
                let mut output = Vec::new();
                products(&shapes(given.inputs), &mut |out, a, b| {
                    if output.len() <= out {
                        output.resize(out + 1, 0.0);
                    }
                    output[out] += given.values[0][a] * given.values[1][b];
                });
                output
            }
        }
    }
}

fn given(inputs: &[Input]) -> Values<'_> {
    Values { inputs, values: inputs.iter().map(|input| wide(input.name, input.shape.iter().product())).collect() }
}

fn shapes(inputs: &[Input]) -> Vec<&[usize]> {
    inputs.iter().map(|input| input.shape).collect()
}

/// The gradient of `function` at input number `i`. The error of a central difference is of the order of 1e-8 here.
fn differences(given: &mut Values<'_>, i: usize, function: &dyn Fn(&Values<'_>) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let count = given.values[i].len();
    let difference = |place: usize| {
        let value = given.values[i][place];
        let mut at = |moved: f64| {
            given.values[i][place] = moved;
            function(given)
        };
        let (above, below) = (at(value + STEP), at(value - STEP));
        given.values[i][place] = value;
        (above - below) / (2.0 * STEP)
    };
    (0..count).map(difference).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function as its Taylor series (Abramowitz and Stegun 7.1.6, all terms positive), exact to rounding for |x| < 5.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn gelu_of(x: f64) -> f64 {
    x / 2.0 * (1.0 + erf(x / 2.0_f64.sqrt()))
}

/// [`CHAIN`](super::operations::CHAIN) in f64.
pub fn chain(given: &Values<'_>) -> Vec<f64> {
    let (columns, [x, row, column]) = (given.last(0), [&given.values[0], &given.values[1], &given.values[2]]);
    let value = |(place, x): (usize, &f64)| {
        let (row, column) = (row[place % columns], column[place / columns]);
        let shifted = 1.7 * x + row;
        let ratio = (x * x + 1.0).sqrt() / (column.exp() + 0.5);
        shifted.tanh() * sigmoid(x - column) * ratio - (ratio + shifted.abs()).ln()
    };
    x.iter().enumerate().map(value).collect()
}

/// [`CHAIN_MEAN`](super::operations::CHAIN_MEAN) in f64.
pub fn chain_mean(given: &Values<'_>) -> Vec<f64> {
    chain(given).chunks(given.last(0)).map(|row| 2.0 * (row.iter().sum::<f64>() / row.len() as f64).exp()).collect()
}

/// [`SUM`](super::operations::SUM) in f64.
pub fn sum(given: &Values<'_>) -> Vec<f64> {
    vec![given.values[0].iter().map(|value| value * value).sum()]
}

/// [`MATMUL`](super::operations::MATMUL) in f64.
pub fn matmul(shapes: &Shapes<'_>, visit: &mut dyn FnMut(usize, usize, usize)) {
    let axes = shapes[0].len();
    let (batch, m, k, n) = (shapes[0][..axes - 2].iter().product::<usize>(), shapes[0][axes - 2], shapes[0][axes - 1], shapes[1][axes - 1]);
    for (row, column) in (0..batch * m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        (0..k).for_each(|i| visit(row * n + column, row * k + i, (row / m * k + i) * n + column));
    }
}

/// [`LINEAR`](super::operations::LINEAR) in f64.
pub fn linear(shapes: &Shapes<'_>, visit: &mut dyn FnMut(usize, usize, usize)) {
    let (rows, d_out, d_in) = (shapes[0][0] * shapes[0][1], shapes[1][0], shapes[1][1]);
    for (row, out) in (0..rows).flat_map(|row| (0..d_out).map(move |out| (row, out))) {
        (0..d_in).for_each(|i| visit(row * d_out + out, row * d_in + i, out * d_in + i));
    }
}

/// [`CONV_3X3`](super::operations::CONV_3X3) and its like in f64.
pub fn conv(shapes: &Shapes<'_>, stride: usize, padding: usize, visit: &mut dyn FnMut(usize, usize, usize)) {
    let ([batch, d_in, height, width], [d_out, .., k]) = (shapes[0], shapes[1]) else { panic!("images and kernels") };
    let steps = |size: usize| (size + 2 * padding - k) / stride + 1;
    let (rows, columns) = (steps(*height), steps(*width));
    for out in 0..batch * d_out * rows * columns {
        let (b, o, row, column) = (out / (d_out * rows * columns), out / (rows * columns) % d_out, out / columns % rows, out % columns);
        for tap in 0..d_in * k * k {
            let (i, ky, kx) = (tap / (k * k), tap / k % k, tap % k);
            let (y, x) = (row * stride + ky, column * stride + kx);
            if (padding..height + padding).contains(&y) && (padding..width + padding).contains(&x) {
                visit(out, ((b * d_in + i) * height + y - padding) * width + x - padding, o * d_in * k * k + tap);
            }
        }
    }
}

/// [`NARROW_HEAD`](super::operations::NARROW_HEAD) in f64.
pub fn narrow_head(given: &Values<'_>) -> Vec<f64> {
    let (d_in, [x, weight, bias, head]) = (given.last(0), [0, 1, 2, 3].map(|i| &given.values[i]));
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let score = |x: &[f64]| {
        let hidden = weight.chunks(d_in).zip(bias).map(|(weight, bias)| dot(x, weight) + bias);
        hidden.zip(head).map(|(hidden, head)| hidden * sigmoid(hidden) * head).sum()
    };
    x.chunks(d_in).map(score).collect()
}

/// `values` less their mean, over the root of their variance.
fn normalized(values: &[f64]) -> impl Iterator<Item = f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    values.iter().map(move |value| (value - mean) / (variance + EPS).sqrt())
}

/// [`GROUP_NORM_SILU`](super::operations::GROUP_NORM_SILU) in f64.
pub fn group_norm_silu(given: &Values<'_>) -> Vec<f64> {
    let &[_, channels, height, width] = given.shape(0) else { panic!("images") };
    let normalized = given.values[0].chunks(channels / GROUPS * height * width).flat_map(normalized);
    let value = |(place, value): (usize, f64)| {
        let channel = place / (height * width) % channels;
        let value = value * given.values[1][channel] + given.values[2][channel];
        value * sigmoid(value)
    };
    normalized.enumerate().map(value).collect()
}

/// [`LAYER_NORM`](super::operations::LAYER_NORM) in f64.
pub fn layer_norm(given: &Values<'_>) -> Vec<f64> {
    let channels = given.last(0);
    let normalized = given.values[0].chunks(channels).flat_map(normalized).enumerate();
    normalized.map(|(place, value)| value * given.values[1][place % channels] + given.values[2][place % channels]).collect()
}

/// [`GELU`](super::operations::GELU) in f64.
pub fn gelu(given: &Values<'_>) -> Vec<f64> {
    given.values[0].iter().map(|x| gelu_of(x * SPREAD)).collect()
}

/// [`QUICK_GELU`](super::operations::QUICK_GELU) in f64.
pub fn quick_gelu(given: &Values<'_>) -> Vec<f64> {
    given.values[0].iter().map(|x| x * SPREAD * sigmoid(1.702 * x * SPREAD)).collect()
}

/// [`GEGLU`](super::operations::GEGLU) in f64.
pub fn geglu(given: &Values<'_>) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (value, gate) = row.split_at(row.len() / 2);
        value.iter().zip(gate).map(|(value, gate)| value * SPREAD * gelu_of(gate * SPREAD)).collect()
    };
    given.values[0].chunks(given.last(0)).flat_map(row).collect()
}

fn softmax_of(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = row.iter().map(|value| (value - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// [`SOFTMAX`](super::operations::SOFTMAX) in f64.
pub fn softmax(given: &Values<'_>) -> Vec<f64> {
    let spread: Vec<f64> = given.values[0].iter().map(|value| value * SPREAD).collect();
    spread.chunks(given.last(0)).flat_map(softmax_of).collect()
}

/// `mask(row, query, key)` is added to the scores.
pub fn attention(given: &Values<'_>, mask: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let (batch, queries, channels) = (given.shape(0)[0], given.shape(0)[1], given.last(0));
    let (keys, d) = (given.shape(1)[1], channels / HEADS);
    let [q, k, v] = [0, 1, 2].map(|i| &given.values[i]);
    let mut output = vec![0.0; q.len()];
    for place in 0..batch * queries * HEADS {
        let (row, query, head) = (place / (queries * HEADS), place / HEADS % queries, place % HEADS);
        let at_query = (row * queries + query) * channels + head * d;
        let at_key = |key: usize| (row * keys + key) * channels + head * d;
        let score = |key: usize| -> f64 {
            let product: f64 = (0..d).map(|i| q[at_query + i] * k[at_key(key) + i]).sum();
            product / (d as f64).sqrt() + mask(row, query, key)
        };
        let seen = softmax_of(&(0..keys).map(score).collect::<Vec<f64>>());
        for (key, weight) in seen.into_iter().enumerate() {
            (0..d).for_each(|i| output[at_query + i] += weight * v[at_key(key) + i]);
        }
    }
    output
}

/// [`EMBEDDING`](super::operations::EMBEDDING) in f64.
pub fn embedding(given: &Values<'_>) -> Vec<f64> {
    let width = given.last(0);
    looked_up(given.shape(0)[0]).into_iter().flat_map(|row| given.values[0][row * width..][..width].to_vec()).collect()
}

/// A matrix as [`Place::fill`](super::inputs::Place::fill) makes it.
fn matrix(name: &str, rows: usize, columns: usize) -> Vec<f64> {
    let size = (3.0 / columns as f64).sqrt();
    wide(name, rows * columns).into_iter().map(|value| value * size).collect()
}

/// `y = W x + b + (α/r) B A x`, and the gradients of A, B and x, by the chain rule.
pub fn lora() -> Vec<Computed> {
    let (rows, d_in, d_out, scale) = (18, 40, 48, LORA_ALPHA / LORA_RANK as f64);
    let (x, weight) = (wide("x", rows * d_in), matrix("linear.weight", d_out, d_in));
    let bias: Vec<f64> = wide("linear.bias", d_out).into_iter().map(|value| value * 0.1).collect();
    let (down, up) = (matrix("linear.lora.down.weight", LORA_RANK, d_in), matrix("linear.lora.up.weight", d_out, LORA_RANK));
    let gradient = wide("output gradient", rows * d_out);
    let (mut output, mut of_x) = (vec![0.0; rows * d_out], vec![0.0; rows * d_in]);
    let (mut of_down, mut of_up) = (vec![0.0; down.len()], vec![0.0; up.len()]);
    for row in 0..rows {
        for out in 0..d_out {
            let (y, g) = (row * d_out + out, gradient[row * d_out + out]);
            output[y] += bias[out];
            for i in 0..d_in {
                let x = x[row * d_in + i];
                output[y] += weight[out * d_in + i] * x;
                of_x[row * d_in + i] += weight[out * d_in + i] * g;
                for r in 0..LORA_RANK {
                    let (a, b) = (down[r * d_in + i], up[out * LORA_RANK + r]);
                    output[y] += scale * b * a * x;
                    of_x[row * d_in + i] += scale * b * a * g;
                    of_down[r * d_in + i] += scale * b * x * g;
                    of_up[out * LORA_RANK + r] += scale * a * x * g;
                }
            }
        }
    }
    let named = [("output", output), ("x", of_x), ("linear.lora.down.weight", of_down), ("linear.lora.up.weight", of_up)];
    named.map(|(name, values)| Computed::new(name, values)).into()
}

/// Loshchilov and Hutter, algorithm 2, with the defaults of PyTorch.
pub fn adamw() -> Vec<Computed> {
    let (beta1, beta2, eps, weight_decay): (f64, f64, f64, f64) = (0.9, 0.999, 1e-8, 1e-2);
    let bias = wide("linear.bias", 48).into_iter().map(|value| value * 0.1).collect();
    let tensors = [("linear.weight", matrix("linear.weight", 48, 40)), ("linear.bias", bias)];
    let updated = tensors.map(|(name, weights)| {
        let gradients = ["first", "second"].map(|step| wide(&format!("{step} gradient of {name}"), weights.len()));
        let update = |(place, weight): (usize, f64)| {
            let (mut weight, mut m, mut v) = (weight, 0.0, 0.0);
            for (step, gradient) in (1..).zip(&gradients) {
                let g = gradient[place];
                weight -= LEARNING_RATE * weight_decay * weight;
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                weight -= LEARNING_RATE * m / (1.0 - beta1.powi(step)) / ((v / (1.0 - beta2.powi(step))).sqrt() + eps);
            }
            weight
        };
        Computed::new(name, weights.into_iter().enumerate().map(update).collect())
    });
    updated.into()
}
