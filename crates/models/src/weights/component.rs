//! Which file of a folder has a component's weights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{LoadError, corrupt, io};

/// The file with the weights of a component, `stem` being `diffusion_pytorch_model` or `model`, as [`chosen_weights`] chooses it.
///
/// # Errors
/// When there is none, or several variants of which none is to be preferred.
pub fn component_file(folder: &Path, stem: &str) -> Result<PathBuf, LoadError> {
    let entries = std::fs::read_dir(folder).map_err(io(folder))?;
    let files: BTreeSet<String> = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    match chosen_weights(&files, stem) {
        Ok(Some(name)) => Ok(folder.join(name)),
        Ok(None) => {
            let looked_for = [format!("{stem}.safetensors"), format!("{}.bin", bin_stem(stem))];
            let looked_for = looked_for.into_iter().chain(["their .index.json and variants such as .fp16".into()]).collect();
            Err(LoadError::NoWeights { folder: folder.display().to_string(), looked_for })
        }
        Err(variants) => Err(corrupt(folder, &format!("weights in several variants ({variants}) and none without; keep one"))),
    }
}

fn bin_stem(stem: &str) -> &str {
    if stem == "model" { "pytorch_model" } else { stem }
}

/// Which of a folder's files has the weights of a component, if any: safetensors before PyTorch's `.bin`, whole or by the index of its
/// shards, without a variant before `fp16` before any other (`model.VARIANT.safetensors`).
///
/// # Errors
/// The variants, when there are several, none without and none of `fp16`.
pub fn chosen_weights(files: &BTreeSet<String>, stem: &str) -> Result<Option<String>, String> {
    for (stem, kind) in [(stem, "safetensors"), (bin_stem(stem), "bin")] {
        let plain = [format!("{stem}.{kind}"), format!("{stem}.{kind}.index.json")];
        if let Some(name) = plain.into_iter().find(|name| files.contains(name)) {
            return Ok(Some(name));
        }
        let variants: Vec<(&String, &str)> = files.iter().filter_map(|file| Some((file, variant(file, stem, kind)?))).collect();
        if let Some((file, _)) = variants.iter().find(|(_, variant)| *variant == "fp16") {
            return Ok(Some((*file).clone()));
        }
        match &variants[..] {
            [] => {}
            [(file, first), rest @ ..] if rest.iter().all(|(_, other)| other == first) => return Ok(Some((*file).clone())),
            several => return Err(several.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")),
        }
    }
    Ok(None)
}

/// The variant of a file of weights, `fp16` of `stem.fp16.safetensors` and `stem.safetensors.index.fp16.json`. A shard is not one.
fn variant<'a>(file: &'a str, stem: &str, kind: &str) -> Option<&'a str> {
    let rest = file.strip_prefix(stem)?.strip_prefix('.')?;
    let whole = rest.strip_suffix(kind).and_then(|rest| rest.strip_suffix('.'));
    let index = || rest.strip_prefix(kind)?.strip_prefix(".index.")?.strip_suffix(".json");
    whole.or_else(index).filter(|variant| !variant.is_empty() && !variant.contains('.') && !variant.contains("-of-"))
}
