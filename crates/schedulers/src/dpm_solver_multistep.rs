//! Lu et al., "DPM-Solver" (2206.00927) and "DPM-Solver++" (2211.01095): exponential integrators of the probability-flow ODE,
//! and of its reverse SDE.
//!
//! | code | papers |
//! |---|---|
//! | `s0`, `s1`, `s2`, `t` | t_{i-1}, t_{i-2}, t_{i-3}, t_i |
//! | `h`, `r0`, `r1` | h_i = λ_{t_i} - λ_{t_{i-1}}, and earlier steps relative to it |
//! | `d0`, `d1`, `d2` | D_0, D_1, D_2: the integrand and its divided differences |
//! | `Update` | the factors of x and the D_k; second order with `dpmsolver++` is 2211.01095, algorithm 2 (2M) |
//!
//! Follows diffusers' `schedulers/scheduling_dpmsolver_multistep.py`.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::{
    class::{Build, SchedulerClass},
    config::{AlgorithmType, BetaSchedule, FinalSigmasType, SchedulerConfig, SolverType, TimestepSpacing},
    ddpm::variance_type,
    error::{Result, SchedulerError},
    multistep::{Conversion, Integrand, Level, MultistepRules, multistep_schedule},
    noise_schedule::{DiscreteSchedule, NoiseSchedule, Sampler},
    sigma_schedule::SigmaSpacing,
};

/// Below this many steps the orders of the last ones are lowered, in diffusers as here.
const FEW_STEPS: usize = 15;

/// DPM-Solver or DPM-Solver++ of order 1 to 3.
#[derive(Clone, Debug)]
pub(crate) struct DpmSolverMultistepSampler {
    schedule: DiscreteSchedule,
    algorithm: AlgorithmType,
    heun: bool,
    order: usize,
    lower_order_final: bool,
    euler_at_final: bool,
    ends_at_zero: bool,
    conversion: Conversion,
    /// Earlier integrands, newest first.
    history: VecDeque<Tensor<4>>,
}

/// The factors of one update x_t = `sample` x + Σ `d[k]` D_k + `noise` z.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Update {
    sample: f64,
    d: [f64; 3],
    noise: f64,
}

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "DPMSolverMultistepScheduler",
    build: Build::WithHistory(|config, steps| Ok(Box::new(dpm_solver_multistep(config, steps)?))),
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Linspace,
    steps_along_sigmas: true,
    sigma_spacings: &[SigmaSpacing::Karras, SigmaSpacing::Exponential, SigmaSpacing::Lu],
    rescale_betas_zero_snr: true,
    thresholding: true,
    clip_sample: None,
    algorithm_type: Some(AlgorithmType::DpmSolverPlusPlus),
    check,
};

fn algorithm(config: &SchedulerConfig) -> AlgorithmType {
    match config.algorithm_type {
        None | Some(AlgorithmType::Deis) => AlgorithmType::DpmSolverPlusPlus,
        Some(algorithm) => algorithm,
    }
}

fn integrand(algorithm: AlgorithmType) -> Integrand {
    match algorithm {
        AlgorithmType::DpmSolver | AlgorithmType::SdeDpmSolver => Integrand::Noise,
        AlgorithmType::DpmSolverPlusPlus | AlgorithmType::SdeDpmSolverPlusPlus | AlgorithmType::Deis => Integrand::Data,
    }
}

fn solver_order(config: &SchedulerConfig) -> usize {
    config.solver_order.unwrap_or(2)
}

fn ends_at_zero(config: &SchedulerConfig) -> bool {
    config.final_sigmas_type.unwrap_or(FinalSigmasType::Zero) == FinalSigmasType::Zero
}

fn check(config: &SchedulerConfig) -> Result<()> {
    variance_type(config)?;
    let (algorithm, order) = (algorithm(config), solver_order(config));
    let refuse =
        |field: &str, value: String, expected: &str| Err(SchedulerError::Field { field: field.into(), value, expected: expected.into() });
    if !(1..=3).contains(&order) {
        return refuse("solver_order", order.to_string(), "1, 2 or 3");
    }
    if order == 3 && algorithm == AlgorithmType::SdeDpmSolver {
        return refuse("solver_order", "3".into(), "1 or 2 with algorithm_type sde-dpmsolver");
    }
    if integrand(algorithm) == Integrand::Noise && ends_at_zero(config) {
        return refuse(
            "final_sigmas_type",
            "zero".into(),
            "sigma_min with algorithm_type dpmsolver and sde-dpmsolver, which cannot step to σ = 0",
        );
    }
    Ok(())
}

fn dpm_solver_multistep(config: &SchedulerConfig, num_inference_steps: usize) -> Result<DpmSolverMultistepSampler> {
    let rules = MultistepRules {
        lambda_min_clipped: config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY),
        rounds_timesteps: config.beta_schedule != Some(BetaSchedule::SquaredcosCapV2),
        ends_at_own_sigma_min: false,
    };
    let schedule = multistep_schedule(config, &CLASS, rules, num_inference_steps)?;
    let algorithm = algorithm(config);
    Ok(DpmSolverMultistepSampler {
        algorithm,
        heun: config.solver_type == Some(SolverType::Heun),
        order: solver_order(config),
        lower_order_final: config.lower_order_final.unwrap_or(true),
        euler_at_final: config.euler_at_final.unwrap_or(false),
        ends_at_zero: ends_at_zero(config),
        conversion: Conversion {
            prediction_type: schedule.prediction_type,
            integrand: integrand(algorithm),
            clipping: config.clipping(&CLASS)?,
        },
        schedule,
        history: VecDeque::new(),
    })
}

