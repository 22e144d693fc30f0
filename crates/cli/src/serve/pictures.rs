//! Images as files, or smaller where a page shows them small.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use vp_core::input_file;
use vp_data::{center_crop_resize, load_image, png_bytes};

use super::Site;
use super::reply::{Asked, Reply};

/// Files up to this many bytes are sent as they are, however small they are shown.
const LIGHT: u64 = 64 << 10;
/// A larger file is not sent.
const HEAVIEST: u64 = 256 << 20;
/// The sides of images that are made smaller.
const SIDES: std::ops::RangeInclusive<usize> = 64..=1024;

/// The image that an address names: `id`, `path`, and the `side` that it is shown at.
pub fn reply(site: &Site, asked: &Asked) -> Reply {
    let found = asked.value("id").zip(asked.value("path")).and_then(|(id, path)| site.places.image(id, path));
    let Some(path) = found else { return Reply::missing() };
    let side = asked.number("side").map(|side| side.clamp(*SIDES.start(), *SIDES.end()));
    image(&path, side, asked.known.as_deref())
}

/// An image, not much larger than `side`.
pub fn image(path: &Path, side: Option<usize>, known: Option<&str>) -> Reply {
    let Ok(found) = fs::metadata(path) else { return Reply::missing() };
    if found.len() > HEAVIEST {
        return Reply::refused(413, "the file is larger than 256 MiB");
    }
    let written = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let side = side.filter(|_| found.len() > LIGHT);
    let version = format!("\"{:x}-{:x}-{}\"", written.as_nanos(), found.len(), side.unwrap_or(0));
    if known == Some(&*version) {
        return Reply::new("image/png", "").versioned(version, known);
    }
    // What cannot be decoded is sent as it is: the browser says so.
    let (kind, bytes) = match side.and_then(|side| smaller(path, side)) {
        Some(bytes) => ("image/png", bytes),
        None => match input_file::read_regular(path) {
            Ok(bytes) => (kind(&bytes), bytes),
            Err(error) => return Reply::refused(500, &format!("cannot read the image: {error}")),
        },
    };
    Reply::new(kind, bytes).versioned(version, known)
}

fn smaller(path: &Path, side: usize) -> Option<Vec<u8>> {
    let image = load_image(path).ok()?;
    let longest = image.width().max(image.height());
    let scale = side as f64 / f64::from(longest);
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    if scale > 0.75 {
        return None;
    }
    png_bytes(&center_crop_resize(&image, scaled(image.width()), scaled(image.height()))).ok()
}

/// By the first bytes: a name may say anything.
fn kind(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_made_smaller_in_their_own_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let image = vp_data::RgbImage::from_fn(400, 200, |x, y| [(x * 7) as u8, (y * 13) as u8, (x * y) as u8].into());
        vp_data::write_png::<&str, &str>(&path, &image, &[]).unwrap();
        let small = smaller(&path, 100).unwrap();
        std::fs::write(dir.path().join("b.png"), small).unwrap();
        assert_eq!(load_image(dir.path().join("b.png")).unwrap().dimensions(), (100, 50));
        assert!(smaller(&path, 400).is_none());
    }

    #[test]
    fn a_page_that_calls_itself_an_image_is_none() {
        assert_eq!(kind(b"<svg onload=alert(1)>"), "application/octet-stream");
        assert_eq!(kind(b"RIFF\x04\0\0\0WEBPVP8 "), "image/webp");
    }
}
