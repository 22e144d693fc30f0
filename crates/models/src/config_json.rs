//! Reading a published `config.json`: every field is used, known to be inert, or refused. Never guessed.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use vp_core::input_file;

use crate::bounds;
use crate::error::{Error, Result};

/// The largest height and width of images and latents, in pixels. Larger ones are slips: their attention alone would need terabytes.
pub const MAX_SIDE: usize = 16384;

/// The state that diffusers' `EMAModel.save_pretrained` writes into a network's config.
const EMA: [&str; 7] = ["decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"];

/// A JSON object whose fields are taken one by one; what is left over at the end is an error.
#[derive(Debug)]
pub struct ConfigJson {
    path: String,
    fields: Map<String, Value>,
}

impl ConfigJson {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = input_file::read_regular_to_string(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        Self::parse(&name, &text)
    }

    pub(crate) fn parse(path: &str, text: &str) -> Result<Self> {
        let wrong = |message: String| Error::Config { path: path.into(), message };
        let fields = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        bounds::check(&fields).map_err(wrong)?;
        Ok(Self { path: path.into(), fields })
    }

    /// The object as it was written, to be written again with a tuned model.
    pub(crate) fn raw(&self) -> Map<String, Value> {
        self.fields.clone()
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), message: message.into() }
    }

    /// The field's value, or `default` where it is absent or null.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, field: &str, default: T) -> Result<T> {
        Ok(self.take_optional(field)?.unwrap_or(default))
    }

    pub(crate) fn take_optional<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>> {
        match self.fields.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let read = serde_json::from_value(value.clone());
                read.map(Some).map_err(|e| self.error(format!("{field} = {value}: {e}")))
            }
        }
    }

    /// A field given as one value for all `count` places, or as a list with one for each.
    pub(crate) fn take_each<T: DeserializeOwned + Clone>(&mut self, field: &str, count: usize) -> Result<Option<Vec<T>>> {
        match self.fields.get(field) {
            Some(Value::Array(list)) if list.len() != count => {
                Err(self.error(format!("{field} lists {} values, expected {count} (one per block)", list.len())))
            }
            Some(Value::Array(_)) => self.take_optional(field),
            _ => Ok(self.take_optional::<T>(field)?.map(|one| vec![one; count])),
        }
    }

    /// Fields that change the network in ways we do not build, unless they have one of these values (absent passes).
    pub(crate) fn only(&mut self, field: &str, allowed: &[Value]) -> Result<()> {
        match self.fields.remove(field) {
            None => Ok(()),
            Some(value) if allowed.contains(&value) => Ok(()),
            Some(value) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(self.error(format!("{field} = {value} is not supported, expected {}", allowed.join(" or "))))
            }
        }
    }

    /// Fields that do not change what the network computes.
    pub(crate) fn inert(&mut self, fields: &[&str]) {
        for field in fields {
            self.fields.remove(*field);
        }
    }

    /// A height and width, given as one number for both or as a pair. At most [`MAX_SIDE`] each.
    pub(crate) fn take_size(&mut self, field: &str) -> Result<Option<[usize; 2]>> {
        let Some(value) = self.take_optional::<Value>(field)? else { return Ok(None) };
        let sides = match value.as_array() {
            Some(pair) if pair.len() == 2 => [pair[0].as_u64(), pair[1].as_u64()],
            _ => [value.as_u64(); 2],
        };
        match sides {
            [Some(height), Some(width)] if [height, width].iter().all(|side| (1..=MAX_SIDE as u64).contains(side)) => {
                Ok(Some([height as usize, width as usize]))
            }
            _ => Err(self.error(format!("{field} = {value}, expected a whole number from 1 to {MAX_SIDE}, or two of them"))),
        }
    }

    /// # Errors
    /// On a field that was not taken and has a value: its meaning is unknown, so the network would be a guess. Names with a leading
    /// underscore are diffusers' own bookkeeping, and [`EMA`] is that of its averages.
    pub(crate) fn finish(self) -> Result<()> {
        let unknown = |name: &str, value: &Value| !name.starts_with('_') && !EMA.contains(&name) && !value.is_null();
        let left: Vec<String> =
            self.fields.iter().filter(|(name, value)| unknown(name, value)).map(|(name, value)| format!("{name} = {value}")).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(self.error(format!("unknown field {}; refusing to guess what it changes", left.join(", "))))
        }
    }
}

/// A network's shape, read from a published `config.json`.
pub trait NetworkConfig: Sized {
    /// Builds the config, taking every field out of `json`.
    ///
    /// # Errors
    /// On a field or a value that would change the network in a way not built here.
    fn from_json(json: ConfigJson) -> Result<Self>;

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and when the file cannot be read.
    fn read(path: &Path) -> Result<Self> {
        Self::from_json(ConfigJson::read(path)?)
    }

    /// Reads the text of a `config.json`; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    fn parse(origin: &str, text: &str) -> Result<Self> {
        Self::from_json(ConfigJson::parse(origin, text)?)
    }
}
