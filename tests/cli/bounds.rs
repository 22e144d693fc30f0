//! Numbers that no machine can hold are refused by name, before anything is built or written.

use std::path::Path;

use serde_json::{Value, json};

use crate::util::{MODEL, copy_dir, root, run};

const SD21: &str = "tests/golden/sd21_tiny/pipeline";
const REWARD: &str = "tests/golden/blip_reward_tiny/model";

/// A copy of a folder with a field of one of its JSON files set.
fn with_field(folder: &str, file: &str, field: &str, value: Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(&root().join(folder), copy.path());
    let path = copy.path().join(file);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[field] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

fn sample_refused(model: &Path, expected: &[&str]) {
    let output = tempfile::tempdir().unwrap();
    let output = output.path().join("out");
    let told = run(&["sample", "--model", model.to_str().unwrap(), "-p", "x", "--steps", "1", "-o", output.to_str().unwrap()]).refused();
    assert!(told.lines().count() == 1 && expected.iter().all(|part| told.contains(part)), "{told}");
    assert!(!output.exists());
}

#[test]
fn counts_in_a_models_configs() {
    for (file, field) in [
        ("unet/config.json", "layers_per_block"),
        ("unet/config.json", "transformer_layers_per_block"),
        ("text_encoder/config.json", "num_hidden_layers"),
        ("vae/config.json", "layers_per_block"),
    ] {
        for value in [1_000_000u64, 1 << 62] {
            let model = with_field(SD21, file, field, json!(value));
            sample_refused(model.path(), &[file, &format!("{field} = {value} is out of range; expected at most 1024")]);
        }
    }
    let model = with_field(SD21, "text_encoder/config.json", "vocab_size", json!(1u64 << 40));
    sample_refused(model.path(), &["vocab_size = 1099511627776"]);
    for field in ["num_hidden_layers", "vision_depth"] {
        let reward = with_field(REWARD, "config.json", field, json!(2_000_000));
        let told = run(&["score", "-r", reward.path().to_str().unwrap(), "-p", "x", "checkpoints/tiny-images/00.png"]).refused();
        assert!(told.contains("config.json") && told.contains(&format!("{field} = 2000000")), "{told}");
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_its_encoder() {
    let longer = with_field(SD21, "tokenizer/tokenizer_config.json", "model_max_length", json!(78));
    sample_refused(longer.path(), &["78 tokens", "77 positions"]);
    let special = with_field(SD21, "tokenizer/special_tokens_map.json", "bos_token", json!("<|begin|>"));
    sample_refused(special.path(), &["special_tokens_map.json", "its tokenizer has"]);
}

#[test]
fn counts_in_a_runs_config() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let refused = |config: &str, set: &str| {
        let told = run(&["train", "--config", config, "--set", set, "-o", output.to_str().unwrap()]).refused();
        assert!(!output.exists(), "{set}");
        told
    };
    let (ddpo, refl) = ("configs/ddpo/tiny.toml", "configs/refl/tiny.toml");
    let told = refused(ddpo, "algo.ddpo.num_batches_per_epoch=4611686018427387904");
    assert!(told.contains("algo.ddpo.num_batches_per_epoch = 4611686018427387904 is out of range"), "{told}");
    let told = refused(ddpo, "algo.ddpo.num_batches_per_epoch=1000000000");
    assert!(told.contains("an epoch has") && told.contains("at most 1000000"), "{told}");
    let told = refused(refl, "lora.rank=10000000000");
    assert!(told.contains("lora.rank = 10000000000 is out of range"), "{told}");
    let told = refused(refl, "lora.rank=1000000");
    assert!(told.contains("lora.rank is 1000000, larger than any layer it is for"), "{told}");
    run(&["train", "--config", refl, "--set", "run.seed=4611686018427387904", "--dry-run", "-o", output.to_str().unwrap()]).ok();
}

#[test]
fn counts_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("p.txt");
    std::fs::write(&prompts, "a red circle").unwrap();
    let output = folder.path().join("out");
    for seeds in ["18446744073709551615", "4294967296"] {
        let evaluate = ["evaluate", "--tuned", MODEL, "--prompts", prompts.to_str().unwrap(), "-r", "brightness", "--seeds", seeds];
        let told = run(&[&evaluate[..], &["-o", output.to_str().unwrap()]].concat()).refused();
        assert!(told.contains(&format!("--seeds {seeds} is out of range")) && !output.exists(), "{told}");
    }
}

/// Nobody writes to these pipes: who opened one would wait for ever.
#[cfg(unix)]
#[test]
fn pipes_and_devices_where_files_belong() {
    let become_pipe = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "vae/config.json",
    ] {
        let model = tempfile::tempdir().unwrap();
        copy_dir(&root().join(MODEL), model.path());
        become_pipe(&model.path().join(file));
        sample_refused(model.path(), &[file, "a device or a pipe; expected a file"]);
    }
    let single = tempfile::tempdir().unwrap();
    let pipe = single.path().join("model.safetensors");
    std::fs::write(&pipe, "").unwrap();
    become_pipe(&pipe);
    for place in [&pipe, Path::new("/dev/zero")] {
        sample_refused(place, &[place.to_str().unwrap()]);
    }
    let file = "config.json";
    let reward = tempfile::tempdir().unwrap();
    copy_dir(&root().join(REWARD), reward.path());
    become_pipe(&reward.path().join(file));
    let told = run(&["score", "-r", reward.path().to_str().unwrap(), "-p", "x", "checkpoints/tiny-images/00.png"]).refused();
    assert!(told.contains(file) && told.contains("a device or a pipe; expected a file"), "{told}");
    // Beside an image, or as the table of a folder.
    for name in ["00.txt", "metadata.jsonl"] {
        let images = tempfile::tempdir().unwrap();
        for image in ["00.png", "01.png"] {
            std::fs::copy(root().join("checkpoints/tiny-images").join(image), images.path().join(image)).unwrap();
        }
        std::fs::write(images.path().join("01.txt"), "a fox").unwrap();
        std::fs::write(images.path().join(name), "").unwrap();
        become_pipe(&images.path().join(name));
        let finished = run(&["dataset", "validate", images.path().to_str().unwrap()]);
        let told = finished.stdout() + &finished.refused();
        assert!(told.contains(name) && told.contains("a device or a pipe; expected a file"), "{told}");
    }
}
