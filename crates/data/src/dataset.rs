//! Preference data in the layouts in which it is published, read as records.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use vp_core::{input_file, shown};

use crate::image_listing::{TABLES, list};
use crate::image_source::Archives;
use crate::json_list::JsonList;
use crate::parquet_file::ParquetFile;
use crate::parsed_record::{ParsedRecord, ParsedRecords};
use crate::published::{hpd, image_folder, imagereward, imagereward_db, pick_a_pic};
use crate::record_file::{checked, record_lines};
use crate::validate::undecodable;
use crate::{Error, ImageSource, OnProblem, Problem, ProblemKind, Record, Result};

/// A layout of preference data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// Records of our own: see [`read_records`](crate::read_records).
    Records,
    /// ImageReward's `train.json` and `test.json`.
    ImageReward,
    /// ImageRewardDB: tables, and images in folders or zip files.
    ImageRewardDb,
    /// HPD v2's `train.json`.
    HpdTrain,
    /// HPD v2's `test.json`.
    HpdTest,
    /// Pick-a-Pic v1 and v2, with the images in the table.
    PickAPic,
    /// Hugging Face's imagefolder: images and their texts, not annotated.
    ImageFolder,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Records, Self::ImageReward, Self::ImageRewardDb, Self::HpdTrain, Self::HpdTest, Self::PickAPic, Self::ImageFolder];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::ImageReward => "ImageReward",
            Self::ImageRewardDb => "ImageRewardDB",
            Self::HpdTrain => "HPD v2 train",
            Self::HpdTest => "HPD v2 test",
            Self::PickAPic => "Pick-a-Pic",
            Self::ImageFolder => "imagefolder",
        }
    }

    /// How it is recognised.
    pub fn layout(self) -> &'static str {
        match self {
            Self::Records => "JSON lines with id, prompt and completions, or a folder with such a records.jsonl",
            Self::ImageReward => "a JSON list with id, prompt, generations and ranking",
            Self::ImageRewardDb => {
                "parquet or JSON with prompt_id and image_path, a zip or a folder with such JSON, or the whole repository"
            }
            Self::HpdTrain => "a JSON list with human_preference, prompt and file_path",
            Self::HpdTest => "a JSON list with prompt, image_path and rank",
            Self::PickAPic => "parquet with caption, jpg_0, jpg_1, label_0 and has_label, or a folder of such",
            Self::ImageFolder => "metadata.jsonl or metadata.csv with file_name and text, or a folder of images with captions",
        }
    }

    /// All of them as the end of an error message.
    pub(crate) fn list() -> String {
        Self::ALL.iter().map(|format| format!("\n  {format}: {}", format.layout())).collect()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Preference data on disk whose format is known.
#[derive(Debug)]
pub struct Dataset {
    format: Format,
    path: PathBuf,
    /// What is read, in order.
    files: Vec<PathBuf>,
    /// Where the images are looked for.
    folders: Vec<PathBuf>,
    archives: Archives,
}

/// Recognises the format of a file or folder by its content; see [`Format::layout`].
///
/// # Errors
/// A path that cannot be read, or whose content is in none of the formats: the message lists them.
pub fn open_dataset(path: impl AsRef<Path>) -> Result<Dataset> {
    let path = path.as_ref();
    let is_folder = fs::metadata(path).map_err(|error| Error::Read { path: path.into(), error })?.is_dir();
    let (format, files) = if is_folder { format_of_folder(path)? } else { (format_of_file(path)?, vec![path.into()]) };
    let folder = if is_folder { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() };
    let mut folders = vec![folder.clone()];
    if let (Format::HpdTrain | Format::HpdTest, Some(stem)) = (format, path.file_stem()) {
        // HPD's train.json speaks of the images in train/ by their bare names.
        folders.push(folder.join(stem));
    }
    Ok(Dataset { format, path: path.into(), files, folders, archives: Archives::default() })
}

impl Dataset {
    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks for the images in another folder than the set's own.
    pub fn with_images(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders = vec![folder.into()];
        self
    }

    /// The records, one in memory at a time (of ImageRewardDB and imagefolder all, without images).
    ///
    /// # Errors
    /// Files that cannot be read. What is wrong with single records comes as [`Problem`]s among them.
    pub fn records(&self) -> Result<Records> {
        let folder = if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new("")) };
        let file = &self.files[0];
        let found: ParsedRecords = match self.format {
            Format::Records => Box::new(record_lines(file)?),
            Format::ImageReward => Box::new(imagereward::records(file)?),
            Format::ImageRewardDb => Box::new(imagereward_db::records(&self.files, folder)?),
            Format::HpdTrain => Box::new(hpd::train_records(file)?),
            Format::HpdTest => Box::new(hpd::test_records(file)?),
            Format::PickAPic => Box::new(pick_a_pic::records(&self.files, folder)?),
            Format::ImageFolder => Box::new(image_folder::records(file)?),
        };
        Ok(Records { found, unlabelled: 0 })
    }

    /// All records at once.
    ///
    /// # Errors
    /// Files that cannot be read, a set without a usable record, and under [`OnProblem::Refuse`] all that is wrong with its records.
    pub fn read(&self, on_problem: OnProblem) -> Result<ReadRecords> {
        let (mut records, mut skipped, mut found) = (Vec::new(), Vec::new(), self.records()?);
        for record in &mut found {
            match record {
                Ok(record) => records.push(record),
                Err(problem) => skipped.push(problem),
            }
        }
        if records.is_empty() && skipped.is_empty() {
            return Err(Error::NoRecords { path: self.path.clone() });
        }
        if records.is_empty() || (on_problem == OnProblem::Refuse && !skipped.is_empty()) {
            return Err(Error::ProblemsInRecords { path: self.path.clone(), problems: skipped, usable: records.len() });
        }
        Ok(ReadRecords { records, skipped, unlabelled: found.unlabelled })
    }

    /// Decodes every image that `records` name once, on all processors. Images that cannot be decoded are left out, and what was said of them; a
    /// record without an image is left out too.
    ///
    /// # Errors
    /// Under [`OnProblem::Refuse`] all images that cannot be decoded.
    pub fn usable(&self, records: Vec<Record>, on_problem: OnProblem) -> Result<UsableRecords> {
        self.usable_with(records, on_problem, &mut |_| {})
    }

    /// As [`usable`](Self::usable); `looked_at` hears how many images were looked at so far.
    ///
    /// # Errors
    /// As [`usable`](Self::usable).
    pub fn usable_with(&self, mut records: Vec<Record>, on_problem: OnProblem, looked_at: &mut dyn FnMut(usize)) -> Result<UsableRecords> {
        let mut names: Vec<&str> =
            records.iter().flat_map(|record| &record.completions).map(|completion| completion.image_path.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let (of, skipped) = (names.len(), undecodable(self, names, looked_at));
        if on_problem == OnProblem::Refuse && !skipped.is_empty() {
            return Err(Error::UnreadableImages { problems: skipped, of });
        }
        let broken: HashSet<&str> = skipped.iter().map(|problem| problem.name.as_str()).collect();
        records.iter_mut().for_each(|record| record.retain(|completion| !broken.contains(completion.image_path.as_str())));
        records.retain(|record| !record.completions.is_empty());
        Ok(UsableRecords { records, skipped })
    }

    /// The image that a record of this set calls `image_path`. Only archives are opened and searched; other files are not looked at.
    ///
    /// # Errors
    /// A path that is absolute or leads out of the set, an archive that cannot be read or is hostile, an entry that is not in it.
    pub fn image(&self, image_path: &str) -> Result<ImageSource> {
        self.archives.find(&self.folders, image_path)
    }
}

