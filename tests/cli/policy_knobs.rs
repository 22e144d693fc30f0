//! DDPO's objectives, advantages by term, and the KL that counts for some images: laws between runs, resuming, and what cannot work.

use std::path::Path;

use crate::policy_gradient::{DDPO, args, number, updates, updates_of};
use crate::util::run;

/// Four images of each prompt, as groups.
const GROUPS: [&str; 2] = ["algo.ddpo.images_per_prompt=4", "algo.ddpo.advantages={ group = {} }"];

/// A reward of two terms, of which the second has the larger scale.
const SUM: &str = "reward={ weighted_sum = { terms = [{ weight = 1.0, reward = { brightness = {} } }, \
                   { weight = 0.5, std = 0.01, reward = { jpeg_compressibility = {} } }] } }";

/// The trained weights at the end of a run of four updates, and its losses.
fn result(output: &Path) -> (Vec<u8>, Vec<f64>) {
    let weights = std::fs::read(output.join("checkpoints/step-000004/weights.safetensors")).unwrap();
    (weights, updates_of(output).iter().map(|update| number(update, "loss")).collect())
}

/// That two forms of a run are the same run, and that a third is another.
fn assert_same(dir: &Path, one: &[&str], other: &[&str], different: &[&str]) {
    let result = |name: &str, extra: &[&str]| {
        updates(dir, name, extra);
        result(&dir.join(name))
    };
    let (one, other, different) = (result("one", one), result("other", other), result("different", different));
    assert!(one.1.len() == 4 && one == other, "{:?} {:?}", one.1, other.1);
    assert!(one.0 != different.0, "{:?}", different.1);
}

/// Runs with these knobs, stopped in the middle of the second epoch and resumed; the updates.
fn resumed(dir: &Path, name: &str, extra: &[&str]) -> Vec<serde_json::Value> {
    let output = dir.join(name);
    let own = [&DDPO[..], extra].concat();
    let finished = run(&args("ddpo", &output, &own, &["--prove-resume"])).ok();
    assert!(finished.stdout().contains("stopped before batch 13 of 24"), "{}", finished.stdout());
    updates_of(&output.join("interrupted"))
}

#[test]
fn a_window_of_all_steps_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let shared = [&GROUPS[..], &["algo.ddpo.share_initial_latents=true"]].concat();
    let window = |size: usize| format!("algo.ddpo.noise_window={{ size = {size}, min_step = 0, max_step = 2 }}");
    let [all, two] = [window(3), window(2)];
    let with = |window| [&shared[..], &[window]].concat();
    // With a window of two steps an update has fewer micro-batches, and other images.
    assert_same(dir.path(), &shared, &with(all.as_str()), &with(two.as_str()));
}

/// They come back in the middle of an epoch with the policy that sampled its images, which the second update of each epoch is compared with.
#[test]
fn every_objective_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Vec::new();
    for (name, objective) in [
        ("importance", "algo.ddpo.objective=importance_sampling"),
        ("hinge", "algo.ddpo.objective=hinge"),
        ("mask", "algo.ddpo.objective={ kl_mask = { threshold = 1e-9 } }"),
        ("corrected", "algo.ddpo.objective=corrected_ratio"),
    ] {
        let updates = resumed(dir.path(), name, &[objective]);
        let deviation = |update: usize| number(&updates[update], "ratio_max_deviation");
        assert!(deviation(0) < 1e-5 && deviation(2) < 1e-5 && deviation(1) > 1e-5 && deviation(3) > 1e-5, "{name}: {updates:?}");
        if ["mask", "corrected"].contains(&name) {
            let kl_old = |update: usize| number(&updates[update], "kl_old");
            assert!(kl_old(0) == 0.0 && kl_old(2) == 0.0 && kl_old(1) > 0.0 && kl_old(3) > 0.0, "{name}: {updates:?}");
        } else {
            assert!(updates.iter().all(|update| update["kl_old"].is_null()), "{name}: {updates:?}");
        }
        if name == "mask" {
            // Next to nothing is far, so that what is left are the steps that come back.
            let [first, second, third, last] = [0, 1, 2, 3].map(|update| number(&updates[update], "clipfrac"));
            assert!(first == 0.0 && third == 0.0 && second + last > 0.0 && second + last < 2.0, "{updates:?}");
        }
        first.push((name, number(&updates[0], "grad_norm")));
    }
    // Before the first update all pull alike; the corrected ratio has another factor at each step.
    let [importance, hinge, mask, corrected] = [0, 1, 2, 3].map(|i| first[i].1);
    let close = |norm: f64| (norm - importance).abs() < 1e-3 * importance;
    assert!(importance > 0.0 && close(hinge) && close(mask) && !close(corrected) && corrected > 0.0, "{first:?}");
}

