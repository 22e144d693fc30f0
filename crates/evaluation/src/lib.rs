//! The statistics of preferences: pure functions from numbers to numbers, each with its formula and source.
//!
//! - [`accuracy`]: how often a reward agrees with people, under the protocols in use.
//! - [`agreement`]: whether annotators agree, beyond chance; [`correlation`]: whether two orders do.
//!
//! What is undefined on the data at hand is `None`, not NaN.

pub mod accuracy;
pub mod agreement;
pub mod correlation;
mod error;

pub use error::{Error, Result};
