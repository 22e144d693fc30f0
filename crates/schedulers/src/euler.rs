//! Euler's method on the probability-flow ODE: algorithm 1 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2206.00364), without its second-order correction.
//!
//! | code | paper |
//! |---|---|
//! | `sigma`, `sigma_next` | t_i = σ_i, t_{i+1} |
//! | `original_sample` | D_θ(x_i; t_i) |
//! | (x - x_0) / σ | d_i |
//!
//! Follows diffusers' `schedulers/scheduling_euler_discrete.py`.

use crate::{
    class::{Build, SchedulerClass},
    config::{FinalSigmasType, InterpolationType, PredictionType, SchedulerConfig, TimestepSpacing, TimestepType},
    error::Result,
    noise_schedule::DiscreteSchedule,
    prediction::{Clipping, Linear},
    sigma_schedule::{SigmaSpacing, alpha_sigma, final_sigma, sigma_at, sigma_to_t, training_sigmas},
    single_step::{SingleStepScheduler, StepCoefficients},
    timestep_spacing::linspace,
};

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "EulerDiscreteScheduler",
    build: Build::SingleStep { is_stochastic: |_| false, build: |config, steps, _| Ok(Box::new(euler(config, steps)?)) },
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Linspace,
    steps_along_sigmas: true,
    sigma_spacings: &[SigmaSpacing::Karras, SigmaSpacing::Exponential],
    rescale_betas_zero_snr: true,
    thresholding: false,
    clip_sample: None,
    algorithm_type: None,
    check: |_| Ok(()),
};

fn euler(config: &SchedulerConfig, num_inference_steps: usize) -> Result<SingleStepScheduler> {
    let own = EulerFields {
        log_linear: config.interpolation_type == Some(InterpolationType::LogLinear),
        continuous: config.timestep_type == Some(TimestepType::Continuous),
        final_sigmas_type: config.final_sigmas_type.unwrap_or(FinalSigmasType::Zero),
    };
    let schedule = sigma_schedule(config, &CLASS, own, num_inference_steps)?;
    let sigmas = schedule.sigmas.as_deref().unwrap_or_default();
    let coefficients =
        (0..num_inference_steps).map(|step| euler_step(schedule.prediction_type, sigmas[step], sigmas[step + 1], 0.0)).collect();
    Ok(SingleStepScheduler { coefficients, clipping: Clipping::None, schedule })
}

/// The step x + (σ_next - σ) (x - x_0) / σ of x = x_0 + σ ε.
pub(crate) fn euler_step(prediction_type: PredictionType, sigma: f64, sigma_next: f64, std_dev_t: f64) -> StepCoefficients {
    // The network sees α x, so what holds for its input holds for x with one more factor α.
    let (alpha, noise) = alpha_sigma(sigma);
    let seen = prediction_type.original_sample(alpha, noise);
    let ratio = sigma_next / sigma;
    StepCoefficients {
        original_sample: Linear { sample: seen.sample * alpha, output: seen.output },
        mean_original: 1.0 - ratio,
        mean: Linear { sample: ratio, output: 0.0 },
        std_dev_t,
    }
}

/// The fields of Euler that its relatives, Euler ancestral and Heun, do not have; theirs are the defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EulerFields {
    /// `interpolation_type` is `log_linear`.
    log_linear: bool,
    /// `timestep_type` is `continuous`.
    continuous: bool,
    final_sigmas_type: FinalSigmasType,
}

impl Default for EulerFields {
    fn default() -> Self {
        Self { log_linear: false, continuous: false, final_sigmas_type: FinalSigmasType::Zero }
    }
}

/// Timesteps and σ of Euler, Euler ancestral and Heun: N values each, and the σ of the end.
pub(crate) fn sigma_schedule(
    config: &SchedulerConfig,
    class: &SchedulerClass,
    own: EulerFields,
    num_inference_steps: usize,
) -> Result<DiscreteSchedule> {
    let alphas_cumprod = config.alphas_cumprod()?;
    let table = training_sigmas(&alphas_cumprod);
    let mut timesteps = config.spaced_timesteps(class, num_inference_steps);
    let mut sigmas: Vec<f64> = if own.log_linear {
        linspace(table[table.len() - 1].ln(), table[0].ln(), num_inference_steps + 1).into_iter().map(f64::exp).collect()
    } else {
        timesteps.iter().map(|&t| sigma_at(&table, t)).collect()
    };

    let spacing = config.sigma_spacing(class)?;
    if spacing != SigmaSpacing::Timesteps {
        sigmas = config.spaced_sigmas(spacing, sigmas[0], sigmas[sigmas.len() - 1], num_inference_steps)?;
        timesteps = sigmas.iter().map(|&sigma| sigma_to_t(sigma, &table)).collect();
    }
    if own.continuous && config.prediction_type == Some(PredictionType::VPrediction) {
        timesteps = sigmas[..num_inference_steps].iter().map(|sigma| 0.25 * sigma.ln()).collect();
    }
    sigmas.push(final_sigma(own.final_sigmas_type, &table));
    Ok(DiscreteSchedule::variance_exploding(config, class, &alphas_cumprod, timesteps, sigmas))
}