/// With a threshold that no step reaches, and with a range that no ratio leaves, nothing is held back.
#[test]
fn a_mask_that_is_never_reached_is_a_clip_that_is_never_reached() {
    let dir = tempfile::tempdir().unwrap();
    let mask = ["algo.ddpo.objective={ kl_mask = { threshold = 1e9 } }"];
    let reached = ["algo.ddpo.objective={ kl_mask = { threshold = 1e-12 } }"];
    assert_same(dir.path(), &["algo.ddpo.clip_range=1e9"], &mask, &reached);
}

#[test]
fn terms_are_normalised_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let groups = |per_reward: bool| format!("algo.ddpo.advantages={{ group = {{ per_reward = {per_reward} }} }}");
    let [whole, by_term] = [false, true].map(groups);
    let updates = resumed(dir.path(), "by-term", &[GROUPS[0], &by_term, SUM]);
    for name in ["reward/brightness", "reward/jpeg_compressibility"] {
        assert!(updates.iter().all(|update| update[name].is_number()), "{updates:?}");
    }
    // The scale of a term has no effect then, and has one otherwise.
    let rescaled = SUM.replace("std = 0.01", "std = 5.0");
    let weights = |name: &str, advantages: &str, reward: &str| {
        crate::policy_gradient::updates(dir.path(), name, &[GROUPS[0], advantages, reward]);
        result(&dir.path().join(name)).0
    };
    assert!(weights("small", &by_term, SUM) == weights("large", &by_term, &rescaled));
    assert!(weights("small-whole", &whole, SUM) != weights("large-whole", &whole, &rescaled));
}

#[test]
fn a_share_of_all_images_is_the_plain_kl() {
    let dir = tempfile::tempdir().unwrap();
    let weight = "algo.ddpo.kl_weight=10.0";
    let share = |share: f64| format!("algo.ddpo.kl={{ share = {share:.1} }}");
    let [all, half] = [share(1.0), share(0.5)];
    assert_same(dir.path(), &[weight], &[weight, &all], &[weight, &half]);
}

/// The divergence is that from the policy of the epoch's beginning, once that is the reference: nothing before the epoch's first update.
#[test]
fn the_reference_follows_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let kl = |name: &str, section: &str| -> Vec<f64> {
        let updates = resumed(dir.path(), name, &["algo.ddpo.kl_weight=0.1", &format!("algo.ddpo.kl={{ share = 0.5, {section} }}")]);
        updates.iter().map(|update| number(update, "kl")).collect()
    };
    // Two epochs of two updates; the base model is the first reference.
    let moving = |kl: &[f64]| kl[0] == 0.0 && kl[1] > 0.0 && kl[3] > 0.0;
    for (name, section) in
        [("every", "reset_every = 1"), ("above", "reset_above = 1e-12"), ("either", "reset_every = 9, reset_above = 1e-12")]
    {
        let kl = kl(name, section);
        assert!(moving(&kl) && kl[2] == 0.0, "{section}: {kl:?}");
    }
    for (name, section) in [("late", "reset_every = 2"), ("far", "reset_above = 1e9")] {
        let kl = kl(name, section);
        assert!(moving(&kl) && kl[2] > 0.0, "{section}: {kl:?}");
    }
}

#[test]
fn what_cannot_work_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let refused = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let line = run(&args("ddpo", &output, &DDPO, &sets)).refused();
        assert!(!output.exists(), "{sets:?} left a run behind");
        line
    };
    let line = refused(&["algo.ddpo.objective=kl_maks"]);
    assert!(line.contains("kl_maks") && line.contains("did you mean `kl_mask`?"), "{line}");
    let line = refused(&["algo.ddpo.objective={ kl_mask = { threshold = 0.0 } }"]);
    assert!(line.contains("kl_mask.threshold is 0; expected a number above 0"), "{line}");
    let line = refused(&["algo.ddpo.kl={ share = 0.1 }"]);
    assert!(line.contains("[algo.ddpo.kl] is not used where algo.ddpo.kl_weight is 0"), "{line}");
    let line = refused(&["algo.ddpo.kl_weight=0.1", "algo.ddpo.kl={ share = 1.5, reset_every = 0, reset_above = -1.0 }"]);
    for part in ["share is 1.5; expected above 0 and at most 1", "reset_every is 0; expected at least 1", "reset_above is -1; expected"] {
        assert!(line.contains(part), "{line}");
    }
    let twice = ["algo.ddpo.kl_weight=0.1", "algo.ddpo.kl={}", "watch=[{ saturation = {} }, { saturation = {} }]"];
    assert!(refused(&twice).contains("two [[watch]] are called saturation; remove one"), "{}", refused(&twice));
    let by_term = [GROUPS[0], "algo.ddpo.advantages={ group = { per_reward = true } }"];
    let line = refused(&by_term);
    assert!(line.contains("[reward.jpeg_compressibility] is not made of terms") && line.contains("[reward.weighted_sum]"), "{line}");
}
