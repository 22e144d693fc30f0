//! A whole annotation run: prompts and images in, records out.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use vp_core::atomic;
use vp_core::config::Validate;
use vp_data::Record;

use crate::records::{image_path, records};
use crate::settle::{Settled, settle};
use crate::{Annotator, Error, Event, Result, Summary, questions};

/// What is asked, how often, and within which bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunOptions {
    /// Rate all images of a prompt.
    pub rate: bool,
    /// Compare every two images of a prompt.
    pub compare: bool,
    /// Show every pair in both orders.
    pub swap: bool,
    /// Ask everything this many times, independently, to see whether an annotator agrees with itself.
    pub repeats: u32,
    /// Questions in flight.
    pub concurrency: usize,
    /// Spend at most this much in this output folder, restarts included, in USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_usd: Option<f64>,
    /// Send at most this many requests, including those of earlier runs that got replies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// Ask the questions again that were set aside.
    pub retry_set_aside: bool,
    /// A folder of answers shared with other runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            rate: true,
            compare: false,
            swap: true,
            repeats: 1,
            concurrency: 4,
            max_usd: None,
            max_requests: None,
            retry_set_aside: false,
            cache: None,
        }
    }
}

impl Validate for RunOptions {
    fn findings(&self, findings: &mut Vec<String>) {
        if !self.rate && !self.compare {
            findings.push("rate and compare are both off: turn one on".into());
        }
        for (name, count) in [("repeats", u64::from(self.repeats)), ("concurrency", self.concurrency as u64)] {
            if count == 0 {
                findings.push(format!("{name} = 0: expected at least 1"));
            }
        }
        if let Some(usd) = self.max_usd.filter(|usd| usd.is_nan() || *usd < 0.0) {
            findings.push(format!("max_usd = {usd}: expected at least 0"));
        }
    }
}

impl RunOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let mut findings = Vec::new();
        self.findings(&mut findings);
        if findings.is_empty() { Ok(()) } else { Err(Error::Invalid { annotator: "options", findings }) }
    }
}

/// What is to be annotated, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Prompts and the paths of their images. Earlier annotations are left out of the output.
    pub items: &'a [Record],
    /// The folder that relative image paths start from.
    pub images_root: &'a Path,
    /// The folder for `journal.jsonl`, `records.jsonl` and `set_aside.jsonl`.
    pub output: &'a Path,
}

/// Puts every question of `job` to `annotator` and writes, into the output folder,
///
/// - `journal.jsonl`: every reply, as it comes; a run that goes on in the same folder asks nothing twice;
/// - `records.jsonl`: for each item and repeat, one record of ratings and one of comparisons, if all their questions are settled;
/// - `set_aside.jsonl`: questions without an answer, and why.
///
/// The latter two depend only on the items and the answers: they are the same, byte for byte, however often the run was interrupted.
/// `progress` is called from several threads. Once `stop` is set, no further question is begun, waits end, and requests in flight are
/// waited for.
///
/// # Errors
/// When the options have findings, a file cannot be read or written, the server refuses everything (401, 403, 404, …), or question after
/// question fails. What was answered before is kept and written.
pub fn run(
    job: Job,
    annotator: &dyn Annotator,
    options: &RunOptions,
    progress: &(dyn Fn(Event) + Sync),
    stop: &AtomicBool,
) -> Result<Summary> {
    options.check()?;
    let questions = questions::of_records(job.items, job.images_root, options);
    let settled = settle(&questions, annotator, options, job.output, progress, stop)?;
    let mut records = records(job.items, &questions, &settled, annotator, options.swap);
    for completion in records.iter_mut().flat_map(|record| &mut record.completions) {
        completion.image_path = image_path(job.images_root, &completion.image_path, job.output)?;
    }
    write_lines(&job.output.join("records.jsonl"), &records)?;
    finish(settled, job.output)
}

/// Writes the questions that were set aside, and returns the summary.
pub(crate) fn finish(settled: Settled, output: &Path) -> Result<Summary> {
    write_lines(&output.join("set_aside.jsonl"), &settled.summary.set_aside)?;
    match settled.failure {
        Some(failure) => Err(failure),
        None => Ok(settled.summary),
    }
}

/// Writes one JSON object per line; the file is replaced whole.
pub(crate) fn write_lines<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line).expect("plain data can be written as JSON"));
        text.push('\n');
    }
    atomic::write(path, text.as_bytes()).map_err(Error::io("write", path))
}
