//! The statistics of preferences: pure functions from numbers to numbers, each with its formula and source.
//!
//! - [`accuracy`]: how often a reward agrees with people, under the protocols in use.

pub mod accuracy;
mod error;

pub use error::{Error, Result};
