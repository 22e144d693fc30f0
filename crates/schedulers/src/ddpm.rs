//! Ho et al., "Denoising Diffusion Probabilistic Models" (2006.11239).
//!
//! | code | paper |
//! |---|---|
//! | `current_alpha_t`, `current_beta_t` | α_t, β_t of the *visited* chain: ᾱ_t / ᾱ_{t'} and one minus it |
//! | `alpha_prod_t`, `alpha_prod_t_prev` | ᾱ_t, ᾱ_{t'}, with t' the next visited timestep |
//! | `mean_original`, `mean.sample` | the two coefficients of μ̃_t, eq. 7 |
//! | `variance` | β̃_t, eq. 7, or β_t |
//!
//! Follows diffusers' `schedulers/scheduling_ddpm.py`.

use crate::{
    class::{Build, SchedulerClass},
    config::{SchedulerConfig, TimestepSpacing, VarianceType},
    error::{Result, SchedulerError},
    noise_schedule::DiscreteSchedule,
    prediction::Linear,
    single_step::{SingleStepScheduler, StepCoefficients, alphas_at, check_terminal_signal},
};

/// Where the posterior variance vanishes, diffusers keeps it at this for the sake of its logarithm.
const MIN_VARIANCE: f64 = 1e-20;

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "DDPMScheduler",
    build: Build::SingleStep { is_stochastic: |_| true, build: |config, steps, _| Ok(Box::new(ddpm(config, steps)?)) },
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Leading,
    steps_along_sigmas: false,
    sigma_spacings: &[],
    rescale_betas_zero_snr: true,
    thresholding: true,
    clip_sample: Some(true),
    algorithm_type: None,
    check: |config| variance_type(config).map(|_| ()),
};

fn ddpm(config: &SchedulerConfig, num_inference_steps: usize) -> Result<SingleStepScheduler> {
    let variance_type = variance_type(config)?;
    let alphas_cumprod = config.alphas_cumprod()?;
    let timesteps = config.spaced_timesteps(&CLASS, num_inference_steps);
    let visited = alphas_at(&alphas_cumprod, &timesteps, &CLASS)?;
    let schedule = DiscreteSchedule::variance_preserving(config, &alphas_cumprod, timesteps, None);
    check_terminal_signal(&schedule, &visited, &CLASS)?;

    let coefficients = (0..visited.len())
        .map(|step| {
            let alpha_prod_t = visited[step];
            let alpha_prod_t_prev = visited.get(step + 1).copied().unwrap_or(1.0);
            let current_alpha_t = alpha_prod_t / alpha_prod_t_prev;
            let current_beta_t = 1.0 - current_alpha_t;
            let posterior = (1.0 - alpha_prod_t_prev) / (1.0 - alpha_prod_t);
            let variance = match variance_type {
                VarianceType::FixedLarge | VarianceType::FixedLargeLog => current_beta_t,
                _ => (posterior * current_beta_t).max(MIN_VARIANCE),
            };
            StepCoefficients {
                original_sample: schedule.prediction_type.original_sample(alpha_prod_t.sqrt(), (1.0 - alpha_prod_t).sqrt()),
                mean_original: alpha_prod_t_prev.sqrt() * current_beta_t / (1.0 - alpha_prod_t),
                mean: Linear { sample: current_alpha_t.sqrt() * posterior, output: 0.0 },
                // Noise at every timestep but the very first of training.
                std_dev_t: if schedule.timesteps[step] > 0.0 { variance.sqrt() } else { 0.0 },
            }
        })
        .collect();
    Ok(SingleStepScheduler { coefficients, clipping: config.clipping(&CLASS)?, schedule })
}

/// # Errors
/// A variance that the network would have to predict.
pub(crate) fn variance_type(config: &SchedulerConfig) -> Result<VarianceType> {
    match config.variance_type.unwrap_or(VarianceType::FixedSmall) {
        learned @ (VarianceType::Learned | VarianceType::LearnedRange) => Err(SchedulerError::Unsupported {
            class: config.class_name.clone(),
            field: "variance_type".into(),
            value: serde_json::to_string(&learned).unwrap_or_default(),
            way_out: "networks that predict a variance are not supported; use fixed_small if this one does not".into(),
        }),
        fixed => Ok(fixed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BetaSchedule;

    fn stable_diffusion() -> SchedulerConfig {
        SchedulerConfig {
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some(BetaSchedule::ScaledLinear),
            clip_sample: Some(false),
            ..SchedulerConfig::new(&CLASS)
        }
    }

    #[test]
    fn refls_coefficients_at_forty_steps() {
        let scheduler = ddpm(&stable_diffusion(), 40).unwrap();
        for (t, on_original, on_sample, std) in [
            (975.0, 0.022728, 0.864973, 0.498206),
            (500.0, 0.085278, 0.898194, 0.324724),
            (225.0, 0.158733, 0.839376, 0.212214),
            (25.0, 0.964075, 0.035923, 0.028632),
            (0.0, 1.0, 0.0, 0.0),
        ] {
            let step = scheduler.schedule.timesteps.iter().position(|&x| x == t).unwrap();
            let row = scheduler.coefficients[step];
            for (got, expected) in [(row.mean_original, on_original), (row.mean.sample, on_sample), (row.std_dev_t, std)] {
                assert!((got - expected).abs() < 1e-6, "t = {t}: {got} != {expected}");
            }
        }
    }

    #[test]
    fn fixed_large_is_the_forward_variance_and_learned_is_refused_by_name() {
        let large = SchedulerConfig { variance_type: Some(VarianceType::FixedLarge), ..stable_diffusion() };
        let row = ddpm(&large, 40).unwrap().coefficients[0];
        assert!((row.std_dev_t.powi(2) - (1.0 - 0.00619587 / 0.00829)).abs() < 1e-2, "{}", row.std_dev_t);
        assert!(row.std_dev_t > ddpm(&stable_diffusion(), 40).unwrap().coefficients[0].std_dev_t);

        let learned = SchedulerConfig { variance_type: Some(VarianceType::LearnedRange), ..stable_diffusion() };
        let error = ddpm(&learned, 40).unwrap_err().to_string();
        assert!(error.contains("variance_type") && error.contains("learned_range"), "{error}");
    }

    #[test]
    fn an_offset_of_one_leaves_the_clamped_variance_at_the_last_step() {
        let scheduler = ddpm(&SchedulerConfig { steps_offset: Some(1), ..stable_diffusion() }, 40).unwrap();
        assert!((scheduler.coefficients[39].std_dev_t - 1e-10).abs() < 1e-20);
    }
}
