//! Tensors in files: safetensors (single, sharded, fp16 variants) and PyTorch's zip-pickle, read without executing anything.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use vp_core::{atomic, input_file};

mod component;
mod finite;
mod numbers;
mod pickle;
mod pytorch;

pub use component::{chosen_weights, component_file};
use numbers::{Float, first_integer};

/// A fault of a checkpoint on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not what its name says, or is cut short.
    #[error("{path}: {found}")]
    Corrupt {
        /// The path of the file.
        path: String,
        /// What was found, and what it should have been.
        found: String,
    },
    /// A component's folder has no file with one of the names that weights may have.
    #[error("{folder}: no weights found; looked for {}", looked_for.join(", "))]
    NoWeights {
        /// The component's folder.
        folder: String,
        /// The names that were tried.
        looked_for: Vec<String>,
    },
    /// A tokenizer's folder has no file with one of the names that a tokenizer may have.
    #[error("{folder}: no tokenizer found; expected {expected}")]
    NoTokenizer {
        /// The tokenizer's folder.
        folder: String,
        /// The files that would do, all alternatives.
        expected: String,
    },
    /// The weights were saved while LoRAs were attached to the network.
    #[error(
        "{path}: saved with LoRA adapters attached (base_layer, lora_A), and the file does not say whether they are merged already; in Python \
         call unload_lora_weights() before save_pretrained(), or pass the base model and the LoRA file"
    )]
    AdaptersAttached {
        /// The path of the file.
        path: String,
    },
    /// A tensor holds what nobody can compute with: it is not taken from a file, and not written into one.
    #[error("{path}: {name} holds {reason}")]
    NotFinite {
        /// The path of the file.
        path: String,
        /// The tensor.
        name: String,
        /// The value, why it is refused, and the way out.
        reason: String,
    },
    /// A weight is too large for the number format that a config asks for.
    #[error("{name} holds a value of {largest}, and f16 ends at {}; choose the dtype bf16 or f32 for it", half::f16::MAX)]
    BeyondHalf {
        /// The parameter's full name.
        name: String,
        /// The largest absolute value.
        largest: f32,
    },
    /// The tensors are not those of the network.
    #[error(
        "{path} does not fit the network its config describes:{}{}{}",
        listed("missing", missing),
        listed("unexpected", unexpected),
        listed("of another shape", misshaped)
    )]
    Mismatch {
        /// The path of the file.
        path: String,
        /// Parameters without a tensor, with their shapes.
        missing: Vec<String>,
        /// Tensors that belong to no parameter.
        unexpected: Vec<String>,
        /// Parameters whose tensor has another shape: name, expected and found shape.
        misshaped: Vec<String>,
    },
}

/// How many names of one kind an error shows.
const SHOWN: usize = 4;

fn listed(what: &str, names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown = names[..names.len().min(SHOWN)].join(", ");
    let more = if names.len() > SHOWN { format!(", … and {} more", names.len() - SHOWN) } else { String::new() };
    format!("\n  {} {what}: {shown}{more}", names.len())
}

/// The tensors of a checkpoint by name. Their values are read only when they are asked for.
#[derive(Debug)]
pub struct Weights {
    origin: String,
    tensors: BTreeMap<String, Stored>,
    metadata: HashMap<String, String>,
}

/// One tensor in a file.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name in the file, whatever it is called since.
    name: String,
    shape: Vec<usize>,
    view: View,
    source: Source,
}

/// What of the values in a file a tensor is.
#[derive(Debug, Clone, Copy)]
enum View {
    /// All of them.
    Whole,
    /// The rows from `first` on, of a tensor that has `of` rows.
    Rows { first: usize, of: usize },
    /// Those of a matrix, columns first.
    Transposed,
}

#[derive(Debug, Clone)]
enum Source {
    Safetensors { path: PathBuf, dtype: Dtype, start: u64, len: usize },
    Pytorch { path: PathBuf, tensor: pytorch::StoredTensor },
}