/// The records of a set, in its order; from [`Dataset::records`].
pub struct Records {
    found: ParsedRecords,
    unlabelled: usize,
}

impl Records {
    /// How many rows nobody labelled and were therefore passed over, so far.
    pub fn unlabelled(&self) -> usize {
        self.unlabelled
    }
}

impl Iterator for Records {
    type Item = Result<Record, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ParsedRecord { place, record } = self.found.next()?;
            match record.and_then(|record| record.map(checked).transpose()) {
                Ok(None) => self.unlabelled += 1,
                Ok(Some(record)) => return Some(Ok(record)),
                Err(reason) => return Some(Err(Problem { name: place, kind: ProblemKind::BadRow(reason) })),
            }
        }
    }
}

/// What [`Dataset::usable`] left.
#[derive(Debug, Clone)]
pub struct UsableRecords {
    /// The records, with the images that can be decoded.
    pub records: Vec<Record>,
    /// The images that were left out, by their paths; always empty under [`OnProblem::Refuse`].
    pub skipped: Vec<Problem>,
}

/// What [`Dataset::read`] found.
#[derive(Debug, Clone)]
pub struct ReadRecords {
    /// The usable records, in the set's order.
    pub records: Vec<Record>,
    /// What was left out; always empty under [`OnProblem::Refuse`].
    pub skipped: Vec<Problem>,
    /// How many rows nobody labelled and were therefore passed over.
    pub unlabelled: usize,
}

