//! The shipped configs, inside the binary: what `train --algo NAME` runs and `init` writes.

use anyhow::{Context, bail};
use vp_core::suggest::did_you_mean;
use vp_trainers::config::AlgorithmConfig;

/// A shipped config.
#[derive(Debug)]
pub struct Preset {
    /// The algorithm that it configures.
    pub algo: &'static str,
    /// `tiny` and `shapes` run offline in minutes; the others are for published models and need their weights.
    pub name: &'static str,
    /// Where it lies in the repository.
    pub path: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! preset {
    ($algo:literal, $name:literal) => {
        Preset {
            algo: $algo,
            name: $name,
            path: concat!("configs/", $algo, "/", $name, ".toml"),
            text: include_str!(concat!("../../../configs/", $algo, "/", $name, ".toml")),
        }
    };
}

/// Every shipped config; an algorithm's first line is what it runs without a config.
pub const PRESETS: &[Preset] = &[
    preset!("refl", "shapes"),
    preset!("refl", "tiny"),
    preset!("refl", "sd15"),
    preset!("draft", "tiny"),
    preset!("draft", "sd15"),
    preset!("align_prop", "tiny"),
    preset!("align_prop", "sd15"),
    preset!("drtune", "tiny"),
    preset!("drtune", "sd15"),
    preset!("ddpo", "shapes"),
    preset!("ddpo", "tiny"),
    preset!("ddpo", "sd15"),
    preset!("d3po", "tiny"),
    preset!("d3po", "sd15"),
    preset!("dpo", "tiny"),
    preset!("dpo", "sd15"),
    preset!("sft", "tiny"),
    preset!("sft", "shapes"),
    preset!("sft", "sd15"),
    preset!("vae", "tiny"),
    preset!("vae", "shapes"),
    preset!("vae", "sd15"),
    preset!("reward_model", "shapes"),
    preset!("reward_model", "imagereward"),
    preset!("reward_model", "pickscore"),
];

/// The presets of one algorithm.
pub fn of(algo: &str) -> impl Iterator<Item = &'static Preset> {
    PRESETS.iter().filter(move |preset| preset.algo == algo)
}

/// What `train --algo` runs without a config: the first of a known algorithm.
pub fn default_of(algo: &str) -> &'static Preset {
    of(algo).next().expect("every algorithm has presets")
}

/// What `init` writes unasked: the published recipe of a known algorithm.
pub fn published(algo: &str) -> &'static Preset {
    of(algo).find(|preset| !["tiny", "shapes"].contains(&preset.name)).expect("every algorithm has a published recipe")
}

/// One preset of a known algorithm.
pub fn find(algo: &str, name: &str) -> anyhow::Result<&'static Preset> {
    let names = || of(algo).map(|preset| preset.name);
    of(algo).find(|preset| preset.name == name).with_context(|| {
        format!("{algo} has no preset {name}{} (it has: {})", did_you_mean(name, names()), names().collect::<Vec<_>>().join(", "))
    })
}

/// Refuses what is no algorithm.
pub fn check_algo(algo: &str) -> anyhow::Result<()> {
    let known = || AlgorithmConfig::ENTRIES.iter().map(|entry| entry.name);
    if !known().any(|name| name == algo) {
        bail!("no such algorithm{} (known: {})", did_you_mean(algo, known()), known().collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_has_an_offline_and_a_published_preset_and_every_preset_an_algorithm() {
        for entry in AlgorithmConfig::ENTRIES {
            assert!(["tiny", "shapes"].contains(&default_of(entry.name).name), "{}", entry.name);
            assert!(!published(entry.name).name.is_empty());
        }
        PRESETS.iter().for_each(|preset| check_algo(preset.algo).unwrap());
    }
}
