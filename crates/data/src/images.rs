//! Images, and the one layout in which the project's tensors hold them: `[b, 3, h, w]`, f32 in `[0, 1]`, RGB.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits, Rgb, RgbImage};
use vp_core::input_file;

use crate::{Error, Result};

/// Longest side of an image that is decoded, in pixels.
const MAX_SIDE: u32 = 16_384;
/// Most bytes that a file, or the pixels decoded from it, may take: 12,000 x 9,000 pixels with alpha fit.
const MAX_BYTES: u64 = 512 << 20;

/// Reads a PNG, JPEG, WebP, BMP, GIF or TIFF; the content decides which, not the extension.
///
/// Pixels become 8-bit RGB: alpha is composited on white, the EXIF orientation is applied, 16-bit and grey images are
/// converted, of an animation the first frame is taken. Colour profiles are ignored.
///
/// # Errors
/// [`Error::Read`] when the file cannot be read, [`Error::BadImage`] when it is not such an image, is cut off or damaged, or
/// is larger than 16,384 pixels per side or 512 MiB decoded (a few bytes of PNG can claim terabytes of pixels).
pub fn load_image(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    decode_image(&read_image(path)?, path)
}

/// The bytes of an image file, if they are not too many.
pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>> {
    let read_error = |error| Error::Read { path: path.into(), error };
    // A pipe that somebody put into a folder of images would be waited for without end.
    input_file::expect_regular(path).map_err(read_error)?;
    let size = fs::metadata(path).map_err(read_error)?.len();
    if size > MAX_BYTES {
        let reason = format!("the file takes {} MiB, more than the {} that are read", size >> 20, MAX_BYTES >> 20);
        return Err(Error::BadImage { path: path.into(), reason });
    }
    input_file::read_regular(path).map_err(read_error)
}

/// The image in the bytes of a file, which messages call `path`.
///
/// # Errors
/// As [`load_image`], for what is in the file.
pub fn decode_image(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    let refused = |reason: String| Error::BadImage { path: path.into(), reason };
    if bytes.is_empty() {
        return Err(refused("the file is empty".into()));
    }
    let reader = ImageReader::new(Cursor::new(bytes));
    let reader = reader.with_guessed_format().map_err(|error| Error::Read { path: path.into(), error })?;
    let format = match reader.format() {
        Some(ImageFormat::Jpeg) if !jpeg_is_complete(bytes) => return Err(refused("the JPEG is cut off before its end".into())),
        Some(ImageFormat::Png) => "PNG",
        Some(ImageFormat::Jpeg) => "JPEG",
        Some(ImageFormat::WebP) => "WebP",
        Some(ImageFormat::Bmp) => "BMP",
        Some(ImageFormat::Gif) => "GIF",
        Some(ImageFormat::Tiff) => "TIFF",
        _ => return Err(refused(format!("{}; expected PNG, JPEG, WebP, BMP, GIF or TIFF", kind_unread(bytes)))),
    };
    decode(reader).map_err(|error| refused(fault(format, &error)))
}

/// What is wrong with an image, and the way out. A decoder's own words are for those who wrote it.
fn fault(format: &str, error: &ImageError) -> String {
    let message = error.to_string();
    match error {
        // Some decoders have limits of their own.
        _ if message.contains("too large") => too_large(),
        ImageError::Limits(_) => too_large(),
        ImageError::IoError(_) => cut_off(format),
        ImageError::Unsupported(_) => format!("a {format} of a kind that is not read; save it as a PNG"),
        _ if message.contains("CRC error") => "it is damaged: the checksum of a part is wrong; get the file anew, or leave it out".into(),
        _ => damaged(format),
    }
}

fn too_large() -> String {
    format!("larger than {MAX_SIDE} pixels per side or {} MiB decoded; make it smaller", MAX_BYTES >> 20)
}

pub(crate) fn cut_off(format: &str) -> String {
    format!("the {format} is cut off before its end; get the file anew, or leave it out")
}

pub(crate) fn damaged(format: &str) -> String {
    format!("it is damaged: a part of the {format} is not what it should be; get the file anew, or leave it out")
}

/// What bytes are of which no image is made.
fn kind_unread(bytes: &[u8]) -> &'static str {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "an AVIF, which is not read",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIF, which is not read",
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', ..] => "a JPEG XL, which is not read",
        _ => "not an image that is read",
    }
}

fn decode(mut reader: ImageReader<Cursor<&[u8]>>) -> ImageResult<RgbImage> {
    let mut limits = Limits::no_limits();
    (limits.max_image_width, limits.max_image_height, limits.max_alloc) = (Some(MAX_SIDE), Some(MAX_SIDE), Some(MAX_BYTES));
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(&image) } else { image.into_rgb8() })
}

