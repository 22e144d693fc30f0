//! What is said at the end of a run, and warnings of which there may be many.

use std::path::Path;

use vp_trainers::config::TrainConfig;
use vp_trainers::export::Exported;
use vp_trainers::journal::{Journal, warn};

/// Where the tuned model is, that it is another one, and the command that uses it.
pub fn report(journal: &Journal, exported: &Exported, config: &TrainConfig) {
    if exported.relative_change > 0.0 {
        let change = format!("{:.3e}", exported.relative_change);
        let path = exported.path.display();
        journal.conclude(format_args!("tuned model: {path} (reloaded; its weights differ from the base's by {change} of their norm)"));
    } else {
        journal.warn(format_args!("the tuned model equals the base (learning rate {})", config.optimizer.learning_rate));
    }
    if let Some(command) = sample_command(config, &exported.path) {
        journal.conclude(format_args!("{command}"));
    }
}

/// The command that draws the first preview prompt with the tuned model.
fn sample_command(config: &TrainConfig, model: &Path) -> Option<String> {
    let preview = config.preview.as_ref()?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let negative = preview.negative_prompt.as_deref().map_or_else(String::new, |text| format!(" -n {}", quoted(text)));
    // As this command was typed, so that it can be pasted.
    let program = std::env::args().next().unwrap_or_else(|| "visionprefer".into());
    Some(format!(
        "{program} sample --model {} -p {}{negative} --steps {} -g {} -s {}",
        quoted(&model.display().to_string()),
        quoted(&preview.prompts[0]),
        preview.num_inference_steps,
        preview.guidance_scale,
        preview.seeds[0]
    ))
}

/// Shows the first few, and says how many there are.
pub fn warn_of_some(warnings: impl Iterator<Item = String>, shown: usize, more: &str) {
    let warnings: Vec<String> = warnings.collect();
    warnings.iter().take(shown).for_each(|warning| warn(format_args!("{warning}")));
    if warnings.len() > shown {
        warn(format_args!("… and {} {more}", warnings.len() - shown));
    }
}
