//! The folder that a run writes.
//!
//! `config.toml` (resolved) · `metrics.jsonl` · `tensorboard/` · `samples/step-000100.png` and its images in `samples/step-000100/` ·
//! `checkpoints/` · `model/` (the tuned export).

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::folder_lock::{FolderLock, FolderLockError};
use crate::{atomic, input_file};

/// What can go wrong with a run directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// The system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds another run.
    #[error("{path} already holds a run ({found}); choose another folder with --output, or remove it")]
    Occupied {
        path: String,
        /// The file that shows it.
        found: &'static str,
    },
    /// The folder does not hold a run.
    #[error("{path} does not hold a run (it has no config.toml); expected the folder of an earlier run")]
    NoRun { path: String },
    /// Another process is writing the run.
    #[error(transparent)]
    Locked(#[from] FolderLockError),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunDirError + use<> {
    let path = path.display().to_string();
    move |source| RunDirError::Io { action, path, source }
}

fn open_metrics(root: &Path) -> Result<BufWriter<File>, RunDirError> {
    let path = root.join("metrics.jsonl");
    OpenOptions::new().create(true).append(true).open(&path).map(BufWriter::new).map_err(io("open", &path))
}

/// A run's folder, open for writing. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    metrics: BufWriter<File>,
    _lock: FolderLock,
}

impl RunDir {
    /// Creates the folder and writes the resolved configuration into it.
    ///
    /// # Errors
    /// When the folder cannot be written, already holds a run, or is being written by somebody else.
    pub fn create(root: &Path, resolved_config: &str) -> Result<Self, RunDirError> {
        let lock = FolderLock::take(root, "")?;
        for found in ["config.toml", "metrics.jsonl"] {
            if root.join(found).exists() {
                return Err(RunDirError::Occupied { path: root.display().to_string(), found });
            }
        }
        let samples = root.join("samples");
        fs::create_dir_all(&samples).map_err(io("create folder", &samples))?;
        let config = root.join("config.toml");
        atomic::write(&config, resolved_config.as_bytes()).map_err(io("write", &config))?;
        Ok(Self { root: root.to_path_buf(), metrics: open_metrics(root)?, _lock: lock })
    }

    /// Opens the folder of an earlier run, to continue it. What was half written when the run was killed is removed.
    ///
    /// # Errors
    /// When the folder holds no run, cannot be written, or is being written by another process.
    pub fn open(root: &Path) -> Result<Self, RunDirError> {
        if !root.join("config.toml").is_file() {
            return Err(RunDirError::NoRun { path: root.display().to_string() });
        }
        let lock = FolderLock::take(root, "")?;
        atomic::sweep(root);
        let samples = root.join("samples");
        fs::create_dir_all(&samples).map_err(io("create folder", &samples))?;
        atomic::sweep(&samples);
        Ok(Self { root: root.to_path_buf(), metrics: open_metrics(root)?, _lock: lock })
    }

    /// Keeps the lines of `metrics.jsonl` whose step is at most `step` (none for `None`), and drops a last line that a killed
    /// process left unfinished. The file is replaced whole.
    ///
    /// # Errors
    /// When the file cannot be read or replaced.
    pub fn rewind(&mut self, step: Option<usize>) -> Result<(), RunDirError> {
        let path = self.root.join("metrics.jsonl");
        let bytes = input_file::read_regular(&path).map_err(io("read", &path))?;
        let stays = |line: &&[u8]| {
            let at = serde_json::from_slice::<Value>(line).ok().and_then(|line| line.get("step")?.as_u64());
            at.is_some_and(|at| step.is_some_and(|step| at <= step as u64))
        };
        let kept: Vec<u8> = bytes.split(|byte| *byte == b'\n').filter(stays).flat_map(|line| [line, b"\n"].concat()).collect();
        if kept != bytes {
            atomic::write(&path, &kept).map_err(io("replace", &path))?;
            self.metrics = open_metrics(&self.root)?;
        }
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the sample grid of a step goes: `samples/step-000100.png`.
    pub fn sample_path(&self, step: usize) -> PathBuf {
        self.root.join("samples").join(format!("step-{step:06}.png"))
    }

    /// Where the images of a step go, one by one: `samples/step-000100/`.
    pub fn preview_dir(&self, step: usize) -> PathBuf {
        self.root.join("samples").join(format!("step-{step:06}"))
    }

    /// Appends one line to `metrics.jsonl`: the step, then `metrics` in the order given. A value that JSON cannot hold
    /// (NaN, infinities) is written as a string, so that it is seen rather than lost.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn log(&mut self, step: usize, metrics: &[(&str, f64)]) -> Result<(), RunDirError> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        for (name, value) in metrics {
            let value = serde_json::Number::from_f64(*value).map_or_else(|| Value::String(value.to_string()), Value::Number);
            line.insert((*name).into(), value);
        }
        let path = self.root.join("metrics.jsonl");
        writeln!(self.metrics, "{}", Value::Object(line)).and_then(|()| self.metrics.flush()).map_err(io("append to", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vp-run-dir-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn metrics_are_lines_of_json_and_nan_is_kept_visible() {
        let root = scratch("metrics");
        let mut run = RunDir::create(&root, "seed = 1\n").unwrap();
        run.log(3, &[("loss", 0.5), ("reward", f64::NAN)]).unwrap();
        assert_eq!(fs::read_to_string(root.join("metrics.jsonl")).unwrap(), "{\"step\":3,\"loss\":0.5,\"reward\":\"NaN\"}\n");
        assert_eq!(fs::read_to_string(root.join("config.toml")).unwrap(), "seed = 1\n");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_folder_with_a_run_in_it_is_refused() {
        let root = scratch("occupied");
        drop(RunDir::create(&root, "").unwrap());
        assert!(matches!(RunDir::create(&root, ""), Err(RunDirError::Occupied { .. })));
        let _writer = RunDir::open(&root).unwrap();
        assert!(matches!(RunDir::open(&root), Err(RunDirError::Locked(FolderLockError::InUse { .. }))));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_rewound_run_has_no_later_lines_and_no_half_ones() {
        let root = scratch("rewind");
        let mut run = RunDir::create(&root, "seed = 1\n").unwrap();
        for step in [0, 1, 2, 2, 3] {
            run.log(step, &[("loss", 0.5)]).unwrap();
        }
        drop(run);
        let path = root.join("metrics.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole + "{\"step\":2,\"lo").unwrap();
        let mut run = RunDir::open(&root).unwrap();
        run.rewind(Some(2)).unwrap();
        run.log(3, &[("loss", 0.25)]).unwrap();
        let line = |step: u32, loss: &str| format!("{{\"step\":{step},\"loss\":{loss}}}\n");
        let expected = [line(0, "0.5"), line(1, "0.5"), line(2, "0.5"), line(2, "0.5"), line(3, "0.25")].concat();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        drop(run);
        // A line cut just before its end of line is whole.
        fs::write(&path, line(1, "0.5").trim_end()).unwrap();
        RunDir::open(&root).unwrap().rewind(Some(2)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line(1, "0.5"));
        let names = fs::read_dir(&root).unwrap().count();
        assert_eq!(names, 3, "config.toml, metrics.jsonl, samples");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_folder_without_a_run_is_not_opened() {
        let root = scratch("no-run");
        fs::create_dir_all(&root).unwrap();
        assert!(matches!(RunDir::open(&root), Err(RunDirError::NoRun { .. })));
        fs::remove_dir_all(root).unwrap();
    }
}
