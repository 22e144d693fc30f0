//! LoRA files: sampled with, merged, converted, trained further, refused.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use vp_models::lora::{Dialect, LoraWeights, Names};
use vp_models::pipeline::ModelFolder;
use vp_models::weights::{SaveType, save_safetensors};

use crate::util::{Finished, MODEL, files, root, run};

const LORA: &str = "tests/golden/rl_sd15_tiny/kohya_lora.safetensors";

/// The one image of `x` that `sample` draws.
fn drawn(dir: &Path, name: &str, model: &str, loras: &[&str]) -> Vec<u8> {
    let output = dir.join(name);
    let mut args = vec!["sample", "--model", model, "-p", "x", "--steps", "3", "-s", "7", "-o", output.to_str().unwrap()];
    loras.iter().for_each(|lora| args.extend(["--lora", *lora]));
    run(&args).ok();
    let [image]: [PathBuf; 1] = files(&output).try_into().expect("one image");
    vp_data::load_image(&image).unwrap().into_raw()
}

/// The largest difference of a value of two images.
fn difference(a: &[u8], b: &[u8]) -> u8 {
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn weights_add_up_and_merging_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let weighing = |weight: f64| format!("{LORA}:{weight}");
    let (whole, half) = (weighing(8.0), weighing(4.0));
    let (base, tuned) = (drawn(dir.path(), "base", MODEL, &[]), drawn(dir.path(), "tuned", MODEL, &[&whole]));
    assert!(difference(&base, &tuned) > 20, "{}", difference(&base, &tuned));
    assert_eq!(drawn(dir.path(), "none", MODEL, &[&weighing(0.0)]), base);
    assert!(difference(&drawn(dir.path(), "halves", MODEL, &[&half, &half]), &tuned) <= 1);
    assert!(difference(&drawn(dir.path(), "half", MODEL, &[&half]), &tuned) > 5);
    let merged = dir.path().join("merged");
    let merge = ["export", "--model", MODEL, "--lora", &whole, "--merge", "-o", merged.to_str().unwrap()];
    run(&merge).ok();
    assert_eq!(drawn(dir.path(), "merged-image", merged.to_str().unwrap(), &[]), tuned);
    // What is there is not overwritten.
    let again = run(&merge).refused();
    assert!(again.contains("exists already"), "{again}");
}

#[test]
fn a_dialect_becomes_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut from = LORA.to_string();
    let tuned = drawn(dir.path(), "tuned", MODEL, &[LORA]);
    for format in ["diffusers", "peft", "kohya"] {
        let to = dir.path().join(format!("{format}.safetensors")).display().to_string();
        run(&["export", "--model", MODEL, "--lora", &from, "--format", format, "-o", &to]).ok();
        assert_eq!(drawn(dir.path(), format, MODEL, &[&to]), tuned, "{format}");
        from = to;
    }
    let refused = |args: &[&str]| run(&[&["export", "--model", MODEL, "-o", "never"], args].concat()).refused();
    assert!(refused(&["--lora", &format!("{LORA}:0.5"), "--format", "peft"]).contains("writes a LoRA as it is"));
    assert!(refused(&["--lora", LORA, "--lora", LORA, "--format", "peft"]).contains("writes one LoRA"));
    assert!(!root().join("never").exists());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("images");
    let refused = |model: &str, lora: &str| {
        run(&["sample", "--model", model, "--lora", lora, "-p", "x", "--steps", "1", "-o", output.to_str().unwrap()]).refused()
    };
    // Another base: shapes differ, and every layer is named.
    let line = refused("tests/golden/sdxl_tiny/pipeline", LORA);
    assert!(line.contains("another base") && line.contains("lora_unet_") | line.contains("unet."), "{line}");
    assert!(refused(MODEL, "no-such-file.safetensors").contains("no-such-file.safetensors"));
    assert!(refused(MODEL, "tests/golden/optim/tensors.safetensors").contains("belongs to no layer"));
    // A key that nothing consumes, and a layer with one of its factors.
    let bytes = std::fs::read(root().join(LORA)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    let name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight";
    let stray = name.replace("lora_up", "hada_w1_a");
    let changed = header.replace(name, &stray);
    assert_ne!(changed, header);
    let path = dir.path().join("stray.safetensors");
    std::fs::write(&path, [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &bytes[8 + length..]].concat()).unwrap();
    let line = refused(MODEL, path.to_str().unwrap());
    assert!(line.contains(&format!("{stray} belongs to no layer")) && line.contains("lacks one of its two factors"), "{line}");
    assert!(!output.exists() || files(&output).is_empty());
}

/// The names of the layers of [`MODEL`].
fn names() -> Names {
    ModelFolder::open(&root().join(MODEL)).unwrap().lora_names(&Device::flex())
}

