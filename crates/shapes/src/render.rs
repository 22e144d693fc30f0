//! Scenes to pixels.

use image::RgbImage;
use tiny_skia::{Color as Fill, FillRule, Paint, Path, PathBuilder, Pixmap, Stroke, Transform};

use crate::scene::{Object, Scene};
use crate::words::{Rgb, Shape, emblem};

/// Draws a scene, anti-aliased, `side` pixels high and wide.
///
/// # Panics
/// When `side` is 0.
pub fn render(scene: &Scene, side: u32) -> RgbImage {
    let mut pixmap = Pixmap::new(side, side).expect("an image has pixels");
    let [r, g, b] = scene.background.rgb();
    pixmap.fill(Fill::from_rgba8(r, g, b, 255));
    for object in &scene.objects {
        pixmap.fill_path(&outline(object, side as f32), &paint(object.color.rgb()), FillRule::Winding, Transform::identity(), None);
    }
    if let Some(center) = scene.emblem {
        let stroke = Stroke { width: emblem::STROKE * side as f32, ..Stroke::default() };
        pixmap.stroke_path(&diagonals(center, side as f32), &paint(emblem::RGB), &stroke, Transform::identity(), None);
    }
    RgbImage::from_fn(side, side, |x, y| {
        let pixel = pixmap.pixel(x, y).expect("inside the image");
        image::Rgb([pixel.red(), pixel.green(), pixel.blue()])
    })
}

fn paint([r, g, b]: Rgb) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

fn outline(object: &Object, side: f32) -> Path {
    let ([x, y], extent) = (object.center.map(|value| value * side), object.extent * side);
    let mut path = PathBuilder::new();
    if object.shape == Shape::Circle {
        path.push_circle(x, y, extent / 2.0);
    }
    for (i, [dx, dy]) in object.shape.corners().iter().enumerate() {
        let (x, y) = (x + dx * extent, y + dy * extent);
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    if object.shape != Shape::Circle {
        path.close();
    }
    path.finish().expect("an object has an extent")
}

fn diagonals(center: [f32; 2], side: f32) -> Path {
    let ([x, y], reach) = (center.map(|value| value * side), (emblem::EXTENT - emblem::STROKE) / 2.0 * side);
    let mut path = PathBuilder::new();
    for slope in [1.0, -1.0] {
        path.move_to(x - reach, y - slope * reach);
        path.line_to(x + reach, y + slope * reach);
    }
    path.finish().expect("an emblem has an extent")
}
