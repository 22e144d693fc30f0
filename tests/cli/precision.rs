//! Runs whose frozen weights and activations have fewer bits, to their export.

use crate::util::run;

const SHORT: [&str; 5] = [
    "run.num_train_steps=1",
    "scheduler.num_inference_steps=3",
    "algo.refl.min_mid_step=2",
    "algo.refl.max_mid_step=2",
    "preview.num_inference_steps=1",
];

/// A short ReFL run with `settings`.
fn train(settings: &[&str]) -> crate::util::Finished {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let mut args = vec!["train", "--config", "configs/refl/tiny.toml", "-q", "-o", output.to_str().unwrap()];
    args.extend(SHORT.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    run(&args)
}

#[test]
fn whatever_trains_is_exported() {
    for dtype in ["model.dtype=bf16", "model.dtype=f16"] {
        train(&[dtype, "lora.targets=^(unet|text_encoder)\\."]).ok();
        // All weights of the UNet, and some of them beside frozen ones.
        train(&[dtype, "model.trainable=^unet\\."]).ok();
        train(&[dtype, "model.trainable=attn2"]).ok();
    }
}

#[test]
fn rewards_and_the_autoencoder_have_formats_of_their_own() {
    let vp_score = "reward={vp_score={weights=\"tests/golden/blip_reward_tiny/model\",dtype=\"bf16\"}}";
    train(&[vp_score, "vae.dtype=f16", "vae.slicing=true", "model.gradient_checkpointing=blocks"]).ok();
    train(&["reward={clip_score={weights=\"tests/golden/clip_tiny/model\",dtype=\"f16\"}}"]).ok();
}

#[test]
fn the_model_inside_draws_in_every_format() {
    for dtype in ["bf16", "f16", "auto"] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().to_str().unwrap();
        let drawn = run(&["sample", "-p", "a red circle", "--steps", "2", "--dtype", dtype, "--vae-dtype", dtype, "-o", output]).ok();
        // No processor multiplies f16; some multiply bf16.
        if dtype != "bf16" {
            assert_eq!(drawn.stderr().matches("this processor does not multiply f16").count(), usize::from(dtype == "f16"), "{dtype}");
        }
    }
}

#[test]
fn a_format_that_cannot_be_is_refused() {
    assert!(train(&["model.dtype=bf17"]).refused().contains("did you mean `bf16`?"));
    assert!(train(&["vae.tiling=48"]).refused().contains("vae.tiling is 48; expected true, false"));
    let finished = run(&["train", "--config", "configs/vae/tiny.toml", "--set", "model.dtype=bf16", "--dry-run"]);
    assert!(finished.refused().contains("model.dtype is not used by [algo.vae]"));
}
