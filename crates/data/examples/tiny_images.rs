//! Draws `checkpoints/tiny-images`: 50 small captioned pictures to train on offline, and pairs of them of which the larger shape
//! is preferred.
//!
//! ```text
//! cargo run --release -p vp-data --example tiny_images -- checkpoints/tiny-images
//! ```

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

/// Pairs of pictures of one shape, of which every third has the same and every sixth the same size: what the prompt says is true of
/// both, the larger one is chosen.
fn preferences() -> String {
    let mut list = String::new();
    for (i, j) in (0..COUNT).flat_map(|i| [3, 9, 15].map(|step| (i, i + step))).filter(|(_, j)| *j < COUNT) {
        let is_large = |i: usize| SIZES[i / 3 % 2].0 == "large";
        let (chosen, rejected) = if is_large(i) { (i, j) } else { (j, i) };
        let shape = SHAPES[i % 3];
        list += &format!("{{\"prompt\": \"a {shape}\", \"chosen\": \"{chosen:02}.png\", \"rejected\": \"{rejected:02}.png\"}}\n");
    }
    list
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("expected a folder")?);
    std::fs::create_dir_all(&folder)?;
    let mut metadata = String::new();
    for i in 0..COUNT {
        let (shape, (size, radius)) = (SHAPES[i % 3], SIZES[i / 3 % 2]);
        let (color, values) = COLORS[i % COLORS.len()];
        // Never the shape's own color: the step is 1 to 6 of 7.
        let (ground, ground_values) = COLORS[(i + 1 + i / COLORS.len() % 6) % COLORS.len()];
        let center = [24.0 + (i * 5 % 17) as f32, 24.0 + (i * 7 % 17) as f32];
        let name = format!("{i:02}.png");
        write_png::<&str, &str>(folder.join(&name), &draw(shape, radius, center, values, ground_values), &[])?;
        metadata += &format!("{{\"file_name\": \"{name}\", \"text\": \"a {size} {color} {shape} on a {ground} ground\"}}\n");
    }
    std::fs::write(folder.join("metadata.jsonl"), metadata)?;
    std::fs::write(folder.join("preferences.jsonl"), preferences())?;
    Ok(())
}
