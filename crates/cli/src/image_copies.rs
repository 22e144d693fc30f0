//! The images of a preference set, linked or copied beside what is written about them, out of archives too.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use vp_core::{atomic, input_file};
use vp_data::{Dataset, INSIDE, Record};

use crate::progress::Progress;

/// The folder of the copies, below the one that is written to.
const FOLDER: &str = "images";

/// Links or copies the images of all `records` below `output/images`, and makes their paths start from `output`. What a killed command left
/// half written there is removed.
///
/// # Errors
/// As [`copy_image`].
pub fn copy_images(dataset: &Dataset, records: &mut [Record], output: &Path) -> anyhow::Result<()> {
    atomic::sweep(&output.join(FOLDER));
    let progress = Progress::of("images copied", records.iter().map(|record| record.completions.len()).sum());
    for completion in records.iter_mut().flat_map(|record| &mut record.completions) {
        completion.image_path = copy_image(dataset, &completion.image_path, output)?;
        progress.advance(1);
    }
    Ok(())
}

/// Links or copies an image below `output/images` if it is not there yet, and returns its path from `output`.
///
/// # Errors
/// When the image cannot be read or written, or when another image already has its name there.
fn copy_image(dataset: &Dataset, image_path: &str, output: &Path) -> anyhow::Result<String> {
    let source = dataset.image(image_path)?;
    let plain = image_path.strip_prefix(&format!("{FOLDER}/")).unwrap_or(image_path).replace(INSIDE, "/");
    let mut name = format!("{FOLDER}/{plain}");
    if source.path().is_none() && Path::new(&plain).extension().is_none() {
        name = format!("{name}.{}", extension(&source.bytes()?, image_path)?);
    }
    let target = output.join(&name);
    if target.exists() {
        let found = input_file::read_regular(&target).with_context(|| format!("read {}", target.display()))?;
        if found != source.bytes()? {
            bail!("{} is not the same image as {source}; choose another --output", target.display());
        }
        return Ok(name);
    }
    let folder = target.parent().expect("an image lies in a folder");
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if source.path().is_none_or(|path| fs::hard_link(path, &target).is_err()) {
        atomic::write(&target, &source.bytes()?).with_context(|| format!("write {}", target.display()))?;
    }
    Ok(name)
}

/// The file extension that fits the bytes: images in tables have no file names.
fn extension(bytes: &[u8], name: &str) -> anyhow::Result<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Ok("png"),
        [0xff, 0xd8, ..] => Ok("jpg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok("webp"),
        [b'B', b'M', ..] => Ok("bmp"),
        [b'G', b'I', b'F', b'8', ..] => Ok("gif"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Ok("tif"),
        _ => bail!("image {name}: expected PNG, JPEG, WebP, BMP, GIF or TIFF"),
    }
}
