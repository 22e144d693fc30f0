//! Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (2302.04867).
//!
//! | code | paper |
//! |---|---|
//! | `h`, `hh` | h_i, and -h_i where the data prediction is integrated |
//! | `r` | r_m, earlier noise levels relative to the step |
//! | `b_h` | B(h): h (`bh1`) or e^h - 1 (`bh2`) |
//! | `rho` | a_p = R_p(h)^{-1} φ_p(h) / B(h) |
//! | `unified_step` | UniP and UniC of section 3, on the noise or on the data prediction |
//!
//! Follows diffusers' `schedulers/scheduling_unipc_multistep.py`.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::{
    class::{Build, SchedulerClass},
    config::{FinalSigmasType, SchedulerConfig, SolverType, TimestepSpacing},
    error::{Result, SchedulerError},
    multistep::{Conversion, Integrand, Level, MultistepRules, multistep_schedule},
    noise_schedule::{DiscreteSchedule, NoiseSchedule, Sampler},
    prediction::Clipping,
    sigma_schedule::SigmaSpacing,
};

/// UniP of order 1 to 3, each step followed by UniC once the next model output is known.
#[derive(Clone, Debug)]
pub(crate) struct UniPcMultistepSampler {
    schedule: DiscreteSchedule,
    conversion: Conversion,
    bh1: bool,
    order: usize,
    lower_order_final: bool,
    disable_corrector: Vec<usize>,
    /// Earlier integrands, newest first.
    history: VecDeque<Tensor<4>>,
    /// The sample and the order of the last prediction.
    last: Option<(Tensor<4>, usize)>,
}

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "UniPCMultistepScheduler",
    build: Build::WithHistory(|config, steps| Ok(Box::new(unipc(config, steps)?))),
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Linspace,
    steps_along_sigmas: true,
    sigma_spacings: &[SigmaSpacing::Karras, SigmaSpacing::Exponential],
    rescale_betas_zero_snr: true,
    thresholding: true,
    clip_sample: None,
    algorithm_type: None,
    check,
};

fn solver_order(config: &SchedulerConfig) -> usize {
    config.solver_order.unwrap_or(2)
}

fn integrand(config: &SchedulerConfig) -> Integrand {
    if config.predict_x0.unwrap_or(true) { Integrand::Data } else { Integrand::Noise }
}

fn check(config: &SchedulerConfig) -> Result<()> {
    let refuse =
        |field: &str, value: String, expected: &str| Err(SchedulerError::Field { field: field.into(), value, expected: expected.into() });
    let order = solver_order(config);
    if !(1..=3).contains(&order) {
        return refuse("solver_order", order.to_string(), "1, 2 or 3");
    }
    if config.final_sigmas_type.unwrap_or(FinalSigmasType::Zero) == FinalSigmasType::Zero {
        if integrand(config) == Integrand::Noise {
            return refuse("predict_x0", "false".into(), "true, or final_sigmas_type sigma_min: the noise prediction cannot step to σ = 0");
        }
        if order > 1 && !config.lower_order_final.unwrap_or(true) {
            return refuse("lower_order_final", "false".into(), "true, or final_sigmas_type sigma_min: only first order can step to σ = 0");
        }
    }
    Ok(())
}

fn unipc(config: &SchedulerConfig, num_inference_steps: usize) -> Result<UniPcMultistepSampler> {
    let rules = MultistepRules { lambda_min_clipped: f64::NEG_INFINITY, rounds_timesteps: true, ends_at_own_sigma_min: true };
    let schedule = multistep_schedule(config, &CLASS, rules, num_inference_steps)?;
    let integrand = integrand(config);
    // Thresholding acts on x_0 only where x_0 is what is integrated.
    let clipping = if integrand == Integrand::Data { config.clipping(&CLASS)? } else { Clipping::None };
    Ok(UniPcMultistepSampler {
        conversion: Conversion { prediction_type: schedule.prediction_type, integrand, clipping },
        schedule,
        bh1: config.solver_type == Some(SolverType::Bh1),
        order: solver_order(config),
        lower_order_final: config.lower_order_final.unwrap_or(true),
        disable_corrector: config.disable_corrector.clone().unwrap_or_default(),
        history: VecDeque::new(),
        last: None,
    })
}

impl UniPcMultistepSampler {
    fn level(&self, index: usize) -> Level {
        let sigmas = self.schedule.sigmas.as_deref().unwrap_or_default();
        Level::of(sigmas[index])
    }

