//! What an evaluation found, as `report.html`, `report.md` and `report.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use burn::tensor::Device;
use vp_core::atomic;
use vp_data::{RgbImage, to_tensor};
use vp_evaluation::comparison::{CompareOptions, Comparison, Distances, ImageResult, compare};
use vp_evaluation::report::{Fact, ImagePair, Leak, LeakPanel, Picture, Provenance, Report, ScorePair};
use vp_trainers::checkpoint::checksum;
use vp_trainers::journal::say;

use super::Plan;
use super::journal::{OfPrompt, image_in};
use crate::commands::score::Judge;
use crate::stdout;

/// Pairs of images that the report shows, beside the extremes.
const PAIRS: usize = 12;

/// How far apart every two images of a prompt are: 1 − the cosine of the features of the first reward that has some, else the root mean
/// square of their difference.
pub fn distances(images: &[RgbImage], rewards: &[Judge], device: &Device) -> anyhow::Result<Vec<f64>> {
    if images.len() < 2 {
        return Ok(Vec::new());
    }
    let features = rewards.iter().find_map(|judge| judge.reward.image_features(images));
    let rows: Vec<Vec<f64>> = match &features {
        Some(features) => {
            let [_, width] = features.dims();
            let values: Vec<f64> = features.to_data().iter::<f64>().collect();
            values.chunks(width).map(<[f64]>::to_vec).collect()
        }
        None => {
            let one = |image: &RgbImage| Ok(to_tensor(std::slice::from_ref(image), device)?.into_data().iter::<f64>().collect());
            images.iter().map(one).collect::<anyhow::Result<_>>()?
        }
    };
    let distance = |a: &[f64], b: &[f64]| match features {
        Some(_) => {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        }
        None => (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt(),
    };
    let n = rows.len();
    Ok((0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).map(|(i, j)| distance(&rows[i], &rows[j])).collect())
}

/// Writes the report and prints its numbers.
pub fn write(plan: &Plan, of_prompts: Vec<OfPrompt>, rewards: &[Judge], started: Instant) -> anyhow::Result<()> {
    let metric = match rewards.iter().find(|judge| judge.reward.has_image_features()) {
        Some(Judge { name, .. }) => format!("1 − cosine of {name}'s image features"),
        None => "root mean square of pixels".into(),
    };
    let mut models: BTreeMap<String, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    let mut rows = Vec::new();
    for OfPrompt { rows: of_prompt, distances } in of_prompts {
        if let Some(first) = of_prompt.first().filter(|_| !distances.is_empty()) {
            models.entry(first.model.clone()).or_default().insert(first.index, distances);
        }
        rows.extend(of_prompt);
    }
    let distances = (!models.is_empty()).then_some(Distances { metric, models });
    let names: Vec<&str> = plan.sides.iter().map(|side| side.name.as_str()).collect();
    let comparison = compare(&rows, &names, distances.as_ref(), &CompareOptions::default())?;
    let report = report(plan, comparison, &rows, started.elapsed())?;
    let output = &plan.args.output;
    for (name, text) in [("report.html", report.to_html()), ("report.md", report.to_markdown()), ("report.json", report.to_json())] {
        let path = output.join(name);
        atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    }
    stdout::print(&report.to_markdown())?;
    say(format_args!("{}", output.join("report.html").display()));
    Ok(())
}

fn report(plan: &Plan, comparison: Comparison, rows: &[ImageResult], took: Duration) -> anyhow::Result<Report> {
    let by_image: BTreeMap<(&str, usize, u64), &ImageResult> =
        rows.iter().map(|row| ((row.model.as_str(), row.index, row.seed), row)).collect();
    let candidate = plan.sides[1].name.as_str();
    let first: BTreeSet<(&str, usize, u64)> =
        rows.iter().filter(|row| row.model == candidate).take(PAIRS).map(|row| (candidate, row.index, row.seed)).collect();
    let extremes = comparison.extreme_images().into_iter().map(|(model, index, seed)| (model.to_string(), index, seed)).collect::<Vec<_>>();
    let pair = |(model, index, seed): (&str, usize, u64)| pair(plan, &by_image, (model, index, seed));
    let pairs = first.into_iter().filter_map(|image| pair(image).transpose()).collect::<anyhow::Result<Vec<_>>>()?;
    let extremes = extremes.iter().filter_map(|(model, index, seed)| pair((model, *index, *seed)).transpose());
    let extremes = extremes.collect::<anyhow::Result<Vec<_>>>()?;
    let (base, tuned) = (&plan.sides[0].name, plan.sides[1..].iter().map(|side| side.name.as_str()).collect::<Vec<_>>().join(", "));
    let about = format!(
        "{tuned} against {base}: {} prompts, {} seeds each, the same noise on both sides, {} steps, guidance scale {}.",
        plan.prompts.len(),
        plan.seeds().len(),
        plan.args.steps,
        plan.guidance_scale
    );
    Ok(Report {
        title: format!("{tuned} against {base}"),
        about,
        trained_rewards: plan.args.trained_rewards.clone(),
        comparison: Some(comparison),
        pairs,
        extremes,
        curves: Vec::new(),
        sentinel: None,
        leaks: leaks(plan),
        config: String::new(),
        provenance: provenance(plan, took),
    })
}

/// An image of a candidate beside the baseline's; none if one is missing.
fn pair(
    plan: &Plan,
    by_image: &BTreeMap<(&str, usize, u64), &ImageResult>,
    (model, index, seed): (&str, usize, u64),
) -> anyhow::Result<Option<ImagePair>> {
    let base = plan.sides[0].name.as_str();
    let (Some(before), Some(after)) = (by_image.get(&(base, index, seed)), by_image.get(&(model, index, seed))) else {
        return Ok(None);
    };
    let picture = |name: &str| {
        let side = plan.sides.iter().position(|side| side.name == name).expect("the rows are of these sides");
        let path = image_in(&plan.args.output, side, index, seed);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let file = path.strip_prefix(&plan.args.output).ok().map(|path| path.display().to_string());
        anyhow::Ok(Picture { model: name.to_string(), file, bytes })
    };
    let scores = before.scores.iter().filter_map(|(reward, baseline)| {
        Some(ScorePair { reward: reward.clone(), baseline: *baseline, candidate: *after.scores.get(reward)? })
    });
    Ok(Some(ImagePair {
        index,
        seed,
        prompt: before.prompt.clone(),
        baseline: picture(base)?,
        candidate: picture(model)?,
        scores: scores.collect(),
    }))
}

fn leaks(plan: &Plan) -> Option<LeakPanel> {
    let of = |leak: &vp_data::NearDuplicate| Leak {
        heldout: plan.prompts[leak.held_out].text.clone(),
        training: plan.training[leak.training].clone(),
        similarity: leak.similarity,
    };
    (!plan.training.is_empty()).then(|| LeakPanel {
        method: "equal letters and digits, or word 3-grams with a Jaccard similarity of at least 3/5".into(),
        heldout: plan.prompts.len(),
        training: plan.training.len(),
        leaks: plan.leaks.iter().map(of).collect(),
    })
}

fn provenance(plan: &Plan, took: Duration) -> Provenance {
    let quoted = |text: String| {
        if text.chars().all(|c| c.is_alphanumeric() || "-_./:=,".contains(c)) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let command = std::env::args().map(quoted).collect::<Vec<_>>().join(" ");
    let prompts: Vec<&str> = plan.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let of_prompts = std::iter::once(Fact::new("prompts", checksum(prompts.join("\n").as_bytes())));
    let hashes = of_prompts.chain(plan.checksums.iter().map(|(name, sum)| Fact::new(name, sum))).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Provenance {
        command,
        versions: vec![Fact::new("visionprefer", env!("CARGO_PKG_VERSION"))],
        hardware: vec![Fact::new("device", plan.args.device.clone()), Fact::new("processors", cores.to_string())],
        time: vec![
            Fact::new("this run", format!("{:.0} s", took.as_secs_f64())),
            Fact::new("finished", jiff::Zoned::now().strftime("%Y-%m-%d %H:%M").to_string()),
        ],
        hashes,
    }
}
