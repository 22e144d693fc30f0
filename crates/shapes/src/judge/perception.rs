//! Pixels to objects: what is seen, with a clear "unclear" where it is not one of this world's things.

use image::RgbImage;

use super::outline::{Fit, Matte, Outline, emblem_area};
use super::parts::{Canvas, Ink, Paint, Part, distance, mean, minus, paint};
use crate::words::{Background, Color, Shape, Size};

/// Something on the background. `None` is what is unclear. Lengths are in image sides, y down.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What it is: the outline that fits best, if it fits well and no other does nearly as well.
    pub shape: Option<Shape>,
    pub color: Option<Color>,
    /// How large, if near enough to one of the two.
    pub size: Option<Size>,
    /// `[x, y]`.
    pub center: [f32; 2],
    /// From edge to edge.
    pub extent: f32,
    /// In squared image sides.
    pub area: f32,
    /// Its mean colour, away from its edges; 0 to 255.
    pub rgb: [f32; 3],
    /// The squared difference between the object and the best outline, summed over pixels and divided by the object's area.
    pub misfit: f32,
    /// The same error divided by the second-best outline's: near 1 if either could be meant.
    pub doubt: f32,
    /// Over how many pixels its edges go from nothing to everything; about 1 if they are sharp.
    pub softness: f32,
    /// The length along which it touches other things, in image sides; in this world nothing touches.
    pub contact: f32,
}

/// Magenta.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenEmblem {
    /// Its area divided by a whole emblem's.
    pub share: f32,
    /// `[x, y]`, in image sides, y down.
    pub center: [f32; 2],
}

/// All that is seen in an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sight {
    /// The background, if it is clear.
    pub background: Option<Background>,
    /// Its colour as it is, 0 to 255.
    pub ground: [f32; 3],
    /// Everything large enough for an object, clear or not; the largest first.
    pub objects: Vec<Seen>,
    /// The forbidden emblem, or what of it there is.
    pub emblem: Option<SeenEmblem>,
    /// The standard deviation of the noise, 0 to 1: 1.48 times the median difference between the image and its flat redrawing.
    pub noise: f32,
    /// How much wider the objects' edges are than a pixel, in image sides; the mean, weighted by area.
    pub blur: f32,
    /// How much of the image the redrawing does not explain, noise apart: `e / (e + a)`, `e` in pixels, `a` the area of the
    /// objects that are [whole](Seen::fault). 0 to 1.
    pub unexplained: f32,
    /// The mean [fault](Seen::fault) of the objects, crumbs being objects of fault 1 and of little weight; 1 if there are no objects.
    pub broken: f32,
}

/// The least area of an object in squared image sides: about a third of a small triangle's.
const LEAST_AREA: f32 = 0.010;
/// What the area of whole objects counts as at least when the unexplained is compared with it, in squared image sides.
const LEAST_WHOLE: f32 = 0.05;
/// The most objects that are looked at closely.
const MOST_SEEN: usize = 8;
/// The largest misfit of a clear shape.
const MISFIT_LIMIT: f32 = 0.03;
/// The largest doubt about a clear shape.
const DOUBT_LIMIT: f32 = 0.55;
/// The widest ramp of a clear shape in image sides, and 1.5 pixels more.
const RAMP_LIMIT: f32 = 0.06;
/// A colour farther than this from all five is unclear.
const COLOR_LIMIT: f32 = 60.0;
/// A colour error of this length is a pixel unexplained.
const WHOLE_ERROR: f32 = 150.0;

/// Who a pixel belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Object(usize),
    Emblem,
}

/// Looks at an image.
pub fn see(image: &RgbImage) -> Sight {
    let canvas = Canvas::new(image);
    let parts = canvas.parts();
    let (objects, owners, crumbs) = owners(&canvas, &parts);
    let fits: Vec<(Seen, Fit)> = objects.iter().enumerate().map(|(k, part)| look_at(&canvas, part, k, &owners)).collect();
    let emblem = find_emblem(&canvas, &owners);
    let mut layers: Vec<(Paint, Fit)> = fits.iter().map(|(seen, fit)| (seen.rgb, *fit)).collect();
    if emblem.is_some() {
        layers.extend(fit_emblem(&canvas, &owners));
    }
    let objects: Vec<Seen> = fits.into_iter().map(|(seen, _)| seen).collect();
    let area = objects.iter().map(|object| object.area).sum::<f32>().max(0.03);
    let blur = objects.iter().map(|object| object.area * (object.softness - 1.0).max(0.0)).sum::<f32>() / area / canvas.side();
    let (noise, unexplained) = redraw(&canvas, &layers);
    let whole = objects.iter().map(|object| object.area * (1.0 - object.fault())).sum::<f32>().max(LEAST_WHOLE);
    let unexplained = unexplained / (unexplained + whole * canvas.side().powi(2));
    let broken = match objects.iter().map(Seen::fault).sum::<f32>() {
        _ if objects.is_empty() => 1.0,
        faults => (faults + crumbs) / (objects.len() as f32 + crumbs),
    };
    Sight { background: canvas.background, ground: canvas.ground, objects, emblem, noise, blur, unexplained, broken }
}

