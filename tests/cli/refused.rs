//! Bad input: one clear line, exit 2, nothing half-written.

use std::path::Path;

use crate::crash::overwrite;
use crate::util::{MODEL, copy_dir, files, root, run};

/// Asserts that `sample` with these arguments is refused in one line that holds `expected`, and writes nothing.
fn sample_refused(extra: &[&str], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let line = run(&[&["sample", "-o", output.to_str().unwrap()], extra].concat()).refused();
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    for expected in expected {
        assert!(line.contains(expected), "{extra:?}: expected {expected:?} in: {line}");
    }
    assert!(!output.exists(), "{extra:?} left {:?}", files(&output));
}

fn with_model<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["--model", MODEL, "-p", "a fox"], extra].concat()
}

#[test]
fn models_that_are_none() {
    let prompt = ["-p", "a fox"];
    sample_refused(&[&prompt[..], &["--model", "no/such/folder"]].concat(), &["no/such/folder", "no such file or folder"]);
    sample_refused(&[&prompt[..], &["--model", "Cargo.toml"]].concat(), &["neither a safetensors file nor a PyTorch checkpoint"]);
    sample_refused(&[&prompt[..], &["--model", "crates"]].concat(), &["model_index.json"]);
}

#[test]
fn a_truncated_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&root().join(MODEL), dir.path());
    let weights = dir.path().join("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 100, 8, 0] {
        std::fs::write(&weights, &bytes[..length]).unwrap();
        let model = dir.path().to_str().unwrap();
        sample_refused(&["--model", model, "-p", "a fox"], &["unet/diffusion_pytorch_model.safetensors", "cut short"]);
    }
}

/// In every network, whether the command uses it or not, and in every kind of file; before a run folder is begun.
#[test]
fn a_weight_that_is_not_finite_is_named_at_load() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let said = |file: &str, tensor: &str, value: f32| {
        format!("{}: {tensor} holds {value}, which nothing can be computed with; get the file anew", place(file).display())
    };
    let model = place("model");
    let drawn = ["--model", model.to_str().unwrap(), "-p", "a fox"];
    for (file, tensor, value) in [
        ("model/unet/diffusion_pytorch_model.safetensors", "up_blocks.1.resnets.0.conv1.weight", f32::NAN),
        ("model/text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc1.bias", f32::INFINITY),
        // Drawing decodes only.
        ("model/vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight", f32::NEG_INFINITY),
    ] {
        copy_dir(&root().join(MODEL), &model);
        overwrite(&place(file), tensor, value);
        sample_refused(&drawn, &[&said(file, tensor, value)]);
        let (path, output) = (format!("model.path={}", model.display()), place("run"));
        let train = ["train", "--config", "configs/refl/tiny.toml", "--set", &path, "-o", output.to_str().unwrap()];
        let line = run(&train).refused();
        assert!(line.contains(&said(file, tensor, value)) && !output.exists(), "{line}");
    }
    copy_dir(&root().join(MODEL), &model);
    let golden = |from: &str, to: &str, tensor: &str| {
        std::fs::copy(root().join("tests/golden").join(from), place(to)).unwrap();
        overwrite(&place(to), tensor, f32::NAN);
    };
    golden("ldm_sd15_tiny/model.fp16.safetensors", "single.safetensors", "first_stage_model.encoder.conv_in.bias");
    let (file, config) = (place("single.safetensors"), "tests/golden/ldm_sd15_tiny/pipeline");
    let prompt = ["-p", "a fox", "-W", "16", "-H", "16", "--model", file.to_str().unwrap(), "--model-config", config];
    sample_refused(&prompt, &[&said("single.safetensors", "first_stage_model.encoder.conv_in.bias", f32::NAN)]);
    let [layer, factor] = ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k", "lora_up.weight"];
    for tensor in [format!("{layer}.{factor}"), format!("{layer}.alpha")] {
        golden("rl_sd15_tiny/kohya_lora.safetensors", "lora.safetensors", &tensor);
        let lora = place("lora.safetensors");
        sample_refused(&[&drawn[..], &["--lora", lora.to_str().unwrap()]].concat(), &[&said("lora.safetensors", &tensor, f32::NAN)]);
    }
    let (reward, tensor) = (place("reward"), "mlp.layers.0.weight");
    copy_dir(&root().join("tests/golden/blip_reward_tiny/model"), &reward);
    std::fs::remove_file(reward.join("model.pt")).unwrap();
    overwrite(&reward.join("model.safetensors"), tensor, f32::NAN);
    let line = run(&["score", "-r", reward.to_str().unwrap(), "-p", "a fox", "checkpoints/tiny-images/00.png"]).refused();
    assert!(line.contains(&said("reward/model.safetensors", tensor, f32::NAN)), "{line}");
}

