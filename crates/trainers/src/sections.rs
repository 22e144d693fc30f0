//! The sections of a `train` config that algorithms share, each with the checks of its settings.

use std::path::PathBuf;

use burn::tensor::Device;
use regex::Regex;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::OnProblem;
use vp_evaluation::sentinel::SentinelConfig;
use vp_models::denoiser::Denoiser;
use vp_models::lora::Lora;
use vp_models::pipeline::{LoadedDenoiser, ModelOptions};
use vp_models::vae::{Splitting, Tiling};
use vp_models::{GradientCheckpointing, NumberFormat};
use vp_schedulers::{PredictionType, SchedulerConfig, SchedulerEntry, TimestepSpacing, by_name, known_names};

use crate::Error;
use crate::optim::{AdamWConfig, EmaConfig, LrSchedulerConfig};
use crate::ranks::{Items, Reduction};

/// The settings of a run that do not depend on its algorithm.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[run]`.
    pub run: RunSection,
    /// Regular expression that matches the names of the parameters that train.
    pub trainable: String,
    /// Micro-batches per update.
    pub micro_batches: usize,
    /// What ranks share of a micro-batch.
    pub items: Items,
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
    /// Whether the loss is scaled in the backward pass, so that gradients in f16 do not vanish.
    pub loss_scaling: bool,
    /// `[sentinel]`.
    pub sentinel: Option<SentinelConfig>,
    /// Updates between two previews or validations: `validation_every` of `[data]`, `[preferences]` or `[rankings]` if the config has such
    /// a section, otherwise `preview.every`; 0 for none in between.
    pub preview_every: u64,
}

/// `[checkpoint]`: when the run is saved, and which checkpoints are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Updates between two checkpoints (50); 0 for a single one at the end.
    pub every: u64,
    /// How many of the newest checkpoints are kept, besides the best; at least 1 (2).
    pub keep_last: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 50, keep_last: 2 }
    }
}

/// `[guard]`: what happens when a loss or a gradient is not finite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardSection {
    /// How many updates may be left out for this reason before the run ends with an error (0).
    pub max_skips: u64,
}

/// `[run]`: how long the run is, and its seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Every random number of the run follows from this seed.
    pub seed: u64,
    /// Optimizer updates, at least 1.
    pub num_train_steps: u64,
    /// Micro-batches of an update (of a rollout, batches of images; of a preview, prompts) that are computed side by side on the CPU, each on its
    /// share of the cores; at least 1 (1). Faster where the network is small; the results do not depend on it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub workers: usize,
    /// The number format in which gradients travel between the ranks of a run, if it has several: `f32`, or `bf16`, which halves what is sent and
    /// rounds the gradients (f32).
    #[serde(default, skip_serializing_if = "is_exact")]
    pub reduction: Reduction,
}

fn is_exact(reduction: &Reduction) -> bool {
    *reduction == Reduction::F32
}

/// As many threads as any machine has cores.
const MOST_WORKERS: usize = 1024;

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// `[model]`: the model to train, and which of its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A diffusers folder, a single-file checkpoint (`.safetensors`, `.ckpt`) or a hub id (`ORG/NAME[@REVISION]`); for
    /// `[algo.reward_model]`, the reward model to start from.
    pub path: PathBuf,
    /// Another autoencoder: a file, or a folder with its config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// For a single-file checkpoint, a diffusers folder whose configs and tokenizers fit it; absent: what its tensors and the published
    /// models say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// Whether the averaged (EMA) weights of the denoiser are taken (false).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ema: bool,
    /// What the denoiser predicts, `epsilon` or `v_prediction`, where the files do not say or say it wrongly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<PredictionType>,
    /// Image height and width in pixels; absent: the model's own.
    pub size: Option<[usize; 2]>,
    /// Regular expression over parameter names. The parameters that match train directly, and `[lora]` is switched off. Absent: a LoRA
    /// trains, or whole weights where the algorithm has no LoRA.
    pub trainable: Option<String>,
    /// Whether the networks that train start from random weights (false). The folder then needs only their `config.json`.
    #[serde(default)]
    pub initialize: bool,
    /// Number format of frozen weights and activations of the denoiser and the text encoders: `f32`, `bf16`, `f16`, or `auto`, which is
    /// bf16 on a GPU that computes in it and f32 elsewhere; absent: f32. What trains stays f32.
    pub dtype: Option<Dtype>,
    /// What a step on the tape keeps in memory: `none` (the default) everything that its gradient needs, `blocks` only the input of each
    /// block, which is run again in the backward pass.
    #[serde(default)]
    pub gradient_checkpointing: GradientCheckpointing,
}