impl Seen {
    /// How far it is from a whole object, 0 to 1, the sum of three faults: its misfit over 0.15; how far its extent is outside the two
    /// sizes, 1 at one and a half times as large or as small; its contact with others over 0.25.
    pub fn fault(&self) -> f32 {
        let (small, large) = (0.9 * Size::Small.extent(), 1.1 * Size::Large.extent());
        let outside = (small / self.extent).max(self.extent / large).max(1.0).ln() / 1.5f32.ln();
        (self.misfit / 0.15 + outside + self.contact / 0.25).min(1.0)
    }
}

/// The parts that are objects, and who owns each pixel. Crumbs that touch an object are its own. Last the crumbs' area, in least areas of
/// an object.
fn owners<'a>(canvas: &Canvas, parts: &'a [Part]) -> (Vec<&'a Part>, Vec<Owner>, f32) {
    let pixels = canvas.side().powi(2);
    let mut owners = vec![Owner::Nobody; canvas.pixels.len()];
    let mut objects: Vec<&Part> = Vec::new();
    let mut crumbs = Vec::new();
    for part in parts {
        let area = part.pixels.len() as f32 / pixels;
        let owner = match part.ink {
            Ink::Emblem if area >= 0.1 * emblem_area() => Owner::Emblem,
            Ink::Color(_) | Ink::Foreign if area >= LEAST_AREA && part.has_core && objects.len() < MOST_SEEN => {
                objects.push(part);
                Owner::Object(objects.len() - 1)
            }
            _ => {
                crumbs.push(part);
                continue;
            }
        };
        part.pixels.iter().for_each(|pixel| owners[*pixel] = owner);
    }
    let mut loose = 0.0;
    for crumb in crumbs {
        let neighbours = crumb.pixels.iter().flat_map(|pixel| canvas.around(*pixel)).map(|pixel| owners[pixel]);
        let neighbour = neighbours.into_iter().find(|owner| matches!(owner, Owner::Object(_)));
        // A seam without a core is where two colours mix.
        if neighbour.is_none() || crumb.has_core {
            loose += crumb.pixels.len() as f32 / pixels / LEAST_AREA;
        }
        if let Some(owner) = neighbour {
            crumb.pixels.iter().for_each(|pixel| owners[*pixel] = owner);
        }
    }
    (objects, owners, loose)
}

/// An owner's part of the image, with a margin, as shares of `color`.
fn matte(canvas: &Canvas, owners: &[Owner], owner: Owner, color: Paint) -> Matte {
    let margin = (0.08 * canvas.side()).ceil() as usize;
    let own = || (0..owners.len()).filter(|i| owners[*i] == owner);
    let columns = || own().map(|i| i % canvas.width);
    let (left, right) = (columns().min().unwrap_or(0), columns().max().unwrap_or(0));
    let (top, bottom) = (own().next().unwrap_or(0) / canvas.width, own().next_back().unwrap_or(0) / canvas.width);
    let (left, top) = (left.saturating_sub(margin), top.saturating_sub(margin));
    let (right, bottom) = ((right + margin).min(canvas.width - 1), (bottom + margin).min(canvas.height - 1));
    let value = |i: usize| {
        let is_anothers = |other: usize| owners[other] != Owner::Nobody && owners[other] != owner;
        let mixes_with_another = || canvas.around(i).any(is_anothers) && !canvas.around(i).any(|other| owners[other] == owner);
        if is_anothers(i) || owners[i] != owner && mixes_with_another() { 0.0 } else { canvas.share(canvas.pixels[i], color).0 }
    };
    let indices = (top..=bottom).flat_map(|y| (left..=right).map(move |x| y * canvas.width + x));
    Matte { left, top, width: right - left + 1, values: indices.map(value).collect() }
}

