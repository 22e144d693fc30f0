//! What a file does to one layer, whichever form it is stored in.
//!
//! | form | change of the weight W | source |
//! |---|---|---|
//! | LoRA, LoCon | s · B A | arXiv 2106.09685; LyCORIS `modules/locon.py` |
//! | LoHa | s · (B₁ A₁) ∘ (B₂ A₂) | arXiv 2108.06098; LyCORIS `modules/loha.py` |
//! | LoKr | s · (W₁ ⊗ W₂) | LyCORIS `modules/lokr.py` |
//! | full | D | LyCORIS `modules/full.py`, `norms.py` |
//! | DoRA, on any of them | m (W + ΔW) / ‖W + ΔW‖ - W | arXiv 2402.09353, equation 5 |
//!
//! A factor that is itself a product (the third factor of a convolution, a decomposed W₂) is multiplied out when it is read.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::Factors;

/// What a file does to one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Shape of the layer's weight: `[out, in]`, `[out, in, k, k]`, or of a norm `[channels]`.
    pub shape: Vec<usize>,
    /// What is added to the weight.
    pub weight: Option<Delta>,
    /// DoRA: the norms that the sum is given.
    pub magnitude: Option<Magnitude>,
    /// What is added to the bias, `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// What is added to a weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// A product of two factors: LoRA and LoCon.
    LowRank(Factors),
    /// The products of two pairs of factors, multiplied entry by entry: LoHa.
    Hadamard {
        /// What the whole is multiplied by.
        scale: f64,
        /// `[out, rank]` and `[rank, in · k · k]`.
        first: [Matrix; 2],
        /// Of the same shapes.
        second: [Matrix; 2],
    },
    /// A Kronecker product: LoKr.
    Kronecker {
        /// What the whole is multiplied by.
        scale: f64,
        /// `[a, b]`.
        first: Matrix,
        /// `[out / a, in / b · k · k]`.
        second: Matrix,
    },
    /// All its values, row by row.
    Full(Vec<f32>),
}

/// The norms of DoRA.
#[derive(Debug, Clone, PartialEq)]
pub enum Magnitude {
    /// One per output, `[out]`.
    Outputs(Vec<f32>),
    /// One per input channel, `[in]`.
    Inputs(Vec<f32>),
}

/// A matrix on the host, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    /// The product with another matrix, which has as many rows as this one has columns; summed in f64.
    pub(super) fn times(&self, other: &Self) -> Self {
        let mut values = Vec::with_capacity(self.rows * other.columns);
        let mut sums = vec![0.0f64; other.columns];
        for row in self.values.chunks_exact(self.columns) {
            sums.fill(0.0);
            for (factor, other_row) in row.iter().zip(other.values.chunks_exact(other.columns)) {
                sums.iter_mut().zip(other_row).for_each(|(sum, value)| *sum += f64::from(*factor) * f64::from(*value));
            }
            values.extend(sums.iter().map(|sum| *sum as f32));
        }
        Self { rows: self.rows, columns: other.columns, values }
    }

    /// Rows and columns exchanged.
    pub(super) fn transposed(&self) -> Self {
        let values = (0..self.columns).flat_map(|column| self.values.iter().skip(column).step_by(self.columns).copied());
        Self { rows: self.columns, columns: self.rows, values: values.collect() }
    }

    /// `self[n, m · k]` with the middle index summed over that of `inputs[m, in]`: `[n, in · k]`, the kernel's window innermost.
    pub(super) fn folded(&self, inputs: &Self) -> Self {
        let window = self.columns / inputs.rows;
        let mut values = Vec::with_capacity(self.rows * inputs.columns * window);
        let by_input = inputs.transposed();
        for row in self.values.chunks_exact(self.columns) {
            let core = Self { rows: inputs.rows, columns: window, values: row.to_vec() };
            values.extend(by_input.times(&core).values);
        }
        Self { rows: self.rows, columns: inputs.columns * window, values }
    }

    fn on(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), [self.rows, self.columns]), device)
    }
}

