//! Files and folders that are replaced whole: whoever reads one finds the old content or the new, never a part of it.
//!
//! What is new is written beside the old under the name `.NAME.tmp-PROCESS-NUMBER` and renamed. A temporary file or folder is locked while
//! it is written, and the system lets go of a lock when its process ends, however it ends: what lies there unlocked is left over from a
//! killed process, and whoever writes the same name again removes it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// As many links as Linux follows from one name.
const MOST_LINKS: usize = 40;

/// Replaces `path` whole: what `write` writes goes to a temporary file beside it, which is synced and renamed.
/// On an error nothing is left behind, and an older file stays as it was.
///
/// Where `path` is a link, the file that it leads to is replaced. A device, a pipe or an open descriptor (`/dev/null`, `/dev/stdout`) is
/// written to as it is.
///
/// # Errors
/// What the system or `write` says.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let path = match target(path)? {
        Target::Stream(mut stream) => return write(&mut stream).and_then(|()| stream.flush()),
        Target::Name(path) if path.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        Target::Name(path) => path,
    };
    remove_leftovers_of(&path);
    let (temporary, mut file) = new_locked_file(&path)?;
    let write_synced = || {
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write_synced().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    })?;
    sync_folder_of(&path);
    Ok(())
}

/// Replaces `path` by `bytes`; see [`replace`].
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// A folder that is filled under a temporary name and then renamed. It is removed if it is dropped before.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    destination: PathBuf,
    /// Tells others that the folder is in use. Not every file system has locks.
    _lock: Option<Lock>,
}

impl TemporaryFolder {
    /// An empty folder beside `destination`, or beside what `destination` leads to if it is a link. What killed processes left there of the
    /// same name is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn beside(destination: &Path) -> io::Result<Self> {
        let Target::Name(destination) = target(destination)? else {
            return Err(ErrorKind::NotADirectory.into());
        };
        remove_leftovers_of(&destination);
        loop {
            let path = temporary_beside(&destination);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let lock = File::open(&path).ok().and_then(Lock::of);
            // Before it was locked, somebody else may have taken it for a leftover.
            if path.exists() {
                return Ok(Self { path, destination, _lock: lock });
            }
        }
    }

    /// Where the folder is while it is filled.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name, which must be free or that of an empty folder.
    ///
    /// # Errors
    /// What the system says, as when another process was faster. The folder is removed then.
    pub fn rename(self) -> io::Result<()> {
        fs::rename(&self.path, &self.destination)?;
        sync_folder_of(&self.destination);
        Ok(())
    }

    /// Gives the folder its name, in place of what bears it.
    ///
    /// # Errors
    /// What the system says; what bore the name bears it still, and the folder is removed.
    pub fn replace(self) -> io::Result<()> {
        if !self.destination.exists() {
            return self.rename();
        }
        // In between no folder bears the name: whoever writes it after a kill at this moment gives the old one its name back.
        let old = beside(&self.destination, OLD);
        let _lock = File::open(&self.destination).ok().and_then(Lock::of);
        fs::rename(&self.destination, &old)?;
        let destination = self.destination.clone();
        self.rename().inspect_err(|_| {
            let _ = fs::rename(&old, &destination);
        })?;
        fs::remove_dir_all(&old)
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes what killed processes left of anything that was to be written into `folder`. For folders that are the program's own; in others,
/// each name is looked after when it is written.
pub fn sweep(folder: &Path) {
    leftovers_in(folder).into_iter().for_each(|(_, leftover)| remove_unless_in_use(&leftover));
}

/// What killed processes left in `folder` of a file or folder that was to be called `name`, and what others are writing of it right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Nothing.
    Nothing,
    /// A killed process's, which [`sweep`] removes.
    LeftOver,
    /// Another process is at it.
    InUse,
}

/// Whether `name` was begun in `folder` under a temporary name and not finished.
pub fn begun(folder: &Path, name: &str) -> Begun {
    let leftovers = leftovers_in(folder).into_iter().filter(|(of, _)| of == name);
    leftovers.fold(Begun::Nothing, |found, (_, leftover)| match lock(&leftover) {
        Some(_) if found != Begun::InUse => Begun::LeftOver,
        _ => Begun::InUse,
    })
}

/// The marks of a temporary name: of what is written, and of what is being replaced.
const TEMPORARY: &str = "tmp";
const OLD: &str = "old";

/// An unused name in the same folder, different for every call.
pub fn temporary_beside(path: &Path) -> PathBuf {
    beside(path, TEMPORARY)
}

fn beside(path: &Path, mark: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{mark}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
}

/// The name that a temporary name of this mark was made from.
fn name_of<'a>(temporary: &'a str, mark: &str) -> Option<&'a str> {
    let (rest, number) = temporary.strip_prefix('.')?.rsplit_once('-')?;
    let (rest, process) = rest.rsplit_once('-')?;
    let name = rest.strip_suffix(mark)?.strip_suffix('.')?;
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    (is_number(process) && is_number(number)).then_some(name)
}

/// A new file beside `path`, locked where the file system has locks.
fn new_locked_file(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let temporary = temporary_beside(path);
        let file = match File::create_new(&temporary) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        };
        let _ = file.try_lock();
        // Before it was locked, somebody else may have taken it for a leftover.
        if temporary.exists() {
            return Ok((temporary, file));
        }
    }
}

