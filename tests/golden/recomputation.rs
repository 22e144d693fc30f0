//! Gradients with recomputed blocks are those of a tape that keeps everything: every network on its golden checkpoint.

use crate::device::device;
use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::GradientCheckpointing::{self, Blocks, None as Kept};
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::lora::{FACTORS, Lora};
use vp_models::parameters::{map_parameters, named_gradients, select_trainable};
use vp_models::pipeline::{ModelFolder, Pipeline, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_rewards::{Reward, RewardConfig, VpScoreConfig};

use crate::support::{assert_close_values, case_dir, case_json, load_tensors, strings};

/// Of the largest value of each gradient.
const SAME: f64 = 1e-5;
/// The same off the CPU, where the second run of a block may be fused and tuned otherwise.
const SAME_OFF_CPU: f64 = 1e-4;
/// A gradient this much smaller than the largest of its network is rounding noise, which the order of additions decides.
const NOISE: f64 = 1e-6;

type Named = Vec<(String, Vec<f64>)>;

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn input<const D: usize>(name: &str, leaf: &Tensor<D>, gradients: &mut Gradients) -> (String, Vec<f64>) {
    (name.into(), host(leaf.grad_remove(gradients).unwrap_or_else(|| panic!("no gradient of {name}"))))
}

fn parameters<M: Module>(module: &M, gradients: &mut Gradients) -> Named {
    named_gradients(module, gradients).into_iter().map(|(name, gradient)| (name, host(gradient))).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max: f64, value| max.max(value.abs()))
}

/// Asserts that `gradients` finds the same with both, at least `least` of them, and none of them zero throughout by mistake.
fn assert_same(what: &str, least: usize, gradients: impl Fn(GradientCheckpointing) -> Named) {
    let (expected, got) = (gradients(Kept), gradients(Blocks));
    assert!(expected.len() >= least, "{what}: {} gradients, expected at least {least}", expected.len());
    let overall = expected.iter().map(|(_, values)| largest(values)).fold(0.0, f64::max);
    assert!(overall > 0.0, "{what}: all gradients are zero");
    let names = |named: &Named| named.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&got), names(&expected), "{what}");
    let same = if device() == burn::tensor::Device::flex() { SAME } else { SAME_OFF_CPU };
    for ((name, got), (_, expected)) in got.iter().zip(&expected) {
        if largest(expected) > NOISE * overall {
            assert_close_values(&format!("{what}: {name}"), got, expected, same);
        } else {
            assert!(largest(got) <= 2.0 * NOISE * overall, "{what}: {name} is {}, expected next to nothing", largest(got));
        }
    }
}

fn pipeline(case: &str) -> (Pipeline, UNet2DConditionModel) {
    Pipeline::load(ModelFolder::open(&case_dir(case).join("pipeline")).unwrap(), &device()).unwrap()
}

/// Gradients of the golden UNet case: of the sample, of the text embeddings, and of what `model` trains.
fn of_unet(case: &str, model: &Trainable<UNet2DConditionModel>, kept: GradientCheckpointing) -> Named {
    let (tensors, mut unet) = (load_tensors(case), model.denoiser.clone());
    unet.gradient_checkpointing = kept;
    let sample = tensors.get::<4>("unet.sample").autodiff().require_grad();
    let states = tensors.get::<3>("unet.encoder_hidden_states").autodiff().require_grad();
    let timesteps: Vec<f32> = tensors.values("unet.timesteps").iter().map(|t| *t as f32).collect();
    let conditioning = Conditioning { encoder_hidden_states: states.clone(), added: None };
    let output = unet.forward(sample.clone(), &timesteps, &conditioning);
    let mut gradients = (output * tensors.get("unet.cotangent")).sum().backward();
    let mut found = parameters(&unet, &mut gradients);
    found.extend([input("sample", &sample, &mut gradients), input("encoder_hidden_states", &states, &mut gradients)]);
    found
}

#[test]
fn a_unet_whose_weights_train() {
    let (_, unet) = pipeline("sd15_tiny");
    let model = Trainable::of(unet.train());
    assert_same("whole weights", 100, |kept| of_unet("sd15_tiny", &model, kept));
    let (some, _) = select_trainable(model, &Regex::new(r"attn2\..*weight|upsamplers|conv_out").unwrap());
    assert_same("some weights", 20, |kept| of_unet("sd15_tiny", &some, kept));
}

