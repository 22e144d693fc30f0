//! Checkpoints: everything that a run needs to resume, in a folder that is either complete or absent.
//!
//! `checkpoints/step-000100/` holds safetensors files, `state.json`, and `manifest.json`, which lists every other file with its size and
//! SHA-256. The folder is written under a temporary name, its files are synced, and then it is renamed. A checkpoint is valid if its files
//! match the manifest. A run resumes from the newest valid one and names the ones that it passed over.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vp_core::atomic::{self, TemporaryFolder};
use vp_core::input_file;
use vp_evaluation::sentinel::Look;
use vp_models::weights::{LoadError, SaveType, Weights, save_safetensors};

use crate::Error;
use crate::optim::{LossScale, NamedTensors};

/// The position of a run, between two micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Updates made so far.
    pub step: u64,
    /// Micro-batches of the next update that have been computed.
    pub micro: usize,
}

/// The state of a run, except for its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The position of the run.
    pub cursor: Cursor,
    /// The values observed since the last update, by name.
    pub observed: Vec<(String, Vec<f64>)>,
    /// Updates left out because a value was not finite.
    pub skipped: u64,
    /// Whether a reward failed in the preview of this step, which is therefore still to be drawn.
    #[serde(default)]
    pub preview_is_owed: bool,
    /// The factor of the loss in the backward pass, in runs that have one.
    #[serde(default)]
    pub loss_scale: Option<LossScale>,
    /// The scores of the first preview, by name.
    pub first_preview: Vec<(String, Vec<f64>)>,
    /// The scores of the last preview, by name.
    pub last_preview: Vec<(String, Vec<f64>)>,
    /// The best preview score so far, where larger is better, and its step.
    pub best: Option<(f64, u64)>,
    /// The looks at previews that the sentinel has recorded.
    #[serde(default)]
    pub looks: Vec<Look>,
    /// The resolved config of the run.
    pub config: serde_json::Value,
    /// SHA-256 of the files the run started from, by path within the model or the reward.
    pub base: BTreeMap<String, String>,
}

impl State {
    /// The state at the beginning of the update under way, of which nothing has been computed yet.
    pub(super) fn before_its_update(self) -> Self {
        Self {
            cursor: Cursor { micro: 0, ..self.cursor },
            observed: if self.cursor.micro == 0 { self.observed } else { Vec::new() },
            ..self
        }
    }
}

/// A checkpoint in memory: the state, and the tensors by file.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Everything except for the tensors.
    pub state: State,
    /// The tensors by the name of their safetensors file: `weights`, `optimizer`, `ema`, `gradients`, `memory`.
    pub tensors: BTreeMap<String, NamedTensors>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";

/// The folder of a run's checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A valid checkpoint, and warnings about newer ones that are not valid.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// The checkpoint's contents.
    pub checkpoint: Checkpoint,
    /// One line for each checkpoint that was passed over.
    pub warnings: Vec<String>,
}

impl Checkpoints {
    /// The checkpoints in the folder of a run.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// The folder of the checkpoint of this position.
    pub(super) fn path(&self, Cursor { step, micro }: Cursor) -> PathBuf {
        let suffix = if micro == 0 { String::new() } else { format!("-micro-{micro:04}") };
        self.folder.join(format!("step-{step:06}{suffix}"))
    }

