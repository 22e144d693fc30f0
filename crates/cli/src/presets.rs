//! The shipped configs, inside the binary: what `train --algo NAME` runs and `init` writes.

use anyhow::{Context, bail};
use vp_core::suggest::did_you_mean;
use vp_trainers::config::AlgorithmConfig;

/// A shipped config.
#[derive(Debug)]
pub struct Config {
    /// The folder that it lies in: the algorithm that it configures, or the command.
    pub folder: &'static str,
    /// Those of `OFFLINE` need no files; the others are for published models and need their weights.
    pub name: &'static str,
    /// Where it lies in the repository.
    pub path: &'static str,
    pub text: &'static str,
}

/// Every shipped config, by folder and name; `build.rs` lists them.
const CONFIGS: &[Config] = include!(concat!(env!("OUT_DIR"), "/configs.rs"));

/// The presets of one algorithm, the one that it runs without a config first.
pub fn of(algo: &str) -> Vec<&'static Config> {
    let default = AlgorithmConfig::with_defaults(algo).map_or("", |algo| algo.chosen().default_preset());
    let mut presets: Vec<&Config> = CONFIGS.iter().filter(|config| config.folder == algo).collect();
    presets.sort_by_key(|config| config.name != default);
    presets
}

/// The preset that `train --algo` runs without a config, of a known algorithm.
pub fn default_of(algo: &str) -> &'static Config {
    of(algo)[0]
}

/// The presets that run on what ships.
const OFFLINE: [&str; 4] = ["tiny", "shapes", "judge", "supervised"];

/// What `init` writes unasked: the published recipe of a known algorithm.
pub fn published(algo: &str) -> &'static Config {
    of(algo).into_iter().find(|preset| !OFFLINE.contains(&preset.name)).expect("every algorithm has a published recipe")
}

/// One preset of a known algorithm.
pub fn find(algo: &str, name: &str) -> anyhow::Result<&'static Config> {
    let names = || of(algo).into_iter().map(|preset| preset.name);
    of(algo).into_iter().find(|preset| preset.name == name).with_context(|| {
        format!("{algo} has no preset {name}{} (it has: {})", did_you_mean(name, names()), names().collect::<Vec<_>>().join(", "))
    })
}

/// Refuses what is not an algorithm.
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
    fn every_algorithm_has_an_offline_and_a_published_preset_and_every_folder_is_of_an_algorithm_or_a_command() {
        for entry in AlgorithmConfig::ENTRIES {
            let default = AlgorithmConfig::with_defaults(entry.name).unwrap().chosen().default_preset();
            assert!(OFFLINE.contains(&default), "{}", entry.name);
            assert_eq!(default_of(entry.name).name, default, "configs/{}/{default}.toml is missing", entry.name);
            assert!(!published(entry.name).name.is_empty());
        }
        CONFIGS.iter().filter(|config| config.folder != "annotate").for_each(|config| check_algo(config.folder).unwrap());
    }
}
