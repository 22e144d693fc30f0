//! `score`: images and their prompts to numbers.

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Device;
use vp_data::{Aggregation, Dataset, ImageEntry, OnProblem, Record, check_images, load_image, open_dataset, read_manifest};
use vp_evaluation::accuracy::{Ranked, by_every_protocol};

use crate::args::ScoreArgs;
use crate::failure::Failure;
use crate::named_rewards::{self, NamedReward};
use crate::progress::Progress;
use crate::score_table::ScoreTable;
use crate::signals;
use crate::terminal::{print, print_json, warn_of_some};
use crate::{device, ranks};

/// The top-level entry point for `score`.
pub fn run(args: ScoreArgs) -> Result<(), Failure> {
    let device = device::parse(&args.device)?;
    if args.batch_size == 0 {
        return Err(anyhow::anyhow!("--batch-size is 0; expected at least 1").into());
    }
    let configs = named_rewards::configs(&args.rewards)?;
    if let Some(path) = &args.records {
        let dataset = open_dataset(path)?;
        let records = dataset.read(OnProblem::Refuse)?.records;
        let looked_at = Progress::uncounted("images looked at");
        let usable = dataset.usable_with(records, OnProblem::Refuse, &mut |done| looked_at.reach(done, ""));
        drop(looked_at);
        let records = usable.with_context(|| format!("--records {}", path.display()))?.records;
        signals::end_programs_too()?;
        let rewards = named_rewards::build(configs, &device)?;
        return agree(&rewards, &dataset, &records, &args, &device).map_err(Failure::run);
    }
    let images = images(&args)?;
    check_images(&images)?;
    signals::end_programs_too()?;
    let rewards = named_rewards::build(configs, &device)?;
    rewards.iter().for_each(|reward| warn_of_cut_prompts(reward, &images));
    score(&rewards, &images, &args, &device).map_err(Failure::run)
}

fn score(rewards: &[NamedReward], images: &[ImageEntry], args: &ScoreArgs, device: &Device) -> anyhow::Result<()> {
    let ranks = ranks::all();
    let (mut rows, own) = (Vec::new(), &images[ranks.share(images.len())]);
    let progress = Progress::of("images", own.len());
    for batch in own.chunks(args.batch_size) {
        let pixels = batch.iter().map(|image| load_image(&image.path)).collect::<Result<Vec<_>, _>>()?;
        let scores = rewards.iter().map(|reward| reward.score(&pixels, batch, device)).collect::<anyhow::Result<Vec<_>>>()?;
        for (i, image) in batch.iter().enumerate() {
            let scores: Vec<f64> = scores.iter().map(|scores| scores[i]).collect();
            if args.json && ranks.are_one() {
                print_scores(rewards, image, &scores)?;
            }
            rows.push(scores);
        }
        progress.advance(batch.len());
    }
    drop(progress);
    let rows = of_all_ranks(rows)?;
    if args.json {
        // One rank alone has printed them one by one.
        let all = images.iter().zip(&rows).filter(|_| !ranks.are_one());
        return all.into_iter().try_for_each(|(image, scores)| print_scores(rewards, image, scores));
    }
    print(&ScoreTable { rewards: headings(rewards), images, rows: &rows }.to_string())
}

