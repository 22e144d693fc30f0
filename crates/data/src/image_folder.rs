//! Folders of captioned images.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use vp_core::shown;

use crate::image_listing::{ListedImage, Listing, list};
use crate::kohya::list_dataset_config;
use crate::{Error, Result, center_crop_resize, load_image};

/// How many findings an error spells out.
const LISTED: usize = 10;

/// What to do about an entry with a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnProblem {
    /// Refuse the folder or list with one error that lists the findings.
    #[default]
    Refuse,
    /// Leave the entry out and report it as skipped.
    Skip,
}

/// How a folder is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFolderOptions {
    /// What to do about entries with a problem.
    pub on_problem: OnProblem,
    /// Least width and height, in pixels.
    pub min_size: u32,
    /// Whether an image without a caption is a problem; without captions their text is empty.
    pub captions: bool,
}

/// Refuse problems, at least 16 pixels per side, captions wanted.
impl Default for ImageFolderOptions {
    fn default() -> Self {
        Self { on_problem: OnProblem::Refuse, min_size: 16, captions: true }
    }
}

/// A folder of images with their captions.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    /// The usable images, sorted by file name.
    pub entries: Vec<ImageEntry>,
    /// How often each of them is to be taken per epoch, 1 unless kohya's folder names or dataset config say otherwise.
    pub repeats: Vec<usize>,
    /// What was left out, sorted by file name; always empty under [`OnProblem::Refuse`].
    pub skipped: Vec<Problem>,
    /// What was passed over and might have been meant, a sentence each: images of kinds that are not read, links that lead in a circle.
    pub notes: Vec<String>,
}

/// One captioned image. Its pixels are read when asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Where the image is.
    pub path: PathBuf,
    /// Its name within the folder, with `/` between folders.
    pub file_name: String,
    /// Its caption; empty if there is none and none is wanted.
    pub caption: String,
}

/// Something wrong with one entry of a folder or list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The image's name within the folder, or the line of `metadata.jsonl` or of the list.
    pub name: String,
    /// What is wrong with it.
    pub kind: ProblemKind,
}

/// What can be wrong with an entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// A row of `metadata.jsonl` or `metadata.csv` names no file, or a line of another list is not what it should be.
    BadRow(String),
    /// A table of captions names a file that does not exist.
    MissingFile {
        /// The table's name within the folder.
        table: String,
    },
    /// A table of captions names a file outside the folder.
    OutsideFolder {
        /// The table's name within the folder.
        table: String,
    },
    /// A table of captions names the file a second time.
    Duplicate {
        /// The table's name within the folder.
        table: String,
    },
    /// No caption, neither in a table nor in a file beside the image.
    MissingCaption,
    /// The caption beside the image cannot be read.
    BadCaption(String),
    /// The image cannot be decoded.
    Broken(String),
    /// The image is smaller than [`ImageFolderOptions::min_size`].
    TooSmall {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The least that is wanted of both.
        min_size: u32,
    },
}

/// How many characters of a finding are shown; what it names and quotes was read.
const LONGEST: usize = 400;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An error that is the reason here may have lines of its own.
        let told = format!("{}: {}", self.name, self.kind).lines().map(str::trim).collect::<Vec<_>>().join(" ");
        f.write_str(&shown::cut(&shown::one_line(&told), LONGEST))
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRow(reason) | ProblemKind::BadCaption(reason) | ProblemKind::Broken(reason) => f.write_str(reason),
            Self::MissingFile { table } => write!(f, "named in {table} but not there"),
            Self::OutsideFolder { table } => write!(f, "named in {table} but outside the folder"),
            Self::Duplicate { table } => write!(f, "named twice in {table}"),
            Self::MissingCaption => {
                f.write_str("no caption, neither in a metadata.jsonl or metadata.csv nor in a .txt or .caption beside it")
            }
            Self::TooSmall { width, height, min_size } => write!(f, "{width}x{height} pixels, less than {min_size} a side"),
        }
    }
}

