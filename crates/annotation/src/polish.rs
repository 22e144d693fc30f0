//! Prompts cleaned of anything biased, inconsistent or unsafe before images are drawn: VisionPrefer's first step (arXiv 2404.15100,
//! section 3).

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vp_data::Prompt;

use crate::journal::Outcome;
use crate::run::{finish, write_lines};
use crate::settle::{QuestionState, SetAside, settle};
use crate::{Annotator, Event, Result, RunOptions, Summary, Task, questions};

/// A line of `prompts.jsonl`; [`vp_data::read_prompts`] reads it.
#[derive(Serialize)]
struct PolishedPrompt<'a> {
    id: &'a str,
    prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
    prompt_raw: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    removed: &'a [String],
}

/// Has every prompt polished and writes `prompts.jsonl` into `output`, in the input's order, with the original as `prompt_raw`. A prompt
/// without an id is named by its position, six digits from 000000. A prompt of which nothing is left is set aside. Journal, restarts and budget are
/// as in [`run`](crate::run); options for ratings and comparisons do not matter.
///
/// # Errors
/// As [`run`](crate::run), and when the annotator cannot polish.
pub fn polish(
    prompts: &[Prompt],
    annotator: &dyn Annotator,
    options: &RunOptions,
    output: &Path,
    progress: &(dyn Fn(Event) + Sync),
    stop: &AtomicBool,
) -> Result<Summary> {
    options.check()?;
    let ids: Vec<String> = prompts.iter().enumerate().map(|(i, prompt)| prompt.id.clone().unwrap_or_else(|| format!("{i:06}"))).collect();
    let questions = questions::of_prompts(prompts, &ids);
    let mut settled = settle(&questions, annotator, options, output, progress, stop)?;
    let mut lines = Vec::new();
    for ((prompt, id), state) in prompts.iter().zip(&ids).zip(&settled.states) {
        let QuestionState::Key(key) = state else { continue };
        match settled.known.settled.get(key) {
            Some(Outcome::Polished(polished)) if polished.prompt.is_empty() => {
                let reason = "nothing is left of it that could be drawn".into();
                settled.summary.set_aside.push(SetAside { id: id.clone(), task: Task::Polish, shown: Vec::new(), repeat: 0, reason });
            }
            Some(Outcome::Polished(polished)) => {
                let category = prompt.category.as_deref();
                lines.push(PolishedPrompt { id, prompt: &polished.prompt, category, prompt_raw: &prompt.text, removed: &polished.removed });
            }
            _ => {}
        }
    }
    write_lines(&output.join("prompts.jsonl"), &lines)?;
    finish(settled, output)
}
