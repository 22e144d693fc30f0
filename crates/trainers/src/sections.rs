//! The sections of a `train` config that every algorithm shares, and how each checks itself.

use std::path::PathBuf;

use regex::Regex;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::OnProblem;
use vp_evaluation::sentinel::SentinelConfig;
use vp_models::GradientCheckpointing;
use vp_models::denoiser::Denoiser;
use vp_models::lora::Lora;
use vp_models::pipeline::LoadedDenoiser;
use vp_schedulers::{SchedulerConfig, SchedulerEntry, TimestepSpacing, by_name, known_names};

use crate::Error;
use crate::optim::{AdamWConfig, EmaConfig, LrSchedulerConfig};

/// What a run is made of, whatever its algorithm.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[run]`.
    pub run: RunSection,
    /// Matches the names of the parameters that train.
    pub trainable: String,
    /// Micro-batches per update.
    pub micro_batches: usize,
    /// `[optimizer]`.
    pub optimizer: OptimizerSection,
    /// `[lr_scheduler.<name>]`.
    pub lr_scheduler: LrSchedulerConfig,
    /// `[ema]`.
    pub ema: Option<EmaConfig>,
    /// `[checkpoint]`.
    pub checkpoint: CheckpointSection,
    /// `[guard]`.
    pub guard: GuardSection,
    /// `[sentinel]`.
    pub sentinel: Option<SentinelConfig>,
    /// `preview.every`, or `validation_every` where there is `[data]` or `[preferences]`.
    pub preview_every: u64,
}

/// When the run is saved, and what is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Updates between two checkpoints; 0 for one at the end alone.
    pub every: u64,
    /// How many of the newest are kept, beside the best.
    pub keep_last: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 50, keep_last: 2 }
    }
}

/// What happens when a loss or a gradient is not finite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardSection {
    /// Updates that may be left out before the run ends.
    pub max_skips: u64,
}

/// How long, and from which seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Every random number of the run follows from it.
    pub seed: u64,
    /// Optimizer updates.
    pub num_train_steps: u64,
}

/// What is tuned.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A diffusers folder.
    pub path: PathBuf,
    /// Image height and width in pixels; the model's own if absent.
    pub size: Option<[usize; 2]>,
    /// Regular expression over parameter names: those that match are trained as they are, and `[lora]` is switched off.
    pub trainable: Option<String>,
    /// The networks that train begin with random weights instead of the folder's, which then needs only their `config.json`.
    #[serde(default)]
    pub initialize: bool,
    /// What a tracked step keeps of the networks: `none` keeps everything its gradient needs, `blocks` what enters each block, which is
    /// run again on the way back. On the CPU.
    #[serde(default)]
    pub gradient_checkpointing: GradientCheckpointing,
}

/// Factors beside frozen weights: what trains unless `model.trainable` names weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSection {
    /// Rank of the factors.
    pub rank: usize,
    /// The factors' product is scaled by alpha / rank; the rank if absent.
    pub alpha: Option<f64>,
    /// Regular expression over layer names (`unet.….attn1.to_q`, `text_encoder.….q_proj`): linear layers and convolutions.
    pub targets: String,
}

impl Default for LoraSection {
    /// DDPO's and TRL's: the projections of the UNet's attention, at rank 4.
    fn default() -> Self {
        Self { rank: 4, alpha: None, targets: format!(r"^{}\..*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$", LoadedDenoiser::COMPONENT) }
    }
}

impl LoraSection {
    /// Numerator of the scale.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }

    /// As the model takes it.
    ///
    /// # Errors
    /// When `targets` is not a valid regular expression.
    pub fn lora(&self) -> Result<Lora, Error> {
        let targets = Regex::new(&self.targets).map_err(|error| Error::Config(format!("lora.targets: {error}")))?;
        Ok(Lora { rank: self.rank, alpha: self.alpha(), targets })
    }
}