impl Weights {
    /// Opens a checkpoint file. Its content decides on the format, not its extension: safetensors, a sharded `*.index.json`, or a PyTorch file.
    /// Reads headers only.
    ///
    /// # Errors
    /// When the file cannot be read, is cut short, or is neither.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::open_sharded(path);
        }
        let mut start = [0u8; 9];
        let mut file = input_file::open_regular(path).map_err(io(path))?;
        let read = file.read(&mut start).map_err(io(path))?;
        match &start[..read] {
            // A header length, then JSON; looked for first, since a length may begin with a pickle's first byte.
            [.., b'{'] if read == 9 => Self::open_safetensors(path),
            // A zip archive, or a bare pickle (protocol 2 and up).
            [b'P', b'K', ..] | [0x80, ..] => Self::open_pytorch(path),
            b"version h" => Err(corrupt(path, "a pointer of Git LFS, not the file itself; `git lfs pull` in its repository gets it")),
            [b'<', ..] => {
                Err(corrupt(path, "a page of a website, not a file of weights: the download failed, or the address was that of a page"))
            }
            [b'G', b'G', b'U', b'F', ..] => {
                Err(corrupt(path, "a GGUF file (quantised weights), which is not read; expected the same model as .safetensors or .ckpt"))
            }
            _ => Err(corrupt(path, "neither a safetensors file nor a PyTorch checkpoint (or cut short in its first bytes)")),
        }
    }

    /// The weights of a component of a folder that diffusers or transformers wrote, by the [file](component_file) that holds them. What
    /// `torch.compile` and `DataParallel` put before names is taken off.
    ///
    /// # Errors
    /// When there is none, when LoRAs are attached to it, and as [`open`](Self::open).
    pub fn open_component(folder: &Path, stem: &str) -> Result<Self, LoadError> {
        let mut weights = Self::open(&component_file(folder, stem)?)?;
        weights.unwrap_names();
        if weights.names().any(|name| name.contains(".base_layer.") || name.contains(".lora_A.")) {
            return Err(LoadError::AdaptersAttached { path: weights.origin });
        }
        Ok(weights)
    }

    /// Whether names in a file have what [`open_component`](Self::open_component) takes off.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn has_wrapped_names(path: &Path) -> Result<bool, LoadError> {
        let weights = Self::open(path)?;
        let mut names = weights.names();
        Ok(names.any(|name| name.contains("_orig_mod.") || name.starts_with("module.")))
    }

    /// Takes off what `torch.compile` (`_orig_mod.`, at every compiled network) and `DataParallel` (`module.`, before all) put into names.
    pub(crate) fn unwrap_names(&mut self) {
        if self.names().any(|name| name.contains("_orig_mod.")) {
            self.rename(|name| name.replace("_orig_mod.", ""));
        }
        while !self.is_empty() && self.names().all(|name| name.starts_with("module.")) {
            self.rename(|name| name["module.".len()..].into());
        }
    }

    fn open_safetensors(path: &Path) -> Result<Self, LoadError> {
        let (header, metadata) = read_header(path)?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let source =
                Source::Safetensors { path: path.to_path_buf(), dtype: info.dtype, start: (header + start) as u64, len: end - start };
            (name.clone(), Stored { name, shape: info.shape.clone(), view: View::Whole, source })
        });
        let (tensors, origin) = (tensors.collect(), path.display().to_string());
        Ok(Self { origin, tensors, metadata: metadata.metadata().clone().unwrap_or_default() })
    }

    fn open_sharded(index: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = input_file::read_regular_to_string(index).map_err(io(index))?;
        let Index { weight_map } = serde_json::from_str(&text).map_err(|e| corrupt(index, &e.to_string()))?;
        let mut merged = Self { origin: index.display().to_string(), tensors: BTreeMap::new(), metadata: HashMap::new() };
        let mut shards: BTreeMap<&str, Weights> = BTreeMap::new();
        for (name, file) in &weight_map {
            if Path::new(file).file_name() != Some(file.as_ref()) || file.ends_with(".index.json") {
                return Err(corrupt(index, &format!("shard {file:?} of {name} is not the name of a file of tensors")));
            }
            if !shards.contains_key(file.as_str()) {
                shards.insert(file, Self::open(&index.with_file_name(file))?);
            }
            let shard = shards.get_mut(file.as_str()).expect("inserted above");
            let tensor = shard.take(name).ok_or_else(|| corrupt(index, &format!("says {name} is in {file}, which lacks it")))?;
            merged.tensors.insert(name.clone(), tensor);
        }
        // A tensor of a shard that the index forgets is as unexpected as any other.
        merged.tensors.extend(shards.into_values().flat_map(|shard| shard.tensors));
        Ok(merged)
    }

    fn open_pytorch(path: &Path) -> Result<Self, LoadError> {
        let tensors = pytorch::open(path)?.into_iter().map(|(name, tensor)| {
            let (shape, source) = (tensor.shape.clone(), Source::Pytorch { path: path.to_path_buf(), tensor });
            (name.clone(), Stored { name, shape, view: View::Whole, source })
        });
        let mut weights = Self { origin: path.display().to_string(), tensors: tensors.collect(), metadata: HashMap::new() };
        // A trainer's file has the weights beside its own state.
        let inner = weights.split_off("state_dict.");
        Ok(if inner.is_empty() { weights } else { inner })
    }

    /// The path of the file these came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// safetensors' `__metadata__`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The tensors not taken yet, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// The names of the tensors not taken yet, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names of the tensors not taken yet, sorted.
    pub fn into_names(self) -> impl Iterator<Item = String> {
        self.tensors.into_keys()
    }

    /// A tensor not taken yet.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The shape of a tensor not taken yet.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(Stored::shape)
    }

    /// Removes a tensor from this collection and returns it, if it is there.
    pub fn take(&mut self, name: &str) -> Option<Stored> {
        self.tensors.remove(name)
    }

    /// Keeps the tensors whose names `keep` is true for.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    /// Replaces a tensor by equal parts of its rows, one for each of `parts`, if it is there and can be divided so.
    pub fn split_rows(&mut self, name: &str, parts: &[String]) {
        let Some(whole) =
            self.tensors.get(name).filter(|whole| whole.shape.first().is_some_and(|rows| *rows > 0 && rows % parts.len() == 0))
        else {
            return;
        };
        let (whole, count) = (whole.clone(), whole.shape[0] / parts.len());
        self.tensors.remove(name);
        for (i, part) in parts.iter().enumerate() {
            let shape = [&[count], &whole.shape[1..]].concat();
            let view = View::Rows { first: i * count, of: whole.shape[0] };
            self.tensors.insert(part.clone(), Stored { shape, view, ..whole.clone() });
        }
    }

    /// Lets a matrix `[a, b]` pass for its transpose `[b, a]`.
    pub fn transpose(&mut self, name: &str) {
        if let Some(stored) = self.tensors.get_mut(name)
            && let [rows, columns] = stored.shape[..]
        {
            (stored.shape, stored.view) = (vec![columns, rows], View::Transposed);
        }
    }

    /// Renames every tensor. The new names must differ from each other: of two tensors with one name, one is lost.
    pub fn rename(&mut self, rename: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    }

    /// Removes the tensors whose names begin with `prefix` and returns them, `prefix` removed from their names.
    pub fn split_off(&mut self, prefix: &str) -> Self {
        let (taken, left) = std::mem::take(&mut self.tensors).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.tensors = left;
        let mut taken = Self { origin: self.origin.clone(), tensors: taken, metadata: HashMap::new() };
        taken.rename(|name| name[prefix.len()..].into());
        taken
    }

    /// Whether all tensors were taken.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Drops the tensors of these names, which published files carry and nobody uses. They are named one by one, so that any other
    /// unused tensor is still reported.
    pub fn ignore(&mut self, names: &[&str]) {
        self.tensors.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// Lets a 1×1 convolution kernel `[o, i, 1, 1]` pass for a matrix `[o, i]`.
    pub fn squeeze(&mut self, name: &str) {
        if let Some(Stored { shape, .. }) = self.tensors.get_mut(name)
            && matches!(shape[..], [_, _, 1, 1])
        {
            shape.truncate(2);
        }
    }

    /// Lets a scalar pass for a tensor of one value, `[1]`.
    pub fn unsqueeze_scalar(&mut self, name: &str) {
        if let Some(Stored { shape, .. }) = self.tensors.get_mut(name)
            && shape.is_empty()
        {
            shape.push(1);
        }
    }
}

