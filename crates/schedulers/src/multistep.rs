//! What DPM-Solver++ and UniPC share: a variance-preserving sample stepped along σ, and predictions that are kept.

use burn::tensor::Tensor;

use crate::{
    class::SchedulerClass,
    config::{FinalSigmasType, PredictionType, SchedulerConfig},
    error::{Result, SchedulerError},
    noise_schedule::DiscreteSchedule,
    prediction::{Clipping, Linear},
    sigma_schedule::{SigmaSpacing, alpha_sigma, final_sigma, lambda, sigma_at, sigma_to_t, training_sigmas},
    single_step::in_float_type_of,
};

/// The quantities of one noise level: α = √ᾱ, σ = √(1-ᾱ), λ = ln(α / σ).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub alpha: f64,
    pub sigma: f64,
    pub lambda: f64,
}

impl Level {
    pub(crate) fn of(sigma: f64) -> Self {
        let (alpha, vp_sigma) = alpha_sigma(sigma);
        Self { alpha, sigma: vp_sigma, lambda: lambda(sigma) }
    }
}

/// Where the classes lay out their σ differently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MultistepRules {
    /// Timesteps whose λ lies below this are left out.
    pub lambda_min_clipped: f64,
    /// Whether the timesteps of Karras and λ spacings are rounded, rather than cut off.
    pub rounds_timesteps: bool,
    /// Whether `sigma_min`, as the end of Karras and similar spacings, means their own smallest σ, rather than that of training.
    pub ends_at_own_sigma_min: bool,
}

/// Timesteps and σ of DPM-Solver and UniPC.
pub(crate) fn multistep_schedule(
    config: &SchedulerConfig,
    class: &SchedulerClass,
    rules: MultistepRules,
    num_inference_steps: usize,
) -> Result<DiscreteSchedule> {
    let alphas_cumprod = config.alphas_cumprod()?;
    let table = training_sigmas(&alphas_cumprod);
    let spacing = config.sigma_spacing(class)?;
    let (timesteps, mut sigmas) = if spacing == SigmaSpacing::Timesteps {
        let timesteps =
            config.spaced_timesteps_of_intervals(class, num_inference_steps, last_timestep(rules.lambda_min_clipped, &table)?)?;
        let sigmas = timesteps.iter().map(|&t| sigma_at(&table, t)).collect();
        (timesteps, sigmas)
    } else {
        let sigmas = config.spaced_sigmas(spacing, table[table.len() - 1], table[0], num_inference_steps)?;
        let rounded = rules.rounds_timesteps && matches!(spacing, SigmaSpacing::Karras | SigmaSpacing::Lu);
        // diffusers stores whole timesteps here, cut off where it does not round; the margin is what the table's last digit cannot tell apart.
        let whole = |t: f64| if rounded { t.round_ties_even() } else { (t + 1e-3).floor() };
        (sigmas.iter().map(|&sigma| whole(sigma_to_t(sigma, &table))).collect(), sigmas)
    };
    if let Some(step) = sigmas.windows(2).position(|pair| pair[0] <= pair[1]) {
        return Err(SchedulerError::NumInferenceSteps {
            got: num_inference_steps,
            reason: format!(
                "the noise level does not fall after step {step}; use fewer steps, a smaller steps_offset or other sigma limits"
            ),
        });
    }
    let end = match config.final_sigmas_type.unwrap_or(FinalSigmasType::Zero) {
        FinalSigmasType::SigmaMin if rules.ends_at_own_sigma_min && spacing != SigmaSpacing::Timesteps => sigmas[sigmas.len() - 1],
        end => final_sigma(end, &table),
    };
    sigmas.push(end);
    Ok(DiscreteSchedule::variance_preserving(config, &alphas_cumprod, timesteps, Some(sigmas)))
}

/// How many training timesteps have λ of at least `lambda_min_clipped`; the cosine schedule's λ runs off to -inf.
fn last_timestep(lambda_min_clipped: f64, table: &[f64]) -> Result<usize> {
    match table.iter().filter(|&&sigma| lambda(sigma) >= lambda_min_clipped).count() {
        0 => Err(SchedulerError::Field {
            field: "lambda_min_clipped".into(),
            value: lambda_min_clipped.to_string(),
            expected: format!("a number below the schedule's largest λ, {}", lambda(table[0])),
        }),
        count => Ok(count),
    }
}

/// Whether a solver integrates the data prediction x_0 or the noise prediction ε.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integrand {
    Data,
    Noise,
}

/// How a model output becomes what is integrated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub prediction_type: PredictionType,
    pub integrand: Integrand,
    pub clipping: Clipping,
}

impl Conversion {
    /// The integrand at noise level `at`.
    ///
    /// # Shapes
    /// - `model_output`, `sample`, output: `[b, c, h, w]`
    pub(crate) fn apply(&self, model_output: Tensor<4>, sample: &Tensor<4>, at: Level) -> Tensor<4> {
        let model_output = in_float_type_of(model_output, sample);
        let Level { alpha, sigma, .. } = at;
        if self.integrand == Integrand::Noise && self.clipping == Clipping::None {
            return linear(self.prediction_type.epsilon(alpha, sigma), sample, model_output);
        }
        let original = self.clipping.apply(linear(self.prediction_type.original_sample(alpha, sigma), sample, model_output));
        match self.integrand {
            Integrand::Data => original,
            Integrand::Noise => (sample.clone() - original * alpha) / sigma,
        }
    }
}

/// `linear.sample * sample + linear.output * output`, without the terms that vanish.
pub(crate) fn linear(linear: Linear, sample: &Tensor<4>, output: Tensor<4>) -> Tensor<4> {
    if linear.sample == 0.0 { output * linear.output } else { sample.clone() * linear.sample + output * linear.output }
}