/// On every linear layer and convolution, and off their beginning, where half of the gradients are zero.
#[test]
fn a_unet_with_a_lora() {
    let (pipeline, unet) = pipeline("sd15_tiny");
    let lora = Lora { rank: 2, alpha: 2.0, targets: Regex::new(r"^unet\.").unwrap() };
    let (_, model) = pipeline.adapted(unet, &lora, &Noise::new(3)).unwrap();
    let model = map_parameters(model, |name, _, values| if name.contains(".lora.up") { values + 0.02 } else { values });
    let (model, _) = select_trainable(model.train(), &Regex::new(FACTORS).unwrap());
    assert_same("LoRA", 200, |kept| of_unet("sd15_tiny", &model, kept));
}

#[test]
fn a_text_encoder_that_trains_behind_a_frozen_unet() {
    let (pipeline, unet) = pipeline("sd15_tiny");
    let all = pipeline.trainable(unet, &Regex::new(r"^text_encoder\.").unwrap());
    let (model, _) = select_trainable(all.train(), &Regex::new(r"^text_encoder\.").unwrap());
    let tensors = load_tensors("sd15_tiny");
    let prompts = ["a red fox".to_string(), "a lighthouse at dusk".to_string()];
    assert_same("text encoder", 20, |kept| {
        let mut unet = model.denoiser.clone();
        unet.gradient_checkpointing = kept;
        let conditioning = model.text(&pipeline.text).encode(&prompts, [64, 64], pipeline.device());
        let sample = tensors.get::<4>("unet.sample").narrow(0, 0, 1).repeat_dim(0, 2);
        let loss = unet.forward(sample, &[500.0, 20.0], &conditioning).square().mean();
        parameters(&model, &mut loss.backward())
    });
}

#[test]
fn an_autoencoder_frozen_and_trained() {
    let tensors = load_tensors("sd15_tiny");
    let (pipeline, _) = pipeline("sd15_tiny");
    for (what, vae, least) in [("frozen autoencoder", pipeline.vae.clone(), 2), ("trained autoencoder", pipeline.vae.train(), 80)] {
        assert_same(what, least, |kept| {
            let mut vae = vae.clone();
            vae.gradient_checkpointing = kept;
            let latents = tensors.get::<4>("vae.latents").autodiff().require_grad();
            let image = tensors.get::<4>("vae.image").autodiff().require_grad();
            let decoded = (vae.decode(latents.clone()) * tensors.get("vae.cotangent")).sum();
            let loss = decoded + (vae.moments(image.clone()) * tensors.get("vae.encode_cotangent")).sum();
            let mut gradients = loss.backward();
            let mut found = parameters(&vae, &mut gradients);
            found.extend([input("latents", &latents, &mut gradients), input("image", &image, &mut gradients)]);
            found
        });
    }
}

#[test]
fn a_reward_frozen_and_in_a_sum() {
    let tensors = load_tensors("blip_reward_tiny");
    let prompts = strings(&case_json("blip_reward_tiny")["prompts"]);
    let weights = case_dir("blip_reward_tiny").join("model");
    let alone = RewardConfig::VpScore(VpScoreConfig::new(&weights));
    let sum: RewardConfig = vp_core::config::parse(
        &format!("[[weighted_sum.terms]]\nweight = 2.0\nreward = {{ vp_score = {{ weights = {:?} }} }}", weights.display().to_string()),
        "sum",
        &[],
    )
    .unwrap();
    for (what, config) in [("reward", alone), ("weighted sum", sum)] {
        assert_same(what, 1, |kept| {
            let mut reward: Box<dyn Reward> = config.build(&device()).unwrap();
            reward.set_gradient_checkpointing(kept);
            let images = (tensors.get::<4>("pixel_values") * 0.2 + 0.5).autodiff().require_grad();
            let mut gradients = reward.score(images.clone(), &prompts).unwrap().sum().backward();
            vec![input("images", &images, &mut gradients)]
        });
    }
}
