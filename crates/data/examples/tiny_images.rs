//! Draws `checkpoints/tiny-images`: 50 small captioned pictures to train on offline, and pairs of them of which the brighter is
//! preferred.
//!
//!     cargo run --release -p vp-data --example tiny_images -- checkpoints/tiny-images

use std::path::PathBuf;

use image::Rgb;
use vp_data::{RgbImage, write_png};

const SIDE: u32 = 64;
const COUNT: usize = 50;
const COLORS: [(&str, [u8; 3]); 7] = [
    ("red", [214, 48, 49]),
    ("green", [39, 174, 96]),
    ("blue", [41, 98, 222]),
    ("yellow", [246, 205, 49]),
    ("purple", [142, 68, 173]),
    ("white", [240, 240, 240]),
    ("black", [24, 24, 28]),
];
const SHAPES: [&str; 3] = ["circle", "square", "triangle"];
const SIZES: [(&str, f32); 2] = [("small", 13.0), ("large", 23.0)];

/// Whether the point, relative to the shape's centre, lies in it.
fn inside(shape: &str, radius: f32, x: f32, y: f32) -> bool {
    match shape {
        "circle" => x * x + y * y <= radius * radius,
        "square" => x.abs().max(y.abs()) <= radius * 0.85,
        _ => y <= radius * 0.8 && x.abs() <= (y + radius) * 0.58,
    }
}

fn draw(shape: &str, radius: f32, [x, y]: [f32; 2], color: [u8; 3], ground: [u8; 3]) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |column, row| {
        // The ground is darker below, in steps that compress.
        let shade = 1.0 - 0.4 * (row / 8) as f32 / (SIDE / 8 - 1) as f32;
        let covered = inside(shape, radius, column as f32 - x, row as f32 - y);
        Rgb(if covered { color } else { ground.map(|channel| (f32::from(channel) * shade) as u8) })
    })
}

/// Mean luma (Rec. 601).
fn brightness(image: &RgbImage) -> f32 {
    let luma = |pixel: &Rgb<u8>| pixel.0.iter().zip([0.299, 0.587, 0.114]).map(|(value, weight)| f32::from(*value) * weight).sum::<f32>();
    image.pixels().map(luma).sum::<f32>() / (image.width() * image.height()) as f32
}

/// Pairs of pictures of one shape and size, which come again every 6 pictures: what the prompt says is true of both, the brighter
/// one is chosen.
fn preferences(pictures: &[RgbImage]) -> String {
    let mut list = String::new();
    for (i, j) in (0..COUNT).flat_map(|i| [(i, i + 6), (i, i + 12)]).filter(|(_, j)| *j < COUNT) {
        let (chosen, rejected) = if brightness(&pictures[i]) > brightness(&pictures[j]) { (i, j) } else { (j, i) };
        let (shape, (size, _)) = (SHAPES[i % 3], SIZES[i / 3 % 2]);
        list += &format!("{{\"prompt\": \"a {size} {shape}\", \"chosen\": \"{chosen:02}.png\", \"rejected\": \"{rejected:02}.png\"}}\n");
    }
    list
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("expected a folder")?);
    std::fs::create_dir_all(&folder)?;
    let (mut metadata, mut pictures) = (String::new(), Vec::new());
    for i in 0..COUNT {
        let (shape, (size, radius)) = (SHAPES[i % 3], SIZES[i / 3 % 2]);
        let (color, values) = COLORS[i % COLORS.len()];
        // Never the shape's own color: the step is 1 to 6 of 7.
        let (ground, ground_values) = COLORS[(i + 1 + i / COLORS.len() % 6) % COLORS.len()];
        let center = [24.0 + (i * 5 % 17) as f32, 24.0 + (i * 7 % 17) as f32];
        let name = format!("{i:02}.png");
        let picture = draw(shape, radius, center, values, ground_values);
        write_png::<&str, &str>(folder.join(&name), &picture, &[])?;
        pictures.push(picture);
        metadata += &format!("{{\"file_name\": \"{name}\", \"text\": \"a {size} {color} {shape} on a {ground} ground\"}}\n");
    }
    std::fs::write(folder.join("metadata.jsonl"), metadata)?;
    std::fs::write(folder.join("preferences.jsonl"), preferences(&pictures))?;
    Ok(())
}
