//! `plan`: what memory a run will take, and how fast it would be on several devices, from configs alone.

mod ranks;
mod told;

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use vp_core::config;
use vp_core::config::Validate;
use vp_models::footprint::{Engine, ModelSizes, Published};
use vp_models::pipeline::ModelFolder;
use vp_rewards::RewardConfig;
use vp_trainers::config::TrainConfig;
use vp_trainers::plan::{Advice, ByBatch, Details, Largest, MemoryPlan, Networks, Work, demand, savings};

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::memory::{Memory, readable, size};
use crate::terminal::{print, print_json};
use crate::{device, embedded, presets};

/// The batches that the peak is told for.
const BATCHES: [usize; 4] = [1, 2, 4, 8];

/// A plan and all that is told of it.
struct Planned {
    config: TrainConfig,
    networks: Networks,
    plan: MemoryPlan,
    details: Details,
    /// The peak on the other engine.
    elsewhere: (Engine, u64),
    /// The peak for each of [`BATCHES`], as the key of the trained batch says.
    by_batch: (String, Vec<u64>),
    limit: Limit,
    largest: Vec<Largest>,
    advice: Vec<Advice>,
}

/// What a run may take.
#[derive(Debug, Clone, Copy)]
struct Limit {
    bytes: u64,
    /// Whether the user said so; else it is the machine's memory.
    asked: bool,
}

/// The top-level entry point for `plan`.
pub fn run(args: PlanArgs) -> Result<(), Failure> {
    let engine = engine(&args.device)?;
    let limit = limit(args.memory.as_deref())?;
    let config = read(&args)?;
    if !args.ranks.is_empty() {
        let work = Work::of(&config, &networks(&config)?, engine)?;
        let spread = ranks::Spread::of(&args, work, config);
        match args.json {
            true => print_json(&format!("{}\n", spread.json()))?,
            false => print(&spread.text())?,
        }
        return Ok(());
    }
    let planned = Planned::of(config, engine, limit)?;
    match args.json {
        true => print_json(&format!("{}\n", told::json(&planned)))?,
        false => print(&told::text(&planned))?,
    }
    Ok(())
}

/// The peak of a run, if it can be planned.
pub fn peak(config: &TrainConfig, device: &str) -> Option<u64> {
    let networks = networks(config).ok()?;
    Some(MemoryPlan::of(config, &networks, engine(device).ok()?).ok()?.peak().1)
}

/// The plan of a run in one sentence, for `train --dry-run`; `None` for a run that is not planned.
pub fn in_short(config: &TrainConfig, device: &str) -> Option<String> {
    let (networks, engine) = (networks(config).ok()?, engine(device).ok()?);
    let plan = MemoryPlan::of(config, &networks, engine).ok()?;
    let (phase, peak) = plan.peak();
    let has = Memory::look()
        .filter(|_| engine == Engine::Cpu)
        .map_or_else(String::new, |memory| format!(", of {} that this machine has", readable(memory.total)));
    Some(format!(
        "memory: about {}{has}: {} stay, the most comes in {}; `plan` tells what would take less",
        readable(peak),
        readable(plan.fixed()),
        phase.name()
    ))
}

fn engine(device: &str) -> anyhow::Result<Engine> {
    Ok(if device::is_cpu_named(device)? { Engine::Cpu } else { Engine::Gpu })
}

fn limit(asked: Option<&str>) -> anyhow::Result<Limit> {
    if let Some(text) = asked {
        let bytes = size(text).map_err(|message| anyhow::anyhow!("--memory {message}"))?;
        return Ok(Limit { bytes, asked: true });
    }
    let memory = Memory::look().context("this system does not tell its memory; give the limit as --memory SIZE, such as 8GiB")?;
    Ok(Limit { bytes: memory.total, asked: false })
}

/// A config that is checked as `train` checks it, but for files that are not on this machine yet.
#[derive(Deserialize)]
#[serde(transparent)]
struct Unfetched(TrainConfig);

