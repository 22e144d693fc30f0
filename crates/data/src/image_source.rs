//! Where the bytes of an image are: in a file, inside a zip, or in a row of a parquet table.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::RgbImage;

use crate::images::{decode_image, read_image};
use crate::parquet_file::ParquetFile;
use crate::record_file::path_within;
use crate::zip_file::ZipFile;
use crate::{Error, Result, load_image};

/// Stands between an archive and what is in it: `set.zip!/a.png`, `set.parquet!/jpg_0/17`.
pub const INSIDE: &str = "!/";

/// An image that can be loaded when it is wanted.
#[derive(Debug, Clone)]
pub struct ImageSource(Place);

#[derive(Debug, Clone)]
enum Place {
    File(PathBuf),
    Zip { zip: Arc<ZipFile>, entry: String },
    Parquet { table: Arc<ParquetFile>, column: String, row: usize },
}

impl ImageSource {
    /// The image, as [`load_image`] reads it.
    ///
    /// # Errors
    /// Bytes that cannot be read, and what [`load_image`] refuses: among others, before it is decoded, an image of more than 16,384
    /// pixels per side or 512 MiB. The message names the file and the place in it.
    pub fn load(&self) -> Result<RgbImage> {
        match &self.0 {
            Place::File(path) => load_image(path),
            _ => decode_image(&self.bytes()?, Path::new(&self.to_string())),
        }
    }

    /// The encoded image.
    ///
    /// # Errors
    /// What cannot be read; a file of more than 512 MiB, an entry of a zip of more than 128 MiB.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match &self.0 {
            Place::File(path) => read_image(path),
            Place::Zip { zip, entry } => zip.read(entry),
            Place::Parquet { table, column, row } => {
                table.bytes(column, *row).map_err(|reason| Error::BadImage { path: self.to_string().into(), reason })
            }
        }
    }

    /// Its file; none if it lies inside an archive.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Place::File(path) => Some(path),
            _ => None,
        }
    }
}

/// The path, with the place inside an archive.
impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Zip { zip, entry } => write!(f, "{}{INSIDE}{entry}", zip.path().display()),
            Place::Parquet { table, column, row } => write!(f, "{}{INSIDE}{column}/{row}", table.path().display()),
        }
    }
}

/// The archives of a set, each opened once.
#[derive(Debug, Default)]
pub(crate) struct Archives {
    zips: Mutex<HashMap<PathBuf, Arc<ZipFile>>>,
    tables: Mutex<HashMap<PathBuf, Arc<ParquetFile>>>,
}

impl Archives {
    /// The image that a record calls `image_path`, in one of `folders`.
    ///
    /// If `images/train_1/a.webp` is not a file but `images/train_1.zip` is, the image is looked for in the zip.
    pub(crate) fn find(&self, folders: &[PathBuf], image_path: &str) -> Result<ImageSource> {
        let refused = |reason: String| Error::BadImage { path: image_path.into(), reason };
        let name = path_within(image_path).map_err(refused)?;
        if let Some((archive, inside)) = name.split_once(INSIDE) {
            let exists = folders.iter().map(|folder| folder.join(archive)).find(|path| path.is_file());
            return self.inside(&exists.unwrap_or_else(|| folders[0].join(archive)), inside);
        }
        if let Some(path) = folders.iter().map(|folder| folder.join(&name)).find(|path| path.is_file()) {
            return Ok(ImageSource(Place::File(path)));
        }
        let path = folders[0].join(&name);
        let zip = path.parent().map(|parent| parent.with_added_extension("zip")).filter(|zip| zip.is_file());
        match zip {
            Some(zip) => self.inside(&zip, &name),
            None => Ok(ImageSource(Place::File(path))),
        }
    }

    fn inside(&self, archive: &Path, inside: &str) -> Result<ImageSource> {
        let refused = |reason: String| Error::BadImage { path: format!("{}{INSIDE}{inside}", archive.display()).into(), reason };
        if archive.extension().is_some_and(|extension| extension == "zip") {
            let zip = opened(&self.zips, archive, ZipFile::open)?;
            let entry = zip.find(inside).ok_or_else(|| refused("no such entry, or several of this name".into()))?.to_owned();
            return Ok(ImageSource(Place::Zip { zip, entry }));
        }
        let place = inside.rsplit_once('/').and_then(|(column, row)| Some((column.to_owned(), row.parse().ok()?)));
        let (column, row) = place.ok_or_else(|| refused("expected zip!/entry or parquet!/column/row".into()))?;
        Ok(ImageSource(Place::Parquet { table: opened(&self.tables, archive, ParquetFile::open)?, column, row }))
    }
}

fn opened<T>(opened: &Mutex<HashMap<PathBuf, Arc<T>>>, path: &Path, open: impl FnOnce(&Path) -> Result<T>) -> Result<Arc<T>> {
    let mut opened = opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(found) = opened.get(path) {
        return Ok(found.clone());
    }
    let new = Arc::new(open(path)?);
    opened.insert(path.into(), new.clone());
    Ok(new)
}
