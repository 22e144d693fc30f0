//! ImageReward's `train.json` and `test.json`: images of a prompt in the order in which people put them.
//!
//! A list of `{"id", "prompt", "generations": [path], "ranking": [1 the best; ties share a number]}`, from
//! <https://github.com/THUDM/ImageReward>.

use std::path::Path;

use super::{found, ranked};
use crate::json_list::JsonList;
use crate::parsed_record::ParsedRecord;
use crate::{AnnotatorId, Record, Result};

/// # Errors
/// A file that cannot be read.
pub(crate) fn records(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    Ok(found(JsonList::open(path)?, |_, mut entry| {
        let (id, prompt, images) = (entry.text("id")?, entry.text("prompt")?, entry.texts("generations")?);
        let ranks = entry.counts("ranking", images.len())?;
        let record = Record::new(id, prompt, ranked(images, ranks));
        Ok(Some(Record { source: Some("ImageReward".into()), annotator: Some(AnnotatorId::human()), extra: entry.0, ..record }))
    }))
}