impl Validate for Unfetched {
    fn findings(&self, findings: &mut Vec<String>) {
        // What is found later is not looked for now.
        const LATER: &str = "embedded:later";
        let mut config = self.0.clone();
        for reward in config.reward.iter_mut().chain(&mut config.watch) {
            let later = |path: &Path| Ok::<_, Infallible>(if path.exists() { path.to_path_buf() } else { PathBuf::from(LATER) });
            let Ok(()) = reward.resolve(later);
        }
        config.findings(findings);
    }
}

/// The config that the arguments name.
fn read(args: &PlanArgs) -> anyhow::Result<TrainConfig> {
    if let Some(algo) = &args.algo {
        presets::check_algo(algo).with_context(|| format!("--algo {algo}"))?;
    }
    let Unfetched(config) = match (&args.config, &args.algo) {
        (Some(path), _) => config::read(path, &args.overrides)?,
        (None, Some(algo)) => {
            let preset = match &args.preset {
                Some(name) => presets::find(algo, name).with_context(|| format!("--preset {name}"))?,
                None => presets::default_of(algo),
            };
            config::parse(preset.text, preset.path, &args.overrides)?
        }
        (None, None) => bail!("expected --algo NAME or --config FILE"),
    };
    match &args.algo {
        Some(algo) if algo != config.algo.name() => bail!("--algo {algo}, but the config has [algo.{}]", config.algo.name()),
        _ => Ok(config),
    }
}

/// The configs of the networks that `config` names: those on this machine, or the published ones of the same name.
fn networks(config: &TrainConfig) -> anyhow::Result<Networks> {
    // An algorithm that does not train a denoiser does not have a model folder to look for.
    demand(config)?;
    let path = &config.model.path;
    let (model, assumed) = match embedded::here(path)? {
        Some(found) => (ModelSizes::of(&ModelFolder::open_with(&found, config.model.files()).context("[model]")?), None),
        None => match Published::named(path) {
            Some(published) => (published.sizes(), Some(published)),
            None => bail!(
                "[model] path {}: it is not on this machine, and its name tells no published model whose sizes are known (Stable Diffusion 1.5, \
                 2.1, XL); name one, such as --set model.path=stable-diffusion-xl, or a folder of configs",
                path.display()
            ),
        },
    };
    let of = |reward: &RewardConfig| {
        let mut reward = reward.clone();
        reward.resolve(|path| embedded::here(path).map(|found| found.unwrap_or_else(|| path.to_path_buf())))?;
        anyhow::Ok(reward.networks()?)
    };
    let reward = config.reward.as_ref().map(of).transpose().context("[reward]")?.unwrap_or_default();
    let watched = config.watch.iter().map(of).collect::<anyhow::Result<Vec<_>>>().context("[[watch]]")?.concat();
    Ok(Networks { model, assumed, reward, watched })
}

impl Planned {
    fn of(config: TrainConfig, engine: Engine, limit: Limit) -> anyhow::Result<Self> {
        let networks = networks(&config)?;
        let plan = MemoryPlan::of(&config, &networks, engine)?;
        let advice = savings(&config, &networks, engine)?;
        if limit.asked && limit.bytes < plan.fixed() {
            bail!("{}", told::below_what_stays(&plan, limit.bytes, &advice));
        }
        let other = if engine == Engine::Cpu { Engine::Gpu } else { Engine::Cpu };
        let key = demand(&config)?.taped.key;
        let batches = ByBatch::new(&config, &networks, engine)?;
        let by_batch = BATCHES.into_iter().map(|batch| batches.peak(key, batch)).collect::<Result<Vec<_>, _>>()?;
        let largest = batches.largest(limit.bytes)?;
        Ok(Self {
            details: Details::of(&config, &networks, engine)?,
            elsewhere: (other, MemoryPlan::of(&config, &networks, other)?.peak().1),
            by_batch: (format!("algo.{}.{key}", config.algo.name()), by_batch),
            largest,
            config,
            networks,
            plan,
            limit,
            advice,
        })
    }
}
