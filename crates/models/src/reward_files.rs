//! Where the weights of a reward are, when a user gives a folder or a file.

use std::path::{Path, PathBuf};

use crate::weights::{LoadError, component_files, corrupt, io};

/// What files of weights end in.
const ENDINGS: [&str; 5] = ["safetensors", "pt", "pth", "bin", "ckpt"];

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
    let mut looked_for = component_files("model");
    let others = ["model.pt", "ImageReward.pt", "ImageReward.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"];
    looked_for.extend(others.map(String::from));
    looked_for.push("open_clip_pytorch_model.bin".into());
    if let Some(found) = looked_for.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let entries = std::fs::read_dir(path).map_err(io(path))?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |file: &PathBuf| file.is_file() && file.extension().is_some_and(|end| ENDINGS.iter().any(|known| end == *known));
    let mut found: Vec<PathBuf> = entries.filter(is_weights).collect();
    found.sort();
    match &found[..] {
        [only] => Ok(only.clone()),
        [] => Err(LoadError::NoWeights { folder: path.display().to_string(), looked_for }),
        several => {
            let names: Vec<_> = several.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy())).collect();
            Err(corrupt(path, &format!("several files of weights ({}); give the one that is meant", names.join(", "))))
        }
    }
}