/// Everything about object `k`.
fn look_at(canvas: &Canvas, part: &Part, k: usize, owners: &[Owner]) -> (Seen, Fit) {
    let side = canvas.side();
    let core = part.pixels.iter().copied().filter(|pixel| canvas.is_inner(*pixel, |other| owners[other] == Owner::Object(k)));
    let rgb = mean(core.map(|pixel| canvas.pixels[pixel])).unwrap_or(canvas.ground);
    let matte = matte(canvas, owners, Owner::Object(k), rgb);
    let mut fits = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross].map(|shape| Outline::Shape(shape).fit(&matte, side));
    fits.sort_by(|a, b| a.error.total_cmp(&b.error));
    let [best, second, ..] = fits;
    let area = matte.mass().0;
    let (misfit, doubt) = (best.error / area, best.error / second.error.max(1e-6));
    let is_clear = best.pose.is_inside(canvas.width, canvas.height)
        && misfit <= MISFIT_LIMIT
        && doubt <= DOUBT_LIMIT
        && best.pose.ramp <= RAMP_LIMIT * side + 1.5;
    let shape = match best.outline {
        Outline::Shape(shape) if is_clear => Some(shape),
        _ => None,
    };
    let nearest = Color::ALL.iter().copied().min_by(|a, b| {
        let [a, b] = [a, b].map(|color| distance(rgb, paint(color.rgb())));
        a.total_cmp(&b)
    });
    let color = nearest.filter(|color| distance(rgb, paint(color.rgb())) <= COLOR_LIMIT);
    let (extent, softness) = (best.pose.extent / side, matte.softness());
    let center = [best.pose.x / side, best.pose.y / side];
    let is_anothers = |other: usize| owners[other] != Owner::Nobody && owners[other] != Owner::Object(k);
    let touching = (0..owners.len()).filter(|i| owners[*i] == Owner::Object(k) && canvas.around(*i).any(is_anothers)).count();
    let contact = touching as f32 / side;
    let seen =
        Seen { contact, shape, color, size: size_of(extent), center, extent, area: area / side.powi(2), rgb, misfit, doubt, softness };
    (seen, best)
}

/// The size of an extent: divided at the geometric mean of the two; none below 0.6 times the small one or above 1.4 times the large one.
fn size_of(extent: f32) -> Option<Size> {
    let (small, large) = (Size::Small.extent(), Size::Large.extent());
    match extent {
        extent if extent < 0.6 * small || extent > 1.4 * large => None,
        extent if extent < (small * large).sqrt() => Some(Size::Small),
        _ => Some(Size::Large),
    }
}

/// The magenta of the whole image.
fn find_emblem(canvas: &Canvas, owners: &[Owner]) -> Option<SeenEmblem> {
    let color = paint(crate::words::emblem::RGB);
    let is_emblem = |i: usize| owners[i] == Owner::Emblem;
    let near = |i: &usize| is_emblem(*i) || owners[*i] == Owner::Nobody && canvas.around(*i).any(is_emblem);
    let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
    for i in (0..owners.len()).filter(near) {
        let share = canvas.share(canvas.pixels[i], color).0;
        area += share;
        x += share * ((i % canvas.width) as f32 + 0.5);
        y += share * ((i / canvas.width) as f32 + 0.5);
    }
    let side = canvas.side();
    (area > 0.0).then(|| SeenEmblem { share: area / (emblem_area() * side.powi(2)), center: [x / area / side, y / area / side] })
}

/// The emblem as it should look where the magenta is.
fn fit_emblem(canvas: &Canvas, owners: &[Owner]) -> Option<(Paint, Fit)> {
    let core = (0..owners.len()).filter(|i| canvas.is_inner(*i, |other| owners[other] == Owner::Emblem));
    let rgb = mean(core.map(|i| canvas.pixels[i])).unwrap_or(paint(crate::words::emblem::RGB));
    let matte = matte(canvas, owners, Owner::Emblem, rgb);
    Some((rgb, Outline::Emblem.fit(&matte, canvas.side())))
}

/// Draws what was seen on a flat background and compares: the noise, and how many pixels' worth of the image is something else.
///
/// Objects' shares add up, so that overlapping ones, which this world does not have, explain nothing.
fn redraw(canvas: &Canvas, layers: &[(Paint, Fit)]) -> (f32, f32) {
    let residual = |i: usize| {
        let (x, y) = ((i % canvas.width) as f32 + 0.5, (i / canvas.width) as f32 + 0.5);
        let mut color = canvas.ground;
        for (paint, fit) in layers {
            let reach = fit.pose.extent / 2.0 + fit.pose.ramp;
            if (x - fit.pose.x).abs() < reach && (y - fit.pose.y).abs() < reach {
                let covered = fit.outline.coverage(&fit.pose, x, y);
                let change = minus(*paint, canvas.ground);
                color = std::array::from_fn(|channel| color[channel] + covered * change[channel]);
            }
        }
        minus(canvas.pixels[i], color)
    };
    let residuals: Vec<Paint> = (0..canvas.pixels.len()).map(residual).collect();
    let mut sizes: Vec<f32> = residuals.iter().flatten().map(|value| value.abs()).collect();
    if sizes.is_empty() {
        return (0.0, 0.0);
    }
    let middle = sizes.len() / 2;
    let noise = 1.4826 * *sizes.select_nth_unstable_by(middle, f32::total_cmp).1;
    // What noise does to a colour is no object: two and a half standard deviations in three channels, as far as that is little.
    let floor = 12.0 + (2.5 * 3f32.sqrt() * noise).min(60.0);
    let excess = |residual: &Paint| ((distance(*residual, [0.0; 3]) - floor).max(0.0) / WHOLE_ERROR).min(1.0);
    (noise / 255.0, residuals.iter().map(excess).sum())
}
