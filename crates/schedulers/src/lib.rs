//! Noise schedules and the reverse step as a distribution.
//!
//! A model folder's `scheduler_config.json` is a [`SchedulerConfig`]. Built for a number of steps it is a [`Sampler`], which a sampling loop asks for the
//! next sample, and, where a step depends on the current sample alone, a [`Scheduler`], which gives the step as a [`Transition`]: ReFL reads its
//! `pred_original_sample`, DDPO its `log_prob`. Noise is always an argument.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use vp_schedulers::{Sampler, Scheduler, SchedulerConfig, build_sampler, build_scheduler, by_name};
//!
//! let config = SchedulerConfig::new(by_name("ddim")?.class);
//! let ddim = build_scheduler(&config, None, 50, 1.0)?;
//! let x = Tensor::<4>::ones([2, 4, 8, 8], &Device::flex());
//! let transition = ddim.transition(x.clone() * 0.1, &[0, 49], x.clone());
//! assert_eq!(transition.std_dev_t.dims(), [2, 1, 1, 1]);
//!
//! let mut euler = build_sampler(&config, Some(by_name("Euler a")?), 20, 0.0)?;
//! let noise = euler.needs_noise().then(|| x.zeros_like());
//! let x = euler.step(x.clone() * 0.1, 0, x, noise);
//! assert_eq!(x.dims(), [2, 4, 8, 8]);
//! # Ok::<(), vp_schedulers::SchedulerError>(())
//! ```
//!
//! # Symbols
//!
//! | code | papers | meaning |
//! |---|---|---|
//! | `betas` | β_t | variance added at training step t |
//! | `alphas_cumprod` | ᾱ_t | Π (1 - β_s): the signal's share of the variance |
//! | `signal`, `noise` of a training level | √ᾱ_t, √(1-ᾱ_t) | x_t = `signal` x_0 + `noise` ε |
//! | `alpha`, `sigma` of a variance-preserving sample | √ᾱ_t, √(1-ᾱ_t) | the same, at a noise level of sampling |
//! | `sigmas` | σ_t = √((1-ᾱ_t) / ᾱ_t) | the noise beside an unscaled x_0 |
//! | `lambda` | λ_t = -ln σ_t | half the log signal-to-noise ratio |
//! | `eta` | η | DDIM's noise: 0 none, 1 as DDPM |
//! | `std_dev_t` | σ_t(η) | the reverse step's standard deviation |
//!
//! Tables and time values are `f64` on the host. The names, defaults and formulas are those of diffusers, whose file each module names.

mod beta_schedule;
mod class;
mod config;
mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod error;
mod euler;
mod euler_ancestral;
mod heun;
mod multistep;
mod noise_schedule;
mod pndm;
mod prediction;
mod registry;
mod sigma_schedule;
mod single_step;
mod timestep_spacing;
mod transition;
mod unipc;
mod validate;

pub use class::SchedulerClass;
pub use config::{
    AlgorithmType, BetaSchedule, FinalSigmasType, InterpolationType, PredictionType, SchedulerConfig, SolverType, TimestepSpacing,
    TimestepType, VarianceType,
};
pub use error::{Result, SchedulerError};
pub use noise_schedule::{DiscreteSchedule, NoiseSchedule, Sampler, Scheduler, TrainingLevel};
pub use registry::{SCHEDULERS, SchedulerEntry, build_sampler, build_scheduler, by_name, entry_of, known_names, require_stochastic};
pub use transition::Transition;