    /// The step from noise level `from` to `from + 1` with the integrands `m` at `from`, `from - 1`, … (as many as the order); with `corrector`, the
    /// integrand at the level stepped to, it is UniC, else UniP.
    fn unified_step(&self, from: usize, sample: &Tensor<4>, m: &[&Tensor<4>], corrector: Option<&Tensor<4>>) -> Tensor<4> {
        let (s0, t) = (self.level(from), self.level(from + 1));
        let h = t.lambda - s0.lambda;
        if h == 0.0 {
            return sample.clone();
        }
        let (ratio, scale, hh) = match self.conversion.integrand {
            Integrand::Data => (t.sigma / s0.sigma, t.alpha, -h),
            Integrand::Noise => (t.alpha / s0.alpha, t.sigma, h),
        };
        let b_h = if self.bh1 { hh } else { hh.exp_m1() };
        let mut r: Vec<f64> = (1..m.len()).map(|i| (self.level(from - i).lambda - s0.lambda) / h).collect();
        let mut points: Vec<Tensor<4>> = m[1..].iter().zip(&r).map(|(&mi, rk)| (mi.clone() - m[0].clone()) / *rk).collect();
        if let Some(m_t) = corrector {
            r.push(1.0);
            points.push(m_t.clone() - m[0].clone());
        }
        // With a single difference both halves simplify the solution to one half, whatever B(h).
        let rho = if points.len() == 1 { vec![0.5] } else { solve_rho(&r, hh, b_h) };

        let mut next = sample.clone() * ratio - m[0].clone() * (scale * hh.exp_m1());
        for (point, rho) in points.into_iter().zip(rho) {
            next = next - point * (scale * b_h * rho);
        }
        next
    }
}

/// Solves Σ_k r_k^(n-1) ρ_k = n! φ_{n+1}(hh) hh / B(h) for n = 1 … as many as there are points.
fn solve_rho(r: &[f64], hh: f64, b_h: f64) -> Vec<f64> {
    let n = r.len();
    let mut phi = hh.exp_m1() / hh - 1.0;
    let mut factorial = 1.0;
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    for i in 1..=n {
        let mut row: Vec<f64> = r.iter().map(|r| r.powi(i as i32 - 1)).collect();
        row.push(phi * factorial / b_h);
        rows.push(row);
        factorial *= (i + 1) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    // Gauss-Jordan; a Vandermonde matrix of distinct points is regular, and its first row of ones is a safe first pivot.
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs())).unwrap_or(column);
        rows.swap(column, pivot);
        let pivot_row: Vec<f64> = rows[column].iter().map(|value| value / rows[column][column]).collect();
        for row in &mut rows {
            let factor = row[column];
            row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
        }
        rows[column] = pivot_row;
    }
    rows.into_iter().map(|row| row[n]).collect()
}

impl NoiseSchedule for UniPcMultistepSampler {
    fn schedule(&self) -> &DiscreteSchedule {
        &self.schedule
    }
}

impl Sampler for UniPcMultistepSampler {
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, _noise: Option<Tensor<4>>) -> Tensor<4> {
        if step == 0 {
            self.reset();
        }
        let output = self.conversion.apply(model_output, &sample, self.level(step));
        let sample = match self.last.take() {
            Some((last_sample, order)) if !self.disable_corrector.contains(&(step - 1)) => {
                let m: Vec<&Tensor<4>> = self.history.iter().take(order).collect();
                self.unified_step(step - 1, &last_sample, &m, Some(&output))
            }
            _ => sample,
        };
        self.history.push_front(output);
        self.history.truncate(self.order);

        let remaining = self.schedule.timesteps.len() - step;
        let order = if self.lower_order_final { self.order.min(remaining) } else { self.order }.min(self.history.len());
        let m: Vec<&Tensor<4>> = self.history.iter().take(order).collect();
        let prev_sample = self.unified_step(step, &sample, &m, None);
        self.last = Some((sample, order));
        prev_sample
    }

    fn needs_noise(&self) -> bool {
        false
    }

    fn reset(&mut self) {
        self.history.clear();
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rho_solves_its_system() {
        let (r, hh) = ([-1.5, -0.7, 1.0], -0.4_f64);
        let b_h = hh.exp_m1();
        let rho = solve_rho(&r, hh, b_h);
        let phi_2 = hh.exp_m1() / hh - 1.0;
        let phi_3 = phi_2 / hh - 0.5;
        let phi_4 = phi_3 / hh - 1.0 / 6.0;
        for (power, expected) in [(0, phi_2), (1, 2.0 * phi_3), (2, 6.0 * phi_4)] {
            let got: f64 = r.iter().zip(&rho).map(|(r, rho)| r.powi(power) * rho).sum();
            assert!((got - expected / b_h).abs() < 1e-10, "{power}: {got} != {}", expected / b_h);
        }
    }
}
