//! Errors of this crate. Data that are too scarce or too uniform for a statistic are not an error: those functions return `None`.

/// Inputs that contradict themselves, and comparisons that determine no ranking.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A prompt's scores and ranks are not of the same images.
    #[error("a prompt has {scores} scores and {ranks} ranks; expected one of each for every image")]
    Lengths {
        /// How many scores there are.
        scores: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// A comparison names a model beyond the last, or one model twice.
    #[error("a comparison of models {first} and {second}; expected two different numbers below {models}")]
    Models {
        /// The first model.
        first: usize,
        /// The second model.
        second: usize,
        /// How many models there are.
        models: usize,
    },
    /// The prior is negative or not finite.
    #[error("a prior of {0}; expected a finite number of virtual ties, 0 or more")]
    Prior(f64),
    /// Some models never won against the rest, so maximum likelihood puts the others infinitely far above.
    #[error(
        "models {winners:?} never lost, nor tied, against models {losers:?} (or were never compared with them), so the distance between the two \
         groups has no finite estimate; compare them more, leave a group out, or set a prior above 0"
    )]
    Separated {
        /// The group above, by index.
        winners: Vec<usize>,
        /// All others.
        losers: Vec<usize>,
    },
    /// The iteration did not settle.
    #[error("Bradley-Terry strengths still move by {step:e} after {iterations} iterations; set a larger prior")]
    Unsettled {
        /// The largest last change of a log-strength.
        step: f64,
        /// Iterations made.
        iterations: usize,
    },
    /// The bytes are not those of an image of this size.
    #[error(
        "{bytes} bytes for an image of {width} x {height} pixels; expected {} (three a pixel), and at least one pixel; pass 8-bit RGB without \
         alpha or padding", (*width as u128) * (*height as u128) * 3
    )]
    Image {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes found.
        bytes: usize,
    },
    /// A comparison of fewer than two models, or of one with itself.
    #[error("models to compare are {0:?}; expected two or more different names, the baseline first")]
    ModelNames(Vec<String>),
    /// A row belongs to a model that is not compared.
    #[error("a row is of model {found:?}; expected one of {expected:?}; leave other rows out, or name their model")]
    UnknownModel {
        /// The row's model.
        found: String,
        /// The models compared.
        expected: Vec<String>,
    },
    /// A model has no row.
    #[error("no row is of model {0:?}; expected one for every prompt and seed; check how the rows name their models")]
    NoRows(String),
    /// Two rows of one image.
    #[error(
        "two rows are of prompt {index}, seed {seed}, model {model:?}; expected one; an evaluation that was repeated into the same file has to be \
         written anew"
    )]
    RepeatedImage {
        /// The prompt's number.
        index: usize,
        /// The image's seed.
        seed: u64,
        model: String,
    },
    /// Rows number their prompts differently.
    #[error(
        "prompt {index} is {first} in one row and {second} in another; expected one text and one category for each number; evaluate all models \
         on the same prompt file"
    )]
    Prompts {
        /// The prompt's number.
        index: usize,
        /// Text and category in one row.
        first: String,
        /// Text and category in another.
        second: String,
    },
    /// A setting is out of its range.
    #[error("{key} is {found}; expected {expected}")]
    Setting {
        key: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// A look at a model in training does not fit the looks before it.
    #[error("at step {step}, {what}: found {found}, expected {expected}; look at the same images with the same rewards every time")]
    Look {
        /// The look's step.
        step: u64,
        what: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
}

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
