//! What an evaluation found, as `report.html`, `report.md` and `report.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use vp_core::input_file;
use vp_data::RgbImage;
use vp_evaluation::comparison::{CompareOptions, Distances, ImageResult, ModelComparison, compare};
use vp_evaluation::pixels;
use vp_evaluation::report::{Fact, Picture, Provenance, Report};
use vp_evaluation::votes::count_votes;
use vp_trainers::run::checkpoint::checksum;

use super::journal::{PromptResult, image_in};
use super::{EvaluationPlan, votes};
use crate::named_rewards::NamedReward;
use crate::report::provenance::{date, of_program};
use crate::report::{PAIRS, ResultsByImage, leak_panel, write as write_report};
use crate::terminal::{print, say};

/// The distances of every two images of a prompt: 1 − the cosine of the image features of the first reward that has features, else the root
/// mean square of the pixels' difference.
pub fn distances(images: &[RgbImage], rewards: &[NamedReward]) -> Vec<f64> {
    if images.len() < 2 {
        return Vec::new();
    }
    let Some(encoder) = rewards.iter().find_map(|named| named.reward.image_encoder()) else {
        return pixels::distances(&images.iter().map(|image| image.as_raw().as_slice()).collect::<Vec<_>>());
    };
    let features = encoder.image_features(images);
    let [_, width] = features.dims();
    let values: Vec<f64> = features.to_data().iter::<f64>().collect();
    let rows: Vec<&[f64]> = values.chunks(width).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let distance = |a: &[f64], b: &[f64]| 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let n = rows.len();
    (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| distance(rows[i], rows[j])).collect()
}

/// Writes the report and prints its numbers.
pub fn write(plan: &EvaluationPlan, results: Vec<PromptResult>, rewards: &[NamedReward], started: Instant) -> anyhow::Result<()> {
    let metric = match rewards.iter().find(|named| named.reward.image_encoder().is_some()) {
        Some(NamedReward { name, .. }) => format!("1 − cosine of {name}'s image features"),
        None => "root mean square of pixels".into(),
    };
    let mut models: BTreeMap<String, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    let mut rows = Vec::new();
    for PromptResult { rows: of_prompt, distances } in results {
        if let Some(first) = of_prompt.first().filter(|_| !distances.is_empty()) {
            models.entry(first.model.clone()).or_default().insert(first.index, distances);
        }
        rows.extend(of_prompt);
    }
    let distances = (!models.is_empty()).then_some(Distances { metric, models });
    let names: Vec<&str> = plan.sides.iter().map(|side| side.name.as_str()).collect();
    let comparison = compare(&rows, &names, distances.as_ref(), &CompareOptions::default())?;
    let votes = count_votes(&votes::read(plan, &plan.args.votes)?, &rows, names[0], comparison.options.bootstrap.level);
    let report = Report { votes, ..report(plan, comparison, &rows, started.elapsed())? };
    let path = write_report(&plan.args.output, &report)?;
    print(&format!(
        "{}\nThe images, the rewards' terms, tests and categories are in the report, and in report.md and report.json beside it:\n",
        report.to_summary()
    ))?;
    say(format_args!("{}", path.display()));
    Ok(())
}

fn report(plan: &EvaluationPlan, comparison: ModelComparison, rows: &[ImageResult], took: Duration) -> anyhow::Result<Report> {
    let by_image = ResultsByImage::new(rows);
    // Some of each.
    let candidates = plan.sides[1..].iter().map(|side| side.name.as_str());
    let each = (PAIRS / candidates.len()).max(1);
    let some =
        |candidate| rows.iter().filter(move |row| row.model == candidate).take(each).map(move |row| (candidate, row.index, row.seed));
    let first: BTreeSet<(&str, usize, u64)> = candidates.flat_map(some).collect();
    let extremes = comparison.extreme_images().into_iter().map(|(model, index, seed)| (model.to_string(), index, seed)).collect::<Vec<_>>();
    let baseline = plan.sides[0].name.as_str();
    let pair = |(model, index, seed)| by_image.pair([baseline, model], index, seed, |row| picture(plan, row));
    let pairs = first.into_iter().filter_map(|image| pair(image).transpose()).collect::<anyhow::Result<Vec<_>>>()?;
    let extremes = extremes.iter().filter_map(|(model, index, seed)| pair((model, *index, *seed)).transpose());
    let extremes = extremes.collect::<anyhow::Result<Vec<_>>>()?;
    let (base, tuned) = (&plan.sides[0].name, plan.sides[1..].iter().map(|side| side.name.as_str()).collect::<Vec<_>>().join(", "));
    let count = plan.prompts.len();
    let about = match plan.draws() {
        true => format!(
            "{tuned} against {base}: {count} prompts, {} each, the same noise on both sides, {} steps, guidance scale {}.",
            match plan.seeds().len() {
                1 => "one seed".into(),
                seeds => format!("{seeds} seeds"),
            },
            plan.args.steps,
            plan.guidance_scale
        ),
        false => format!("{tuned} against {base}: {count} images on each side, which were given; how they were drawn is not known."),
    };
    let held_out: Vec<String> = plan.prompts.iter().map(|prompt| prompt.text.clone()).collect();
    Ok(Report {
        title: format!("{tuned} against {base}"),
        about,
        trained_rewards: plan.args.trained_rewards.clone(),
        comparison: Some(comparison),
        votes: None,
        pairs,
        extremes,
        curves: Vec::new(),
        sentinel: None,
        leaks: (!plan.training.is_empty()).then(|| leak_panel(&held_out, &plan.training, &plan.leaks)),
        config: String::new(),
        provenance: provenance(plan, took),
    })
}

/// An image of the evaluation.
fn picture(plan: &EvaluationPlan, row: &ImageResult) -> anyhow::Result<Picture> {
    let side = plan.sides.iter().position(|side| side.name == row.model).context("the rows are of these sides")?;
    let path = image_in(&plan.args.output, side, row.index, row.seed);
    let bytes = input_file::read_regular(&path).with_context(|| format!("read {}", path.display()))?;
    let file = path.strip_prefix(&plan.args.output).ok().map(|path| path.display().to_string());
    Ok(Picture { model: row.model.clone(), file, bytes })
}

fn provenance(plan: &EvaluationPlan, took: Duration) -> Provenance {
    let prompts: Vec<&str> = plan.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let of_prompts = std::iter::once(Fact::new("prompts", checksum(prompts.join("\n").as_bytes())));
    let hashes = of_prompts.chain(plan.checksums.iter().map(|(name, sum)| Fact::new(name, sum))).collect();
    Provenance {
        time: vec![Fact::new("this run", format!("{:.0} s", took.as_secs_f64())), Fact::new("finished", date(SystemTime::now()))],
        hashes,
        ..of_program(&plan.args.device)
    }
}
