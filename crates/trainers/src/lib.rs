//! Floor 5: the trainers. Reward-driven fine-tuning (ReFL and its family), supervised training of the same networks, and training of the
//! reward models.
//!
//! An algorithm is one file, with its knobs at the top and its steps numbered. The algorithms share functions and small types: [`optim`],
//! [`losses`], [`regularizer`], [`run`].

pub mod algorithm;
pub mod assembly;
pub mod config;
pub mod data;
pub mod denoising;
pub mod direct;
pub mod environment;
mod error;
pub mod forward;
pub mod losses;
mod non_finite;
pub mod optim;
pub mod plan;
pub mod policy;
pub mod ranks;
pub mod regularizer;
pub mod reward_model;
pub mod run;
pub mod sections;
mod statistics;
pub mod supervised;

pub use error::Error;
