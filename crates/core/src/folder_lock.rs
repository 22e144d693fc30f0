//! One writer per folder.
//!
//! Whoever writes a folder holds a lock on a file in it, which says which process that is. The system lets go of the lock when the process
//! ends, however it ends, so that what a killed process left can be taken over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What the name of every lock's file begins with.
pub const FILE: &str = ".lock";

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderLockError {
    /// Somebody else is writing it.
    #[error("{folder} is being written by {holder}; wait for it to end, or choose another --output")]
    InUse {
        folder: String,
        /// `process 1234`, or `another process`.
        holder: String,
    },
    /// The system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The right to write a folder, until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
    /// The folder, if it was not there before.
    made: Option<PathBuf>,
}

impl FolderLock {
    /// Locks the given `part` of `folder`; different parts can be locked at the same time. The folder is made if it is missing. On a file system
    /// without locks this always succeeds.
    ///
    /// # Errors
    /// When another process, or another part of this one, holds it, or the folder cannot be written.
    pub fn take(folder: &Path, part: &str) -> Result<Self, FolderLockError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let io = |action, path: &Path| {
            let path = path.display().to_string();
            move |source| FolderLockError::Io { action, path, source }
        };
        let made = (!folder.exists()).then(|| folder.to_path_buf());
        let path = folder.join(if part.is_empty() { FILE.to_string() } else { format!("{FILE}-{part}") });
        let holder = format!("{} {}\n", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let is_gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        loop {
            fs::create_dir_all(folder).map_err(io("create folder", folder))?;
            let mut file = match OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path) {
                // The holder before has just removed the folder that it had made.
                Err(error) if is_gone(&error) => continue,
                opened => opened.map_err(io("open", &path))?,
            };
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(FolderLockError::InUse { folder: folder.display().to_string(), holder: holder_in(&mut file) });
            }
            let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
            written.map_err(io("write", &path))?;
            // The holder before may have removed the file between its being opened and locked here; then it is nobody's any more. Where nobody
            // else can read a locked file, it cannot be removed either.
            match fs::read_to_string(&path) {
                Ok(found) if found != holder => continue,
                Err(error) if is_gone(&error) => continue,
                _ => return Ok(Self { path, file, made }),
            }
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // By name: see `atomic::Lock`.
        let _ = self.file.unlock();
        // A folder with anything in it stays.
        if let Some(folder) = &self.made {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Who a lock's file says holds it.
fn holder_in(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(100).read_to_string(&mut text));
    let process = text.split(' ').next().and_then(|number| number.parse::<u32>().ok());
    process.map_or_else(|| "another process".into(), |process| format!("process {process}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_told_who_is_at_it() {
        let folder = std::env::temp_dir().join(format!("vp-folder-lock-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let first = FolderLock::take(&folder, "").unwrap();
        let told = FolderLock::take(&folder, "").unwrap_err().to_string();
        assert!(told.contains(&format!("is being written by process {};", std::process::id())), "{told}");
        let other_part = FolderLock::take(&folder, "2-of-4").unwrap();
        drop((other_part, first));
        assert!(!folder.exists(), "an empty folder that the lock made goes with it");
        // What a killed process left is not in the way, nor does it stay.
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".lock"), "1 0\n").unwrap();
        let lock = FolderLock::take(&folder, "").unwrap();
        fs::write(folder.join("a"), "").unwrap();
        drop(lock);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn of_many_who_try_one_has_it() {
        let folder = std::env::temp_dir().join(format!("vp-folder-lock-many-{}", std::process::id()));
        let holders = AtomicU64::new(0);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let Ok(_lock) = FolderLock::take(&folder, "") else { continue };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }
}
