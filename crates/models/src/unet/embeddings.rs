//! Embeddings of time and of sizes.
//!
//! Source: diffusers `models/embeddings.py`.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use crate::layers::Linear;

/// Sinusoidal embedding of `values`: `[values.len(), dim]`, computed on the host in f64.
///
/// Half the channels are sines, half cosines, of `value · 10000^(−i / (dim/2 − freq_shift))`; cosines first when
/// `flip_sin_to_cos`. An odd `dim` ends with a zero.
pub fn sinusoidal(values: &[f32], dim: usize, flip_sin_to_cos: bool, freq_shift: f64, device: &Device) -> Tensor<2> {
    let half = dim / 2;
    let mut data = Vec::with_capacity(values.len() * dim);
    for value in values {
        let angle = |i: usize| f64::from(*value) * (-(10000f64.ln()) * i as f64 / (half as f64 - freq_shift)).exp();
        let sines = (0..half).map(|i| angle(i).sin() as f32);
        let cosines = (0..half).map(|i| angle(i).cos() as f32);
        if flip_sin_to_cos {
            data.extend(cosines.chain(sines));
        } else {
            data.extend(sines.chain(cosines));
        }
        data.extend(std::iter::repeat_n(0.0, dim - 2 * half));
    }
    Tensor::from_data(TensorData::new(data, [values.len(), dim]), device)
}

/// Linear, SiLU, linear.
#[derive(Module, Debug)]
pub struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    /// From `d_in` to `d_out`.
    pub fn new(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { linear_1: Linear::new(d_in, d_out, device), linear_2: Linear::new(d_out, d_out, device) }
    }

    /// `[b, d_in]` → `[b, d_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2.forward(vp_ops::silu(self.linear_1.forward(x)))
    }
}
