//! Published networks with random weights, at their published sizes.

use burn::module::Module;
use burn::tensor::Device;
use regex::Regex;
use serde_json::Map;
use vp_core::noise::Noise;
use vp_models::NumberFormat;
use vp_models::blip::{BlipConfig, VisionTransformer};
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::lora::{FACTORS, Lora, attach};
use vp_models::number_format;
use vp_models::parameters::{initialize, named_gradients, select_trainable};
use vp_models::unet::{UNet2DConditionModel, UNetConfig};
use vp_models::vae::AutoencoderConfig;
use vp_trainers::losses::mean_squared_error;

use crate::{Case, random};

/// Latents of a 512×512 and of a 256×256 image.
const LATENTS: [usize; 2] = [64, 32];

pub fn cases() -> Vec<Case> {
    let in_formats =
        [("", NumberFormat::F32), ("_bf16", NumberFormat::Bf16)].into_iter().flat_map(|(suffix, format)| in_format(suffix, format));
    let input_gradient = Case::of("blip_vit_l_input_gradient", || {
        let (vit, pixel_values) = (vit(NumberFormat::F32), random([1, 3, 224, 224], &plain().autodiff()).require_grad());
        Box::new(move || pixel_values.grad(&vit.forward(pixel_values.clone()).sum().backward()).expect("pixels are on the tape"))
    });
    in_formats.chain([input_gradient]).collect()
}

/// The cases that are there in several number formats of frozen weights and activations.
fn in_format(suffix: &str, format: NumberFormat) -> [Case; 4] {
    [
        Case::of(format!("unet_sd15_64_forward{suffix}"), move || {
            let (unet, sample, conditioning) = (unet(format), random([1, 4, LATENTS[0], LATENTS[0]], &plain()), conditioning());
            Box::new(move || unet.forward(sample.clone(), &[500.0], &conditioning))
        }),
        Case::of(format!("unet_sd15_32_lora_backward{suffix}"), move || {
            let shape = [1, 4, LATENTS[1], LATENTS[1]];
            let (sample, target, conditioning) = (random(shape, &plain()), random(shape, &plain()), conditioning());
            let unet = adapted(unet(format));
            Box::new(move || {
                let loss = mean_squared_error(unet.forward(sample.clone(), &[500.0], &conditioning), target.clone());
                named_gradients(&unet, &mut loss.backward())
            })
        }),
        Case::of(format!("vae_decode_512{suffix}"), move || {
            let vae = initialize(sd15_vae().init(&plain()), &Noise::new(0)).in_format(format, None).expect("weights that fit");
            let latents = random([1, 4, LATENTS[0], LATENTS[0]], &plain());
            Box::new(move || vae.decode(latents.clone()))
        }),
        Case::of(format!("blip_vit_l_forward{suffix}"), move || {
            let (vit, pixel_values) = (vit(format), random([1, 3, 224, 224], &plain()).cast(format.dtype()));
            Box::new(move || vit.forward(pixel_values.clone()))
        }),
    ]
}

fn plain() -> Device {
    Device::flex()
}

fn unet(format: NumberFormat) -> UNet2DConditionModel {
    initialize(sd15_unet().init(&plain()), &Noise::new(0)).in_format(format, None).expect("weights that fit")
}

/// On the tape, with factors of rank 4 on the attention's projections, which alone train.
fn adapted(unet: UNet2DConditionModel) -> UNet2DConditionModel {
    let targets = Regex::new(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$").expect("a pattern");
    let adapted = attach(unet, &Lora { rank: 4, alpha: 4.0, targets }, &Noise::new(0)).expect("layers match");
    select_trainable(adapted.train(), &Regex::new(FACTORS).expect("a pattern")).0
}

fn conditioning() -> Conditioning {
    Conditioning { encoder_hidden_states: random([1, 77, 768], &plain()), added: None }
}

/// ViT-L/16 at 224 pixels, the image encoder of ImageReward: 303 million weights.
fn vit(format: NumberFormat) -> VisionTransformer {
    let vit = initialize(VisionTransformer::new(&BlipConfig::image_reward(), &plain()), &Noise::new(0));
    number_format::in_format(vit, "visual_encoder", format, None).expect("weights that fit")
}

fn sd15_unet() -> UNetConfig {
    UNetConfig {
        in_channels: 4,
        out_channels: 4,
        sample_size: Some([64, 64]),
        center_input_sample: false,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        down_attention: vec![true, true, true, false],
        up_attention: vec![false, true, true, true],
        block_out_channels: vec![320, 640, 1280, 1280],
        layers_per_block: vec![2; 4],
        mid_block_scale_factor: 1.0,
        norm_num_groups: 32,
        norm_eps: 1e-5,
        cross_attention_dim: vec![768; 4],
        num_attention_heads: vec![8; 4],
        transformer_layers_per_block: vec![1; 4],
        use_linear_projection: false,
        time_embedding_dim: 1280,
        addition: None,
        raw: Map::new(),
    }
}

fn sd15_vae() -> AutoencoderConfig {
    AutoencoderConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 32,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        use_quant_conv: true,
        use_post_quant_conv: true,
        sample_size: None,
        mid_block_add_attention: true,
        raw: Map::new(),
    }
}
