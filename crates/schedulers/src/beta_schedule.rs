//! β_t and its running product ᾱ_t = Π_{s ≤ t} (1 - β_s), as host `f64` tables.
//!
//! Their entries are the `float32` numbers that diffusers keeps, in its order of operations, since networks were trained and are sampled with
//! those: at the first step of the cosine schedule 1 - ᾱ differs by 5e-4 from exact arithmetic, and a timestep rounded from σ can differ by one.
//!
//! Follows the constructors of diffusers' `schedulers/scheduling_ddim.py` and `scheduling_ddpm.py`, and `rescale_zero_terminal_snr` there
//! (Lin et al., 2305.08891, algorithm 1).

use std::f64::consts::FRAC_PI_2;

use crate::{
    class::SchedulerClass,
    config::{BetaSchedule, SchedulerConfig},
    error::{Result, SchedulerError},
};

/// The largest β of the schedules that are given by ᾱ(t): the last steps of a cosine would otherwise destroy all signal.
const MAX_BETA: f64 = 0.999;

/// No published model uses more than a few thousand; the bound keeps a typo from filling the memory.
const MAX_TRAIN_TIMESTEPS: usize = 1_000_000;

/// ᾱ_T after zero-SNR rescaling for samplers that step along σ: the smallest positive half-precision number, so that σ_T is finite.
const TERMINAL_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0;

impl SchedulerConfig {
    /// β_0 … β_{T-1}, rescaled if the class and the config say so. `[num_train_timesteps]`, each in (0, 1]; only the last may be 1.
    ///
    /// # Errors
    /// A class that is not implemented; betas out of range; `trained_betas` of another length than `num_train_timesteps`.
    pub fn betas(&self) -> Result<Vec<f64>> {
        let class = self.class()?;
        let betas = match &self.trained_betas {
            Some(betas) => betas.iter().copied().map(in_f32).collect(),
            None => self.scheduled_betas(class)?,
        };
        check_betas(&betas, self.num_train_timesteps(), self.trained_betas.is_some())?;
        if !(class.rescale_betas_zero_snr && self.rescale_betas_zero_snr.unwrap_or(false)) {
            return Ok(betas);
        }
        if betas.len() < 2 {
            return Err(field("rescale_betas_zero_snr", true, "false when num_train_timesteps is 1: there is nothing to rescale towards"));
        }
        Ok(rescale_zero_terminal_snr(&betas))
    }

    /// ᾱ_0 … ᾱ_{T-1}. `[num_train_timesteps]`, decreasing.
    ///
    /// # Errors
    /// As [`SchedulerConfig::betas`].
    pub fn alphas_cumprod(&self) -> Result<Vec<f64>> {
        let mut alphas_cumprod = cumprod_of_alphas(&self.betas()?);
        if self.class()?.steps_along_sigmas {
            for alpha in alphas_cumprod.iter_mut().filter(|alpha| **alpha <= 0.0) {
                *alpha = TERMINAL_ALPHA_CUMPROD;
            }
        }
        Ok(alphas_cumprod)
    }

    /// T, the number of noise levels in training.
    pub fn num_train_timesteps(&self) -> usize {
        self.num_train_timesteps.unwrap_or(1000)
    }

    fn scheduled_betas(&self, class: &SchedulerClass) -> Result<Vec<f64>> {
        let beta_start = in_unit_interval("beta_start", self.beta_start.unwrap_or(class.beta_start))?;
        let beta_end = in_unit_interval("beta_end", self.beta_end.unwrap_or(class.beta_end))?;
        let count = self.num_train_timesteps();
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&count) {
            return Err(field("num_train_timesteps", count, &format!("a number from 1 to {MAX_TRAIN_TIMESTEPS}")));
        }
        Ok(match self.beta_schedule.unwrap_or(BetaSchedule::Linear) {
            BetaSchedule::Linear => linspace_f32(beta_start, beta_end, count).map(f64::from).collect(),
            BetaSchedule::ScaledLinear => {
                linspace_f32(beta_start.sqrt(), beta_end.sqrt(), count).map(|root| f64::from(root * root)).collect()
            }
            BetaSchedule::Sigmoid => linspace_f32(-6.0, 6.0, count)
                .map(|x| f64::from((beta_end - beta_start) as f32 / (1.0 + (-x).exp()) + beta_start as f32))
                .collect(),
            BetaSchedule::SquaredcosCapV2 => betas_for_alpha_bar(count, |t| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)),
            BetaSchedule::Exp => betas_for_alpha_bar(count, |t| (-12.0 * t).exp()),
            BetaSchedule::Laplace => betas_for_alpha_bar(count, |t| {
                let log_snr = -0.5 * (0.5 - t).signum() * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
                let snr = log_snr.exp();
                (snr / (1.0 + snr)).sqrt()
            }),
        })
    }
}

/// `torch.linspace` in `float32`, which counts from both ends to the middle.
fn linspace_f32(from: f64, to: f64, count: usize) -> impl Iterator<Item = f32> {
    let (from, to, last) = (from as f32, to as f32, count - 1);
    let step = if last == 0 { 0.0 } else { (to - from) / last as f32 };
    (0..count).map(move |i| if i < count / 2 || last == 0 { from + step * i as f32 } else { to - step * (last - i) as f32 })
}

fn betas_for_alpha_bar(count: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f64> {
    let at = |i: usize| alpha_bar(i as f64 / count as f64);
    (0..count).map(|i| in_f32((1.0 - at(i + 1) / at(i)).min(MAX_BETA))).collect()
}

/// The nearest `float32`.
fn in_f32(value: f64) -> f64 {
    f64::from(value as f32)
}

/// As PyTorch's `cumprod`: the factors and the results in `float32`, the product itself in `f64`.
fn cumprod_of_alphas(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, beta| {
            *product *= in_f32(1.0 - beta);
            Some(in_f32(*product))
        })
        .collect()
}