impl Factors {
    /// `weight · (alpha / rank) · up · down`, `[out, in · k · k]`.
    pub(super) fn delta(&self, weight: f64, device: &Device) -> Tensor<2> {
        let matrix = |values: &Vec<f32>, rows: usize| -> Tensor<2> {
            let columns = values.len() / rows;
            Tensor::from_data(TensorData::new(values.clone(), [rows, columns]), device)
        };
        matrix(&self.up, self.shape[0]).matmul(matrix(&self.down, self.rank)) * (weight * self.alpha / self.rank as f64)
    }
}

impl Delta {
    /// `weight` times this change of a weight of `shape`, `[out, in · k · k]`.
    fn dense(&self, weight: f64, shape: &[usize], device: &Device) -> Tensor<2> {
        let (out, rest) = (shape[0], shape[1..].iter().product::<usize>());
        match self {
            Self::LowRank(factors) => factors.delta(weight, device),
            Self::Hadamard { scale, first, second } => {
                let product = |[up, down]: &[Matrix; 2]| up.on(device).matmul(down.on(device));
                product(first) * product(second) * (weight * scale)
            }
            Self::Kronecker { scale, first, second } => {
                let (first, second) = (first.on(device), second.on(device));
                let ([a, b], [c, _]) = (first.dims(), second.dims());
                let channels = shape.get(1).map_or(1, |channels| channels / b);
                let window = rest / (b * channels);
                let product = first.reshape([a, 1, b, 1, 1]) * second.reshape([1, c, 1, channels, window]);
                product.reshape([out, rest]) * (weight * scale)
            }
            Self::Full(values) => Tensor::<2>::from_data(TensorData::new(values.clone(), [out, rest]), device) * weight,
        }
    }

    /// What its form is called.
    fn form(&self) -> &'static str {
        match self {
            Self::LowRank(_) => "LoRA",
            Self::Hadamard { .. } => "LoHa",
            Self::Kronecker { .. } => "LoKr",
            Self::Full(_) => "full differences",
        }
    }
}

impl Magnitude {
    /// `matrix`, `[out, in · window]`, with the norms of its rows or of its input channels replaced by these.
    fn applied(&self, matrix: Tensor<2>) -> Tensor<2> {
        let ([out, rest], device) = (matrix.dims(), matrix.device());
        let (values, sides, outputs) = match self {
            Self::Outputs(values) => (values, [out, 1, rest], true),
            Self::Inputs(values) => (values, [out, values.len(), rest / values.len()], false),
        };
        let cube = matrix.reshape(sides);
        let squares = cube.clone().square().sum_dim(2);
        let squares = if outputs { squares } else { squares.sum_dim(0) };
        // A row of zeros stays one.
        let norms = squares.sqrt().clamp_min(1e-12);
        let magnitude = Tensor::<1>::from_floats(values.as_slice(), &device).reshape(norms.dims());
        (cube * (magnitude / norms)).reshape([out, rest])
    }
}

impl Change {
    /// The layer's weight, flattened, with `weight` times this change. With DoRA the change is the whole way from W to W', so that a
    /// `weight` of 0.5 ends half-way between them. ComfyUI does the same; PEFT and diffusers multiply the factors instead, and give the sum the
    /// full magnitudes whatever the weight.
    pub(super) fn on_weight(&self, values: Tensor<1>, weight: f64) -> Tensor<1> {
        let Some(delta) = &self.weight else { return values };
        let (format, count, device) = (values.dtype(), values.dims()[0], values.device());
        let values = values.cast(DType::F32);
        let changed = match &self.magnitude {
            None => values + delta.dense(weight, &self.shape, &device).reshape([count]),
            Some(magnitude) => {
                let dense = delta.dense(1.0, &self.shape, &device);
                let merged = magnitude.applied(values.clone().reshape(dense.dims()) + dense).reshape([count]);
                if weight == 1.0 { merged } else { values.clone() + (merged - values) * weight }
            }
        };
        changed.cast(format)
    }

    /// The layer's bias with `weight` times this change.
    pub(super) fn on_bias(&self, values: Tensor<1>, weight: f64) -> Tensor<1> {
        let Some(bias) = &self.bias else { return values };
        let format = values.dtype();
        let bias = Tensor::<1>::from_floats(bias.as_slice(), &values.device()) * weight;
        (values.cast(DType::F32) + bias).cast(format)
    }

