//! Song et al., "Denoising Diffusion Implicit Models" (2010.02502).
//!
//! | code | paper |
//! |---|---|
//! | `alpha_prod_t`, `alpha_prod_t_prev` | α_t, α_{t-1} (cumulative, as everywhere in the DDIM paper) |
//! | `original_sample` | f_θ(x_t), eq. 9 |
//! | `direction` | the factor of "direction pointing to x_t", eq. 12 |
//! | `std_dev_t` | σ_t(η), eq. 16 |
//!
//! Follows diffusers' `schedulers/scheduling_ddim.py`; with η > 0 the density is the one of ddpo-pytorch's `ddim_with_logprob.py`.

use crate::{
    class::{Build, SchedulerClass},
    config::{SchedulerConfig, TimestepSpacing},
    error::Result,
    noise_schedule::DiscreteSchedule,
    prediction::Linear,
    single_step::{SingleStepScheduler, StepCoefficients, alphas_at, check_terminal_signal},
};

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "DDIMScheduler",
    build: Build::SingleStep { is_stochastic: |eta| eta > 0.0, build: |config, steps, eta| Ok(Box::new(ddim(config, steps, eta)?)) },
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Leading,
    steps_along_sigmas: false,
    sigma_spacings: &[],
    rescale_betas_zero_snr: true,
    thresholding: true,
    clip_sample: Some(true),
    algorithm_type: None,
    check: |_| Ok(()),
};

fn ddim(config: &SchedulerConfig, num_inference_steps: usize, eta: f64) -> Result<SingleStepScheduler> {
    let alphas_cumprod = config.alphas_cumprod()?;
    let timesteps = config.spaced_timesteps(&CLASS, num_inference_steps);
    let visited = alphas_at(&alphas_cumprod, &timesteps, &CLASS)?;
    let schedule = DiscreteSchedule::variance_preserving(config, &alphas_cumprod, timesteps, None);
    check_terminal_signal(&schedule, &visited, &CLASS)?;

    let final_alpha_cumprod = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { alphas_cumprod[0] };
    // The previous timestep is always one stride down, even where the spacing is not uniform.
    let stride = config.num_train_timesteps() / num_inference_steps;
    let coefficients = (schedule.timesteps.iter().zip(&visited))
        .map(|(&t, &alpha_prod_t)| {
            let alpha_prod_t_prev = (t as usize).checked_sub(stride).map_or(final_alpha_cumprod, |prev| alphas_cumprod[prev]);
            let (alpha, sigma) = (alpha_prod_t.sqrt(), (1.0 - alpha_prod_t).sqrt());

            let variance = (1.0 - alpha_prod_t_prev) / (1.0 - alpha_prod_t) * (1.0 - alpha_prod_t / alpha_prod_t_prev);
            let std_dev_t = eta * variance.max(0.0).sqrt();
            let direction = (1.0 - alpha_prod_t_prev - std_dev_t * std_dev_t).max(0.0).sqrt();

            // ε comes from the unclipped prediction, as in diffusers (`use_clipped_model_output = False`).
            let epsilon = schedule.prediction_type.epsilon(alpha, sigma);
            StepCoefficients {
                original_sample: schedule.prediction_type.original_sample(alpha, sigma),
                mean_original: alpha_prod_t_prev.sqrt(),
                mean: Linear { sample: direction * epsilon.sample, output: direction * epsilon.output },
                std_dev_t,
            }
        })
        .collect();
    Ok(SingleStepScheduler { coefficients, clipping: config.clipping(&CLASS)?, schedule })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::BetaSchedule,
        noise_schedule::{NoiseSchedule, Scheduler},
    };

    #[test]
    fn stable_diffusions_standard_deviations_at_fifty_steps() {
        let config = SchedulerConfig {
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some(BetaSchedule::ScaledLinear),
            steps_offset: Some(1),
            set_alpha_to_one: Some(false),
            clip_sample: Some(false),
            ..SchedulerConfig::new(&CLASS)
        };
        let scheduler = ddim(&config, 50, 1.0).unwrap();
        for (t, expected) in [(981.0, 0.45446327), (501.0, 0.29478454), (21.0, 0.03947955), (1.0, 0.02064832)] {
            let step = scheduler.timesteps().iter().position(|&x| x == t).unwrap();
            assert!((scheduler.std_dev_t(step) - expected).abs() < 1e-6, "t = {t}: {}", scheduler.std_dev_t(step));
        }
        assert!((0..50).all(|step| ddim(&config, 50, 0.0).unwrap().std_dev_t(step) == 0.0));
    }
}
