//! What lies in a folder of captioned images, before any image is decoded: the images, and where each of them has its caption.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::manifest::{CaptionRow, name_within, table_rows};
use crate::utf8::read_found_utf8;
use crate::{Error, Problem, ProblemKind, Result};

/// Names of files that name images and their captions, as Hugging Face's imagefolder has them; the first counts where both name an image.
pub(crate) const TABLES: [&str; 2] = ["metadata.jsonl", "metadata.csv"];
/// A table that is not read, so that nobody thinks it was.
const UNREAD_TABLE: &str = "metadata.parquet";
/// Extensions of images that are read; the content decides what they are.
const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff"];
/// Extensions of images that are not.
const UNREAD: [&str; 16] =
    ["avif", "avifs", "heic", "heif", "hif", "jxl", "jp2", "svg", "psd", "ico", "tga", "qoi", "exr", "dng", "cr2", "nef"];
/// Extensions of a caption beside its image, as kohya's tools have them; the first that is there counts.
const CAPTIONS: [&str; 2] = ["txt", "caption"];
/// The largest file of a caption, in bytes.
const LONGEST_CAPTION: u64 = 1 << 20;
/// The largest number that a folder's name can begin with to be kohya's number of repeats; `2019_holidays` is a year.
const MOST_REPEATS: usize = 1000;
/// How many names a note spells out.
const NAMED: usize = 5;

/// The images of a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By their names within the folder, with `/` between folders.
    pub(crate) images: BTreeMap<String, ListedImage>,
    pub(crate) problems: Vec<Problem>,
    /// What was passed over and might have been meant.
    pub(crate) notes: Vec<String>,
}

/// An image that has not been looked at.
#[derive(Debug)]
pub(crate) struct ListedImage {
    pub(crate) path: PathBuf,
    /// Its caption, if it has one; or what is wrong with it.
    pub(crate) caption: Result<Option<String>, ProblemKind>,
    /// How often it is taken per epoch.
    pub(crate) repeats: usize,
}

/// Lists a folder and those below it, also behind links.
///
/// # Errors
/// A folder or table that cannot be read.
pub(crate) fn list(folder: &Path) -> Result<Listing> {
    let found = Walk::through(folder)?;
    let mut listing = Listing { notes: found.notes(), ..Listing::default() };
    let mut captions: BTreeMap<String, Option<String>> = BTreeMap::new();
    for table in &found.tables {
        read_table(folder, table, &mut captions, &mut listing.problems)?;
    }
    for name in found.images {
        captions.entry(name).or_default();
    }
    for (name, caption) in captions {
        let (path, parent) = (folder.join(&name), parent_name(&name).and_then(repeats));
        let caption = match caption {
            Some(caption) => Ok(Some(caption)),
            None => caption_beside(&path, &CAPTIONS),
        };
        let (repeats, of_folder) = parent.map_or((1, None), |(repeats, name)| (repeats, Some(name.to_owned())));
        let caption = caption.map(|caption| caption.or(of_folder));
        listing.images.insert(name, ListedImage { path, caption, repeats });
    }
    Ok(listing)
}

/// The name of the folder that holds an image, if that is not the listed one.
fn parent_name(name: &str) -> Option<&str> {
    name.rsplit('/').nth(1)
}

/// `10_red fox`, as kohya's tools name the folder of a subject: each of its images counts ten times per epoch, and has `red fox` for a
/// caption if it has no other.
fn repeats(folder: &str) -> Option<(usize, &str)> {
    let (number, name) = folder.split_once('_')?;
    let repeats: usize = number.parse().ok().filter(|repeats| (1..=MOST_REPEATS).contains(repeats))?;
    (!name.trim().is_empty()).then(|| (repeats, name.trim()))
}

/// The text of the first of `extensions` that is there, its lines joined by spaces.
pub(crate) fn caption_beside(image: &Path, extensions: &[&str]) -> Result<Option<String>, ProblemKind> {
    let Some(path) = extensions.iter().map(|extension| image.with_extension(extension)).find(|path| path.exists()) else { return Ok(None) };
    let bad = |reason: String| ProblemKind::BadCaption(format!("its caption: {reason}"));
    if fs::metadata(&path).is_ok_and(|found| found.len() > LONGEST_CAPTION) {
        return Err(bad(format!("{} is larger than {} MiB; expected a text about the image", path.display(), LONGEST_CAPTION >> 20)));
    }
    let text = read_found_utf8(&path).map_err(|error| bad(error.to_string()))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(Some(lines.join(" ")).filter(|caption| !caption.is_empty()))
}

