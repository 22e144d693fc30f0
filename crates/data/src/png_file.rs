//! PNG files with text inside.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::RgbImage;
use vp_core::{atomic, input_file};

use crate::images::{cut_off, damaged};
use crate::{Error, Result};

/// Writes an 8-bit RGB PNG with text chunks, such as `("parameters", parameters.to_text())`.
///
/// The file appears under its name complete or not at all: it is written beside it under a temporary name, synced and
/// renamed; an existing file is replaced. Text within Latin-1 goes into `tEXt` chunks and other text into `iTXt` ones, as
/// Pillow and so the web UI do.
///
/// # Errors
/// [`Error::BadPngText`] for a key that is not 1 to 79 printable Latin-1 characters without outer or doubled spaces, or
/// for a text with a NUL; [`Error::Write`] when the disk refuses, with nothing left behind.
pub fn write_png<K: AsRef<str>, V: AsRef<str>>(path: impl AsRef<Path>, image: &RgbImage, text: &[(K, V)]) -> Result<()> {
    let path = path.as_ref();
    for (key, text) in text {
        check_text(key.as_ref(), text.as_ref()).map_err(|reason| Error::BadPngText {
            path: path.into(),
            key: key.as_ref().into(),
            reason,
        })?;
    }
    let bytes = encode(image, text).map_err(|error| Error::Write { path: path.into(), error: error.into() })?;
    atomic::write(path, &bytes).map_err(|error| Error::Write { path: path.into(), error })
}

/// An 8-bit RGB PNG without text.
///
/// # Errors
/// When the image has no pixel.
pub fn png_bytes(image: &RgbImage) -> std::io::Result<Vec<u8>> {
    Ok(encode::<&str, &str>(image, &[])?)
}

/// The text chunks of a PNG as (key, text): first the plain ones, then the compressed, then the international.
///
/// # Errors
/// [`Error::Read`] for a missing file, [`Error::BadImage`] for one that is not a PNG or is damaged.
pub fn read_png_text(path: impl AsRef<Path>) -> Result<Vec<(String, String)>> {
    let path = path.as_ref();
    let file = input_file::open_regular(path).map_err(|error| Error::Read { path: path.into(), error })?;
    let text = decode_text(BufReader::new(file));
    text.map_err(|error| {
        let reason = if matches!(error, png::DecodingError::IoError(_)) { cut_off("PNG") } else { damaged("PNG") };
        Error::BadImage { path: path.into(), reason }
    })
}

fn check_text(key: &str, text: &str) -> Result<(), &'static str> {
    let printable = |c: char| matches!(c, ' '..='~' | '\u{a1}'..='\u{ff}');
    if key.is_empty() || key.chars().count() > 79 || !key.chars().all(printable) {
        return Err("a key is 1 to 79 printable Latin-1 characters");
    }
    if key.trim() != key || key.contains("  ") {
        return Err("a key has no space at its ends and no two in a row");
    }
    if text.contains('\0') {
        return Err("the text must not contain a NUL character");
    }
    Ok(())
}

fn encode<K: AsRef<str>, V: AsRef<str>>(image: &RgbImage, text: &[(K, V)]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, text) in text {
        let (key, text) = (key.as_ref().to_owned(), text.as_ref().to_owned());
        if text.chars().all(|c| u32::from(c) <= 0xff) {
            encoder.add_text_chunk(key, text)?;
        } else {
            encoder.add_itxt_chunk(key, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn decode_text(file: BufReader<File>) -> Result<Vec<(String, String)>, png::DecodingError> {
    let mut reader = png::Decoder::new(file).read_info()?;
    // Text may also follow the pixels.
    reader.finish()?;
    let info = reader.info();
    let mut text: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    for chunk in &info.compressed_latin1_text {
        text.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    for chunk in &info.utf8_text {
        text.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::Rgb;

    use super::*;
    use crate::{Parameters, load_image};

    fn picture() -> RgbImage {
        RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 80, y as u8 * 200, 17]))
    }

    const NO_TEXT: [(&str, &str); 0] = [];

    #[test]
    fn pixels_and_text_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let parameters = Parameters::new("a café at dawn", "").with("Steps", 20).with("Seed", 1).with("Size", "3x2").to_text();
        let text = [("parameters", parameters.as_str()), ("prompt", "猫, 油絵"), ("visionprefer", "{\"step\": 3}"), ("Empty", "")];
        write_png(&path, &picture(), &text).unwrap();

        assert_eq!(load_image(&path).unwrap(), picture());
        let read = read_png_text(&path).unwrap();
        assert_eq!(read.len(), 4);
        for (key, text) in text {
            assert!(read.contains(&(key.into(), text.into())), "{key}");
        }
        let bytes = fs::read(&path).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(holds(b"tEXtparameters\0a caf\xe9"), "Latin-1 text in a tEXt chunk");
        assert!(holds("iTXtprompt\0\0\0\0\0猫".as_bytes()), "other text in an uncompressed iTXt chunk");
    }

    #[test]
    fn text_after_the_pixels_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let mut writer = png::Encoder::new(File::create(&path).unwrap(), 1, 1).write_header().unwrap();
        writer.write_image_data(&[7]).unwrap();
        writer.write_text_chunk(&png::text_metadata::ZTXtChunk::new("late", "words")).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_png_text(&path).unwrap(), [("late".to_owned(), "words".to_owned())]);
    }

    #[test]
    fn files_are_replaced_whole_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        write_png(&path, &picture(), &NO_TEXT).unwrap();
        write_png(&path, &RgbImage::new(5, 5), &NO_TEXT).unwrap();
        assert_eq!(load_image(&path).unwrap().dimensions(), (5, 5));

        let taken = dir.path().join("taken.png");
        fs::create_dir(&taken).unwrap();
        assert!(matches!(write_png(&taken, &picture(), &NO_TEXT), Err(Error::Write { .. })));
        assert!(matches!(write_png(dir.path().join("no/where.png"), &picture(), &NO_TEXT), Err(Error::Write { .. })));
        assert!(matches!(write_png("", &picture(), &NO_TEXT), Err(Error::Write { .. })));
        assert!(matches!(write_png(dir.path().join("b.png"), &RgbImage::new(0, 0), &NO_TEXT), Err(Error::Write { .. })));
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.png", "taken.png"]);
    }

    #[test]
    fn keys_and_texts_that_png_cannot_hold_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        for (key, text) in [("", "x"), (&"k".repeat(80), "x"), ("猫", "x"), (" k", "x"), ("a  b", "x"), ("a\nb", "x"), ("k", "a\0b")] {
            let error = write_png(&path, &picture(), &[(key, text)]).unwrap_err();
            assert!(matches!(error, Error::BadPngText { .. }), "{error}");
        }
        assert!(!path.exists());
        write_png(&path, &picture(), &[("k".repeat(79), "x")]).unwrap();
    }

    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        assert!(matches!(read_png_text(&path), Err(Error::Read { .. })));
        fs::write(&path, "no PNG").unwrap();
        assert!(read_png_text(&path).unwrap_err().to_string().contains("a.png"));
        write_png(&path, &picture(), &NO_TEXT).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(read_png_text(&path), Err(Error::BadImage { .. })));
    }
}
