//! Floor 0: what makes a run reproducible.
//!
//! | module | idea |
//! |---|---|
//! | [`atomic`] | files replaced whole or not at all |
//! | [`config`] | TOML in, typed configuration out, every error with its line and column |
//! | [`contained`] | panics of other people's readers, as errors |
//! | [`folder_lock`] | one writer per folder |
//! | [`input_file`] | reading what somebody else named: not folders, and devices up to a bound |
//! | [`noise`] | the only source of random numbers: keyed by (run seed, purpose, step, sample) |
//! | [`profile`] | where a run's time goes, by stage |
//! | [`registry!`] | one line per entry of a table: a serde enum, its names and its summaries |
//! | [`run_dir`] | the folder a run writes |
//! | [`shown`] | text from outside made fit for a terminal |
//! | [`suggest`] | "did you mean …" |

pub mod atomic;
pub mod config;
pub mod contained;
pub mod folder_lock;
pub mod input_file;
pub mod noise;
pub mod profile;
mod registry;
pub mod run_dir;
pub mod shown;
pub mod suggest;
pub mod waits;

pub use registry::Entry;
