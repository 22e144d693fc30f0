//! What is nearly a thing of this world is not taken for one.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vp_shapes::judge::{Sight, see};
use vp_shapes::words::{Background, Color, Shape, Size};

/// Whether a place is inside, in units of the extent, the centre at (0, 0) and y down.
type Figure = fn(f32, f32) -> bool;

fn disc(x: f32, y: f32) -> bool {
    x.hypot(y) < 0.5
}

fn square(x: f32, y: f32) -> bool {
    x.abs().max(y.abs()) < 0.45
}

fn triangle(x: f32, y: f32) -> bool {
    y < 0.4 && x.abs() < (y + 0.5) / 1.8
}

fn cross(x: f32, y: f32) -> bool {
    x.abs().max(y.abs()) < 0.5 && x.abs().min(y.abs()) < 0.17
}

/// A figure, anti-aliased.
fn draw(figure: Figure, center: [f32; 2], extent: f32, side: u32, ground: Rgb<u8>, color: Rgb<u8>) -> RgbImage {
    const FINE: u32 = 5;
    RgbImage::from_fn(side, side, |x, y| {
        let place = |at: u32, i: u32| (at as f32 + (i as f32 + 0.5) / FINE as f32) / side as f32;
        let is_inside = |i: &u32| figure((place(x, i % FINE) - center[0]) / extent, (place(y, i / FINE) - center[1]) / extent);
        let share = (0..FINE * FINE).filter(is_inside).count() as f32 / (FINE * FINE) as f32;
        let mix = |channel: usize| f32::from(ground[channel]) * (1.0 - share) + f32::from(color[channel]) * share;
        Rgb([mix(0), mix(1), mix(2)].map(|value| value.round() as u8))
    })
}

/// A figure of either size, anywhere near the middle, in any colours.
fn sight(figure: Figure, rng: &mut impl Rng) -> Sight {
    let center = [0.5 + 0.05 * rng.random::<f32>(), 0.5 + 0.05 * rng.random::<f32>()];
    let size = Size::ALL[rng.random_range(0..2)];
    let (ground, color) = (Background::ALL[rng.random_range(0..3)], Color::ALL[rng.random_range(0..5)]);
    let side = [32, 48, 64][rng.random_range(0..3)];
    see(&draw(figure, center, size.extent(), side, Rgb(ground.rgb()), Rgb(color.rgb())))
}

#[test]
fn the_four_shapes_are_clear() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (shape, figure) in Shape::ALL.iter().zip([disc, square, triangle, cross] as [Figure; 4]) {
        for _ in 0..50 {
            let seen = sight(figure, &mut rng).objects;
            assert_eq!(seen.iter().map(|object| object.shape).collect::<Vec<_>>(), [Some(*shape)], "{seen:?}");
        }
    }
}

#[test]
fn other_shapes_are_unclear() {
    let figures: [(&str, Figure); 14] = [
        ("an ellipse", |x, y| disc(x / 1.18, y * 1.18)),
        ("an oblique ellipse", |x, y| disc((x + y) / 1.41 / 1.18, (x - y) / 1.41 * 1.18)),
        ("a rectangle", |x, y| square(x / 1.18, y * 1.18)),
        ("a square with round corners", |x, y| (x.abs() - 0.18).max(0.0).hypot((y.abs() - 0.18).max(0.0)) < 0.27),
        ("a turned square", |x, y| square(0.94 * x + 0.34 * y, 0.94 * y - 0.34 * x)),
        ("a square on its tip", |x, y| x.abs() + y.abs() < 0.5),
        ("a triangle upside down", |x, y| triangle(x, -y)),
        ("a diagonal cross", |x, y| cross((x + y) / 1.41, (x - y) / 1.41)),
        ("a half disc", |x, y| disc(x, y) && y > 0.0),
        ("a disc without a quarter", |x, y| disc(x, y) && !(x > 0.0 && y > 0.0)),
        ("a ring", |x, y| disc(x, y) && !disc(x * 2.5, y * 2.5)),
        ("a cross without an arm", |x, y| cross(x, y) && x < 0.17),
        ("a T", |x, y| cross(x, y) && y > -0.17 || y.abs() < 0.5 && y < -0.17 && x.abs() < 0.5),
        ("two discs that touch", |x, y| disc(2.0 * x - 0.48, 2.0 * y) || disc(2.0 * x + 0.48, 2.0 * y)),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (name, figure) in figures {
        let taken = (0..60).filter(|_| sight(figure, &mut rng).objects.iter().any(|object| object.shape.is_some())).count();
        assert!(taken <= 1, "{name} is taken for a shape in {taken} of 60 images");
    }
}

#[test]
fn other_colors_sizes_and_backgrounds_are_unclear() {
    let white = Rgb(Background::White.rgb());
    let of_color = |color| see(&draw(disc, [0.5; 2], 0.4, 32, white, Rgb(color))).objects[0].color;
    assert_eq!(
        [[220, 40, 40], [245, 130, 40], [120, 40, 160], [20, 20, 20], [150, 150, 150]].map(of_color),
        [Some(Color::Red), None, None, None, None]
    );
    let of_extent = |extent| see(&draw(disc, [0.5; 2], extent, 32, white, Rgb(Color::Red.rgb()))).objects[0].size;
    let sizes = [0.14, 0.24, 0.28, 0.36, 0.42, 0.65].map(of_extent);
    assert_eq!(sizes, [None, Some(Size::Small), Some(Size::Small), Some(Size::Large), Some(Size::Large), None]);
    let of_ground = |ground| see(&draw(disc, [0.5; 2], 0.4, 32, Rgb(ground), Rgb(Color::Red.rgb()))).background;
    let grounds = [[235; 3], [140, 160, 150], [30; 3], [200; 3], [80; 3], [40, 165, 70]].map(of_ground);
    assert_eq!(grounds, [Some(Background::White), Some(Background::Gray), Some(Background::Black), None, None, None]);
}

#[test]
fn half_a_background_is_none() {
    let mut image = RgbImage::from_pixel(32, 32, Rgb(Background::White.rgb()));
    for (_, y, pixel) in image.enumerate_pixels_mut() {
        if y >= 16 {
            *pixel = Rgb(Background::Black.rgb());
        }
    }
    let sight = see(&image);
    assert_eq!(sight.background, None);
    assert_eq!(sight.objects.iter().map(|object| object.shape).collect::<Vec<_>>(), [None]);
}
