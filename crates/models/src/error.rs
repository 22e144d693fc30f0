//! What can be wrong with a model on disk.

use crate::weights::LoadError;

/// What can be wrong with a model on disk, or with what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tensors.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// A scheduler's config.
    #[error(transparent)]
    Scheduler(#[from] vp_schedulers::SchedulerError),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A `config.json` that we cannot build a network from.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: String,
        /// The field, what was expected and what was found.
        message: String,
    },
    /// A model given in a form that is not a diffusers folder.
    #[error("model {given}: {message}")]
    NotAFolder {
        /// What was given.
        given: String,
        /// What it is, and what to pass instead.
        message: String,
    },
    /// A LoRA that was made for another model, or is none.
    #[error("the LoRA {path} does not fit this model (is it for another base?): {faults}")]
    Lora {
        /// The file.
        path: String,
        /// The names of the tensors that do not fit, and why.
        faults: String,
    },
    /// A size, a prompt or a setting that this model cannot draw.
    #[error("{0}")]
    Request(String),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
