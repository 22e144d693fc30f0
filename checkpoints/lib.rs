//! Floor 0: the files of the shipped model, as bytes, but for its UNet, which is the crate `vp-shapes-unet`.

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        /// Each file by its path within the model's folder.
        pub const FILES: &[(&str, &[u8])] = &[$(($name, include_bytes!(concat!("shapes/", $name)))),+];
    };
}

files![
    "model_index.json",
    "README.md",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vp-score/config.json",
    "vp-score/model.safetensors",
    "vp-score/vocab.txt",
];
