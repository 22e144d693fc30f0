//! The optimizer and what surrounds it: gradient accumulation, learning-rate schedules, the moving average, and workers.
//!
//! All state is exported as flattened f32 tensors off the tape, under the name of the parameter, which is also its key in a checkpoint. So it
//! can be saved, inspected and resumed without the module that it belongs to.

mod adamw;
mod ema;
mod gradients;
mod loss_scale;
mod lr_schedule;
mod moments;
mod workers;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::{Ema, EmaConfig};
pub use gradients::GradientAccumulator;
pub use loss_scale::LossScale;
pub use lr_schedule::{Constant, LrSchedule, LrSchedulerConfig, Warmup};
pub use moments::MomentsFormat;
pub use workers::Workers;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use vp_models::parameters::trainable_parameters;

use crate::Error;

/// Flattened f32 tensors by name.
pub type NamedTensors = BTreeMap<String, Tensor<1>>;

/// The number of values of each trainable parameter, which a saved state must match.
struct Expected {
    what: &'static str,
    lengths: BTreeMap<String, usize>,
}

impl Expected {
    fn of<M: Module>(module: &M, what: &'static str) -> Self {
        Self { what, lengths: trainable_parameters(module).into_iter().map(|p| (p.name, p.values.dims()[0])).collect() }
    }

    fn error(&self, key: &str, problem: String) -> Error {
        Error::State { what: self.what, key: key.into(), problem }
    }

    /// Takes the tensor of `parameter` under `key` out of `state`.
    fn take(&self, state: &mut NamedTensors, key: &str, parameter: &str) -> Result<Tensor<1>, Error> {
        let Some(&expected) = self.lengths.get(parameter) else {
            return Err(self.error(key, "the model has no trainable parameter of this name".into()));
        };
        let tensor = state.remove(key).ok_or_else(|| self.error(key, format!("missing; expected {expected} values")))?;
        let [found] = tensor.dims();
        if found == expected { Ok(tensor) } else { Err(self.error(key, format!("expected {expected} values, found {found}"))) }
    }

    /// Takes the count under `key` out of `state`.
    fn take_count(&self, state: &mut NamedTensors, key: &str) -> Result<u64, Error> {
        let tensor = state.remove(key).ok_or_else(|| self.error(key, "missing; expected one number".into()))?;
        let [found] = tensor.dims();
        if found != 1 {
            return Err(self.error(key, format!("expected one number, found {found}")));
        }
        let count = tensor.into_scalar::<f32>();
        if count >= 0.0 && count.fract() == 0.0 {
            Ok(count as u64)
        } else {
            Err(self.error(key, format!("expected a count, found {count}")))
        }
    }

    fn nothing_left(&self, state: NamedTensors) -> Result<(), Error> {
        match state.into_keys().next() {
            None => Ok(()),
            Some(key) => Err(self.error(&key, "expected no tensor of this name".into())),
        }
    }
}

/// `value` as a tensor, `[1]`; exact up to 2^24 steps.
fn count(value: u64, device: &Device) -> Tensor<1> {
    Tensor::from_data([value as f32], device)
}

fn f32(values: Tensor<1>) -> Tensor<1> {
    values.cast(FloatDType::F32)
}

#[cfg(test)]
mod testing {
    use burn::module::{Module, Param};
    use burn::tensor::{Device, Tensor};

    /// Two parameters that train and one that does not.
    #[derive(Module, Debug)]
    pub struct Toy {
        pub a: Param<Tensor<1>>,
        pub b: Param<Tensor<1>>,
        pub frozen: Param<Tensor<1>>,
    }

    /// `a = [1, 2]`, `b = [3]`, `frozen = [7]`.
    pub fn toy() -> Toy {
        let device = Device::flex().autodiff();
        let frozen = Param::from_data([7.0], &device).set_require_grad(false);
        Toy { a: Param::from_data([1.0, 2.0], &device), b: Param::from_data([3.0], &device), frozen }
    }

    pub fn values(tensor: &Tensor<1>) -> Vec<f32> {
        tensor.clone().into_data().iter::<f32>().collect()
    }

    #[track_caller]
    pub fn assert_values(got: &Tensor<1>, expected: &[f32]) {
        let got = values(got);
        let close = got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "got {got:?}, expected {expected:?}");
    }
}
