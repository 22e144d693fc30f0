//! Ancestral sampling with Euler steps: `sample_euler_ancestral` of k-diffusion, which takes the posterior of DDPM (2006.11239, eq. 7) over into
//! the σ-parametrisation of Karras et al. (2206.00364).
//!
//! | code | k-diffusion |
//! |---|---|
//! | `sigma`, `sigma_next` | `sigma_from`, `sigma_to` |
//! | `sigma_up` | the noise put back in, the step's standard deviation |
//! | `sigma_down` | where the deterministic part lands: σ_down² + σ_up² = σ_next² |
//!
//! Follows diffusers' `schedulers/scheduling_euler_ancestral_discrete.py`.

use crate::{
    class::{Build, SchedulerClass},
    config::{SchedulerConfig, TimestepSpacing},
    error::Result,
    euler::{EulerFields, euler_step, sigma_schedule},
    prediction::Clipping,
    single_step::SingleStepScheduler,
};

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "EulerAncestralDiscreteScheduler",
    build: Build::SingleStep { is_stochastic: |_| true, build: |config, steps, _| Ok(Box::new(euler_ancestral(config, steps)?)) },
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Linspace,
    steps_along_sigmas: true,
    sigma_spacings: &[],
    rescale_betas_zero_snr: true,
    thresholding: false,
    clip_sample: None,
    algorithm_type: None,
    check: |_| Ok(()),
};

fn euler_ancestral(config: &SchedulerConfig, num_inference_steps: usize) -> Result<SingleStepScheduler> {
    let schedule = sigma_schedule(config, &CLASS, EulerFields::default(), num_inference_steps)?;
    let sigmas = schedule.sigmas.as_deref().unwrap_or_default();
    let coefficients = (0..num_inference_steps)
        .map(|step| {
            let (sigma, sigma_next) = (sigmas[step], sigmas[step + 1]);
            let sigma_up = sigma_next * (1.0 - (sigma_next / sigma).powi(2)).max(0.0).sqrt();
            let sigma_down = (sigma_next.powi(2) - sigma_up.powi(2)).max(0.0).sqrt();
            euler_step(schedule.prediction_type, sigma, sigma_down, sigma_up)
        })
        .collect();
    Ok(SingleStepScheduler { coefficients, clipping: Clipping::None, schedule })
}