/// How well each reward orders the images of records, by every protocol.
fn agree(rewards: &[NamedReward], dataset: &Dataset, records: &[Record], args: &ScoreArgs, device: &Device) -> anyhow::Result<()> {
    let aggregation = Aggregation::default();
    let is_ordered = |record: &&Record| !record.pairs(&aggregation).is_empty() || record.ties(&aggregation) > 0;
    let ordered: Vec<&Record> = records.iter().filter(is_ordered).collect();
    let own = &ordered[ranks::all().share(ordered.len())];
    let mut found: Vec<Vec<f64>> = Vec::new();
    let progress = Progress::of("records", own.len());
    for record in own {
        progress.advance(1);
        let images: Vec<ImageEntry> = record.completions.iter().map(|completion| entry(&record.prompt, &completion.image_path)).collect();
        let mut scores = vec![Vec::new(); rewards.len()];
        for batch in images.chunks(args.batch_size) {
            let pixels = batch.iter().map(|image| dataset.image(&image.file_name)?.load()).collect::<Result<Vec<_>, _>>()?;
            for (scores, reward) in scores.iter_mut().zip(rewards) {
                scores.extend(reward.score(&pixels, batch, device)?);
            }
        }
        found.extend(scores);
    }
    drop(progress);
    let found = of_all_ranks(found)?;
    for (number, reward) in rewards.iter().enumerate() {
        let scores = found.iter().skip(number).step_by(rewards.len());
        let ranked = ordered.iter().zip(scores).map(|(record, scores)| Ranked::new(scores.clone(), record.ranks(&aggregation)));
        let ranked = ranked.collect::<Result<Vec<_>, _>>()?;
        let accuracies = by_every_protocol(&ranked);
        if args.json {
            let line = serde_json::json!({ "reward": reward.name, "records": dataset.path(), "accuracies": accuracies });
            print_json(&format!("{line}\n"))?;
            continue;
        }
        print(&format!("{}: {} prompts\n", reward.name, ranked.len()))?;
        accuracies.iter().try_for_each(|accuracy| print(&format!("  {accuracy}\n")))?;
    }
    Ok(())
}

/// The rows of scores of all ranks, in their order.
fn of_all_ranks(own: Vec<Vec<f64>>) -> anyhow::Result<Vec<Vec<f64>>> {
    let ranks = ranks::all();
    if ranks.are_one() {
        return Ok(own);
    }
    // As bits, for JSON has no NaN.
    let bits: Vec<Vec<u64>> = own.iter().map(|row| row.iter().map(|score| score.to_bits()).collect()).collect();
    let mut all = Vec::new();
    for bytes in ranks.gather(&serde_json::to_vec(&bits)?)? {
        let bits: Vec<Vec<u64>> = serde_json::from_slice(&bytes).context("a rank is of another version")?;
        all.extend(bits.into_iter().map(|row| row.into_iter().map(f64::from_bits).collect()));
    }
    Ok(all)
}

fn entry(prompt: &str, image_path: &str) -> ImageEntry {
    ImageEntry { path: image_path.into(), file_name: image_path.into(), caption: prompt.into() }
}

/// The last part of each reward's path, or the whole path if another one ends the same way.
fn headings(rewards: &[NamedReward]) -> Vec<&str> {
    let last: Vec<Option<&str>> = rewards.iter().map(|reward| Path::new(&reward.name).file_name()?.to_str()).collect();
    let is_alone = |short| last.iter().filter(|other| **other == Some(short)).count() == 1;
    rewards.iter().zip(&last).map(|(reward, short)| short.filter(|short| is_alone(*short)).unwrap_or(&reward.name)).collect()
}

/// Prints one object per reward as soon as an image is scored.
fn print_scores(rewards: &[NamedReward], image: &ImageEntry, scores: &[f64]) -> anyhow::Result<()> {
    for (reward, score) in rewards.iter().zip(scores) {
        let line = serde_json::json!({ "file": image.file_name, "prompt": image.caption, "score": score, "reward": reward.name });
        print_json(&format!("{line}\n"))?;
    }
    Ok(())
}

fn images(args: &ScoreArgs) -> anyhow::Result<Vec<ImageEntry>> {
    if let Some(path) = &args.manifest {
        return Ok(read_manifest(path)?);
    }
    let prompt = args.prompt.clone().context("expected --prompt or --manifest")?;
    let entry = |path: &PathBuf| ImageEntry { path: path.clone(), file_name: path.display().to_string(), caption: prompt.clone() };
    Ok(args.images.iter().map(entry).collect())
}

/// Warns of prompts that are cut: the first few, each by its first image, and how many more there are.
fn warn_of_cut_prompts(reward: &NamedReward, images: &[ImageEntry]) {
    const SHOWN: usize = 3;
    let mut first: Vec<&ImageEntry> = images.iter().collect();
    first.sort_by(|a, b| a.caption.cmp(&b.caption));
    first.dedup_by(|a, b| a.caption == b.caption);
    let prompts: Vec<String> = first.iter().map(|image| image.caption.clone()).collect();
    let warnings = reward.reward.check_prompts(&prompts);
    let lines = warnings.iter().map(|warning| format!("{}: {}", first[warning.index].file_name, warning.message));
    warn_of_some(lines, SHOWN, "more prompts are cut");
}
