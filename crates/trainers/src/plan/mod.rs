//! The memory of a run, from its config and the configs of its networks: nothing is loaded and nothing computed.
//!
//! What stays for the whole run is counted: weights, what trains with its moments and copies, the trajectories that are kept. What comes and
//! goes is [traced](vp_models::footprint) with the run's own batch sizes, phase by phase; the phase that takes the most decides.

mod advice;
mod demand;
mod networks;
mod phases;
mod ranks;

pub use advice::{Advice, ByBatch, Largest, savings};
pub use demand::{AtOnce, Demand};
pub use networks::Networks;
pub use ranks::{Link, Predicted, Work};

use vp_models::GradientCheckpointing;
use vp_models::NumberFormat;
use vp_models::footprint::Engine;
use vp_models::pipeline::EMBEDDINGS_KEPT;

use crate::Error;
use crate::algorithm::{Driver, Kept};
use crate::config::TrainConfig;
use crate::policy::rollout::Rollout;
use crate::sections::Dtype;
use networks::Laid;

/// What the process holds beside all that is counted, in bytes: the program itself, its threads, tokenizers and the scratch of kernels. With
/// [`ALLOCATOR`] and [`KEPT`], fitted to the peaks (Linux, 2 threads) of the five runs that
///
/// ```text
/// cargo test --release --test cli plan:: -- --nocapture
/// ```
///
/// prints beside their plans.
pub const PROCESS: u64 = 125 << 20;

/// What the allocator holds beyond what is in use, as a share of what comes and goes in the phase that takes the most. Fitted with [`PROCESS`]; the
/// traces themselves are within a few percent of what is allocated (`tests/memory.rs`).
pub const ALLOCATOR: f64 = 0.1;

/// The share of what the phase with the second most takes that the allocator still holds in the one with the most: freed memory stays with the
/// process (`crates/cli/src/allocator.rs`), and buffers of other sizes do not fit into it. Fitted with [`PROCESS`].
pub const KEPT: f64 = 0.8;

/// Something that stays for the whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// More about it; may be empty.
    pub note: String,
    /// Its size.
    pub bytes: u64,
}

/// A phase of a run, and what comes and goes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Weights are read, as f32, before they are rounded.
    Load,
    /// Images are drawn, off the tape.
    Rollout,
    /// Forward on the tape, and back.
    Update,
    /// Images are decoded and scored, off the tape.
    Decode,
}

impl Phase {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Rollout => "rollout",
            Self::Update => "update",
            Self::Decode => "decode+reward",
        }
    }
}

/// What is known of a run's memory. All sizes are in bytes.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// What computes.
    pub engine: Engine,
    /// Values that train.
    pub trained: u64,
    /// What stays.
    pub parts: Vec<Part>,
    /// What comes and goes in each phase.
    pub phases: Vec<(Phase, u64)>,
}

/// More about what comes and goes.
#[derive(Debug, Clone, Copy)]
pub struct Details {
    /// What the tape of one micro-batch holds between the forward and the backward pass: everything kept, and with recomputation.
    pub tape: [u64; 2],
    /// Decoding and scoring of one image off the tape: whole, and in tiles.
    pub decoding: [u64; 2],
    /// The largest tile of attention scores in an update; 0 on the CPU, whose kernel keeps none.
    pub scores: u64,
    /// Multiplications and additions of one image, forward: a call of the network without guidance, decoding, and the reward that is trained on.
    pub operations: [u64; 3],
}

impl MemoryPlan {
    /// The plan of `config` with these networks.
    ///
    /// # Errors
    /// When the algorithm is not one that trains a denoiser, or a pattern matches nothing.
    pub fn of(config: &TrainConfig, networks: &Networks, engine: Engine) -> Result<Self, Error> {
        // The algorithm is looked at first, because the model of some is not a denoiser.
        demand(config)?;
        Self::of_laid(config, networks, &Laid::out(config, networks, engine)?)
    }

    /// The plan of `config`, whose networks are laid out.
    fn of_laid(config: &TrainConfig, networks: &Networks, laid: &Laid) -> Result<Self, Error> {
        let (demand, parts) = (demand(config)?, parts(config, networks, laid));
        let phases = phases::all(config, laid, &demand, total(&parts));
        Ok(Self { engine: laid.engine, trained: laid.trained_values(), parts, phases })
    }

    /// What stays, with the process itself on the CPU.
    pub fn fixed(&self) -> u64 {
        total(&self.parts)
    }

    /// What a phase takes at most, with what the allocator holds beyond it.
    pub fn of_phase(&self, transient: u64) -> u64 {
        let slack = if self.engine == Engine::Cpu { 1.0 + ALLOCATOR } else { 1.0 };
        (transient as f64 * slack) as u64
    }

    /// The phase that takes the most, and the run's peak in it.
    pub fn peak(&self) -> (Phase, u64) {
        let mut phases = self.phases.clone();
        phases.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let [most, next] = [0, 1].map(|place| phases.get(place).copied().unwrap_or((Phase::Load, 0)));
        let kept = if self.engine == Engine::Cpu { KEPT } else { 0.0 };
        (most.0, self.fixed() + self.of_phase(most.1) + (next.1 as f64 * kept) as u64)
    }
}

