//! Where the weights of a reward are, when a user gives a folder or a file.

use std::path::{Path, PathBuf};

use crate::hub_id::WEIGHTS;
use crate::weights::{LoadError, component_file, corrupt, io};

/// The file of weights that `path` is, or that is in the folder `path` under one of the published names (`model.safetensors`,
/// `ImageReward.pt`, `open_clip_model.safetensors`, …), or else the only file of weights there.
///
/// # Errors
/// When there is none, or several of which none has a published name.
pub fn find_weights(path: &Path) -> Result<PathBuf, LoadError> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(io(path))?;
        return Ok(path.to_path_buf());
    }
    if let Ok(file) = component_file(path, "model") {
        return Ok(file);
    }
    let others = ["model.pt", "ImageReward.pt", "ImageReward.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"];
    if let Some(found) = others.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let entries = std::fs::read_dir(path).map_err(io(path))?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_named_so = |file: &Path| file.file_name().is_some_and(|name| WEIGHTS.iter().any(|end| name.to_string_lossy().ends_with(end)));
    let is_weights = |file: &PathBuf| file.is_file() && is_named_so(file);
    let mut found: Vec<PathBuf> = entries.filter(is_weights).collect();
    found.sort();
    match &found[..] {
        [only] => Ok(only.clone()),
        [] => {
            let looked_for = std::iter::once("model.safetensors").chain(others).map(String::from).collect();
            Err(LoadError::NoWeights { folder: path.display().to_string(), looked_for })
        }
        several => {
            let names: Vec<_> = several.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy())).collect();
            Err(corrupt(path, &format!("several files of weights ({}); give the one that is meant", names.join(", "))))
        }
    }
}