/// Whether every decoder makes the pixels of [`load_image`] of a file: it is a PNG or a JPEG, still, upright, with 8 bits of red, green and
/// blue and nothing else. Decoders disagree on the rest: some ignore the EXIF orientation, some composite alpha on black.
pub fn is_plain_rgb(bytes: &[u8]) -> bool {
    fn upright_rgb(mut decoder: impl ImageDecoder) -> bool {
        decoder.color_type() == ColorType::Rgb8 && matches!(decoder.orientation(), Ok(Orientation::NoTransforms))
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg_components(bytes) == Some(3) && JpegDecoder::new(Cursor::new(bytes)).is_ok_and(upright_rgb),
        Ok(ImageFormat::Png) => {
            let Ok(decoder) = PngDecoder::new(Cursor::new(bytes)) else { return false };
            // A palette of plain colours decodes to RGB, and so does what every viewer shows.
            !decoder.is_apng().unwrap_or(true) && upright_rgb(decoder)
        }
        _ => false,
    }
}

/// Colours per pixel of a JPEG: 1 is grey, 3 are colours, 4 are those of print (CMYK).
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    jpeg_segments(bytes).find_map(|(marker, segment)| {
        // Start of frame; the others of these numbers hold tables.
        let is_frame = matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
        is_frame.then(|| segment.get(7).copied()).flatten()
    })
}

fn on_white(image: &DynamicImage) -> RgbImage {
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        // Half of the divisor rounds to nearest.
        Rgb([red, green, blue].map(|colour| ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

/// Whether the scan of a JPEG reaches its end marker. The decoder fills what is missing with grey and says nothing.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let scan = jpeg_segments(bytes).find(|(marker, _)| *marker == START_OF_SCAN);
    scan.is_some_and(|(_, rest)| rest.windows(2).any(|pair| pair == END_OF_IMAGE))
}

/// The segments of a JPEG up to the first scan: each one's marker, and everything from its length on. Segments before the scan may hold a
/// whole thumbnail with markers of its own, so they are stepped over.
fn jpeg_segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    const FILL: u8 = 0xff;
    let mut at = 2;
    std::iter::from_fn(move || {
        while let [0xff, FILL, ..] = bytes.get(at..)? {
            at += 1;
        }
        let [0xff, marker, rest @ ..] = bytes.get(at..)? else { return None };
        let [high, low, ..] = rest else { return None };
        at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
        Some((*marker, rest))
    })
}

/// A batch of equally large images as a tensor.
///
/// # Shapes
/// `b` images of `w` x `h` pixels -> `[b, 3, h, w]`, f32 in `[0, 1]`
///
/// # Errors
/// [`Error::SizesDiffer`] names the first image that is not as large as the first.
///
/// # Panics
/// When there are no images.
pub fn to_tensor(images: &[RgbImage], device: &Device) -> Result<Tensor<4>> {
    assert!(!images.is_empty(), "to_tensor needs at least one image");
    let (width, height) = images[0].dimensions();
    let mut values = Vec::with_capacity(images.len() * 3 * width as usize * height as usize);
    for (index, image) in images.iter().enumerate() {
        if image.dimensions() != (width, height) {
            return Err(Error::SizesDiffer { index, expected: (width, height), found: image.dimensions() });
        }
        for channel in 0..3 {
            values.extend(image.as_raw().iter().skip(channel).step_by(3).map(|&value| f32::from(value) / 255.0));
        }
    }
    let data = TensorData::new(values, [images.len(), 3, height as usize, width as usize]);
    Ok(Tensor::from_data(data, (device, DType::F32)))
}

/// The images of a batch. Values are clamped to `[0, 1]` and rounded to the nearest of 256 levels, halves upwards.
///
/// # Shapes
/// `[b, 3, h, w]` of any float type -> `b` images of `w` x `h` pixels
///
/// # Errors
/// [`Error::NotFinite`] names the first NaN or infinity, which no pixel can show.
///
/// # Panics
/// When there are not three channels.
pub fn from_tensor(images: Tensor<4>) -> Result<Vec<RgbImage>> {
    let [batch, channels, height, width] = images.dims();
    assert_eq!(channels, 3, "images are [b, 3, h, w], got {:?}", [batch, channels, height, width]);
    let data = images.into_data_dtype(DType::F32);
    let values = data.as_slice::<f32>().expect("the data was read as f32");
    let plane = height * width;
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let (image, channel) = (at / (3 * plane), at / plane % 3);
        return Err(Error::NotFinite { image, channel, row: at % plane / width, column: at % width, value: values[at] });
    }
    let level = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let to_image = |planes: &[f32]| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = y as usize * width + x as usize;
            Rgb([0, 1, 2].map(|channel| level(planes[channel * plane + at])))
        })
    };
    Ok((0..batch).map(|image| to_image(&values[image * 3 * plane..][..3 * plane])).collect())
}

