//! What people say of an evaluation's images: the records that `vote` writes.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_data::{Aggregation, Completion, Record, read_records};
use vp_evaluation::votes::Vote;

use super::EvaluationPlan;

/// Reads the votes of these files, or of the `records.jsonl` in these folders.
///
/// # Errors
/// When a file cannot be read, or is about other images than the evaluation's.
pub fn read(plan: &EvaluationPlan, paths: &[PathBuf]) -> anyhow::Result<Vec<Vote>> {
    let mut votes = Vec::new();
    for path in paths {
        let path = if path.is_dir() { path.join("records.jsonl") } else { path.clone() };
        for record in read_records(&path).with_context(|| format!("--votes {}", path.display()))? {
            votes.extend(of_record(plan, &record).with_context(|| of_other_images(&path, &record.id))?);
        }
    }
    Ok(votes)
}

fn of_other_images(path: &Path, id: &str) -> String {
    let votes = path.display();
    format!("--votes {votes}: record {id} is not about images of this evaluation; expected what `vote --evaluation` wrote for its folder")
}

/// What a record says of every two of its images. What was asked a second time is not counted twice.
fn of_record(plan: &EvaluationPlan, record: &Record) -> anyhow::Result<Vec<Vote>> {
    let annotator = record.annotator.as_ref();
    if annotator.is_some_and(|annotator| annotator.repeat > 0) {
        return Ok(Vec::new());
    }
    let (index, seed) = place(&record.id).with_context(|| format!("found the id {:?}; expected PROMPT-SEED", record.id))?;
    let prompt = plan.prompts.get(index).with_context(|| format!("this evaluation has no prompt {index}"))?;
    if prompt.text != record.prompt {
        bail!("prompt {index} is {:?} there and {:?} here", record.prompt, prompt.text);
    }
    let model = |completion: &Completion| {
        let name = completion.model.clone().unwrap_or_default();
        plan.sides.iter().any(|side| side.name == name).then_some(name.clone()).with_context(|| format!("no model here is called {name:?}"))
    };
    let models = record.completions.iter().map(model).collect::<anyhow::Result<Vec<String>>>()?;
    let pairs = record.pairs(&Aggregation::default());
    let is_asked = |a: usize, b: usize| {
        let compared = record.comparisons.iter().any(|one| one.shown == [a, b] || one.shown == [b, a]);
        // Of images that are all rated, every two are ordered or tied.
        compared || (record.comparisons.is_empty() && record.scores(&Aggregation::default()).is_some())
    };
    let mut votes = Vec::new();
    for (a, b) in (0..models.len()).flat_map(|a| (a + 1..models.len()).map(move |b| (a, b))).filter(|(a, b)| is_asked(*a, *b)) {
        let first_is_better = match (pairs.contains(&(a, b)), pairs.contains(&(b, a))) {
            (true, _) => 1.0,
            (_, true) => 0.0,
            _ => 0.5,
        };
        let voter = annotator.map_or_else(String::new, |annotator| annotator.name.clone());
        votes.push(Vote { index, seed, models: [models[a].clone(), models[b].clone()], first_is_better, voter });
    }
    Ok(votes)
}

/// The number of the prompt and the seed in the id of a record, `000012-7`.
fn place(id: &str) -> Option<(usize, u64)> {
    let (index, seed) = id.split_once('-')?;
    Some((index.parse().ok()?, seed.parse().ok()?))
}
