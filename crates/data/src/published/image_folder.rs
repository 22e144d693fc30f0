//! Hugging Face's imagefolder as records: the images of a text together, nothing said of them.

use std::collections::HashSet;
use std::path::Path;

use crate::image_listing::{Listing, TABLES, list};
use crate::parsed_record::ParsedRecord;
use crate::{Completion, ImageEntry, ProblemKind, Record, Result, read_manifest};

/// The records of a list, or of a folder: those of the list in it first, in its order, then the other images with captions.
///
/// # Errors
/// As [`read_manifest`]: all bad lines at once.
pub(crate) fn records(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let (entries, problems) = if path.is_dir() { entries_of_folder(path)? } else { (read_manifest(path)?, Vec::new()) };
    let mut records: Vec<Record> = Vec::new();
    let mut by_text = std::collections::HashMap::new();
    for entry in entries {
        let index = *by_text.entry(entry.caption.clone()).or_insert_with(|| {
            records.push(Record::new(format!("{:06}", records.len() + 1), entry.caption, Vec::new()));
            records.len() - 1
        });
        records[index].completions.push(Completion { image_path: entry.file_name, ..Completion::default() });
    }
    let records = records.into_iter().map(|record| ParsedRecord { place: format!("text {:?}", record.prompt), record: Ok(Some(record)) });
    Ok(records.chain(problems))
}

fn entries_of_folder(folder: &Path) -> Result<(Vec<ImageEntry>, Vec<ParsedRecord>)> {
    let table = TABLES.iter().map(|table| folder.join(table)).find(|table| table.is_file());
    let mut entries = table.map(read_manifest).transpose()?.unwrap_or_default();
    let named: HashSet<String> = entries.iter().map(|entry| entry.file_name.clone()).collect();
    let Listing { images, problems, notes } = list(folder)?;
    let problem = |place: String, reason: String| ParsedRecord { place, record: Err(reason) };
    // Those of the list are told already, all at once.
    let mut found: Vec<ParsedRecord> = notes.into_iter().map(|note| problem(folder.display().to_string(), note)).collect();
    found
        .extend(problems.into_iter().filter(|problem| !named.contains(&problem.name)).map(|p| problem(p.name.clone(), p.kind.to_string())));
    for (file_name, image) in images.into_iter().filter(|(name, _)| !named.contains(name)) {
        match image.caption {
            Ok(Some(caption)) => entries.push(ImageEntry { path: image.path, file_name, caption }),
            Ok(None) => found.push(problem(file_name, ProblemKind::MissingCaption.to_string())),
            Err(kind) => found.push(problem(file_name, kind.to_string())),
        }
    }
    Ok((entries, found))
}
