//! ReFL's relatives must raise brightness, and leave the model alone at learning rate 0.

use crate::{assert_gain, assert_untouched, train};

/// Short and small: brightness in place of the reward model, whose gradient costs as much as the sampling.
fn short(seed: u64, learning_rate: f64, extra: &[&str]) -> Vec<String> {
    let preview_seeds: Vec<u64> = (0..4).map(|i| 1000 * (seed + 1) + i).collect();
    let mut overrides: Vec<String> = [
        format!("run.seed={seed}"),
        "run.num_train_steps=5".into(),
        "reward={ brightness = {} }".into(),
        "watch=[{ saturation = {} }]".into(),
        "scheduler.num_inference_steps=6".into(),
        format!("optimizer.learning_rate={learning_rate}"),
        format!("preview.seeds={preview_seeds:?}"),
        "preview.num_inference_steps=6".into(),
        "checkpoint.every=0".into(),
    ]
    .into();
    overrides.extend(extra.iter().map(|extra| extra.to_string()));
    overrides
}

/// Three seeds of a shipped config, shortened.
fn raises_brightness(algo: &str, extra: &[&str]) {
    assert_gain(&format!("{algo}: brightness"), |seed| {
        train(&format!("{algo}-{seed}"), &format!("configs/{algo}/tiny.toml"), &short(seed, 1e-2, extra))
    });
}

fn changes_nothing_at_learning_rate_0(algo: &str, extra: &[&str]) {
    let overrides = [short(0, 0.0, extra), vec!["run.num_train_steps=2".into()]].concat();
    assert_untouched(&train(&format!("{algo}-still"), &format!("configs/{algo}/tiny.toml"), &overrides));
}

/// The border where it is in the shipped config, relative to the shorter chain.
const ALIGN_PROP: [&str; 1] = ["algo.align_prop.truncation.gaussian.mean=4.5"];

#[test]
fn draft_lv_raises_brightness() {
    raises_brightness("draft", &[]);
}

#[test]
fn align_prop_raises_brightness() {
    raises_brightness("align_prop", &ALIGN_PROP);
}

#[test]
fn drtune_raises_brightness() {
    raises_brightness("drtune", &[]);
}

#[test]
fn with_learning_rate_0_nothing_changes() {
    changes_nothing_at_learning_rate_0("draft", &[]);
    changes_nothing_at_learning_rate_0("align_prop", &ALIGN_PROP);
    changes_nothing_at_learning_rate_0("drtune", &[]);
}