fn rescale_zero_terminal_snr(betas: &[f64]) -> Vec<f64> {
    let roots: Vec<f32> = cumprod_of_alphas(betas).iter().map(|alpha| (*alpha as f32).sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let alphas_bar: Vec<f32> = roots.iter().map(|root| (root - last) * (first / (first - last))).map(|root| root * root).collect();
    (0..betas.len()).map(|i| f64::from(1.0 - if i == 0 { alphas_bar[0] } else { alphas_bar[i] / alphas_bar[i - 1] })).collect()
}

fn in_unit_interval(name: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value < 1.0 { Ok(value) } else { Err(field(name, value, "a number between 0 and 1, neither included")) }
}

fn check_betas(betas: &[f64], count: usize, trained: bool) -> Result<()> {
    let name = if trained { "trained_betas" } else { "beta_schedule" };
    if betas.len() != count {
        return Err(field(name, format!("a list of {}", betas.len()), &format!("as many values as num_train_timesteps = {count}")));
    }
    for (i, &beta) in betas.iter().enumerate() {
        let below_one = beta < 1.0 || (beta == 1.0 && i + 1 == count);
        if !(beta > 0.0 && below_one) {
            return Err(field(&format!("{name}[{i}]"), beta, "a number in (0, 1); the last one may be 1"));
        }
    }
    Ok(())
}

fn field(name: &str, value: impl ToString, expected: &str) -> SchedulerError {
    SchedulerError::Field { field: name.into(), value: value.to_string(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ddim, ddpm, euler};

    fn config(class: &SchedulerClass, schedule: BetaSchedule) -> SchedulerConfig {
        SchedulerConfig { beta_start: Some(0.00085), beta_end: Some(0.012), beta_schedule: Some(schedule), ..SchedulerConfig::new(class) }
    }

    #[test]
    fn stable_diffusions_table() {
        let alphas_cumprod = config(&ddim::CLASS, BetaSchedule::ScaledLinear).alphas_cumprod().unwrap();
        let golden = [
            (0, 0.99915),
            (1, 0.99829603),
            (21, 0.98038075),
            (25, 0.97660645),
            (225, 0.71432454),
            (481, 0.30229566),
            (500, 0.27633268),
            (961, 0.00728173),
            (975, 0.00619587),
            (981, 0.0057755),
            (999, 0.0046601),
        ];
        // The constants are exact, the table is float32's.
        for (t, expected) in golden {
            assert!((alphas_cumprod[t] - expected).abs() < 5e-7, "t = {t}: {} != {expected}", alphas_cumprod[t]);
        }
    }

    #[test]
    fn every_beta_lies_in_the_unit_interval_and_the_monotone_schedules_never_fall() {
        use BetaSchedule::*;
        for schedule in [Linear, ScaledLinear, SquaredcosCapV2, Sigmoid, Exp, Laplace] {
            for count in [1, 2, 10, 1000] {
                let config = SchedulerConfig { num_train_timesteps: Some(count), ..config(&ddpm::CLASS, schedule) };
                let betas = config.betas().unwrap();
                assert_eq!(betas.len(), count);
                assert!(betas.iter().all(|&beta| beta > 0.0 && beta < 1.0), "{schedule:?} {count}");
                if !matches!(schedule, Exp | Laplace) {
                    assert!(betas.windows(2).all(|pair| pair[0] <= pair[1]), "{schedule:?} {count}");
                }
            }
        }
    }

    #[test]
    fn zero_snr_ends_at_exactly_one_and_only_there() {
        for (class, terminal) in [(&ddim::CLASS, 0.0), (&euler::CLASS, TERMINAL_ALPHA_CUMPROD)] {
            let config = SchedulerConfig { rescale_betas_zero_snr: Some(true), ..config(class, BetaSchedule::ScaledLinear) };
            let betas = config.betas().unwrap();
            assert_eq!(betas[999], 1.0);
            assert!(betas[..999].iter().all(|&beta| beta > 0.0 && beta < 1.0));
            let alphas_cumprod = config.alphas_cumprod().unwrap();
            assert_eq!(alphas_cumprod[999], terminal);
            assert!((alphas_cumprod[0] - 0.99915).abs() < 1e-7);
        }
    }

    #[test]
    fn impossible_betas_are_named() {
        let base = SchedulerConfig::new(&ddim::CLASS);
        for (config, name) in [
            (SchedulerConfig { beta_start: Some(-0.1), ..base.clone() }, "beta_start"),
            (SchedulerConfig { beta_end: Some(f64::NAN), ..base.clone() }, "beta_end"),
            (SchedulerConfig { num_train_timesteps: Some(0), ..base.clone() }, "num_train_timesteps"),
            (SchedulerConfig { num_train_timesteps: Some(usize::MAX), ..base.clone() }, "num_train_timesteps"),
            (
                SchedulerConfig { num_train_timesteps: Some(1), rescale_betas_zero_snr: Some(true), ..base.clone() },
                "rescale_betas_zero_snr",
            ),
            (SchedulerConfig { trained_betas: Some(vec![0.1; 3]), ..base.clone() }, "trained_betas"),
            (SchedulerConfig { trained_betas: Some(vec![0.1, 1.0, 0.2]), num_train_timesteps: Some(3), ..base }, "trained_betas[1]"),
        ] {
            let error = config.alphas_cumprod().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
