//! Cases of several parts: an adapted layer, an optimizer, a whole reward gradient, sampling.

use std::path::Path;

use anyhow::Context;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::NetworkConfig;
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::layers::{Activation, Conv2d, LayerNorm, Linear};
use vp_models::lora::{Lora, attach};
use vp_models::parameters::{named_gradients, named_parameters};
use vp_models::pipeline::{ModelFolder, Pipeline, Request, Trainable};
use vp_models::unet::UNetConfig;
use vp_models::vae::AutoencoderConfig;
use vp_schedulers::{build_sampler, by_name};
use vp_trainers::losses::reward_loss;
use vp_trainers::optim::{AdamW, AdamWConfig};

use super::inputs::Place;
use super::operations::on_host;
#[cfg(test)]
use super::reference;
use super::{Computed, Network};
use crate::embedded;

/// The adapted layer's rank.
pub const LORA_RANK: usize = 4;
/// Its scale is this over the rank.
pub const LORA_ALPHA: f64 = 6.0;
/// The rate of the AdamW case. So large that the update is as large as the weights.
pub const LEARNING_RATE: f64 = 0.1;

/// A linear map with low-rank factors: its output, and the gradients of the factors and of what it is given.
pub static LORA: Network = Network {
    compute: lora,
    #[cfg(test)]
    exact: Some(reference::lora),
};

/// Two updates of a matrix and its bias.
pub static ADAMW: Network = Network {
    compute: adamw,
    #[cfg(test)]
    exact: Some(reference::adamw),
};

/// What ReFL does in small: one prediction by a UNet, the image it promises, a reward for it, and the gradient back to the UNet.
pub static REWARD_GRADIENT: Network = Network {
    compute: reward_gradient,
    #[cfg(test)]
    exact: None,
};

/// An image by the embedded model, guided.
pub static SAMPLING: Network = Network {
    compute: sampling,
    #[cfg(test)]
    exact: None,
};

#[derive(Module, Debug)]
struct Adapted {
    linear: Linear,
}

fn lora(place: &Place) -> anyhow::Result<Vec<Computed>> {
    let device = place.device.clone().autodiff();
    let lora = Lora { rank: LORA_RANK, alpha: LORA_ALPHA, targets: Regex::new("^linear$")? };
    let module = attach(Adapted { linear: Linear::new(40, 48, &device) }, &lora, &Noise::new(0))?;
    let module = place.fill(module);
    let x = place.constant("x", [2, 9, 40]).autodiff().require_grad();
    let output = module.linear.forward(x.clone());
    let weights = place.constant("output gradient", output.dims()).autodiff();
    let mut gradients = (output.clone() * weights).sum().backward();
    let of_x = x.grad_remove(&mut gradients).context("the input is used")?;
    let of_factors = named_gradients(&module, &mut gradients).into_iter().filter(|(name, _)| name.contains(".lora."));
    let computed = [Computed::new("output", on_host(output.without_autodiff())), Computed::new("x", on_host(of_x))];
    Ok(computed.into_iter().chain(of_factors.map(|(name, gradient)| Computed::new(name, on_host(gradient)))).collect())
}

fn adamw(place: &Place) -> anyhow::Result<Vec<Computed>> {
    let mut module = place.fill(Adapted { linear: Linear::new(40, 48, &place.device.clone().autodiff()) });
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for step in ["first", "second"] {
        let gradient = |name: &str, count| place.constant(&format!("{step} gradient of {name}"), [count]);
        let gradients = [("linear.weight", 40 * 48), ("linear.bias", 48)].map(|(name, count)| (name.to_string(), gradient(name, count)));
        module = optimizer.step(module, &gradients.into(), LEARNING_RATE);
    }
    Ok(named_parameters(&module).into_iter().map(|parameter| Computed::new(parameter.name, on_host(parameter.values))).collect())
}

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 24, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}"#;

const VAE: &str = r#"{"_class_name": "AutoencoderKL", "block_out_channels": [16, 24], "layers_per_block": 1, "norm_num_groups": 8,
    "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "scaling_factor": 1.0}"#;

