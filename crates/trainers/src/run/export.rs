//! Exports the result of a run for other tools, as a model folder or LoRA files, and measures how far it is from the base model.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use vp_core::noise::{Noise, Purpose};
use vp_evaluation::accuracy::Ranked;
use vp_models::denoiser::Denoiser;
use vp_models::lora::{Dialect, LoraWeights};
use vp_models::number_format::is_cpu;
use vp_models::parameters::named_parameters;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Component, Family, ModelFolder, Pipeline, load_vae};
use vp_models::vae::AutoencoderKL;

use vp_schedulers::PredictionType;

use crate::Error;
use crate::config::TrainConfig;
use crate::sections::LoraSection;

/// A run's result as written for other tools.
#[derive(Debug)]
pub struct Exported {
    /// The kind of export.
    pub kind: ExportKind,
    /// The model's folder, or the LoRA file under kohya's names.
    pub path: PathBuf,
    /// How far the result, as reloaded, is from the model that the run began with. For a folder, `‖W_tuned − W_base‖ / ‖W_base‖` over all
    /// parameters; for a LoRA, the same ratio of the denoiser's output.
    pub relative_change: f64,
    /// Further lines to show.
    pub notes: Vec<String>,
    /// For a reward model, the scores of each held-out prompt's images, with their ranks; otherwise empty.
    pub ranked: Vec<Ranked>,
}

/// A kind of export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportKind {
    /// LoRA factors, in two files: one with kohya's names, one with diffusers'.
    Lora,
    /// A diffusers folder.
    Model,
    /// A reward model's folder, which `--reward` takes.
    RewardModel,
}

/// The names of a run's LoRA files: one with kohya's keys, one with diffusers'.
pub const LORA_FILES: [(&str, Dialect); 2] =
    [("lora.safetensors", Dialect::Kohya), ("pytorch_lora_weights.safetensors", Dialect::Diffusers)];

/// How far the output of a merged LoRA may be from the output with its factors, relative to the largest value, on the CPU in f32; somewhat
/// more than rounding.
const MERGED: f64 = 1e-3;

/// Writes the tuned model into a run's folder, as a LoRA or as a model folder, depending on what trained, and reads it back.
///
/// # Errors
/// When a file cannot be written, does not read back, or does not draw as `tuned` does.
pub fn export_tuned<D: Denoiser>(
    pipeline: &Pipeline,
    base: &Trainable<D>,
    tuned: &Trainable<D>,
    config: &TrainConfig,
    run_dir: &Path,
) -> Result<Exported, Error> {
    let (kind, path, change) = match config.lora() {
        Some(lora) => {
            let notes = notes(config, &lora, pipeline);
            let change = export_lora(pipeline, base, tuned, &Factors { alpha: lora.alpha(), notes: &notes, folder: run_dir })?;
            (ExportKind::Lora, run_dir.join(LORA_FILES[0].0), change)
        }
        None => {
            let path = run_dir.join("model");
            let relative = export(pipeline, base, tuned, &path)?;
            (ExportKind::Model, path, Change { relative, notes: Vec::new() })
        }
    };
    Ok(Exported { kind, path, relative_change: change.relative, notes: change.notes, ranked: Vec::new() })
}

/// How far a LoRA that was written and read back is from the base.
#[derive(Debug)]
pub struct Change {
    /// The distance of the denoiser's output from the base's, relative to the latter's norm.
    pub relative: f64,
    /// Lines to show.
    pub notes: Vec<String>,
}

/// The parameters of a LoRA's export.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// The numerator of the LoRA's scale.
    pub alpha: f64,
    /// Keys and values for the metadata of kohya's file.
    pub notes: &'a [(String, String)],
    /// The folder to write the files to.
    pub folder: &'a Path,
}

/// Writes the factors of `tuned` as [`LORA_FILES`], merges them, as read back, into the base, and compares the output with those of `tuned`
/// and of the base.
///
/// # Errors
/// When a file cannot be written, does not read back, or does not draw as `tuned` does. Where the device or the number format rounds more
/// coarsely than the CPU does in f32, a difference becomes a note.
pub fn export_lora<D: Denoiser>(
    pipeline: &Pipeline,
    base: &Trainable<D>,
    tuned: &Trainable<D>,
    Factors { alpha, notes, folder }: &Factors<'_>,
) -> Result<Change, Error> {
    let names = pipeline.lora_names(&base.denoiser);
    let weights = LoraWeights::of(tuned, *alpha);
    let (before, after) = (probe(pipeline, base), probe(pipeline, tuned));
    let exact = is_cpu(pipeline.device()) && !pipeline.formats.model.is_half();
    let mut change = Change { relative: 0.0, notes: Vec::new() };
    for (name, dialect) in LORA_FILES {
        let path = folder.join(name);
        weights.save(&path, dialect, &names, if dialect == Dialect::Kohya { notes } else { &[] })?;
        let reloaded = probe(pipeline, &LoraWeights::read(&path, &names)?.merge(base.clone(), 1.0));
        let largest = |tensor: Tensor<4>| f64::from(tensor.abs().max().into_scalar::<f32>());
        let off = largest(reloaded.clone() - after.clone()) / largest(after.clone());
        if off.is_nan() || off > MERGED {
            let path = path.display();
            if exact || off.is_nan() {
                return Err(Error::Config(format!(
                    "{path} does not predict what the tuned model does: off by {off:.1e} of the largest value, expected at most {MERGED:.0e}"
                )));
            }
            change.notes.push(format!(
                "merged into the base, {path} predicts what the tuned model does up to {off:.1e} of the largest value: {} rounds the merged \
                 weights; the file itself is f32",
                pipeline.formats.model.name()
            ));
        }
        let norm = |tensor: Tensor<4>| f64::from(tensor.square().sum().sqrt().into_scalar::<f32>());
        change.relative = norm(reloaded - before.clone()) / norm(before.clone());
    }
    Ok(change)
}