fn unknown<T>(path: &Path, reason: impl Into<String>) -> Result<T> {
    Err(Error::UnknownFormat { path: path.into(), reason: reason.into() })
}

fn format_of_file(path: &Path) -> Result<Format> {
    let mut start = [0; 4];
    // It is read more than once, which a pipe cannot be.
    let mut file = input_file::open_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
    let read = file.read(&mut start).map_err(|error| Error::Read { path: path.into(), error })?;
    match &start[..read] {
        b"PAR1" => format_of_table(path),
        [b'P', b'K', 3, 4] => Ok(Format::ImageRewardDb),
        _ => format_of_text(path),
    }
}

fn format_of_table(path: &Path) -> Result<Format> {
    let table = ParquetFile::open(path)?;
    let columns = table.columns();
    let has = |wanted: &[&str]| wanted.iter().all(|name| columns.contains(name));
    if has(&["caption", "jpg_0", "jpg_1", "label_0"]) {
        Ok(Format::PickAPic)
    } else if has(&["image_path", "prompt_id"]) {
        Ok(Format::ImageRewardDb)
    } else {
        unknown(path, format!("a parquet table with the columns {}", shown::names(columns.iter().copied())))
    }
}

/// A list is recognised by its first entry, lines by the first one that says enough.
fn format_of_text(path: &Path) -> Result<Format> {
    const LINES: usize = 100;
    const BYTES: u64 = 16 << 20;
    let file = input_file::open_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
    for line in BufReader::new(file.take(BYTES)).split(b'\n').take(LINES) {
        let line = line.map_err(|error| Error::Read { path: path.into(), error })?;
        let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line).trim_ascii();
        if line.starts_with(b"[") {
            return format_of_list(path);
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
            return Ok(Format::ImageFolder);
        }
        let Ok(line) = str::from_utf8(line) else { return unknown(path, "neither text nor parquet nor zip") };
        let Ok(Value::Object(row)) = serde_json::from_str(line) else { continue };
        if row.contains_key("completions") {
            return Ok(Format::Records);
        } else if row.contains_key("file_name") {
            return Ok(Format::ImageFolder);
        } else if row.contains_key("chosen") {
            return unknown(path, "pairs of chosen and rejected images, which `train --algo dpo` and `kto` read as they are");
        } else if row.contains_key("image") && (row.contains_key("label") || row.contains_key("rating")) {
            return unknown(path, "liked and disliked images, which `train --algo kto` reads as they are");
        }
    }
    unknown(path, "text without a line or entry that tells its format")
}

fn format_of_list(path: &Path) -> Result<Format> {
    let Some((_, entry)) = JsonList::open(path)?.next() else { return unknown(path, "an empty list") };
    let entry = match entry {
        Ok(fields) => fields.0,
        Err(reason) => return unknown(path, format!("entry 1: {reason}")),
    };
    let has = |key: &str| entry.contains_key(key);
    if has("generations") {
        Ok(Format::ImageReward)
    } else if has("human_preference") {
        Ok(Format::HpdTrain)
    } else if has("prompt_id") && has("image_path") {
        Ok(Format::ImageRewardDb)
    } else if has("image_path") && (has("rank") || has("raw_annotations")) {
        Ok(Format::HpdTest)
    } else {
        unknown(path, format!("a JSON list whose entries have {}", shown::names(entry.keys().map(String::as_str))))
    }
}

fn format_of_folder(path: &Path) -> Result<(Format, Vec<PathBuf>)> {
    let records = path.join("records.jsonl");
    if records.is_file() {
        return Ok((Format::Records, vec![records]));
    }
    let tables = files_below(path, &["parquet"])?;
    if let Some(first) = tables.first() {
        return Ok((format_of_table(first)?, tables));
    }
    if TABLES.iter().any(|table| path.join(table).is_file()) {
        return Ok((Format::ImageFolder, vec![path.into()]));
    }
    let mut files = files_below(path, &["zip", "json"])?;
    files.retain(|file| matches!(format_of_file(file), Ok(Format::ImageRewardDb)));
    if !files.is_empty() {
        return Ok((Format::ImageRewardDb, files));
    }
    let listing = list(path)?;
    match listing.images.values().any(|image| matches!(image.caption, Ok(Some(_)))) {
        true => Ok((Format::ImageFolder, vec![path.into()])),
        false => unknown(path, "a folder that holds none of the formats"),
    }
}

/// The files with these extensions in a folder and below, sorted. Linked folders are not followed: they might lead in a circle.
fn files_below(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let read_error = |error| Error::Read { path: folder.clone(), error };
        for entry in fs::read_dir(&folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            } else if entry.file_type().map_err(read_error)?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension)) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}
