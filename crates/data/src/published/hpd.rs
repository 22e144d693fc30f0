//! Human Preference Dataset v2, from <https://github.com/tgxs002/HPSv2>.
//!
//! - `train.json`: a list of `{"human_preference": [1 for the preferred image], "prompt", "file_path": [path]}`;
//! - `test.json`: a list of `{"prompt", "image_path": [path], "rank": [averaged over annotators], "raw_annotations": [{"rank", "user_hash"}]}`.
//!
//! Neither names its entries: an id is the file's name and the entry's number.

use std::path::Path;

use serde_json::Value;

use super::{found, ranked};
use crate::json_list::{Fields, JsonList};
use crate::parsed_record::ParsedRecord;
use crate::{AnnotatorId, Error, Record, Result};

const RAW: &str = "raw_annotations";

/// # Errors
/// A file that cannot be read.
pub(crate) fn train_records(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let stem = stem_of(path);
    Ok(found(JsonList::open(path)?, move |place, mut entry| {
        let (prompt, images) = (entry.text("prompt")?, entry.texts("file_path")?);
        let preferred = entry.counts("human_preference", images.len())?;
        // 1 + how many images are strictly better: 1 for the preferred one, 2 for the other of two.
        let ranks = preferred.iter().map(|own| 1 + preferred.iter().filter(|other| *other > own).count() as u32).collect();
        Ok(Some(record(&stem, place, prompt, ranked(images, ranks), entry)))
    }))
}

/// # Errors
/// A file that cannot be read.
pub(crate) fn test_records(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let stem = stem_of(path);
    Ok(found(JsonList::open(path)?, move |place, mut entry| {
        let (prompt, images) = (entry.text("prompt")?, entry.texts("image_path")?);
        let ranks = from_one(entry.counts("rank", images.len())?);
        let record = record(&stem, place, prompt, ranked(images, ranks), entry);
        annotations_of(&record)?;
        Ok(Some(record))
    }))
}

/// The records of the single annotators of HPD v2's `test.json`, which [`Dataset`](crate::Dataset) keeps as `raw_annotations`: the same
/// images, ranked by one person each, whom `annotator` names. `None` if the record has no such annotations.
///
/// # Errors
/// Annotations that are not a list of `{"rank", "user_hash"}` with a rank for each image.
pub fn records_by_annotator(record: &Record) -> Result<Vec<Record>> {
    let refused = |reason| Error::NotExportable { id: record.id.clone(), reason };
    let single = |(user, ranks): (String, Vec<u32>)| {
        let mut single =
            Record { annotator: Some(AnnotatorId { name: format!("human:{user}"), ..AnnotatorId::human() }), ..record.clone() };
        single.extra.shift_remove(RAW);
        single.completions.iter_mut().zip(ranks).for_each(|(completion, rank)| completion.rank = Some(rank));
        single
    };
    Ok(annotations_of(record).map_err(refused)?.into_iter().map(single).collect())
}

/// Who ranked the images, and how.
fn annotations_of(record: &Record) -> Result<Vec<(String, Vec<u32>)>, String> {
    let raw = match record.extra.get(RAW) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(raw)) => raw,
        Some(other) => return Err(format!("expected {RAW} to be a list, found {other}")),
    };
    let annotation = |(index, raw): (usize, &Value)| {
        let mut fields = Fields(raw.as_object().cloned().unwrap_or_default());
        let user = fields.label("user_hash").ok_or("it has no user_hash".to_owned());
        let annotation = user.and_then(|user| Ok((user, from_one(fields.counts("rank", record.completions.len())?))));
        annotation.map_err(|reason| format!("{RAW}[{index}]: {reason}"))
    };
    raw.iter().enumerate().map(annotation).collect()
}

fn record(stem: &str, place: &str, prompt: String, completions: Vec<crate::Completion>, rest: Fields) -> Record {
    let number: usize = place.trim_start_matches("entry ").parse().unwrap_or_default();
    let record = Record::new(format!("{stem}-{number:06}"), prompt, completions);
    Record { source: Some("HPD v2".into()), annotator: Some(AnnotatorId::human()), extra: rest.0, ..record }
}

fn stem_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Ranks that count from 0 as ranks that count from 1; a larger one is worse in both.
fn from_one(ranks: Vec<u32>) -> Vec<u32> {
    let shift = u32::from(ranks.contains(&0));
    ranks.into_iter().map(|rank| rank.saturating_add(shift)).collect()
}
