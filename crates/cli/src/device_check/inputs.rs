//! What the cases are computed from: a formula in integers, the same on every machine and in every version.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use vp_models::parameters::{map_parameters, named_parameters};

/// A tensor that an operation takes.
pub struct Input {
    /// Its values follow from the name.
    pub name: &'static str,
    pub shape: &'static [usize],
}

impl Input {
    /// An input of this name and shape.
    pub const fn of(name: &'static str, shape: &'static [usize]) -> Self {
        Self { name, shape }
    }
}

/// `count` values in [-1, 1), each a multiple of 2⁻²³ and so exact in f32, that belong to `name`.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    // FNV-1a of the name, then one round of SplitMix64 per value (Steele, Lea and Flood, 2014).
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let value = |place: u64| {
        let mut z = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (1..=count as u64).map(value).collect()
}

/// Where a case is computed. Every tensor of a case is made here, in f32: the one place to choose another number format.
pub struct Place {
    /// Without autodiff.
    pub device: Device,
}

impl Place {
    /// The cases' place on `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone() }
    }

    /// Constants of `name` in [-1, 1).
    pub fn constant<const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values(name, shape.iter().product()), shape), &self.device)
    }

    /// An input, flattened, that gradients are wanted of.
    pub fn leaf(&self, input: &Input) -> Tensor<1> {
        self.flat(input).autodiff().require_grad()
    }

    /// An input, flattened.
    pub fn flat(&self, input: &Input) -> Tensor<1> {
        self.constant(input.name, [input.shape.iter().product()])
    }

    /// `module` with weights that keep the size of what a layer is given: matrices and kernels of the variance 1 / fan-in, norms
    /// around 1, biases around 0.
    pub fn fill<M: Module>(&self, module: M) -> M {
        let shapes: BTreeMap<String, Vec<usize>> =
            named_parameters(&module).into_iter().map(|parameter| (parameter.name, parameter.shape)).collect();
        map_parameters(module, |name, _, old| {
            let shape = &shapes[name];
            let fan_in: usize = shape[1..].iter().product();
            let (size, middle) = match shape.len() {
                1 if name.ends_with("bias") => (0.1, 0.0),
                1 => (0.2, 1.0),
                // The variance of a uniform value in [-1, 1) is 1/3.
                _ => ((3.0 / fan_in as f64).sqrt(), 0.0),
            };
            self.constant(name, old.dims()) * size + middle
        })
    }
}