#[test]
fn wrong_tensors_are_counted_and_a_few_are_named() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&root().join(MODEL), dir.path());
    let config = dir.path().join("unet/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"layers_per_block\": 2", "\"layers_per_block\": 1")).unwrap();
    let model = dir.path().to_str().unwrap();
    let line = run(&["sample", "--model", model, "-p", "a fox", "-o", dir.path().join("out").to_str().unwrap()]).refused();
    for part in [
        "244 unexpected: down_blocks.0.attentions.1.norm.bias, ",
        "… and 240 more",
        "4 of another shape: up_blocks.2.resnets.1.norm1.weight: expected [48]",
    ] {
        assert!(line.contains(part) && line.len() < 1000, "{line}");
    }
    std::fs::write(&config, text.replace("\"act_fn\"", "\"act_fun\"")).unwrap();
    sample_refused(&["--model", model, "-p", "a fox"], &["unet/config.json", "unknown field act_fun"]);
}

#[test]
fn misspelt_names() {
    sample_refused(&with_model(&["--scheduler", "ddin"]), &["ddin", "did you mean `ddim`?"]);
    sample_refused(&with_model(&["--device", "vulcan"]), &["vulcan", "did you mean `vulkan`?"]);
    sample_refused(&with_model(&["--device", "cuda"]), &["cuda", "not compiled in", "--features cuda"]);
    let line = run(&["train", "--algo", "relf"]).refused();
    assert!(line.contains("--algo relf") && line.contains("did you mean `refl`?"), "{line}");
}

#[test]
fn sizes_steps_and_scales() {
    sample_refused(&with_model(&["-W", "63", "-H", "64"]), &["width 63 is not a multiple of 8", "56 and 64"]);
    sample_refused(&with_model(&["-H", "0"]), &["height 0"]);
    sample_refused(&with_model(&["--steps", "0"]), &["steps"]);
    sample_refused(&with_model(&["--steps", "1001"]), &["1001"]);
    sample_refused(&with_model(&["-g", "NaN"]), &["guidance scale NaN"]);
    sample_refused(&with_model(&["-g", "-1"]), &["guidance scale -1"]);
    sample_refused(&with_model(&["--eta", "2", "--scheduler", "ddim"]), &["eta"]);
    sample_refused(&with_model(&["--num-images", "0"]), &["--num-images"]);
    sample_refused(&with_model(&["--batch-size", "0"]), &["--batch-size"]);
}

#[test]
fn prompt_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    sample_refused(&["--model", MODEL, "--prompts", &path("empty.txt", b"")], &["empty.txt"]);
    sample_refused(&["--model", MODEL, "--prompts", &path("blank.txt", b"\n \n")], &["blank.txt"]);
    sample_refused(&["--model", MODEL, "--prompts", &path("latin.txt", b"a caf\xe9\n")], &["latin.txt", "UTF-8"]);
    sample_refused(&["--model", MODEL, "--prompts", "no-such.txt"], &["no-such.txt"]);
}

#[test]
fn latents_that_do_not_fit() {
    sample_refused(&with_model(&["--latents", "no-such.safetensors"]), &["no-such.safetensors"]);
    let tensors = "tests/golden/optim/tensors.safetensors";
    sample_refused(&with_model(&["--latents", tensors]), &["no tensor named `latents`"]);
}

#[test]
fn an_unwritable_output_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    // A file in the place of a folder stops even root.
    let inside = file.join("out");
    let line = run(&[&["sample", "-o", inside.to_str().unwrap()], &with_model(&["--steps", "1"])[..]].concat()).refused();
    assert!(line.contains("output folder") && line.contains("file/out"), "{line}");
    let line = run(&["train", "--config", "configs/refl/tiny.toml", "-o", inside.to_str().unwrap()]).refused();
    assert!(line.contains("file/out"), "{line}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "in the way");
    // A file system that takes no folders, whoever asks.
    if Path::new("/proc/self").exists() {
        let line = run(&[&["sample", "-o", "/proc/visionprefer"], &with_model(&["--steps", "1"])[..]].concat()).refused();
        assert!(line.contains("output folder /proc/visionprefer"), "{line}");
        let line = run(&["train", "--config", "configs/refl/tiny.toml", "-o", "/proc/visionprefer"]).refused();
        assert!(line.contains("/proc"), "{line}");
    }
}

/// Asserts that `train` on the shipped config, with one text replaced, is refused with `expected`, and writes nothing.
fn config_refused(from: &str, to: &str, expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(root().join("configs/refl/tiny.toml")).unwrap();
    assert!(text.contains(from), "the config no longer has {from:?}");
    let (config, output) = (dir.path().join("typo.toml"), dir.path().join("run"));
    std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
    let line = run(&["train", "--config", config.to_str().unwrap(), "-o", output.to_str().unwrap()]).refused();
    for expected in expected {
        assert!(line.contains(expected), "{to:?}: expected {expected:?} in: {line}");
    }
    assert!(!Path::new(&output).exists(), "{to:?} left a run behind");
}