impl DpmSolverMultistepSampler {
    fn level(&self, index: usize) -> Level {
        let sigmas = self.schedule.sigmas.as_deref().unwrap_or_default();
        Level::of(sigmas[index])
    }

    /// The order this step can take with `known` integrands, its own included.
    fn order_at(&self, step: usize, known: usize) -> usize {
        let steps = self.schedule.timesteps.len();
        let few = self.lower_order_final && steps < FEW_STEPS;
        if step + 1 == steps && (self.euler_at_final || few || self.ends_at_zero) {
            1
        } else if step + 2 == steps && few {
            self.order.min(known).min(2)
        } else {
            self.order.min(known)
        }
    }

    fn update(&self, order: usize, s0: Level, t: Level) -> Update {
        let h = t.lambda - s0.lambda;
        match self.algorithm {
            AlgorithmType::DpmSolver => {
                let growth = h.exp_m1();
                let second = if order == 2 && !self.heun { growth / 2.0 } else { growth / h - 1.0 };
                Update {
                    sample: t.alpha / s0.alpha,
                    d: [-growth, -second, -((growth - h) / (h * h) - 0.5)].map(|d| t.sigma * d),
                    noise: 0.0,
                }
            }
            AlgorithmType::SdeDpmSolver => {
                let growth = h.exp_m1();
                let second = if self.heun { 2.0 * (growth / h - 1.0) } else { growth };
                let noise = t.sigma * (2.0 * h).exp_m1().max(0.0).sqrt();
                Update { sample: t.alpha / s0.alpha, d: [-2.0 * growth, -second, 0.0].map(|d| t.sigma * d), noise }
            }
            AlgorithmType::SdeDpmSolverPlusPlus => {
                let decay = -(-2.0 * h).exp_m1();
                let second = if order == 2 && !self.heun { decay / 2.0 } else { 1.0 - decay / (2.0 * h) };
                let third = (decay - 2.0 * h) / (4.0 * h * h) - 0.5;
                Update {
                    sample: t.sigma / s0.sigma * (-h).exp(),
                    d: [decay, second, third].map(|d| t.alpha * d),
                    noise: t.sigma * decay.max(0.0).sqrt(),
                }
            }
            AlgorithmType::DpmSolverPlusPlus | AlgorithmType::Deis => {
                let decay = (-h).exp_m1();
                let second = if order == 2 && !self.heun { -decay / 2.0 } else { decay / h + 1.0 };
                Update { sample: t.sigma / s0.sigma, d: [-decay, second, -((decay + h) / (h * h) - 0.5)].map(|d| t.alpha * d), noise: 0.0 }
            }
        }
    }

    /// D_0 … D_{order-1} from the integrands `m`, newest first.
    fn differences(&self, order: usize, step: usize, m: &[&Tensor<4>]) -> Vec<Tensor<4>> {
        let lambda = |index: usize| self.level(index).lambda;
        let h = lambda(step + 1) - lambda(step);
        let mut d = vec![m[0].clone()];
        if order >= 2 {
            let r0 = (lambda(step) - lambda(step - 1)) / h;
            let first = (m[0].clone() - m[1].clone()) / r0;
            if order == 2 {
                d.push(first);
            } else {
                let r1 = (lambda(step - 1) - lambda(step - 2)) / h;
                let bend = first.clone() - (m[1].clone() - m[2].clone()) / r1;
                d.push(first + bend.clone() * (r0 / (r0 + r1)));
                d.push(bend / (r0 + r1));
            }
        }
        d
    }
}

impl NoiseSchedule for DpmSolverMultistepSampler {
    fn schedule(&self) -> &DiscreteSchedule {
        &self.schedule
    }
}

impl Sampler for DpmSolverMultistepSampler {
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, noise: Option<Tensor<4>>) -> Tensor<4> {
        if step == 0 {
            self.reset();
        }
        let (s0, t) = (self.level(step), self.level(step + 1));
        self.history.push_front(self.conversion.apply(model_output, &sample, s0));
        self.history.truncate(self.order);
        if t.lambda == s0.lambda {
            return sample;
        }

        let order = self.order_at(step, self.history.len());
        let update = self.update(order, s0, t);
        let m: Vec<&Tensor<4>> = self.history.iter().collect();
        let mut prev_sample = sample * update.sample;
        for (d, factor) in self.differences(order, step, &m).into_iter().zip(update.d) {
            prev_sample = prev_sample + d * factor;
        }
        if update.noise > 0.0 {
            let noise = noise.unwrap_or_else(|| panic!("step {step} draws noise, and none was given"));
            prev_sample = prev_sample + noise * update.noise;
        }
        prev_sample
    }

    fn needs_noise(&self) -> bool {
        matches!(self.algorithm, AlgorithmType::SdeDpmSolver | AlgorithmType::SdeDpmSolverPlusPlus)
    }

    fn reset(&mut self) {
        self.history.clear();
    }
}