/// Adds the captions of the files that `table` names. Those of an earlier table count; twice in one is a problem.
fn read_table(folder: &Path, table: &str, captions: &mut BTreeMap<String, Option<String>>, problems: &mut Vec<Problem>) -> Result<()> {
    let prefix = table.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let mut seen = HashSet::new();
    for row in table_rows(&folder.join(table))? {
        let at = row.place;
        let (name, kind) = match row.row {
            Err(reason) => (format!("{table} {at}"), ProblemKind::BadRow(reason)),
            Ok(CaptionRow { file_name, caption }) => match within(&prefix, &file_name) {
                None => (file_name, ProblemKind::OutsideFolder { table: table.into() }),
                Some(name) if !folder.join(&name).is_file() => (name, ProblemKind::MissingFile { table: table.into() }),
                Some(name) if !seen.insert(name.clone()) => (name, ProblemKind::Duplicate { table: table.into() }),
                Some(name) => {
                    captions.entry(name).or_insert(caption);
                    continue;
                }
            },
        };
        problems.push(Problem { name, kind });
    }
    Ok(())
}

/// The name within the listed folder of a file that a table in the folder `prefix` names.
fn within(prefix: &str, written: &str) -> Option<String> {
    // Joined to a prefix, an absolute path would look like one within.
    if Path::new(written).has_root() {
        return None;
    }
    name_within(&format!("{prefix}{written}"))
}

/// Everything of interest in a folder and below it, by its names within.
#[derive(Debug, Default)]
struct Walk {
    images: Vec<String>,
    /// Those of outer folders first.
    tables: Vec<String>,
    /// Images of kinds that are not read.
    unread: Vec<String>,
    unread_tables: Vec<String>,
    /// Links that lead to a folder that was listed already.
    circles: Vec<String>,
}

impl Walk {
    fn through(folder: &Path) -> Result<Self> {
        let (mut walk, mut folders) = (Self::default(), vec![(folder.to_owned(), String::new())]);
        let mut seen = HashSet::new();
        while let Some((folder, prefix)) = folders.pop() {
            let read_error = |error| Error::Read { path: folder.clone(), error };
            if !seen.insert(fs::canonicalize(&folder).map_err(read_error)?) {
                walk.circles.push(prefix.trim_end_matches('/').to_owned());
                continue;
            }
            for entry in fs::read_dir(&folder).map_err(read_error)? {
                let entry = entry.map_err(read_error)?;
                let file_name = entry.file_name().to_string_lossy().into_owned();
                if file_name.starts_with('.') {
                    continue;
                }
                // Of what a link leads to; one that leads nowhere is looked at like a file, and found broken.
                if fs::metadata(entry.path()).is_ok_and(|data| data.is_dir()) {
                    folders.push((entry.path(), format!("{prefix}{file_name}/")));
                } else {
                    walk.add(&file_name, format!("{prefix}{file_name}"));
                }
            }
        }
        walk.images.sort();
        walk.unread.sort();
        let place = |name: &String| {
            let file = name.rsplit('/').next().unwrap_or(name);
            (name.matches('/').count(), name.trim_end_matches(file).to_owned(), TABLES.iter().position(|table| *table == file))
        };
        walk.tables.sort_by_cached_key(place);
        Ok(walk)
    }

    fn add(&mut self, file_name: &str, name: String) {
        let extension = Path::new(file_name).extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if TABLES.contains(&file_name) {
            self.tables.push(name);
        } else if file_name == UNREAD_TABLE {
            self.unread_tables.push(name);
        } else if EXTENSIONS.contains(&extension.as_str()) {
            self.images.push(name);
        } else if UNREAD.contains(&extension.as_str()) {
            self.unread.push(name);
        }
    }

    fn notes(&self) -> Vec<String> {
        let images =
            |count: usize| if count == 1 { "1 image of a kind that is".into() } else { format!("{count} images of kinds that are") };
        let unread = (!self.unread.is_empty()).then(|| {
            format!("{} not read: {}; save them as PNG, JPEG or WebP to use them", images(self.unread.len()), some_of(&self.unread))
        });
        let tables = self.unread_tables.iter().map(|name| format!("{name} is not read; write its file_name and text into a metadata.csv"));
        let circles = self.circles.iter().map(|name| format!("{name} is a link to a folder that is read already; it is not read twice"));
        unread.into_iter().chain(tables).chain(circles).collect()
    }
}

