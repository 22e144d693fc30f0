//! Diffusion-KTO must come to like liked images that it has not seen more than disliked ones, and leave the model alone at learning rate 0.

use vp_models::pipeline::{LoadedDenoiser, Trainable};
use vp_trainers::assembly::Assembly;

use crate::pairs::{implicit_accuracy, with_latents_of_unit_size, write_list};
use crate::{Scratch, Trained, assembled, assert_above_chance, shipped};

/// A tiny model that likes plain pictures and dislikes coloured noise.
fn train(name: &str, seed: u64, learning_rate: f64) -> Trained<Trainable<LoadedDenoiser>> {
    let mut overrides: Vec<String> = [
        "run.num_train_steps=20",
        "preferences.caption_dropout=0.0",
        "preferences.validation_every=0",
        "algo.kto.batch_size=16",
        "algo.kto.liked_share=0.5",
        "checkpoint.every=0",
    ]
    .map(String::from)
    .into();
    overrides.push(format!("run.seed={seed}"));
    overrides.push(format!("optimizer.learning_rate={learning_rate}"));
    let mut config = shipped("configs/kto/tiny.toml", &overrides);
    config.preview = None;
    let images = Scratch::new(&format!("{name}-likes"));
    let labelled =
        |prompt: &str, image: &str, label: bool| format!("{{\"prompt\": \"{prompt}\", \"image\": \"{image}\", \"label\": {label}}}\n");
    let list = write_list(&images.0, |prompt, [plain, grain]| labelled(prompt, plain, true) + &labelled(prompt, grain, false));
    config.preferences.as_mut().unwrap().file = list;
    let Assembly::Likes(mut assembled) = assembled(&config) else { unreachable!("by likes") };
    assembled.pipeline.vae = with_latents_of_unit_size(assembled.pipeline.vae);
    crate::train(name, *assembled)
}

#[test]
fn kto_comes_to_like_liked_images_that_it_has_not_seen() {
    // The reference itself likes neither kind more than the other.
    assert_above_chance("kto: implicit accuracy above 0.5", |seed| implicit_accuracy(&train(&format!("kto-{seed}"), seed, 5e-3))[1] - 0.5);
}

#[test]
fn kto_with_learning_rate_0_changes_nothing() {
    let trained = train("kto-still", 0, 0.0);
    assert_eq!(implicit_accuracy(&trained), [0.5, 0.5]);
    // The utility of the reference itself is one half.
    assert!(trained.first_measure().iter().all(|loss| (loss - 0.5).abs() < 1e-12), "{:?}", trained.first_measure());
    trained.assert_untouched();
}
