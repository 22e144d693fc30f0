//! Diffusion-DPO must come to prefer the chosen images of pairs it has not seen, and leave the model alone at learning rate 0, or where the
//! smoothed preferences of SmPO are even.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_data::{RgbImage, write_png};
use vp_models::parameters::map_parameters;
use vp_models::pipeline::{LoadedDenoiser, Trainable};
use vp_models::vae::AutoencoderKL;
use vp_trainers::assembly::Assembly;

use crate::{Scratch, Trained, assembled, assert_above_chance, assert_same, mean, shipped};

/// The tiny autoencoder with what a trained one has: latents of about unit size that tell pictures apart, and a narrow posterior. As
/// it is, its random weights leave a picture a quarter of the posterior's own noise.
pub fn with_latents_of_unit_size(vae: AutoencoderKL) -> AutoencoderKL {
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

/// Pairs of a plain picture and one of coloured noise, four per prompt, and a list with `line` of each: its prompt, and the names of the
/// plain and of the noisy picture.
pub fn write_list(folder: &Path, line: impl Fn(&str, [&str; 2]) -> String) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let noise = Noise::new(0);
    let level = |place: u64, entry: u64| noise.integer(Purpose::AUGMENTATION, place, entry, 0, 255) as u8;
    let mut list = String::new();
    for i in 0..48 {
        let color = [0, 1, 2].map(|channel| level(i, channel));
        let pixel = |x: u32, y: u32, channel: u64| level(i, 3 + u64::from(64 * y + x) * 3 + channel);
        let plain = RgbImage::from_pixel(64, 64, color.into());
        let grain = RgbImage::from_fn(64, 64, |x, y| [0, 1, 2].map(|channel| pixel(x, y, channel)).into());
        let names = ["plain", "grain"].map(|kind| format!("{kind}-{i}.png"));
        for (name, image) in names.iter().zip([plain, grain]) {
            write_png::<&str, &str>(folder.join(name), &image, &[]).unwrap();
        }
        list += &line(&format!("picture {}", i / 4), [&names[0], &names[1]]);
    }
    let path = folder.join("list.jsonl");
    std::fs::write(&path, list).unwrap();
    path
}

/// The plain picture is chosen. `more` are further keys of each line.
fn write_pairs(folder: &Path, more: &str) -> PathBuf {
    write_list(folder, |prompt, [plain, grain]| {
        format!("{{\"prompt\": \"{prompt}\", \"chosen\": \"{plain}\", \"rejected\": \"{grain}\"{more}}}\n")
    })
}

fn train(name: &str, seed: u64, learning_rate: f64, more: &str, sets: &[&str]) -> Trained<Trainable<LoadedDenoiser>> {
    let mut overrides: Vec<String> =
        ["run.num_train_steps=10", "preferences.caption_dropout=0.0", "preferences.validation_every=0", "checkpoint.every=0"]
            .map(String::from)
            .into();
    overrides.push(format!("run.seed={seed}"));
    overrides.push(format!("optimizer.learning_rate={learning_rate}"));
    overrides.extend(sets.iter().map(|set| set.to_string()));
    let mut config = shipped("configs/dpo/tiny.toml", &overrides);
    config.preview = None;
    let pairs = Scratch::new(&format!("{name}-pairs"));
    config.preferences.as_mut().unwrap().file = write_pairs(&pairs.0, more);
    let Assembly::Pairs(mut assembled) = assembled(&config) else { unreachable!("by pairs") };
    assembled.pipeline.vae = with_latents_of_unit_size(assembled.pipeline.vae);
    crate::train(name, *assembled)
}

/// How often a model prefers what it should on held-out preferences, compared with the reference, before and after.
pub fn implicit_accuracy(trained: &Trained<Trainable<LoadedDenoiser>>) -> [f64; 2] {
    [&trained.before, &trained.after].map(|measures| {
        let (_, accuracies) = measures.iter().find(|(name, _)| name == "validation_implicit_accuracy").expect("some are held out");
        mean(accuracies)
    })
}

#[test]
fn dpo_raises_the_implicit_accuracy_on_pairs_it_has_not_seen() {
    // The reference itself prefers neither image.
    assert_above_chance("dpo: implicit accuracy above 0.5", |seed| {
        implicit_accuracy(&train(&format!("dpo-{seed}"), seed, 5e-3, "", &[]))[1] - 0.5
    });
}

#[test]
fn dpo_with_learning_rate_0_changes_nothing() {
    let trained = train("dpo-still", 0, 0.0, "", &[]);
    assert_eq!(implicit_accuracy(&trained), [0.5, 0.5]);
    trained.assert_untouched();
}

#[test]
fn smoothed_preferences_of_certain_pairs_are_dpo_and_even_pairs_teach_nothing() {
    let plain = train("smpo-plain", 0, 5e-3, "", &[]);
    let certain = train("smpo-certain", 0, 5e-3, ", \"probability\": 1", &["algo.dpo.smoothed={ scale = 1.0 }"]);
    assert_eq!(plain.after, certain.after);
    assert_same(&plain.tuned, &certain.tuned);
    // Nothing but weight decay could move the weights.
    let sets = ["algo.dpo.smoothed={ scale = 10.0 }", "optimizer.adamw.weight_decay=0.0"];
    let even = train("smpo-even", 0, 5e-3, ", \"probability\": 0.5", &sets);
    assert_eq!(implicit_accuracy(&even), [0.5, 0.5]);
    even.assert_untouched();
}