impl Stored {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its element type in the file.
    fn dtype(&self) -> Dtype {
        match &self.source {
            Source::Safetensors { dtype, .. } => *dtype,
            Source::Pytorch { tensor, .. } => tensor.dtype,
        }
    }

    /// Whether the file has it in a float type.
    pub fn is_float(&self) -> bool {
        Float::of(self.dtype()).is_some()
    }

    /// Whether the file has it in half precision (IEEE binary16).
    pub fn is_half(&self) -> bool {
        self.dtype() == Dtype::F16
    }

    /// Reads the values as f32, whatever float type the file has.
    ///
    /// # Errors
    /// When the file cannot be read, the tensor is not of a float type, or a value is an infinity or a NaN.
    pub fn read(&self) -> Result<Vec<f32>, LoadError> {
        self.finite(self.read_state()?)
    }

    /// As [`read`](Self::read), infinities and NaNs too: the state of a run comes back as it was.
    ///
    /// # Errors
    /// When the file cannot be read or the tensor is not of a float type.
    pub fn read_state(&self) -> Result<Vec<f32>, LoadError> {
        let values = self.read_whole()?;
        Ok(match self.view {
            View::Whole => values,
            View::Rows { first, of } => {
                let row = values.len() / of;
                values[first * row..(first + self.shape[0]) * row].to_vec()
            }
            View::Transposed => {
                let (rows, columns) = (self.shape[1], self.shape[0]);
                (0..columns)
                    .flat_map(|column| (0..rows).map(move |row| (row, column)))
                    .map(|(row, column)| values[row * columns + column])
                    .collect()
            }
        })
    }

    fn read_whole(&self) -> Result<Vec<f32>, LoadError> {
        let wrong = || corrupt(self.path(), &format!("{} is of type {:?} where floats are expected", self.name, self.dtype()));
        let float = Float::of(self.dtype()).ok_or_else(wrong)?;
        Ok(float.widen(&self.bytes()?))
    }

