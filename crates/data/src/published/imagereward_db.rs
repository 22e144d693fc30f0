//! ImageRewardDB, from <https://huggingface.co/datasets/zai-org/ImageRewardDB>: a row for each image.
//!
//! `image_path`, `prompt_id`, `prompt`, `classification`, `image_amount_in_total`, `rank`, `overall_rating`,
//! `image_text_alignment_rating` (our prompt_following) and `fidelity_rating`, in `metadata-{split}.parquet` for all images of a split,
//! and in a JSON list beside the images of a part, `images/{split}/{split}_{n}/` or the zip of that name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::image_source::INSIDE;
use crate::json_list::{Fields, JsonList, Placed};
use crate::parquet_file::ParquetFile;
use crate::parsed_record::ParsedRecord;
use crate::record_file::path_within;
use crate::zip_file::ZipFile;
use crate::{AnnotatorId, Aspect, Completion, Rating, Record, Result};

/// The rows of several files, gathered by prompt in the order in which prompts appear; `folder` is the one that image paths start from.
///
/// # Errors
/// Files that cannot be read, zip files that are hostile.
pub(crate) fn records(files: &[PathBuf], folder: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let mut prompts = Prompts::default();
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().replace('\\', "/");
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => prompts.add(&name, ParquetFile::rows(path, &["image"])?, |image| Ok(image.into())),
            Some("zip") => {
                let zip = ZipFile::open(path)?;
                for list in zip.names().iter().filter(|entry| entry.ends_with(".json")) {
                    let text = String::from_utf8_lossy(&zip.read(list)?).into_owned();
                    let inside = |image: &str| match zip.find(&path_within(image)?) {
                        Some(entry) => Ok(format!("{name}{INSIDE}{entry}")),
                        None => Err(format!("{image} is not in the zip, or several entries have its name")),
                    };
                    prompts.add(&format!("{name}{INSIDE}{list}"), JsonList::new(text), inside);
                }
            }
            _ => prompts.add(&name, JsonList::open(path)?, |image| Ok(beside(folder, &name, image))),
        }
    }
    Ok(prompts.found.into_iter())
}

/// Where the image of a list lies: its path starts at the repository's root, but a part may have been unpacked anywhere.
fn beside(folder: &Path, list: &str, image: &str) -> String {
    let last_part = image.rsplit('/').next().unwrap_or(image);
    let beside = list.rsplit_once('/').map_or(last_part.to_owned(), |(part, _)| format!("{part}/{last_part}"));
    // Paths that lead out are left as they are, for the check of the record to refuse.
    let leads_out = path_within(image).is_err();
    if leads_out || folder.join(image).is_file() { image.into() } else { beside }
}

/// Rows, gathered.
#[derive(Default)]
struct Prompts {
    found: Vec<ParsedRecord>,
    /// Where in `found` the record of a prompt is.
    by_id: HashMap<String, usize>,
}

impl Prompts {
    fn add(&mut self, list: &str, rows: impl Iterator<Item = Placed>, locate: impl Fn(&str) -> Result<String, String>) {
        for (place, row) in rows {
            let read = |mut fields: Fields| {
                let completion = completion_of(&mut fields, &locate)?;
                self.put(completion, fields)
            };
            match row.and_then(read) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    self.by_id.insert(record.id.clone(), self.found.len());
                    self.found.push(ParsedRecord { place: format!("{list} {place}"), record: Ok(Some(record)) });
                }
                Err(reason) => self.found.push(ParsedRecord { place: format!("{list} {place}"), record: Err(reason) }),
            }
        }
    }

    /// Puts an image to the others of its prompt; the first one makes a new record.
    fn put(&mut self, completion: Completion, mut fields: Fields) -> Result<Option<Record>, String> {
        let id = fields.label("prompt_id").ok_or("it has no prompt_id")?;
        let prompt = fields.text("prompt")?;
        let known = self.by_id.get(&id).map(|&at| &mut self.found[at]);
        let Some(ParsedRecord { place, record: Ok(Some(record)) }) = known else {
            let record = Record::new(id, prompt, vec![completion]);
            return Ok(Some(Record {
                source: Some("ImageRewardDB".into()),
                annotator: Some(AnnotatorId::human()),
                extra: fields.0,
                ..record
            }));
        };
        if record.prompt != prompt {
            return Err(format!("prompt_id {id} has another prompt in {place}"));
        }
        record.completions.push(completion);
        Ok(None)
    }
}

fn completion_of(fields: &mut Fields, locate: impl Fn(&str) -> Result<String, String>) -> Result<Completion, String> {
    let image = fields.text("image_path")?;
    let mut completion = Completion { image_path: locate(&image)?, rank: Some(fields.count("rank")?), ..Completion::default() };
    for (column, aspect) in [("image_text_alignment_rating", Aspect::PromptFollowing), ("fidelity_rating", Aspect::Fidelity)] {
        if fields.0.get(column).is_some_and(Value::is_null) {
            fields.0.shift_remove(column);
            continue;
        }
        completion.annotations.insert(aspect, Rating { rating: fields.number(column)?, rationale: String::new() });
    }
    let overall = fields.0.shift_remove("overall_rating").ok_or("it has no overall_rating")?;
    if !overall.is_number() && !overall.is_null() {
        return Err(format!("expected overall_rating to be a number, found {overall}"));
    }
    completion.extra.insert("overall_rating".into(), overall);
    Ok(completion)
}
