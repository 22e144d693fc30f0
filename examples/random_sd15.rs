//! Writes models of published size with random weights, to see what a run on them takes: a diffusers folder of Stable Diffusion 1.5's
//! shape (4 GB) and a reward of ImageReward's (2 GB). What they draw is noise.
//!
//!     cargo run --release --example random_sd15 -- FOLDER CLIP_TOKENIZER BERT_VOCAB
//!
//! CLIP_TOKENIZER is a folder with `vocab.json` and `merges.txt` (any SD 1.x folder's `tokenizer/`), BERT_VOCAB bert-base-uncased's
//! `vocab.txt`. Leaves FOLDER/sd15 and FOLDER/image_reward.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Value, json};
use vp_core::noise::Noise;
use vp_models::NetworkConfig;
use vp_models::blip::{BlipConfig, BlipReward};
use vp_models::clip::{ClipTextConfig, published_name};
use vp_models::parameters::{initialize, named_parameters};
use vp_models::unet::UNetConfig;
use vp_models::vae::AutoencoderConfig;
use vp_models::weights::{SaveType, save_safetensors};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The networks' `config.json` and the other small files, as published.
fn small_files() -> Vec<(&'static str, Value)> {
    let (cross, plain) = (["CrossAttnDownBlock2D"; 3], "DownBlock2D");
    let down: Vec<&str> = cross.into_iter().chain([plain]).collect();
    let up: Vec<&str> = ["UpBlock2D"].into_iter().chain(["CrossAttnUpBlock2D"; 3]).collect();
    vec![
        (
            "model_index.json",
            json!({ "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
                    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
                    "safety_checker": [null, null], "feature_extractor": [null, null], "requires_safety_checker": false }),
        ),
        (
            "unet/config.json",
            json!({ "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
                    "center_input_sample": false, "cross_attention_dim": 768, "down_block_types": down, "downsample_padding": 1, "flip_sin_to_cos": true,
                    "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32,
                    "out_channels": 4, "sample_size": 64, "up_block_types": up }),
        ),
        (
            "vae/config.json",
            json!({ "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": (["DownEncoderBlock2D"; 4]),
                    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
                    "scaling_factor": 0.18215, "up_block_types": (["UpDecoderBlock2D"; 4]) }),
        ),
        (
            "text_encoder/config.json",
            json!({ "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
                    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
                    "layer_norm_eps": 1e-5, "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1 }),
        ),
        (
            "scheduler/scheduler_config.json",
            json!({ "_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
                    "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": false, "steps_offset": 1, "timestep_spacing": "leading" }),
        ),
        (
            "tokenizer/special_tokens_map.json",
            json!({ "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>" }),
        ),
    ]
}

fn write(path: &Path, value: &Value) -> Outcome {
    fs::create_dir_all(path.parent().ok_or("a path with a folder")?)?;
    Ok(fs::write(path, serde_json::to_string_pretty(value)?)?)
}

/// Draws a network's weights and writes them under `names`.
fn save<M: Module>(network: M, path: &Path, names: fn(&str) -> String) -> Outcome {
    let parameters = named_parameters(&initialize(network, &Noise::new(0)));
    let names: Vec<String> = parameters.iter().map(|parameter| names(&parameter.name)).collect();
    let tensors = parameters.iter().zip(&names).map(|(parameter, name)| {
        let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| parameter.values.to_data().try_into_vec().expect("weights are f32"));
        (name.as_str(), parameter.shape.as_slice(), values)
    });
    save_safetensors(path, tensors, &[], SaveType::F32)?;
    println!("{}: {} values", path.display(), parameters.iter().map(|parameter| parameter.values.dims()[0]).sum::<usize>());
    Ok(())
}

fn main() -> Outcome {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, tokenizer, vocab] = &paths[..] else { return Err("expected FOLDER CLIP_TOKENIZER BERT_VOCAB".into()) };
    let (sd15, reward, device) = (folder.join("sd15"), folder.join("image_reward"), Device::flex());
    for (path, value) in small_files() {
        write(&sd15.join(path), &value)?;
    }
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(tokenizer.join(file), sd15.join("tokenizer").join(file))?;
    }
    let blip = BlipConfig::image_reward();
    write(&reward.join("config.json"), &serde_json::to_value(&blip)?)?;
    fs::copy(vocab, reward.join("vocab.txt"))?;

    let same: fn(&str) -> String = str::to_string;
    save(UNetConfig::read(&sd15.join("unet/config.json"))?.init(&device), &sd15.join("unet/diffusion_pytorch_model.safetensors"), same)?;
    save(
        AutoencoderConfig::read(&sd15.join("vae/config.json"))?.init(&device),
        &sd15.join("vae/diffusion_pytorch_model.safetensors"),
        same,
    )?;
    let text_encoder = ClipTextConfig::read(&sd15.join("text_encoder/config.json"))?.init(&device);
    save(text_encoder, &sd15.join("text_encoder/model.safetensors"), published_name)?;
    save(BlipReward::new(&blip, &device), &reward.join("model.safetensors"), same)
}
