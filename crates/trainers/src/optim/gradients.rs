//! Gradient accumulation between the backward passes and the update.

use burn::tensor::Tensor;

use super::{NamedTensors, f32};
use crate::Error;

/// The sum of the gradients of several micro-batches, by parameter name.
#[derive(Debug, Clone, Default)]
pub struct GradientAccumulator {
    sums: NamedTensors,
}

impl GradientAccumulator {
    /// Adds the gradients of one micro-batch, multiplied by `scale`. If the loss is a mean, `scale = 1 / n` makes the sum over `n`
    /// micro-batches of equal size the gradient of the whole batch. A loss that has already been divided takes 1.
    pub fn add(&mut self, gradients: impl IntoIterator<Item = (String, Tensor<1>)>, scale: f64) {
        for (name, gradient) in gradients {
            let gradient = f32(gradient) * scale;
            let sum = match self.sums.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.sums.insert(name, sum);
        }
    }

    /// The L2 norm over all gradients together.
    ///
    /// # Errors
    /// When a gradient holds NaN or infinity; the error names it.
    pub fn norm(&self) -> Result<f64, Error> {
        if self.sums.is_empty() {
            return Ok(0.0);
        }
        // One transfer for all gradients, because the host and the device wait for each other at each transfer.
        let squares = self.sums.values().map(|gradient| gradient.clone().square().sum()).collect();
        let squares: Vec<f64> = Tensor::cat(squares, 0).into_data().iter::<f64>().collect();
        match self.sums.keys().zip(&squares).find(|(_, square)| !square.is_finite()) {
            Some((name, _)) => Err(Error::NonFiniteGradient { name: name.clone() }),
            None => Ok(squares.iter().sum::<f64>().sqrt()),
        }
    }

    /// Scales all gradients by `min(1, max_norm / (norm + 1e-6))`, so that their common norm is at most `max_norm`, as
    /// `torch.nn.utils.clip_grad_norm_` does. Returns the norm before scaling.
    ///
    /// # Errors
    /// As [`norm`](Self::norm).
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> Result<f64, Error> {
        let norm = self.norm()?;
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            self.sums = std::mem::take(&mut self.sums).into_iter().map(|(name, gradient)| (name, gradient * scale)).collect();
        }
        Ok(norm)
    }

    /// The sums by parameter name, for the optimizer, or for a checkpoint between two micro-batches of an update.
    pub fn gradients(&self) -> &NamedTensors {
        &self.sums
    }

    /// Takes the sums out, so that the next update starts from nothing.
    pub fn take(&mut self) -> NamedTensors {
        std::mem::take(&mut self.sums)
    }
}

impl From<NamedTensors> for GradientAccumulator {
    fn from(sums: NamedTensors) -> Self {
        Self { sums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::testing::assert_values;
    use burn::tensor::Device;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    fn some(a: &[f32], b: &[f32]) -> Vec<(String, Tensor<1>)> {
        vec![("a".into(), tensor(a)), ("b".into(), tensor(b))]
    }

    #[test]
    fn micro_batches_add_up() {
        let mut sums = GradientAccumulator::default();
        sums.add(some(&[1.0, 2.0], &[4.0]), 0.5);
        sums.add(vec![("a".into(), tensor(&[3.0, -2.0]))], 0.5);
        assert_values(&sums.gradients()["a"], &[2.0, 0.0]);
        assert_values(&sums.gradients()["b"], &[2.0]);
        assert_eq!(sums.take().len(), 2);
        assert!(sums.gradients().is_empty());
    }

    #[test]
    fn the_norm_is_global() {
        let mut sums = GradientAccumulator::default();
        sums.add(some(&[3.0, 0.0], &[4.0]), 1.0);
        assert!((sums.clip_grad_norm(10.0).unwrap() - 5.0).abs() < 1e-6);
        assert_values(&sums.gradients()["a"], &[3.0, 0.0]);
        assert!((sums.clip_grad_norm(1.0).unwrap() - 5.0).abs() < 1e-6);
        // 1 / 5 of each, whichever tensor it is in.
        assert_values(&sums.gradients()["a"], &[0.6, 0.0]);
        assert_values(&sums.gradients()["b"], &[0.8]);
        assert_eq!(GradientAccumulator::default().clip_grad_norm(1.0).unwrap(), 0.0);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sums = GradientAccumulator::default();
            sums.add(some(&[1.0, 2.0], &[bad]), 1.0);
            assert!(matches!(sums.clip_grad_norm(1.0), Err(Error::NonFiniteGradient { name }) if name == "b"));
        }
    }
}
