//! The small model inside the binary, so that a first run needs neither files nor a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_core::atomic::{self, TemporaryFolder};
use vp_data::{Prompt, read_prompts};
use vp_rewards::RewardConfig;
use vp_shapes::Split;

use crate::hub;
use crate::shapes_dataset::ShapesDataset;
use crate::shard::Shard;

/// The name to give where a model folder is expected.
pub const SHAPES: &str = "embedded:shapes";
/// The reward model beside it.
pub const SHAPES_VP_SCORE: &str = "embedded:shapes/vp-score";
/// Folders of captioned images of the world, drawn when they are first asked for, so that they need not fill the binary. Each can be given where a
/// prompt file or a regularizer's folder is expected.
const DATASETS: &[(&str, Split, u64)] = &[
    ("embedded:shapes/pretraining", Split::Pretraining, 2000),
    ("embedded:shapes/feedback", Split::Feedback, 1000),
    ("embedded:shapes/test", Split::Test, 400),
];
/// The guidance scale at which the embedded model draws best.
pub const GUIDANCE_SCALE: f64 = 3.0;

/// The folder or file that `path` names: itself, for [`SHAPES`] the embedded model, unpacked into the user's cache, or a model of the hub,
/// downloaded into the hub's cache.
///
/// # Errors
/// When `path` names an embedded model that this binary does not have or a model that the hub does not give, or a cache cannot be written.
pub fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    match path.to_str() {
        Some(SHAPES) => unpack().with_context(|| SHAPES.to_string()),
        Some(SHAPES_VP_SCORE) => Ok(unpack().with_context(|| SHAPES_VP_SCORE.to_string())?.join("vp-score")),
        Some(name) if name.starts_with("embedded:") => match DATASETS.iter().find(|(known, ..)| *known == name) {
            Some((_, split, captions)) => dataset(&cache(), *split, *captions).with_context(|| name.to_string()),
            None => {
                let datasets = DATASETS.iter().map(|(known, ..)| *known).collect::<Vec<_>>().join(", ");
                bail!("{name}: nothing of this name is embedded (known: {SHAPES}, {SHAPES_VP_SCORE}, {datasets})")
            }
        },
        _ => hub::resolve(path),
    }
}

/// As [`resolve`], but nothing is downloaded: `None` for what is not on this machine.
///
/// # Errors
/// When `path` names an embedded model that this binary does not have, or the cache cannot be written.
pub fn here(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    if path.to_str().is_some_and(|name| name.starts_with("embedded:")) { resolve(path).map(Some) } else { Ok(hub::here(path)) }
}

/// `config` with the name of an embedded model replaced by the path of its unpacked folder.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_reward(config: &RewardConfig) -> anyhow::Result<RewardConfig> {
    let mut config = config.clone();
    config.resolve(resolve)?;
    Ok(config)
}

/// The folder for files that can be made again.
pub fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let folder = variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home);
    folder.unwrap_or_else(std::env::temp_dir).join("visionprefer")
}

/// The prompts at `path`, a file, a folder, or the name of an embedded data set.
///
/// # Errors
/// When they cannot be read, or nothing of this name is embedded.
pub fn prompts(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let is_embedded = path.to_str().is_some_and(|name| name.starts_with("embedded:"));
    Ok(read_prompts(if is_embedded { resolve(path)? } else { path.to_path_buf() })?)
}

/// The folder below `cache` with what `dataset shapes --split … -n … --seed 1` draws.
fn dataset(cache: &Path, split: Split, captions: u64) -> anyhow::Result<PathBuf> {
    // A folder of another version of the world is another folder.
    once(cache, &format!("shapes-{}-{}", split.name(), env!("CARGO_PKG_VERSION")), |folder| {
        let dataset =
            ShapesDataset { folder: folder.to_path_buf(), captions, seed: 1, split, images_per_caption: 1, side: 32, shard: Shard::WHOLE };
        dataset.create()?;
        dataset.fill().map(drop)
    })
}