#[test]
fn config_typos_have_line_and_column() {
    let text = std::fs::read_to_string(root().join("configs/refl/tiny.toml")).unwrap();
    let line = |needle: &str| format!("line {}, ", text.lines().position(|line| line.starts_with(needle)).unwrap() + 1);
    let rate = &line("learning_rate =");
    config_refused("learning_rate =", "learnig_rate =", &["typo.toml", rate, "column 1", "did you mean `learning_rate`?"]);
    config_refused("[algo.refl]", "[algo.relf]", &[&line("[algo.refl]"), "column 7", "did you mean `refl`?"]);
    config_refused("[watch.brightness]", "[watch.brightnes]", &[&line("[watch.brightness]"), "did you mean `brightness`?"]);
    config_refused("batch_size = 4 ", "batch_size = \"two\" ", &[&line("batch_size ="), "column 14", "expected usize"]);
    config_refused("seed = 0 ", "seed = = 0 ", &[&line("seed ="), "column 8"]);
}

#[test]
fn config_values_that_cannot_work_are_listed_together() {
    config_refused("num_train_steps = 30", "num_train_steps = 0", &["run.num_train_steps is 0"]);
    config_refused("max_mid_step = 19", "max_mid_step = 20", &["14..=20", "19, the last of 20 steps"]);
    config_refused("name = \"ddpm\"", "name = \"dpmpp_2m\"", &["keeps history"]);
    config_refused("name = \"ddpm\"", "name = \"dppm\"", &["did you mean `ddpm`?"]);
    config_refused("# trainable = '^unet\\.'", "trainable = \"attn9\"", &["model.trainable", "matches no parameter"]);
    config_refused("# trainable = '^unet\\.'", "trainable = \"(\"", &["model.trainable is not a valid regular expression"]);
    config_refused("targets = '^unet", "targets = 'attn9", &["lora.targets", "matches no layer", "unet."]);
    config_refused("targets = '^unet", "targets = '(", &["lora.targets is not a valid regular expression"]);
    config_refused("rank = 4 ", "rank = 0 ", &["lora.rank is 0"]);
    config_refused("alpha = 4.0 ", "alpha = -1.0 ", &["lora.alpha is -1"]);
    config_refused("guidance_scale = 1.0   # as", "guidance_scale = nan   # as", &["preview.guidance_scale is NaN"]);
    config_refused("# size = [64, 64]", "size = [63, 64]", &["height 63"]);
}

#[test]
fn a_reward_that_gives_no_gradient() {
    let weights = "weights = \"tests/golden/blip_reward_tiny/model\"";
    let text = format!("[reward.vp_score]\n{weights}");
    config_refused(&text, "[reward.jpeg_compressibility]", &["[reward.jpeg_compressibility] gives no gradient", "refl needs"]);
}

#[test]
fn overrides_that_do_not_fit() {
    let refused = |set: &str| run(&["train", "--config", "configs/refl/tiny.toml", "--set", set]).refused();
    assert!(refused("optimizer.learnig_rate=1").contains("--set optimizer.learnig_rate=1"));
    assert!(refused("optimizer").contains("expected KEY=VALUE"));
    assert!(refused("run.seed=many").contains("--set run.seed=many"));
}

#[test]
fn more_tracked_steps_than_there_are() {
    let refused = |algo: &str, sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let line = run(&[&["train", "--algo", algo], &sets[..]].concat()).refused();
        assert_eq!(line.trim_end().lines().count(), 1, "{line}");
        line
    };
    let line = refused("draft", &["algo.draft.k=11", "algo.draft.num_lv_samples=0"]);
    assert!(line.contains("algo.draft.k is 11; expected 1 to 10"), "{line}");
    let line = refused("draft", &["algo.draft.k=2"]);
    assert!(line.contains("num_lv_samples is 2 with k = 2"), "{line}");
    let line = refused("align_prop", &["algo.align_prop.truncation={ fixed = { k = 11 } }"]);
    assert!(line.contains("algo.align_prop.truncation.fixed.k is 11; expected 1 to 10"), "{line}");
    let line = refused("drtune", &["algo.drtune.k=8"]);
    assert!(line.contains("algo.drtune.k is 8; expected 1 to 7"), "{line}");
    let line = refused("drtune", &["reward={ jpeg_compressibility = {} }"]);
    assert!(line.contains("[reward.jpeg_compressibility] gives no gradient") && line.contains("drtune needs"), "{line}");
    let line = refused("srpo", &["algo.srpo.max_time=0.5"]);
    assert!(line.contains("algo.srpo trains at times from min_time 0.5 to max_time 0.5"), "{line}");
    let line = refused("leap_align", &["scheduler.num_inference_steps=1"]);
    assert!(line.contains("scheduler.num_inference_steps is 1; algo.leap_align leaps between two steps"), "{line}");
    for algo in ["srpo", "leap_align"] {
        let line = refused(algo, &["reward={ jpeg_compressibility = {} }"]);
        assert!(line.contains("[reward.jpeg_compressibility] gives no gradient") && line.contains(&format!("{algo} needs")), "{line}");
    }
}
