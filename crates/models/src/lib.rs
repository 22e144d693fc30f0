//! Floor 3: networks, weights, tokenizers and the text-to-image pipeline.
//!
//! Networks are named and laid out as in diffusers and transformers: the path of a parameter is its key in a published
//! checkpoint. They are written as a list of *stages* with explicit boundary tensors, whose fold is `forward`.

pub mod blip;
pub mod blocks;
mod bounds;
pub mod clip;
mod config_json;
pub mod denoiser;
mod error;
mod family;
pub mod footprint;
mod gradient_checkpointing;
pub mod hub_id;
pub mod layers;
pub mod ldm;
pub mod lora;
pub mod number_format;
pub mod parameters;
pub mod pipeline;
pub mod resize;
pub mod reward_files;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use config_json::{ConfigJson, NetworkConfig};
pub use error::{Error, Result};
pub use gradient_checkpointing::GradientCheckpointing;
pub use number_format::NumberFormat;