impl Details {
    /// Those of `config` with these networks.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn of(config: &TrainConfig, networks: &Networks, engine: Engine) -> Result<Self, Error> {
        let (demand, laid) = (demand(config)?, Laid::out(config, networks, engine)?);
        let [whole, blocks] =
            [GradientCheckpointing::None, GradientCheckpointing::Blocks].map(|kept| phases::update(config, &laid, &demand, kept));
        Ok(Self {
            tape: [whole.tape, blocks.tape],
            decoding: phases::decoding(&laid),
            scores: whole.scores.max(blocks.scores),
            operations: phases::operations(&laid),
        })
    }
}

/// What the algorithm of `config` holds at once.
///
/// # Errors
/// When it is not one that trains a denoiser.
pub fn demand(config: &TrainConfig) -> Result<Demand, Error> {
    config.algo.chosen().driver().demand(config).ok_or_else(|| {
        Error::Config(format!(
            "[algo.{}] trains no denoiser, and plan counts the runs of those that do; `train --dry-run` checks this one",
            config.algo.name()
        ))
    })
}

fn total(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// The number format that a section's `dtype` means. `auto` is f32 on the CPU, and on a GPU bf16, which all but old ones compute in.
fn format(dtype: Option<Dtype>, engine: Engine) -> NumberFormat {
    match dtype {
        None | Some(Dtype::F32) => NumberFormat::F32,
        Some(Dtype::Bf16) => NumberFormat::Bf16,
        Some(Dtype::F16) => NumberFormat::F16,
        Some(Dtype::Auto) if engine == Engine::Cpu => NumberFormat::F32,
        Some(Dtype::Auto) => NumberFormat::Bf16,
    }
}

/// Micro-batches, batches of a rollout, or prompts of a preview that are computed side by side.
fn side_by_side(config: &TrainConfig, engine: Engine, at_most: usize) -> u64 {
    if engine == Engine::Cpu { config.run.workers.min(at_most).max(1) as u64 } else { 1 }
}

/// What stays for the whole run.
fn parts(config: &TrainConfig, networks: &Networks, laid: &Laid) -> Vec<Part> {
    let part = |name: &'static str, note: String, bytes: u64| Part { name, note, bytes };
    let millions = |values: u64| format!("{:.1} M values", values as f64 / 1e6);
    let settings = config.settings();
    let trained = laid.trained_values();
    let moments: u64 = laid.trained.iter().map(|values| config.optimizer.adamw.moments.bytes(*values)).sum();
    let (mut copies, mut kept, mut of_what) = (0, 0, Vec::new());
    if config.ema.is_some() {
        copies += 1;
        of_what.push("moving average");
    }
    if settings.sentinel.is_some() {
        copies += 1;
        of_what.push("first weights");
    }
    if let Driver::Reward(algorithm) = config.algo.chosen().driver() {
        let policies = algorithm.policies_kept() as u64;
        copies += policies;
        of_what.extend((policies > 0).then_some("older policies"));
        let bytes = |images, steps| Rollout::bytes(images, laid.latent_shape, steps);
        kept = match algorithm.kept() {
            Kept::Nothing => 0,
            Kept::Trajectories(images) => bytes(images, config.num_inference_steps()),
            Kept::Images(images) => bytes(images, 0),
        };
    }
    let gradients = if settings.micro_batches > 1 { 4 * trained } else { 0 };
    let mut parts = vec![
        part("UNet", millions(laid.sizes[0].values), laid.sizes[0].bytes),
        part("text encoders", millions(laid.sizes[1].values), laid.sizes[1].bytes),
        part("autoencoder", millions(laid.sizes[2].values), laid.sizes[2].bytes),
    ];
    let reward: u64 = networks.reward.iter().chain(&networks.watched).map(|network| network.bytes()).sum();
    let values: u64 = networks.reward.iter().chain(&networks.watched).map(|network| network.values()).sum();
    parts.push(part("rewards", millions(values), reward));
    let what = if config.lora().is_some() { "the LoRA's factors, in f32" } else { "beside the weights they start from" };
    parts.push(part("trained weights", format!("{}, {what}", millions(trained)), 4 * trained));
    parts.push(part("gradients", if gradients > 0 { "summed over micro-batches".into() } else { String::new() }, gradients));
    parts.push(part("moments", "AdamW".into(), moments));
    parts.push(part("copies", of_what.join(", "), 4 * copies * trained));
    parts.push(part("rollout kept", String::new(), kept));
    parts.push(part("prompts", "their embeddings".into(), embeddings(config, laid)));
    if laid.engine == Engine::Cpu {
        parts.push(part("process", String::new(), PROCESS));
    }
    parts
}

/// The embeddings of prompts that are kept, if no text encoder trains: at most those of every image of the run, or of the list of prompts.
fn embeddings(config: &TrainConfig, laid: &Laid) -> u64 {
    if !laid.model.text_encoders.is_empty() {
        return 0;
    }
    let listed = config.prompts.as_ref().map_or(0, |prompts| prompts.list.len()) as u64;
    let images = config.algo.chosen().driver().demand(config).map_or(0, |demand| demand.taped.images) as u64;
    let updates = config.run.num_train_steps * config.optimizer.gradient_accumulation_steps as u64;
    let prompts = if listed > 0 { listed } else { images.saturating_mul(updates) };
    let [tokens, width] = laid.tokens;
    prompts.saturating_mul(4 * (tokens * width) as u64).min(EMBEDDINGS_KEPT as u64)
}

#[cfg(test)]
mod tests;