    /// What it is called, where it is more than two factors.
    pub(super) fn form(&self) -> Option<&'static str> {
        match self {
            Self { magnitude: Some(_), .. } => Some("DoRA"),
            Self { shape, .. } if shape.len() == 1 => Some("differences of norms"),
            Self { weight: Some(Delta::LowRank(_)), bias: None, .. } => None,
            Self { weight: Some(delta), bias: None, .. } => Some(delta.form()),
            Self { bias: Some(_), .. } | Self { weight: None, .. } => Some("differences of biases"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, values: &[f32]) -> Matrix {
        Matrix { rows, columns: values.len() / rows, values: values.to_vec() }
    }

    fn change(shape: &[usize], delta: Delta) -> Change {
        Change { shape: shape.to_vec(), weight: Some(delta), magnitude: None, bias: None }
    }

    fn merged(change: &Change, weight: f64, values: &[f32]) -> Vec<f32> {
        let values = Tensor::<1>::from_floats(values, &Device::flex());
        change.on_weight(values, weight).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn host_matrices() {
        let a = matrix(2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(a.transposed(), matrix(3, &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
        assert_eq!(a.times(&a.transposed()), matrix(2, &[14.0, 32.0, 32.0, 77.0]));
        // One output rank, two input ranks, a window of two: Σ_m core[m, k] inputs[m, j], by j, then k.
        let (core, inputs) = (matrix(1, &[1.0, 2.0, 3.0, 4.0]), matrix(2, &[1.0, 0.0, 1.0, 10.0, 1.0, 0.0]));
        assert_eq!(core.folded(&inputs), matrix(1, &[31.0, 42.0, 3.0, 4.0, 1.0, 2.0]));
    }

    #[test]
    fn every_form_by_hand() {
        let zeros = [0.0; 4];
        let loha = Delta::Hadamard {
            scale: 0.5,
            first: [matrix(2, &[1.0, 2.0]), matrix(1, &[3.0, 4.0])],
            second: [matrix(2, &[1.0, 1.0]), matrix(1, &[2.0, -2.0])],
        };
        assert_eq!(merged(&change(&[2, 2], loha), 1.0, &zeros), [3.0, -4.0, 6.0, -8.0]);
        // The second factor of a convolution [2, 2, 1, 2] has a window of two.
        let lokr = Delta::Kronecker { scale: 2.0, first: matrix(2, &[1.0, 2.0, 3.0, 4.0]), second: matrix(1, &[1.0, 10.0]) };
        let expected = [2.0, 20.0, 4.0, 40.0, 6.0, 60.0, 8.0, 80.0];
        assert_eq!(merged(&change(&[2, 2, 1, 2], lokr), 1.0, &[0.0; 8]), expected);
        assert_eq!(merged(&change(&[2], Delta::Full(vec![1.0, 2.0])), 0.5, &[1.0, 1.0]), [1.5, 2.0]);
    }

    #[test]
    fn dora_gives_rows_or_channels_their_norms_and_half_of_it_is_half_way() {
        let full = || Delta::Full(vec![3.0, 4.0, 0.0, 0.0]);
        let rows = Change { magnitude: Some(Magnitude::Outputs(vec![10.0, 7.0])), ..change(&[2, 2], full()) };
        assert_eq!(merged(&rows, 1.0, &[0.0; 4]), [6.0, 8.0, 0.0, 0.0]);
        assert_eq!(merged(&rows, 0.5, &[0.0; 4]), [3.0, 4.0, 0.0, 0.0]);
        let channels = Change { magnitude: Some(Magnitude::Inputs(vec![6.0, 2.0])), ..change(&[2, 2], full()) };
        assert_eq!(merged(&channels, 1.0, &[0.0; 4]), [6.0, 2.0, 0.0, 0.0]);
        assert_eq!(rows.form(), Some("DoRA"));
    }

    #[test]
    fn biases_change_with_the_weight() {
        let change = Change { shape: vec![2, 2], weight: None, magnitude: None, bias: Some(vec![1.0, -1.0]) };
        let bias: Vec<f32> = change.on_bias(Tensor::from_floats([0.5, 0.5], &Device::flex()), 2.0).into_data().try_into_vec().unwrap();
        assert_eq!(bias, [2.5, -1.5]);
        assert_eq!(merged(&change, 1.0, &[1.0; 4]), [1.0; 4]);
    }
}
