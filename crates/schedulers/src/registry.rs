//! The schedulers by name: ours, that of diffusers, and those of A1111's web UI.
//!
//! A new class is a file with its `CLASS` and a row of [`SCHEDULERS`]; another name for a class is a row.

use vp_core::suggest::nearest;

use crate::{
    class::{Build, SchedulerClass},
    config::{AlgorithmType, SchedulerConfig},
    error::{Result, SchedulerError},
    noise_schedule::{Sampler, Scheduler},
    sigma_schedule::SigmaSpacing,
};

/// One row of [`SCHEDULERS`].
#[derive(Clone, Copy, Debug)]
pub struct SchedulerEntry {
    /// Our name.
    pub name: &'static str,
    /// The diffusers class.
    pub class: &'static SchedulerClass,
    /// Its names in A1111's web UI, the one to write first.
    pub a1111: &'static [&'static str],
    /// What it is, in one line.
    pub summary: &'static str,
    /// Whether the name stands for Karras sigmas.
    karras: bool,
    /// The `algorithm_type` that the name stands for, where the class has that field.
    algorithm: Option<AlgorithmType>,
}

const fn entry(
    name: &'static str,
    class: &'static SchedulerClass,
    a1111: &'static [&'static str],
    summary: &'static str,
) -> SchedulerEntry {
    SchedulerEntry { name, class, a1111, summary, karras: false, algorithm: class.algorithm_type }
}

impl SchedulerEntry {
    const fn karras(self) -> Self {
        Self { karras: true, ..self }
    }

    const fn sde(self) -> Self {
        Self { algorithm: Some(AlgorithmType::SdeDpmSolverPlusPlus), ..self }
    }

    /// Whether each step depends on the current sample alone, so that [`build_scheduler`] can build it; training needs that.
    pub fn is_single_step(&self) -> bool {
        matches!(self.class.build, Build::SingleStep { .. })
    }

    /// Whether its transitions draw noise at this `eta`, so that they have a density, as DDPO needs. `eta` matters to DDIM alone.
    ///
    /// This can be asked before anything is loaded. The last step may still be deterministic, which depends on the model's own config:
    /// [`require_stochastic`] says so for a built scheduler.
    pub fn is_stochastic(&self, eta: f64) -> bool {
        match self.class.build {
            Build::SingleStep { is_stochastic, .. } => is_stochastic(eta),
            Build::WithHistory(_) => false,
        }
    }

    /// A folder's config as this scheduler: diffusers' `from_config`, plus what the name itself says (`euler` is without Karras sigmas,
    /// `euler_karras` with).
    pub fn configure(&self, config: &SchedulerConfig) -> SchedulerConfig {
        let mut config = config.with_class(self.class);
        if self.class.sigma_spacings.contains(&SigmaSpacing::Karras) {
            config.use_karras_sigmas = Some(self.karras);
        }
        if self.karras {
            (config.use_exponential_sigmas, config.use_beta_sigmas, config.use_lu_lambdas) = (None, None, None);
        }
        config.algorithm_type = self.algorithm.or(config.algorithm_type);
        config
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name, self.class.class_name].into_iter().chain(self.a1111.iter().copied())
    }
}

/// Every scheduler. The class name alone means the first row of that class.
pub const SCHEDULERS: &[SchedulerEntry] = {
    // Brings in every module, so that a new row needs no import.
    use crate::{dpm_solver_multistep as dpm, *};
    &[
        entry("ddim", &ddim::CLASS, &["DDIM"], "deterministic at eta 0, as noisy as DDPM at eta 1; the choice for DDPO"),
        entry("ddpm", &ddpm::CLASS, &["DDPM"], "ancestral sampling along the trained chain; the choice for ReFL"),
        entry("euler", &euler::CLASS, &["Euler"], "Euler's method on the probability-flow ODE"),
        entry("euler_karras", &euler::CLASS, &["Euler Karras"], "Euler with Karras sigmas").karras(),
        entry("euler_a", &euler_ancestral::CLASS, &["Euler a", "Euler ancestral"], "Euler steps with fresh noise after each"),
        entry("dpmpp_2m", &dpm::CLASS, &["DPM++ 2M"], "DPM-Solver++, second order, two steps of memory; good from 15 steps on"),
        entry("dpmpp_2m_karras", &dpm::CLASS, &["DPM++ 2M Karras"], "DPM-Solver++ 2M with Karras sigmas").karras(),
        entry("dpmpp_2m_sde", &dpm::CLASS, &["DPM++ 2M SDE"], "DPM-Solver++ 2M on the reverse SDE: fresh noise each step").sde(),
        entry("dpmpp_2m_sde_karras", &dpm::CLASS, &["DPM++ 2M SDE Karras"], "DPM-Solver++ 2M SDE with Karras sigmas").sde().karras(),
        entry("pndm", &pndm::CLASS, &["PLMS", "PNDM"], "pseudo linear multistep, Stable Diffusion 1's original default"),
        entry("unipc", &unipc::CLASS, &["UniPC"], "predictor-corrector of second order; good from 10 steps on"),
        entry("unipc_karras", &unipc::CLASS, &["UniPC Karras"], "UniPC with Karras sigmas").karras(),
        entry("heun", &heun::CLASS, &["Heun"], "Heun's method, two model calls per step"),
        entry("heun_karras", &heun::CLASS, &["Heun Karras"], "Heun with Karras sigmas").karras(),
    ]
};

