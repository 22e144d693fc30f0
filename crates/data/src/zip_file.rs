//! Zip files from strangers: every entry is looked at before the first is read, and none can grow without bound.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vp_core::input_file;
use zip::ZipArchive;

use crate::{Error, Problem, ProblemKind, Result};

/// Most bytes that an entry may take when it is inflated.
pub(crate) const MAX_ENTRY_BYTES: u64 = 128 << 20;

/// A zip file whose entries have harmless names and bounded sizes.
#[derive(Debug)]
pub(crate) struct ZipFile {
    path: PathBuf,
    archive: Mutex<ZipArchive<BufReader<File>>>,
    /// Names of the files, as in the archive.
    names: Vec<String>,
    /// Where in `names` a file is, by the last part of its name; none if several share it.
    by_last_part: HashMap<String, Option<usize>>,
}

impl ZipFile {
    /// # Errors
    /// A file that is not a zip, and every entry with an absolute name, a `..` in it, a link, a password or too large a size, at once.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = input_file::open_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
        let refused = |problems| Error::BadArchive { path: path.into(), problems };
        let whole = |reason: String| refused(vec![Problem { name: "the file".into(), kind: ProblemKind::Broken(reason) }]);
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| whole(format!("not a zip that can be read: {error}")))?;
        if archive.has_duplicate_names() {
            return Err(whole("several entries have one name: which of them is meant cannot be told".into()));
        }
        let (mut names, mut problems) = (Vec::new(), Vec::new());
        for index in 0..archive.len() {
            match inspect(&mut archive, index) {
                Ok(name) => names.extend(name),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(refused(problems));
        }
        let mut by_last_part = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            by_last_part.entry(last_part(name).to_owned()).and_modify(|found| *found = None).or_insert(Some(index));
        }
        Ok(Self { path: path.into(), archive: Mutex::new(archive), names, by_last_part })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the files in it.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The entry of this name, or else the only one whose last part is that of `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        let exact = self.names.iter().find(|found| *found == name);
        let last = || self.by_last_part.get(last_part(name)).copied().flatten().map(|index| &self.names[index]);
        exact.or_else(last).map(String::as_str)
    }

    /// What is in an entry.
    ///
    /// # Errors
    /// An entry that is not there, is damaged, or grows beyond the size that it declares.
    pub(crate) fn read(&self, entry: &str) -> Result<Vec<u8>> {
        let refused = |reason: String| {
            let problems = vec![Problem { name: entry.into(), kind: ProblemKind::Broken(reason) }];
            Error::BadArchive { path: self.path.clone(), problems }
        };
        let mut archive = self.archive.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let file = archive.by_name(entry).map_err(|error| refused(error.to_string()))?;
        let mut bytes = Vec::new();
        // The archive refuses what grows beyond its declared size, and that was looked at; this bound does not rest on it.
        file.take(MAX_ENTRY_BYTES).read_to_end(&mut bytes).map_err(|error| refused(error.to_string()))?;
        Ok(bytes)
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The name of an entry; none if it is a folder.
fn inspect(archive: &mut ZipArchive<BufReader<File>>, index: usize) -> Result<Option<String>, Problem> {
    let problem = |name: String, reason: String| Problem { name, kind: ProblemKind::Broken(reason) };
    let entry = archive.by_index_raw(index).map_err(|error| problem(format!("entry {}", index + 1), error.to_string()))?;
    let name = match entry.name() {
        Ok(name) => name.into_owned(),
        Err(error) => return Err(problem(format!("entry {}", index + 1), format!("its name is not UTF-8: {error}"))),
    };
    let (size, drive) = (entry.size(), name.as_bytes().get(1) == Some(&b':'));
    let reason = if name.starts_with(['/', '\\']) || drive {
        "an absolute name; expected one relative to the archive".into()
    } else if name.split(['/', '\\']).any(|part| part == "..") || name.contains('\0') {
        "its name leads out of the archive".into()
    } else if entry.is_symlink() {
        "a symbolic link; expected a file or a folder".into()
    } else if entry.encrypted() {
        "encrypted; unpack it with its password first".into()
    } else if size > MAX_ENTRY_BYTES {
        format!("declares {size} bytes, more than the {} MiB that are read of one entry", MAX_ENTRY_BYTES >> 20)
    } else {
        return Ok(Some(name).filter(|_| !entry.is_dir()));
    };
    Err(problem(name, reason))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;

    fn packed(write: impl FnOnce(&mut ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        write(&mut zip);
        zip.finish().unwrap().into_inner()
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<ZipFile>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.zip");
        std::fs::write(&path, bytes).unwrap();
        let zip = ZipFile::open(&path);
        (dir, zip)
    }

    fn deflated() -> SimpleFileOptions {
        SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)
    }

    /// Replaces `from` by `to`, as long, wherever it stands.
    fn forge(bytes: &mut [u8], from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        let places: Vec<usize> = (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    }

    #[test]
    fn entries_are_found_by_name_or_by_its_last_part() {
        let bytes = packed(|zip| {
            zip.add_directory("in", deflated()).unwrap();
            for (name, text) in [("in/a.txt", "one"), ("in/b.txt", "two"), ("b.txt", "three")] {
                zip.start_file(name, deflated().compression_method(CompressionMethod::Stored)).unwrap();
                zip.write_all(text.as_bytes()).unwrap();
            }
        });
        let (_dir, zip) = open(&bytes);
        let zip = zip.unwrap();
        assert_eq!(zip.names(), ["in/a.txt", "in/b.txt", "b.txt"]);
        assert_eq!(
            [zip.find("a.txt"), zip.find("else/a.txt"), zip.find("b.txt"), zip.find("else/b.txt")],
            [Some("in/a.txt"), Some("in/a.txt"), Some("b.txt"), None]
        );
        assert_eq!(zip.read("in/b.txt").unwrap(), b"two");
        assert!(zip.read("c.txt").is_err());
        assert!(open(b"no zip").1.unwrap_err().to_string().contains("set.zip: 1 problem(s)\n  the file: not a zip"));
        let mut damaged = bytes.clone();
        forge(&mut damaged, b"three", b"thrEE");
        let (_dir, zip) = open(&damaged);
        assert!(zip.unwrap().read("b.txt").unwrap_err().to_string().contains("b.txt: "));
    }

    #[test]
    fn hostile_entries_are_all_named() {
        let mut bytes = packed(|zip| {
            for name in ["fine.txt", "_etc/passwd", "C_/a.txt", "in/__/up.txt", "in_.._up.txt", "huge.bin"] {
                zip.start_file(name, deflated()).unwrap();
                zip.write_all(name.as_bytes()).unwrap();
            }
            zip.add_symlink("link.txt", "/etc/passwd", deflated()).unwrap();
        });
        // The writer mends such names, so they are put in afterwards.
        forge(&mut bytes, b"_etc/passwd", b"/etc/passwd");
        forge(&mut bytes, b"C_/a.txt", b"C:/a.txt");
        forge(&mut bytes, b"in/__/up.txt", b"in/../up.txt");
        forge(&mut bytes, b"in_.._up.txt", b"in\\..\\up.txt");
        // The declared size stands 22 bytes before the name in the directory, behind the local headers.
        let name = bytes.len() - bytes.windows(8).rev().position(|part| part == b"huge.bin").unwrap() - 8;
        bytes[name - 22..name - 18].copy_from_slice(&4_000_000_000u32.to_le_bytes());
        let message = open(&bytes).1.unwrap_err().to_string();
        for expected in [
            "set.zip: 6 problem(s)",
            "\n  /etc/passwd: an absolute name",
            "\n  C:/a.txt: an absolute name",
            "\n  in/../up.txt: its name leads out",
            "\n  in\\..\\up.txt: its name leads out",
            "\n  huge.bin: declares 4000000000 bytes, more than the 128 MiB",
            "\n  link.txt: a symbolic link",
        ] {
            assert!(message.contains(expected), "{expected:?} is not in: {message}");
        }
    }

    #[test]
    fn bombs_are_refused_by_what_they_declare_and_by_what_they_are() {
        let zeros = |bytes: usize| {
            packed(|zip| {
                zip.start_file("bomb.bin", deflated()).unwrap();
                zip.write_all(&vec![0; bytes]).unwrap();
            })
        };
        let honest = zeros(129 << 20);
        assert!(honest.len() < 1 << 20);
        let message = open(&honest).1.unwrap_err().to_string();
        assert!(message.contains("bomb.bin: declares 135266304 bytes, more than the 128 MiB"), "{message}");
        let mut lying = zeros(0x23_4567);
        forge(&mut lying, &0x23_4567_u32.to_le_bytes(), &100u32.to_le_bytes());
        let (_dir, zip) = open(&lying);
        let message = zip.unwrap().read("bomb.bin").unwrap_err().to_string();
        assert!(message.contains("bomb.bin: File is larger than its declared uncompressed size"), "{message}");
    }
}
