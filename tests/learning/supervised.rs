//! Training on given images must lower its loss on images it has not seen, and leave the model alone at learning rate 0.

use vp_models::parameters::named_parameters;
use vp_models::pipeline::{LoadedDenoiser, Trainable};
use vp_models::vae::AutoencoderKL;
use vp_trainers::assembly::Assembly;

use crate::{Trained, assembled, assert_above_chance, assert_same, shipped, train};

fn overrides(seed: u64, steps: u64, learning_rate: f64) -> Vec<String> {
    let mut overrides: Vec<String> = ["data.validation_every=0", "checkpoint.every=0"].map(String::from).into();
    overrides.push(format!("run.seed={seed}"));
    overrides.push(format!("run.num_train_steps={steps}"));
    overrides.push(format!("optimizer.learning_rate={learning_rate}"));
    overrides
}

fn sft(name: &str, seed: u64, learning_rate: f64, trainable: &str) -> Trained<Trainable<LoadedDenoiser>> {
    let mut overrides = overrides(seed, 25, learning_rate);
    overrides.push(format!("model.trainable={trainable}"));
    let mut config = shipped("configs/sft/tiny.toml", &overrides);
    config.preview = None;
    let Assembly::Captions(assembled) = assembled(&config) else { unreachable!("by captions") };
    train(name, *assembled)
}

fn vae(name: &str, seed: u64, learning_rate: f64, fresh: bool) -> Trained<AutoencoderKL> {
    let mut overrides = overrides(seed, 20, learning_rate);
    overrides.push(format!("model.initialize={fresh}"));
    let Assembly::Autoencoder(assembled) = assembled(&shipped("configs/vae/tiny.toml", &overrides)) else { unreachable!("by images") };
    train(name, *assembled)
}

#[test]
fn sft_lowers_its_validation_loss_by_three_tenths() {
    assert_above_chance("sft: what the loss falls by beyond 30 %", |seed| {
        let [before, after] = sft(&format!("sft-{seed}"), seed, 2e-3, r"^unet\.").first_measure();
        0.7 - after / before
    });
}

#[test]
fn sft_of_the_text_encoder_alone_changes_it_alone_and_lowers_the_loss() {
    let trained = sft("sft-text", 0, 5e-3, r"^text_encoder\.");
    let [before, after] = trained.first_measure();
    assert!(after < before, "{before:.4} before, {after:.4} after");
    assert_same(&trained.first.denoiser, &trained.tuned.denoiser);
    let (first, tuned) = (named_parameters(&trained.first), named_parameters(&trained.tuned));
    assert!(first.iter().zip(&tuned).any(|(first, tuned)| first.values.to_data() != tuned.values.to_data()));
}

#[test]
fn sft_with_learning_rate_0_changes_nothing() {
    sft("sft-still", 0, 0.0, r"^(unet|text_encoder)\.").assert_untouched();
}

#[test]
fn the_autoencoder_lowers_its_validation_loss_also_from_nothing() {
    for fresh in [false, true] {
        assert_above_chance(&format!("vae, fresh {fresh}: what the loss falls by beyond 15 %"), |seed| {
            let [before, after] = vae(&format!("vae-{fresh}-{seed}"), seed, 2e-3, fresh).first_measure();
            0.85 - after / before
        });
    }
}

#[test]
fn the_autoencoder_with_learning_rate_0_changes_nothing() {
    vae("vae-still", 0, 0.0, false).assert_untouched();
}
