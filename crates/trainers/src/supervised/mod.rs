//! Training on given images: supervised fine-tuning, Diffusion-DPO, the autoencoder.

pub mod dpo;
pub mod latents;
pub mod sft;
pub mod vae;
mod validation;
