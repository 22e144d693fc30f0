//! Folders that grow: how much is in them, and how much the disk below them still takes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vp_core::atomic;

/// At most this many files are counted: a size is worth no minutes.
const MOST_FILES: usize = 200_000;

/// A folder of the program, there or not yet.
#[derive(Debug, Clone, PartialEq)]
pub struct GrowingFolder {
    /// What it is for.
    pub name: &'static str,
    pub path: PathBuf,
    /// Bytes in it, if it is there.
    pub held: Option<u64>,
    /// There are more files in it than were counted.
    pub more: bool,
    /// Bytes that the disk below it still takes.
    pub free: Option<u64>,
    /// Why nothing can be written there.
    pub refused: Option<String>,
}

impl GrowingFolder {
    /// A folder that is written to: the nearest folder above it that is there is tried.
    pub fn look(name: &'static str, path: &Path) -> Self {
        let (held, more) = match path.is_dir() {
            true => size(path),
            false => (0, false),
        };
        let there = path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        let probe = atomic::temporary_beside(&there.join("probe"));
        let refused = fs::write(&probe, []).err().map(|error| error.to_string());
        // Another process that tidies up may be faster.
        let _ = fs::remove_file(&probe);
        Self { name, path: path.to_path_buf(), held: path.is_dir().then_some(held), more, free: fs4::available_space(there).ok(), refused }
    }

    /// What is in it, for people; `shown` is its path.
    pub fn text(&self, shown: &str) -> String {
        match self.held {
            Some(held) => format!("{}{} in {shown}", if self.more { "more than " } else { "" }, human(held)),
            None => format!("none yet ({shown})"),
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let Self { name, path, held, more, free, refused } = self;
        json!({ "name": name, "path": path, "bytes": held, "not_all_counted": more, "free_bytes": free, "not_writable": refused })
    }
}

/// The bytes of all files below a folder, and whether there are more than are counted. Links are not followed: the hub's cache links every file
/// of a snapshot to the one that holds it.
fn size(folder: &Path) -> (u64, bool) {
    let (mut bytes, mut files, mut open) = (0, 0, vec![folder.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            files += 1;
            if files > MOST_FILES {
                return (bytes, true);
            }
            if found.is_dir() {
                open.push(entry.path());
            } else if found.is_file() {
                bytes += found.len();
            }
        }
    }
    (bytes, false)
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::tree;

    #[test]
    fn a_folder_holds_its_files_once_and_one_that_is_not_there_has_a_disk_all_the_same() {
        let root = tree(&[("/hub/blobs/a", "12345"), ("/hub/b", "678")]);
        #[cfg(unix)]
        std::os::unix::fs::symlink("blobs/a", root.path().join("hub/link")).unwrap();
        let place = GrowingFolder::look("hub cache", &root.path().join("hub"));
        assert_eq!((place.held, place.more, place.refused.as_deref()), (Some(8), false, None));
        assert_eq!(place.text("~/hub"), "8 bytes in ~/hub");
        let absent = GrowingFolder::look("kernels", &root.path().join("not/there/yet"));
        assert_eq!((absent.held, absent.refused.as_deref()), (None, None));
        assert!(absent.free.is_some_and(|free| free > 0), "{absent:?}");
        assert_eq!(absent.text("x"), "none yet (x)");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "the probe is gone");
    }

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        assert_eq!([0, 1023, 1536, 3 << 20, 5 << 30].map(human), ["0 bytes", "1023 bytes", "1.5 KiB", "3.0 MiB", "5.0 GiB"]);
    }
}
