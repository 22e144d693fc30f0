//! Hugging Face's imagefolder as records: the images of a text together, nothing said of them.

use std::path::Path;

use crate::parsed_record::ParsedRecord;
use crate::{Completion, Record, Result, read_manifest};

/// # Errors
/// As [`read_manifest`]: all bad lines at once.
pub(crate) fn records(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let mut records: Vec<Record> = Vec::new();
    let mut by_text = std::collections::HashMap::new();
    for entry in read_manifest(path)? {
        let index = *by_text.entry(entry.caption.clone()).or_insert_with(|| {
            records.push(Record::new(format!("{:06}", records.len() + 1), entry.caption, Vec::new()));
            records.len() - 1
        });
        records[index].completions.push(Completion { image_path: entry.file_name, ..Completion::default() });
    }
    Ok(records.into_iter().map(|record| ParsedRecord { place: format!("text {:?}", record.prompt), record: Ok(Some(record)) }))
}
