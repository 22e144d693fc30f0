//! The dataset config of kohya's sd-scripts (`--dataset_config`): which folders, how often, with which captions.
//!
//! ```toml
//! [general]
//! caption_extension = ".txt"
//! [[datasets]]
//! [[datasets.subsets]]
//! image_dir = "fox"
//! num_repeats = 10
//! class_tokens = "red fox"      # the caption of an image that has no other
//! ```
//!
//! Keys may stand in the subset, its dataset or `[general]`; the innermost counts. What the file says of resolutions, batches and the like is
//! said elsewhere here, so it is named and not used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::image_listing::{ListedImage, Listing, caption_beside, list, some_of};
use crate::utf8::read_utf8;
use crate::{Error, Problem, ProblemKind, Result};

/// The keys that are used.
const USED: [&str; 6] = ["image_dir", "num_repeats", "class_tokens", "caption_extension", "caption_prefix", "caption_suffix"];

/// The images of all subsets, under `image_dir/name`.
///
/// # Errors
/// A file that cannot be read or is not such a config, and folders that cannot be read.
pub(crate) fn list_dataset_config(path: &Path) -> Result<Listing> {
    let malformed = |reason: String| Error::BadDatasetConfig { path: path.into(), reason };
    let config: Table = read_utf8(path)?.parse().map_err(|error: toml::de::Error| malformed(error.to_string()))?;
    let tables = |value: Option<&Value>| -> Vec<Table> {
        value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table).cloned().collect()
    };
    let general = config.get("general").and_then(Value::as_table).cloned().unwrap_or_default();
    let (mut listing, mut unused) = (Listing::default(), BTreeSet::new());
    let mut subsets = 0;
    for dataset in tables(config.get("datasets")) {
        for subset in tables(dataset.get("subsets")) {
            subsets += 1;
            let levels = [&subset, &dataset, &general];
            let keys = levels.iter().flat_map(|level| level.keys()).filter(|key| !USED.contains(&key.as_str()) && *key != "subsets");
            unused.extend(keys.cloned());
            add_subset(path, &Subset { levels }, &mut listing)?;
        }
    }
    if subsets == 0 {
        return Err(malformed("expected [[datasets]] with [[datasets.subsets]] in it, each with an image_dir".into()));
    }
    if !unused.is_empty() {
        let keys: Vec<String> = unused.into_iter().collect();
        listing.notes.push(format!("{}: not used: {} (the config of the run says such things)", path.display(), some_of(&keys)));
    }
    Ok(listing)
}

/// A subset with what surrounds it.
struct Subset<'a> {
    levels: [&'a Table; 3],
}

/// How often an image may count, as in the names of folders.
const MOST_REPEATS: usize = 1000;

impl Subset<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.levels.iter().find_map(|level| level.get(key))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key} is {other}; expected a text")),
        }
    }

    fn repeats(&self) -> Result<usize, String> {
        match self.value("num_repeats") {
            None => Ok(1),
            Some(value) => value
                .as_integer()
                .and_then(|repeats| usize::try_from(repeats).ok())
                .filter(|repeats| (1..=MOST_REPEATS).contains(repeats))
                .ok_or_else(|| format!("num_repeats is {value}; expected a whole number from 1 to {MOST_REPEATS}")),
        }
    }
}