impl Problem {
    /// The findings as the end of an error message: the first ten, and how many more.
    pub(crate) fn list(problems: &[Problem]) -> String {
        let mut list: String = problems.iter().take(LISTED).map(|problem| format!("\n  {problem}")).collect();
        if problems.len() > LISTED {
            list += &format!("\n  and {} more", problems.len() - LISTED);
        }
        list
    }
}

impl ImageEntry {
    /// The image, centre-cropped and resized to `(width, height)`.
    ///
    /// # Errors
    /// As [`load_image`]: the file may have changed since the folder was opened.
    pub fn load(&self, size: (u32, u32)) -> Result<RgbImage> {
        Ok(center_crop_resize(&load_image(&self.path)?, size.0, size.1))
    }
}

impl ImageFolder {
    /// Lists the images of a folder and of the folders below it, finds their captions, and decodes each image once, on
    /// all processors, so that a broken one is found now and not in the middle of a run.
    ///
    /// A caption comes from a `metadata.jsonl`, one object per line with `file_name` (relative to the table's folder) and
    /// `text`, `caption` or `prompt`, or from a `metadata.csv` with such columns, as in Hugging Face's imagefolder; otherwise from a file beside
    /// the image with the extension `.txt` or `.caption`, as kohya's tools have it, whose lines are joined by spaces; otherwise from the name of
    /// its folder, if that begins with a number of repeats: `10_red fox`. Names that begin with a dot are passed over, and
    /// so are files without an image's extension, unless a table names them. Links are followed. Of a file named twice the first
    /// mention counts.
    ///
    /// `path` may also be the `.toml` of a dataset config, as kohya's tools have it.
    ///
    /// # Errors
    /// The folder is missing, empty or unreadable, or nothing in it is usable; under [`OnProblem::Refuse`] any problem.
    pub fn open(path: impl AsRef<Path>, options: &ImageFolderOptions) -> Result<Self> {
        let path = path.as_ref();
        let Listing { images, mut problems, notes } = listing(path)?;
        let (mut entries, mut repeats) = (Vec::new(), Vec::new());
        for (file_name, ListedImage { path, caption, repeats: count }) in images {
            match caption {
                Ok(None) if options.captions => problems.push(Problem { name: file_name, kind: ProblemKind::MissingCaption }),
                Ok(caption) => {
                    entries.push(ImageEntry { path, file_name, caption: caption.unwrap_or_default() });
                    repeats.push(count);
                }
                Err(kind) => problems.push(Problem { name: file_name, kind }),
            }
        }
        let found: Vec<Option<ProblemKind>> = inspect_all(&entries, options.min_size);
        let mut usable = found.iter().map(Option::is_none);
        repeats.retain(|_| usable.next().unwrap_or(false));
        let mut findings = found.into_iter();
        entries.retain(|entry| match findings.next().flatten() {
            None => true,
            Some(kind) => {
                problems.push(Problem { name: entry.file_name.clone(), kind });
                false
            }
        });

        problems.sort_by(|a, b| a.name.cmp(&b.name));
        if entries.is_empty() && problems.is_empty() {
            let hint = notes.first().map_or_else(String::new, |note| format!("; {note}"));
            return Err(Error::NoImages { path: path.into(), hint });
        }
        if entries.is_empty() || (options.on_problem == OnProblem::Refuse && !problems.is_empty()) {
            return Err(Error::ProblemsInFolder { path: path.into(), problems, usable: entries.len() });
        }
        Ok(Self { entries, repeats, skipped: problems, notes })
    }
}

/// The images of a folder, or of those that a dataset config names.
fn listing(path: &Path) -> Result<Listing> {
    if fs::metadata(path).map_err(|error| Error::Read { path: path.into(), error })?.is_dir() {
        return list(path);
    }
    match path.extension() {
        Some(extension) if extension == "toml" => list_dataset_config(path),
        _ => Err(Error::NotAFolder { path: path.into() }),
    }
}

