//! What the single-step samplers (DDIM, DDPM, Euler, Euler ancestral) share: μ is linear in x_0, x_t and the model output, with coefficients that depend on the step alone.

use burn::tensor::Tensor;

use crate::{
    class::SchedulerClass,
    config::PredictionType,
    error::{Result, SchedulerError},
    noise_schedule::{DiscreteSchedule, NoiseSchedule, Scheduler, per_sample},
    prediction::{Clipping, Linear},
    transition::Transition,
};

/// One row of a sampler's table: x_0 = `original_sample`(x_t, m), then μ = `mean_original` x_0 + `mean.sample` x_t + `mean.output` m.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepCoefficients {
    pub original_sample: Linear,
    pub mean_original: f64,
    pub mean: Linear,
    pub std_dev_t: f64,
}

/// A sampler at a fixed number of steps, each with its own coefficients.
#[derive(Clone, Debug)]
pub(crate) struct SingleStepScheduler {
    pub(crate) schedule: DiscreteSchedule,
    pub(crate) coefficients: Vec<StepCoefficients>,
    pub(crate) clipping: Clipping,
}

impl NoiseSchedule for SingleStepScheduler {
    fn schedule(&self) -> &DiscreteSchedule {
        &self.schedule
    }
}

impl Scheduler for SingleStepScheduler {
    fn transition(&self, model_output: Tensor<4>, steps: &[usize], sample: Tensor<4>) -> Transition {
        let model_output = in_float_type_of(model_output, &sample);
        let column = |value: fn(&StepCoefficients) -> f64| per_sample(steps.iter().map(|&step| value(&self.coefficients[step])), &sample);
        let std_dev_t = column(|row| row.std_dev_t);

        let pred_original_sample = self.clipping.apply(
            sample.clone() * column(|row| row.original_sample.sample) + model_output.clone() * column(|row| row.original_sample.output),
        );

        let mut prev_sample_mean = pred_original_sample.clone() * column(|row| row.mean_original);
        if steps.iter().any(|&step| self.coefficients[step].mean.output != 0.0) {
            prev_sample_mean = prev_sample_mean + model_output * column(|row| row.mean.output);
        }
        if steps.iter().any(|&step| self.coefficients[step].mean.sample != 0.0) {
            let scale = column(|row| row.mean.sample);
            prev_sample_mean = prev_sample_mean + sample * scale;
        }
        Transition { pred_original_sample, prev_sample_mean, std_dev_t }
    }

    fn std_dev_t(&self, step: usize) -> f64 {
        self.coefficients[step].std_dev_t
    }
}

/// Latents stay in their own float type; a network may answer in a shorter one.
pub(crate) fn in_float_type_of(model_output: Tensor<4>, sample: &Tensor<4>) -> Tensor<4> {
    if model_output.dtype() == sample.dtype() { model_output } else { model_output.cast(sample.dtype()) }
}

/// ᾱ at each of the given timesteps.
///
/// # Errors
/// A timestep past the table, which `steps_offset` can cause.
pub(crate) fn alphas_at(alphas_cumprod: &[f64], timesteps: &[f64], class: &SchedulerClass) -> Result<Vec<f64>> {
    timesteps
        .iter()
        .map(|&t| {
            alphas_cumprod.get(t as usize).copied().ok_or_else(|| SchedulerError::NumInferenceSteps {
                got: timesteps.len(),
                reason: format!(
                    "{} would visit timestep {t}, past the last trained one, {}; use fewer steps or a smaller steps_offset",
                    class.class_name,
                    alphas_cumprod.len() - 1
                ),
            })
        })
        .collect()
}

/// # Errors
/// A visited ᾱ of zero with ε-prediction: where no signal is left, noise says nothing about x_0.
pub(crate) fn check_terminal_signal(schedule: &DiscreteSchedule, visited: &[f64], class: &SchedulerClass) -> Result<()> {
    if visited.contains(&0.0) && schedule.prediction_type == PredictionType::Epsilon {
        return Err(SchedulerError::Unsupported {
            class: class.class_name.into(),
            field: "rescale_betas_zero_snr".into(),
            value: "true".into(),
            way_out: "with prediction_type epsilon the first step would divide by zero; the model needs v_prediction or sample".into(),
        });
    }
    Ok(())
}
