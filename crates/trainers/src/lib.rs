//! Floor 5: ReFL and its family, reward-driven fine-tuning; supervised training of the same networks, and of the reward models.
//!
//! An algorithm is one file with its knobs at the top and its steps numbered. What algorithms share is functions and small
//! types: [`optim`], [`losses`], [`regularizer`], [`run`].

pub mod algorithm;
pub mod assembly;
pub mod config;
pub mod data;
pub mod denoising;
pub mod direct;
pub mod environment;
mod error;
pub mod losses;
mod non_finite;
pub mod optim;
pub mod policy;
pub mod regularizer;
pub mod reward_model;
pub mod run;
pub mod sections;
mod statistics;
pub mod supervised;

pub use error::Error;
