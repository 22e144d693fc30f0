//! DDPO and D3PO: what cannot work, a reward that fails, and going on in the middle of an epoch.

use std::path::Path;

use crate::util::{copy_dir, root, run};

/// Two epochs of two updates each, of two minibatches at three timesteps.
const SMALL: [&str; 9] = [
    "run.num_train_steps=4",
    "model.size=[32, 32]",
    "scheduler.num_inference_steps=3",
    "optimizer.gradient_accumulation_steps=2",
    "preview.num_inference_steps=1",
    "preview.seeds=[1]",
    "watch=[{ saturation = {} }]",
    "checkpoint.every=1",
    "lora.targets=attn1",
];
pub(crate) const DDPO: [&str; 4] = [
    "algo.ddpo.sample_batch_size=4",
    "algo.ddpo.num_batches_per_epoch=2",
    "algo.ddpo.train_batch_size=2",
    "algo.ddpo.advantages={ per_prompt = { buffer_size = 4, min_count = 2 } }",
];
const D3PO: [&str; 3] = ["algo.d3po.sample_batch_size=4", "algo.d3po.num_batches_per_epoch=2", "algo.d3po.train_batch_size=1"];

pub(crate) fn args<'a>(algo: &'a str, output: &'a Path, own: &[&'a str], extra: &[&'a str]) -> Vec<&'a str> {
    let sets = SMALL.into_iter().chain(own.iter().copied()).flat_map(|set| ["--set", set]);
    let config = if algo == "ddpo" { "configs/ddpo/tiny.toml" } else { "configs/d3po/tiny.toml" };
    let begin = ["train", "--config", config, "-o", output.to_str().unwrap()];
    begin.into_iter().chain(sets).chain(extra.iter().copied()).collect()
}

/// Batches of images and micro-batches that are computed side by side, an uneven number of each, are those that are computed one by one.
#[test]
fn workers_change_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    for (algo, own) in [("ddpo", &DDPO[..]), ("d3po", &D3PO[..])] {
        let lora = |workers: &str| {
            let output = dir.path().join(format!("{algo}-{workers}"));
            let workers = format!("run.workers={workers}");
            let proof: &[&str] = if workers.ends_with('1') { &[] } else { &["--prove-resume"] };
            run(&args(algo, &output, &[own, &[&workers]].concat(), proof)).ok();
            let output = if proof.is_empty() { output } else { output.join("interrupted") };
            let means = means(&output, "loss");
            (std::fs::read(output.join("lora.safetensors")).unwrap(), means)
        };
        let (one, four) = (lora("1"), lora("4"));
        assert!(one.0 == four.0 && one.1 == four.1 && one.1.len() == 4, "{algo}: {:?} {:?}", one.1, four.1);
    }
}

/// The values of a name in the journal, by update.
fn means(output: &Path, name: &str) -> Vec<f64> {
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    metrics.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()[name].as_f64()).collect()
}

/// Stopped in the middle of an epoch, between two timesteps of a minibatch: trajectories, advantages and the prompts' statistics come
/// back to the bit.
#[test]
fn an_epoch_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for (algo, own) in [("ddpo", &DDPO[..]), ("d3po", &D3PO[..])] {
        let output = dir.path().join(algo);
        let finished = run(&args(algo, &output, own, &["--prove-resume"])).ok();
        // 24 backward passes; in the middle an epoch begins, so one later.
        assert!(finished.stdout().contains("stopped before batch 13 of 24"), "{}", finished.stdout());
        let metrics = std::fs::read_to_string(output.join("interrupted/metrics.jsonl")).unwrap();
        let updates: Vec<serde_json::Value> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &serde_json::Value| line["loss"].is_number())
            .collect();
        let logged: &[&str] = if algo == "ddpo" {
            &["reward_mean", "reward_std", "watch/saturation", "approx_kl", "clipfrac", "ratio_max_deviation", "kl", "grad_norm"]
        } else {
            &["reward_mean", "reward_std", "watch/saturation", "clipfrac", "kl", "grad_norm"]
        };
        for name in logged {
            assert!(updates.len() == 4 && updates.iter().all(|line| line[*name].is_number()), "{algo}: {name}: {updates:?}");
        }
        if algo == "ddpo" {
            // On policy until the first update of an epoch, off it after.
            let deviation = |update: usize| updates[update]["ratio_max_deviation"].as_f64().unwrap();
            assert!(deviation(0) < 1e-5 && deviation(2) < 1e-5 && deviation(1) > 1e-5 && deviation(3) > 1e-5, "{updates:?}");
        }
    }
}

