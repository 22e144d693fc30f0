//! The folders that pages show, and what is in them. An id, `ROOT/FOLDER/…`, begins with the number of the folder that was given; nothing outside
//! those folders has one.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

/// How deep below a given folder runs, evaluations and images are looked for.
const DEPTH: usize = 3;
/// More places than this are not listed.
const MOST: usize = 2000;
/// The images that browsers show and we read.
const IMAGES: [&str; 5] = ["png", "jpg", "jpeg", "webp", "gif"];

/// The folders given.
pub struct Places {
    /// Absolute, without links.
    roots: Vec<PathBuf>,
}

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderKind {
    /// `config.toml` and what training writes.
    Run,
    /// `evaluation.json` and its results.
    Evaluation,
    /// Images.
    Images,
}

impl FolderKind {
    /// As pages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Evaluation => "evaluation",
            Self::Images => "images",
        }
    }

    /// Of a folder; `None` if it is none of them.
    pub fn of(folder: &Path) -> Option<Self> {
        let has = |name: &str| folder.join(name).exists();
        if has("config.toml") && (has("metrics.jsonl") || has("samples")) {
            Some(Self::Run)
        } else if has("evaluation.json") && has("results") {
            Some(Self::Evaluation)
        } else {
            let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.any(|entry| is_image(&entry.path())).then_some(Self::Images)
        }
    }
}

/// A folder to show.
pub struct ShownFolder {
    pub id: String,
    /// What people call it.
    pub name: String,
    pub kind: FolderKind,
    pub folder: PathBuf,
}

impl Places {
    /// Of folders that are there.
    ///
    /// # Errors
    /// When one is not there or is none.
    pub fn open(folders: &[PathBuf]) -> anyhow::Result<Self> {
        let root = |folder: &PathBuf| {
            let shown = folder.display();
            let root = fs::canonicalize(folder)
                .with_context(|| format!("{shown}: expected a folder of runs, evaluations or images; name the ones to show"))?;
            if !root.is_dir() {
                bail!("{shown} is a file; expected a folder of runs, evaluations or images");
            }
            Ok(root)
        };
        Ok(Self { roots: folders.iter().map(root).collect::<anyhow::Result<_>>()? })
    }

    /// The folder of an id; `None` if it has none within those given.
    pub fn folder(&self, id: &str) -> Option<PathBuf> {
        let (root, below) = id.split_once('/').unwrap_or((id, ""));
        let root = self.roots.get(root.parse::<usize>().ok()?)?;
        if below.is_empty() { Some(root.clone()) } else { within(root, below) }.filter(|folder| folder.is_dir())
    }

    /// An image in the folder of an id.
    pub fn image(&self, id: &str, path: &str) -> Option<PathBuf> {
        let found = within(&self.folder(id)?, path)?;
        (is_image(&found) && found.is_file()).then_some(found)
    }

    /// The report in the folder of an id, if one was written.
    pub fn report(&self, id: &str) -> Option<PathBuf> {
        within(&self.folder(id)?, "report.html").filter(|found| found.is_file())
    }

    /// Everything there is to show, the newest first.
    pub fn list(&self) -> Vec<ShownFolder> {
        let mut found = Vec::new();
        for (number, root) in self.roots.iter().enumerate() {
            self.look(number, root, root, 0, &mut found);
        }
        found.sort_by_cached_key(|place| std::cmp::Reverse(changed(&place.folder)));
        found
    }

    fn look(&self, number: usize, root: &Path, folder: &Path, depth: usize, found: &mut Vec<ShownFolder>) {
        if found.len() >= MOST {
            return;
        }
        let kind = FolderKind::of(folder);
        if let Some(kind) = kind {
            found.push(self.place(number, root, folder, kind));
        }
        // What is inside a run or an evaluation is shown with it.
        if depth >= DEPTH || matches!(kind, Some(FolderKind::Run | FolderKind::Evaluation)) {
            return;
        }
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // The kind of an entry is not that of what a link leads to: links are not followed.
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
        let mut folders: Vec<PathBuf> = folders.filter(|path| !is_hidden(path)).collect();
        folders.sort();
        folders.iter().for_each(|path| self.look(number, root, path, depth + 1, found));
    }

