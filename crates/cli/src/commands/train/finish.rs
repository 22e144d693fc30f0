//! What is said at the end of a run.

use std::path::Path;

use burn::module::Module;
use vp_evaluation::accuracy::by_every_protocol;
use vp_trainers::config::TrainConfig;
use vp_trainers::run::Run;
use vp_trainers::run::export::{ExportKind, Exported, LORA_FILES};

/// Says how the scores went, where the tuned model is, that it is another one, and the command that uses it.
pub fn finish<M: Module>(run: &Run<M>, exported: &Exported, config: &TrainConfig) {
    run.summary();
    exported.notes.iter().for_each(|note| run.journal.say(format_args!("{note}")));
    if !exported.ranked.is_empty() {
        by_every_protocol(&exported.ranked).iter().for_each(|accuracy| run.journal.conclude(format_args!("{accuracy}")));
    }
    let (change, path) = (format!("{:.3e}", exported.relative_change), exported.path.display());
    match exported.kind {
        ExportKind::RewardModel => {
            run.journal.conclude(format_args!("reward model: {path} (its weights differ from the first ones by {change} of their norm)"))
        }
        _ if exported.relative_change <= 0.0 => {
            run.journal.warn(format_args!(
                "training changed nothing: the tuned model is the base model (learning rate {})",
                config.optimizer.learning_rate
            ));
        }
        ExportKind::Model => run
            .journal
            .conclude(format_args!("tuned model: {path} (reloaded; its weights differ from the base's by {change} of their norm)")),
        ExportKind::Lora => run.journal.conclude(format_args!(
            "LoRA: {path} (reloaded; with it the UNet's output differs from the base's by {change} of its norm), and {} for diffusers",
            LORA_FILES[1].0
        )),
    }
    if let Some(command) = next_command(config, exported) {
        run.journal.conclude(format_args!("{command}"));
    }
}

/// The command that uses what was tuned, as this one was typed, so that it can be pasted.
fn next_command(config: &TrainConfig, exported: &Exported) -> Option<String> {
    let program = std::env::args().next().unwrap_or_else(|| "visionprefer".into());
    match exported.kind {
        ExportKind::RewardModel => Some(format!("{program} score -r '{}' -p 'PROMPT' IMAGE", exported.path.display())),
        ExportKind::Lora | ExportKind::Model => sample_command(&program, config, &exported.path),
    }
}

/// The command that draws the first preview prompt with what was tuned.
fn sample_command(program: &str, config: &TrainConfig, tuned: &Path) -> Option<String> {
    let preview = config.preview.as_ref()?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let path = |path: &Path| quoted(&path.display().to_string());
    let negative = preview.negative_prompt.as_deref().map_or_else(String::new, |text| format!(" -n {}", quoted(text)));
    let model = match config.lora() {
        Some(_) => format!("{} --lora {}", path(&config.model.path), path(tuned)),
        None => path(tuned),
    };
    Some(format!(
        "{program} sample --model {model} -p {}{negative} --steps {} -g {} -s {}",
        quoted(&preview.prompts[0]),
        preview.num_inference_steps,
        preview.guidance_scale,
        preview.seeds[0]
    ))
}
