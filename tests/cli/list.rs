//! `list` and `init`.

use std::collections::BTreeMap;

use serde_json::Value;
use vp_core::config::Validate;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};

use crate::util::{root, run};

fn json(kind: &[&str]) -> Vec<Value> {
    let stdout = run(&[&["list", "--json"], kind].concat()).ok().stdout();
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_tables_and_the_json_have_every_entry() {
    let everything = json(&[]);
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for object in &everything {
        assert!(!object["summary"].as_str().unwrap().is_empty(), "{object}");
        names.entry(object["kind"].as_str().unwrap()).or_default().push(object["name"].as_str().unwrap());
    }
    let kinds: Vec<_> = names.keys().copied().collect();
    assert_eq!(kinds, ["algo", "annotator", "device", "lr_scheduler", "regularizer", "reward", "scheduler"]);
    let rewards: Vec<_> = vp_rewards::RewardConfig::ENTRIES.iter().map(|entry| entry.name).collect();
    assert_eq!(names["reward"], rewards);
    assert_eq!(names["scheduler"].len(), vp_schedulers::SCHEDULERS.len());
    let text = run(&["list"]).ok().stdout();
    for object in &everything {
        let (name, summary) = (object["name"].as_str().unwrap(), object["summary"].as_str().unwrap());
        assert!(text.lines().any(|line| line.trim_start().starts_with(name) && line.ends_with(summary)), "{name}: {text}");
    }
}

#[test]
fn one_kind_alone() {
    let schedulers = json(&["schedulers"]);
    assert!(schedulers.iter().all(|object| object["kind"] == "scheduler"));
    let ancestral = schedulers.iter().find(|object| object["name"] == "euler_a").unwrap();
    assert_eq!(ancestral["diffusers_class"], "EulerAncestralDiscreteScheduler");
    assert_eq!(ancestral["a1111_names"][0], "Euler a");
    let devices = json(&["devices"]);
    assert_eq!((&devices[0]["name"], &devices[0]["in_this_build"]), (&"cpu|flex".into(), &true.into()));
    for device in &devices {
        assert_ne!(device["in_this_build"].as_bool().unwrap(), device["add_with"].is_string(), "{device}");
    }
    assert_eq!(json(&["lr-schedulers"]), json(&["lr_schedulers"]));
    let message = run(&["list", "scheduler"]).refused();
    assert!(message.contains("schedulers"), "{message}");
}

#[test]
fn init_writes_configs_that_train_reads() {
    let dir = tempfile::tempdir().unwrap();
    for entry in AlgorithmConfig::ENTRIES {
        // A reward model's are no Stable Diffusion's.
        let presets = if entry.name == "reward_model" { ["imagereward", "shapes"] } else { ["sd15", "tiny"] };
        for preset in presets {
            let path = dir.path().join(format!("{}-{preset}.toml", entry.name));
            run(&["init", entry.name, "--preset", preset, "-o", path.to_str().unwrap()]).ok();
            let text = std::fs::read_to_string(&path).unwrap();
            let shipped = root().join(format!("configs/{}/{preset}.toml", entry.name));
            assert_eq!(text, std::fs::read_to_string(shipped).unwrap());
            let config: TrainConfig = toml::from_str(&text).unwrap();
            assert_eq!(config.algo.name(), entry.name);
            let mut findings = Vec::new();
            config.findings(&mut findings);
            // A recipe for a published model names weights that the user brings.
            findings.retain(|finding| !finding.contains("there is no file or folder"));
            assert!(findings.is_empty(), "{}: {findings:?}", path.display());
        }
        let published = std::fs::read_to_string(dir.path().join(format!("{}-{}.toml", entry.name, presets[0]))).unwrap();
        assert_eq!(run(&["init", entry.name]).ok().stdout(), published);
    }
}

#[test]
fn init_overwrites_nothing_and_suggests_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    std::fs::write(&path, "precious").unwrap();
    let message = run(&["init", "refl", "-o", path.to_str().unwrap()]).refused();
    assert!(message.contains("mine.toml") && message.contains("not overwritten"), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let message = run(&["init", "relf"]).refused();
    assert!(message.contains("no such algorithm, did you mean `refl`?"), "{message}");
    let message = run(&["init", "refl", "--preset", "sd-15"]).refused();
    assert!(message.contains("did you mean `sd15`?"), "{message}");
}
