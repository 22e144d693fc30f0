//! Training on given images: supervised fine-tuning, Diffusion-DPO, and training of the autoencoder.

pub mod dpo;
pub mod latents;
pub mod sft;
pub mod vae;
mod validation;
