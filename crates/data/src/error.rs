use std::io;
use std::path::PathBuf;

use crate::Format;
use crate::image_folder::Problem;

/// What can go wrong between the disk and a tensor. Every message names the file, what is wrong and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- files ----
    /// A file or folder could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file could not be written; nothing was left under its name.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A text file holds bytes that are not UTF-8.
    #[error("{}: not UTF-8 at byte {offset} (line {line}){hint}; save the file as UTF-8", path.display())]
    NotUtf8 {
        /// The text file.
        path: PathBuf,
        /// Offset in bytes, from 0, of the first byte that is not UTF-8.
        offset: usize,
        /// Its line, from 1.
        line: usize,
        /// A guess at the encoding, or nothing.
        hint: &'static str,
    },

    // ---- prompts ----
    /// The extension of a prompt file names no known layout.
    #[error(
        "prompts {}: unknown extension {found:?}; expected .txt (one per line), .json (a list), .jsonl (one object per line), .tsv (with a header) or .parquet",
        path.display()
    )]
    UnknownPromptFormat {
        /// The prompt file.
        path: PathBuf,
        /// Its extension, empty when it has none.
        found: String,
    },
    /// A prompt file does not have the layout that its extension promises.
    #[error("prompts {}, {place}: {reason}", path.display())]
    MalformedPrompts {
        /// The prompt file.
        path: PathBuf,
        /// Where: a line and column, an entry of the list, or a row of the table, from 1.
        place: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A prompt file holds no prompt at all.
    #[error("prompts {}: no prompts in it", path.display())]
    NoPrompts {
        /// The prompt file.
        path: PathBuf,
    },

    // ---- preference records ----
    /// A path holds no preference data in a layout that is known.
    #[error("{}: {reason}; known are{}", path.display(), Format::list())]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Preference records are refused for what was found in them.
    #[error("preference records {}: {} problem(s), {usable} usable record(s){}", path.display(), problems.len(), Problem::list(problems))]
    ProblemsInRecords {
        /// The file or folder.
        path: PathBuf,
        /// Every finding, in the order of the lines, entries or rows.
        problems: Vec<Problem>,
        /// How many records have none.
        usable: usize,
    },
    /// A set of preference records holds none.
    #[error("preference records {}: no records in it", path.display())]
    NoRecords {
        /// The file or folder.
        path: PathBuf,
    },
    /// A zip or parquet file cannot be read, or is refused for what is in it.
    #[error("archive {}: {} problem(s){}", path.display(), problems.len(), Problem::list(problems))]
    BadArchive {
        path: PathBuf,
        /// Every finding, by the names of the entries.
        problems: Vec<Problem>,
    },
    /// A record does not have the form that an export can hold.
    #[error("record {id}: {reason}")]
    NotExportable {
        /// The record's id.
        id: String,
        /// What the format cannot say, and the way out.
        reason: String,
    },
    /// A set cannot be split into such parts.
    #[error("cannot hold out {fraction} of the records: expected a fraction above 0 and below 1")]
    BadFraction {
        /// The part that was to be held out.
        fraction: f64,
    },

    // ---- images ----
    /// An image could not be decoded, or is refused.
    #[error("image {}: {reason}", path.display())]
    BadImage {
        /// The image file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Images of different sizes cannot share a tensor.
    #[error("image {index} is {}x{} pixels but the first is {}x{}: resize them to one size first", found.0, found.1, expected.0, expected.1)]
    SizesDiffer {
        /// Index of the image, from 0.
        index: usize,
        /// Width and height of the first image.
        expected: (u32, u32),
        /// Width and height of this one.
        found: (u32, u32),
    },
    /// A tensor that should be images holds a NaN or an infinity.
    #[error("image {image} of the batch holds {value} at channel {channel}, row {row}, column {column}: it cannot be saved")]
    NotFinite {
        /// Index in the batch.
        image: usize,
        /// 0 red, 1 green, 2 blue.
        channel: usize,
        /// Row of the pixel.
        row: usize,
        /// Column of the pixel.
        column: usize,
        /// The value found.
        value: f32,
    },
    /// A text chunk does not fit the PNG format.
    #[error("{}: PNG text {key:?}: {reason}", path.display())]
    BadPngText {
        /// The PNG file that was to be written.
        path: PathBuf,
        /// Keyword of the text chunk.
        key: String,
        /// What the format asks for.
        reason: &'static str,
    },

    // ---- image folders ----
    /// The path of an image folder names something else.
    #[error("image folder {}: not a folder, nor the .toml of a dataset config", path.display())]
    NotAFolder { path: PathBuf },
    /// An image folder holds no image.
    #[error("image folder {}: no images in it; expected .png, .jpg, .webp, .bmp, .gif or .tif files, here or in folders below{hint}", path.display())]
    NoImages {
        path: PathBuf,
        /// What else is there, or nothing.
        hint: String,
    },
    /// A file is not a dataset config as kohya's tools have them.
    #[error("dataset config {}: {reason}", path.display())]
    BadDatasetConfig {
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// An image folder is refused for what was found in it.
    #[error("image folder {}: {} problem(s), {usable} usable image(s){}", path.display(), problems.len(), Problem::list(problems))]
    ProblemsInFolder {
        path: PathBuf,
        /// Every finding, in the order of the file names.
        problems: Vec<Problem>,
        /// How many entries have none.
        usable: usize,
    },
    /// A list of images is refused for what was found in it.
    #[error("image list {}: {} bad line(s){}", path.display(), problems.len(), Problem::list(problems))]
    ProblemsInManifest {
        path: PathBuf,
        /// Every finding, in the order of the lines.
        problems: Vec<Problem>,
    },
    /// A list of images holds none.
    #[error("image list {}: it names no image", path.display())]
    EmptyManifest { path: PathBuf },
    /// A list of preference pairs is refused for what was found in it.
    #[error("preference pairs {}: {} problem(s), {usable} usable pair(s){}", path.display(), problems.len(), Problem::list(problems))]
    ProblemsInPreferences {
        path: PathBuf,
        /// Every finding, in the order of the lines.
        problems: Vec<Problem>,
        /// How many pairs have none.
        usable: usize,
    },
    /// A list of preference pairs holds none.
    #[error("preference pairs {}: no pairs in it; expected one object per line with prompt, chosen and rejected", path.display())]
    NoPreferences { path: PathBuf },
    /// A list of liked and disliked images is refused for what was found in it.
    #[error("liked and disliked images {}: {} problem(s), {usable} usable image(s){}", path.display(), problems.len(), Problem::list(problems))]
    ProblemsInLikes {
        path: PathBuf,
        /// Every finding, in the order of the lines.
        problems: Vec<Problem>,
        /// How many images have none.
        usable: usize,
    },
    /// A list of liked and disliked images holds none.
    #[error(
        "{}: no liked and no disliked image in it; expected one object per line with prompt, image and label (or rating), with prompt, chosen \
         and rejected, or with completions{}",
        path.display(),
        if *undecided > 0 { format!(" ({undecided} rated between the thresholds: bring them closer together)") } else { String::new() }
    )]
    NoLikes {
        path: PathBuf,
        /// How many images are rated between the thresholds.
        undecided: usize,
    },
    /// Images cannot be decoded.
    #[error("{} of {of} image(s) cannot be read{}", problems.len(), Problem::list(problems))]
    UnreadableImages {
        /// Every finding, in the order of the images.
        problems: Vec<Problem>,
        /// How many images there are.
        of: usize,
    },
}

/// The result of operations on files.
pub type Result<T, E = Error> = std::result::Result<T, E>;
