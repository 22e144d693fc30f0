//! Parquet tables of published sets: rows without the images in them, and the images one by one.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use parquet::basic::Type as Physical;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};
use vp_core::{contained, input_file, shown};

use crate::json_list::{Fields, Placed};
use crate::{Error, Problem, ProblemKind, Result};

/// A parquet file.
pub(crate) struct ParquetFile {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// How far each column was read: rows that are asked for in order are each unpacked once.
    cursors: Mutex<HashMap<usize, Cursor>>,
}

/// A place in a column.
struct Cursor {
    row_group: usize,
    /// The next row, within the group.
    row: usize,
    reader: ColumnReaderImpl<ByteArrayType>,
}

impl ParquetFile {
    /// # Errors
    /// A file that cannot be read or is not parquet.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), reader: open_reader(path)?, cursors: Mutex::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the columns.
    pub(crate) fn columns(&self) -> Vec<&str> {
        self.reader.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name()).collect()
    }

    /// The rows, without the columns named in `but`; a few thousand are in memory at a time.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub(crate) fn rows(path: &Path, but: &[&str]) -> Result<impl Iterator<Item = Placed> + use<>> {
        let reader = open_reader(path)?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields().iter().filter(|field| !but.contains(&field.name())).cloned().collect();
        let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build();
        let rows = wanted.and_then(|wanted| RowIter::from_file_into(Box::new(reader)).project(Some(wanted)));
        let mut rows = rows.map_err(|error| refused(path, &error))?;
        let mut index = 0;
        let mut ended = false;
        Ok(std::iter::from_fn(move || {
            let row = if ended { None } else { guarded(|| rows.next().transpose()).transpose() }?;
            // Behind a damaged page no row can be found any more.
            ended = row.is_err();
            index += 1;
            Some((format!("row {index}"), row.map(fields_of).map_err(|error| reason_of(&error))))
        }))
    }

    /// The bytes in a row of a column; rows count from 0.
    ///
    /// # Errors
    /// A value that is missing, does not hold bytes, or cannot be unpacked.
    pub(crate) fn bytes(&self, column: &str, row: usize) -> Result<Vec<u8>, String> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let at = (0..schema.num_columns()).find(|&index| schema.column(index).path().parts() == [column]);
        let at = at.ok_or_else(|| format!("no column {column}; there are {}", shown::names(self.columns())))?;
        let descriptor = schema.column(at);
        if descriptor.physical_type() != Physical::BYTE_ARRAY || descriptor.max_rep_level() > 0 {
            return Err(format!("column {column} holds no bytes"));
        }
        let (row_group, row_in_group) = self.place_of(row)?;
        let mut cursors = self.cursors.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let cursor = cursors.remove(&at).filter(|cursor| cursor.row_group == row_group && cursor.row <= row_in_group);
        let read = || {
            let mut cursor = cursor.map_or_else(|| self.cursor(row_group, at), Ok)?;
            let bytes = cursor.read(row_in_group)?;
            cursors.insert(at, cursor);
            Ok(bytes)
        };
        guarded(read).map_err(|error: ParquetError| reason_of(&error))?.ok_or_else(|| "there is no image (null)".into())
    }

    /// The group of a row, and its place there.
    fn place_of(&self, row: usize) -> Result<(usize, usize), String> {
        let mut left = row;
        for (index, group) in self.reader.metadata().row_groups().iter().enumerate() {
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            if left < rows {
                return Ok((index, left));
            }
            left -= rows;
        }
        Err(format!("no row {row}; there are {}, counted from 0", row - left))
    }

    fn cursor(&self, row_group: usize, column: usize) -> Result<Cursor, ParquetError> {
        match self.reader.get_row_group(row_group)?.get_column_reader(column)? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Cursor { row_group, row: 0, reader }),
            _ => Err(ParquetError::General("not a column of bytes".into())),
        }
    }
}

impl Cursor {
    /// The bytes in a row at or behind the cursor.
    fn read(&mut self, row: usize) -> Result<Option<Vec<u8>>, ParquetError> {
        let skipped = self.reader.skip_records(row - self.row)?;
        let (mut levels, mut values) = (Vec::new(), Vec::<ByteArray>::new());
        let (rows, ..) = self.reader.read_records(1, Some(&mut levels), None, &mut values)?;
        if (skipped, rows) != (row - self.row, 1) {
            return Err(ParquetError::EOF("fewer rows than the file declares".into()));
        }
        self.row = row + 1;
        Ok(values.first().map(|value| value.data().to_vec()))
    }
}

impl std::fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn open_reader(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = input_file::open_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
    guarded(|| SerializedFileReader::new(file)).map_err(|error| refused(path, &error))
}

/// What `read` reads. The parquet crate meets some kinds of damage with a panic; behind one, what it was reading is not used again.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    contained::contain(read).unwrap_or_else(|_| Err(ParquetError::General("it is damaged".into())))
}

fn refused(path: &Path, error: &ParquetError) -> Error {
    let problems = vec![Problem { name: "the file".into(), kind: ProblemKind::Broken(reason_of(error)) }];
    Error::BadArchive { path: path.into(), problems }
}

fn reason_of(error: &ParquetError) -> String {
    let reason = error.to_string();
    // Of the codecs only the one that published sets use is built in.
    if reason.contains("isabled feature") {
        format!("{reason}; Snappy and no compression are read: write it again with compression=\"snappy\"")
    } else {
        format!("not a parquet that can be read: {reason}")
    }
}

fn fields_of(row: Row) -> Fields {
    Fields(row.into_columns().into_iter().map(|(name, field)| (name, value_of(&field))).collect())
}

fn value_of(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(value) => value.as_str().into(),
        // Older writers leave out that a column of bytes is text.
        Field::Bytes(value) => String::from_utf8_lossy(value.data()).into(),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value_of(field))).collect::<Map<_, _>>())
        }
        Field::ListInternal(list) => list.elements().iter().map(value_of).collect(),
        // Dates and decimals, as text.
        other => other.to_string().trim_matches('"').into(),
    }
}
