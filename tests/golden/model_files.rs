//! Models in the forms that people have them: single files of the original code, PyTorch's `.bin`, names that a wrapper changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Tensor;
use vp_models::denoiser::{AddedConditioning, Conditioning, Denoiser};
use vp_models::parameters::named_parameters;
use vp_models::pipeline::{LoadedDenoiser, ModelFolder, ModelOptions, Pipeline, Request, TextModel, Trainable};
use vp_models::weights::{SaveType, Weights};
use vp_schedulers::{build_sampler, by_name};

use crate::device::device;
use crate::support::{Tensors, case_dir, case_json, load_tensors};

const FORWARD: f64 = 1e-4;

fn load(path: &Path, options: ModelOptions) -> (Pipeline, LoadedDenoiser) {
    let folder = ModelFolder::open_with(path, options).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Pipeline::load(folder, &device()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The single files of a case.
fn single_files(case: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(case_dir(case)).unwrap().map(|entry| entry.unwrap().path());
    let is_model = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("model");
    let found: Vec<PathBuf> = entries.filter(is_model).collect();
    assert!(!found.is_empty(), "{case} has no model file");
    found
}

fn values<M: Module>(component: &str, network: &M) -> BTreeMap<String, Vec<f32>> {
    let all = named_parameters(network).into_iter();
    all.map(|p| (format!("{component}.{}", p.name), p.values.into_data().try_to_vec().unwrap())).collect()
}

/// Every weight of a model, by component and name.
fn weights((pipeline, unet): &(Pipeline, LoadedDenoiser)) -> BTreeMap<String, Vec<f32>> {
    let mut all = values("unet", unet);
    all.extend(values("vae", &pipeline.vae));
    for encoder in &pipeline.text.encoders {
        let TextModel::Clip(model) = &encoder.model;
        all.extend(values(encoder.component, model));
    }
    all
}

fn assert_same_weights(name: &str, found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (parameter, values) in found {
        assert_eq!(values, &expected[parameter], "{name}: {parameter}");
    }
}

fn check_unet(tensors: &Tensors, unet: &LoadedDenoiser, output: &str) {
    let timesteps: Vec<f32> = tensors.values("unet.timesteps").iter().map(|t| *t as f32).collect();
    let added = tensors.contains("time_ids").then(|| AddedConditioning {
        text_embeds: tensors.get::<2>("text_embeds_2"),
        time_ids: Some(tensors.values("time_ids").chunks(6).map(|ids| std::array::from_fn(|i| ids[i] as f32)).collect()),
    });
    let conditioning = Conditioning { encoder_hidden_states: tensors.get("unet.encoder_hidden_states"), added };
    tensors.assert_close(output, unet.forward(tensors.get("unet.sample"), &timesteps, &conditioning), FORWARD);
}

fn check_vae(tensors: &Tensors, pipeline: &Pipeline) {
    let posterior = pipeline.vae.encode(tensors.get("vae.image"));
    tensors.assert_close("vae.mean", posterior.mean, FORWARD);
    tensors.assert_close("vae.logvar", posterior.logvar, FORWARD);
    tensors.assert_close("vae.decoded", pipeline.vae.decode(tensors.get("vae.latents")), FORWARD);
}

/// Text encoders, UNet, autoencoder and a whole image of an opened model.
fn check_outputs(case: &str, (pipeline, unet): (Pipeline, LoadedDenoiser)) {
    let (settings, tensors) = (case_json(case), load_tensors(case));
    let prompts = crate::support::strings(&settings["prompts"]);
    let encoded = pipeline.text.encode(&prompts, [64, 64], pipeline.device());
    match encoded.added {
        None => tensors.assert_close("text_last_hidden_state", encoded.encoder_hidden_states, FORWARD),
        Some(added) => {
            let both = Tensor::cat(vec![tensors.get::<3>("text_penultimate"), tensors.get::<3>("text_penultimate_2")], 2);
            crate::support::assert_close(&format!("{case}: penultimate states"), encoded.encoder_hidden_states, both, FORWARD);
            tensors.assert_close("text_embeds_2", added.text_embeds, FORWARD);
        }
    }
    check_unet(&tensors, &unet, "unet.output");
    check_vae(&tensors, &pipeline);

    let settings = &settings["pipeline"];
    let (config, ddim) = (&pipeline.folder.scheduler_config, by_name(settings["scheduler"].as_str().unwrap()).unwrap());
    let steps = settings["num_inference_steps"].as_u64().unwrap() as usize;
    let mut sampler = build_sampler(config, Some(ddim), steps, 0.0).unwrap();
    let request = Request {
        prompts: &[settings["prompt"].as_str().unwrap().to_string()],
        negative_prompt: settings["negative_prompt"].as_str(),
        guidance_scale: settings["guidance_scale"].as_f64().unwrap(),
        size: ["height", "width"].map(|side| settings[side].as_u64().unwrap() as usize),
    };
    let mut noise = |_| panic!("DDIM with eta 0 draws no noise");
    let images = pipeline.generate(&Trainable::of(unet), &mut *sampler, &request, tensors.get("pipeline.latents"), &mut noise);
    tensors.assert_close("pipeline.images", images, FORWARD);
}

/// A single file has the weights of the folder, bit for bit, and draws what the original drew; written again, it is the same.
fn check_single_file(case: &str) {
    let folder = case_dir(case).join("pipeline");
    let expected = weights(&load(&folder, ModelOptions::default()));
    for file in single_files(case) {
        let options = || ModelOptions { config: Some(folder.clone()), ..Default::default() };
        let loaded = load(&file, options());
        assert_same_weights(&file.display().to_string(), &weights(&loaded), &expected);

        let directory = tempfile::tempdir().unwrap();
        let again = directory.path().join("again.safetensors");
        loaded.0.export_single_file(&Trainable::of(loaded.1.clone()), &again, SaveType::F32).unwrap();
        assert_same_weights("written again", &weights(&load(&again, options())), &expected);
        assert_same_layout(&again, &file);
        let as_folder = directory.path().join("folder");
        loaded.0.folder.export(&as_folder, &[]).unwrap();
        assert_same_weights("written as a folder", &weights(&load(&as_folder, ModelOptions::default())), &expected);
        check_outputs(case, loaded);
    }
}

/// What is written has the names and shapes of the original file, less what nobody reads.
fn assert_same_layout(written: &Path, original: &Path) {
    let shapes = |path: &Path| -> BTreeMap<String, Vec<usize>> {
        Weights::open(path).unwrap().iter().map(|(name, stored)| (name.to_string(), stored.shape().to_vec())).collect()
    };
    let (written, original) = (shapes(written), shapes(original));
    for (name, shape) in &written {
        assert_eq!(original.get(name), Some(shape), "{name}");
    }
    let unread = |name: &str| {
        let buffers = ["betas", "alphas", "sqrt_", "log_one_minus", "posterior_", "position_ids", "logit_scale", "lvlb_weights", "sigmas"];
        buffers.iter().any(|part| name.contains(part)) || name.starts_with("cond_stage_model.model.")
    };
    let lost: Vec<&String> = original.keys().filter(|name| !written.contains_key(*name) && !unread(name)).collect();
    assert!(lost.is_empty(), "not written: {lost:?}");
}

#[test]
fn golden_single_file_of_1() {
    check_single_file("ldm_sd15_tiny");
}

#[test]
fn golden_single_file_of_2() {
    check_single_file("ldm_sd21v_tiny");
}

#[test]
fn golden_single_file_of_xl() {
    check_single_file("ldm_sdxl_tiny");
}

/// A trainer's own file and one from before torch 1.6, with the averaged weights where they are asked for.
#[test]
fn golden_pickled_single_file() {
    let (case, folder) = ("ldm_sd15_ckpt_tiny", case_dir("ldm_sd15_tiny").join("pipeline"));
    let (tensors, expected) = (load_tensors(case), weights(&load(&folder, ModelOptions::default())));
    for file in single_files(case) {
        let options = ModelOptions { config: Some(folder.clone()), ..Default::default() };
        let loaded = load(&file, options.clone());
        assert_same_weights(&file.display().to_string(), &weights(&loaded), &expected);
        check_unet(&tensors, &loaded.1, "unet.output");
        let averaged = ModelFolder::open_with(&file, ModelOptions { ema: true, ..options }).and_then(|f| Pipeline::load(f, &device()));
        match averaged {
            Ok((_, unet)) => {
                let found = values("unet", &unet);
                for name in ["conv_in.weight", "conv_out.bias"] {
                    let theirs: Vec<f32> = tensors.values(&format!("unet_ema.{name}")).iter().map(|value| *value as f32).collect();
                    assert_eq!(found[&format!("unet.{name}")], theirs, "{name}");
                }
                check_unet(&tensors, &unet, "unet_ema.output");
            }
            Err(error) => {
                assert!(file.ends_with("model_pruned_legacy.ckpt") && error.to_string().contains("no averaged (EMA) weights"), "{error}");
            }
        }
    }
}

/// The published sizes' rules are enough where no config is given.
#[test]
fn golden_single_file_without_configs() {
    let case = "ldm_sd15_inferred_tiny";
    for file in single_files(case) {
        let loaded = load(&file, ModelOptions::default());
        let folder = &loaded.0.folder;
        let expected = &case_json(case)["expected_config"];
        for (name, found) in [
            ("unet", &folder.unet_config().raw),
            ("vae", &folder.vae_config().raw),
            ("text_encoder", &folder.text_config("text_encoder").raw),
        ] {
            // The size of the training images is in no tensor.
            for (field, value) in found.iter().filter(|(field, _)| *field != "sample_size") {
                assert_eq!(value, &expected[name][field], "{name}.{field}");
            }
        }
        check_outputs(case, loaded);
    }
}

/// An autoencoder in a file of its own takes the place of a model's.
#[test]
fn golden_autoencoder_file() {
    let (case, base) = ("ldm_vae_tiny", case_dir("ldm_sd15_tiny").join("pipeline"));
    let tensors = load_tensors(case);
    let own = load(&base, ModelOptions::default()).0;
    for vae in ["vae.safetensors", "vae.ckpt", "vae", "vae/diffusion_pytorch_model.safetensors"] {
        let options = ModelOptions { vae: Some(case_dir(case).join(vae)), ..Default::default() };
        let (pipeline, _) = load(&base, options);
        assert_ne!(values("", &pipeline.vae), values("", &own.vae));
        check_vae(&tensors, &pipeline);
        let written = tempfile::tempdir().unwrap();
        let written = written.path().join("model");
        pipeline.folder.export(&written, &[]).unwrap();
        assert_eq!(values("", &load(&written, ModelOptions::default()).0.vae), values("", &pipeline.vae), "{vae}");
    }
}

/// `.bin` in both pickles, in shards and variants, and names behind a wrapper's prefix: one and the same model.
#[test]
fn golden_bin_and_wrapped_names() {
    let case = "unet_bin_tiny";
    let expected = weights(&load(&case_dir(case).join("zip"), ModelOptions::default()));
    for form in ["zip", "legacy", "sharded", "compiled", "dataparallel"] {
        let loaded = load(&case_dir(case).join(form), ModelOptions::default());
        let written = tempfile::tempdir().unwrap();
        let written = written.path().join("model");
        loaded.0.folder.export(&written, &[]).unwrap();
        assert!(written.join("unet/diffusion_pytorch_model.safetensors").is_file(), "{form}");
        assert_same_weights(form, &weights(&load(&written, ModelOptions::default())), &weights(&loaded));
        assert_eq!(weights(&loaded).keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        check_outputs(case, loaded);
    }
}
