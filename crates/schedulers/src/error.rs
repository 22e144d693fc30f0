//! What can go wrong between a `scheduler_config.json` and a sampler.

use std::path::PathBuf;

/// Everything this crate refuses; tensor maths itself never returns an error.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    // === Files ===
    /// The file could not be read.
    #[error("cannot read the scheduler config {}: {source}", path.display())]
    Read {
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the scheduler config {}: {source}", path.display())]
    Write {
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a JSON object; the source names line and column.
    #[error("{} is not a JSON object: {source}", path.display())]
    Json {
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A finding in the named file.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<SchedulerError> },

    // === Config fields ===
    /// A field holds a value of the wrong type or range.
    #[error("scheduler config field `{field}` = {value}: expected {expected}")]
    Field {
        /// The key as written in the file.
        field: String,
        /// The value found.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// A field asks for something that changes the samples and is not implemented here.
    #[error("scheduler config field `{field}` = {value} is not supported by {class}: {way_out}")]
    Unsupported {
        /// The scheduler class, in diffusers' words.
        class: String,
        /// The key as written in the file.
        field: String,
        /// The value found.
        value: String,
        /// What to do instead.
        way_out: String,
    },
    /// `_class_name` names a class that is not implemented.
    #[error("scheduler class `{class}` is not implemented; name one that is instead: {known}")]
    UnknownClass {
        /// What the config says.
        class: String,
        /// The classes that work.
        known: String,
    },

    // === Choices ===
    /// No scheduler of that name.
    #[error("unknown scheduler `{name}`{}; known schedulers: {known}", suggestion.as_ref().map(|s| format!(", did you mean `{s}`?")).unwrap_or_default())]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The nearest known name, if one is near.
        suggestion: Option<String>,
        /// All names.
        known: String,
    },
    /// The number of sampling steps does not fit the schedule.
    #[error("num_inference_steps = {got}: {reason}")]
    NumInferenceSteps {
        /// What was asked for.
        got: usize,
        /// Why not, and what would do.
        reason: String,
    },
    /// `eta` outside its range.
    #[error("eta = {got}: expected a number from 0 (deterministic DDIM) to 1 (as noisy as DDPM)")]
    Eta {
        /// What was asked for.
        got: f64,
    },
    /// A multi-step sampler was asked for where a single-step one is needed.
    #[error("{class} keeps history between steps and is not a single-step scheduler; choose one of {known}")]
    NotSingleStep {
        /// The class asked for.
        class: String,
        /// The single-step names.
        known: String,
    },
    /// A step other than the last has no noise, so it has no density.
    #[error(
        "step {step} (timestep {timestep}) has standard deviation {std_dev_t:e}, so its log-probability is undefined; \
         use a stochastic scheduler: {known}"
    )]
    Deterministic {
        /// Index into `timesteps()`.
        step: usize,
        /// Its time value.
        timestep: f64,
        /// Its standard deviation.
        std_dev_t: f64,
        /// The schedulers that would do.
        known: String,
    },
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, SchedulerError>;
