//! `dataset`: images of the world of shapes, drawn to train on; preference records, inspected and rewritten.

mod agreement;
mod records;

use vp_shapes::Split;

use crate::args::{DatasetArgs, DatasetKind, ShapesArgs};
use crate::failure::Failure;
use crate::ranks;
use crate::shapes_dataset::{MOST_CANDIDATES, ShapesDataset};
use crate::shard::Shard;
use crate::terminal::say;

/// The top-level entry point for `dataset`.
pub fn run(args: DatasetArgs) -> Result<(), Failure> {
    let is_first = ranks::all().is_first();
    match args.kind {
        DatasetKind::Shapes(args) => shapes(args),
        // One rank is enough for what writes one file.
        _ if !is_first => Ok(()),
        DatasetKind::Validate(args) => records::validate_set(&args),
        DatasetKind::Stats(args) => records::say_stats(&args),
        DatasetKind::Convert(args) => records::convert(&args),
        DatasetKind::Split(args) => records::split_records(&args),
        DatasetKind::Agreement(args) => agreement::run(&args),
    }
}

fn shapes(args: ShapesArgs) -> Result<(), Failure> {
    let ShapesArgs { out, n, seed, split, per_caption, side, shard } = args;
    if n == 0 {
        return Err(anyhow::anyhow!("--n is 0; expected at least 1").into());
    }
    if !(16..=1024).contains(&side) {
        return Err(anyhow::anyhow!("--side is {side}; expected 16 to 1024 pixels").into());
    }
    if !(1..=MOST_CANDIDATES).contains(&per_caption) {
        return Err(anyhow::anyhow!("--per-caption is {per_caption}; expected 1 to {MOST_CANDIDATES} images").into());
    }
    let split = split.into();
    if split == Split::Pretraining && per_caption > 1 {
        return Err(anyhow::anyhow!("--per-caption is {per_caption}; --split pretraining has one image per caption (variants of one caption come from the other splits)").into());
    }
    let (ranks, shard) = (ranks::all(), Shard::of_rank(shard)?);
    let dataset = ShapesDataset { folder: out, captions: n, seed, split, images_per_caption: per_caption, side, shard };
    ranks::first_before_others(|| dataset.create())?;
    let drawn = dataset.fill().map_err(Failure::run)?;
    let all = ranks.gather(&drawn.to_le_bytes()).map_err(Failure::run)?;
    let drawn: u64 = all.iter().filter_map(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?))).sum();
    let of = if shard.of > 1 && ranks.are_one() { format!(" (part {} of {})", shard.index + 1, shard.of) } else { String::new() };
    let images = n * per_caption;
    say(format_args!("{images} images of {side}x{side} pixels in {}{of}, {drawn} of them new", dataset.folder.display()));
    Ok(())
}
