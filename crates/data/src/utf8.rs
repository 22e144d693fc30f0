//! Text files, whole and in UTF-8.

use std::path::Path;

use vp_core::input_file;

use crate::{Error, Result};

/// As [`read_utf8`], for a file that was found in a folder: nobody asked to wait for a pipe there.
pub(crate) fn read_found_utf8(path: &Path) -> Result<String> {
    input_file::expect_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
    read_utf8(path)
}

/// Reads a UTF-8 file and drops its byte order mark, if it has one.
pub(crate) fn read_utf8(path: &Path) -> Result<String> {
    let bytes = input_file::read(path).map_err(|error| Error::Read { path: path.into(), error })?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let (offset, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let line = 1 + bytes[..offset].iter().filter(|&&byte| byte == b'\n').count();
        let hint = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) { ", it looks like UTF-16" } else { "" };
        Error::NotUtf8 { path: path.into(), offset, line, hint }
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}