/// The metadata that kohya's tools and model browsers read from a LoRA: `ss_*` (sd-scripts' `train_network.py`) and `modelspec.*`
/// (Stability's ModelSpec 1.0.0). There is no date, so that a repeated run writes the same file.
fn notes(config: &TrainConfig, lora: &LoraSection, pipeline: &Pipeline) -> Vec<(String, String)> {
    let folder = &pipeline.folder;
    let [height, width] = config.model.size.unwrap_or(folder.default_size());
    let v2 = folder.family() == Family::StableDiffusion && folder.unet_config().cross_attention_dim[0] == 1024;
    let (version, architecture) = match folder.family() {
        Family::StableDiffusionXl => ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        Family::StableDiffusion if v2 => ("sd_v2", "stable-diffusion-v2-768-v/lora"),
        Family::StableDiffusion => ("sd_v1", "stable-diffusion-v1/lora"),
    };
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let algo = config.algo.name();
    let prediction = if folder.scheduler_config.prediction_type == Some(PredictionType::VPrediction) { "v" } else { "epsilon" };
    let notes: [(&str, String); 19] = [
        ("ss_network_module", "networks.lora".into()),
        ("ss_network_dim", lora.rank.to_string()),
        ("ss_network_alpha", lora.alpha().to_string()),
        ("ss_base_model_version", version.into()),
        ("ss_sd_model_name", name(&config.model.path)),
        ("ss_v2", if v2 { "True" } else { "False" }.into()),
        ("ss_output_name", format!("{}-{algo}", name(&config.model.path))),
        ("ss_learning_rate", config.optimizer.learning_rate.to_string()),
        ("ss_max_train_steps", config.run.num_train_steps.to_string()),
        ("ss_gradient_accumulation_steps", config.optimizer.gradient_accumulation_steps.to_string()),
        ("ss_seed", config.run.seed.to_string()),
        ("ss_resolution", format!("({width}, {height})")),
        ("ss_training_comment", format!("visionprefer train --algo {algo}")),
        ("modelspec.sai_model_spec", "1.0.0".into()),
        ("modelspec.architecture", architecture.into()),
        ("modelspec.implementation", "diffusers".into()),
        ("modelspec.title", format!("{}, tuned with {algo}", name(&config.model.path))),
        ("modelspec.resolution", format!("{width}x{height}")),
        ("modelspec.prediction_type", prediction.into()),
    ];
    notes.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// A model's prediction for a fixed prompt, fixed latents and the middle of the noise schedule, `[1, c, h, w]`.
pub fn probe<D: Denoiser>(pipeline: &Pipeline, model: &Trainable<D>) -> Tensor<4> {
    let (size, device) = (pipeline.folder.default_size(), pipeline.device());
    let conditioning = model.text(&pipeline.text).encode(&["a photograph".to_string()], size, device);
    let latents = Noise::new(0).normal(Purpose::INITIAL_LATENTS, 0, &[0], pipeline.latent_shape(size), device);
    let middle = pipeline.folder.scheduler_config.num_train_timesteps() / 2;
    model.denoiser.forward(latents, &[middle as f32], &conditioning)
}

/// Writes the tuned parts with the rest of the base folder to `destination`, replacing an earlier export, and reads the folder back.
/// Returns the distance of the weights from the base's, relative to the latter's norm.
///
/// # Errors
/// When the folder cannot be written or does not read back.
pub fn export<D: Denoiser>(pipeline: &Pipeline, base: &Trainable<D>, tuned: &Trainable<D>, destination: &Path) -> Result<f64, Error> {
    pipeline.folder.export(destination, &tuned.components())?;
    let (reloaded, denoiser) = Pipeline::load(ModelFolder::open(destination)?, pipeline.device())?;
    let denoisers = distance(&base.denoiser, &denoiser);
    let encoders = pipeline.text.encoders.iter().zip(&reloaded.text.encoders);
    let encoders = encoders.map(|(base, tuned)| distance(&base.model, &tuned.model));
    let (change, size) = encoders.fold(denoisers, |(change, size), (c, s)| (change + c, size + s));
    Ok((change / size).sqrt())
}

/// Writes the tuned autoencoder with the rest of its folder to `destination`, and reads it back. Returns the distance of the weights from
/// the base's, relative to the latter's norm.
///
/// # Errors
/// As [`export`].
pub fn export_vae(folder: &ModelFolder, base: &AutoencoderKL, tuned: &AutoencoderKL, destination: &Path) -> Result<f64, Error> {
    folder.export(destination, &[Component::vae(tuned)])?;
    let device = named_parameters(base)[0].values.device();
    let (change, size) = distance(base, &load_vae(&ModelFolder::open(destination)?, &device)?);
    Ok((change / size).sqrt())
}

/// `(‖b − a‖², ‖a‖²)` over all parameters of two networks with the same parameters.
pub fn distance<A: Module, B: Module>(a: &A, b: &B) -> (f64, f64) {
    let sum = |squares: Tensor<1>| f64::from(squares.sum().into_scalar::<f32>());
    named_parameters(a).into_iter().zip(named_parameters(b)).fold((0.0, 0.0), |(change, size), (a, b)| {
        // Frozen weights may have fewer bits on one side.
        let [a, b] = [a.values, b.values].map(|values| values.cast(DType::F32));
        (change + sum((b - a.clone()).square()), size + sum(a.square()))
    })
}
