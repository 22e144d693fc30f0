//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2202.09778), and its PLMS form without the Runge-Kutta warm-up, which
//! Stable Diffusion made popular.
//!
//! | code | paper |
//! |---|---|
//! | `transfer` | φ(x_t, ε_t, t, t-δ), eq. 11 |
//! | `runge_kutta` | the four evaluations of eq. 13 |
//! | `linear_multistep` | e' of eq. 12, and its lower orders at the start |
//! | `ets` | e_t, e_{t-δ}, … |
//!
//! Follows diffusers' `schedulers/scheduling_pndm.py`.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::{
    class::{Build, SchedulerClass},
    config::{PredictionType, SchedulerConfig, TimestepSpacing},
    error::{Result, SchedulerError},
    noise_schedule::{DiscreteSchedule, NoiseSchedule, Sampler},
    single_step::{alphas_at, in_float_type_of},
};

/// Model calls of one Runge-Kutta step, and Runge-Kutta steps of the warm-up plus one.
const ORDER: usize = 4;

/// PNDM, with or without its Runge-Kutta warm-up.
#[derive(Clone, Debug)]
pub(crate) struct PndmSampler {
    schedule: DiscreteSchedule,
    /// ᾱ_t of every training timestep.
    alphas_cumprod: Vec<f64>,
    /// How many of the timesteps belong to the Runge-Kutta warm-up.
    warm_up: usize,
    /// One step of the uniform grid, in training timesteps.
    stride: i64,
    final_alpha_cumprod: f64,
    /// Calls since the chain began.
    counter: usize,
    /// Model outputs at the grid's points, newest first.
    ets: VecDeque<Tensor<4>>,
    /// The weighted sum of the Runge-Kutta outputs so far.
    accumulated: Option<Tensor<4>>,
    /// Where the current step began.
    start: Option<Tensor<4>>,
}

pub(crate) static CLASS: SchedulerClass = SchedulerClass {
    class_name: "PNDMScheduler",
    build: Build::WithHistory(|config, steps| Ok(Box::new(pndm(config, steps)?))),
    beta_start: 0.0001,
    beta_end: 0.02,
    timestep_spacing: TimestepSpacing::Leading,
    steps_along_sigmas: false,
    sigma_spacings: &[],
    rescale_betas_zero_snr: false,
    thresholding: false,
    clip_sample: None,
    algorithm_type: None,
    check,
};

fn check(config: &SchedulerConfig) -> Result<()> {
    if config.prediction_type == Some(PredictionType::Sample) {
        return Err(SchedulerError::Unsupported {
            class: CLASS.class_name.into(),
            field: "prediction_type".into(),
            value: "sample".into(),
            way_out: "PNDM averages noise predictions; use ddim".into(),
        });
    }
    Ok(())
}

fn pndm(config: &SchedulerConfig, num_inference_steps: usize) -> Result<PndmSampler> {
    let alphas_cumprod = config.alphas_cumprod()?;
    // Smallest first, as the two lists below are built.
    let grid: Vec<f64> = config.spaced_timesteps(&CLASS, num_inference_steps).into_iter().rev().collect();
    alphas_at(&alphas_cumprod, &grid, &CLASS)?;
    let stride = config.num_train_timesteps() / num_inference_steps;

    let (warm_up, multistep) = if config.skip_prk_steps.unwrap_or(false) {
        // The last but one appears twice: the first step is taken again with a better slope.
        let mut multistep = grid.clone();
        if let [.., before_last, _] = grid[..] {
            multistep.insert(grid.len() - 1, before_last);
        }
        (Vec::new(), multistep)
    } else {
        if num_inference_steps < ORDER {
            return Err(SchedulerError::NumInferenceSteps {
                got: num_inference_steps,
                reason: format!("PNDM's Runge-Kutta warm-up needs at least {ORDER} steps; use more, or set skip_prk_steps to true"),
            });
        }
        let halves: Vec<f64> = grid[grid.len() - ORDER..].iter().flat_map(|&t| [t, t + (stride / 2) as f64]).collect();
        let doubled: Vec<f64> = halves[..halves.len() - 1].iter().flat_map(|&t| [t, t]).collect();
        (doubled[1..doubled.len() - 1].to_vec(), grid[..grid.len() - (ORDER - 1)].to_vec())
    };
    let timesteps = warm_up.iter().rev().chain(multistep.iter().rev()).copied().collect();
    let final_alpha_cumprod = if config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { alphas_cumprod[0] };
    Ok(PndmSampler {
        schedule: DiscreteSchedule::variance_preserving(config, &alphas_cumprod, timesteps, None),
        alphas_cumprod,
        warm_up: warm_up.len(),
        stride: stride as i64,
        final_alpha_cumprod,
        counter: 0,
        ets: VecDeque::new(),
        accumulated: None,
        start: None,
    })
}