/// Captioned images to train on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// A folder with `metadata.jsonl`, or `.txt` captions beside the images.
    pub folder: PathBuf,
    /// Probability that a caption is replaced by the empty one, so that classifier-free guidance can be used.
    #[serde(default)]
    pub caption_dropout: f64,
    /// Whether every image is mirrored half of the time.
    #[serde(default)]
    pub horizontal_flip: bool,
    /// Share of the images that is held out, by a hash of their names: adding images moves none from one side to the other.
    #[serde(default = "one_in_ten")]
    pub validation_fraction: f64,
    /// Updates between two validations; 0 for one before and one after.
    #[serde(default)]
    pub validation_every: u64,
    /// Whether an image's latents are kept in memory once the autoencoder has made them; 8 bytes a latent value, twice with flips.
    #[serde(default)]
    pub cache_latents: bool,
    /// What to do about images that cannot be used: `refuse` or `skip`.
    #[serde(default)]
    pub on_problem: OnProblem,
    /// Least width and height of an image, in pixels.
    #[serde(default = "sixteen")]
    pub min_size: u32,
}

fn one_in_ten() -> f64 {
    0.1
}

fn sixteen() -> u32 {
    16
}

/// What is drawn in training.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsSection {
    /// A prompt file (.txt, .json, .jsonl, .tsv, .parquet).
    pub file: Option<PathBuf>,
    /// Prompts written here instead.
    #[serde(default)]
    pub list: Vec<String>,
}

/// How noise is taken away: a scheduler's name, and what differs from the model's own scheduler config.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// `ddpm`, `ddim`, …: a single-step scheduler.
    pub name: String,
    /// Steps of the whole chain.
    pub num_inference_steps: usize,
    /// DDIM's noise, 0 to 1.
    #[serde(default)]
    pub eta: f64,
    /// Added to the timesteps; the model's own if absent.
    pub steps_offset: Option<usize>,
    /// `leading`, `linspace` or `trailing`; the model's own if absent.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Whether DDIM's last step arrives at ᾱ = 1, without noise, rather than at ᾱ_0; the model's own if absent.
    pub set_alpha_to_one: Option<bool>,
}

impl SchedulerSection {
    /// The folder's config with what this section says put over it.
    pub fn apply(&self, folder: &SchedulerConfig) -> SchedulerConfig {
        let mut config = folder.clone();
        config.steps_offset = self.steps_offset.map(|offset| offset as _).or(config.steps_offset);
        config.timestep_spacing = self.timestep_spacing.or(config.timestep_spacing);
        config.set_alpha_to_one = self.set_alpha_to_one.or(config.set_alpha_to_one);
        config
    }
}

/// AdamW and what surrounds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// Full learning rate.
    pub learning_rate: f64,
    /// Micro-batches whose gradients make one update.
    #[serde(default = "one")]
    pub gradient_accumulation_steps: usize,
    /// The gradient's global norm is clipped to this.
    #[serde(default = "one_point")]
    pub max_grad_norm: f64,
    /// `[optimizer.adamw]`.
    #[serde(default)]
    pub adamw: AdamWConfig,
}

fn one() -> usize {
    1
}

fn one_point() -> f64 {
    1.0
}

/// The images by which one sees what training did: the same prompts and seeds before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewSection {
    /// Prompts that are drawn; better not those of training.
    pub prompts: Vec<String>,
    /// One image of each prompt a seed.
    pub seeds: Vec<u64>,
    /// Steps of the model's own sampler.
    pub num_inference_steps: usize,
    /// Classifier-free guidance; 1 for none.
    pub guidance_scale: f64,
    /// What to steer away from.
    pub negative_prompt: Option<String>,
    /// Updates between two previews; 0 for one before and one after.
    #[serde(default)]
    pub every: u64,
}

/// Appends `finding` where something is `wrong`.
fn find(wrong: bool, findings: &mut Vec<String>, finding: impl FnOnce() -> String) {
    if wrong {
        findings.push(finding());
    }
}

impl Validate for RunSection {
    fn findings(&self, findings: &mut Vec<String>) {
        find(self.num_train_steps == 0, findings, || "run.num_train_steps is 0; expected at least 1".into());
    }
}

impl Validate for ModelSection {
    fn findings(&self, findings: &mut Vec<String>) {
        if let Some(Err(error)) = self.trainable.as_deref().map(Regex::new) {
            findings.push(format!("model.trainable is not a valid regular expression: {error}"));
        }
    }
}

