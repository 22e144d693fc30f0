//! Records as what reward trainers and Diffusion-DPO read.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::record_file::write_lines;
use crate::{Aggregation, Error, Record, Result};

/// A record as an entry of ImageReward's `train.json`: `{"id", "prompt", "generations", "ranking"}`.
///
/// An image's rank is 1 + the number of strictly better images, so that ties share one; where people ranked the images and nothing was
/// rated that `aggregation` counts, their own ranks are kept, gaps included. The entry holds the record's pairs, all of them and no other.
///
/// # Errors
/// A record without annotations, and one whose pairs do not make a ranking (comparisons that go in a circle or leave pairs out, a margin): a
/// list of ranks would say more than the record does.
pub fn to_imagereward(record: &Record, aggregation: &Aggregation) -> Result<Value> {
    let refused = |reason: &str| Err(Error::NotExportable { id: record.id.clone(), reason: reason.into() });
    let pairs = record.pairs(aggregation);
    if pairs.is_empty() && record.ties(aggregation) == 0 && record.completions.len() > 1 {
        return refused("its images have no ratings that count, no ranks and no comparisons: annotate it or leave it out");
    }
    let ranking = record.ranks(aggregation);
    let images = || 0..ranking.len();
    let ranked: Vec<_> = images().flat_map(|a| images().map(move |b| (a, b))).filter(|(a, b)| ranking[*a] < ranking[*b]).collect();
    if ranked != pairs {
        return refused(
            "its pairs do not make a ranking (a circle, a pair left out, or a margin): write chosen and rejected pairs instead",
        );
    }
    let generations: Vec<&str> = record.completions.iter().map(|completion| completion.image_path.as_str()).collect();
    Ok(json!({ "id": record.id, "prompt": record.prompt, "generations": generations, "ranking": ranking }))
}

/// Writes the strict pairs of records, one object per line with `prompt`, `chosen` and `rejected`, as [`Preferences::read`] reads them, and
/// returns how many. Where ratings order the images, a line also has their weighted sums as `chosen_score` and `rejected_score`, for
/// [`Preferences::read_with_probabilities`]. `images` is the folder that the records' image paths start from; below the list's own folder paths are written
/// relative to it, elsewhere absolute.
///
/// [`Preferences::read`]: crate::Preferences::read
/// [`Preferences::read_with_probabilities`]: crate::Preferences::read_with_probabilities
///
/// # Errors
/// An image inside a zip or parquet file, which [`Preferences::read`] does not open, and a file that cannot be written.
pub fn write_pairs(path: impl AsRef<Path>, records: &[Record], aggregation: &Aggregation, images: impl AsRef<Path>) -> Result<usize> {
    let (path, images) = (path.as_ref(), images.as_ref());
    let write_error = |error| Error::Write { path: path.into(), error };
    let images = std::path::absolute(images).map_err(write_error)?;
    let list_folder = std::path::absolute(path).map_err(write_error)?.parent().map(PathBuf::from).unwrap_or_default();
    let located = |record: &Record, index: usize| {
        let written = &record.completions[index].image_path;
        if written.contains(crate::image_source::INSIDE) {
            let reason = format!("{written} is inside an archive, and pairs name files: unpack the images first");
            return Err(Error::NotExportable { id: record.id.clone(), reason });
        }
        let full = images.join(written);
        Ok(full.strip_prefix(&list_folder).unwrap_or(&full).to_string_lossy().replace('\\', "/"))
    };
    let mut rows = Vec::new();
    for record in records {
        let scores = record.scores(aggregation);
        for (better, worse) in record.pairs(aggregation) {
            let mut row = json!({ "prompt": record.prompt, "chosen": located(record, better)?, "rejected": located(record, worse)? });
            if let Some(scores) = &scores {
                (row["chosen_score"], row["rejected_score"]) = (scores[better].into(), scores[worse].into());
            }
            rows.push(row);
        }
    }
    write_lines(path, &rows)?;
    Ok(rows.len())
}
