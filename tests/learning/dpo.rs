//! Diffusion-DPO must come to prefer the chosen images of pairs it has not seen, and leave the model alone at learning rate 0.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use vp_core::config;
use vp_core::noise::{Noise, Purpose};
use vp_core::run_dir::RunDir;
use vp_data::{RgbImage, write_png};
use vp_models::parameters::{map_parameters, named_parameters};
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::vae::AutoencoderKL;
use vp_schedulers::build_scheduler;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::data::preferences::PreferencePairs;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};
use vp_trainers::supervised::dpo::Frozen;

use crate::{Model, Scratch, estimate, mean};

/// The tiny autoencoder with what a trained one has: latents of about unit size that tell pictures apart, and a narrow posterior. As
/// it is, its random weights leave a picture a quarter of the posterior's own noise.
fn with_latents_of_unit_size(vae: AutoencoderKL) -> AutoencoderKL {
    map_parameters(vae, |name, _, values| {
        let half = values.dims()[0] / 2;
        let (means, log_variances) = (values.clone().narrow(0, 0, half), values.clone().narrow(0, half, half));
        match name {
            "quant_conv.weight" => Tensor::cat(vec![means * 25.0, log_variances * 0.0], 0),
            "quant_conv.bias" => Tensor::cat(vec![means * 25.0, log_variances * 0.0 - 8.0], 0),
            _ => values,
        }
    })
}

/// Pairs of a plain picture, chosen, and one of coloured noise, rejected; four a prompt.
fn write_pairs(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let noise = Noise::new(0);
    let level = |place: u64, entry: u64| noise.integer(Purpose::AUGMENTATION, place, entry, 0, 255) as u8;
    let mut list = String::new();
    for i in 0..48 {
        let color = [0, 1, 2].map(|channel| level(i, channel));
        let pixel = |x: u32, y: u32, channel: u64| level(i, 3 + u64::from(64 * y + x) * 3 + channel);
        let plain = RgbImage::from_pixel(64, 64, color.into());
        let grain = RgbImage::from_fn(64, 64, |x, y| [0, 1, 2].map(|channel| pixel(x, y, channel)).into());
        for (side, image) in [("chosen", plain), ("rejected", grain)] {
            write_png::<&str, &str>(folder.join(format!("{side}-{i}.png")), &image, &[]).unwrap();
        }
        let prompt = format!("picture {}", i / 4);
        list += &format!("{{\"prompt\": \"{prompt}\", \"chosen\": \"chosen-{i}.png\", \"rejected\": \"rejected-{i}.png\"}}\n");
    }
    let path = folder.join("pairs.jsonl");
    std::fs::write(&path, list).unwrap();
    path
}

/// Base, tuned, and the implicit accuracy of the tuned one on held-out pairs.
fn train(name: &str, seed: u64, learning_rate: f64) -> (Model, Model, f64) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut overrides: Vec<String> =
        ["run.num_train_steps=10", "preferences.caption_dropout=0.0", "preferences.validation_every=0", "checkpoint.every=0"]
            .map(String::from)
            .into();
    overrides.push(format!("run.seed={seed}"));
    overrides.push(format!("optimizer.learning_rate={learning_rate}"));
    let mut config: TrainConfig = config::read(&root.join("configs/dpo/tiny.toml"), &overrides).unwrap();
    let mut section = config.preferences.clone().unwrap();
    let scratch = Scratch(std::env::temp_dir().join(format!("vp-learning-{name}-{}", std::process::id())));
    (config.model.path, section.file) = (root.join(&config.model.path), write_pairs(&scratch.0.join("pairs")));
    let (device, noise) = (Device::flex(), Noise::new(seed));
    let folder = ModelFolder::open(&config.model.path).unwrap();
    let mut pairs = PreferencePairs::open(&section, folder.default_size(), noise, &device).unwrap();
    let (mut pipeline, unet) = Pipeline::load(folder, &device).unwrap();
    pipeline.vae = with_latents_of_unit_size(pipeline.vae);
    let (base, model) = config.models(&pipeline, unet, &noise).unwrap();
    let journal = |_| Ok(Journal::new(RunDir::create(&scratch.0.join("run"), "")?, Silent));
    let mut run = Run::new(model, config.settings(), Start::default(), journal).unwrap();
    let AlgorithmConfig::Dpo(dpo) = &config.algo else { panic!("{config:?}") };
    let frozen = Frozen { pipeline: &pipeline, base: &base };
    dpo.train(&mut run, &frozen, &mut pairs, None).unwrap();
    let tuned = run.tuned();
    let schedule = build_scheduler(&pipeline.folder.scheduler_config, None, 1, 0.0).unwrap();
    let validation = dpo.validate(&tuned, &frozen, &pairs, (&*schedule, noise), 0).unwrap();
    (base, tuned, mean(&validation.implicit_accuracies))
}

#[test]
fn dpo_raises_the_implicit_accuracy_on_pairs_it_has_not_seen() {
    let accuracies: Vec<f64> = (0..3).map(|seed| train(&format!("dpo-{seed}"), seed, 5e-3).2).collect();
    let (accuracy, error) = estimate(&accuracies);
    // The reference itself prefers neither image.
    assert!(accuracy - 0.5 >= 3.0 * error && accuracy > 0.6, "{accuracy:.3} ± {error:.3} (three seeds: {accuracies:?})");
}

#[test]
fn dpo_with_learning_rate_0_changes_nothing() {
    let (base, tuned, accuracy) = train("dpo-still", 0, 0.0);
    assert_eq!(accuracy, 0.5);
    // The factors are no weights of the base.
    let tuned: BTreeMap<String, Tensor<1>> =
        named_parameters(&tuned).into_iter().map(|parameter| (parameter.name, parameter.values)).collect();
    for base in named_parameters(&base) {
        base.values.into_data().assert_eq(&tuned[&base.name].to_data(), true);
    }
}