/// A run of one update at rate 0 that begins from a LoRA.
fn trained_further(init: &str, output: &Path, more: &[&str]) -> Finished {
    let init = format!("lora.init={init}");
    let preview = ["preview.prompts=['x']", "preview.seeds=[7]", "preview.num_inference_steps=3", "preview.guidance_scale=7.5"];
    let short = ["run.num_train_steps=1", "optimizer.learning_rate=0.0", "scheduler.num_inference_steps=2", "algo.refl.batch_size=1"];
    let window = ["algo.refl.min_mid_step=1", "algo.refl.max_mid_step=1"];
    let sets = [&[init.as_str()], &preview[..], &short, &window, more].concat();
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    run(&["train", "--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap()].into_iter().chain(sets).collect::<Vec<_>>())
}

#[test]
fn a_lora_is_trained_further() {
    let (dir, names) = (tempfile::tempdir().unwrap(), names());
    let (file, output) = (dir.path().join("strong.safetensors"), dir.path().join("run"));
    let mut weights = LoraWeights::read(&root().join(LORA), &names).unwrap();
    weights.layers.values_mut().for_each(|factors| factors.alpha *= 8.0);
    weights.save(&file, Dialect::Kohya, &names, &[]).unwrap();
    let file = file.to_str().unwrap();
    trained_further(file, &output, &[]).ok();
    // Step 0 is the base with the LoRA.
    let image = vp_data::load_image(output.join("samples/step-000000/000-7.png")).unwrap().into_raw();
    assert!(difference(&image, &drawn(dir.path(), "base", MODEL, &[])) > 20);
    assert!(difference(&image, &drawn(dir.path(), "tuned", MODEL, &[file])) <= 1);
    // The config's alpha is 4, the file's 64.
    let result = LoraWeights::read(&output.join("lora.safetensors"), &names).unwrap();
    assert_eq!(result.layers.len(), weights.layers.len());
    for (layer, factors) in &result.layers {
        let of_file = &weights.layers[layer];
        assert_eq!((factors.alpha, &factors.down), (4.0, &of_file.down), "{layer}");
        assert!(factors.up.iter().zip(&of_file.up).all(|(ours, theirs)| *ours == theirs * 16.0), "{layer}");
    }
}

#[test]
fn a_lora_that_cannot_be_trained_further_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |init: &str, more: &[&str]| trained_further(init, &dir.path().join("run"), more).refused();
    let told = refused(LORA, &["lora.rank=2"]);
    assert!(told.contains("[lora] init: lora.rank is 2, but unet.") && told.contains("has rank 4") && told.contains("more"), "{told}");
    assert!(refused(LORA, &["lora.targets=to_q$"]).contains(r#"lora.targets "to_q$" does not match unet."#));
    let told = refused("tests/golden/lora_lycoris_tiny/loha.safetensors", &[]);
    assert!(told.contains("holds LoHa (text_encoder.") && told.contains("neither trained further"), "{told}");
    assert!(refused("no-such-file", &[]).contains("no-such-file"));
    assert!(refused(LORA, &["model.trainable=^unet"]).contains("lora.init is not used where model.trainable"));
    assert!(!dir.path().join("run").exists());
}

#[test]
fn what_is_left_out_or_cannot_be_written_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let [lora, merged, written] = ["lora.safetensors", "merged", "peft.safetensors"].map(|name| dir.path().join(name));
    let layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let [down, up] = ["lora_A", "lora_B"].map(|factor| format!("{layer}.{factor}.weight"));
    let tensors: [(&str, [usize; 2]); 3] = [(&down, [2, 32]), (&up, [32, 2]), ("bundle_emb.zorgblat.string_to_param.*", [2, 8])];
    let tensors = tensors.iter().map(|(name, shape)| {
        let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| vec![0.5; shape.iter().product()]);
        (*name, &shape[..], values)
    });
    save_safetensors(&lora, tensors, &[], SaveType::F32).unwrap();
    let export = |lora: &Path, more: &[&str]| run(&[&["export", "--model", MODEL, "--lora", lora.to_str().unwrap()], more].concat());
    let told = export(&lora, &["--merge", "-o", merged.to_str().unwrap()]).ok().stderr();
    assert_eq!(told.matches("also holds the embedding zorgblat, left out").count(), 1, "{told}");
    let told = export(&lora, &["--format", "peft", "-o", written.to_str().unwrap()]).ok().stderr();
    assert!(told.contains("zorgblat") && written.is_file(), "{told}");
    let dora = root().join("tests/golden/lora_peft_tiny/dora");
    let told = export(&dora, &["--format", "kohya", "-o", dir.path().join("never").to_str().unwrap()]).refused();
    assert!(told.contains("adapter_model.safetensors holds DoRA (unet.") && told.contains("can be merged"), "{told}");
}
