//! The schedulers by name: as we call them, as diffusers does, as A1111's web UI does. Adding one is a file, a line in `SCHEDULERS` and an arm in `build_sampler`.

use vp_core::suggest::nearest;

use crate::{
    config::{AlgorithmType, SchedulerClass, SchedulerConfig},
    ddim::ddim,
    ddpm::ddpm,
    dpm_solver_multistep::dpm_solver_multistep,
    error::{Result, SchedulerError},
    euler::euler,
    euler_ancestral::euler_ancestral,
    heun::heun,
    noise_schedule::{Sampler, Scheduler},
    pndm::pndm,
    single_step::SingleStepScheduler,
    unipc::unipc,
};

/// One line of [`SCHEDULERS`].
#[derive(Clone, Copy, Debug)]
pub struct SchedulerEntry {
    /// Our name.
    pub name: &'static str,
    /// The diffusers class.
    pub class: SchedulerClass,
    /// The names A1111's web UI knows it by, the one to write first.
    pub a1111: &'static [&'static str],
    /// One line for people.
    pub summary: &'static str,
    /// Whether it can be a [`Scheduler`], so that ReFL can use its transitions.
    pub single_step: bool,
    /// Whether its transitions can have a density (DDIM's do with eta > 0), so that DDPO can use them.
    pub stochastic: bool,
    /// `use_karras_sigmas`, where the class has a choice.
    karras: Option<bool>,
    /// `algorithm_type`, where the class has a choice.
    algorithm: Option<AlgorithmType>,
}

const fn entry(name: &'static str, class: SchedulerClass, a1111: &'static [&'static str], summary: &'static str) -> SchedulerEntry {
    use SchedulerClass::*;
    SchedulerEntry {
        name,
        class,
        a1111,
        summary,
        single_step: matches!(class, Ddim | Ddpm | EulerDiscrete | EulerAncestralDiscrete),
        stochastic: matches!(class, Ddim | Ddpm | EulerAncestralDiscrete),
        karras: if matches!(class, EulerDiscrete | HeunDiscrete | DpmSolverMultistep | UniPcMultistep) { Some(false) } else { None },
        algorithm: if matches!(class, DpmSolverMultistep) { Some(AlgorithmType::DpmSolverPlusPlus) } else { None },
    }
}

impl SchedulerEntry {
    const fn karras(self) -> Self {
        Self { karras: Some(true), ..self }
    }

    const fn sde(self) -> Self {
        Self { algorithm: Some(AlgorithmType::SdeDpmSolverPlusPlus), ..self }
    }

    /// A folder's config as this scheduler: diffusers' `from_config`, plus what the name itself says (`euler` is without Karras sigmas, `euler_karras` with).
    pub fn configure(&self, config: &SchedulerConfig) -> SchedulerConfig {
        let mut config = config.with_class(self.class);
        config.use_karras_sigmas = self.karras.or(config.use_karras_sigmas);
        if self.karras == Some(true) {
            (config.use_exponential_sigmas, config.use_beta_sigmas, config.use_lu_lambdas) = (None, None, None);
        }
        config.algorithm_type = self.algorithm.or(config.algorithm_type);
        config
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name, self.class.class_name()].into_iter().chain(self.a1111.iter().copied())
    }
}

/// Every scheduler. Where several share a class, the class name means the first.
pub const SCHEDULERS: &[SchedulerEntry] = {
    use SchedulerClass::*;
    &[
        entry("ddim", Ddim, &["DDIM"], "deterministic at eta 0, as noisy as DDPM at eta 1; the choice for DDPO"),
        entry("ddpm", Ddpm, &["DDPM"], "ancestral sampling along the trained chain; the choice for ReFL"),
        entry("euler", EulerDiscrete, &["Euler"], "Euler's method on the probability-flow ODE"),
        entry("euler_karras", EulerDiscrete, &["Euler Karras"], "Euler with Karras sigmas").karras(),
        entry("euler_a", EulerAncestralDiscrete, &["Euler a", "Euler ancestral"], "Euler steps with fresh noise after each"),
        entry("dpmpp_2m", DpmSolverMultistep, &["DPM++ 2M"], "DPM-Solver++, second order, two steps of memory; good from 15 steps on"),
        entry("dpmpp_2m_karras", DpmSolverMultistep, &["DPM++ 2M Karras"], "DPM-Solver++ 2M with Karras sigmas").karras(),
        entry("dpmpp_2m_sde", DpmSolverMultistep, &["DPM++ 2M SDE"], "DPM-Solver++ 2M on the reverse SDE: fresh noise each step").sde(),
        entry("dpmpp_2m_sde_karras", DpmSolverMultistep, &["DPM++ 2M SDE Karras"], "DPM-Solver++ 2M SDE with Karras sigmas").sde().karras(),
        entry("pndm", Pndm, &["PLMS", "PNDM"], "pseudo linear multistep, Stable Diffusion 1's original default"),
        entry("unipc", UniPcMultistep, &["UniPC"], "predictor-corrector of second order; good from 10 steps on"),
        entry("unipc_karras", UniPcMultistep, &["UniPC Karras"], "UniPC with Karras sigmas").karras(),
        entry("heun", HeunDiscrete, &["Heun"], "Heun's method, two model calls a step"),
        entry("heun_karras", HeunDiscrete, &["Heun Karras"], "Heun with Karras sigmas").karras(),
    ]
};

