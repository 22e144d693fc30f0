//! Floor 0: the files of the shipped model's UNet, as bytes. The rest of the model is the crate `vp-shapes-model`.

/// Each file by its path within the model's folder.
pub const FILES: &[(&str, &[u8])] = &[
    ("unet/config.json", include_bytes!("config.json")),
    ("unet/diffusion_pytorch_model.safetensors", include_bytes!("diffusion_pytorch_model.safetensors")),
];
