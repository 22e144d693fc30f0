use std::path::{Path, PathBuf};

use vp_core::config;
use vp_models::NumberFormat;
use vp_models::footprint::{ModelSizes, Published};
use vp_models::pipeline::ModelFolder;

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The shipped config of this name, with overrides.
fn shipped(name: &str, overrides: &[&str]) -> TrainConfig {
    let text = std::fs::read_to_string(root().join("configs").join(name)).unwrap();
    // Paths of weights are looked up when a config is checked; those of the published recipes are not here.
    let text = text.replace("weights = \"ImageReward\"", "weights = \"embedded:none\"");
    let text = text.replace("tests/golden", root().join("tests/golden").to_str().unwrap());
    let overrides: Vec<String> = overrides.iter().map(|flag| (*flag).to_string()).collect();
    config::parse(&text, name, &overrides).unwrap()
}

fn published(config: &TrainConfig, model: Published) -> Networks {
    let reward = config.reward.as_ref().map_or_else(Vec::new, |reward| reward.networks().unwrap());
    Networks { model: model.sizes(), assumed: Some(model), reward, watched: Vec::new() }
}

fn peak(config: &TrainConfig, networks: &Networks, engine: Engine) -> u64 {
    MemoryPlan::of(config, networks, engine).unwrap().peak().1
}

/// What trains is what `Run` would select, to the value.
#[test]
fn what_trains_is_counted_as_the_run_counts_it() {
    let folder = ModelFolder::open(&root().join("tests/golden/sd15_tiny/pipeline")).unwrap();
    for overrides in [
        &[][..],
        &["lora.targets=^(unet|text_encoder)\\..*(attn[12]\\.to_|self_attn\\.)"],
        &["lora.targets=^unet\\."],
        &["model.trainable=^unet\\.up_blocks"],
    ] {
        let config = shipped("refl/tiny.toml", overrides);
        let networks = Networks { model: ModelSizes::of(&folder), assumed: None, reward: Vec::new(), watched: Vec::new() };
        let plan = MemoryPlan::of(&config, &networks, Engine::Cpu).unwrap();
        let (pipeline, denoiser) = vp_models::pipeline::Pipeline::load(folder.clone(), &burn::tensor::Device::flex()).unwrap();
        let (_, model) = config.models(&pipeline, denoiser, &vp_core::noise::Noise::new(0)).unwrap();
        let pattern = config.trainable_pattern().unwrap();
        let (_, expected) = vp_models::parameters::select_trainable(model, &pattern);
        assert_eq!(plan.trained, expected as u64, "{overrides:?}");
    }
}

/// Every algorithm that trains a denoiser has a plan on both engines, whose peak is above what stays; the others say why not.
#[test]
fn every_algorithm_has_a_plan() {
    for entry in crate::config::AlgorithmConfig::ENTRIES {
        let config = shipped(&format!("{}/{}.toml", entry.name, if entry.name == "reward_model" { "imagereward" } else { "sd15" }), &[]);
        let networks = published(&config, Published::One);
        for engine in [Engine::Cpu, Engine::Gpu] {
            match MemoryPlan::of(&config, &networks, engine) {
                Ok(plan) => {
                    let (phase, peak) = plan.peak();
                    assert!(peak > plan.fixed() && plan.fixed() > 1 << 30, "{}: {peak} in {phase:?}", entry.name);
                }
                Err(error) => assert!(["vae", "reward_model"].contains(&entry.name), "{}: {error}", entry.name),
            }
        }
    }
}

#[test]
fn more_images_take_more_and_recomputation_takes_less() {
    let networks = |config: &TrainConfig| published(config, Published::One);
    let config = |overrides: &[&str]| shipped("refl/sd15.toml", overrides);
    let of = |overrides: &[&str]| {
        let config = config(overrides);
        peak(&config, &networks(&config), Engine::Cpu)
    };
    let everything = "model.gradient_checkpointing=none";
    assert!(of(&["algo.refl.batch_size=4"]) > of(&["algo.refl.batch_size=2"]));
    assert!(of(&[everything]) > of(&[]));
    assert!(of(&["model.size=[768,768]"]) > of(&[]));
    // The guided call takes both branches.
    assert!(of(&[everything, "algo.refl.guidance_scale=5"]) > of(&[everything]));
    let whole = ["model.trainable=^unet\\."];
    assert!(of(&whole) > of(&[]) + (3 << 30) * 4);
    assert!(of(&[whole[0], "optimizer.adamw.moments=8bit"]) < of(&whole) - (4 << 30));
}

/// SD 1.5 in bf16 halves its frozen weights, but they are read as f32.
#[test]
fn half_precision_is_counted_and_so_is_reading() {
    let config = shipped("refl/sd15.toml", &["model.dtype=bf16"]);
    let plan = MemoryPlan::of(&config, &published(&config, Published::One), Engine::Gpu).unwrap();
    let unet = plan.parts.iter().find(|part| part.name == "UNet").unwrap();
    assert_eq!(unet.bytes, 2 * 859_520_964);
    let (_, at_load) = plan.phases.iter().find(|(phase, _)| *phase == Phase::Load).unwrap();
    assert!(*at_load > 1 << 30, "{at_load}");
    assert_eq!(format(Some(Dtype::Auto), Engine::Cpu), NumberFormat::F32);
}

#[test]
fn advice_saves_what_it_says() {
    let config = shipped("refl/sd15.toml", &["model.gradient_checkpointing=none"]);
    let networks = published(&config, Published::One);
    let advice = savings(&config, &networks, Engine::Cpu).unwrap();
    let blocks = advice.iter().find(|advice| advice.setting.starts_with("model.gradient_checkpointing")).unwrap();
    let with = shipped("refl/sd15.toml", &[]);
    assert_eq!(blocks.saves, peak(&config, &networks, Engine::Cpu) - peak(&with, &networks, Engine::Cpu));
    assert!(blocks.alike && advice.windows(2).all(|two| two[0].saves >= two[1].saves));

    let limit = peak(&config, &networks, Engine::Cpu);
    let largest =
        |config: &TrainConfig, networks: &Networks, engine, limit| ByBatch::new(config, networks, engine).unwrap().largest(limit).unwrap();
    let found = largest(&config, &networks, Engine::Cpu, limit);
    assert_eq!(found, [Largest { key: "algo.refl.batch_size".into(), value: Some(2) }]);
    let ddpo = shipped("ddpo/sd15.toml", &[]);
    let found = largest(&ddpo, &published(&ddpo, Published::Xl), Engine::Gpu, 100 << 30);
    let keys: Vec<&str> = found.iter().map(|largest| largest.key.as_str()).collect();
    assert_eq!(keys, ["algo.ddpo.train_batch_size", "algo.ddpo.sample_batch_size"]);
}
