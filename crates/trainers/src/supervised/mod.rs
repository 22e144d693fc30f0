//! Training on given images: supervised fine-tuning, Diffusion-DPO, Diffusion-KTO, and training of the autoencoder.

pub mod dpo;
pub mod kto;
pub mod latents;
pub mod reference;
pub mod sft;
pub mod vae;
mod validation;
