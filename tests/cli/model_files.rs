//! Models in the forms that people have them, as a user gives them; and what is said of a file that is not one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vp_data::load_image;
use vp_models::weights::{SaveType, save_safetensors};

use crate::util::{MODEL, copy_dir, files, root, run};

const SINGLE_FILE: &str = "tests/golden/ldm_sd15_inferred_tiny/model.safetensors";

/// The pixels of one image that `sample` draws with these arguments.
fn draw(extra: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().to_str().unwrap();
    run(&[&["sample", "-p", "a red fox", "--steps", "2", "-s", "1", "-o", output], extra].concat()).ok();
    let [image] = files(folder.path()).try_into().expect("one image");
    load_image(&image).unwrap().into_raw()
}

fn refused(extra: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let told = run(&[&["sample", "-p", "a", "--steps", "1", "-o", output.to_str().unwrap()], extra].concat()).refused();
    assert!(told.lines().count() <= 4 && told.len() < 1500, "{told}");
    assert!(!output.exists());
    told
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a model folder, with one of its JSON files changed.
fn with_config(model: &str, file: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_dir(&root().join(model), folder.path());
    let path = folder.path().join(file);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn a_single_file_draws_like_what_is_written_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let size = ["-W", "16", "-H", "16"];
    let expected = draw(&[&["--model", SINGLE_FILE], &size[..]].concat());
    // As a diffusers folder, in half precision, which its weights are.
    let as_folder = folder.path().join("folder");
    run(&["export", "--model", SINGLE_FILE, "--half", "-o", text(&as_folder)]).ok();
    assert!(as_folder.join("tokenizer/vocab.json").is_file() && as_folder.join("scheduler/scheduler_config.json").is_file());
    assert_eq!(draw(&[&["--model", text(&as_folder)], &size[..]].concat()), expected);
    // And as a single file again, whose tokenizer lies beside it.
    let again = folder.path().join("again.safetensors");
    run(&["export", "--model", text(&as_folder), "--format", "ldm", "-o", text(&again)]).ok();
    copy_dir(&as_folder.join("tokenizer"), &folder.path().join("tokenizer"));
    assert_eq!(draw(&[&["--model", text(&again)], &size[..]].concat()), expected);
}

#[test]
fn averaged_weights_and_the_prediction_type_are_chosen() {
    let (file, config) = ("tests/golden/ldm_sd15_ckpt_tiny/model_full_ema.ckpt", "tests/golden/ldm_sd15_tiny/pipeline");
    let model = ["--model", file, "--model-config", config, "-W", "16", "-H", "16"];
    let plain = draw(&model);
    assert_ne!(draw(&[&model[..], &["--ema"]].concat()), plain);
    assert_ne!(draw(&[&model[..], &["--prediction-type", "v_prediction"]].concat()), plain);
    assert!(refused(&["--model", MODEL, "--ema"]).contains("unet_ema/"));
    assert!(refused(&["--model", MODEL, "--model-config", config]).contains("configs of its own"));
}

#[test]
fn a_run_begins_with_a_single_file_and_another_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let vae = "tests/golden/ldm_vae_tiny/vae.safetensors";
    let file = "model.path=\"tests/golden/ldm_sd15_tiny/model.fp16.safetensors\"";
    let set = [file, "model.config=\"tests/golden/ldm_sd15_tiny/pipeline\"", &format!("model.vae={vae:?}"), "run.num_train_steps=1"];
    let set: Vec<&str> = set.iter().flat_map(|value| ["--set", value]).collect();
    run(&[&["train", "--config", "configs/refl/tiny.toml", "-o", text(&output), "--quiet"], &set[..]].concat()).ok();
    assert!(output.join("lora.safetensors").is_file());
    let lora = output.join("lora.safetensors");
    let model = ["--model", "tests/golden/ldm_sd15_tiny/model.fp16.safetensors", "--model-config", "tests/golden/ldm_sd15_tiny/pipeline"];
    let size = ["-W", "16", "-H", "16"];
    let own = draw(&[&model[..], &size[..], &["--lora", text(&lora)]].concat());
    assert_ne!(draw(&[&model[..], &size[..], &["--lora", text(&lora), "--vae", vae]].concat()), own);
}

#[test]
fn a_config_with_the_state_of_averages_and_a_new_empty_field() {
    let expected = draw(&["--model", MODEL]);
    let averaged = with_config(MODEL, "unet/config.json", |config| {
        let state = json!({
            "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 100, "power": 0.6666666666666666,
            "update_after_step": 0, "use_ema_warmup": false, "brand_new_field": null,
        });
        config.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
    });
    assert_eq!(draw(&["--model", text(averaged.path())]), expected);
    let unknown = with_config(MODEL, "unet/config.json", |config| config["brand_new_field"] = 1.into());
    assert!(refused(&["--model", text(unknown.path())]).contains("unknown field brand_new_field = 1"));
}

