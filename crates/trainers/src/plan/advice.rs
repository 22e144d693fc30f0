//! What would take less, and how large a batch may be.

use vp_models::GradientCheckpointing;
use vp_models::NumberFormat;
use vp_models::footprint::Engine;
use vp_models::vae::Tiling;

use super::networks::Laid;
use super::{AtOnce, MemoryPlan, Networks, demand};
use crate::Error;
use crate::config::TrainConfig;
use crate::optim::MomentsFormat;
use crate::sections::Dtype;

/// A setting that takes less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// As `--set` takes it.
    pub setting: String,
    /// The bytes that the peak falls by.
    pub saves: u64,
    /// Whether what is trained stays the same: recomputation, parts of images, smaller batches do not change what is learnt.
    pub alike: bool,
}

/// The largest value of a key with which a run fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Largest {
    /// The key, `algo.refl.batch_size`.
    pub key: String,
    /// The value; `None` if the run does not even fit with 1.
    pub value: Option<usize>,
}

/// Batches are searched up to here.
const MOST: usize = 4096;

/// A run with one setting changed.
struct Candidate {
    setting: String,
    alike: bool,
    config: TrainConfig,
    networks: Networks,
}

/// The settings that make the peak smaller, those that save the most first.
///
/// # Errors
/// As [`MemoryPlan::of`].
pub fn savings(config: &TrainConfig, networks: &Networks, engine: Engine) -> Result<Vec<Advice>, Error> {
    let now = MemoryPlan::of(config, networks, engine)?.peak().1;
    let mut found = Vec::new();
    for Candidate { setting, alike, config, networks } in candidates(config, networks)? {
        // A change that would be refused, for example because a pattern no longer matches, is not advised.
        let Ok(plan) = MemoryPlan::of(&config, &networks, engine) else { continue };
        let saves = now.saturating_sub(plan.peak().1);
        if saves > 0 {
            found.push(Advice { setting, saves, alike });
        }
    }
    found.sort_by_key(|advice| std::cmp::Reverse(advice.saves));
    Ok(found)
}

fn candidates(config: &TrainConfig, networks: &Networks) -> Result<Vec<Candidate>, Error> {
    let mut all = Vec::new();
    let mut add = |setting: String, alike: bool, change: &dyn Fn(&mut TrainConfig, &mut Networks)| {
        let (mut config, mut networks) = (config.clone(), networks.clone());
        change(&mut config, &mut networks);
        all.push(Candidate { setting, alike, config, networks });
    };
    if config.model.gradient_checkpointing == GradientCheckpointing::None {
        add("model.gradient_checkpointing=blocks".into(), true, &|config, _| {
            config.model.gradient_checkpointing = GradientCheckpointing::Blocks;
        });
    }
    let vae = config.vae.clone().unwrap_or_default();
    let on_vae = |change: &dyn Fn(&mut crate::sections::VaeSection), config: &mut TrainConfig| change(config.vae.get_or_insert_default());
    if !vae.slicing {
        add("vae.slicing=true".into(), true, &|config, _| on_vae(&|vae| vae.slicing = true, config));
    }
    if vae.tiling == Tiling::Off {
        add("vae.tiling=true".into(), false, &|config, _| on_vae(&|vae| vae.tiling = Tiling::Own, config));
    }
    if matches!(vae.dtype, None | Some(Dtype::F32)) {
        add("vae.dtype=bf16".into(), false, &|config, _| on_vae(&|vae| vae.dtype = Some(Dtype::Bf16), config));
    }
    if matches!(config.model.dtype, None | Some(Dtype::F32)) {
        add("model.dtype=bf16".into(), false, &|config, _| config.model.dtype = Some(Dtype::Bf16));
    }
    if let Some(reward) = &config.reward
        && networks.reward.iter().any(|network| !network.format.is_half())
    {
        add(format!("reward.{}.dtype=bf16", reward.name()), false, &|_, networks| {
            networks.reward.iter_mut().for_each(|network| network.format = NumberFormat::Bf16);
        });
    }
    if config.optimizer.adamw.moments == MomentsFormat::F32 {
        add("optimizer.adamw.moments=8bit".into(), false, &|config, _| config.optimizer.adamw.moments = MomentsFormat::EightBit);
    }
    match config.lora() {
        Some(lora) if lora.rank > 1 => add(format!("lora.rank={}", lora.rank / 2), false, &|config, _| {
            config.lora.get_or_insert_default().rank = lora.rank / 2;
        }),
        None => add("a LoRA (no model.trainable)".into(), false, &|config, _| config.model.trainable = None),
        Some(_) => {}
    }
    if config.run.workers > 1 {
        add("run.workers=1".into(), true, &|config, _| config.run.workers = 1);
    }
    if let Some(preview) = config.preview.as_ref().filter(|preview| preview.seeds.len() > 1) {
        let seed = preview.seeds[0];
        add(format!("preview.seeds=[{seed}]"), true, &|config, _| {
            config.preview.iter_mut().for_each(|preview| preview.seeds.truncate(1));
        });
    }
    for rows in batches(config)? {
        let half = rows.images / rows.per_unit / 2;
        if let Some(smaller) = (half > 0).then(|| with(config, rows.key, half)).flatten() {
            add(format!("{}={half}", full(config, rows.key)), true, &|config, _| *config = smaller.clone());
        }
    }
    Ok(all)
}

