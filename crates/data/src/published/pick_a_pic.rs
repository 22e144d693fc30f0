//! Pick-a-Pic v1 and v2, from <https://huggingface.co/datasets/yuvalkirstain/pickapic_v2>: parquet tables with two images in each row.
//!
//! `caption`, `jpg_0` and `jpg_1` (encoded images; the URLs beside them are dead), `label_0` (1 the first is better, 0 the second,
//! 0.5 neither), `has_label`, `ranking_id`, `model_0`, `model_1` and more, which is kept.

use std::path::{Path, PathBuf};

use super::found;
use crate::image_source::INSIDE;
use crate::json_list::Fields;
use crate::parquet_file::ParquetFile;
use crate::parsed_record::ParsedRecord;
use crate::{AnnotatorId, Comparison, Completion, Preferred, Record, Result};

const IMAGES: [&str; 2] = ["jpg_0", "jpg_1"];

/// The rows of several tables, one after the other; images are left where they are.
///
/// # Errors
/// Tables that cannot be read.
pub(crate) fn records(tables: &[PathBuf], folder: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let several = tables.len() > 1;
    let of_table = |path: &PathBuf| {
        let table = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let name = if several { format!("{table} ") } else { String::new() };
        let rows = ParquetFile::rows(path, &IMAGES)?.map(move |(place, row)| (format!("{name}{place}"), row));
        Ok(found(rows, move |place, row| record_of(&table, row_of(place), row)))
    };
    Ok(tables.iter().map(of_table).collect::<Result<Vec<_>>>()?.into_iter().flatten())
}

/// The row, from 0, of a place that ends with it, from 1.
fn row_of(place: &str) -> usize {
    place.rsplit(' ').next().and_then(|row| row.parse::<usize>().ok()).map_or(0, |row| row - 1)
}

/// The record of a row; none if nobody labelled it.
fn record_of(table: &str, row: usize, mut fields: Fields) -> Result<Option<Record>, String> {
    if let Some(serde_json::Value::Bool(false)) = fields.0.shift_remove("has_label") {
        return Ok(None);
    }
    let prompt = fields.text("caption")?;
    let label = fields.number("label_0")?;
    let preferred = match label {
        1.0 => Preferred::First,
        0.0 => Preferred::Second,
        0.5 => Preferred::Tie,
        other => return Err(format!("expected label_0 to be 0, 0.5 or 1, found {other}")),
    };
    // The second label says what the first one says, and need not be kept; if it does not, neither can be believed.
    let other = fields.number("label_1")?;
    if label + other != 1.0 {
        return Err(format!("label_0 is {label} and label_1 {other}: expected them to add up to 1"));
    }
    let completion = |(index, column): (usize, &str)| {
        let mut completion = Completion { image_path: format!("{table}{INSIDE}{column}/{row}"), ..Completion::default() };
        completion.model = fields.label(&format!("model_{index}"));
        for (name, column) in ["image_uid", "image_url"].map(|name| (name, name.replace("image_", &format!("image_{index}_")))) {
            completion.extra.extend(fields.label(&column).map(|value| (name.into(), value.into())));
        }
        completion
    };
    let completions = IMAGES.into_iter().enumerate().map(completion).collect();
    let id = fields.label("ranking_id").unwrap_or_else(|| format!("{table}-{row}"));
    let comparisons = vec![Comparison { shown: [0, 1], preferred, rationale: String::new() }];
    let record = Record::new(id, prompt, completions);
    let annotator = Some(AnnotatorId::human());
    Ok(Some(Record { source: Some("Pick-a-Pic".into()), comparisons, annotator, extra: fields.0, ..record }))
}
