//! The models in `checkpoints`: what their cards say of them holds.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use vp_core::noise::{Noise, Purpose};
use vp_data::{RgbImage, from_tensor, to_tensor};
use vp_models::pipeline::{ModelFolder, Pipeline, Request, Trainable, load_vae};
use vp_schedulers::build_sampler;
use vp_shapes::{Description, Scene, Split, judge, render};

/// A part of the card's 400 prompts: one in four keeps the test short.
const PROMPTS: u64 = 100;

fn folder(name: &str) -> ModelFolder {
    ModelFolder::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name)).unwrap()
}

/// A caption and a scene that it is true of.
fn wanted(split: Split, seed: u64, index: u64) -> (String, Scene) {
    let mut rng = Noise::new(seed).stream(Purpose::SCENE, split as u64, index);
    let (description, caption) = split.prompt(&mut rng);
    (caption, Scene::of(&description, &mut rng))
}

fn passes(image: &RgbImage, caption: &str) -> bool {
    judge(image, &Description::parse(caption).unwrap()).passes()
}

#[test]
fn reconstructions_pass_the_judge() {
    let (device, folder) = (Device::flex(), folder("shapes"));
    let vae = load_vae(&folder, &device).unwrap();
    let (captions, scenes): (Vec<String>, Vec<Scene>) = (0..200).map(|index| wanted(Split::Train, 4321, index)).unzip();
    let images: Vec<RgbImage> = scenes.iter().map(|scene| render(scene, folder.default_size()[0] as u32)).collect();
    let latents = vae.encode(to_tensor(&images, &device).unwrap() * 2.0 - 1.0).mean;
    let decoded = from_tensor((vae.decode(latents) / 2.0 + 0.5).clamp(0.0, 1.0)).unwrap();
    let passed = decoded.iter().zip(&captions).filter(|(image, caption)| passes(image, caption)).count();
    assert!(passed >= 190, "{passed} of 200 reconstructions pass");
}

/// How many of the first [`PROMPTS`] of a split a model draws so that every claim holds, in 20 steps with guidance 3.
fn passed(model: &str, split: Split) -> usize {
    let device = Device::flex();
    let (pipeline, unet) = Pipeline::load(folder(model), &device).unwrap();
    let (model, size) = (Trainable::of(unet), pipeline.folder.default_size());
    let mut sampler = build_sampler(&pipeline.folder.scheduler_config, None, 20, 0.0).unwrap();
    let mut passed = 0;
    for start in (0..PROMPTS).step_by(50) {
        let numbers: Vec<u64> = (start..PROMPTS.min(start + 50)).collect();
        let prompts: Vec<String> = numbers.iter().map(|index| wanted(split, 0, *index).0).collect();
        let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale: 3.0, size };
        let latents = Noise::new(0).normal(Purpose::INITIAL_LATENTS, 0, &numbers, pipeline.latent_shape(size), &device);
        let mut noise = |_: usize| -> Tensor<4> { unreachable!("DDIM without eta draws none") };
        let images = from_tensor(pipeline.generate(&model, &mut *sampler, &request, latents, &mut noise)).unwrap();
        passed += images.iter().zip(&prompts).filter(|(image, prompt)| passes(image, prompt)).count();
    }
    passed
}

/// The card's share as `passes` of `total`.
fn card() -> (f64, f64) {
    let card = include_str!("../checkpoints/shapes/README.md");
    let line = card.lines().find(|line| line.starts_with("| every claim |")).expect("the card has a row for every claim");
    let numbers: Vec<f64> = line.split(['|', ' ']).filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

/// Prompts of `test` pass as often as the card says, within the 99.9 % interval of so few.
#[test]
fn test_prompts_pass_as_the_card_says() {
    let passed = passed("shapes", Split::Test);
    let (passes, total) = card();
    let share = passes / total;
    let deviation = 3.3 * (share * (1.0 - share) * (1.0 / PROMPTS as f64 - 1.0 / total)).sqrt();
    let found = passed as f64 / PROMPTS as f64;
    assert!((found - share).abs() <= deviation, "{passed} of {PROMPTS} pass; the card says {share:.3}, so within {deviation:.3} of that");
}
