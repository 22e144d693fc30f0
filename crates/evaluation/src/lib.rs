//! Floor 0: scores, ratings and preferences to statistics, and statistics to reports.
//!
//! Pure functions of numbers, each with its formula and source. Nothing here draws or scores an image: whoever did hands over the numbers.
//!
//! - [`accuracy`]: how often a reward agrees with people, under the protocols in use.
//! - [`agreement`]: whether annotators agree, beyond chance; [`correlation`]: whether two orders do; [`consistency`]: whether an annotator
//!   agrees with itself.
//! - [`interval`], [`bootstrap`]: how sure a number is, win rates among them; [`significance`]: whether two models differ.
//! - [`ranking`]: strengths of many models from comparisons of two.
//! - [`pixels`]: five numbers that describe what an image looks like; [`comparison`]: all of the above for models that drew the same prompts.
//! - [`votes`]: which of those models people prefer, and which rewards agree with them.
//! - [`sentinel`]: rules that notice during training that a model exploits its reward.
//! - [`report`]: results as HTML, Markdown and JSON.
//!
//! What is undefined on the data at hand is `None`, not NaN.

pub mod accuracy;
pub mod agreement;
pub mod bootstrap;
pub mod comparison;
pub mod consistency;
pub mod correlation;
mod error;
pub mod interval;
mod normal;
pub mod pixels;
pub mod ranking;
pub mod report;
pub mod sentinel;
pub mod significance;
pub mod votes;

pub use error::{Error, Result};
