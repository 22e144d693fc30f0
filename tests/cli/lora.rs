//! LoRA files: sampled with, merged, converted, refused.

use std::path::{Path, PathBuf};

use crate::util::{MODEL, files, root, run};

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