impl PndmSampler {
    fn alpha_cumprod(&self, timestep: i64) -> f64 {
        let last = self.alphas_cumprod.len() - 1;
        usize::try_from(timestep).map_or(self.final_alpha_cumprod, |t| self.alphas_cumprod[t.min(last)])
    }

    /// Eq. 11: from timestep to timestep along a constant noise prediction.
    fn transfer(&self, sample: Tensor<4>, timestep: i64, prev_timestep: i64, model_output: Tensor<4>) -> Tensor<4> {
        let (alpha, alpha_prev) = (self.alpha_cumprod(timestep), self.alpha_cumprod(prev_timestep));
        let (beta, beta_prev) = (1.0 - alpha, 1.0 - alpha_prev);
        let epsilon = self.schedule.prediction_type.epsilon(alpha.sqrt(), beta.sqrt());
        let on_epsilon = (alpha_prev - alpha) / (alpha * beta_prev.sqrt() + (alpha * beta * alpha_prev).sqrt());
        // Summed up on the host: on v-prediction the two terms in x nearly cancel where ᾱ is small.
        let on_sample = (alpha_prev / alpha).sqrt() - on_epsilon * epsilon.sample;
        sample * on_sample - model_output * (on_epsilon * epsilon.output)
    }

    /// Eq. 13, one of its four calls.
    fn runge_kutta(&mut self, model_output: Tensor<4>, timestep: i64, sample: Tensor<4>) -> Tensor<4> {
        let prev_timestep = timestep - if self.counter.is_multiple_of(2) { self.stride / 2 } else { 0 };
        let from = self.schedule.timesteps[self.counter / ORDER * ORDER] as i64;
        let stage = self.counter % ORDER;
        let weight = if stage == 0 || stage == ORDER - 1 { 1.0 / 6.0 } else { 1.0 / 3.0 };
        let weighted = model_output.clone() * weight;
        let sum = match self.accumulated.take() {
            Some(sum) if stage > 0 => sum + weighted,
            _ => weighted,
        };
        if stage == 0 {
            self.remember(model_output.clone());
            self.start = Some(sample.clone());
        }
        let slope = if stage == ORDER - 1 {
            sum
        } else {
            self.accumulated = Some(sum);
            model_output
        };
        let start = self.start.clone().unwrap_or(sample);
        self.transfer(start, from, prev_timestep, slope)
    }

    /// Eq. 12; without a warm-up the first step is taken twice, then the order rises with the history.
    fn linear_multistep(&mut self, model_output: Tensor<4>, timestep: i64, sample: Tensor<4>) -> Tensor<4> {
        if self.counter == 1 {
            let slope = match self.ets.front() {
                Some(first) => (model_output + first.clone()) / 2.0,
                None => model_output,
            };
            let start = self.start.take().unwrap_or(sample);
            return self.transfer(start, timestep + self.stride, timestep, slope);
        }
        if self.counter == 0 {
            self.start = Some(sample.clone());
        }
        self.remember(model_output);
        let weights: &[f64] = match self.ets.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let slope = self.ets.iter().zip(weights).map(|(e, weight)| e.clone() * *weight).reduce(|sum, term| sum + term);
        let slope = slope.expect("one output was just remembered");
        self.transfer(sample, timestep, timestep - self.stride, slope)
    }

    fn remember(&mut self, model_output: Tensor<4>) {
        self.ets.push_front(model_output);
        self.ets.truncate(ORDER);
    }
}

impl NoiseSchedule for PndmSampler {
    fn schedule(&self) -> &DiscreteSchedule {
        &self.schedule
    }
}

impl Sampler for PndmSampler {
    fn step(&mut self, model_output: Tensor<4>, step: usize, sample: Tensor<4>, _noise: Option<Tensor<4>>) -> Tensor<4> {
        if step == 0 {
            self.reset();
        }
        let model_output = in_float_type_of(model_output, &sample);
        let timestep = self.schedule.timesteps[step] as i64;
        let prev_sample = if self.counter < self.warm_up {
            self.runge_kutta(model_output, timestep, sample)
        } else {
            self.linear_multistep(model_output, timestep, sample)
        };
        self.counter += 1;
        prev_sample
    }

    fn needs_noise(&self) -> bool {
        false
    }

    fn reset(&mut self) {
        self.counter = 0;
        self.ets.clear();
        self.accumulated = None;
        self.start = None;
    }
}
