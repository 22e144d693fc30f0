//! The entries of a published JSON list, one at a time, and their fields.

use std::path::Path;

use serde_json::{Map, Value};

use crate::utf8::read_utf8;
use crate::{Error, Result};

/// An entry that was found: the place that messages name, and its fields or what is wrong.
pub(crate) type Placed = (String, Result<Fields, String>);

/// The entries of a JSON list. The text is in memory whole, of the values only one at a time.
pub(crate) struct JsonList {
    text: String,
    /// Where the next entry, or what must stand before it, begins.
    at: usize,
    entries: usize,
    ended: bool,
}

impl JsonList {
    /// # Errors
    /// A file that cannot be read or is not UTF-8.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(read_utf8(path)?))
    }

    pub(crate) fn new(text: String) -> Self {
        Self { text, at: 0, entries: 0, ended: false }
    }

    /// The next character that is not a space; the bytes before it are skipped.
    fn peek(&mut self) -> Option<char> {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// Steps over `[` or `,`; false at the list's end.
    fn step(&mut self) -> Result<bool, String> {
        let expected = if self.entries == 0 { '[' } else { ',' };
        match self.peek() {
            Some(']') if self.entries > 0 => return Ok(false),
            Some(found) if found == expected => self.at += 1,
            found => {
                let found = found.map_or("the end of the file".into(), |found| format!("{found:?}"));
                return Err(format!("malformed JSON on line {}: expected {expected:?}, found {found}", self.line()));
            }
        }
        Ok(self.entries > 0 || self.peek() != Some(']'))
    }

    fn line(&self) -> usize {
        1 + self.text[..self.at].matches('\n').count()
    }

    fn value(&mut self) -> Result<Value, String> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter::<Value>();
        let value = values.next().unwrap_or(Ok(Value::Null));
        let read = values.byte_offset();
        let value = value.map_err(|error| {
            let line = self.line() + error.line().saturating_sub(1);
            format!("malformed JSON on line {line}: {}", error.to_string().split(" at line ").next().unwrap_or_default())
        })?;
        self.at += read;
        Ok(value)
    }
}

impl Iterator for JsonList {
    type Item = Placed;

    fn next(&mut self) -> Option<Placed> {
        if self.ended {
            return None;
        }
        let place = format!("entry {}", self.entries + 1);
        let value = match self.step() {
            Ok(true) => self.value(),
            Ok(false) => {
                self.ended = true;
                return None;
            }
            Err(reason) => Err(reason),
        };
        self.entries += 1;
        // Behind malformed JSON no entry can be found any more.
        self.ended = value.is_err();
        Some((place, value.and_then(Fields::of)))
    }
}

/// The fields of an entry or row; what is taken out is gone, so that the rest can be kept.
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(format!("expected an object, found {other}")),
        }
    }

    fn take(&mut self, key: &str) -> Result<Value, String> {
        self.0.shift_remove(key).ok_or_else(|| format!("it has no {key}"))
    }

    /// A string.
    pub(crate) fn text(&mut self, key: &str) -> Result<String, String> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            other => Err(format!("expected {key} to be a string, found {other}")),
        }
    }

    /// A string, or a number spelt out; none if it is missing or null.
    pub(crate) fn label(&mut self, key: &str) -> Option<String> {
        match self.0.shift_remove(key)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A number.
    pub(crate) fn number(&mut self, key: &str) -> Result<f64, String> {
        let value = self.take(key)?;
        value.as_f64().ok_or_else(|| format!("expected {key} to be a number, found {value}"))
    }

    /// A whole number from 0.
    pub(crate) fn count(&mut self, key: &str) -> Result<u32, String> {
        let value = self.take(key)?;
        count_of(&value).ok_or_else(|| format!("expected {key} to be a whole number, found {value}"))
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>, String> {
        let value = self.take(key)?;
        let texts = value.as_array().and_then(|values| values.iter().map(|value| Some(value.as_str()?.to_owned())).collect());
        texts.ok_or_else(|| format!("expected {key} to be a list of strings, found {value}"))
    }

    /// A list of whole numbers from 0, one for each of `images`.
    pub(crate) fn counts(&mut self, key: &str, images: usize) -> Result<Vec<u32>, String> {
        let value = self.take(key)?;
        let counts: Option<Vec<u32>> = value.as_array().and_then(|values| values.iter().map(count_of).collect());
        let counts = counts.ok_or_else(|| format!("expected {key} to be a list of whole numbers, found {value}"))?;
        match counts.len() {
            found if found == images => Ok(counts),
            found => Err(format!("{key} has {found} numbers for {images} images")),
        }
    }
}

/// Tables of pandas hold whole numbers as 3.0 where a column has gaps.
fn count_of(value: &Value) -> Option<u32> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(number))?;
    Some(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let show = |(place, entry): Placed| match entry {
            Ok(fields) => format!("{place}: {}", Value::Object(fields.0)),
            Err(reason) => format!("{place}: {reason}"),
        };
        JsonList::new(text.into()).map(show).collect()
    }

    #[test]
    fn entries_come_one_by_one_and_malformed_json_ends_the_list() {
        assert_eq!(told(" [ ] "), [""; 0]);
        assert_eq!(
            told("[\n {\"a\": 1} ,\n 3, \"x\", {\"b\": [2]}]"),
            [
                "entry 1: {\"a\":1}",
                "entry 2: expected an object, found 3",
                "entry 3: expected an object, found \"x\"",
                "entry 4: {\"b\":[2]}"
            ]
        );
        assert_eq!(told("[{\"a\": 1},\n{\"b\" 2}, {}]"), ["entry 1: {\"a\":1}", "entry 2: malformed JSON on line 2: expected `:`"]);
        assert_eq!(told("[{}\n{}]"), ["entry 1: {}", "entry 2: malformed JSON on line 2: expected ',', found '{'"]);
        assert_eq!(told("[{}"), ["entry 1: {}", "entry 2: malformed JSON on line 1: expected ',', found the end of the file"]);
        assert_eq!(told("{}"), ["entry 1: malformed JSON on line 1: expected '[', found '{'"]);
    }
}
