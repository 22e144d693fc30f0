//! Every shipped config is one that its command reads, and says what its knobs mean.

use std::path::{Path, PathBuf};

use vp_core::config::Validate;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};

/// How many configs ship, those of `annotate` among them. A test that misses a folder of them proves nothing about it.
const SHIPPED: usize = 47;

fn shipped() -> Vec<PathBuf> {
    let mut found = Vec::new();
    tomls(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"), &mut found);
    assert!(found.len() >= SHIPPED, "expected {SHIPPED} configs or more, found {}: {found:?}", found.len());
    for entry in AlgorithmConfig::ENTRIES {
        let of_algorithm = found.iter().filter(|path| path.parent().unwrap().ends_with(entry.name)).count();
        assert!(of_algorithm >= 2, "expected an offline and a published config in configs/{}, found {of_algorithm}", entry.name);
    }
    found
}

fn tomls(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tomls(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
}

#[test]
fn every_config_parses_and_validates() {
    let mut found = shipped();
    // Those of `annotate` are read by the tests of that command.
    found.retain(|path| !path.parent().unwrap().ends_with("annotate"));
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let config: TrainConfig = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut findings = Vec::new();
        config.findings(&mut findings);
        // A recipe for a published model names weights that the user brings.
        findings.retain(|finding| !finding.contains("there is no file or folder"));
        assert!(findings.is_empty(), "{}: {findings:?}", path.display());
        let folder = path.parent().unwrap().file_name().unwrap();
        assert_eq!(folder, config.algo.name(), "{} lies in another algorithm's folder", path.display());
    }
}

/// A value that a user may change has a comment on its line.
#[test]
fn every_knob_of_a_published_recipe_is_commented() {
    let mut found = shipped();
    found.retain(|path| !path.ends_with("tiny.toml") && !path.ends_with("shapes.toml"));
    assert!(found.len() >= AlgorithmConfig::ENTRIES.len(), "expected a published config of each algorithm, found {found:?}");
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        let knobs = text.lines().filter(|line| line.contains(" = ") && !line.starts_with(['#', ' ', '[']));
        assert!(knobs.clone().count() >= 5, "{}: found {} knobs", path.display(), knobs.count());
        for line in knobs {
            assert!(line.contains('#'), "{}: no comment on: {line}", path.display());
        }
    }
}
