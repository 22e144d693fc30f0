//! Files that somebody else named: the name may be a folder's, a device's that never ends, or a pipe's.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// How much is read of a text, and of what is not a regular file and so does not say how large it is.
const MOST: u64 = 256 << 20;

/// A file to read once from its beginning.
#[derive(Debug)]
pub struct InputFile {
    file: File,
    /// How many more bytes are read; none if the file is a regular one.
    left: Option<u64>,
}

impl InputFile {
    /// Opens a file, a device or a pipe; a pipe is waited for.
    ///
    /// # Errors
    /// A folder, and what cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let found = fs::metadata(path)?;
        if found.is_dir() {
            return Err(Error::new(ErrorKind::IsADirectory, "it is a folder; expected a file"));
        }
        let left = if found.is_file() { None } else { Some(MOST) };
        Ok(Self { file: File::open(path)?, left })
    }
}

impl Read for InputFile {
    /// # Errors
    /// As a file; and a device or a pipe that gives more than 256 MiB.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(left) = &mut self.left {
            let too_much = || Error::other(format!("it is a device or a pipe and gives more than {} MiB; save it as a file", MOST >> 20));
            *left = left.checked_sub(read as u64).ok_or_else(too_much)?;
        }
        Ok(read)
    }
}

/// The bytes of a file.
///
/// # Errors
/// As [`InputFile::open`] and [`InputFile::read`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    InputFile::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`read`], and what is not UTF-8.
pub fn read_to_string(path: &Path) -> Result<String> {
    let mut text = String::new();
    InputFile::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a regular file. Nothing else: a pipe that nobody writes to would be waited for without end.
///
/// # Errors
/// A folder, a device or a pipe, and what cannot be opened.
pub fn open_regular(path: impl AsRef<Path>) -> Result<File> {
    expect_regular(&path)?;
    File::open(path)
}

/// The bytes of a regular file.
///
/// # Errors
/// As [`open_regular`], and what cannot be read.
pub fn read_regular(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a regular file that describes something: no config, tokenizer or list of files is larger than 256 MiB.
///
/// # Errors
/// As [`open_regular`], a larger file, and what is not UTF-8.
pub fn read_regular_to_string(path: impl AsRef<Path>) -> Result<String> {
    let (file, mut text) = (open_regular(path)?, String::new());
    if file.metadata()?.len() > MOST {
        return Err(Error::other(format!("it is larger than {} MiB; expected a smaller file of text", MOST >> 20)));
    }
    file.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// Refuses what is not a regular file.
///
/// # Errors
/// A folder, a device or a pipe, and what cannot be looked at.
pub fn expect_regular(path: impl AsRef<Path>) -> Result<()> {
    let found = fs::metadata(path)?;
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(Error::new(ErrorKind::IsADirectory, "it is a folder; expected a file")),
        _ => Err(Error::other("it is a device or a pipe; expected a file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = std::env::temp_dir();
        assert!(read(&folder).unwrap_err().to_string().contains("it is a folder"));
        assert!(expect_regular(&folder).unwrap_err().to_string().contains("it is a folder"));
        assert_eq!(read(Path::new("nowhere/at/all")).unwrap_err().kind(), ErrorKind::NotFound);
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(read_to_string(&own).unwrap().contains("vp-core") && expect_regular(&own).is_ok());
        assert_eq!(read_regular_to_string(&own).unwrap().into_bytes(), read_regular(&own).unwrap());
    }

    /// Before a byte of it is read: the file is a hole.
    #[test]
    fn a_text_of_any_size_is_not_read() {
        let hole = std::env::temp_dir().join(format!("vp-core-hole-{}", std::process::id()));
        File::create(&hole).unwrap().set_len(MOST + 1).unwrap();
        let refused = read_regular_to_string(&hole).unwrap_err().to_string();
        fs::remove_file(&hole).unwrap();
        assert!(refused.contains("larger than 256 MiB"), "{refused}");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_not_waited_for_where_a_file_belongs() {
        let pipe = std::env::temp_dir().join(format!("vp-core-pipe-{}", std::process::id()));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let refused = [read_regular(&pipe).map(drop), read_regular_to_string(&pipe).map(drop)];
        fs::remove_file(&pipe).unwrap();
        for refused in refused {
            assert!(refused.unwrap_err().to_string().contains("it is a device or a pipe; expected a file"));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_without_end_is_read_up_to_a_bound() {
        let zero = Path::new("/dev/zero");
        assert!(read(zero).unwrap_err().to_string().contains("more than 256 MiB"));
        assert!(expect_regular(zero).unwrap_err().to_string().contains("a device or a pipe"));
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
    }
}