impl ModelSection {
    /// Options for the model's files.
    pub fn files(&self) -> ModelOptions {
        let Self { vae, config, ema, prediction_type, .. } = self.clone();
        ModelOptions { vae, config, ema, prediction_type }
    }

    /// The number format of the networks on `device`.
    ///
    /// # Errors
    /// When the device does not compute in it.
    pub fn format(&self, device: &Device) -> Result<NumberFormat, Error> {
        self.dtype.unwrap_or(Dtype::F32).on(device, "model.dtype")
    }
}

/// The number format of networks, as a config names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bf16 on a GPU that computes in it, f32 elsewhere.
    Auto,
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl Dtype {
    /// The number format on `device`.
    ///
    /// # Errors
    /// When the device does not compute in it; `key` is where the config names it.
    pub fn on(self, device: &Device, key: &str) -> Result<NumberFormat, Error> {
        let format = match self {
            Self::Auto => NumberFormat::best(device),
            Self::F32 => NumberFormat::F32,
            Self::Bf16 => NumberFormat::Bf16,
            Self::F16 => NumberFormat::F16,
        };
        format.check(device).map_err(|reason| Error::Config(format!("{key} is \"{}\": {reason}", format.name())))?;
        Ok(format)
    }
}

/// `[vae]`: how the autoencoder computes; it does not train here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeSection {
    /// Number format of its weights and activations, as `model.dtype`; absent: f32. Published autoencoders overflow in f16.
    pub dtype: Option<Dtype>,
    /// Whether images larger than a tile are taken in overlapping tiles, whose seams are blended: false (the default), true for tiles of
    /// the autoencoder's own size, at most 512 pixels, or a tile's height and width in pixels, a multiple of 32.
    pub tiling: Tiling,
    /// Whether the images of a batch are taken one at a time (false).
    pub slicing: bool,
}

impl Validate for VaeSection {
    fn findings(&self, findings: &mut Vec<String>) {
        findings.extend(self.tiling.finding().map(|finding| format!("vae.tiling {finding}")));
    }
}

impl VaeSection {
    /// The number format of the autoencoder on `device`.
    ///
    /// # Errors
    /// When the device does not compute in it.
    pub fn format(&self, device: &Device) -> Result<NumberFormat, Error> {
        self.dtype.unwrap_or(Dtype::F32).on(device, "vae.dtype")
    }

    /// The parts in which it takes images and latents.
    pub fn splitting(&self) -> Splitting {
        Splitting { tiling: self.tiling, slicing: self.slicing }
    }
}

/// `[lora]`: low-rank factors beside frozen weights. They train unless `model.trainable` selects whole weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSection {
    /// Rank of the factors, at least 1 (4).
    pub rank: usize,
    /// The factors' product is scaled by alpha / rank; above 0. Absent: the rank, for a scale of 1.
    pub alpha: Option<f64>,
    /// Regular expression over the names of linear layers and convolutions (`unet.….attn1.to_q`, `text_encoder.….q_proj`). Those that match
    /// get factors.
    pub targets: String,
    /// A LoRA file whose factors this run trains further, in any form of two or three factors per layer. Its rank must be `rank`, and
    /// `targets` must match all its layers; its scale is kept whatever `alpha` is. Absent: the LoRA starts from nothing.
    pub init: Option<PathBuf>,
}

impl Default for LoraSection {
    /// As in DDPO and TRL: the projections of the UNet's attention, at rank 4.
    fn default() -> Self {
        Self {
            rank: 4,
            alpha: None,
            targets: format!(r"^{}\..*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$", LoadedDenoiser::COMPONENT),
            init: None,
        }
    }
}

impl LoraSection {
    /// The numerator of the scale: `alpha` if given, otherwise the rank.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }

    /// The section in the form that the model takes.
    ///
    /// # Errors
    /// When `targets` is not a valid regular expression.
    pub fn lora(&self) -> Result<Lora, Error> {
        let targets = Regex::new(&self.targets).map_err(|error| Error::Config(format!("lora.targets: {error}")))?;
        Ok(Lora { rank: self.rank, alpha: self.alpha(), targets })
    }
}