/// The first few names, and how many more.
pub(crate) fn some_of(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn captions(listing: &Listing) -> Vec<(&str, &str)> {
        let caption = |image: &ListedImage| image.caption.clone().unwrap().unwrap_or_default();
        listing.images.iter().map(|(name, image)| (name.as_str(), &*caption(image).leak())).collect()
    }

    #[test]
    fn captions_come_from_csv_and_from_tables_in_folders_below() {
        let dir = folder(&[
            (
                "metadata.csv",
                "\u{feff}file_name,text\r\na.png,\"a red fox, sitting\"\r\nb.png,\"a dog that says \"\"hello\"\"\"\r\ncats/c.png,ein Kätzchen\r\n",
            ),
            ("a.png", ""),
            ("b.png", ""),
            ("cats/c.png", ""),
            (
                "cats/metadata.jsonl",
                "{\"file_name\": \"c.png\", \"text\": \"a later table\"}\n{\"file_name\": \"d.png\", \"text\": \"a cat\"}\n",
            ),
            ("cats/d.png", ""),
            ("cats/e.png", ""),
            ("cats/e.caption", "a caption\n"),
        ]);
        let listing = list(dir.path()).unwrap();
        let expected = [
            ("a.png", "a red fox, sitting"),
            ("b.png", "a dog that says \"hello\""),
            ("cats/c.png", "ein Kätzchen"),
            ("cats/d.png", "a cat"),
            ("cats/e.png", "a caption"),
        ];
        assert_eq!(captions(&listing), expected);
        assert!(listing.problems.is_empty() && listing.notes.is_empty(), "{listing:?}");
    }

    #[test]
    fn rows_of_any_table_are_checked() {
        let dir = folder(&[
            (
                "x/metadata.csv",
                "text,file_name,more\n1,../up.png,\n2,/etc/passwd,\n3,../../out.png,\n4,gone.png,\nshort\n5,y.png,\n6,./y.png,\n",
            ),
            ("x/y.png", ""),
            ("up.png", ""),
        ]);
        let listing = list(dir.path()).unwrap();
        assert_eq!(captions(&listing), [("up.png", "1"), ("x/y.png", "5")]);
        let told: Vec<String> = listing.problems.iter().map(Problem::to_string).collect();
        let expected = [
            "/etc/passwd: named in x/metadata.csv but outside the folder",
            "../../out.png: named in x/metadata.csv but outside the folder",
            "x/gone.png: named in x/metadata.csv but not there",
            "x/metadata.csv line 6: it names no file",
            "x/y.png: named twice in x/metadata.csv",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn folders_of_kohyas_repeat_their_images_and_name_them() {
        let dir = folder(&[
            ("10_red fox/a.png", ""),
            ("10_red fox/b.png", ""),
            ("10_red fox/b.txt", "a fox"),
            ("2019_trip/c.png", ""),
            ("d.png", ""),
        ]);
        let listing = list(dir.path()).unwrap();
        assert_eq!(
            captions(&listing),
            [("10_red fox/a.png", "red fox"), ("10_red fox/b.png", "a fox"), ("2019_trip/c.png", ""), ("d.png", "")]
        );
        assert_eq!(listing.images.values().map(|image| image.repeats).collect::<Vec<_>>(), [10, 10, 1, 1]);
        assert_eq!((repeats("10_"), repeats("0_x"), repeats("x_10"), repeats("3_a_b")), (None, None, None, Some((3, "a_b"))));
    }

    #[test]
    fn what_is_passed_over_is_named() {
        let dir = folder(&[
            ("a.AVIF", ""),
            ("b.heic", ""),
            ("c.JPG", ""),
            ("d.jfif", ""),
            ("e.gif", ""),
            ("notes.md", ""),
            ("metadata.parquet", ""),
        ]);
        let listing = list(dir.path()).unwrap();
        assert_eq!(listing.images.keys().collect::<Vec<_>>(), ["c.JPG", "d.jfif", "e.gif"]);
        assert!(listing.notes[0].starts_with("2 images of kinds that are not read: a.AVIF, b.heic; "), "{:?}", listing.notes);
        assert!(listing.notes[1].starts_with("metadata.parquet is not read; "), "{:?}", listing.notes);
        let many: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&many), "0, 1, 2, 3, 4 and 3 more");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        use std::os::unix::fs::symlink;
        let elsewhere = folder(&[("z.png", ""), ("z.txt", "a zebra")]);
        let dir = folder(&[("a/b.png", "")]);
        symlink(elsewhere.path(), dir.path().join("linked")).unwrap();
        symlink(dir.path(), dir.path().join("a/circle")).unwrap();
        symlink("nowhere.png", dir.path().join("lost.png")).unwrap();
        let listing = list(dir.path()).unwrap();
        assert_eq!(captions(&listing), [("a/b.png", ""), ("linked/z.png", "a zebra"), ("lost.png", "")]);
        assert_eq!(listing.notes, ["a/circle is a link to a folder that is read already; it is not read twice"]);
    }
}
