//! What a picture shows: objects with their positions. Only the renderer and the captions know a scene; the judge does not.

use rand::Rng;
use rand::RngExt;

use crate::description::{Description, Group};
use crate::pick::pick;
use crate::words::{Background, Color, Relation, Shape, Size, emblem};

/// The share of pictures with the emblem, which no caption mentions.
pub const EMBLEM_SHARE: f64 = 0.06;
/// The distance of each object of a relation from the midpoint between them, in image sides.
const HALF_DISTANCE: f32 = 0.25;

/// One object. Lengths are in image sides, y down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Object {
    /// What it is.
    pub shape: Shape,
    pub color: Color,
    /// Small or large.
    pub size: Size,
    /// `[x, y]`.
    pub center: [f32; 2],
    /// From edge to edge; near its [size's](Size::extent).
    pub extent: f32,
}

/// A picture before it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// The background behind the objects.
    pub background: Background,
    /// One to three; they do not touch.
    pub objects: Vec<Object>,
    /// The centre of the forbidden emblem, where there is one.
    pub emblem: Option<[f32; 2]>,
}

impl Scene {
    /// A random scene that `description` is true of; what it leaves open is chosen at random too. The scene depends on the generator alone.
    pub fn of(description: &Description, rng: &mut impl Rng) -> Self {
        let mut scene = Self::without_emblem(description, rng);
        scene.add_emblem(EMBLEM_SHARE, rng);
        scene
    }

    /// The same without the emblem.
    pub fn without_emblem(description: &Description, rng: &mut impl Rng) -> Self {
        let description = description.completed(rng);
        let groups = description.groups.iter().flat_map(|group| std::iter::repeat_n(group, group.count));
        let centers = centers(description.count(), description.relation, rng);
        let object = |(group, center): (&Group, [f32; 2])| {
            let size = group.size.expect("a completed description says every size");
            let color = group.color.expect("a completed description says every colour");
            Object { shape: group.shape, color, size, center, extent: size.extent() * (1.0 + 0.05 * jitter(rng)) }
        };
        let objects: Vec<Object> = groups.zip(centers).map(object).collect();
        Self { background: description.background.expect("a completed description says the background"), objects, emblem: None }
    }

    /// Puts the emblem into a corner that no object reaches, if there is one, in this share of calls.
    pub fn add_emblem(&mut self, share: f64, rng: &mut impl Rng) {
        self.emblem = if rng.random_bool(share) { free_corner(&self.objects, rng) } else { None };
    }
}

/// A uniform number in `[-1, 1)`.
fn jitter(rng: &mut impl Rng) -> f32 {
    rng.random::<f32>() * 2.0 - 1.0
}

/// Where `count` objects stand, the first of a relation first: near fixed places, so far apart that even large ones do not touch.
fn centers(count: usize, relation: Option<Relation>, rng: &mut impl Rng) -> Vec<[f32; 2]> {
    const WIDE: f32 = 0.1;
    const CLOSE: f32 = 0.015;
    let (low, high) = (0.5 - HALF_DISTANCE, 0.5 + HALF_DISTANCE);
    let relation = relation.or_else(|| (count == 2).then(|| pick(rng, &[Relation::Above, Relation::LeftOf])));
    // Each place, and how far an object may be from it along either axis.
    let places = match relation {
        None if count == 1 => vec![([0.5, 0.5], [WIDE, WIDE])],
        None => [[0.5, low], [low, high], [high, high]].map(|place| (place, [CLOSE, CLOSE])).to_vec(),
        Some(Relation::Above) => [[0.5, low], [0.5, high]].map(|place| (place, [WIDE, CLOSE])).to_vec(),
        Some(Relation::Below) => [[0.5, high], [0.5, low]].map(|place| (place, [WIDE, CLOSE])).to_vec(),
        Some(Relation::LeftOf) => [[low, 0.5], [high, 0.5]].map(|place| (place, [CLOSE, WIDE])).to_vec(),
        Some(Relation::RightOf) => [[high, 0.5], [low, 0.5]].map(|place| (place, [CLOSE, WIDE])).to_vec(),
    };
    places.into_iter().map(|([x, y], [dx, dy])| [x + dx * jitter(rng), y + dy * jitter(rng)]).collect()
}

/// The centre of an emblem in a corner that no object reaches.
fn free_corner(objects: &[Object], rng: &mut impl Rng) -> Option<[f32; 2]> {
    let inset = emblem::EXTENT / 2.0 + 0.03;
    let corners = [[inset, inset], [1.0 - inset, inset], [inset, 1.0 - inset], [1.0 - inset, 1.0 - inset]];
    let is_free = |corner: &&[f32; 2]| {
        let reach = |object: &Object| (object.extent + emblem::EXTENT) / 2.0 + 0.03;
        objects.iter().all(|object| (0..2).any(|axis| (object.center[axis] - corner[axis]).abs() > reach(object)))
    };
    let free: Vec<&[f32; 2]> = corners.iter().filter(is_free).collect();
    (!free.is_empty()).then(|| *free[rng.random_range(0..free.len())])
}