/// Weights whose gradients are compared value by value; of the others, their length.
const FOLLOWED: [&str; 6] = [
    "time_embedding.linear_1.weight",
    "conv_in.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "mid_block.resnets.0.norm1.weight",
    "up_blocks.1.resnets.0.conv1.weight",
    "conv_out.bias",
];

/// Patches of an image, a perceptron, one number: as a reward with weights ends.
#[derive(Module, Debug)]
struct PatchReward {
    patches: Conv2d,
    norm: LayerNorm,
    hidden: Linear,
    score: Linear,
}

impl PatchReward {
    fn new(device: &Device) -> Self {
        Self {
            patches: Conv2d::strided(3, 24, 4, 4, (0, 0), device),
            norm: LayerNorm::new(24, 1e-5, device),
            hidden: Linear::new(24, 32, device),
            score: Linear::new(32, 1, device),
        }
    }

    /// `[b, 3, h, w]` → `[b]`.
    fn score(&self, images: Tensor<4>) -> Tensor<1> {
        let tokens = self.norm.forward(self.patches.forward_patches(images));
        let hidden = Activation::Gelu.forward(self.hidden.forward(tokens));
        self.score.forward(hidden.mean_dim(1)).flatten(0, 2)
    }
}

fn reward_gradient(place: &Place) -> anyhow::Result<Vec<Computed>> {
    let unet = place.fill(UNetConfig::parse("the UNet of the device check", UNET)?.init(&place.device.clone().autodiff()));
    let vae = place.fill(AutoencoderConfig::parse("the decoder of the device check", VAE)?.init(&place.device));
    let reward = place.fill(PatchReward::new(&place.device));
    let latents = place.constant("latents", [2, 4, 8, 8]) * 2.0;
    let conditioning = Conditioning { encoder_hidden_states: place.constant("prompt embeddings", [2, 7, 24]) * 2.0, added: None };

    // The clean latents that a prediction of noise at this level promises.
    let (signal, noise) = (0.8, 0.6);
    let noise_pred = unet.forward(latents.clone().autodiff(), &[251.0, 601.0], &conditioning);
    let pred_original_sample = (latents.autodiff() - noise_pred.clone() * noise) / signal;
    let images = vae.decode_to_images(pred_original_sample);
    let rewards = reward.score(images.clone());
    let mut gradients = reward_loss(rewards.clone(), 1.0).backward();
    let gradients = named_gradients(&unet, &mut gradients);

    let mut computed = vec![
        Computed::new("noise prediction", on_host(noise_pred.without_autodiff())),
        Computed::new("images", on_host(images.without_autodiff())),
        Computed::new("rewards", on_host(rewards.without_autodiff())),
    ];
    let mut lengths = Vec::new();
    for (name, gradient) in gradients {
        let values = on_host(gradient);
        lengths.push(values.iter().map(|value| value * value).sum::<f64>().sqrt());
        if FOLLOWED.contains(&name.as_str()) {
            computed.push(Computed::new(name, values));
        }
    }
    computed.push(Computed::new("lengths of all gradients", lengths));
    Ok(computed)
}

fn sampling(place: &Place) -> anyhow::Result<Vec<Computed>> {
    let folder = ModelFolder::open(&embedded::resolve(Path::new(embedded::SHAPES))?)?;
    let size = folder.default_size();
    let mut sampler = build_sampler(&folder.scheduler_config, Some(by_name("ddim")?), 10, 0.0)?;
    let (pipeline, unet) = Pipeline::load(folder, &place.device)?;
    let [channels, height, width] = pipeline.latent_shape(size);
    // A uniform value in [-1, 1) times √3 has the variance of the noise that the model knows.
    let latents = place.constant("noise", [2, channels, height, width]) * 3.0_f64.sqrt();
    let prompts = ["a red circle", "a blue square to the left of a green triangle"].map(String::from);
    let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale: embedded::GUIDANCE_SCALE, size };
    let mut noise = |step: usize| -> Tensor<4> { unreachable!("step {step} of a deterministic sampler draws noise") };
    let images = pipeline.generate(&Trainable::of(unet), &mut *sampler, &request, latents, &mut noise);
    Ok(vec![Computed::new("images", on_host(images))])
}
