//! What can go wrong in a training run.

use std::path::PathBuf;

/// What can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that only the loaded model or reward shows to be wrong.
    #[error("{0}")]
    Config(String),
    /// What is wrong in a section of the config, or with what it names.
    #[error("{section}: {source}")]
    InSection {
        /// The section, in brackets.
        section: &'static str,
        /// What is wrong.
        #[source]
        source: Box<Self>,
    },
    /// A run that was told to end.
    #[error("stopped by signal {signal}; saved to {}", checkpoint.display())]
    Interrupted {
        /// Which signal.
        signal: i32,
        /// Where the run can go on.
        checkpoint: PathBuf,
    },
    /// A run that was asked to stop half-way.
    #[error("stopped half-way, saved to {}", checkpoint.display())]
    StoppedForProof {
        /// Where the run can go on.
        checkpoint: PathBuf,
    },
    /// A rule of the sentinel, where the config says `stop`.
    #[error(
        "the sentinel stops the run after update {step}: {rule}: {reason}; {} holds the state, and the best by what is watched was after update \
         {best}",
        checkpoint.display()
    )]
    Sentinel {
        /// Updates made.
        step: u64,
        /// The rule.
        rule: &'static str,
        /// What it saw.
        reason: String,
        /// Where the run stands.
        checkpoint: PathBuf,
        /// The updates after which the watched score was best.
        best: u64,
    },
    /// Something that would poison the weights; they are those of the update before.
    #[error(
        "update {update}: {what} is not finite ({skipped} batches were left out before); nothing was updated, and {} holds the last \
         good state: resuming from it repeats this update, [guard] max_skips lets it be left out",
        checkpoint.display()
    )]
    NonFinite {
        /// The update, counted from 1.
        update: u64,
        /// The tensor.
        what: String,
        /// Batches left out before.
        skipped: u64,
        /// The last good state.
        checkpoint: PathBuf,
    },
    /// Weights or moments that are poisoned: not saved.
    #[error(
        "step {step}: {name} of the {file} is not finite and is not saved; resume from the last checkpoint, with a lower learning rate"
    )]
    NonFiniteState {
        /// Updates made.
        step: u64,
        /// Weights, optimizer, moving average or gradients.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A policy that is not the one that drew, where it must be.
    #[error(
        "image {image} of epoch {epoch}, scheduler step {step}: before the first update the ratio of its probability to that at which it was \
         drawn must be 1, and it is off by {deviation:.1e}; rollout and training do not compute the same (a device of low precision?), so the \
         run stops"
    )]
    OffPolicy {
        /// Its number in the epoch, counted from 0.
        image: usize,
        /// The epoch, counted from 1.
        epoch: u64,
        /// The scheduler step.
        step: usize,
        /// |ratio − 1|.
        deviation: f64,
    },
    /// Images that cannot be shown.
    #[error("step {step}: {what} is not finite while drawing the preview")]
    NonFinitePreview {
        /// Updates made.
        step: u64,
        /// The tensor.
        what: String,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A gradient that would poison the weights.
    #[error("the gradient of {name} is not finite (or so large that its square is not)")]
    NonFiniteGradient {
        /// The parameter's name, the first in alphabetical order.
        name: String,
    },
    /// Saved state that does not belong to the model at hand.
    #[error("{what}: {key}: {problem}")]
    State {
        /// Whose state: the optimizer's or the moving average's.
        what: &'static str,
        /// The tensor's name in the saved state.
        key: String,
        /// What was expected, and what was found.
        problem: String,
    },
    /// The run's folder.
    #[error(transparent)]
    RunDir(#[from] vp_core::run_dir::RunDirError),
    /// Prompts or images.
    #[error(transparent)]
    Data(#[from] vp_data::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] vp_models::Error),
    /// The reward.
    #[error(transparent)]
    Reward(#[from] vp_rewards::Error),
    /// The scheduler.
    #[error(transparent)]
    Scheduler(#[from] vp_schedulers::SchedulerError),
}
