//! Learning tests: an algorithm must raise its reward, by more than chance explains, and must leave the model alone when its
//! learning rate is 0.

mod direct;
mod dpo;
mod policy_gradient;
mod reward_model;
mod supervised;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use vp_core::config;
use vp_core::noise::Noise;
use vp_core::run_dir::RunDir;
use vp_models::parameters::{NamedParameter, named_parameters};
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::unet::UNet2DConditionModel;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::environment::Environment;
use vp_trainers::regularizer::Regularizer;
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

/// Removes its folder when it goes out of scope.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Model = Trainable<UNet2DConditionModel>;

/// What a run came to.
struct Trained {
    base: Model,
    tuned: Model,
    /// The trained reward's score of each preview image.
    before: Vec<f64>,
    after: Vec<f64>,
}

/// Runs a shipped config with overrides.
fn train(name: &str, config_path: &str, overrides: &[String]) -> Trained {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config: TrainConfig = config::read(&root.join(config_path), overrides).unwrap();
    config.model.path = root.join(&config.model.path);
    let scratch = Scratch(std::env::temp_dir().join(format!("vp-learning-{name}-{}", std::process::id())));
    let (device, noise) = (Device::flex(), Noise::new(config.run.seed));
    let folder = ModelFolder::open(&config.model.path).unwrap();
    let size = config.model.size.unwrap_or(folder.default_size());
    let (pipeline, unet) = Pipeline::load(folder, &device).unwrap();
    let sections = config.reward_driven().unwrap();
    let rewards = (sections.reward.build(&device).unwrap(), config.watch.iter().map(|watch| watch.build(&device).unwrap()).collect());
    let prompts = (sections.prompts.list.clone(), noise);
    let sections = (sections.scheduler.clone(), sections.preview.clone());
    let (base, model) = config.models(&pipeline, unet, &noise).unwrap();
    let mut environment = Environment::new((pipeline, base.clone()), rewards, sections, prompts, size).unwrap();
    let mut regularizer = Regularizer::new(&config.regularizer.clone().unwrap_or_default(), noise).unwrap();
    let journal = |_| Ok(Journal::new(RunDir::create(&scratch.0, "")?, Silent));
    let mut run = Run::new(model, config.settings(), Start::default(), journal).unwrap();
    match &config.algo {
        AlgorithmConfig::Refl(refl) => refl.train(&mut run, &mut environment, &mut regularizer).unwrap(),
        AlgorithmConfig::Draft(draft) => draft.train(&mut run, &mut environment, &mut regularizer).unwrap(),
        AlgorithmConfig::AlignProp(align_prop) => align_prop.train(&mut run, &mut environment, &mut regularizer).unwrap(),
        AlgorithmConfig::DrTune(drtune) => drtune.train(&mut run, &mut environment, &mut regularizer).unwrap(),
        AlgorithmConfig::Ddpo(ddpo) => ddpo.train(&mut run, &mut environment, &mut Regularizer::None).unwrap(),
        AlgorithmConfig::D3po(d3po) => d3po.train(&mut run, &mut environment).unwrap(),
        other => panic!("{} is not driven by a reward", other.name()),
    }
    let scores = |model: &Model| environment.preview(model, 0).unwrap().scores[0].1.clone();
    let tuned = run.tuned();
    Trained { before: scores(&base), after: scores(&tuned), base, tuned }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean and standard error.
fn estimate(values: &[f64]) -> (f64, f64) {
    let (n, mean) = (values.len() as f64, mean(values));
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// That a model was left alone: every parameter of `tuned` that `base` has too is the same, and factors still add nothing.
fn assert_untouched(Trained { base, tuned, before, after }: &Trained) {
    assert_eq!(before, after);
    let tuned = named_parameters(tuned);
    for base in named_parameters(base) {
        let tuned = tuned.iter().find(|parameter| parameter.name == base.name).expect("the same network");
        base.values.into_data().assert_eq(&tuned.values.to_data(), true);
    }
    let largest_of = |parameter: &&NamedParameter| parameter.values.clone().abs().max().into_scalar::<f32>();
    let ups: Vec<f32> = tuned.iter().filter(|parameter| parameter.name.ends_with(".lora.up.weight")).map(|p| largest_of(&p)).collect();
    assert!(ups.iter().all(|largest| *largest == 0.0));
}

/// Three seeds: the reward's mean gain must be three standard errors above nothing.
fn assert_gain(what: &str, gain: impl Fn(u64) -> Trained) {
    let gains: Vec<f64> = (0..3)
        .map(|seed| {
            let Trained { before, after, .. } = gain(seed);
            mean(&after) - mean(&before)
        })
        .collect();
    let (gain, error) = estimate(&gains);
    let line = format!("{what} rose by {gain:.4} ± {error:.4} (three seeds: {gains:.4?})");
    println!("{line}");
    assert!(gain > 0.0 && gain >= 3.0 * error, "{line}");
}

/// ReFL on brightness, short and small.
fn refl(seed: u64, learning_rate: f64) -> Vec<String> {
    let preview_seeds: Vec<u64> = (0..8).map(|i| 1000 * (seed + 1) + i).collect();
    [
        format!("run.seed={seed}"),
        "run.num_train_steps=16".into(),
        // Brightness varies by a hundredth, a reward of standard deviation 1 by a hundred times as much: the published
        // grad_scale of 1e-3, for the latter, would leave the regulariser alone in the field.
        "reward={ brightness = {} }".into(),
        "algo.refl.grad_scale=1.0".into(),
        "watch=[{ saturation = {} }]".into(),
        "scheduler.num_inference_steps=10".into(),
        "algo.refl.min_mid_step=6".into(),
        "algo.refl.max_mid_step=8".into(),
        "algo.refl.batch_size=4".into(),
        "optimizer.gradient_accumulation_steps=1".into(),
        format!("optimizer.learning_rate={learning_rate}"),
        format!("preview.seeds={preview_seeds:?}"),
        "preview.guidance_scale=1.0".into(),
    ]
    .into()
}

#[test]
fn refl_raises_brightness() {
    assert_gain("brightness", |seed| train(&format!("refl-{seed}"), "configs/refl/tiny.toml", &refl(seed, 5e-3)));
}

#[test]
fn refl_with_learning_rate_0_changes_nothing() {
    assert_untouched(&train("refl-still", "configs/refl/tiny.toml", &refl(0, 0.0)));
}
