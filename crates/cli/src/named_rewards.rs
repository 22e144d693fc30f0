//! Rewards as they are named on the command line: by the name in the registry, or by the file or folder that holds their weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::Device;
use vp_core::config::Validate;
use vp_core::suggest::did_you_mean;
use vp_data::{ImageEntry, RgbImage};
use vp_models::clip::is_clip;
use vp_rewards::{ClipScoreConfig, Reward, RewardConfig, VpScoreConfig};

use crate::embedded;

/// A reward under the name that was typed for it.
pub struct NamedReward {
    /// The name.
    pub name: String,
    /// The reward.
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
        let scores = self.reward.score_rgb(pixels, &prompts, device)?;
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
        let (reward, weights) = resolved.with_context(|| format!("--reward {name}"))?;
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

/// The reward registered under `name` if it needs nothing more, else the CLIP in that folder, else the BLIP reward in that folder or file.
fn config(name: &str) -> anyhow::Result<RewardConfig> {
    if RewardConfig::ENTRIES.iter().any(|entry| entry.name == name) {
        let section: Result<RewardConfig, toml::de::Error> = toml::from_str(&format!("[{name}]"));
        return section.map_err(|error| match error.message() {
            missing if missing.contains("`weights`") => {
                anyhow::anyhow!("this reward needs weights; give the folder or file that holds them")
            }
            missing => anyhow::anyhow!("only a config's [reward.{name}] can describe this reward ({missing}); name its parts instead"),
        });
    }
    let path = Path::new(name);
    if !path.exists() && path.components().count() == 1 {
        let weightless = || RewardConfig::ENTRIES.iter().map(|entry| entry.name).filter(|name| config(name).is_ok());
        let (hint, known) = (did_you_mean(name, weightless()), weightless().collect::<Vec<_>>().join(", "));
        bail!(
            "no such reward, file or folder{hint} (known: {known}; or the folder or file of a VP-Score or ImageReward, or the folder of a CLIP)"
        );
    }
    if is_clip(path) {
        return Ok(RewardConfig::ClipScore(ClipScoreConfig { weights: path.into(), logit_scale: false }));
    }
    Ok(RewardConfig::VpScore(VpScoreConfig::new(path)))
}
