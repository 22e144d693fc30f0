//! Floor 2: prompts, images and preferences on disk.
//!
//! - [`read_prompts`] reads a prompt set in any of the layouts in which such sets are published; [`ShuffledOrder`] walks
//!   it in a seeded order that a checkpoint can resume.
//! - [`load_image`], [`to_tensor`] and [`from_tensor`] hold the one image convention of the project: `[b, 3, h, w]`, f32
//!   in `[0, 1]`, RGB.
//! - [`write_png`] saves an image with its [`Parameters`] in the text that AUTOMATIC1111's web UI reads.
//! - [`ImageFolder`] is a folder of captioned images, checked before the first of them is used;
//!   [`read_manifest`] a list of such images, [`Preferences`] one of pairs of which one image was preferred, [`Likes`] one of images that
//!   were liked or disliked.
//! - [`Record`] is what an annotator said of the images of one prompt; [`Aggregation`] makes strict pairs of it.
//!   [`read_records`] and [`write_records`] are its file, [`to_imagereward`] and [`write_pairs`] its exports; [`stats`](stats()) counts,
//!   [`split`](split()) holds prompts out.
//! - [`open_dataset`] reads ImageReward, ImageRewardDB, HPD v2, Pick-a-Pic and image folders as records, with their images in files, zip
//!   or parquet; [`validate`](validate()) decodes every one.

mod csv_rows;
mod dataset;
mod error;
mod export;
mod image_folder;
mod image_listing;
mod image_source;
mod images;
mod json_list;
mod kohya;
mod like_lines;
mod likes;
mod manifest;
mod near_duplicates;
mod order;
mod parameters;
mod parquet_file;
mod parsed_record;
mod png_file;
mod preferences;
mod prompts;
mod published;
mod rating_thresholds;
mod record_file;
mod records;
mod split;
mod stats;
mod utf8;
mod validate;
mod zip_file;

pub use dataset::{Dataset, Format, ReadRecords, Records, UsableRecords, open_dataset};
pub use error::{Error, Result};
pub use export::{to_imagereward, write_pairs};
pub use image::RgbImage;
pub use image::imageops::flip_horizontal;
pub use image_folder::{ImageEntry, ImageFolder, ImageFolderOptions, OnProblem, Problem, ProblemKind, check_images};
pub use image_source::{INSIDE, ImageSource};
pub use images::{center_crop_resize, decode_image, from_tensor, grid, is_plain_rgb, load_image, to_tensor};
pub use likes::Likes;
pub use manifest::read_manifest;
pub use near_duplicates::{NearDuplicate, near_duplicates};
pub use order::ShuffledOrder;
pub use parameters::Parameters;
pub use png_file::{png_bytes, read_png_text, write_png};
pub use preferences::{PreferencePair, Preferences};
pub use prompts::{Prompt, read_prompts};
pub use published::hpd::records_by_annotator;
pub use rating_thresholds::RatingThresholds;
pub use record_file::{read_records, write_records};
pub use records::{Aggregation, AnnotatorId, Aspect, AspectWeights, Comparison, Completion, Preferred, Rating, Ratings, Record};
pub use split::{RecordSplit, split};
pub use stats::{AspectStats, Stats, stats};
pub use validate::{Validation, validate, validate_with};