    /// Writes a checkpoint and returns its folder.
    ///
    /// # Errors
    /// When a file cannot be written. Nothing is left behind then, and older checkpoints are untouched.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf, Error> {
        let path = self.path(checkpoint.state.cursor);
        fs::create_dir_all(&self.folder).map_err(io(&self.folder))?;
        let temporary = TemporaryFolder::beside(&path).map_err(io(&path))?;
        self.write(temporary.path(), checkpoint)?;
        // A run that was resumed and stopped at once saves the same position again; the new checkpoint is equal to the old one.
        temporary.replace().map_err(io(&path))?;
        Ok(path)
    }

    fn write(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<(), Error> {
        for (name, tensors) in &checkpoint.tensors {
            let shapes: Vec<[usize; 1]> = tensors.values().map(Tensor::dims).collect();
            let entries = tensors.iter().zip(&shapes).map(|((name, tensor), shape)| {
                let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| tensor.to_data().try_to_vec().expect("checkpoint tensors are f32"));
                (name.as_str(), shape.as_slice(), values)
            });
            save_safetensors(&folder.join(format!("{name}.safetensors")), entries, &[], SaveType::State).map_err(|error| match error {
                LoadError::Io { path, source } => Error::Io { path, source },
                other => Error::Model(other.into()),
            })?;
        }
        let state = serde_json::to_vec_pretty(&checkpoint.state).expect("a state is JSON");
        atomic::write(&folder.join(STATE), &state).map_err(io(folder))?;
        let mut files = BTreeMap::new();
        for name in file_names(folder).map_err(io(folder))? {
            let path = folder.join(&name);
            let (sha256, bytes) = sha256(&path).map_err(io(&path))?;
            files.insert(name, FileRecord { bytes, sha256 });
        }
        let manifest = serde_json::to_vec_pretty(&Manifest { files }).expect("a manifest is JSON");
        atomic::write(&folder.join(MANIFEST), &manifest).map_err(io(folder))
    }

    /// The folders of all finished checkpoints, valid or not, newest first.
    pub fn list(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<(Cursor, PathBuf)> = entries.filter_map(|path| Some((cursor_of(&path)?, path))).collect();
        found.sort_by_key(|(cursor, _)| std::cmp::Reverse(*cursor));
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// The newest valid checkpoint; `None` if there is none.
    pub fn newest_valid(&self, device: &Device) -> Option<Found> {
        let mut warnings = Vec::new();
        for path in self.list() {
            match read(&path, device) {
                Ok(checkpoint) => return Some(Found { path, checkpoint, warnings }),
                Err(problem) => warnings.push(format!("checkpoint {} is not valid and is passed over: {problem}", path.display())),
            }
        }
        None
    }

    /// Removes all checkpoints but the newest `keep_last` and the best. Call this after a new checkpoint has been saved.
    pub fn prune(&self, keep_last: usize, best_step: Option<u64>) {
        let is_best = |path: &PathBuf| cursor_of(path).is_some_and(|cursor| cursor.micro == 0 && Some(cursor.step) == best_step);
        for path in self.list().into_iter().skip(keep_last).filter(|path| !is_best(path)) {
            // A removal that fails half-way leaves a folder that no longer matches its manifest, which resuming passes over.
            let _ = fs::remove_dir_all(path);
        }
    }

    /// Removes the half-written checkpoints of killed processes.
    pub fn clean(&self) {
        atomic::sweep(&self.folder);
    }
}

/// Reads the position from a folder's name: `step-000100` or `step-000100-micro-0003`.
fn cursor_of(path: &Path) -> Option<Cursor> {
    let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
    let (step, micro) = name.split_once("-micro-").unwrap_or((name, "0"));
    Some(Cursor { step: step.parse().ok()?, micro: micro.parse().ok()? })
}

/// Reads a checkpoint and checks every file against the manifest. The error says which file is wrong, and how.
fn read(folder: &Path, device: &Device) -> Result<Checkpoint, String> {
    let text = input_file::read_regular(folder.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| format!("{MANIFEST}: {e}"))?;
    for (name, record) in &manifest.files {
        let (found, bytes) = sha256(&folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
        if bytes != record.bytes {
            return Err(format!("{name}: expected {} bytes, found {bytes}", record.bytes));
        }
        if found != record.sha256 {
            return Err(format!("{name}: its checksum differs from the one in the manifest"));
        }
    }
    let text = input_file::read_regular(folder.join(STATE)).map_err(|e| format!("{STATE}: {e}"))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| format!("{STATE}: {e}"))?;
    let mut tensors = BTreeMap::new();
    for name in manifest.files.keys().filter_map(|name| name.strip_suffix(".safetensors")) {
        tensors.insert(name.to_string(), read_tensors(&folder.join(format!("{name}.safetensors")), device).map_err(|e| e.to_string())?);
    }
    Ok(Checkpoint { state, tensors })
}

fn read_tensors(path: &Path, device: &Device) -> Result<NamedTensors, vp_models::Error> {
    let mut weights = Weights::open(path)?;
    let names: Vec<String> = weights.names().map(String::from).collect();
    let mut tensors = NamedTensors::new();
    for name in names {
        let values = weights.take(&name).expect("just listed").read_state()?;
        let count = values.len();
        tensors.insert(name, Tensor::from_data(TensorData::new(values, [count]), device));
    }
    Ok(tensors)
}