/// `[data]`: captioned images to train on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Folder of the images, with captions in a `metadata.jsonl` or `metadata.csv`, or in a `.txt` or `.caption` file beside each image; or the
    /// `.toml` of a dataset config as kohya's tools have it.
    pub folder: PathBuf,
    /// Probability that a caption is replaced by the empty one, so that the model can be used with classifier-free guidance; 0 to 1 (0).
    #[serde(default)]
    pub caption_dropout: f64,
    /// Whether every image is mirrored half of the time (false).
    #[serde(default)]
    pub horizontal_flip: bool,
    /// Share of the images that is held out for validation, at least 0 and below 1 (0.1). A hash of its name decides about each image, so
    /// adding images moves none from one side to the other.
    #[serde(default = "one_in_ten")]
    pub validation_fraction: f64,
    /// Updates between two validations; 0 for one before training and one after it (0).
    #[serde(default)]
    pub validation_every: u64,
    /// Whether an image's latents are kept in memory once the autoencoder has made them (false). This takes 8 bytes per latent value, and
    /// twice that with flips.
    #[serde(default)]
    pub cache_latents: bool,
    /// What to do about images that cannot be used: `refuse` (the default) or `skip`.
    #[serde(default)]
    pub on_problem: OnProblem,
    /// Smallest width and height of a usable image, in pixels; at least 1 (16).
    #[serde(default = "sixteen")]
    pub min_size: u32,
}

fn one_in_ten() -> f64 {
    0.1
}

fn sixteen() -> u32 {
    16
}

/// `[prompts]`: the prompts to draw in training, from a file or a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptsSection {
    /// A prompt file (.txt, .json, .jsonl, .tsv or .parquet), a folder with metadata.jsonl, or `embedded:shapes/feedback`.
    pub file: Option<PathBuf>,
    /// The prompts themselves, instead of a file.
    #[serde(default)]
    pub list: Vec<String>,
}

/// `[scheduler]`: the scheduler that training samples with, and its differences from the model's own scheduler config.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// Name of a single-step scheduler: `ddpm`, `ddim`, …
    pub name: String,
    /// Steps of a whole sampling chain, at least 1.
    pub num_inference_steps: usize,
    /// Amount of noise in DDIM's steps, from 0 (none) to 1 (0).
    #[serde(default)]
    pub eta: f64,
    /// Offset that is added to the timesteps; absent: the model's own.
    pub steps_offset: Option<usize>,
    /// Spacing of the timesteps: `leading`, `linspace` or `trailing`; absent: the model's own.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Whether DDIM's last step ends at ᾱ = 1, without noise, rather than at ᾱ_0; absent: the model's own.
    pub set_alpha_to_one: Option<bool>,
}

impl SchedulerSection {
    /// The scheduler config of the model's folder, overridden by the settings of this section.
    pub fn apply(&self, folder: &SchedulerConfig) -> SchedulerConfig {
        let mut config = folder.clone();
        config.steps_offset = self.steps_offset.map(|offset| offset as _).or(config.steps_offset);
        config.timestep_spacing = self.timestep_spacing.or(config.timestep_spacing);
        config.set_alpha_to_one = self.set_alpha_to_one.or(config.set_alpha_to_one);
        config
    }
}

/// `[optimizer]`: AdamW, its learning rate, gradient accumulation and clipping.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// Learning rate at its full value, which `[lr_scheduler]` scales; at least 0.
    pub learning_rate: f64,
    /// Micro-batches whose gradients make one update, at least 1 (1). For DDPO and D3PO, minibatches, each with all its timesteps.
    #[serde(default = "one")]
    pub gradient_accumulation_steps: usize,
    /// Largest global norm of the gradient, which is scaled down if it exceeds this; above 0, `inf` for no clipping (1).
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

/// `[preview]`: images that show the effect of training, drawn from the same prompts and seeds before and after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewSection {
    /// Prompts to draw, at least one; preferably not those of training.
    pub prompts: Vec<String>,
    /// Seeds, at least one. Each prompt is drawn once per seed.
    pub seeds: Vec<u64>,
    /// Steps of the model's own sampler, at least 1.
    pub num_inference_steps: usize,
    /// Classifier-free guidance scale, at least 0; 1 for no guidance.
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from.
    pub negative_prompt: Option<String>,
    /// Updates between two previews; 0 for one before training and one after it (0).
    #[serde(default)]
    pub every: u64,
}

/// Appends `finding` if `wrong`.
fn find(wrong: bool, findings: &mut Vec<String>, finding: impl FnOnce() -> String) {
    if wrong {
        findings.push(finding());
    }
}

impl Validate for RunSection {
    fn findings(&self, findings: &mut Vec<String>) {
        find(self.num_train_steps == 0, findings, || "run.num_train_steps is 0; expected at least 1".into());
        find(!(1..=MOST_WORKERS).contains(&self.workers), findings, || {
            format!("run.workers is {}; expected 1 to {MOST_WORKERS}, at most one per core", self.workers)
        });
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
    /// The section's name, for messages.
    pub section: &'static str,
    pub caption_dropout: f64,
    pub validation_fraction: f64,
    pub min_size: u32,
}

impl ImageKnobs {
    /// Appends a message for each knob that is out of range.
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
        assert!(
            found.contains("dpmpp_2m keeps history") && found.contains(&format!("({})", known_names(SchedulerEntry::is_single_step))),
            "{found}"
        );
    }
}
