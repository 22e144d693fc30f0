//! The files that `torch.save` writes: a zip archive since torch 1.6, and before that pickles one after the other with the values behind.
//!
//! Source: PyTorch `torch/serialization.py` (`_save`, `_legacy_save`).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use vp_core::input_file;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Pickle, PickleError, PickledTensor, Storage, Value};
use super::{LoadError, corrupt, io as io_error};

/// A pickle larger than this describes more than any checkpoint's tensors.
const LARGEST_PICKLE: u64 = 1 << 29;

/// What tensors and their names may take together, in bytes.
const LARGEST_TABLE: usize = 1 << 27;

/// Dictionaries within dictionaries, at most.
const DEEPEST: usize = 16;

/// The first pickle of a file from before torch 1.6.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// A tensor in a file.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    path: PathBuf,
    /// The element type, as safetensors names it.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    /// Where its first element is, in bytes from the file's beginning.
    start: u64,
    /// Elements from the first to the last, those between included.
    span: usize,
}

/// The tensors of a file by name. Names within dictionaries are joined by dots; what is not a tensor is passed over.
///
/// # Errors
/// When the file is none of these, is cut short, or names what no checkpoint needs.
pub fn open(path: &Path) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let mut file = input_file::open_regular(path).map_err(io_error(path))?;
    let mut start = [0; 2];
    file.read_exact(&mut start).and_then(|()| file.rewind()).map_err(io_error(path))?;
    if start == *b"PK" { open_zip(path, file) } else { open_legacy(path, file) }
}

fn open_zip(path: &Path, file: File) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let wrong = |found: String| corrupt(path, &found);
    let len = file.metadata().map_err(io_error(path))?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(format!("not a whole zip archive: {e}")))?;
    let is_pickle = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
    let Some(pickle) = archive.file_names().flatten().map(|name| name.into_owned()).find(|name| is_pickle(name)) else {
        return Err(wrong("a zip archive without data.pkl, so it is not a PyTorch checkpoint".into()));
    };
    let prefix = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    if let Ok(mut order) = archive.by_name(&format!("{prefix}byteorder")) {
        let mut text = String::new();
        order.by_ref().take(16).read_to_string(&mut text).map_err(io_error(path))?;
        if text != "little" {
            return Err(wrong(format!("its numbers are stored {text}-endian, expected little")));
        }
    }
    let entry = archive.by_name(&pickle).map_err(|e| wrong(e.to_string()))?;
    if entry.size() > LARGEST_PICKLE {
        return Err(wrong(format!("its data.pkl has {} bytes, expected at most {LARGEST_PICKLE}", entry.size())));
    }
    let (root, values) = pickle::read(&mut BufReader::new(entry.take(LARGEST_PICKLE))).map_err(|e| refused(path, e))?;
    let mut found = HashMap::new();
    let mut locate = |storage: &Storage| -> Result<(u64, u64), LoadError> {
        if let Some(place) = found.get(&storage.key) {
            return Ok(*place);
        }
        let name = format!("{prefix}data/{}", storage.key);
        let entry = archive.by_name(&name).map_err(|e| wrong(format!("{name}: {e}")))?;
        let start = entry.data_start().filter(|_| entry.compression() == CompressionMethod::Stored);
        let start = start.ok_or_else(|| wrong(format!("{name} is compressed, which torch.save does not do")))?;
        if start.checked_add(entry.size()).is_none_or(|end| end > len) {
            return Err(wrong(format!("cut short: {name} should have {} bytes", entry.size())));
        }
        found.insert(storage.key.clone(), (start, entry.size()));
        Ok((start, entry.size()))
    };
    tensors(path, &root, &values, &mut locate)
}

