//! `score`: images and their prompts to numbers.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::Device;
use vp_core::config::Validate;
use vp_core::suggest::did_you_mean;
use vp_data::{Aggregation, Dataset, ImageEntry, OnProblem, Record, RgbImage, check_images, load_image, open_dataset, read_manifest};
use vp_evaluation::accuracy::Ranked;
use vp_rewards::{Reward, RewardConfig};

use super::accuracy::accuracies;
use crate::args::ScoreArgs;
use crate::failure::Failure;
use crate::score_table::ScoreTable;
use crate::{device, embedded, stdout};

/// A reward under the name that was typed for it.
pub struct NamedReward {
    /// The name.
    pub name: String,
    /// The reward.
    pub reward: Box<dyn Reward>,
    /// Files and folders that it was read from.
    pub weights: Vec<PathBuf>,
}

/// The top-level entry point for `score`.
pub fn run(args: ScoreArgs) -> Result<(), Failure> {
    let device = device::parse(&args.device)?;
    if args.batch_size == 0 {
        return Err(anyhow::anyhow!("--batch-size is 0; expected at least 1").into());
    }
    let configs = reward_configs(&args.rewards)?;
    if let Some(path) = &args.records {
        let dataset = open_dataset(path)?;
        let records = dataset.read(OnProblem::Refuse)?.records;
        let rewards = built(configs, &device)?;
        return agree(&rewards, &dataset, &records, &args, &device).map_err(Failure::run);
    }
    let images = images(&args)?;
    check_images(&images)?;
    let rewards = built(configs, &device)?;
    rewards.iter().for_each(|reward| warn_of_cut_prompts(reward, &images));
    score(&rewards, &images, &args, &device).map_err(Failure::run)
}

fn score(rewards: &[NamedReward], images: &[ImageEntry], args: &ScoreArgs, device: &Device) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for batch in images.chunks(args.batch_size) {
        let pixels = batch.iter().map(|image| load_image(&image.path)).collect::<Result<Vec<_>, _>>()?;
        let scores = rewards.iter().map(|reward| reward.score(&pixels, batch, device)).collect::<anyhow::Result<Vec<_>>>()?;
        for (i, image) in batch.iter().enumerate() {
            let scores: Vec<f64> = scores.iter().map(|scores| scores[i]).collect();
            if args.json {
                print_json(rewards, image, &scores)?;
            }
            rows.push(scores);
        }
    }
    if args.json {
        return Ok(());
    }
    stdout::print(&ScoreTable { rewards: headings(rewards), images, rows: &rows }.to_string())
}

/// How well each reward orders the images of records, by every protocol.
fn agree(rewards: &[NamedReward], dataset: &Dataset, records: &[Record], args: &ScoreArgs, device: &Device) -> anyhow::Result<()> {
    let aggregation = Aggregation::default();
    let mut found: Vec<Vec<Ranked>> = vec![Vec::new(); rewards.len()];
    for record in records {
        if record.pairs(&aggregation).is_empty() && record.ties(&aggregation) == 0 {
            continue;
        }
        let ranks = record.ranks(&aggregation);
        let images: Vec<ImageEntry> = record.completions.iter().map(|completion| entry(&record.prompt, &completion.image_path)).collect();
        let mut scores = vec![Vec::new(); rewards.len()];
        for batch in images.chunks(args.batch_size) {
            let pixels = batch.iter().map(|image| dataset.image(&image.file_name)?.load()).collect::<Result<Vec<_>, _>>()?;
            for (scores, reward) in scores.iter_mut().zip(rewards) {
                scores.extend(reward.score(&pixels, batch, device)?);
            }
        }
        for (found, scores) in found.iter_mut().zip(scores) {
            found.push(Ranked::new(scores, ranks.clone())?);
        }
    }
    for (reward, ranked) in rewards.iter().zip(&found) {
        let accuracies = accuracies(ranked);
        if args.json {
            let line = serde_json::json!({ "reward": reward.name, "records": dataset.path(), "accuracies": accuracies });
            stdout::print(&format!("{line}\n"))?;
            continue;
        }
        stdout::print(&format!("{}: {} prompts\n", reward.name, ranked.len()))?;
        accuracies.iter().try_for_each(|accuracy| stdout::print(&format!("  {accuracy}\n")))?;
    }
    Ok(())
}

fn entry(prompt: &str, image_path: &str) -> ImageEntry {
    ImageEntry { path: image_path.into(), file_name: image_path.into(), caption: prompt.into() }
}

/// The last part of each reward's path, or all of it where another ends alike.
fn headings(rewards: &[NamedReward]) -> Vec<&str> {
    let last: Vec<Option<&str>> = rewards.iter().map(|reward| Path::new(&reward.name).file_name()?.to_str()).collect();
    let is_alone = |short| last.iter().filter(|other| **other == Some(short)).count() == 1;
    rewards.iter().zip(&last).map(|(reward, short)| short.filter(|short| is_alone(*short)).unwrap_or(&reward.name)).collect()
}

