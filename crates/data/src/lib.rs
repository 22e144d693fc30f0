//! Prompts and images on disk.
//!
//! - [`read_prompts`] reads a prompt set in any of the layouts in which such sets are published; [`ShuffledOrder`] walks
//!   it in a seeded order that a checkpoint can resume.
//! - [`load_image`], [`to_tensor`] and [`from_tensor`] hold the one image convention of the project: `[b, 3, h, w]`, f32
//!   in `[0, 1]`, RGB.
//! - [`write_png`] saves an image with its [`Parameters`] in the text that AUTOMATIC1111's web UI reads.
//! - [`ImageFolder`] is a folder of captioned images, checked before the first of them is used;
//!   [`read_manifest`] a list of such images, [`Preferences`] one of pairs of which one image was preferred.
//! - [`Record`] is what an annotator said of the images of one prompt; [`Aggregation`] makes strict pairs of it.

mod error;
mod image_folder;
mod images;
mod manifest;
mod order;
mod parameters;
mod png_file;
mod preferences;
mod prompts;
mod records;
mod utf8;

pub use error::{Error, Result};
pub use image::RgbImage;
pub use image::imageops::flip_horizontal;
pub use image_folder::{ImageEntry, ImageFolder, ImageFolderOptions, OnProblem, Problem, ProblemKind, check_images};
pub use images::{center_crop_resize, from_tensor, grid, load_image, to_tensor};
pub use manifest::read_manifest;
pub use order::ShuffledOrder;
pub use parameters::Parameters;
pub use png_file::{read_png_text, write_png};
pub use preferences::{PreferencePair, Preferences};
pub use prompts::{Prompt, read_prompts};
pub use records::{Aggregation, AnnotatorId, Aspect, Comparison, Completion, Preferred, Rating, Ratings, Record};
