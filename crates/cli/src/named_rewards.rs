//! Rewards as they are named on the command line: by the name in the registry, by the file or folder that holds their weights, or by a config.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::Device;
use serde::Deserialize;
use vp_core::config::Validate;
use vp_core::input_file;
use vp_core::suggest::did_you_mean;
use vp_data::{ImageEntry, RgbImage};
use vp_rewards::{Reward, RewardConfig};

use crate::embedded;

/// A reward under the name that was typed for it.
pub struct NamedReward {
    pub name: String,
    pub reward: Box<dyn Reward>,
    /// The files and folders that it was read from.
    pub weights: Vec<PathBuf>,
}

impl NamedReward {
    /// The scores of images, one each.
    ///
    /// # Errors
    /// When the reward cannot score the images, or when a score is not finite.
    pub fn score(&self, pixels: &[RgbImage], images: &[ImageEntry], device: &Device) -> anyhow::Result<Vec<f64>> {
        let prompts: Vec<String> = images.iter().map(|image| image.caption.clone()).collect();
        let scores = self.reward.score_rgb(pixels, &prompts, device)?.scores;
        match scores.iter().zip(images).find(|(score, _)| !score.is_finite()) {
            Some((score, image)) => bail!("{} gives {} the score {score}; are its weights damaged?", self.name, image.file_name),
            None => Ok(scores),
        }
    }
}

/// The rewards of these names, ready to score.
///
/// # Errors
/// When a name means no reward, or when weights are missing or damaged.
pub fn open(names: &[String], device: &Device) -> anyhow::Result<Vec<NamedReward>> {
    build(configs(names)?, device)
}

/// Loads the rewards of [`configs`].
///
/// # Errors
/// When weights are missing or damaged.
pub fn build(configs: Vec<(String, RewardConfig)>, device: &Device) -> anyhow::Result<Vec<NamedReward>> {
    let build = |(name, config): (String, RewardConfig)| {
        let resolved = embedded::resolve_reward(&config).and_then(|config| Ok((config.build(device)?, config.weights())));
        let (reward, mut weights) = resolved.with_context(|| format!("--reward {name}"))?;
        weights.extend(is_config(Path::new(&name)).then(|| PathBuf::from(&name)));
        Ok(NamedReward { name, reward, weights })
    };
    configs.into_iter().map(build).collect()
}

/// What each `--reward` means, checked before any weights are read.
///
/// # Errors
/// When a name means no reward or is given twice.
pub fn configs(names: &[String]) -> anyhow::Result<Vec<(String, RewardConfig)>> {
    let (mut configs, mut findings) = (Vec::new(), Vec::new());
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            bail!("--reward {name} is given twice");
        }
        let config = config(name).with_context(|| format!("--reward {name}"))?;
        config.findings(&mut findings);
        configs.push((name.clone(), config));
    }
    if !findings.is_empty() {
        bail!("--reward: {}", findings.join("\n  and "));
    }
    Ok(configs)
}

/// The `[reward.<name>]` of a config; its other sections are left alone.
#[derive(Deserialize)]
struct RewardOfConfig {
    reward: RewardConfig,
}

fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

fn read_config(path: &Path) -> anyhow::Result<RewardConfig> {
    let text = input_file::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let RewardOfConfig { reward } = toml::from_str(&text).with_context(|| format!("{}: expected a [reward.<name>]", path.display()))?;
    Ok(reward)
}

/// The reward registered under `name` if it needs no weights, that of the config of this name, or the one that has its weights at the path `name`.
fn config(name: &str) -> anyhow::Result<RewardConfig> {
    if RewardConfig::ENTRIES.iter().any(|entry| entry.name == name) {
        let section: Result<RewardConfig, toml::de::Error> = toml::from_str(&format!("[{name}]"));
        return section.map_err(|error| needs_more(name, error.message()));
    }
    let path = &embedded::resolve(Path::new(name))?;
    if is_config(path) {
        return read_config(path);
    }
    if !path.exists() && path.components().count() == 1 {
        let weightless = || RewardConfig::ENTRIES.iter().map(|entry| entry.name).filter(|name| config(name).is_ok());
        let (hint, known) = (did_you_mean(name, weightless()), weightless().collect::<Vec<_>>().join(", "));
        let with_weights = RewardConfig::names_with_weights().collect::<Vec<_>>().join(" or ");
        bail!(
            "no such reward, file or folder{hint} (known: {known}; or the file or folder that holds the weights of a {with_weights}, or a .toml with a [reward.<name>])"
        );
    }
    Ok(RewardConfig::from_weights(path)?)
}

/// Why the name of a reward alone is not enough; `missing` is what serde says of an empty section.
fn needs_more(name: &str, missing: &str) -> anyhow::Error {
    if RewardConfig::names_with_weights().any(|with_weights| with_weights == name) {
        return anyhow::anyhow!("this reward needs weights; give the file or folder that holds them in place of its name");
    }
    anyhow::anyhow!("this reward needs a config ({missing}); give a .toml with a [reward.{name}] in place of its name")
}