#[test]
fn what_cannot_work_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let refused = |algo: &str, own: &[&str], set: &str| {
        let line = run(&args(algo, &output, own, &["--set", set])).refused();
        assert!(!output.exists(), "{set} left a run behind");
        line
    };
    for (algo, own) in [("ddpo", &DDPO[..]), ("d3po", &D3PO[..])] {
        let line = refused(algo, own, "scheduler.eta=0");
        assert!(line.contains(&format!("algo.{algo} needs random steps")) && line.contains("eta above 0"), "{line}");
        let line = refused(algo, own, "scheduler.name=euler");
        assert!(line.contains("needs random steps"), "{line}");
        let line = refused(algo, own, "scheduler.set_alpha_to_one=true");
        assert!(line.contains("the last scheduler step") && line.contains("set_alpha_to_one = false"), "{line}");
        assert!(refused(algo, own, "scheduler.name=ddpm").contains("has no density"));
        let line = refused(algo, own, &format!("algo.{algo}.train_batch_size=3"));
        assert!(line.contains("an epoch has 8 images") && line.contains("does not divide"), "{line}");
        assert!(refused(algo, own, "regularizer={ base_predictions = {} }").contains("[regularizer.base_predictions] is not used by"));
        assert!(refused(algo, own, &format!("algo.{algo}.timestep_fraction=0.0")).contains("above 0 and at most 1"));
    }
    assert!(refused("d3po", &D3PO, "regularizer={ none = {} }").contains("is not used by"));
    let line = refused("ddpo", &DDPO, "regularizer={ images = { folder = \"no/such\" } }");
    assert!(line.contains("no/such"), "{line}");
    let line = refused("ddpo", &DDPO, "algo.ddpo.objective=score_function");
    assert!(line.contains("one update per rollout, and there are 2"), "{line}");
    let line = refused("ddpo", &DDPO, "algo.ddpo.advantages={ group = {} }");
    assert!(line.contains("expected at least 2"), "{line}");
    assert!(refused("ddpo", &DDPO, "algo.ddpo.images_per_prompt=3").contains("images_per_prompt 3 does not divide"));
    let line = refused("ddpo", &DDPO, "algo.ddpo.noise_window={ size = 3, min_step = 1, max_step = 2 }");
    assert!(line.contains("noise_window is 3 of the steps 1..=2") && line.contains("share_initial_latents = true"), "{line}");
    assert!(refused("ddpo", &DDPO, "algo.ddpo.noise_window={ size = 1, min_step = 1, max_step = 3 }").contains("the last of 3 steps"));
    assert!(refused("ddpo", &DDPO, "algo.ddpo.noise_window={ size = 0, min_step = 0, max_step = 2 }").contains("a size of 1 to"));
    assert!(refused("ddpo", &DDPO, "algo.ddpo.clip_range=0.0").contains("clip_range is 0; expected a number above 0"));
}

/// Once for each minibatch, at its first timestep; what was learnt with it comes back to the bit.
#[test]
fn captioned_images_are_a_regulariser() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = |name: &str, extra: &[&str]| {
        let output = dir.path().join(name);
        run(&args("ddpo", &output, &DDPO, extra)).ok();
        let folder = if extra.contains(&"--prove-resume") { output.join("interrupted") } else { output };
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &serde_json::Value| line["loss"].is_number()).collect::<Vec<_>>()
    };
    let images = "regularizer={ images = { folder = \"checkpoints/tiny-images\", weight = 0.5 } }";
    let with = metrics("with", &["--set", images, "--prove-resume"]);
    let without = metrics("without", &[]);
    let (first, plain) = (&with[0], &without[0]);
    let added = first["loss"].as_f64().unwrap() - plain["loss"].as_f64().unwrap();
    assert!(first["regularizer"].as_f64().unwrap() > 0.0 && plain["regularizer"].is_null(), "{first} {plain}");
    // Logged as it is at a minibatch, and in the loss as often as there are timesteps: the mean over micro-batches is the same.
    assert!((added - first["regularizer"].as_f64().unwrap()).abs() < 1e-5, "{first} {plain}");
    assert!(with[3]["grad_norm"] != without[3]["grad_norm"]);
}

/// Groups, shared latents, guidance, a KL penalty, part of the timesteps, two walks: they run, and the score function too.
#[test]
fn other_forms() {
    let dir = tempfile::tempdir().unwrap();
    let grouped = [
        "run.num_train_steps=2",
        "algo.ddpo.images_per_prompt=4",
        "algo.ddpo.share_initial_latents=true",
        "algo.ddpo.advantages={ group = { global_std = true } }",
        "algo.ddpo.guidance_scale=3.0",
        "algo.ddpo.kl_weight=0.1",
        "algo.ddpo.timestep_fraction=0.7",
        "algo.ddpo.num_inner_epochs=2",
        r"lora.targets=(attn1|self_attn)",
    ];
    let output = dir.path().join("grouped");
    let finished = run(&args("ddpo", &output, &[&DDPO[..], &grouped[..]].concat(), &[])).ok();
    assert!(finished.stdout().contains("at 2 of 3 timesteps, 4 backward passes"), "{}", finished.stdout());
    let window =
        [&grouped[..], &["algo.ddpo.noise_window={ size = 2, min_step = 0, max_step = 2 }", "algo.ddpo.timestep_fraction=1.0"]].concat();
    let output = dir.path().join("window");
    let finished = run(&args("ddpo", &output, &[&DDPO[..], &window].concat(), &["--prove-resume"])).ok();
    assert!(finished.stdout().contains("at 2 of 3 timesteps, 4 backward passes"), "{}", finished.stdout());
    let score = ["run.num_train_steps=1", "algo.ddpo.objective=score_function", "optimizer.gradient_accumulation_steps=4"];
    run(&args("ddpo", &dir.path().join("score"), &[&DDPO[..], &score[..]].concat(), &[])).ok();
}