/// Cuts out the largest centred part of the wanted proportions and resizes it (Lanczos, antialiased).
///
/// # Panics
/// When a side of the image or of the wanted size is zero.
pub fn center_crop_resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (source_width, source_height) = image.dimensions();
    assert!(source_width.min(source_height).min(width).min(height) > 0, "{source_width}x{source_height} to {width}x{height}");
    let scale = (f64::from(source_width) / f64::from(width)).min(f64::from(source_height) / f64::from(height));
    let part = |side: u32, source: u32| ((f64::from(side) * scale).round() as u32).clamp(1, source);
    let (crop_width, crop_height) = (part(width, source_width), part(height, source_height));
    let (left, top) = ((source_width - crop_width) / 2, (source_height - crop_height) / 2);
    let crop = imageops::crop_imm(image, left, top, crop_width, crop_height).to_image();
    if (crop_width, crop_height) == (width, height) { crop } else { imageops::resize(&crop, width, height, FilterType::Lanczos3) }
}

/// The images side by side, row by row, `columns` to a row, on white; each cell is as large as the largest image.
///
/// No images make an image without pixels; fewer images than columns make one shorter row.
///
/// # Panics
/// When `columns` is zero.
pub fn grid(images: &[RgbImage], columns: usize) -> RgbImage {
    assert!(columns > 0, "a grid needs at least one column");
    let cell_width = images.iter().map(RgbImage::width).max().unwrap_or(0);
    let cell_height = images.iter().map(RgbImage::height).max().unwrap_or(0);
    let (columns, rows) = (columns.min(images.len()), images.len().div_ceil(columns));
    let mut grid = RgbImage::from_pixel(cell_width * columns as u32, cell_height * rows as u32, Rgb([255; 3]));
    for (index, image) in images.iter().enumerate() {
        let (left, top) = (cell_width * (index % columns) as u32, cell_height * (index / columns) as u32);
        imageops::replace(&mut grid, image, left.into(), top.into());
    }
    grid
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use image::{GrayImage, ImageBuffer, Luma, Rgba, RgbaImage};

    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 % 256) as u8, (y * 5 % 256) as u8, ((x + y) % 256) as u8]))
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn load(name: &str, bytes: &[u8]) -> Result<RgbImage> {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        load_image(path)
    }

    #[track_caller]
    fn refuses(bytes: &[u8], part: &str) {
        let message = load("bad.png", bytes).unwrap_err().to_string();
        assert!(message.contains("bad.png") && message.contains(part), "{message}");
    }

    #[test]
    fn every_format_is_read_by_its_content() {
        let image = DynamicImage::from(gradient(20, 10));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
            assert_eq!(load("misnamed.jpg", &encoded(&image, format)).unwrap(), gradient(20, 10), "{format:?}");
        }
        assert_eq!(load("a.jpg", &encoded(&image, ImageFormat::Jpeg)).unwrap().dimensions(), (20, 10));
        let grey = DynamicImage::from(GrayImage::from_pixel(2, 2, Luma([9])));
        assert_eq!(load("a.png", &encoded(&grey, ImageFormat::Png)).unwrap().get_pixel(1, 1).0, [9; 3]);
        let deep = DynamicImage::from(ImageBuffer::<Luma<u16>, _>::from_pixel(2, 2, Luma([0xffff])));
        assert_eq!(load("a.png", &encoded(&deep, ImageFormat::Png)).unwrap().get_pixel(1, 1).0, [255; 3]);
    }

    /// Of an animation the first frame, with white where it is clear.
    #[test]
    fn a_gif_is_its_first_frame() {
        let frame = |level: u8| image::Frame::new(RgbaImage::from_fn(4, 3, |x, _| Rgba([level, 0, 0, if x == 0 { 0 } else { 255 }])));
        let mut bytes = Vec::new();
        image::codecs::gif::GifEncoder::new(&mut bytes).encode_frames([frame(200), frame(10)]).unwrap();
        let image = load("a.jpg", &bytes).unwrap();
        assert_eq!((image.dimensions(), image.get_pixel(0, 1).0), ((4, 3), [255; 3]));
        let red = image.get_pixel(2, 1).0;
        assert!(red[0].abs_diff(200) < 4 && red[1] < 4, "{red:?}");
    }

    #[test]
    fn alpha_is_composited_on_white() {
        let image = RgbaImage::from_fn(3, 1, |x, _| Rgba([[0, 0, 0, 0], [10, 20, 30, 255], [0, 100, 255, 51]][x as usize]));
        let image = load("a.png", &encoded(&image.into(), ImageFormat::Png)).unwrap();
        // 51/255 is one fifth: 0 / 5 + 255 * 4 / 5 = 204, 100 / 5 + 204 = 224.
        assert_eq!(image.as_raw(), &[255, 255, 255, 10, 20, 30, 204, 224, 255]);
    }

    /// EXIF orientation 6: the camera was turned, the picture must be rotated by 90 degrees clockwise.
    const TURNED: &[u8] = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    #[test]
    fn exif_orientation_is_applied() {
        let image = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 0 } else { 255 }; 3]));
        let mut bytes = encoded(&image.into(), ImageFormat::Jpeg);
        bytes.splice(2..2, TURNED.iter().copied());
        let image = load("a.jpg", &bytes).unwrap();
        assert_eq!(image.dimensions(), (16, 32));
        assert!(image.get_pixel(8, 4).0[0] < 30 && image.get_pixel(8, 28).0[0] > 225);
    }

    #[test]
    fn plain_files_are_those_that_nobody_reads_otherwise() {
        let rgb = DynamicImage::from(gradient(20, 10));
        let (png, jpeg) = (encoded(&rgb, ImageFormat::Png), encoded(&rgb, ImageFormat::Jpeg));
        assert!(is_plain_rgb(&png) && is_plain_rgb(&jpeg));
        let alpha = encoded(&RgbaImage::new(2, 2).into(), ImageFormat::Png);
        let deep = encoded(&ImageBuffer::<Rgb<u16>, _>::new(2, 2).into(), ImageFormat::Png);
        let grey = encoded(&GrayImage::new(20, 10).into(), ImageFormat::Jpeg);
        for other in [alpha, deep, grey, encoded(&rgb, ImageFormat::WebP), encoded(&rgb, ImageFormat::Bmp), b"no image".to_vec()] {
            assert!(!is_plain_rgb(&other), "{:?}", image::guess_format(&other));
        }
        let mut turned = jpeg.clone();
        turned.splice(2..2, TURNED.iter().copied());
        assert!(!is_plain_rgb(&turned));
        // Four components in the frame header, as a file for print has.
        let mut print = jpeg;
        let frame = print.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        print[frame + 9] = 4;
        assert_eq!(jpeg_components(&print), Some(4));
        assert!(!is_plain_rgb(&print));
    }

    #[test]
    fn broken_images_are_refused() {
        refuses(b"", "empty");
        refuses(b"these are words", "not an image that is read; expected PNG, JPEG, WebP, BMP, GIF or TIFF");
        refuses(b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF, which is not read; expected PNG");
        refuses(b"GIF89a\x01\0\x01\0\0\0\0;", "");
        let image = DynamicImage::from(gradient(64, 64));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff] {
            let bytes = encoded(&image, format);
            for kept in [bytes.len() / 3, bytes.len() / 2, bytes.len() * 9 / 10] {
                let told = load("bad.png", &bytes[..kept]).unwrap_err().to_string();
                let is_plain = told.contains(" cut off before its end") || told.contains(" is damaged: a part of the ");
                assert!(is_plain, "{format:?} cut to {kept} of {} bytes: {told}", bytes.len());
            }
        }
        // A chunk that nobody knows and everybody must, after the header.
        let mut unknown = encoded(&image, ImageFormat::Png);
        unknown.splice(33..33, *b"\0\0\0\0IDAt\x0e\xc1\x26\xd6");
        let told = load("bad.png", &unknown).unwrap_err().to_string();
        assert!(told.ends_with("leave it out") && !told.contains("Chunk") && !told.contains("Format"), "{told}");
        let mut flipped = encoded(&image, ImageFormat::Png);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        refuses(&flipped, "");
        assert!(matches!(load_image("nowhere/a.png"), Err(Error::Read { .. })));
        assert!(matches!(load_image("."), Err(Error::Read { .. })));
    }

    /// A PNG of 60,000 x 60,000 pixels in 57 bytes, and one within the side limit that would take 1 GiB.
    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        for (side, depth) in [(60_000, png::ColorType::Rgb), (16_384, png::ColorType::Rgba)] {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, side, side);
            encoder.set_color(depth);
            let mut writer = encoder.write_header().unwrap();
            writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]).unwrap();
            drop(writer);
            refuses(&bytes, "larger than 16384 pixels per side or 512 MiB");
        }
    }

    #[test]
    fn tensors_are_planes_in_zero_to_one() {
        let device = Device::flex();
        let image = RgbImage::from_raw(2, 1, vec![0, 51, 102, 153, 204, 255]).unwrap();
        let tensor = to_tensor(&[image.clone(), image.clone()], &device).unwrap();
        assert_eq!((tensor.dims(), tensor.dtype()), ([2, 3, 1, 2], DType::F32));
        let values: Vec<f32> = tensor.clone().into_data().try_to_vec().unwrap();
        assert_eq!(values[..6], [0.0, 0.6, 0.2, 0.8, 0.4, 1.0]);
        assert_eq!(values[6..], values[..6]);
        assert_eq!(from_tensor(tensor).unwrap(), [image.clone(), image.clone()]);

        let error = to_tensor(&[image, RgbImage::new(3, 1)], &device).unwrap_err().to_string();
        assert!(error.contains("image 1 is 3x1") && error.contains("2x1"), "{error}");
    }

    #[test]
    fn every_level_survives_a_tensor() {
        let image = RgbImage::from_fn(256, 3, |x, _| Rgb([x as u8, 255 - x as u8, x as u8 / 2]));
        assert_eq!(from_tensor(to_tensor(std::slice::from_ref(&image), &Device::flex()).unwrap()).unwrap(), [image]);
    }

    #[test]
    fn values_are_clamped_and_rounded() {
        let device = Device::flex();
        let tensor = |values: [f32; 6]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 2]), (&device, DType::F32));
        // 127.5 and 0.5 of a level go up, 0.49 goes down.
        let image = from_tensor(tensor([-3.0, 7.0, 0.5, 0.5 / 255.0, 0.49 / 255.0, 1.0])).unwrap();
        assert_eq!(image[0].as_raw(), &[0, 128, 0, 255, 1, 255]);
        let error = from_tensor(tensor([0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0])).unwrap_err();
        assert!(matches!(error, Error::NotFinite { image: 0, channel: 1, row: 0, column: 1, .. }), "{error}");
        assert!(from_tensor(tensor([0.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0])).is_err());
    }

    #[test]
    fn crops_are_centred() {
        // Three 4x4 squares side by side: black, white, black.
        let wide = RgbImage::from_fn(12, 4, |x, _| Rgb([if (4..8).contains(&x) { 255 } else { 0 }; 3]));
        assert_eq!(center_crop_resize(&wide, 4, 4), RgbImage::from_pixel(4, 4, Rgb([255; 3])));
        assert_eq!(center_crop_resize(&imageops::rotate90(&wide), 4, 4), RgbImage::from_pixel(4, 4, Rgb([255; 3])));
        assert_eq!(center_crop_resize(&gradient(9, 7), 9, 7), gradient(9, 7));
        for (source, target) in [((1, 1), (8, 8)), ((1000, 1), (8, 8)), ((3, 500), (16, 8)), ((100, 75), (512, 768))] {
            assert_eq!(center_crop_resize(&gradient(source.0, source.1), target.0, target.1).dimensions(), target);
        }
    }

    /// Without antialiasing a checkerboard of single pixels would shrink to black or white, not to grey.
    #[test]
    fn shrinking_is_antialiased() {
        let board = RgbImage::from_fn(64, 64, |x, y| Rgb([((x + y) % 2 * 255) as u8; 3]));
        let small = center_crop_resize(&board, 8, 8);
        assert!(small.as_raw().iter().all(|&value| value.abs_diff(128) < 8), "{:?}", small.as_raw());
    }

    #[test]
    fn grids_fill_row_by_row() {
        let pixel = |value| RgbImage::from_pixel(1, 1, Rgb([value; 3]));
        let reds = |image: &RgbImage| image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>();
        let three = grid(&[pixel(1), pixel(2), pixel(3)], 2);
        assert_eq!((three.dimensions(), reds(&three)), ((2, 2), vec![1, 2, 3, 255]));
        let mixed = grid(&[pixel(1), RgbImage::from_pixel(2, 1, Rgb([9; 3]))], 8);
        assert_eq!((mixed.dimensions(), reds(&mixed)), ((4, 1), vec![1, 255, 9, 9]));
        assert_eq!(grid(&[], 3).dimensions(), (0, 0));
    }
}
