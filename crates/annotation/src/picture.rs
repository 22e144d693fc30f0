//! An image file, identified by its content.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{self, FilterType};
use image::{ImageFormat, ImageReader};
use sha2::{Digest, Sha256};
use vp_core::input_file;
use vp_data::{RgbImage, decode_image, is_plain_rgb};

/// How a JPEG begins.
const JPEG: [u8; 2] = [0xff, 0xd8];

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image file that was read, or pixels in the form of one.
#[derive(Debug, Clone)]
pub struct Picture {
    path: PathBuf,
    bytes: Vec<u8>,
    hash: String,
}

impl Picture {
    /// Reads the file; it is not decoded yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> vp_data::Result<Self> {
        let bytes = input_file::read_regular(path).map_err(|error| vp_data::Error::Read { path: path.into(), error })?;
        let hash = hex_digest(&bytes);
        Ok(Self { path: path.into(), bytes, hash })
    }

    /// An image that was drawn, as a PNG; messages call it `name`.
    pub fn of_pixels(pixels: &RgbImage, name: &str) -> Self {
        let bytes = png(pixels);
        let hash = hex_digest(&bytes);
        Self { path: name.into(), bytes, hash }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the file, 64 hexadecimal digits: two files with the same bytes are the same image.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Its pixels.
    ///
    /// # Errors
    /// When the file is not a whole PNG, JPEG, WebP or BMP.
    pub fn pixels(&self) -> vp_data::Result<RgbImage> {
        decode_image(&self.bytes, &self.path)
    }

    /// Width and height in pixels, as the header says; `None` if the header does not.
    pub fn size(&self) -> Option<(u32, u32)> {
        ImageReader::new(Cursor::new(&self.bytes)).with_guessed_format().ok()?.into_dimensions().ok()
    }

    /// `data:image/…;base64,…` of the pixels that every reward sees: the file's own bytes if no server can read them otherwise and no side is
    /// over `max_side` pixels, else a PNG with its longer side of at most `max_side`.
    ///
    /// # Errors
    /// When the file is not a whole image: nobody should be paid for looking at half of one.
    pub(crate) fn data_url(&self, max_side: Option<u32>) -> vp_data::Result<String> {
        let pixels = self.pixels()?;
        let (width, height) = pixels.dimensions();
        let limit = max_side.unwrap_or(u32::MAX);
        if width.max(height) <= limit && is_plain_rgb(&self.bytes) {
            let kind = if self.bytes.starts_with(&JPEG) { "jpeg" } else { "png" };
            return Ok(format!("data:image/{kind};base64,{}", STANDARD.encode(&self.bytes)));
        }
        let (width, height) = fitted(width, height, limit);
        let pixels =
            if pixels.dimensions() == (width, height) { pixels } else { imageops::resize(&pixels, width, height, FilterType::Lanczos3) };
        Ok(format!("data:image/png;base64,{}", STANDARD.encode(png(&pixels))))
    }
}

fn png(pixels: &RgbImage) -> Vec<u8> {
    let mut png = Vec::new();
    pixels.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).expect("8-bit RGB can be written to memory as PNG");
    png
}

/// Width and height scaled down so that neither is over `limit`; proportions are kept.
pub(crate) fn fitted(width: u32, height: u32, limit: u32) -> (u32, u32) {
    let longer = width.max(height);
    if longer <= limit {
        return (width, height);
    }
    let scaled = |side: u32| ((f64::from(side) * f64::from(limit) / f64::from(longer)).round() as u32).max(1);
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn picture(name: &str, width: u32, height: u32) -> (tempfile::TempDir, Picture) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7])).save(&path).unwrap();
        let picture = Picture::read(&path).unwrap();
        (folder, picture)
    }

    #[test]
    fn files_are_sent_as_they_are_or_as_png() {
        let (_folder, png) = picture("a.png", 30, 20);
        assert_eq!(png.data_url(None).unwrap(), format!("data:image/png;base64,{}", STANDARD.encode(&png.bytes)));
        assert_eq!(png.data_url(Some(30)).unwrap(), png.data_url(None).unwrap());
        let (_folder, jpeg) = picture("a.jpg", 30, 20);
        assert!(jpeg.data_url(None).unwrap().starts_with("data:image/jpeg;base64,/9j/"));
        let (_folder, bmp) = picture("a.bmp", 30, 20);
        assert!(bmp.data_url(None).unwrap().starts_with("data:image/png;base64,iVBOR"));
    }

    /// Servers disagree on WebP, alpha and the like; all of them read 8-bit RGB alike.
    #[test]
    fn what_a_server_might_read_otherwise_is_sent_as_pixels() {
        let folder = tempfile::tempdir().unwrap();
        let sent = |name: &str, image: image::DynamicImage| {
            let path = folder.path().join(name);
            image.save(&path).unwrap();
            let url = Picture::read(&path).unwrap().data_url(None).unwrap();
            let png = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
            image::load_from_memory(&png).unwrap()
        };
        let clear = image::RgbaImage::from_pixel(3, 2, image::Rgba([9, 9, 9, 0]));
        let grey = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(3, 2, image::Luma([0x8080]));
        let red = RgbImage::from_pixel(3, 2, image::Rgb([200, 0, 0]));
        for (name, image, level) in
            [("a.png", clear.into(), [255; 3]), ("b.png", grey.into(), [128; 3]), ("c.webp", red.into(), [200, 0, 0])]
        {
            let sent = sent(name, image);
            assert_eq!((sent.color(), sent.to_rgb8().get_pixel(2, 1).0), (image::ColorType::Rgb8, level), "{name}");
        }
    }

    #[test]
    fn a_longer_side_is_shrunk_to_the_limit() {
        let (_folder, picture) = picture("a.png", 30, 20);
        let url = picture.data_url(Some(15)).unwrap();
        let png = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgb8().dimensions(), (15, 10));
        assert_eq!((fitted(3000, 1, 100), picture.size()), ((100, 1), Some((30, 20))));
    }

    #[test]
    fn half_an_image_is_not_sent() {
        let (folder, picture) = picture("a.png", 64, 64);
        let path = folder.path().join("half.png");
        fs::write(&path, &picture.bytes[..picture.bytes.len() / 2]).unwrap();
        assert!(Picture::read(&path).unwrap().data_url(None).unwrap_err().to_string().contains("half.png"));
    }
}
