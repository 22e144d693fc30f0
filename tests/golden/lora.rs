//! One LoRA in three dialects, merged and attached: the UNet's output.

use crate::device::device;
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::lora::{Dialect, Lora, LoraWeights, Names};
use vp_models::parameters::map_parameters;
use vp_models::pipeline::{ModelFolder, Pipeline, Trainable};
use vp_models::unet::UNet2DConditionModel;

use crate::support::{case_dir, case_json, load_tensors, strings};

pub(crate) const CASE: &str = "rl_sd15_tiny";
const FORWARD: f64 = 1e-4;
const DIALECTS: [&str; 3] = ["pytorch_lora_weights.safetensors", "peft_names/pytorch_lora_weights.safetensors", "kohya_lora.safetensors"];

/// The case's pipeline, its UNet, and what its layers are called.
pub(crate) fn pipeline() -> (Pipeline, UNet2DConditionModel, Names) {
    let folder = case_dir(&strings(&case_json(CASE)["uses"])[0]).join("pipeline");
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&folder).unwrap(), &device()).unwrap();
    let names = pipeline.lora_names(&unet);
    (pipeline, unet, names)
}

/// `unet` with factors attached whose values are those of `weights`, the second ones times `up_factor`.
pub(crate) fn attached(
    pipeline: &Pipeline,
    unet: UNet2DConditionModel,
    weights: &LoraWeights,
    up_factor: f64,
) -> Trainable<UNet2DConditionModel> {
    let layers: Vec<String> = weights.layers.keys().map(|name| regex::escape(name)).collect();
    let (_, first) = weights.layers.first_key_value().unwrap();
    let lora = Lora { rank: first.rank, alpha: first.alpha, targets: Regex::new(&format!("^({})$", layers.join("|"))).unwrap() };
    let (_, model) = pipeline.adapted(unet, &lora, &Noise::new(0)).unwrap();
    map_parameters(model, |name, _, values| {
        let Some((layer, factor)) = name.split_once(".lora.") else { return values };
        let factors = &weights.layers[layer];
        let (stored, scale) = if factor == "up.weight" { (&factors.up, up_factor) } else { (&factors.down, 1.0) };
        burn::tensor::Tensor::<1>::from_data(stored.as_slice(), &values.device()) * scale
    })
}

fn check_output(unet: &UNet2DConditionModel) {
    let inputs = load_tensors(&strings(&case_json(CASE)["uses"])[0]);
    let timesteps: Vec<f32> = inputs.values("unet.timesteps").iter().map(|t| *t as f32).collect();
    let conditioning = Conditioning { encoder_hidden_states: inputs.get("unet.encoder_hidden_states"), added: None };
    let output = unet.forward(inputs.get("unet.sample"), &timesteps, &conditioning);
    load_tensors(CASE).assert_close("lora.unet_output", output, FORWARD);
}

#[test]
fn golden_lora_in_three_dialects() {
    let (pipeline, unet, names) = pipeline();
    let settings = case_json(CASE);
    let read = DIALECTS.map(|file| LoraWeights::read(&case_dir(CASE).join(file), &names).unwrap_or_else(|error| panic!("{error}")));
    for weights in &read {
        assert_eq!(*weights, read[0]);
        check_output(&weights.merge(Trainable::of(unet.clone()), 1.0).denoiser);
    }
    let (_, factors) = read[0].layers.first_key_value().unwrap();
    assert_eq!((Some(factors.rank as u64), Some(factors.alpha)), (settings["lora"]["rank"].as_u64(), settings["lora"]["alpha"].as_f64()));
    check_output(&attached(&pipeline, unet, &read[0], 1.0).denoiser);
}

/// Written and read again in every dialect: the same factors, and of a trained model the same output.
#[test]
fn golden_lora_written() {
    let (pipeline, unet, names) = pipeline();
    let weights = LoraWeights::read(&case_dir(CASE).join(DIALECTS[0]), &names).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let taken = LoraWeights::of(&attached(&pipeline, unet.clone(), &weights, 1.0), 8.0);
    assert_eq!(taken, weights);
    for dialect in [Dialect::Kohya, Dialect::Diffusers, Dialect::Peft] {
        let path = dir.path().join("lora.safetensors");
        taken.save(&path, dialect, &names, &[]).unwrap();
        assert_eq!(LoraWeights::read(&path, &names).unwrap(), weights, "{dialect:?}");
    }
}
