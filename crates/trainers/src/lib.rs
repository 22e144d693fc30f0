//! Floor 7: ReFL and its family, reward-driven fine-tuning; supervised training of the same networks, and of the reward models.
//!
//! An algorithm is one file with its knobs at the top and its steps numbered. What algorithms share is functions and small
//! types: [`optim`], [`losses`], [`regularizer`], [`run`].
#![deny(missing_docs)]

pub mod advantages;
pub mod align_prop;
pub mod checkpoint;
pub mod config;
pub mod d3po;
pub mod ddpo;
pub mod denoising;
pub mod direct;
pub mod dpo;
pub mod draft;
pub mod drtune;
pub mod environment;
mod error;
pub mod export;
pub mod images;
pub mod journal;
pub mod latents;
pub mod losses;
pub mod optim;
pub mod policy_gradient;
pub mod preferences;
pub mod preview;
pub mod rankings;
pub mod refl;
pub mod regularizer;
pub mod reward_model;
pub mod reward_networks;
pub mod rollout;
pub mod run;
pub mod sections;
pub mod sentinel;
pub mod sft;
pub mod vae;
pub mod workers;

pub use error::Error;
