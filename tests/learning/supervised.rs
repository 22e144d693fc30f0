//! Supervised training must lower its loss on images it has not seen, and leave the model alone at learning rate 0.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use vp_core::config;
use vp_core::noise::Noise;
use vp_core::run_dir::RunDir;
use vp_models::parameters::{initialize, named_parameters};
use vp_models::pipeline::{ModelFolder, Pipeline, load_vae};
use vp_models::vae::AutoencoderKL;
use vp_schedulers::build_scheduler;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::data::images::CaptionedImages;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

use crate::{Model, Scratch, mean};

/// A shipped config with overrides, and its images.
fn shipped(path: &str, overrides: &[String]) -> (TrainConfig, ModelFolder, CaptionedImages) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config: TrainConfig = config::read(&root.join(path), overrides).unwrap();
    config.model.path = root.join(&config.model.path);
    let folder = ModelFolder::open(&config.model.path).unwrap();
    let mut data = config.data.clone().unwrap();
    data.folder = root.join(&data.folder);
    let size = config.model.size.unwrap_or(folder.default_size());
    let images = CaptionedImages::open(&data, true, size, Noise::new(config.run.seed), &Device::flex()).unwrap();
    (config, folder, images)
}

pub fn begin<M: Module>(name: &str, model: M, config: &TrainConfig) -> (Run<M>, Scratch) {
    let scratch = Scratch(std::env::temp_dir().join(format!("vp-learning-{name}-{}", std::process::id())));
    let journal = |_| Ok(Journal::new(RunDir::create(&scratch.0, "")?, Silent));
    (Run::new(model, config.settings(), Start::default(), journal).unwrap(), scratch)
}

fn overrides(seed: u64, steps: u64, learning_rate: f64) -> Vec<String> {
    let mut overrides: Vec<String> = ["data.validation_every=0", "checkpoint.every=0"].map(String::from).into();
    overrides.push(format!("run.seed={seed}"));
    overrides.push(format!("run.num_train_steps={steps}"));
    overrides.push(format!("optimizer.learning_rate={learning_rate}"));
    overrides
}

/// Base, tuned, and the mean validation losses of both.
fn sft(name: &str, seed: u64, learning_rate: f64, trainable: &str) -> (Model, Model, [f64; 2]) {
    let mut overrides = overrides(seed, 25, learning_rate);
    overrides.push(format!("model.trainable={trainable}"));
    let (config, folder, mut images) = shipped("configs/sft/tiny.toml", &overrides);
    let (pipeline, unet) = Pipeline::load(folder, &Device::flex()).unwrap();
    let base = pipeline.trainable(unet, &regex::Regex::new(trainable).unwrap());
    let (mut run, _scratch) = begin(name, base.clone(), &config);
    let AlgorithmConfig::Sft(sft) = &config.algo else { panic!("{config:?}") };
    sft.train(&mut run, &pipeline, &mut images, None).unwrap();
    let tuned = run.tuned();
    let schedule = build_scheduler(&pipeline.folder.scheduler_config, None, 1, 0.0).unwrap();
    let loss = |model: &Model| mean(&sft.validate(model, &pipeline, &images, (&*schedule, Noise::new(seed)), 0).unwrap());
    let losses = [loss(&base), loss(&tuned)];
    (base, tuned, losses)
}

/// The same of the autoencoder.
fn vae(name: &str, seed: u64, learning_rate: f64, fresh: bool) -> (AutoencoderKL, AutoencoderKL, [f64; 2]) {
    let (config, folder, mut images) = shipped("configs/vae/tiny.toml", &overrides(seed, 20, learning_rate));
    let base = if fresh {
        initialize(folder.vae_config().init(&Device::flex()), &Noise::new(seed))
    } else {
        load_vae(&folder, &Device::flex()).unwrap()
    };
    let (mut run, _scratch) = begin(name, base.clone(), &config);
    let AlgorithmConfig::Vae(vae) = &config.algo else { panic!("{config:?}") };
    vae.train(&mut run, &mut images).unwrap();
    let tuned = run.tuned();
    let loss = |model: &AutoencoderKL| mean(&vae.validate(model, &images, 0).unwrap().scores[0].1);
    let losses = [loss(&base), loss(&tuned)];
    (base, tuned, losses)
}

pub fn assert_same<M: Module>(base: &M, tuned: &M) {
    for (base, tuned) in named_parameters(base).into_iter().zip(named_parameters(tuned)) {
        base.values.into_data().assert_eq(&tuned.values.into_data(), true);
    }
}

#[test]
fn sft_lowers_its_validation_loss() {
    for seed in 0..3 {
        let (_, _, [before, after]) = sft(&format!("sft-{seed}"), seed, 2e-3, r"^unet\.");
        assert!(after < 0.7 * before, "seed {seed}: {before:.3} before, {after:.3} after");
    }
}

#[test]
fn sft_of_the_text_encoder_alone_changes_it_alone_and_lowers_the_loss() {
    let (base, tuned, [before, after]) = sft("sft-text", 0, 5e-3, r"^text_encoder\.");
    assert!(after < before, "{before:.4} before, {after:.4} after");
    assert_same(&base.unet, &tuned.unet);
    let (base, tuned) = (named_parameters(&base.text_encoder), named_parameters(&tuned.text_encoder));
    assert!(base.iter().zip(&tuned).any(|(base, tuned)| base.values.to_data() != tuned.values.to_data()));
}

#[test]
fn sft_with_learning_rate_0_changes_nothing() {
    let (base, tuned, [before, after]) = sft("sft-still", 0, 0.0, r"^(unet|text_encoder)\.");
    assert_eq!(before, after);
    assert_same(&base, &tuned);
}

#[test]
fn vae_lowers_its_validation_loss_also_from_nothing() {
    for (seed, fresh) in [(0, false), (1, false), (2, true)] {
        let (_, _, [before, after]) = vae(&format!("vae-{seed}"), seed, 2e-3, fresh);
        assert!(after < 0.85 * before, "seed {seed}: {before:.3} before, {after:.3} after");
    }
}

#[test]
fn vae_with_learning_rate_0_changes_nothing() {
    let (base, tuned, [before, after]) = vae("vae-still", 0, 0.0, false);
    assert_eq!(before, after);
    assert_same(&base, &tuned);
}