/// Everything under a temporary name in `folder`, with the names that it was to get.
fn leftovers_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let leftover = |entry: fs::DirEntry| {
        let file_name = entry.file_name();
        let file_name = file_name.to_str()?;
        let name = name_of(file_name, TEMPORARY).or_else(|| name_of(file_name, OLD))?;
        Some((name.to_string(), entry.path()))
    };
    entries.filter_map(leftover).collect()
}

/// What killed processes left in a folder: the name of what they were writing, and the path of what is left of it.
type Leftovers = Vec<(String, PathBuf)>;

/// Removes what killed processes left of `path`. A folder is looked through at the first call, for it may be written to many times.
fn remove_leftovers_of(path: &Path) {
    static FOUND: Mutex<Option<HashMap<PathBuf, Leftovers>>> = Mutex::new(None);
    let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else { return };
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder_of(path);
    let leftovers = found.get_or_insert_default().entry(folder.to_path_buf()).or_insert_with(|| leftovers_in(folder));
    leftovers.extract_if(.., |(of, _)| *of == name).for_each(|(_, leftover)| remove_unless_in_use(&leftover));
}

/// Removes a file or folder under a temporary name unless it is locked. A folder that was being replaced by one that never came gets its
/// name back. Where the file system has no locks, nobody knows, and it stays.
fn remove_unless_in_use(leftover: &Path) {
    // It is held until the end.
    let Some(_locked) = lock(leftover) else { return };
    let name = leftover.file_name().and_then(|name| name_of(name.to_str()?, OLD));
    let original = name.map(|name| leftover.with_file_name(name)).filter(|original| !original.exists());
    // What cannot be removed now is found again by the next command.
    let _ = match original {
        Some(original) => fs::rename(leftover, original),
        None if leftover.is_dir() => fs::remove_dir_all(leftover),
        None => fs::remove_file(leftover),
    };
}

/// A locked file or folder. It is let go by name: a child process that is being started holds a copy of every open file for a moment, and
/// with it the lock, if the file is only closed.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    /// `None` where another process has locked it, and where there are no locks.
    fn of(file: File) -> Option<Self> {
        file.try_lock().is_ok().then_some(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// A file or folder, locked; `None` as in [`Lock::of`].
fn lock(path: &Path) -> Option<Lock> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    let opened = match kind {
        _ if kind.is_dir() => File::open(path),
        // Over a network only a file that is open for writing can be locked.
        _ if kind.is_file() => OpenOptions::new().write(true).open(path),
        _ => return None,
    };
    opened.ok().and_then(Lock::of)
}

/// Makes a rename itself durable. Not every file system can do that, and the file is already whole, so a failure is not reported.
pub fn sync_folder_of(path: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What an output's name leads to.
enum Target {
    /// A device, a pipe or an open descriptor.
    Stream(File),
    /// The path of a file or folder that is not a link. It may not exist yet.
    Name(PathBuf),
}

/// Follows the links that `path` begins, the last of which may lead nowhere yet.
fn target(path: &Path) -> io::Result<Target> {
    let mut path = path.to_path_buf();
    for _ in 0..=MOST_LINKS {
        if let Some(stream) = open_descriptor(&path)? {
            return Ok(Target::Stream(stream));
        }
        let Ok(to) = fs::read_link(&path) else {
            let is_stream = fs::metadata(&path).is_ok_and(|found| !found.is_file() && !found.is_dir());
            return match path.file_name() {
                _ if is_stream => OpenOptions::new().write(true).open(&path).map(Target::Stream),
                Some(_) => Ok(Target::Name(path)),
                None => Err(io::Error::new(ErrorKind::InvalidInput, "it has no file name")),
            };
        };
        let next = folder_of(&path).join(to);
        // Some links in /proc lead to what has no name, such as the pipe of another process.
        if path.exists() && fs::symlink_metadata(&next).is_err() {
            return OpenOptions::new().append(true).open(&path).map(Target::Stream);
        }
        path = next;
    }
    Err(io::Error::other(format!("more than {MOST_LINKS} links follow each other")))
}

/// An open descriptor of this process, by a name like `/dev/fd/1`: what comes out there later must follow what is written, even in a file.
#[cfg(unix)]
fn open_descriptor(path: &Path) -> io::Result<Option<File>> {
    use std::os::fd::AsFd;

    let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { return Ok(None) };
    let folder = fs::canonicalize(folder_of(path)).ok();
    let is_descriptor = folder.is_some() && ["/proc/self/fd", "/dev/fd"].iter().any(|fds| fs::canonicalize(fds).ok() == folder);
    match number {
        _ if !is_descriptor => Ok(None),
        1 => {
            let mut stdout = io::stdout().lock();
            stdout.flush()?;
            Ok(Some(stdout.as_fd().try_clone_to_owned()?.into()))
        }
        2 => Ok(Some(io::stderr().as_fd().try_clone_to_owned()?.into())),
        _ => OpenOptions::new().append(true).open(path).map(Some),
    }
}

#[cfg(not(unix))]
fn open_descriptor(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(test)]
mod tests;