fn open_legacy(path: &Path, file: File) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let len = file.metadata().map_err(io_error(path))?.len();
    let mut reader = BufReader::new(file);
    let mut magic = [0; 14];
    let begins = reader.read_exact(&mut magic).is_ok() && magic[..2] == [0x80, 0x02] && magic[4..] == MAGIC;
    if !begins {
        return Err(corrupt(path, "a pickle, but not one that torch.save wrote"));
    }
    reader.rewind().map_err(io_error(path))?;
    let mut next = || pickle::read(&mut (&mut reader).take(LARGEST_PICKLE)).map_err(|e| refused(path, e));
    // The magic number, the protocol, and the sizes of C's types.
    for _ in 0..3 {
        next()?;
    }
    let ((root, values), (keys, order)) = (next()?, next()?);
    // The values of each storage, behind their number.
    let mut places = HashMap::new();
    if let Value::Sequence(place) = keys {
        for key in order.sequence(place) {
            let Value::Text(key) = key else { continue };
            let mut count = [0; 8];
            reader.read_exact(&mut count).map_err(io_error(path))?;
            let Some(size) = values.storages.get(key).and_then(|kind| dtype(kind)).map(|dtype| dtype.bitsize() as u64 / 8) else {
                return Err(corrupt(path, &format!("storage {key} is of a type that is not read")));
            };
            let bytes = u64::from_le_bytes(count).saturating_mul(size);
            let start = reader.stream_position().map_err(io_error(path))?;
            if bytes > len.saturating_sub(start) {
                return Err(corrupt(
                    path,
                    &format!("cut short: storage {key} should have {bytes} bytes, {} are left", len - start.min(len)),
                ));
            }
            places.insert(key.clone(), (start, bytes));
            reader.seek(SeekFrom::Start(start + bytes)).map_err(io_error(path))?;
        }
    }
    let mut locate = |storage: &Storage| {
        places.get(&storage.key).copied().ok_or_else(|| corrupt(path, &format!("storage {} is not in the file", storage.key)))
    };
    tensors(path, &root, &values, &mut locate)
}

fn refused(path: &Path, error: PickleError) -> LoadError {
    corrupt(path, &error.to_string())
}

/// Gives the first byte and the length in bytes of a storage.
type Locate<'a> = dyn FnMut(&Storage) -> Result<(u64, u64), LoadError> + 'a;

fn tensors(path: &Path, root: &Value, values: &Pickle, locate: &mut Locate<'_>) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let Value::Dict(_) = root else {
        let what = match root {
            Value::Opaque(class) | Value::Name(class) => format!("a pickled {class}"),
            Value::Tensor(_) => "a single tensor".into(),
            _ => "no dictionary".into(),
        };
        let found = format!("{what} where a dictionary of tensors is expected; in Python, torch.save(model.state_dict(), FILE) writes one");
        return Err(corrupt(path, &found));
    };
    let mut collect = Collect { path, values, locate, found: BTreeMap::new(), budget: LARGEST_TABLE };
    collect.add("", root, 0)?;
    Ok(collect.found)
}

struct Collect<'a, 'b> {
    path: &'a Path,
    values: &'a Pickle,
    locate: &'a mut Locate<'b>,
    found: BTreeMap<String, StoredTensor>,
    /// Bytes that may still be taken: a dictionary may be in itself, or in others many times, and so may a tensor.
    budget: usize,
}

impl Collect<'_, '_> {
    fn spend(&mut self, bytes: usize) -> Result<(), LoadError> {
        let left = self.budget.checked_sub(bytes).ok_or_else(|| corrupt(self.path, "its dictionaries hold each other too often"));
        left.map(|left| self.budget = left)
    }