/// Decodes each image once, on all processors, and keeps none.
///
/// # Errors
/// Every image that cannot be decoded, by its `file_name`.
pub fn check_images(entries: &[ImageEntry]) -> Result<()> {
    let findings = entries.iter().zip(inspect_all(entries, 1));
    let problems: Vec<Problem> =
        findings.filter_map(|(entry, kind)| Some(Problem { name: entry.file_name.clone(), kind: kind? })).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::UnreadableImages { problems, of: entries.len() }) }
}

/// What is wrong with the pixels of each entry.
pub(crate) fn inspect_all(entries: &[ImageEntry], min_size: u32) -> Vec<Option<ProblemKind>> {
    let next = AtomicUsize::new(0);
    let inspect_some = || {
        let mut findings = Vec::new();
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(entry) = entries.get(index)
        {
            findings.push((index, inspect(&entry.path, min_size)));
        }
        findings
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(entries.len());
    let mut findings = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(inspect_some)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("reading an image does not panic")).collect::<Vec<_>>()
    });
    findings.sort_unstable_by_key(|(index, _)| *index);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

fn inspect(path: &Path, min_size: u32) -> Option<ProblemKind> {
    match load_image(path) {
        Ok(image) if image.width().min(image.height()) < min_size => {
            Some(ProblemKind::TooSmall { width: image.width(), height: image.height(), min_size })
        }
        Ok(_) => None,
        // The name stands before the reason already.
        Err(Error::BadImage { reason, .. }) => Some(ProblemKind::Broken(reason)),
        Err(error) => Some(ProblemKind::Broken(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use tempfile::TempDir;

    use super::*;

    /// A folder with these files; an empty one under an image's name becomes a 20x20 picture.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if text.is_empty() && name.ends_with("png") {
                RgbImage::from_pixel(20, 20, Rgb([9; 3])).save(path).unwrap();
            } else {
                fs::write(path, text).unwrap();
            }
        }
        dir
    }

    const SKIP: ImageFolderOptions = ImageFolderOptions { on_problem: OnProblem::Skip, min_size: 16, captions: true };

    fn captions(folder: &ImageFolder) -> Vec<(&str, &str)> {
        folder.entries.iter().map(|entry| (entry.file_name.as_str(), entry.caption.as_str())).collect()
    }

    #[test]
    fn captions_come_from_metadata_or_from_text_files() {
        let metadata = "\u{feff}{\"file_name\": \"./train/b.png\", \"text\": \" a bee \"}\r\n\n{\"file_name\": \"a.png\", \"caption\": \"an ant\"}\n\
                        {\"file_name\": \"c.png\", \"prompt\": \"a cow\"}\n{\"file_name\": \"train/../d.png\"}\n";
        let dir = folder(&[
            ("metadata.jsonl", metadata),
            ("train/b.png", ""),
            ("train/b.txt", "overruled"),
            ("c.png", ""),
            ("a.png", ""),
            ("d.png", ""),
            ("d.txt", "a dog,\r\n asleep\n"),
            ("10_fox/e.png", ""),
            ("10_fox/e.txt", "an elk"),
            (".hidden.png", ""),
            (".cache/x.png", ""),
            ("notes.md", "no image"),
        ]);
        let opened = ImageFolder::open(dir.path(), &ImageFolderOptions::default()).unwrap();
        let expected =
            [("10_fox/e.png", "an elk"), ("a.png", "an ant"), ("c.png", "a cow"), ("d.png", "a dog, asleep"), ("train/b.png", "a bee")];
        assert_eq!(captions(&opened), expected);
        assert!(opened.skipped.is_empty());
        assert_eq!(opened.entries[4].path, dir.path().join("train/b.png"));
        assert_eq!(opened.entries[4].load((8, 12)).unwrap(), RgbImage::from_pixel(8, 12, Rgb([9; 3])));
    }

    fn troubled() -> TempDir {
        let metadata = r#"{"file_name": "good.png", "text": "first"}
{"file_name": "./good.png", "text": "second"}
{"file_name": "gone.png", "text": "x"}
{"file_name": "../good.png", "text": "x"}
{"file_name": "a/../../b.png", "text": "x"}
{"file_name": "/etc/passwd", "text": "x"}
{"file_name": "mute.png", "text": "  "}
{"file_name": "number.png", "text": 3}
{"text": "of nothing"}
{"file_name": "cut"#;
        let dir = folder(&[
            ("metadata.jsonl", metadata),
            ("good.png", ""),
            ("mute.png", ""),
            ("unlisted.png", ""),
            ("blank.png", ""),
            ("blank.txt", "\n"),
            ("broken.png", "no pixels"),
            ("broken.txt", "x"),
            ("small.txt", "x"),
            ("latin.png", ""),
        ]);
        fs::write(dir.path().join("latin.txt"), b"caf\xe9").unwrap();
        RgbImage::new(20, 3).save(dir.path().join("small.png")).unwrap();
        dir
    }

    #[test]
    fn problems_are_skipped_by_name() {
        let dir = troubled();
        let opened = ImageFolder::open(dir.path(), &SKIP).unwrap();
        assert_eq!(captions(&opened), [("good.png", "first")]);
        let told: Vec<String> = opened.skipped.iter().map(Problem::to_string).collect();
        let expected = [
            "../good.png: named in metadata.jsonl but outside",
            "/etc/passwd: named in metadata.jsonl but outside",
            "a/../../b.png: named in metadata.jsonl but outside",
            "blank.png: no caption",
            "broken.png: not an image",
            "gone.png: named in metadata.jsonl but not there",
            "good.png: named twice",
            "latin.png: its caption: ",
            "metadata.jsonl line 10: malformed JSON",
            "metadata.jsonl line 8: expected the text of number.png",
            "metadata.jsonl line 9: expected an object with file_name",
            "mute.png: no caption",
            "small.png: 20x3 pixels, less than 16 a side",
            "unlisted.png: no caption",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told:?} does not begin with {expected:?}");
        }
    }

    #[test]
    fn problems_are_refused_in_one_error() {
        let dir = troubled();
        let message = ImageFolder::open(dir.path(), &ImageFolderOptions::default()).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 12, "{message}");
        assert!(message.contains("14 problem(s), 1 usable image(s)\n  ../good.png: "), "{message}");
        assert!(message.ends_with("\n  and 4 more"), "{message}");
    }

    #[test]
    fn captions_and_size_are_as_wanted() {
        let dir = folder(&[("a.png", ""), ("b.png", ""), ("b.txt", "a bee")]);
        let without = ImageFolder::open(dir.path(), &ImageFolderOptions { captions: false, ..Default::default() }).unwrap();
        assert_eq!(captions(&without), [("a.png", ""), ("b.png", "a bee")]);
        let error = ImageFolder::open(dir.path(), &ImageFolderOptions { min_size: 21, ..SKIP }).unwrap_err();
        assert!(matches!(&error, Error::ProblemsInFolder { problems, usable: 0, .. } if problems.len() == 2), "{error}");
        assert!(ImageFolder::open(dir.path(), &ImageFolderOptions { min_size: 20, ..SKIP }).is_ok());
    }

    #[test]
    fn folders_without_images_are_refused() {
        let dir = folder(&[("notes.txt", "no image")]);
        let error = ImageFolder::open(dir.path(), &SKIP).unwrap_err();
        assert!(matches!(error, Error::NoImages { .. }), "{error}");
        let error = ImageFolder::open(dir.path().join("notes.txt"), &SKIP).unwrap_err();
        assert!(matches!(error, Error::NotAFolder { .. }), "{error}");
        let error = ImageFolder::open(dir.path().join("nowhere"), &SKIP).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[test]
    fn files_that_change_later_are_named() {
        let dir = folder(&[("a.png", ""), ("a.txt", "x")]);
        let opened = ImageFolder::open(dir.path(), &SKIP).unwrap();
        fs::remove_file(dir.path().join("a.png")).unwrap();
        assert!(opened.entries[0].load((8, 8)).unwrap_err().to_string().contains("a.png"));
    }
}