/// An object for each reward, as soon as it is known.
fn print_json(rewards: &[NamedReward], image: &ImageEntry, scores: &[f64]) -> anyhow::Result<()> {
    for (reward, score) in rewards.iter().zip(scores) {
        let line = serde_json::json!({ "file": image.file_name, "prompt": image.caption, "score": score, "reward": reward.name });
        stdout::print(&format!("{line}\n"))?;
    }
    Ok(())
}

impl NamedReward {
    fn score(&self, pixels: &[RgbImage], batch: &[ImageEntry], device: &Device) -> anyhow::Result<Vec<f64>> {
        let prompts: Vec<String> = batch.iter().map(|image| image.caption.clone()).collect();
        let scores = self.reward.score_rgb(pixels, &prompts, device)?.scores;
        match scores.iter().zip(batch).find(|(score, _)| !score.is_finite()) {
            Some((score, image)) => bail!("{} gives {} the score {score}; are its weights damaged?", self.name, image.file_name),
            None => Ok(scores),
        }
    }
}

/// The rewards that `names` mean, ready to score.
pub fn named_rewards(names: &[String], device: &Device) -> anyhow::Result<Vec<NamedReward>> {
    built(reward_configs(names)?, device)
}

fn built(configs: Vec<(String, RewardConfig)>, device: &Device) -> anyhow::Result<Vec<NamedReward>> {
    let build = |(name, config): (String, RewardConfig)| {
        let resolved = embedded::resolve_reward(&config).and_then(|config| Ok((config.build(device)?, config.weights())));
        let (reward, weights) = resolved.with_context(|| format!("--reward {name}"))?;
        Ok(NamedReward { name, reward, weights })
    };
    configs.into_iter().map(build).collect()
}

/// What each `--reward` means, checked before any weights are read.
fn reward_configs(names: &[String]) -> anyhow::Result<Vec<(String, RewardConfig)>> {
    let (mut configs, mut findings) = (Vec::new(), Vec::new());
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            bail!("--reward {name} is given twice");
        }
        let config = reward_config(name).with_context(|| format!("--reward {name}"))?;
        config.findings(&mut findings);
        configs.push((name.clone(), config));
    }
    if !findings.is_empty() {
        bail!("--reward: {}", findings.join("\n  and "));
    }
    Ok(configs)
}

/// The reward registered under `name` if it needs no weights, else the reward that has its weights at the path `name`.
fn reward_config(name: &str) -> anyhow::Result<RewardConfig> {
    if RewardConfig::ENTRIES.iter().any(|entry| entry.name == name) {
        let section: Result<RewardConfig, toml::de::Error> = toml::from_str(&format!("[{name}]"));
        return section.map_err(|error| needs_more(name, error.message()));
    }
    let path = Path::new(name);
    if !path.exists() && path.components().count() == 1 {
        let weightless = || RewardConfig::ENTRIES.iter().map(|entry| entry.name).filter(|name| reward_config(name).is_ok());
        let (hint, known) = (did_you_mean(name, weightless()), weightless().collect::<Vec<_>>().join(", "));
        let with_weights = RewardConfig::names_with_weights().collect::<Vec<_>>().join(" or ");
        bail!("no such reward, file or folder{hint} (known: {known}; or the file or folder that holds the weights of a {with_weights})");
    }
    Ok(RewardConfig::from_weights(path)?)
}

/// Why the name of a reward alone is not enough; `missing` is what serde says of an empty section.
fn needs_more(name: &str, missing: &str) -> anyhow::Error {
    if RewardConfig::names_with_weights().any(|with_weights| with_weights == name) {
        return anyhow::anyhow!("this reward needs weights; give the file or folder that holds them in place of its name");
    }
    anyhow::anyhow!("only a config can name this reward, as [reward.{name}] with all of its keys ({missing}); give its parts instead")
}

fn images(args: &ScoreArgs) -> anyhow::Result<Vec<ImageEntry>> {
    if let Some(path) = &args.manifest {
        return Ok(read_manifest(path)?);
    }
    let prompt = args.prompt.clone().context("expected --prompt or --manifest")?;
    let entry = |path: &PathBuf| ImageEntry { path: path.clone(), file_name: path.display().to_string(), caption: prompt.clone() };
    Ok(args.images.iter().map(entry).collect())
}

/// Shows the first few prompts that are cut, each by its first image, and says how many there are.
fn warn_of_cut_prompts(named: &NamedReward, images: &[ImageEntry]) {
    const SHOWN: usize = 3;
    let mut first: Vec<&ImageEntry> = images.iter().collect();
    first.sort_by(|a, b| a.caption.cmp(&b.caption));
    first.dedup_by(|a, b| a.caption == b.caption);
    let prompts: Vec<String> = first.iter().map(|image| image.caption.clone()).collect();
    let warnings = named.reward.check_prompts(&prompts);
    for warning in warnings.iter().take(SHOWN) {
        eprintln!("warning: {}: {}", first[warning.index].file_name, warning.message);
    }
    if warnings.len() > SHOWN {
        eprintln!("warning: … and {} more prompts are cut", warnings.len() - SHOWN);
    }
}
