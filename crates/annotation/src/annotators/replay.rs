//! `replay`: answers from a file of earlier records, found by the prompt and the content of the image files, wherever the files lie now.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vp_core::config::Validate;
use vp_core::input_file;
use vp_data::{Ratings, Record};

use crate::picture::hex_digest;
use crate::{Annotator, Answered, Ask, Build, BuildContext, Choice, Error, Picture, Result, Unanswered};

/// The `[annotator.replay]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayConfig {
    /// A `records.jsonl`; the images that it names must still be there, so that they can be recognised.
    pub records: PathBuf,
    /// Replays only this annotator's records (`openai`, `human`, …); needed if the file holds several annotators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotator: Option<String>,
}

impl Validate for ReplayConfig {
    fn findings(&self, _: &mut Vec<String>) {}
}

impl Build for ReplayConfig {
    fn build(&self, _: BuildContext) -> Result<Box<dyn Annotator>> {
        Ok(Box::new(Replay::read(self)?))
    }
}

/// Answers by (prompt, hashes of the images shown, repeat).
type Answers<T> = HashMap<(String, Vec<String>, u32), T>;

/// Earlier answers.
#[derive(Debug)]
pub struct Replay {
    content: String,
    annotator: Option<String>,
    ratings: Answers<Ratings>,
    choices: Answers<Choice>,
}

impl Replay {
    /// Reads the records and looks at their images.
    ///
    /// # Errors
    /// When the file or an image cannot be read, a line is not a record, or a comparison names images that are not in its record.
    pub fn read(config: &ReplayConfig) -> Result<Self> {
        let path = &config.records;
        let text = input_file::read_to_string(path).map_err(Error::io("read", path))?;
        let content = hex_digest(text.as_bytes());
        let mut replay = Self { content, annotator: config.annotator.clone(), ratings: Answers::new(), choices: Answers::new() };
        let mut hashes = HashMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |reason: String| Error::BadLine { path: path.clone(), line: index + 1, reason };
            let record: Record = serde_json::from_str(line).map_err(|error| bad(format!("expected a record: {error}")))?;
            replay.add(&record, path.parent().unwrap_or(Path::new("")), &mut hashes).map_err(|error| match error {
                Error::Unable { reason, .. } => bad(reason),
                other => other,
            })?;
        }
        Ok(replay)
    }

    fn add(&mut self, record: &Record, folder: &Path, hashes: &mut HashMap<PathBuf, String>) -> Result<()> {
        let name = record.annotator.as_ref().map(|annotator| &annotator.name);
        if self.annotator.is_some() && name != self.annotator.as_ref() {
            return Ok(());
        }
        let repeat = record.annotator.as_ref().map_or(0, |annotator| annotator.repeat);
        let mut shown = Vec::new();
        for completion in &record.completions {
            let path = folder.join(&completion.image_path);
            if !hashes.contains_key(&path) {
                hashes.insert(path.clone(), Picture::read(&path)?.hash().to_owned());
            }
            shown.push(hashes[&path].clone());
        }
        for (completion, hash) in record.completions.iter().zip(&shown).filter(|(completion, _)| !completion.annotations.is_empty()) {
            self.ratings.insert((record.prompt.clone(), vec![hash.clone()], repeat), completion.annotations.clone());
        }
        for comparison in &record.comparisons {
            let pair: Option<Vec<String>> = comparison.shown.iter().map(|index| shown.get(*index).cloned()).collect();
            let reason = || format!("it compares images {:?}, but holds {}", comparison.shown, shown.len());
            let pair = pair.ok_or_else(|| Error::Unable { annotator: "replay", reason: reason() })?;
            let choice = Choice { preferred: comparison.preferred, rationale: comparison.rationale.clone() };
            self.choices.insert((record.prompt.clone(), pair, repeat), choice);
        }
        Ok(())
    }
}

impl Annotator for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn model(&self) -> Option<&str> {
        self.annotator.as_deref()
    }

    fn settings(&self) -> Value {
        json!({ "records": self.content })
    }

    fn rate(&self, prompt: &str, images: &[Picture], ask: &Ask) -> Result<Answered<Vec<Ratings>>, Unanswered> {
        let known = |(index, picture): (usize, &Picture)| {
            let found = self.ratings.get(&(prompt.to_owned(), vec![picture.hash().to_owned()], ask.repeat));
            found.cloned().ok_or_else(|| Unanswered::SetAside(format!("the records hold no rating of image {}", index + 1)))
        };
        images.iter().enumerate().map(known).collect::<Result<_, _>>().map(Answered::free)
    }

    fn compare(&self, prompt: &str, pair: [&Picture; 2], ask: &Ask) -> Result<Answered<Choice>, Unanswered> {
        let key = (prompt.to_owned(), pair.map(|picture| picture.hash().to_owned()).to_vec(), ask.repeat);
        let found = self.choices.get(&key).cloned();
        found.map(Answered::free).ok_or_else(|| Unanswered::SetAside("the records do not compare these images in this order".into()))
    }
}
