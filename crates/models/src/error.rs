//! The errors of loading, writing and asking things of a model.

use crate::weights::LoadError;

/// A fault of a model on disk, or of a request to a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights cannot be read, or do not fit the network.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// The config of the scheduler cannot be read or is not supported.
    #[error(transparent)]
    Scheduler(#[from] vp_schedulers::SchedulerError),
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A `config.json` that we cannot build a network from.
    #[error("{path}: {message}")]
    Config {
        path: String,
        /// The field, what was expected and what was found.
        message: String,
    },
    /// A model given in a form that is not a diffusers folder.
    #[error("model {given}: {message}")]
    NotAFolder {
        /// What the user gave.
        given: String,
        /// What it is, and what to pass instead.
        message: String,
    },
    /// A file that is not a LoRA, or a LoRA for another model.
    #[error("the LoRA {path} does not fit this model (is it for another base?): {faults}")]
    Lora {
        path: String,
        /// The names of the tensors that do not fit, and why.
        faults: String,
    },
    /// A LoRA whose layers' changes are more than two factors.
    #[error(
        "the LoRA {path} holds {forms}: such a file can be merged (sample --lora, export --merge), but neither trained further nor written under other names"
    )]
    LoraForm {
        path: String,
        /// What its forms are called, and the first layers of each.
        forms: String,
    },
    /// A size, a prompt or a setting that this model cannot draw.
    #[error("{0}")]
    Request(String),
}

/// A result whose error is [`Error`] unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;
