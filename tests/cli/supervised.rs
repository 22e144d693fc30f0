//! `train --algo sft` and `train --algo vae`.

use std::path::{Path, PathBuf};

use vp_models::parameters::named_parameters;
use vp_models::pipeline::{ModelFolder, Pipeline};

use crate::util::{Finished, MODEL, copy_dir, files, root, run};

fn train(algo: &str, output: &Path, sets: &[&str], more: &[&str]) -> Finished {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> =
        ["train", "--algo", algo, "-o", output.to_str().unwrap()].into_iter().chain(sets).chain(more.iter().copied()).collect();
    run(&args)
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder of six captioned images of 40x40 pixels.
fn pictures(folder: &Path) -> PathBuf {
    let images = folder.join("images");
    std::fs::create_dir(&images).unwrap();
    for i in 0..6u8 {
        let image = vp_data::RgbImage::from_fn(40, 40, |x, y| [x as u8 * 6, y as u8 * 6, i * 40].into());
        vp_data::write_png::<&str, &str>(images.join(format!("{i}.png")), &image, &[]).unwrap();
        std::fs::write(images.join(format!("{i}.txt")), format!("gradient number {i}")).unwrap();
    }
    images
}

const SHORT: [&str; 4] =
    ["run.num_train_steps=3", "optimizer.gradient_accumulation_steps=2", "checkpoint.every=2", "data.validation_every=2"];

#[test]
fn sft_resumes_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [
        &SHORT[..],
        &["algo.sft.batch_size=2", "algo.sft.snr_gamma=5.0", r"model.trainable=^(unet|text_encoder)\.", "preview.num_inference_steps=1"],
    ]
    .concat();
    let finished = train("sft", &dir.path().join("proof"), &sets, &["--prove-resume"]).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 3 of 6"), "{}", finished.stdout());
}

/// Latents that are kept come back as they were, in whatever batch they were made; parts computed side by side add up.
#[test]
fn cached_latents_and_workers_change_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let data = format!("data.folder={}", images.display());
    let losses = |name: &str, sets: &[&str]| -> Vec<f64> {
        let output = dir.path().join(name);
        // Six images in batches of five: from the second on, some are kept and some are new.
        let sets = [&["run.num_train_steps=4", "algo.sft.batch_size=5", r"model.trainable=^(unet|text_encoder)\.", &data], sets].concat();
        train("sft", &output, &sets, &[]).ok();
        metrics(&output).iter().filter_map(|line| line["loss"].as_f64()).collect()
    };
    let plain = losses("plain", &[]);
    assert_eq!(plain.len(), 4);
    for (name, sets) in
        [("cached", &["data.cache_latents=true"][..]), ("parts", &["algo.sft.workers=2"]), ("single", &["algo.sft.workers=5"])]
    {
        let others = losses(name, sets);
        for (a, b) in plain.iter().zip(&others) {
            assert!((a - b).abs() < 1e-5 * a.abs(), "{name}: {others:?}, expected {plain:?}");
        }
    }
    let proof = dir.path().join("proof");
    let sets = [&SHORT[..], &["algo.sft.batch_size=4", "algo.sft.workers=2", "data.cache_latents=true", &data]].concat();
    let finished = train("sft", &proof, &sets, &["--prove-resume"]).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 3 of 6"), "{}", finished.stdout());
}

#[test]
fn vae_resumes_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let sets = [&SHORT[..], &["algo.vae.batch_size=2"]].concat();
    let finished = train("vae", &dir.path().join("proof"), &sets, &["--prove-resume"]).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 3 of 6"), "{}", finished.stdout());
}

#[test]
fn sft_without_preview_validates_and_draws_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let config = std::fs::read_to_string(root().join("configs/sft/tiny.toml")).unwrap();
    let (before, after) = config.split_once("[preview]").unwrap();
    let without = format!("{before}{}", &after[after.find("[checkpoint]").unwrap()..]);
    let path = dir.path().join("config.toml");
    std::fs::write(&path, without).unwrap();
    let output = dir.path().join("run");
    let (data, set) = (format!("data.folder={}", images.display()), "--set");
    let args = ["train", "--config", path.to_str().unwrap(), "-o", output.to_str().unwrap(), set, "run.num_train_steps=2", set, &data];
    run(&args).ok();
    let lines = metrics(&output);
    assert!(lines[0]["preview/validation_loss"].as_f64().unwrap() > 0.5 && lines[0]["step"] == 0, "{}", lines[0]);
    assert!(lines[1]["denoising_loss"].is_number() && lines[3]["preview/validation_loss"].is_number());
    assert!(files(&output.join("samples")).is_empty());
    // The LoRA opens.
    run(&[
        "sample",
        "--model",
        MODEL,
        "--lora",
        output.join("lora.safetensors").to_str().unwrap(),
        "-p",
        "x",
        "--steps",
        "1",
        "-o",
        dir.path().join("x").to_str().unwrap(),
    ])
    .ok();
}