    fn place(&self, number: usize, root: &Path, folder: &Path, kind: FolderKind) -> ShownFolder {
        let below = folder.strip_prefix(root).unwrap_or(Path::new("")).components();
        let below = below.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
        let of_root = root.file_name().map_or_else(|| root.display().to_string(), |name| name.to_string_lossy().into_owned());
        let name = match (below.is_empty(), self.roots.len()) {
            (true, _) => of_root,
            (false, 1) => below.clone(),
            (false, _) => format!("{of_root}/{below}"),
        };
        let id = if below.is_empty() { number.to_string() } else { format!("{number}/{below}") };
        ShownFolder { id, name, kind, folder: folder.to_path_buf() }
    }

    /// The place of an id, if there is something to show.
    pub fn find(&self, id: &str) -> Option<ShownFolder> {
        let folder = self.folder(id)?;
        let number: usize = id.split('/').next()?.parse().ok()?;
        let kind = FolderKind::of(&folder)?;
        Some(ShownFolder { id: id.to_string(), ..self.place(number, self.roots.get(number)?, &folder, kind) })
    }
}

/// What `below`, with `/` between names, leads to within a folder: no way up, no hidden file, and no link that leads out.
fn within(folder: &Path, below: &str) -> Option<PathBuf> {
    let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['\\', '\0', ':']);
    if !below.split('/').all(is_plain) || !Path::new(below).components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let folder = fs::canonicalize(folder).ok()?;
    fs::canonicalize(folder.join(below)).ok().filter(|found| found.starts_with(&folder))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether a file's name is that of an image.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| IMAGES.contains(&&*extension)) && !is_hidden(path)
}

/// When a folder's newest part changed, in seconds since 1970.
pub fn changed(folder: &Path) -> u64 {
    let of = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let newest = of(&folder.join("metrics.jsonl")).max(of(folder));
    newest.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folders_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let [root, out] = ["runs", "out"].map(|name| dir.path().join(name));
        for folder in [root.join("a/samples"), out.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in [root.join("a/config.toml"), root.join("a/x.png"), root.join("a/.hidden.png"), root.join("a/x.txt"), out.join("y.png")]
        {
            fs::write(file, "").unwrap();
        }
        let places = Places::open(std::slice::from_ref(&root)).unwrap();
        let listed: Vec<_> = places.list().into_iter().map(|place| (place.id, place.name, place.kind)).collect();
        assert_eq!(listed, [("0/a".to_string(), "a".to_string(), FolderKind::Run)]);
        assert!(places.image("0/a", "x.png").is_some() && places.image("0", "a/x.png").is_some());
        for path in ["../../out/y.png", "a/../../out/y.png", "/etc/hostname.png", "", ".", "..", "a//x.png", "a/./x.png", "a\\x.png"] {
            assert_eq!(places.image("0", path), None, "{path}");
        }
        assert_eq!(places.report("0/a"), None);
        fs::write(root.join("a/report.html"), "").unwrap();
        assert!(places.report("0/a").is_some() && places.report("0/..").is_none());
        assert_eq!((places.image("0/a", ".hidden.png"), places.image("0/a", "x.txt"), places.image("0/a", "samples")), (None, None, None));
        for id in ["1", "-1", "", "0/..", "0/../out", "0/a/..", "x", "0//", "0/b"] {
            assert_eq!(places.folder(id), None, "{id}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_may_lead_within_but_not_out() {
        let dir = tempfile::tempdir().unwrap();
        let [root, out] = ["runs", "out"].map(|name| dir.path().join(name));
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("y.png"), "").unwrap();
        fs::write(root.join("a/x.png"), "").unwrap();
        for (from, to) in [(&out, "a/out"), (&out.join("y.png"), "a/y.png"), (&root.join("a/x.png"), "a/z.png")] {
            std::os::unix::fs::symlink(from, root.join(to)).unwrap();
        }
        let places = Places::open(&[root]).unwrap();
        assert!(places.image("0/a", "z.png").is_some());
        assert_eq!((places.image("0/a", "y.png"), places.image("0/a", "out/y.png"), places.folder("0/a/out")), (None, None, None));
        assert_eq!(places.list().len(), 1, "the folder behind the link is not listed");
    }
}