#[test]
fn sizes_that_no_image_has_are_refused() {
    let pair = with_config(MODEL, "unet/config.json", |config| config["sample_size"] = json!([4, 8]));
    let [height, width] = {
        let folder = tempfile::tempdir().unwrap();
        run(&["sample", "--model", text(pair.path()), "-p", "a", "--steps", "1", "-o", text(folder.path())]).ok();
        let image = load_image(&files(folder.path())[0]).unwrap();
        [image.height(), image.width()]
    };
    assert_eq!(2 * height, width);
    for size in [json!(1_000_000), json!(1u64 << 40), json!(0), json!([8, 1_000_000])] {
        let model = with_config(MODEL, "unet/config.json", |config| config["sample_size"] = size.clone());
        assert!(refused(&["--model", text(model.path())]).contains("sample_size"), "{size}");
    }
    for width in ["4294967296", "9223372036854775808", "100000"] {
        assert!(refused(&["-W", width]).contains("out of range"), "{width}");
    }
    for count in ["18446744073709551615", "4294967296"] {
        assert!(refused(&["--num-images", count]).contains("at most 10000000 images"), "{count}");
    }
    let xl = "tests/golden/sdxl_tiny/pipeline";
    let model = with_config(xl, "unet/config.json", |config| config["addition_time_embed_dim"] = 7.into());
    assert!(refused(&["--model", text(model.path())]).contains("is not projection_class_embeddings_input_dim"));
    let model = with_config(MODEL, "unet/config.json", |config| config["cross_attention_dim"] = 24.into());
    assert!(refused(&["--model", text(model.path())]).contains("the text encoders give"));
}

/// A safetensors file with empty tensors of these names.
fn file_of(folder: &Path, names: &[&str]) -> PathBuf {
    let path = folder.join("model.safetensors");
    let empty = |name| (name, &[0usize][..], Box::new(Vec::new) as Box<dyn FnOnce() -> Vec<f32>>);
    save_safetensors(&path, names.iter().copied().map(empty), &[], SaveType::F32).unwrap();
    path
}

#[test]
fn what_is_no_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (names, what) in [
        (&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"][..], "Stable Diffusion 3"),
        (&["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (&["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "pass it as --lora"),
        (&["encoder.down.0.block.0.conv1.weight", "encoder.conv_in.weight"], "pass it as --vae"),
        (&["down_blocks.0.resnets.0.conv1.weight"], "model_index.json"),
        (&["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (&["something.else"], "names like something.else"),
        (&["model.diffusion_model.input_blocks.0.0.weight"], "no text encoder"),
        (
            &[
                "model.diffusion_model.input_blocks.0.0.weight",
                "model.diffusion_model.label_emb.0.0.weight",
                "conditioner.embedders.0.model.ln_final.bias",
            ],
            "refiner",
        ),
    ] {
        let told = refused(&["--model", text(&file_of(folder.path(), names))]);
        assert!(told.contains(what), "{names:?}: {told}");
    }
    let gguf = folder.path().join("model.gguf");
    std::fs::write(&gguf, b"GGUF\x03\x00\x00\x00 and more").unwrap();
    assert!(refused(&["--model", text(&gguf)]).contains("GGUF"));
    let module = folder.path().join("module.ckpt");
    std::fs::write(&module, b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
    assert!(refused(&["--model", text(&module)]).contains("not one that torch.save wrote"));
    std::fs::write(folder.path().join("notes.txt"), "no model").unwrap();
    assert!(refused(&["--model", text(&folder.path().join("notes.txt"))]).contains("neither a safetensors file nor a PyTorch checkpoint"));
    for class in ["StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionInpaintPipeline"] {
        let model = with_config(MODEL, "model_index.json", |index| index["_class_name"] = class.into());
        assert!(refused(&["--model", text(model.path())]).contains("not supported"), "{class}");
    }
    assert!(refused(&["--model", &format!("{MODEL}/unet")]).contains("pass the folder around it"));
}

#[test]
fn weights_with_adapters_attached_and_ambiguous_variants() {
    let model = tempfile::tempdir().unwrap();
    copy_dir(&root().join(MODEL), model.path());
    let unet = model.path().join("unet");
    let empty = |name| (name, &[0usize][..], Box::new(Vec::new) as Box<dyn FnOnce() -> Vec<f32>>);
    let names = ["mid_block.attentions.0.to_q.base_layer.weight", "mid_block.attentions.0.to_q.lora_A.default_0.weight"];
    let weights = unet.join("diffusion_pytorch_model.safetensors");
    let original = std::fs::read(&weights).unwrap();
    save_safetensors(&weights, names.map(empty), &[], SaveType::F32).unwrap();
    assert!(refused(&["--model", text(model.path())]).contains("unload_lora_weights()"));

    std::fs::remove_file(&weights).unwrap();
    let variant = |name: &str| unet.join(format!("diffusion_pytorch_model.{name}.safetensors"));
    std::fs::write(variant("non_ema"), &original).unwrap();
    let expected = draw(&["--model", MODEL]);
    assert_eq!(draw(&["--model", text(model.path())]), expected);
    std::fs::write(variant("other"), &original).unwrap();
    assert!(refused(&["--model", text(model.path())]).contains("several variants (non_ema, other)"));
    std::fs::write(variant("fp16"), &original).unwrap();
    assert_eq!(draw(&["--model", text(model.path())]), expected);
}

/// The folder that a hub's client caches a model in may be given itself.
#[test]
fn a_folder_of_the_hubs_cache() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("snapshots/0123abc");
    copy_dir(&root().join(MODEL), &snapshot);
    let expected = draw(&["--model", MODEL]);
    assert_eq!(draw(&["--model", text(cache.path())]), expected);
    copy_dir(&root().join("tests/golden/sd21_tiny/pipeline"), &cache.path().join("snapshots/4567def"));
    std::fs::create_dir(cache.path().join("refs")).unwrap();
    std::fs::write(cache.path().join("refs/main"), "0123abc").unwrap();
    assert_eq!(draw(&["--model", text(cache.path())]), expected);
}
