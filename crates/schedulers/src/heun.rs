//! Heun's method on the probability-flow ODE: algorithm 1 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2206.00364).
//!
//! | code | paper |
//! |---|---|
//! | (x - x_0) / σ | d_i, then d'_i |
//! | `halfway` | the part of line 8 that is known before d'_i |
//!
//! Every step but the last calls the network twice, so `timesteps()` and `sigmas()` repeat all inner values.
//! Follows diffusers' `schedulers/scheduling_heun_discrete.py`.

use burn::tensor::Tensor;

use crate::{
    class::{Build, SchedulerClass},
    config::{SchedulerConfig, TimestepSpacing},
    error::Result,
    euler::{EulerFields, sigma_schedule},
    multistep::linear,
    noise_schedule::{DiscreteSchedule, NoiseSchedule, Sampler},
    prediction::{Clipping, Linear},
    sigma_schedule::{SigmaSpacing, alpha_sigma},
    single_step::in_float_type_of,
};

/// Heun's second-order method.
#[derive(Clone, Debug)]
pub(crate) struct HeunDiscreteSampler {
    schedule: DiscreteSchedule,
    clipping: Clipping,
    /// Between predictor and corrector: x_i + (t_{i+1} - t_i) d_i / 2, and the factor (t_{i+1} - t_i) / 2 of the slope still to come.
    halfway: Option<(Tensor<4>, f64)>,
}

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "HeunDiscreteScheduler",
    build: Build::WithHistory(|config, steps| Ok(Box::new(heun(config, steps)?))),
    beta_start: 0.00085,
    beta_end: 0.012,
    timestep_spacing: TimestepSpacing::Linspace,
    steps_along_sigmas: true,
    sigma_spacings: &[SigmaSpacing::Karras, SigmaSpacing::Exponential],
    rescale_betas_zero_snr: false,
    thresholding: false,
    clip_sample: Some(false),
    algorithm_type: None,
    check: |_| Ok(()),
};

fn heun(config: &SchedulerConfig, num_inference_steps: usize) -> Result<HeunDiscreteSampler> {
    let mut schedule = sigma_schedule(config, &CLASS, EulerFields::default(), num_inference_steps)?;
    let repeated = |values: &[f64], single_at_end: usize| -> Vec<f64> {
        let inner = 1..values.len() - single_at_end;
        values.iter().enumerate().flat_map(|(i, &value)| std::iter::repeat_n(value, if inner.contains(&i) { 2 } else { 1 })).collect()
    };
    schedule.timesteps = repeated(&schedule.timesteps, 0);
    schedule.sigmas = schedule.sigmas.map(|sigmas| repeated(&sigmas, 1));
    Ok(HeunDiscreteSampler { schedule, clipping: config.clipping(&CLASS)?, halfway: None })
}

impl NoiseSchedule for HeunDiscreteSampler {
    fn schedule(&self) -> &DiscreteSchedule {
        &self.schedule
    }
}

impl Sampler for HeunDiscreteSampler {
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, _noise: Option<Tensor<4>>) -> Tensor<4> {
        if step == 0 {
            self.reset();
        }
        let sigmas = self.schedule.sigmas.as_deref().unwrap_or_default();
        let sigma = sigmas[step];
        let (alpha, noise) = alpha_sigma(sigma);
        let seen = self.schedule.prediction_type.original_sample(alpha, noise);
        let model_output = in_float_type_of(model_output, &sample);
        let original = self.clipping.apply(linear(Linear { sample: seen.sample * alpha, output: seen.output }, &sample, model_output));
        match self.halfway.take() {
            None => {
                let (dt, ratio) = (sigmas[step + 1] - sigma, sigmas[step + 1] / sigma);
                self.halfway = Some((sample.clone() * ((1.0 + ratio) / 2.0) + original.clone() * ((1.0 - ratio) / 2.0), dt / 2.0));
                sample * ratio + original * (1.0 - ratio)
            }
            Some((known, half_dt)) => known + (sample - original) * (half_dt / sigma),
        }
    }

    fn needs_noise(&self) -> bool {
        false
    }

    fn reset(&mut self) {
        self.halfway = None;
    }
}