/// The scheduler of that name: ours, the diffusers class or A1111's, whatever the case, with spaces, hyphens and underscores alike.
///
/// # Errors
/// An unknown name; the message lists the known ones and suggests the nearest.
pub fn by_name(name: &str) -> Result<&'static SchedulerEntry> {
    let wanted = canonical(name);
    if let Some(entry) = SCHEDULERS.iter().find(|entry| entry.names().any(|known| canonical(known) == wanted)) {
        return Ok(entry);
    }
    let canonical_names: Vec<(String, &str)> =
        SCHEDULERS.iter().flat_map(SchedulerEntry::names).map(|known| (canonical(known), known)).collect();
    let nearest = nearest(&wanted, canonical_names.iter().map(|(canonical, _)| canonical.as_str()));
    let suggestion =
        canonical_names.iter().find(|(canonical, _)| Some(canonical.as_str()) == nearest).map(|(_, known)| (*known).to_string());
    Err(SchedulerError::UnknownName { name: name.into(), suggestion, known: known_names(|_| true) })
}

/// The entry that a config is, for naming a folder's own scheduler; `None` where no name fits (an unknown class, exponential sigmas).
pub fn entry_of(config: &SchedulerConfig) -> Option<&'static SchedulerEntry> {
    let class = config.class().ok()?;
    let on = |flag: Option<bool>| flag.unwrap_or(false);
    if on(config.use_exponential_sigmas) || on(config.use_lu_lambdas) {
        return None;
    }
    let algorithm = config.algorithm_type.unwrap_or(AlgorithmType::DpmSolverPlusPlus);
    SCHEDULERS.iter().filter(|entry| entry.class == class).find(|entry| {
        entry.karras.is_none_or(|karras| karras == on(config.use_karras_sigmas)) && entry.algorithm.is_none_or(|wanted| wanted == algorithm)
    })
}

/// The sampler of a config at a number of steps; `entry` overrides the config's own class, `None` keeps it. `eta` is DDIM's and ignored by the others.
///
/// # Errors
/// A class or field value that is not supported, betas that are none, steps or `eta` out of range.
pub fn build_sampler(
    config: &SchedulerConfig,
    entry: Option<&SchedulerEntry>,
    num_inference_steps: usize,
    eta: f64,
) -> Result<Box<dyn Sampler>> {
    let config = checked(config, entry, num_inference_steps, eta)?;
    Ok(match config.class()? {
        SchedulerClass::DpmSolverMultistep => Box::new(dpm_solver_multistep(&config, num_inference_steps)?),
        SchedulerClass::Pndm => Box::new(pndm(&config, num_inference_steps)?),
        SchedulerClass::UniPcMultistep => Box::new(unipc(&config, num_inference_steps)?),
        SchedulerClass::HeunDiscrete => Box::new(heun(&config, num_inference_steps)?),
        class => Box::new(single_step(&config, class, num_inference_steps, eta)?),
    })
}

/// The same for single-step schedulers, with their transitions.
///
/// # Errors
/// As [`build_sampler`], and a class that keeps history.
pub fn build_scheduler(
    config: &SchedulerConfig,
    entry: Option<&SchedulerEntry>,
    num_inference_steps: usize,
    eta: f64,
) -> Result<Box<dyn Scheduler>> {
    let config = checked(config, entry, num_inference_steps, eta)?;
    Ok(Box::new(single_step(&config, config.class()?, num_inference_steps, eta)?))
}

/// How many steps, counted from the first, have a density: all, or all but the last, whose standard deviation many schedules let vanish.
///
/// # Errors
/// A deterministic step before the last, named.
pub fn require_stochastic(scheduler: &dyn Scheduler) -> Result<usize> {
    let timesteps = scheduler.timesteps();
    let deterministic = (0..timesteps.len()).find(|&step| scheduler.std_dev_t(step) < MIN_STD_DEV);
    match deterministic {
        None => Ok(timesteps.len()),
        Some(step) if step > 0 && step + 1 == timesteps.len() => Ok(step),
        Some(step) => Err(SchedulerError::Deterministic { step, timestep: timesteps[step], std_dev_t: scheduler.std_dev_t(step) }),
    }
}

/// Below this a density is numerically meaningless: in `float32` the rounding of x alone would decide it. DDPO's JAX original clips σ here.
const MIN_STD_DEV: f64 = 1e-6;

fn single_step(config: &SchedulerConfig, class: SchedulerClass, num_inference_steps: usize, eta: f64) -> Result<SingleStepScheduler> {
    match class {
        SchedulerClass::Ddim => ddim(config, num_inference_steps, eta),
        SchedulerClass::Ddpm => ddpm(config, num_inference_steps),
        SchedulerClass::EulerDiscrete => euler(config, num_inference_steps),
        SchedulerClass::EulerAncestralDiscrete => euler_ancestral(config, num_inference_steps),
        _ => Err(SchedulerError::NotSingleStep { class: class.class_name().into(), known: known_names(|entry| entry.single_step) }),
    }
}

fn checked(config: &SchedulerConfig, entry: Option<&SchedulerEntry>, num_inference_steps: usize, eta: f64) -> Result<SchedulerConfig> {
    let config = entry.map_or_else(|| config.clone(), |entry| entry.configure(config));
    config.validate()?;
    let most = config.num_train_timesteps();
    if num_inference_steps == 0 || num_inference_steps > most {
        return Err(SchedulerError::NumInferenceSteps {
            got: num_inference_steps,
            reason: format!("expected a number from 1 to num_train_timesteps = {most}"),
        });
    }
    if !(0.0..=1.0).contains(&eta) {
        return Err(SchedulerError::Eta { got: eta });
    }
    Ok(config)
}

/// Our names of the entries that pass, for messages.
pub(crate) fn known_names(passes: impl Fn(&SchedulerEntry) -> bool) -> String {
    SCHEDULERS.iter().filter(|entry| passes(entry)).map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

fn canonical(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

#[cfg(test)]
mod tests;
