//! From what the network says to x_0 and ε, and the optional clamping of x_0.
//!
//! For a variance-preserving sample x_t = α x_0 + σ ε with α = √ᾱ_t, σ = √(1-ᾱ_t), every prediction type is linear in the pair (x_t, model output):
//!
//! | type | x_0 | ε |
//! |---|---|---|
//! | `epsilon` | (x_t - σ m) / α | m |
//! | `v_prediction` | α x_t - σ m | α m + σ x_t |
//! | `sample` | m | (x_t - α m) / σ |
//!
//! Follows `step` of diffusers' `schedulers/scheduling_ddim.py` and `_threshold_sample` of `scheduling_ddpm.py` (Imagen, 2205.11487, section 2.3).

use burn::tensor::Tensor;

use crate::{
    class::SchedulerClass,
    config::{PredictionType, SchedulerConfig},
    error::{Result, SchedulerError},
    noise_schedule::TrainingLevel,
};

/// `sample * x_t + output * m`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Linear {
    pub sample: f64,
    pub output: f64,
}

impl PredictionType {
    /// How far one unit of the model output moves x_0 at a noise level: σ / α for ε, σ for v, and 1 for x_0 itself.
    pub fn slope_of_original(self, level: TrainingLevel) -> f64 {
        self.original_sample(level.signal, level.noise).output.abs()
    }

    /// x_0 from x_t and the model output.
    pub(crate) fn original_sample(self, alpha: f64, sigma: f64) -> Linear {
        match self {
            Self::Epsilon => Linear { sample: 1.0 / alpha, output: -sigma / alpha },
            Self::VPrediction => Linear { sample: alpha, output: -sigma },
            Self::Sample => Linear { sample: 0.0, output: 1.0 },
        }
    }

    /// ε from x_t and the model output.
    pub(crate) fn epsilon(self, alpha: f64, sigma: f64) -> Linear {
        match self {
            Self::Epsilon => Linear { sample: 0.0, output: 1.0 },
            Self::VPrediction => Linear { sample: sigma, output: alpha },
            Self::Sample => Linear { sample: 1.0 / sigma, output: -alpha / sigma },
        }
    }
}

/// What is done to a predicted x_0 before it is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Clipping {
    None,
    /// To [-range, range].
    Range(f64),
    /// Dynamic thresholding: to the quantile `ratio` of |x_0| of each sample, held between 1 and `max`, then divided by it.
    Dynamic {
        ratio: f64,
        max: f64,
    },
}

impl SchedulerConfig {
    /// # Errors
    /// A range, ratio or maximum that is not a positive number; a ratio above 1.
    pub(crate) fn clipping(&self, class: &SchedulerClass) -> Result<Clipping> {
        let positive = |field: &str, value: f64| {
            let expected = "a positive number".to_string();
            if value.is_finite() && value > 0.0 {
                Ok(value)
            } else {
                Err(SchedulerError::Field { field: field.into(), value: value.to_string(), expected })
            }
        };
        if class.thresholding && self.thresholding.unwrap_or(false) {
            let ratio = positive("dynamic_thresholding_ratio", self.dynamic_thresholding_ratio.unwrap_or(0.995))?;
            if ratio > 1.0 {
                return Err(SchedulerError::Field {
                    field: "dynamic_thresholding_ratio".into(),
                    value: ratio.to_string(),
                    expected: "a quantile, at most 1".into(),
                });
            }
            return Ok(Clipping::Dynamic { ratio, max: positive("sample_max_value", self.sample_max_value.unwrap_or(1.0))? });
        }
        let clips = class.clip_sample.map(|default| self.clip_sample.unwrap_or(default));
        if clips == Some(true) {
            Ok(Clipping::Range(positive("clip_sample_range", self.clip_sample_range.unwrap_or(1.0))?))
        } else {
            Ok(Clipping::None)
        }
    }
}

impl Clipping {
    /// `[b, c, h, w]` to the same.
    pub(crate) fn apply(self, original_sample: Tensor<4>) -> Tensor<4> {
        match self {
            Self::None => original_sample,
            Self::Range(range) => original_sample.clamp(-range, range),
            Self::Dynamic { ratio, max } => {
                let [batch, channels, height, width] = original_sample.dims();
                let count = channels * height * width;
                let sorted = original_sample.clone().abs().reshape([batch, count]).sort(1);
                let position = ratio * (count - 1) as f64;
                let (low, high) = (position.floor() as usize, position.ceil() as usize);
                let (at_low, at_high) = (sorted.clone().narrow(1, low, 1), sorted.narrow(1, high, 1));
                let quantile = at_low.clone() + (at_high - at_low) * (position - low as f64);
                let threshold =
                    quantile.clamp_min(1.0_f64.min(max)).clamp_max(max).reshape([batch, 1, 1, 1]).expand([batch, channels, height, width]);
                original_sample.min_pair(threshold.clone()).max_pair(threshold.clone().neg()) / threshold
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn every_type_recovers_what_made_the_sample() {
        let (x0, eps, alpha, sigma) = (0.7, -1.3, 0.8_f64, 0.6_f64);
        let sample = alpha * x0 + sigma * eps;
        for (kind, output) in
            [(PredictionType::Epsilon, eps), (PredictionType::Sample, x0), (PredictionType::VPrediction, alpha * eps - sigma * x0)]
        {
            let at = |linear: Linear| linear.sample * sample + linear.output * output;
            assert!((at(kind.original_sample(alpha, sigma)) - x0).abs() < 1e-12, "{kind:?}");
            assert!((at(kind.epsilon(alpha, sigma)) - eps).abs() < 1e-12, "{kind:?}");
        }
    }

    #[test]
    fn dynamic_thresholding_takes_each_samples_own_quantile() {
        let x = Tensor::<4>::from_data([[[[-4.0, 0.5], [1.0, 2.0]]], [[[0.1, 0.2], [0.3, -0.4]]]], &Device::flex());
        let y = Clipping::Dynamic { ratio: 0.5, max: 10.0 }.apply(x.clone());
        // |x| sorted: .5 1 2 4, median 1.5; and .25, which is raised to 1.
        let expected = [-1.0, 0.5 / 1.5, 1.0 / 1.5, 1.0, 0.1, 0.2, 0.3, -0.4];
        let got: Vec<f32> = y.into_data().try_to_vec().unwrap();
        assert!(got.iter().zip(expected).all(|(a, b)| (*a as f64 - b).abs() < 1e-6), "{got:?}");
        let got: Vec<f32> = Clipping::Range(1.0).apply(x).into_data().try_to_vec().unwrap();
        assert_eq!(got, [-1.0, 0.5, 1.0, 1.0, 0.1, 0.2, 0.3, -0.4]);
    }
}
