//! Results on disk: one line per prompt and side, written after all images of the prompt, so that an evaluation goes on where it stopped.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vp_core::folder_lock::FolderLock;
use vp_core::{atomic, input_file};
use vp_evaluation::comparison::ImageResult;

use super::Side;
use crate::output_folder;
use crate::shard::Shard;

/// What was evaluated; results of another evaluation are not added to.
const EVALUATION: &str = "evaluation.json";

/// The results of one side for one prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromptResult {
    /// One per image, in the order of the seeds.
    pub rows: Vec<ImageResult>,
    /// How far apart every two of them are.
    pub distances: Vec<f64>,
}

/// The folder of an evaluation. Nobody else can open it for the same shard meanwhile.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    _lock: FolderLock,
}

impl Journal {
    /// Creates the folder of the evaluation that `description` describes, or goes on with it.
    pub fn open(folder: &Path, shard: Shard, description: &Value) -> anyhow::Result<Self> {
        let part = if shard == Shard::WHOLE { String::new() } else { format!("{}-of-{}", shard.index + 1, shard.of) };
        let lock = FolderLock::take(folder, &part)?;
        output_folder::create_or_continue(folder, EVALUATION, description)?;
        for name in ["results", "images"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("create {}", folder.display()))?;
            atomic::sweep(&folder.join(name));
        }
        Ok(Self { folder: folder.to_path_buf(), _lock: lock })
    }

    /// Where an image lies.
    pub fn image(&self, side: usize, index: usize, seed: u64) -> PathBuf {
        image_in(&self.folder, side, index, seed)
    }

    fn files(&self, side: usize) -> anyhow::Result<Vec<PathBuf>> {
        let folder = self.folder.join("results");
        let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
        files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{side}-"))));
        files.sort();
        Ok(files)
    }

    /// The prompts of a side that are done.
    pub fn known(&self, side: usize) -> anyhow::Result<HashSet<usize>> {
        let mut known = HashSet::new();
        for path in self.files(side)? {
            known.extend(lines(&path)?.iter().filter_map(|result| result.rows.first().map(|row| row.index)));
        }
        Ok(known)
    }

    /// Appends the result of a prompt; it is on disk when this returns.
    pub fn add(&self, side: usize, shard: Shard, result: &PromptResult) -> anyhow::Result<()> {
        let path = self.folder.join("results").join(format!("{side}-{}-of-{}.jsonl", shard.index + 1, shard.of));
        let written = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            // What a killed process left half written ends here. The file is read only then: it grows with every prompt.
            if ends_torn(&mut file)? {
                let text = input_file::read_regular(&path)?;
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                file.set_len(whole as u64)?;
            }
            file.write_all(format!("{}\n", serde_json::to_string(result)?).as_bytes())?;
            file.sync_data()
        };
        written().with_context(|| format!("write {}", path.display()))
    }

    /// All results, in the order of sides and prompts.
    pub fn read(&self, sides: &[Side]) -> anyhow::Result<Vec<PromptResult>> {
        let mut all = Vec::new();
        for side in 0..sides.len() {
            let mut of_side = Vec::new();
            for path in self.files(side)? {
                of_side.extend(lines(&path)?);
            }
            of_side.sort_by_key(|result| result.rows.first().map(|row| row.index));
            of_side.dedup_by_key(|result| result.rows.first().map(|row| row.index));
            all.extend(of_side);
        }
        Ok(all)
    }
}

/// Whether a file ends in the middle of a line.
fn ends_torn(file: &mut File) -> std::io::Result<bool> {
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last != [b'\n'])
}

/// Where an image of the evaluation in `folder` lies.
pub fn image_in(folder: &Path, side: usize, index: usize, seed: u64) -> PathBuf {
    folder.join("images").join(format!("{side}-{index:06}-{seed}.png"))
}

/// The whole lines of a file.
fn lines(path: &Path) -> anyhow::Result<Vec<PromptResult>> {
    let text = input_file::read_regular_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: this is not a result; remove the file to evaluate again", path.display(), index + 1))
    };
    whole.lines().enumerate().map(line).collect()
}