/// The updates of a short run of DDPO, as `metrics.jsonl` has them.
pub(crate) fn updates(dir: &Path, name: &str, extra: &[&str]) -> Vec<serde_json::Value> {
    let output = dir.join(name);
    let sets: Vec<&str> = extra.iter().flat_map(|set| ["--set", set]).collect();
    run(&args("ddpo", &output, &DDPO, &sets)).ok();
    updates_of(&output)
}

/// The updates of a run in this folder.
pub(crate) fn updates_of(output: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &serde_json::Value| line["loss"].is_number()).collect()
}

pub(crate) fn number(update: &serde_json::Value, name: &str) -> f64 {
    update[name].as_f64().unwrap_or_else(|| panic!("no {name} in {update}"))
}

#[test]
fn each_inner_epoch_walks_the_same_images_again() {
    let dir = tempfile::tempdir().unwrap();
    // An epoch has two updates per walk.
    let once = updates(dir.path(), "once", &[]);
    let twice = updates(dir.path(), "twice", &["algo.ddpo.num_inner_epochs=2"]);
    let rewards = |updates: &[serde_json::Value]| updates.iter().map(|update| number(update, "reward_mean")).collect::<Vec<_>>();
    let (once, twice) = (rewards(&once), rewards(&twice));
    assert!(once[0] == once[1] && once[1] != once[2] && once[2] == once[3], "{once:?}");
    assert!(twice.iter().all(|reward| *reward == once[0]), "{twice:?}");
}

#[test]
fn advantages_are_clipped_to_adv_clip_max() {
    let dir = tempfile::tempdir().unwrap();
    // Standardised advantages are about 1; clipped to a thousandth, so is the gradient.
    let free = number(&updates(dir.path(), "free", &[])[0], "grad_norm");
    let clipped = number(&updates(dir.path(), "clipped", &["algo.ddpo.adv_clip_max=1e-3"])[0], "grad_norm");
    assert!(clipped > 0.0 && clipped < 0.01 * free, "{clipped} beside {free}");
}

#[test]
fn the_kl_weight_holds_the_policy_to_the_base_model() {
    let dir = tempfile::tempdir().unwrap();
    let far = ["run.num_train_steps=8", "optimizer.learning_rate=1e-2"];
    let last_kl = |name: &str, weight: &str| {
        let updates = updates(dir.path(), name, &[&far[..], &[weight]].concat());
        // The policy is the base model at first.
        assert_eq!(number(&updates[0], "kl"), 0.0);
        number(updates.last().unwrap(), "kl")
    };
    // Any weight above 0 measures the divergence at every timestep, so that the two can be compared.
    let (free, held) = (last_kl("free", "algo.ddpo.kl_weight=1e-9"), last_kl("held", "algo.ddpo.kl_weight=1e4"));
    assert!(held > 0.0 && held < 0.5 * free, "{held} beside {free}");
}

/// With updates that may be left out, the epoch is drawn again for the next one.
#[test]
fn a_rollout_whose_reward_is_not_finite_is_drawn_again() {
    let dir = tempfile::tempdir().unwrap();
    let reward = dir.path().join("reward");
    copy_dir(&root().join("tests/golden/blip_reward_tiny/model"), &reward);
    std::fs::remove_file(reward.join("model.pt")).unwrap();
    crate::crash::poison(&reward.join("model.safetensors"), "mlp.layers.0.weight");
    let weights = format!("reward={{ vp_score = {{ weights = \"{}\" }} }}", reward.display());
    for (algo, own) in [("ddpo", &DDPO[..]), ("d3po", &D3PO[..])] {
        let finished = run(&args(algo, &dir.path().join(algo), own, &["--set", &weights, "--set", "guard.max_skips=1"]));
        assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
        assert!(finished.stderr().contains("update 2: the reward of image 0 of epoch 1 (NaN) is not finite"), "{}", finished.stderr());
    }
}

/// Exit 1, the image is named, and the run can be resumed, which fails again in the same place.
#[test]
fn a_reward_that_is_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    let reward = dir.path().join("reward");
    copy_dir(&root().join("tests/golden/blip_reward_tiny/model"), &reward);
    std::fs::remove_file(reward.join("model.pt")).unwrap();
    crate::crash::poison(&reward.join("model.safetensors"), "mlp.layers.0.weight");
    let weights = format!("reward={{ vp_score = {{ weights = \"{}\" }} }}", reward.display());
    let output = dir.path().join("run");
    let finished = run(&args("ddpo", &output, &DDPO, &["--set", &weights]));
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("update 1: the reward of image 0 of epoch 1 (NaN) is not finite"), "{}", finished.stderr());
    let again = run(&["train", "--resume", output.to_str().unwrap()]);
    assert!(again.code() == Some(1) && again.stderr().contains("the reward of image 0 of epoch 1"), "{}", again.stderr());
}