    /// The file it is in.
    fn path(&self) -> &Path {
        let (Source::Safetensors { path, .. } | Source::Pytorch { path, .. }) = &self.source;
        path
    }

    /// Reads the first value of a tensor that may hold integers, as the alpha of a LoRA does in some files; `None` if it has no values.
    ///
    /// # Errors
    /// When the file cannot be read or the tensor is of no type of numbers.
    pub fn read_number(&self) -> Result<Option<f64>, LoadError> {
        if !matches!(self.dtype(), Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8) {
            return Ok(self.read()?.first().copied().map(f64::from));
        }
        Ok(first_integer(&self.bytes()?, self.shape.iter().product()))
    }

    /// The bytes of its elements in the file, row by row.
    fn bytes(&self) -> Result<Vec<u8>, LoadError> {
        match &self.source {
            Source::Safetensors { path, start, len, .. } => read_span(path, *start, *len),
            Source::Pytorch { path, tensor } => tensor.read().map_err(io(path)),
        }
    }
}

/// `len` bytes of a file from `start` on.
fn read_span(path: &Path, start: u64, len: usize) -> Result<Vec<u8>, LoadError> {
    let mut bytes = vec![0; len];
    let mut file = input_file::open_regular(path).map_err(io(path))?;
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes)).map_err(io(path))?;
    Ok(bytes)
}

/// The header of a safetensors file (where its data begins, and what it holds), checked against the file's length.
fn read_header(path: &Path) -> Result<(usize, Metadata), LoadError> {
    let mut file = input_file::open_regular(path).map_err(io(path))?;
    let file_len = file.metadata().map_err(io(path))?.len();
    let mut prefix = [0u8; 8];
    file.read_exact(&mut prefix).map_err(io(path))?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > file_len.saturating_sub(8) {
        return Err(corrupt(path, &format!("cut short: its header should have {header_len} bytes, the file has {file_len}")));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(io(path))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| corrupt(path, &format!("not a safetensors header: {e}")))?;
    let data_len = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0) as u64;
    let expected = 8 + header_len + data_len;
    if expected != file_len {
        let what = if file_len < expected { "cut short" } else { "longer than its header says" };
        return Err(corrupt(path, &format!("{what}: expected {expected} bytes, found {file_len}")));
    }
    Ok(((8 + header_len) as usize, metadata))
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> LoadError + use<> {
    let path = path.display().to_string();
    move |source| LoadError::Io { path, source }
}

pub(crate) fn corrupt(path: &Path, found: &str) -> LoadError {
    LoadError::Corrupt { path: path.display().to_string(), found: found.into() }
}

/// Float types a checkpoint can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaveType {
    /// Single precision, four bytes per value.
    #[default]
    F32,
    /// Half precision (IEEE binary16), two bytes per value.
    F16,
    /// Single precision for the state of a run, which must come back as it was: infinities and NaNs are kept.
    State,
}

/// Writes a safetensors file under a temporary name, one tensor at a time, and renames it.
///
/// `tensors` are (name, shape, values); `metadata` goes into the header, with `format = pt` as Python's loaders expect.
///
/// # Errors
/// When a value is not finite, or is not in half precision ([`SaveType::State`] takes all), and when the file cannot be written; nothing is
/// left behind then.
pub fn save_safetensors<'a, I>(path: &Path, tensors: I, metadata: &[(&str, &str)], kind: SaveType) -> Result<(), LoadError>
where
    I: IntoIterator<Item = (&'a str, &'a [usize], Box<dyn FnOnce() -> Vec<f32> + 'a>)>,
{
    let (size, dtype) = if kind == SaveType::F16 { (2, "F16") } else { (4, "F32") };
    let tensors: Vec<_> = tensors.into_iter().collect();
    let mut header = serde_json::Map::new();
    let mut about: serde_json::Map<String, serde_json::Value> = metadata.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    about.insert("format".into(), "pt".into());
    header.insert("__metadata__".into(), about.into());
    let mut offset = 0;
    for (name, shape, _) in &tensors {
        let end = offset + shape.iter().product::<usize>() * size;
        header.insert((*name).into(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    // The format asks for data aligned to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut unfit = None;
    let written = atomic::replace(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (name, _, values) in tensors {
            let values = values();
            if let Err(error) = kind.check(path, name, &values) {
                unfit = Some(error);
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let bytes: Vec<u8> = match kind {
                SaveType::F32 | SaveType::State => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                SaveType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            };
            file.write_all(&bytes)?;
        }
        file.flush()
    });
    match unfit {
        Some(error) => Err(error),
        None => written.map_err(io(path)),
    }
}