fn add_subset(path: &Path, subset: &Subset<'_>, listing: &mut Listing) -> Result<()> {
    let malformed = |reason: String| Error::BadDatasetConfig { path: path.into(), reason };
    let written = subset.text("image_dir").map_err(malformed)?;
    let written = written.ok_or_else(|| malformed("a subset has no image_dir".into()))?;
    let repeats = subset.repeats().map_err(|reason| malformed(format!("{written}: {reason}")))?;
    if subset.value("is_reg").and_then(Value::as_bool) == Some(true) {
        let reason = "is_reg: images that keep the model in place are named by [regularizer.images] here".into();
        listing.problems.push(Problem { name: written.into(), kind: ProblemKind::BadRow(reason) });
        return Ok(());
    }
    let folder = folder_of(path, written);
    let found = list(&folder)?;
    let extension = subset.text("caption_extension").map_err(malformed)?.map(|extension| extension.trim_start_matches('.'));
    let class_tokens = subset.text("class_tokens").map_err(malformed)?;
    let affix = |key| Ok::<_, Error>(subset.text(key).map_err(malformed)?.map(str::trim).unwrap_or_default());
    let (prefix, suffix) = (affix("caption_prefix")?, affix("caption_suffix")?);
    listing.problems.extend(found.problems);
    listing.notes.extend(found.notes);
    // Those right in the folder, as there.
    for (name, image) in found.images.into_iter().filter(|(name, _)| !name.contains('/')) {
        let ListedImage { path, caption, .. } = image;
        let caption = match extension {
            Some(extension) => caption_beside(&path, &[extension]).and_then(|beside| Ok(beside.or(caption?))),
            None => caption,
        };
        let whole = |text: String| [prefix, &text, suffix].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let caption = caption.map(|caption| caption.or(class_tokens.map(str::to_owned)).map(whole));
        listing.images.insert(format!("{written}/{name}"), ListedImage { path, caption, repeats });
    }
    Ok(())
}

/// `image_dir` from the folder in which the command is run, as there; or else from the config's own.
fn folder_of(config: &Path, written: &str) -> PathBuf {
    let beside = config.parent().unwrap_or(Path::new("")).join(written);
    if !Path::new(written).is_dir() && beside.is_dir() { beside } else { written.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn listed(config: &str) -> (tempfile::TempDir, Result<Listing>) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["fox/a.png", "fox/b.png", "fox/deeper/c.png", "dog/d.png", "fox/a.tags", "fox/b.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if name.ends_with("png") { "" } else { "words of its own" }).unwrap();
        }
        let path = dir.path().join("dataset.toml");
        fs::write(&path, config).unwrap();
        let listing = list_dataset_config(&path);
        (dir, listing)
    }

    #[test]
    fn subsets_say_how_often_and_with_which_words() {
        let config = "[general]\nshuffle_caption = true\ncaption_extension = '.txt'\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\n\
                      image_dir = 'fox'\nclass_tokens = 'red fox'\nnum_repeats = 10\ncaption_prefix = 'photo of'\n[[datasets.subsets]]\n\
                      image_dir = 'dog'\ncaption_extension = '.tags'\nclass_tokens = 'dog'\n";
        let listing = listed(config).1.unwrap();
        let images: Vec<_> =
            listing.images.iter().map(|(name, image)| (name.as_str(), image.caption.clone().unwrap().unwrap(), image.repeats)).collect();
        let expected = [
            ("dog/d.png", "dog".to_owned(), 1),
            ("fox/a.png", "photo of red fox".to_owned(), 10),
            ("fox/b.png", "photo of words of its own".to_owned(), 10),
        ];
        assert_eq!(images, expected);
        assert!(listing.notes[0].contains("dataset.toml: not used: resolution, shuffle_caption"), "{:?}", listing.notes);
    }

    #[test]
    fn what_is_no_dataset_config_says_why() {
        let told = |config: &str| listed(config).1.unwrap_err().to_string();
        assert!(told("x = ").contains("dataset.toml"));
        assert!(told("[general]").contains("expected [[datasets]] with [[datasets.subsets]] in it"));
        assert!(told("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2").contains("a subset has no image_dir"));
        let subset = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'fox'\n";
        assert!(told(&format!("{subset}num_repeats = 0")).contains("fox: num_repeats is 0; expected a whole number from 1 to 1000"));
        assert!(told("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'no/such'").contains("no/such"));
        let listing = listed(&format!("{subset}is_reg = true")).1.unwrap();
        assert!(listing.problems[0].to_string().contains("[regularizer.images]"), "{:?}", listing.problems);
    }
}