/// The batches of an algorithm that have a key each.
fn batches(config: &TrainConfig) -> Result<Vec<AtOnce>, Error> {
    let demand = demand(config)?;
    let other = demand.drawn.filter(|drawn| drawn.key != demand.taped.key);
    Ok(std::iter::once(demand.taped).chain(other).collect())
}

fn full(config: &TrainConfig, key: &str) -> String {
    format!("algo.{}.{key}", config.algo.name())
}

/// `config` with another value of a key of its algorithm.
fn with(config: &TrainConfig, key: &str, value: usize) -> Option<TrainConfig> {
    let mut algo = serde_json::to_value(&config.algo).ok()?;
    *algo.pointer_mut(&format!("/{}/{}", config.algo.name(), key.replace('.', "/")))? = value.into();
    Some(TrainConfig { algo: serde_json::from_value(algo).ok()?, ..config.clone() })
}

/// The peaks of a run by the sizes of its batches, all else being what it is.
pub struct ByBatch<'a> {
    config: &'a TrainConfig,
    networks: &'a Networks,
    laid: Laid,
}

impl<'a> ByBatch<'a> {
    /// Lays the networks out once for all sizes.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn new(config: &'a TrainConfig, networks: &'a Networks, engine: Engine) -> Result<Self, Error> {
        demand(config)?;
        Ok(Self { config, networks, laid: Laid::out(config, networks, engine)? })
    }

    /// The peak if a key of the algorithm has this value.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`], and when there is no such key.
    pub fn peak(&self, key: &str, value: usize) -> Result<u64, Error> {
        let config = with(self.config, key, value).ok_or_else(|| Error::Config(format!("{} cannot be {value}", full(self.config, key))))?;
        Ok(MemoryPlan::of_laid(&config, self.networks, &self.laid)?.peak().1)
    }

    /// For each batch of the algorithm, the largest with which the run takes at most `limit` bytes, the others being what they are.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn largest(&self, limit: u64) -> Result<Vec<Largest>, Error> {
        let one =
            |rows: AtOnce| Ok(Largest { key: full(self.config, rows.key), value: largest(limit, |value| self.peak(rows.key, value))? });
        batches(self.config)?.into_iter().map(one).collect()
    }
}

/// The largest value whose peak is at most `limit`. Peaks grow with the value, in straight lines between which the steepest one wins.
fn largest(limit: u64, peak: impl Fn(usize) -> Result<u64, Error>) -> Result<Option<usize>, Error> {
    let first = peak(1)?;
    if first > limit {
        return Ok(None);
    }
    let (mut fits, mut below) = (1, first);
    let (mut fails, mut above) = (2, peak(2)?);
    while above <= limit {
        if fails >= MOST {
            return Ok(Some(MOST));
        }
        (fits, below) = (fails, above);
        fails = (2 * fails).min(MOST);
        above = peak(fails)?;
    }
    while fails - fits > 1 {
        // Where the line between the two would reach the limit.
        let share = (limit - below) as f64 / (above - below).max(1) as f64;
        let guess = (fits + ((fails - fits) as f64 * share) as usize).clamp(fits + 1, fails - 1);
        let found = peak(guess)?;
        if found <= limit { (fits, below) = (guess, found) } else { (fails, above) = (guess, found) }
    }
    Ok(Some(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line, a line with a bend, and one that does not fit at all.
    #[test]
    fn the_largest_batch_is_found() {
        let found = |limit, peak: &dyn Fn(usize) -> u64| largest(limit, |value| Ok(peak(value))).unwrap();
        assert_eq!(found(1000, &|n| 100 + 7 * n as u64), Some(128));
        assert_eq!(found(107, &|n| 100 + 7 * n as u64), Some(1));
        assert_eq!(found(106, &|n| 100 + 7 * n as u64), None);
        assert_eq!(found(500, &|n| (100 + n as u64).max(9 * n as u64)), Some(55));
        assert_eq!(found(u64::MAX, &|n| n as u64), Some(MOST));
    }
}
