//! Every algorithm that is driven by a reward must raise it.

use vp_models::parameters::named_parameters;
use vp_models::pipeline::{LoadedDenoiser, Trainable};
use vp_trainers::algorithm::Driver;
use vp_trainers::assembly::Assembly;
use vp_trainers::config::AlgorithmConfig;

use crate::{Trained, assembled, assert_above_chance, shipped, train};

type Model = Trainable<LoadedDenoiser>;

/// A shipped config with overrides, on a reward that is easily raised.
fn run(algo: &str, name: &str, seed: u64, overrides: &[&str]) -> Trained<Model> {
    let seeds: Vec<u64> = (0..12).map(|i| 1000 * (seed + 1) + i).collect();
    let mut all: Vec<String> = [
        format!("run.seed={seed}"),
        "reward={ brightness = {} }".into(),
        "watch=[{ saturation = {} }]".into(),
        format!("preview.seeds={seeds:?}"),
        "checkpoint.every=0".into(),
    ]
    .into();
    all.extend(overrides.iter().map(|set| set.to_string()));
    // The number format of all runs here: VP_DTYPE=bf16 cargo test --release --test learning
    all.extend(std::env::var("VP_DTYPE").map(|dtype| format!("model.dtype={dtype}")));
    let Assembly::Reward(assembled) = assembled(&shipped(&format!("configs/{algo}/tiny.toml"), &all)) else { unreachable!("by a reward") };
    train(name, *assembled)
}

/// Every algorithm of the table that is driven by a reward, with the overrides of its learning test.
fn algorithms() -> Vec<(&'static str, &'static [&'static str])> {
    let with_overrides = |name: &'static str| {
        let path = ["tiny", "shapes"].map(|preset| format!("configs/{name}/{preset}.toml"));
        let path = path.iter().find(|path| crate::root().join(path).is_file()).expect("a config that runs offline");
        let config = shipped(path, &[]);
        match config.algo.chosen().driver() {
            Driver::Reward(algorithm) => Some((name, algorithm.learning_test())),
            _ => None,
        }
    };
    AlgorithmConfig::ENTRIES.iter().filter_map(|entry| with_overrides(entry.name)).collect()
}

#[test]
fn every_algorithm_that_is_driven_by_a_reward_raises_brightness() {
    let algorithms = algorithms();
    assert!(algorithms.len() >= 6, "{algorithms:?}");
    for (algo, overrides) in algorithms {
        assert_above_chance(&format!("{algo}: the gain in brightness"), |seed| {
            let [before, after] = run(algo, &format!("{algo}-{seed}"), seed, overrides).first_measure();
            after - before
        });
    }
}

#[test]
fn with_learning_rate_0_none_of_them_changes_anything() {
    for (algo, overrides) in algorithms() {
        let still = [overrides, &["optimizer.learning_rate=0.0", "run.num_train_steps=2", "preview.seeds=[1]"]].concat();
        run(algo, &format!("{algo}-still"), 0, &still).assert_untouched();
    }
}

/// A gradient through the networks, and one of log-probabilities, with frozen weights and activations of fewer bits.
#[test]
fn refl_and_ddpo_raise_brightness_in_half_precision() {
    for (algo, overrides) in algorithms().into_iter().filter(|(algo, _)| ["refl", "ddpo"].contains(algo)) {
        for dtype in ["bf16", "f16"] {
            let format = format!("model.dtype={dtype}");
            assert_above_chance(&format!("{algo} in {dtype}: the gain in brightness"), |seed| {
                let [before, after] = run(algo, &format!("{algo}-{dtype}-{seed}"), seed, &[overrides, &[&format]].concat()).first_measure();
                after - before
            });
        }
    }
}

/// Whole weights, as only large parameters have their moments in 8 bits.
#[test]
fn refl_raises_brightness_with_moments_in_8_bits() {
    let (_, overrides) = algorithms().into_iter().find(|(algo, _)| *algo == "refl").expect("ReFL");
    let eight_bits = [
        "run.num_train_steps=8",
        r"model.trainable=^unet\.",
        "optimizer.adamw.moments=8bit",
        "optimizer.learning_rate=1e-3",
        "preview.num_inference_steps=8",
    ];
    assert_above_chance("refl, moments in 8 bits: the gain in brightness", |seed| {
        let trained = run("refl", &format!("refl-8bit-{seed}"), seed, &[overrides, &eight_bits].concat());
        let large = named_parameters(&trained.first.denoiser).into_iter().filter(|parameter| parameter.values.dims()[0] >= 4096);
        assert!(large.count() >= 10, "too few parameters have 4096 values");
        let [before, after] = trained.first_measure();
        after - before
    });
}

/// A reward without a gradient; images of one prompt from the same latents, held against each other.
#[test]
fn ddpo_raises_compressibility_by_groups() {
    let (_, overrides) = algorithms().into_iter().find(|(algo, _)| *algo == "ddpo").expect("DDPO");
    let groups = [
        "reward={ jpeg_compressibility = {} }",
        "algo.ddpo.images_per_prompt=8",
        "algo.ddpo.share_initial_latents=true",
        "algo.ddpo.advantages={ group = {} }",
        "optimizer.learning_rate=3e-2",
    ];
    assert_above_chance("ddpo: the gain in compressibility", |seed| {
        let [before, after] = run("ddpo", &format!("ddpo-groups-{seed}"), seed, &[overrides, &groups].concat()).first_measure();
        after - before
    });
}

/// Two updates per epoch: the second is the one that the objectives differ in.
#[test]
fn ddpo_raises_brightness_with_every_objective() {
    let (_, overrides) = algorithms().into_iter().find(|(algo, _)| *algo == "ddpo").expect("DDPO");
    let twice = ["run.num_train_steps=40", "algo.ddpo.train_batch_size=32", "algo.ddpo.clip_range=1e-3", "optimizer.learning_rate=1e-2"];
    for (name, objective) in [
        ("mask", "algo.ddpo.objective={ kl_mask = { threshold = 1e-5 } }"),
        ("corrected", "algo.ddpo.objective=corrected_ratio"),
        ("hinge", "algo.ddpo.objective=hinge"),
    ] {
        assert_above_chance(&format!("ddpo, {objective}: the gain in brightness"), |seed| {
            let all = [overrides, &twice, &[objective]].concat();
            let [before, after] = run("ddpo", &format!("ddpo-{name}-{seed}"), seed, &all).first_measure();
            after - before
        });
    }
}