/// The folder of this name below `cache`, filled when it is first asked for. It appears complete or not at all.
fn once(cache: &Path, name: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let folder = cache.join(name);
    atomic::sweep(cache);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(cache).with_context(|| format!("create {} (XDG_CACHE_HOME names another place)", cache.display()))?;
    let write = || format!("write {}", folder.display());
    let temporary = TemporaryFolder::beside(&folder).with_context(write)?;
    fill(temporary.path())?;
    match temporary.rename() {
        // Another process may have been faster; what it wrote is the same.
        Err(error) if !folder.is_dir() => Err(error).with_context(write),
        _ => Ok(folder),
    }
}

#[cfg(not(feature = "embedded"))]
fn unpack() -> anyhow::Result<PathBuf> {
    bail!("this binary was built without the feature `embedded`; pass a diffusers folder")
}

#[cfg(feature = "embedded")]
fn unpack() -> anyhow::Result<PathBuf> {
    files::unpack_into(&cache())
}

#[cfg(feature = "embedded")]
mod files {
    use std::fs;
    use std::path::{Path, PathBuf};

    use anyhow::Context;
    use sha2::{Digest, Sha256};
    use vp_core::{atomic, input_file};

    use crate::terminal::warn;

    /// Every file of the model, by its path within the folder.
    fn files() -> impl Iterator<Item = &'static (&'static str, &'static [u8])> {
        vp_shapes_model::FILES.iter().chain(vp_shapes_unet::FILES)
    }

    /// The model's folder below `cache`, named by its content. A file in it that is no longer what was embedded is written anew: the sum of
    /// the 15 MB is in the folder's name, and to compare them is as fast as to add them up again.
    pub fn unpack_into(cache: &Path) -> anyhow::Result<PathBuf> {
        let folder = super::once(cache, &format!("shapes-{}", content()), |folder| write_changed(folder).map(drop))?;
        for path in write_changed(&folder)? {
            warn(format_args!("{} was not what this program holds and is written anew", path.display()));
        }
        Ok(folder)
    }

    /// Writes those files that are not there or hold something else; their paths.
    fn write_changed(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut changed = Vec::new();
        for (name, bytes) in files() {
            let path = folder.join(name);
            if input_file::read_regular(&path).is_ok_and(|found| found == *bytes) {
                continue;
            }
            fs::create_dir_all(path.parent().expect("a file lies in a folder")).with_context(|| format!("create {}", path.display()))?;
            atomic::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
            changed.push(path);
        }
        Ok(changed)
    }

    /// A hash of what the files hold.
    fn content() -> String {
        let mut hash = Sha256::new();
        for (name, bytes) in files() {
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_unpacked_is_what_was_embedded_and_is_found_again() {
            let cache = tempfile::tempdir().unwrap();
            let folder = unpack_into(cache.path()).unwrap();
            for (name, bytes) in files() {
                assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name}");
            }
            assert_eq!(unpack_into(cache.path()).unwrap(), folder);
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        }

        #[test]
        fn a_changed_or_lost_file_is_written_anew() {
            let cache = tempfile::tempdir().unwrap();
            let folder = unpack_into(cache.path()).unwrap();
            let [weights, config] = ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"].map(|name| folder.join(name));
            let mut bytes = fs::read(&weights).unwrap();
            bytes[200_000] ^= 1;
            fs::write(&weights, bytes).unwrap();
            fs::remove_file(&config).unwrap();
            fs::create_dir(cache.path().join(".shapes-0.tmp-1-0")).unwrap();
            unpack_into(cache.path()).unwrap();
            for (name, bytes) in files() {
                assert!(fs::read(folder.join(name)).unwrap() == *bytes, "{name}");
            }
            assert!(write_changed(&folder).unwrap().is_empty());
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        }

        #[test]
        fn every_file_of_the_folder_is_embedded() {
            fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() { walk(&path, found) } else { found.push(path) }
                }
            }
            let (folder, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/shapes"), Vec::new());
            walk(&folder, &mut found);
            let mut found: Vec<String> = found.iter().map(|path| path.strip_prefix(&folder).unwrap().display().to_string()).collect();
            // What makes the UNet a crate.
            let crates = ["Cargo.toml", "lib.rs"].map(|name| format!("unet/{name}"));
            found.retain(|name| !crates.contains(name));
            let mut embedded: Vec<&str> = files().map(|(name, _)| *name).collect();
            found.sort();
            embedded.sort();
            assert_eq!(found, embedded);
        }
    }
}
