//! The noise levels σ = √((1 - ᾱ) / ᾱ) that Euler, Heun, DPM-Solver and UniPC step along, and how they are spaced.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364), eq. 5 for the Karras spacing.
//! Follows `set_timesteps`, `_sigma_to_t` and `_convert_to_*` of diffusers' `schedulers/scheduling_euler_discrete.py`.

use crate::{
    class::SchedulerClass,
    config::{FinalSigmasType, SchedulerConfig},
    error::{Result, SchedulerError},
    timestep_spacing::linspace,
};

/// The exponent ρ of the Karras spacing; the paper's value, and the only one in diffusers.
const KARRAS_RHO: f64 = 7.0;

/// How the σ of a run are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SigmaSpacing {
    /// Those of the spaced timesteps.
    Timesteps,
    /// Equal steps in σ^(1/ρ).
    Karras,
    /// Equal steps in ln σ.
    Exponential,
    /// Equal steps in λ = -ln σ: the exponential spacing with rounded timesteps.
    Lu,
}

impl SchedulerConfig {
    /// # Errors
    /// Two spacings at once, or one that is not implemented.
    pub(crate) fn sigma_spacing(&self, class: &SchedulerClass) -> Result<SigmaSpacing> {
        let flags = [
            (self.use_karras_sigmas, "use_karras_sigmas", SigmaSpacing::Karras),
            (self.use_exponential_sigmas, "use_exponential_sigmas", SigmaSpacing::Exponential),
            (self.use_lu_lambdas, "use_lu_lambdas", SigmaSpacing::Lu),
        ];
        let mut chosen = flags.into_iter().filter(|(on, _, spacing)| *on == Some(true) && class.sigma_spacings.contains(spacing));
        match (chosen.next(), chosen.next()) {
            (None, _) => Ok(SigmaSpacing::Timesteps),
            (Some((_, _, spacing)), None) => Ok(spacing),
            (Some((_, first, _)), Some((_, second, _))) => Err(SchedulerError::Field {
                field: second.into(),
                value: "true".into(),
                expected: format!("false, since {first} is true: only one spacing of sigmas can be used"),
            }),
        }
    }

    /// N values of σ in this spacing, from `largest` to `smallest`, or between the config's own limits.
    ///
    /// # Errors
    /// A limit that is not a positive number.
    pub(crate) fn spaced_sigmas(&self, spacing: SigmaSpacing, largest: f64, smallest: f64, num_inference_steps: usize) -> Result<Vec<f64>> {
        let sigma_max = self.sigma_max.unwrap_or(largest);
        let sigma_min = self.sigma_min.unwrap_or(smallest);
        for (field, value) in [("sigma_max", sigma_max), ("sigma_min", sigma_min)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(SchedulerError::Field { field: field.into(), value: value.to_string(), expected: "a positive number".into() });
            }
        }
        let between = |to: fn(f64) -> f64, from: fn(f64) -> f64| -> Vec<f64> {
            linspace(to(sigma_max), to(sigma_min), num_inference_steps).into_iter().map(from).collect()
        };
        let mut sigmas = match spacing {
            SigmaSpacing::Karras => between(|sigma| sigma.powf(1.0 / KARRAS_RHO), |root| root.powf(KARRAS_RHO)),
            _ => between(f64::ln, f64::exp),
        };
        // The ends exactly, not up to the rounding of there and back; a single one is the first.
        if let Some(last) = sigmas.last_mut() {
            *last = sigma_min;
        }
        if let Some(first) = sigmas.first_mut() {
            *first = sigma_max;
        }
        Ok(sigmas)
    }
}

/// Where the last step ends; `sigmas` are those of training, smallest first.
pub(crate) fn final_sigma(final_sigmas_type: FinalSigmasType, sigmas: &[f64]) -> f64 {
    match final_sigmas_type {
        FinalSigmasType::Zero => 0.0,
        FinalSigmasType::SigmaMin => sigmas[0],
    }
}

/// σ of every training timestep, smallest first; in `float32`, as the tables it comes from.
pub(crate) fn training_sigmas(alphas_cumprod: &[f64]) -> Vec<f64> {
    alphas_cumprod.iter().map(|&alpha| alpha as f32).map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt())).collect()
}

/// σ at a fractional timestep, linear between neighbours and constant beyond the ends.
pub(crate) fn sigma_at(sigmas: &[f64], timestep: f64) -> f64 {
    let last = sigmas.len() - 1;
    let low = (timestep.max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let weight = (timestep - low as f64).clamp(0.0, 1.0);
    sigmas[low] + (sigmas[high] - sigmas[low]) * weight
}

/// The fractional timestep of a σ, linear in ln σ and clamped to the table.
pub(crate) fn sigma_to_t(sigma: f64, sigmas: &[f64]) -> f64 {
    if sigmas.len() < 2 {
        return 0.0;
    }
    let low = sigmas.partition_point(|&s| s <= sigma).saturating_sub(1).min(sigmas.len() - 2);
    let (log_low, log_high) = (sigmas[low].ln(), sigmas[low + 1].ln());
    let weight = ((log_low - sigma.max(1e-10).ln()) / (log_low - log_high)).clamp(0.0, 1.0);
    low as f64 + weight
}

/// The scale of a variance-preserving sample and its noise at σ: (√ᾱ, √(1-ᾱ)).
pub(crate) fn alpha_sigma(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}

/// λ = ln(√ᾱ / √(1-ᾱ)), infinite at σ = 0.
pub(crate) fn lambda(sigma: f64) -> f64 {
    -sigma.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{euler, euler_ancestral};

    #[test]
    fn karras_spacing_touches_both_ends_and_is_even_in_the_seventh_root() {
        let config = SchedulerConfig::new(&euler::CLASS);
        let sigmas = config.spaced_sigmas(SigmaSpacing::Karras, 14.614641, 0.029167, 10).unwrap();
        assert_eq!((sigmas[0], sigmas[9]), (14.614641, 0.029167));
        // The second value of diffusers for Stable Diffusion's table and ten steps.
        assert!((sigmas[1] - 9.1029).abs() < 1e-3, "{}", sigmas[1]);
    }

    #[test]
    fn timestep_and_sigma_are_inverse_on_the_table_and_clamped_beyond_it() {
        let sigmas = [0.1, 0.2, 0.5, 1.5];
        for (t, &sigma) in sigmas.iter().enumerate() {
            assert_eq!(sigma_at(&sigmas, t as f64), sigma);
            assert!((sigma_to_t(sigma, &sigmas) - t as f64).abs() < 1e-6);
        }
        assert_eq!((sigma_at(&sigmas, 7.0), sigma_to_t(9.0, &sigmas), sigma_to_t(0.0, &sigmas)), (1.5, 3.0, 0.0));
        assert!((sigma_at(&sigmas, 1.5) - 0.35).abs() < 1e-12);
    }

    #[test]
    fn two_spacings_at_once_are_refused() {
        let class = &euler::CLASS;
        let config = SchedulerConfig { use_karras_sigmas: Some(true), use_exponential_sigmas: Some(true), ..SchedulerConfig::new(class) };
        let error = config.sigma_spacing(class).unwrap_err().to_string();
        assert!(error.contains("use_karras_sigmas") && error.contains("use_exponential_sigmas"), "{error}");
        // A class without these fields ignores them.
        assert_eq!(config.sigma_spacing(&euler_ancestral::CLASS).unwrap(), SigmaSpacing::Timesteps);
    }
}