#[test]
fn problems_are_named_and_skipped_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    std::fs::write(images.join("broken.png"), "no picture").unwrap();
    std::fs::write(images.join("broken.txt"), "a caption").unwrap();
    std::fs::copy(images.join("0.png"), images.join("mute.png")).unwrap();
    vp_data::write_png::<&str, &str>(images.join("small.png"), &vp_data::RgbImage::new(3, 3), &[]).unwrap();
    std::fs::write(images.join("small.txt"), "a caption").unwrap();
    let folder = format!("data.folder={}", images.display());
    let sets = ["run.num_train_steps=1", "preview.num_inference_steps=1", &folder];

    let output = dir.path().join("refused");
    let told = train("sft", &output, &sets, &[]).refused();
    for name in ["broken.png: ", "mute.png: no caption", "small.png: 3x3 pixels"] {
        assert!(told.contains(name), "{name}: {told}");
    }
    assert!(!output.exists());

    let skip = [&sets[..], &["data.on_problem=skip"]].concat();
    let finished = train("sft", &dir.path().join("skipped"), &skip, &[]).ok();
    let told = finished.stderr();
    for name in ["left out: broken.png: ", "left out: mute.png: no caption", "left out: small.png: 3x3 pixels"] {
        assert!(told.contains(name), "{name}: {told}");
    }
    // The autoencoder asks for no captions.
    let sets = ["run.num_train_steps=1", "algo.vae.batch_size=2", &folder, "data.on_problem=skip"];
    let told = train("vae", &dir.path().join("vae"), &sets, &[]).ok().stderr();
    assert!(told.contains("broken.png") && !told.contains("mute.png"), "{told}");
}

#[test]
fn a_dry_run_says_what_would_happen_and_a_resume_wants_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    let images = pictures(dir.path());
    let folder = format!("data.folder={}", images.display());
    let sets = ["run.num_train_steps=1", "algo.vae.batch_size=2", &folder];
    let output = dir.path().join("run");
    let told = train("vae", &output, &sets, &["--dry-run"]).ok().stdout();
    assert!(told.contains("1 updates of 2 images") && told.contains("nothing was trained") && !output.exists(), "{told}");

    train("vae", &output, &sets, &[]).ok();
    std::fs::copy(images.join("0.png"), images.join("6.png")).unwrap();
    let more = ["train", "--resume", output.to_str().unwrap()];
    let told = run(&more).refused();
    assert!(told.contains("the list of images and captions"), "{told}");
}

#[test]
fn networks_begin_with_random_weights_where_the_folder_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&root().join(MODEL), &model);
    for part in ["unet/diffusion_pytorch_model", "text_encoder/model"] {
        std::fs::remove_file(model.join(format!("{part}.safetensors"))).unwrap();
    }
    let path = format!("model.path={}", model.display());
    let both = r"model.trainable=^(unet|text_encoder)\.";
    let sets = ["run.num_train_steps=2", "algo.sft.batch_size=4", "preview.num_inference_steps=1", &path, both];
    let output = dir.path().join("run");
    let told = train("sft", &output, &sets, &[]).refused();
    assert!(told.contains("text_encoder") && !output.exists(), "{told}");

    train("sft", &output, &[&sets[..], &["model.initialize=true"]].concat(), &[]).ok();
    // A network that knows nothing answers near zero, and the noise it should have named has variance 1.
    let loss = metrics(&output)[0]["preview/validation_loss"].as_f64().unwrap();
    assert!((0.9..1.5).contains(&loss), "{loss}");
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&output.join("model")).unwrap(), &burn::tensor::Device::flex()).unwrap();
    for parameter in named_parameters(&unet).into_iter().chain(named_parameters(&pipeline.text.encoders[0].model)) {
        assert!(parameter.values.abs().max().into_scalar::<f32>() < 5.0, "{}", parameter.name);
    }
}

#[test]
fn sections_that_are_not_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let told = train("sft", &output, &["prompts={ list = [\"x\"] }", "reward={ brightness = {} }", "preview.every=5"], &[]).refused();
    for section in ["[prompts] is not used", "[reward.<name>] is not used", "preview.every is not used"] {
        assert!(told.contains(section), "{section}: {told}");
    }
    let told = train("refl", &output, &["data={ folder = \"x\" }", "model.initialize=true"], &[]).refused();
    assert!(told.contains("[data] is not used") && told.contains("model.initialize is not used"), "{told}");
    let told =
        train("vae", &output, &["data.validation_fraction=1.0", "data.caption_dropout=-1", "algo.vae.edge_weight=-1"], &[]).refused();
    for knob in ["data.validation_fraction", "data.caption_dropout", "algo.vae.edge_weight"] {
        assert!(told.contains(knob), "{knob}: {told}");
    }
}

#[test]
fn what_is_not_finite_is_named() {
    for (algo, component, tensor, named) in
        [("sft", "unet", "conv_in.weight", "unet.conv_in"), ("vae", "vae", "decoder.conv_in.weight", "decoder.conv_in.weight")]
    {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        copy_dir(&root().join(MODEL), &model);
        crate::crash::poison(&model.join(component).join("diffusion_pytorch_model.safetensors"), tensor);
        let model = format!("model.path={}", model.display());
        let sets = ["run.num_train_steps=1", "data.min_size=8", &model];
        let finished = train(algo, &dir.path().join("run"), &sets, &[]);
        let told = finished.stderr();
        assert!(told.contains("after update 0: ") && told.contains(named) && told.contains("is not finite"), "{algo}: {told}");
        // Without held-out images, and nothing to draw, it is the first update that notices.
        let without = "data.validation_fraction=0.0";
        if algo == "vae" {
            let told = train(algo, &dir.path().join("blind"), &[&sets[..], &[without]].concat(), &[]).stderr();
            assert!(told.contains("decoder.conv_in.weight") && told.contains("is not finite"), "{algo}: {told}");
        }
    }
}
