//! What is said at the end of a run, and warnings of which there may be many.

use std::path::Path;

use vp_core::profile::{self, Stage};
use vp_models::pipeline::{Family, Pipeline, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_schedulers::PredictionType;
use vp_trainers::config::TrainConfig;
use vp_trainers::run::Run;
use vp_trainers::run::export::{Exported, LORA_FILES, export, export_lora};
use vp_trainers::run::journal::Journal;
use vp_trainers::sections::LoraSection;

pub use crate::terminal::warn_of_some;

/// What everything but the autoencoder trains.
pub type Model = Trainable<UNet2DConditionModel>;

/// Writes what was tuned, a LoRA or a model folder, and says where it is.
pub fn finish(run: &Run<Model>, (pipeline, base): (&Pipeline, &Model), config: &TrainConfig) -> anyhow::Result<()> {
    let tuned = run.tuned();
    let exported = profile::time(Stage::Io, || match config.lora() {
        Some(lora) => export_lora((pipeline, base), (&tuned, &lora), run.dir(), &notes(config, &lora, pipeline)),
        None => export((pipeline, base), &tuned, &run.dir().join("model")),
    })?;
    run.summary();
    report(&run.journal, &exported, config);
    Ok(())
}

/// Where the tuned model is, that it is another one, and the command that uses it.
pub fn report(journal: &Journal, exported: &Exported, config: &TrainConfig) {
    let (change, path) = (format!("{:.3e}", exported.relative_change), exported.path.display());
    match (exported.relative_change > 0.0, config.lora()) {
        (false, _) => journal.warn(format_args!("the tuned model equals the base (learning rate {})", config.optimizer.learning_rate)),
        (true, None) => {
            journal.conclude(format_args!("tuned model: {path} (reloaded; its weights differ from the base's by {change} of their norm)"))
        }
        (true, Some(_)) => journal.conclude(format_args!(
            "LoRA: {path} (reloaded; with it the UNet's output differs from the base's by {change} of its norm), and {} for diffusers",
            LORA_FILES[1].0
        )),
    }
    if let Some(command) = sample_command(config, &exported.path) {
        journal.conclude(format_args!("{command}"));
    }
}

/// The command that draws the first preview prompt with what was tuned.
fn sample_command(config: &TrainConfig, tuned: &Path) -> Option<String> {
    let preview = config.preview.as_ref()?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let path = |path: &Path| quoted(&path.display().to_string());
    let negative = preview.negative_prompt.as_deref().map_or_else(String::new, |text| format!(" -n {}", quoted(text)));
    let model = match config.lora() {
        Some(_) => format!("{} --lora {}", path(&config.model.path), path(tuned)),
        None => path(tuned),
    };
    // As this command was typed, so that it can be pasted.
    let program = std::env::args().next().unwrap_or_else(|| "visionprefer".into());
    Some(format!(
        "{program} sample --model {model} -p {}{negative} --steps {} -g {} -s {}",
        quoted(&preview.prompts[0]),
        preview.num_inference_steps,
        preview.guidance_scale,
        preview.seeds[0]
    ))
}

/// What kohya's tools and model browsers read of a LoRA: `ss_*` (sd-scripts' `train_network.py`) and `modelspec.*`
/// (Stability's ModelSpec 1.0.0). No date, so that a run repeated writes the same file.
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
