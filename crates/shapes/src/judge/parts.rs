//! An image's pixels by colour, and the connected parts they form.

use image::RgbImage;

use crate::words::{Background, Color, Rgb, emblem};

/// A colour as numbers that can be computed with, 0 to 255.
pub(super) type Paint = [f32; 3];

/// What a pixel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// The background, or so little of an object that the background is more.
    Nothing,
    /// An object's colour.
    Color(Color),
    /// The emblem's.
    Emblem,
    /// A colour that this world does not have.
    Foreign,
}

/// Pixels of one ink that touch, at a corner at least.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub ink: Ink,
    /// Indices, row by row.
    pub pixels: Vec<usize>,
    /// Some of its pixels have neighbours of the same part on all four sides.
    pub has_core: bool,
}

/// An image with its background.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<Paint>,
    /// The background as it is.
    pub ground: Paint,
    /// Which one that is, if it is clear.
    pub background: Option<Background>,
}

pub(super) fn paint(rgb: Rgb) -> Paint {
    rgb.map(f32::from)
}

pub(super) fn minus(a: Paint, b: Paint) -> Paint {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

pub(super) fn dot(a: Paint, b: Paint) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn distance(a: Paint, b: Paint) -> f32 {
    dot(minus(a, b), minus(a, b)).sqrt()
}

/// The mean of some colours.
pub(super) fn mean(colors: impl Iterator<Item = Paint>) -> Option<Paint> {
    let (sum, count) = colors.fold(([0.0; 3], 0), |([r, g, b], count), color| ([r + color[0], g + color[1], b + color[2]], count + 1));
    (count > 0).then(|| sum.map(|value| value / count as f32))
}

/// A background farther than this from all three is unclear.
const BACKGROUND_LIMIT: f32 = 45.0;
/// The share of the border that a clear background takes up at least.
const BORDER_SHARE: f32 = 0.6;
/// A mixture farther than this from the line between background and colour is not of this colour.
const MIXTURE_LIMIT: f32 = 60.0;

impl Canvas {
    /// Takes the background to be the colour of most of the border.
    pub fn new(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels: Vec<Paint> = image.pixels().map(|pixel| paint(pixel.0)).collect();
        let (ground, background) = ground(&pixels, width, height);
        Self { width, height, pixels, ground, background }
    }

    /// The unit of lengths, in pixels.
    pub fn side(&self) -> f32 {
        self.width.max(self.height).max(1) as f32
    }

    /// How much of `color` is in a pixel that mixes it with the background, and how far the pixel is from any such mixture.
    pub fn share(&self, pixel: Paint, color: Paint) -> (f32, f32) {
        let (away, line) = (minus(pixel, self.ground), minus(color, self.ground));
        let share = (dot(away, line) / dot(line, line).max(1.0)).clamp(0.0, 1.0);
        (share, distance(away, line.map(|value| value * share)))
    }

    fn ink(&self, pixel: Paint, inks: &[(Ink, Paint); 6]) -> Ink {
        let away = distance(pixel, self.ground);
        if away < 30.0 {
            return Ink::Nothing;
        }
        let mut best = (Ink::Foreign, 0.0, f32::INFINITY);
        for (ink, color) in inks {
            let (share, off) = self.share(pixel, *color);
            if off < best.2 {
                best = (*ink, share, off);
            }
        }
        match best {
            (_, share, off) if off <= MIXTURE_LIMIT && share < 0.5 => Ink::Nothing,
            (ink, _, off) if off <= MIXTURE_LIMIT => ink,
            _ if away < 75.0 => Ink::Nothing,
            _ => Ink::Foreign,
        }
    }

    /// Everything that is not background, the largest first.
    pub fn parts(&self) -> Vec<Part> {
        let [red, green, blue, yellow, cyan] = [Color::Red, Color::Green, Color::Blue, Color::Yellow, Color::Cyan];
        let inks = [red, green, blue, yellow, cyan].map(|color| (Ink::Color(color), paint(color.rgb())));
        let inks = [inks[0], inks[1], inks[2], inks[3], inks[4], (Ink::Emblem, paint(emblem::RGB))];
        let inks: Vec<Ink> = self.pixels.iter().map(|pixel| self.ink(*pixel, &inks)).collect();
        let mut is_taken = vec![false; inks.len()];
        let mut parts = Vec::new();
        for start in 0..inks.len() {
            if is_taken[start] || inks[start] == Ink::Nothing {
                continue;
            }
            is_taken[start] = true;
            let mut pixels = vec![start];
            let mut at = 0;
            while at < pixels.len() {
                for next in self.around(pixels[at]) {
                    if !is_taken[next] && inks[next] == inks[start] {
                        is_taken[next] = true;
                        pixels.push(next);
                    }
                }
                at += 1;
            }
            let has_core = pixels.iter().any(|pixel| self.is_inner(*pixel, |other| inks[other] == inks[start]));
            parts.push(Part { ink: inks[start], pixels, has_core });
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.pixels.len()));
        parts
    }

    /// The up to eight neighbours of a pixel.
    pub fn around(&self, pixel: usize) -> impl Iterator<Item = usize> + use<> {
        let (x, y, width, height) = (pixel % self.width, pixel / self.width, self.width, self.height);
        let rows = y.saturating_sub(1)..=(y + 1).min(height - 1);
        rows.flat_map(move |row| (x.saturating_sub(1)..=(x + 1).min(width - 1)).map(move |column| row * width + column))
            .filter(move |other| *other != pixel)
    }

    /// Whether the four neighbours of a pixel are `same`; beyond the image they are.
    pub fn is_inner(&self, pixel: usize, same: impl Fn(usize) -> bool) -> bool {
        let (x, y) = (pixel % self.width, pixel / self.width);
        (x == 0 || same(pixel - 1))
            && (x + 1 == self.width || same(pixel + 1))
            && (y == 0 || same(pixel - self.width))
            && (y + 1 == self.height || same(pixel + self.width))
    }
}

/// The background's colour, and which one it is: the median of the border, then the mean of everything near it.
fn ground(pixels: &[Paint], width: usize, height: usize) -> (Paint, Option<Background>) {
    let is_border = |i: &usize| {
        let (x, y) = (i % width, i / width);
        x == 0 || y == 0 || x + 1 == width || y + 1 == height
    };
    let border: Vec<Paint> = (0..pixels.len()).filter(is_border).map(|i| pixels[i]).collect();
    let Some(median) = median(&border) else { return ([0.0; 3], None) };
    let is_near = |color: &Paint| distance(*color, median) < BACKGROUND_LIMIT;
    let ground = mean(pixels.iter().copied().filter(is_near)).unwrap_or(median);
    let share = border.iter().filter(|color| is_near(color)).count() as f32 / border.len() as f32;
    let nearest = Background::ALL.iter().copied().min_by(|a, b| {
        let [a, b] = [a, b].map(|background| distance(ground, paint(background.rgb())));
        a.total_cmp(&b)
    });
    let is_clear = |background: &Background| share >= BORDER_SHARE && distance(ground, paint(background.rgb())) <= BACKGROUND_LIMIT;
    (ground, nearest.filter(is_clear))
}

/// The median of each channel.
fn median(colors: &[Paint]) -> Option<Paint> {
    if colors.is_empty() {
        return None;
    }
    let channel = |channel: usize| {
        let mut values: Vec<f32> = colors.iter().map(|color| color[channel]).collect();
        let middle = values.len() / 2;
        *values.select_nth_unstable_by(middle, f32::total_cmp).1
    };
    Some([channel(0), channel(1), channel(2)])
}