    fn add(&mut self, name: &str, value: &Value, depth: usize) -> Result<(), LoadError> {
        match value {
            Value::Tensor(tensor) => {
                let numbers = size_of_val(&tensor.shape[..]) + size_of_val(&tensor.strides[..]);
                self.spend(size_of::<StoredTensor>() + self.path.as_os_str().len() + numbers)?;
                if let Some(stored) = stored(self.path, name, tensor, self.locate)? {
                    self.found.insert(name.into(), stored);
                }
            }
            Value::Dict(place) if depth < DEEPEST => {
                let values = self.values;
                for (key, value) in values.dict(*place) {
                    self.spend(1)?;
                    let key = match key {
                        Value::Text(key) => key.to_string(),
                        Value::Int(key) => key.to_string(),
                        _ => continue,
                    };
                    let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                    self.spend(name.len())?;
                    self.add(&name, value, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A tensor with its place in the file; none if its type is not one that is ever read.
fn stored(path: &Path, name: &str, tensor: &PickledTensor, locate: &mut Locate<'_>) -> Result<Option<StoredTensor>, LoadError> {
    let PickledTensor { storage, offset, shape, strides } = tensor;
    let Some(dtype) = dtype(&storage.kind) else { return Ok(None) };
    let (start, bytes) = locate(storage)?;
    let size = (dtype.bitsize() / 8) as u64;
    // The distance from the first element to the last.
    let last =
        shape.iter().zip(strides).try_fold(0usize, |last, (size, stride)| last.checked_add(size.saturating_sub(1).checked_mul(*stride)?));
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
    let span = if count == Some(0) { Some(0) } else { last.and_then(|last| last.checked_add(1)) };
    let end = span.and_then(|span| offset.checked_add(span)).and_then(|end| (end as u64).checked_mul(size));
    // A stride of zero repeats elements: such a tensor is larger than its storage only by a mistake.
    let fits = end.is_some_and(|end| end <= bytes) && count.is_some_and(|count| (count as u64) <= bytes / size);
    if !fits {
        let found = format!("{name} has the shape {shape:?} at element {offset} of storage {}, which has {bytes} bytes", storage.key);
        return Err(corrupt(path, &found));
    }
    let start = start + *offset as u64 * size;
    Ok(Some(StoredTensor {
        path: path.into(),
        dtype,
        shape: shape.clone(),
        strides: strides.clone(),
        start,
        span: span.unwrap_or_default(),
    }))
}

fn dtype(kind: &str) -> Option<Dtype> {
    Some(match kind.rsplit('.').next().unwrap_or(kind) {
        "DoubleStorage" | "float64" => Dtype::F64,
        "FloatStorage" | "float32" => Dtype::F32,
        "HalfStorage" | "float16" => Dtype::F16,
        "BFloat16Storage" | "bfloat16" => Dtype::BF16,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "LongStorage" | "int64" => Dtype::I64,
        "IntStorage" | "int32" => Dtype::I32,
        "ShortStorage" | "int16" => Dtype::I16,
        "CharStorage" | "int8" => Dtype::I8,
        "ByteStorage" | "uint8" => Dtype::U8,
        "BoolStorage" | "bool" => Dtype::BOOL,
        _ => return None,
    })
}

impl StoredTensor {
    /// The bytes of its elements, row by row.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        if self.span == 0 {
            return Ok(Vec::new());
        }
        let size = self.dtype.bitsize() / 8;
        let mut span = vec![0; self.span * size];
        let mut file = input_file::open_regular(&self.path)?;
        file.seek(SeekFrom::Start(self.start))?;
        file.read_exact(&mut span)?;
        if self.span == self.shape.iter().product::<usize>() && self.is_contiguous() {
            return Ok(span);
        }
        let mut bytes = Vec::with_capacity(self.shape.iter().product::<usize>() * size);
        self.gather(&span, size, 0, 0, &mut bytes);
        Ok(bytes)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }

    fn gather(&self, span: &[u8], size: usize, axis: usize, place: usize, bytes: &mut Vec<u8>) {
        match self.shape.get(axis) {
            None => bytes.extend(&span[place * size..(place + 1) * size]),
            Some(count) => (0..*count).for_each(|i| self.gather(span, size, axis + 1, place + i * self.strides[axis], bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file from before torch 1.6 with this pickle, and one storage `s` of one float.
    fn opened(root: &[u8]) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        let magic = [b"\x80\x02\x8a\x0a", &MAGIC[..], b"."].concat();
        let keys = b"\x80\x02]X\x01\0\0\0sa.";
        let values = [&1u64.to_le_bytes()[..], &1f32.to_le_bytes()].concat();
        std::fs::write(&path, [&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}.", root, keys, &values].concat()).unwrap();
        open(&path)
    }

    /// A tensor of one value in 60 dimensions.
    fn tensor() -> Vec<u8> {
        let call = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0stQK\x00(";
        [&call[..], &b"K\x01".repeat(60), b"tq\x01h\x01tR"].concat()
    }

    #[test]
    fn a_tensor_has_its_place_and_type() {
        let found = opened(&[b"\x80\x02}(K\x07", &tensor()[..], b"X\x04\0\0\0noneNu."].concat()).unwrap();
        assert_eq!((found.len(), found["7"].dtype, found["7"].shape.len()), (1, Dtype::F32, 60));
    }

    /// A dictionary that holds itself twice, and much of which nothing is needed: 65,536 times 50,000 entries to look at.
    #[test]
    fn dictionaries_in_themselves_take_no_time() {
        let pickle = [b"\x80\x02", &tensor()[..], b"0}q\x00(K\x01h\x00K\x02h\x00", &b"NN".repeat(50_000)[..], b"u."].concat();
        let error = opened(&pickle).unwrap_err().to_string();
        assert!(error.contains("hold each other too often"), "{error}");
    }

    /// A thousand names for a dictionary of a thousand names for one tensor: a million tensors of a kilobyte each.
    #[test]
    fn one_tensor_under_a_million_names_takes_no_memory() {
        let names = |value: &[u8]| (0..1000u16).flat_map(|name| [b"M", &name.to_le_bytes()[..], value].concat()).collect::<Vec<u8>>();
        let inner = [b"}(", &names(b"h\x00")[..], b"uq\x020"].concat();
        let pickle = [b"\x80\x02", &tensor()[..], b"q\x000", &inner, b"}(", &names(b"h\x02"), b"u."].concat();
        assert!(opened(&pickle).unwrap_err().to_string().contains("hold each other too often"));
    }
}