/// The scheduler of that name: ours, the diffusers class or A1111's, whatever the case, with spaces, hyphens and underscores alike.
///
/// # Errors
/// An unknown name; the message lists the known ones and suggests the nearest one.
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

/// Our names of the entries that pass, separated by commas, for messages.
pub fn known_names(passes: impl Fn(&SchedulerEntry) -> bool) -> String {
    SCHEDULERS.iter().filter(|entry| passes(entry)).map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

impl SchedulerConfig {
    /// The class of `_class_name`; the `Flax` prefix of old folders makes no difference.
    ///
    /// # Errors
    /// A class that is not implemented.
    pub fn class(&self) -> Result<&'static SchedulerClass> {
        let name = self.class_name.strip_prefix("Flax").unwrap_or(&self.class_name);
        let mut classes = SCHEDULERS.iter().map(|entry| entry.class);
        classes.find(|class| class.class_name == name).ok_or_else(|| {
            let mut known: Vec<&str> = SCHEDULERS.iter().map(|entry| entry.class.class_name).collect();
            known.dedup();
            SchedulerError::UnknownClass { class: self.class_name.clone(), known: known.join(", ") }
        })
    }
}

/// The entry that a config amounts to, for naming a folder's own scheduler; `None` where no name fits (an unknown class, exponential sigmas).
pub fn entry_of(config: &SchedulerConfig) -> Option<&'static SchedulerEntry> {
    let class = config.class().ok()?;
    let on = |flag: Option<bool>| flag.unwrap_or(false);
    if on(config.use_exponential_sigmas) || on(config.use_lu_lambdas) {
        return None;
    }
    let karras = class.sigma_spacings.contains(&SigmaSpacing::Karras) && on(config.use_karras_sigmas);
    let algorithm = class.algorithm_type.map(|default| config.algorithm_type.unwrap_or(default));
    SCHEDULERS.iter().find(|entry| entry.class == class && entry.karras == karras && entry.algorithm == algorithm)
}

/// The sampler of a config at a number of steps; `entry` overrides the config's own class, `None` keeps it. DDIM alone reads `eta`.
///
/// # Errors
/// A class or field value that is not supported, betas out of range, steps or `eta` out of range.
pub fn build_sampler(
    config: &SchedulerConfig,
    entry: Option<&SchedulerEntry>,
    num_inference_steps: usize,
    eta: f64,
) -> Result<Box<dyn Sampler>> {
    let config = checked(config, entry, num_inference_steps, eta)?;
    match config.class()?.build {
        Build::SingleStep { build, .. } => Ok(build(&config, num_inference_steps, eta)?),
        Build::WithHistory(build) => build(&config, num_inference_steps),
    }
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
    let class = config.class()?;
    match class.build {
        Build::SingleStep { build, .. } => build(&config, num_inference_steps, eta),
        Build::WithHistory(_) => {
            Err(SchedulerError::NotSingleStep { class: class.class_name.into(), known: known_names(SchedulerEntry::is_single_step) })
        }
    }
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
        Some(step) => Err(SchedulerError::Deterministic {
            step,
            timestep: timesteps[step],
            std_dev_t: scheduler.std_dev_t(step),
            known: stochastic_names(),
        }),
    }
}

/// Our names of the schedulers whose steps draw noise, with the `eta` that they need.
fn stochastic_names() -> String {
    let stochastic = SCHEDULERS.iter().filter(|entry| entry.is_stochastic(1.0));
    let names = stochastic.map(|entry| if entry.is_stochastic(0.0) { entry.name.into() } else { format!("{} with eta > 0", entry.name) });
    let mut names: Vec<String> = names.collect();
    let last = names.pop().unwrap_or_default();
    format!("{} or {last}", names.join(", "))
}

/// Below this a density is numerically meaningless: in `float32` the rounding of x alone would decide it. DDPO's JAX original clips σ here.
const MIN_STD_DEV: f64 = 1e-6;

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

fn canonical(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

#[cfg(test)]
mod tests;