/// The SHA-256 of a file, in hexadecimal, and its size in bytes.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = input_file::open_regular(path)?;
    let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), bytes));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The SHA-256 of texts, each preceded by its length, in hexadecimal.
pub fn text_checksum<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksums of all files below `folder`, by their path within it; if `folder` is a file, its own checksum.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint(folder: &Path) -> Result<BTreeMap<String, String>, Error> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
            if path.is_dir() {
                walk(&path, &format!("{name}/"), found)?;
            } else {
                found.insert(name, sha256(&path)?.0);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    if folder.is_dir() {
        walk(folder, "", &mut found).map_err(io(folder))?;
    } else {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, sha256(folder).map_err(io(folder))?.0);
    }
    Ok(found)
}

fn file_names(folder: &Path) -> std::io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64, micro: usize) -> Checkpoint {
        let tensor = Tensor::<1>::from_data([step as f32, f32::MIN_POSITIVE, 0.1], &Device::flex());
        let weights = NamedTensors::from([("unet.a".to_string(), tensor)]);
        let observed = vec![("loss".to_string(), vec![0.1 + 0.2, 1e-300])];
        let state = State {
            loss_scale: Some(LossScale::default()),
            cursor: Cursor { step, micro },
            observed,
            skipped: 1,
            preview_is_owed: true,
            first_preview: vec![],
            last_preview: vec![],
            best: Some((0.3, 2)),
            looks: Vec::new(),
            config: serde_json::json!({ "run": { "seed": 1 } }),
            base: BTreeMap::new(),
        };
        Checkpoint { state, tensors: BTreeMap::from([("weights".to_string(), weights)]) }
    }

    #[test]
    fn what_is_read_is_what_was_written_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, device) = (Checkpoints::of(dir.path()), Device::flex());
        assert!(checkpoints.newest_valid(&device).is_none());
        for (step, micro) in [(9, 0), (10, 2), (10, 0)] {
            checkpoints.save(&checkpoint(step, micro)).unwrap();
        }
        let found = checkpoints.newest_valid(&device).unwrap();
        assert!(found.warnings.is_empty() && found.path.ends_with("step-000010-micro-0002"), "{found:?}");
        assert_eq!(found.checkpoint.state, checkpoint(10, 2).state);
        let (read, written) = (&found.checkpoint.tensors["weights"]["unet.a"], &checkpoint(10, 2).tensors["weights"]["unet.a"]);
        read.to_data().assert_eq(&written.to_data(), true);
    }

    #[test]
    fn one_flipped_bit_or_a_missing_file_and_the_one_before_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, device) = (Checkpoints::of(dir.path()), Device::flex());
        for step in 1..=4 {
            checkpoints.save(&checkpoint(step, 0)).unwrap();
        }
        let file = |step: u64, name: &str| dir.path().join(format!("checkpoints/step-{step:06}/{name}"));
        let weights = file(4, "weights.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        fs::remove_file(file(3, STATE)).unwrap();
        let found = checkpoints.newest_valid(&device).unwrap();
        assert!(found.path.ends_with("step-000002"));
        assert!(found.warnings[0].contains("step-000004") && found.warnings[0].contains("weights.safetensors"), "{:?}", found.warnings);
        assert!(found.warnings[1].contains("step-000003") && found.warnings[1].contains(STATE), "{:?}", found.warnings);
    }

    #[test]
    fn the_last_and_the_best_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(dir.path());
        for step in 1..=5 {
            checkpoints.save(&checkpoint(step, 0)).unwrap();
        }
        checkpoints.prune(2, Some(2));
        let names: Vec<_> = checkpoints.list().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["step-000005", "step-000004", "step-000002"]);
    }

    #[test]
    fn what_a_killed_process_left_is_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(dir.path());
        fs::create_dir_all(dir.path().join("checkpoints/.step-000003.tmp-1-0")).unwrap();
        checkpoints.save(&checkpoint(2, 0)).unwrap();
        assert_eq!(checkpoints.list().len(), 1);
        checkpoints.clean();
        assert_eq!(fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 1);
    }
}
