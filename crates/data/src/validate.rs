//! A set looked through from end to end before it is used.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::thread;

use crate::images::decode_image;
use crate::{Dataset, Error, Format, ImageSource, Problem, ProblemKind, Result, open_dataset};

/// How many encoded images are in memory at a time.
const AT_ONCE: usize = 32;

/// What [`validate`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// The format of the set.
    pub format: Format,
    /// Records without a problem of their own; their images may have some.
    pub records: usize,
    /// Rows that nobody labelled.
    pub unlabelled: usize,
    /// Different images that could be decoded.
    pub images: usize,
    /// All that is wrong: lines, entries and rows first met, then the images they name.
    pub problems: Vec<Problem>,
}

/// Reads every record of a set and decodes every image once, on all processors; a few dozen images are in memory at a time.
///
/// # Errors
/// A path that cannot be read or whose format is not known, and tables, lists or archives that cannot be opened. What is wrong with
/// single records and images is in [`Validation::problems`], all of it.
pub fn validate(path: impl AsRef<Path>) -> Result<Validation> {
    validate_with(path, &mut |_| {})
}

/// As [`validate`]; `looked_at` hears how many images were looked at so far.
///
/// # Errors
/// As [`validate`].
pub fn validate_with(path: impl AsRef<Path>, looked_at: &mut dyn FnMut(usize)) -> Result<Validation> {
    let dataset = open_dataset(path)?;
    let (mut records, mut seen, mut waiting) = (dataset.records()?, HashSet::new(), Vec::new());
    let mut found = Validation { format: dataset.format(), records: 0, unlabelled: 0, images: 0, problems: Vec::new() };
    for record in &mut records {
        let record = match record {
            Ok(record) => record,
            Err(problem) => {
                found.problems.push(problem);
                continue;
            }
        };
        found.records += 1;
        for completion in record.completions {
            if seen.insert(completion.image_path.clone()) {
                waiting.push((dataset.image(&completion.image_path), completion.image_path));
            }
            if waiting.len() == AT_ONCE {
                found.decode(std::mem::take(&mut waiting));
                looked_at(seen.len());
            }
        }
    }
    found.decode(waiting);
    looked_at(seen.len());
    found.unlabelled = records.unlabelled();
    Ok(found)
}

/// The images of `names` in a set that cannot be decoded, and why; a few dozen are in memory at a time.
pub(crate) fn undecodable(dataset: &Dataset, names: Vec<&str>, looked_at: &mut dyn FnMut(usize)) -> Vec<Problem> {
    let (mut problems, mut count) = (Vec::new(), 0);
    for some in names.chunks(AT_ONCE) {
        problems.extend(decode(some.iter().map(|name| (dataset.image(name), (*name).to_owned())).collect()).into_iter().flatten());
        count += some.len();
        looked_at(count);
    }
    problems
}

/// Reads images one after the other, as archives are fastest read, and decodes them side by side: what is wrong with each.
fn decode(sources: Vec<(Result<ImageSource>, String)>) -> Vec<Option<Problem>> {
    let read = |(source, name): (Result<ImageSource>, String)| (source.and_then(|source| Ok((source.bytes()?, source.to_string()))), name);
    let encoded: Vec<_> = sources.into_iter().map(read).collect();
    let decode = |(encoded, name): &(Result<(Vec<u8>, String)>, String)| {
        let kind = |error: &Error| match error {
            Error::BadImage { reason, .. } => ProblemKind::Broken(reason.clone()),
            error => ProblemKind::Broken(error.to_string()),
        };
        let decoded =
            encoded.as_ref().map_err(kind).and_then(|(bytes, path)| decode_image(bytes, Path::new(path)).map_err(|error| kind(&error)));
        decoded.err().map(|kind| Problem { name: name.clone(), kind })
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<_> = encoded.chunks(encoded.len().div_ceil(threads).max(1)).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || part.iter().map(decode).collect::<Vec<_>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("decoding an image does not panic")).collect::<Vec<_>>()
    })
}

impl Validation {
    fn decode(&mut self, sources: Vec<(Result<ImageSource>, String)>) {
        let findings = decode(sources);
        self.images += findings.iter().filter(|finding| finding.is_none()).count();
        self.problems.extend(findings.into_iter().flatten());
    }
}

/// A line of counts, then a line for each problem.
impl fmt::Display for Validation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, records, unlabelled, images, problems } = self;
        write!(f, "{format}: {records} record(s), {images} image(s)")?;
        if *unlabelled > 0 {
            write!(f, ", {unlabelled} without a label")?;
        }
        write!(f, ", {} problem(s)", problems.len())?;
        problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