impl Validate for LoraSection {
    fn findings(&self, findings: &mut Vec<String>) {
        find(self.rank == 0, findings, || "lora.rank is 0; expected at least 1".into());
        let alpha = self.alpha();
        find(!(alpha > 0.0 && alpha.is_finite()) && self.rank > 0, findings, || {
            format!("lora.alpha is {alpha}; expected a number above 0 (absent: the rank)")
        });
        if let Err(error) = Regex::new(&self.targets) {
            findings.push(format!("lora.targets is not a valid regular expression: {error}"));
        }
    }
}

impl Validate for DataSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let Self { caption_dropout, validation_fraction, min_size, .. } = *self;
        ImageKnobs { section: "data", caption_dropout, validation_fraction, min_size }.findings(findings);
    }
}

/// The knobs of a section that reads captioned images.
pub(crate) struct ImageKnobs {
    /// The section's name.
    pub section: &'static str,
    pub caption_dropout: f64,
    pub validation_fraction: f64,
    pub min_size: u32,
}

impl ImageKnobs {
    /// Appends what cannot be.
    pub fn findings(&self, findings: &mut Vec<String>) {
        let Self { section, caption_dropout: dropout, validation_fraction: fraction, min_size } = *self;
        find(!(0.0..=1.0).contains(&dropout), findings, || {
            format!("{section}.caption_dropout is {dropout}; expected a probability, 0 to 1")
        });
        find(!(0.0..1.0).contains(&fraction), findings, || {
            format!("{section}.validation_fraction is {fraction}; expected at least 0 and less than 1")
        });
        find(min_size == 0, findings, || format!("{section}.min_size is 0; expected at least 1"));
    }
}

impl Validate for PromptsSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let both = self.file.is_some() && !self.list.is_empty();
        find(both, findings, || "prompts has both a file and a list; expected one of them".into());
        let neither = self.file.is_none() && self.list.is_empty();
        find(neither, findings, || "prompts has neither a file nor a list; expected one of them".into());
    }
}

impl Validate for SchedulerSection {
    fn findings(&self, findings: &mut Vec<String>) {
        find(self.num_inference_steps == 0, findings, || "scheduler.num_inference_steps is 0; expected at least 1".into());
        match by_name(&self.name) {
            Err(error) => findings.push(error.to_string()),
            Ok(entry) => find(!entry.is_single_step(), findings, || {
                let known = known_names(SchedulerEntry::is_single_step);
                format!("scheduler.name {} keeps history between steps; training needs a single-step one ({known})", entry.name)
            }),
        }
    }
}

impl Validate for OptimizerSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let (rate, norm) = (self.learning_rate, self.max_grad_norm);
        find(!(rate >= 0.0 && rate.is_finite()), findings, || {
            format!("optimizer.learning_rate is {rate}; expected a number of at least 0")
        });
        find(norm.is_nan() || norm <= 0.0, findings, || {
            format!("optimizer.max_grad_norm is {norm}; expected a number above 0 (inf for no clipping)")
        });
        find(self.gradient_accumulation_steps == 0, findings, || "optimizer.gradient_accumulation_steps is 0; expected at least 1".into());
        self.adamw.findings(findings);
    }
}

impl Validate for CheckpointSection {
    fn findings(&self, findings: &mut Vec<String>) {
        find(self.keep_last == 0, findings, || "checkpoint.keep_last is 0; expected at least 1".into());
    }
}

impl Validate for PreviewSection {
    fn findings(&self, findings: &mut Vec<String>) {
        let scale = self.guidance_scale;
        find(self.prompts.is_empty() || self.seeds.is_empty(), findings, || "preview needs at least one prompt and one seed".into());
        find(self.num_inference_steps == 0, findings, || "preview.num_inference_steps is 0; expected at least 1".into());
        find(!(scale >= 0.0 && scale.is_finite()), findings, || {
            format!("preview.guidance_scale is {scale}; expected a number of at least 0")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_with_history_is_refused_with_the_names_that_would_do() {
        let findings = |name: &str| {
            let section: SchedulerSection = serde_json::from_value(serde_json::json!({ "name": name, "num_inference_steps": 10 })).unwrap();
            let mut findings = Vec::new();
            section.findings(&mut findings);
            findings
        };
        assert!(["Euler a", "DDIM", "euler karras"].iter().all(|name| findings(name).is_empty()));
        let found = findings("DPM++ 2M").join("\n");
        assert!(found.contains("dpmpp_2m keeps history") && found.contains("(ddim, ddpm, euler, euler_karras, euler_a)"), "{found}");
    }
}
