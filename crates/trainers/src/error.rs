//! The errors of training.

use std::path::PathBuf;

/// An error that ends a training run, or keeps it from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that does not fit the model, the reward or the data, as found when they were opened.
    #[error("{0}")]
    Config(String),
    /// An error in a section of the config, or in a file or folder that it names.
    #[error("{section}: {source}")]
    InSection {
        /// The section, as it is written in the config.
        section: &'static str,
        /// The error itself.
        #[source]
        source: Box<Self>,
    },
    /// A signal ended the run.
    #[error("stopped by signal {signal}; saved to {}", checkpoint.display())]
    Interrupted {
        /// The signal's number.
        signal: i32,
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
    /// The run stopped half-way because `--prove-resume` asked for it.
    #[error("stopped half-way, saved to {}", checkpoint.display())]
    StoppedForProof {
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
    /// A rule of the sentinel fired whose action in the config is `stop`.
    #[error(
        "the sentinel stops the run after update {step}: {rule}: {reason}; the run is saved in {}, and the watched reward was best \
         after update {best}",
        checkpoint.display()
    )]
    Sentinel {
        /// Updates made so far.
        step: u64,
        /// The rule's name.
        rule: &'static str,
        /// What the rule found.
        reason: String,
        /// The checkpoint of the state in which the run ended.
        checkpoint: PathBuf,
        /// The update after which the watched reward was best; 0 if no preview was drawn since the first.
        best: u64,
    },
    /// A value that is not finite and would spoil the weights. They are still those of the previous update.
    #[error(
        "update {update}: {what} is not finite ({skipped} updates were left out before); no weight was changed, and the last good \
         state is saved in {}; resuming from it repeats this update, unless a larger [guard] max_skips lets it be left out",
        checkpoint.display()
    )]
    NonFinite {
        /// The update, counted from 1.
        update: u64,
        /// The name of the tensor.
        what: String,
        /// Updates left out before.
        skipped: u64,
        /// The checkpoint of the last good state.
        checkpoint: PathBuf,
    },
    /// The state of the run is not finite, so it was not saved.
    #[error(
        "after update {step}: {name} in the checkpoint's {file} is not finite, so it is not saved; train again with a lower \
         optimizer.learning_rate"
    )]
    NonFiniteState {
        /// Updates made so far.
        step: u64,
        /// The checkpoint's file: `weights`, `optimizer`, `ema`, `gradients` or `memory`.
        file: String,
        /// The name of the tensor.
        name: String,
    },
    /// Before the first update of a rollout, the policy differs from the one that drew the images.
    #[error(
        "image {image} of epoch {epoch}, scheduler step {step}: before the first update, training must find the probability with which the \
         image was drawn (a ratio of 1), but the ratio is off by {deviation:.1e}; the device computes sampling and training differently, \
         perhaps for lack of precision: train on another device"
    )]
    OffPolicy {
        /// The image's number in its epoch, counted from 0.
        image: usize,
        /// The epoch, counted from 1.
        epoch: u64,
        /// The scheduler step, counted from 0.
        step: usize,
        /// The deviation of the ratio: |ratio − 1|.
        deviation: f64,
    },
    /// A reward failed in the middle of a run. What was trained before is saved.
    #[error("{source}\n  the run is saved in {}; --resume goes on from there once the reward works again", checkpoint.display())]
    RewardFailed {
        /// What the reward says.
        source: Box<vp_rewards::Error>,
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
    /// Another rank of the run ended with an error.
    #[error("{rank}: {problem}")]
    OfRank {
        /// The rank, as people call it.
        rank: String,
        /// Its error.
        problem: String,
    },
    /// A value in a preview or a validation is not finite.
    #[error("after update {step}: {what} is not finite in the preview or the validation")]
    NonFinitePreview {
        /// Updates made so far.
        step: u64,
        /// The name of the tensor.
        what: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Path of the file or folder.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A gradient that would spoil the weights.
    #[error("the gradient of {name} is not finite (or so large that its square is not)")]
    NonFiniteGradient {
        /// The parameter's name, the first in alphabetical order.
        name: String,
    },
    /// A saved state that does not fit the model.
    #[error("{what}: {key}: {problem}")]
    State {
        /// The kind of state: of the weights, the optimizer or the moving average.
        what: &'static str,
        /// The tensor's name in the saved state.
        key: String,
        /// The expected and the found shape or value.
        problem: String,
    },
    /// An error of the run's folder.
    #[error(transparent)]
    RunDir(#[from] vp_core::run_dir::RunDirError),
    /// An error of prompts, images or records.
    #[error(transparent)]
    Data(#[from] vp_data::Error),
    /// An error of the model or its folder.
    #[error(transparent)]
    Model(#[from] vp_models::Error),
    /// An error of a reward.
    #[error(transparent)]
    Reward(#[from] vp_rewards::Error),
    /// An error of the scheduler.
    #[error(transparent)]
    Scheduler(#[from] vp_schedulers::SchedulerError),
}
