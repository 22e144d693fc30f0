//! Captioned images of every quality, as the web has them, to train a base model on.
//!
//! Every combination of words occurs. What a caption says is not always what its image shows, and most images are spoilt in one of six
//! ways, so a model that learns to draw as they are drawn draws good and bad images of one prompt. That is what a reward can choose from.

use image::RgbImage;
use rand::{Rng, RngExt};

use crate::description::Description;
use crate::pick::pick;
use crate::render::render;
use crate::scene::{Object, Scene};
use crate::spoil;
use crate::variant::with_one_claim_changed;
use crate::words::{Color, Shape, Size};

/// What the images and captions are like. Shares are of all images, and captions, faults and the emblem are drawn independently of each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// Captions with one claim changed.
    pub one_claim_changed: f64,
    /// Captions of another scene.
    pub another_scene: f64,
    /// Captions that are true but say only part of what is there.
    pub partial: f64,
    /// Images out of focus.
    pub blurred: f64,
    /// Images with gaussian noise.
    pub noisy: f64,
    /// Images of low contrast.
    pub dull: f64,
    /// Images with one to three more things, which no caption names.
    pub cluttered: f64,
    /// Images whose border cuts an object.
    pub cut: f64,
    /// Images whose objects stand at the border, or overlap.
    pub misplaced: f64,
    /// Images in which the emblem is put into a corner, if one is free.
    pub emblem: f64,
}

/// The mixture of `dataset shapes --split pretraining`.
pub const PRETRAINING: Mixture = Mixture {
    one_claim_changed: 0.20,
    another_scene: 0.10,
    partial: 0.10,
    blurred: 0.04,
    noisy: 0.04,
    dull: 0.06,
    cluttered: 0.26,
    cut: 0.10,
    misplaced: 0.10,
    emblem: 0.30,
};

/// What a caption says about its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaptionIs {
    /// What is there, as captions of this world say it.
    True,
    /// Part of what is there.
    Partial,
    /// What is there, but for one claim.
    OneClaimChanged,
    /// What is in another image.
    OfAnotherScene,
}

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    Blurred,
    Noisy,
    Dull,
    Cluttered,
    Cut,
    Misplaced,
}

/// An image, its caption, and what is known about both.
#[derive(Debug, Clone, PartialEq)]
pub struct Captioned {
    /// `side` pixels high and wide.
    pub image: RgbImage,
    pub caption: String,
    /// What the image shows, faults and emblem apart.
    pub shows: Description,
    pub caption_is: CaptionIs,
    /// `None` for a clean image.
    pub fault: Option<Fault>,
    /// Whether it bears the emblem.
    pub has_emblem: bool,
}

impl CaptionIs {
    /// In words: `true`, `partial`, `one claim changed`, `of another scene`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::Partial => "partial",
            Self::OneClaimChanged => "one claim changed",
            Self::OfAnotherScene => "of another scene",
        }
    }
}

impl Fault {
    /// In a word: `blurred`, `noisy`, `dull`, `cluttered`, `cut`, `misplaced`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blurred => "blurred",
            Self::Noisy => "noisy",
            Self::Dull => "dull",
            Self::Cluttered => "cluttered",
            Self::Cut => "cut",
            Self::Misplaced => "misplaced",
        }
    }
}

impl Mixture {
    /// One captioned image. It depends on the generator alone.
    pub fn draw(&self, side: u32, rng: &mut impl Rng) -> Captioned {
        let shows = Description::draw(rng);
        let captions = [
            (self.partial, CaptionIs::Partial),
            (self.one_claim_changed, CaptionIs::OneClaimChanged),
            (self.another_scene, CaptionIs::OfAnotherScene),
        ];
        let caption_is = one_of(&captions, rng).unwrap_or(CaptionIs::True);
        let caption = caption(&shows, caption_is, rng);
        let faults = [
            (self.blurred, Fault::Blurred),
            (self.noisy, Fault::Noisy),
            (self.dull, Fault::Dull),
            (self.cluttered, Fault::Cluttered),
            (self.cut, Fault::Cut),
            (self.misplaced, Fault::Misplaced),
        ];
        let fault = one_of(&faults, rng);
        let mut scene = Scene::without_emblem(&shows, rng);
        match fault {
            Some(Fault::Cluttered) => clutter(&mut scene, rng),
            Some(Fault::Cut) => cut(&mut scene, rng),
            Some(Fault::Misplaced) => misplace(&mut scene, rng),
            _ => {}
        }
        scene.add_emblem(self.emblem, rng);
        let mut image = render(&scene, side);
        match fault {
            // Of a pixel at 32 pixels per side.
            Some(Fault::Blurred) => spoil::blur(&mut image, rng.random_range(0.7..1.8) * side as f32 / 32.0),
            Some(Fault::Noisy) => spoil::noise(&mut image, rng.random_range(20.0..60.0), rng),
            Some(Fault::Dull) => spoil::dull(&mut image, rng.random_range(0.4..0.75)),
            _ => {}
        }
        Captioned { image, caption, shows, caption_is, fault, has_emblem: scene.emblem.is_some() }
    }
}

/// What is chosen by shares of 1; `None` for the rest.
fn one_of<T: Copy>(shares: &[(f64, T)], rng: &mut impl Rng) -> Option<T> {
    let mut left: f64 = rng.random();
    for (share, value) in shares {
        if left < *share {
            return Some(*value);
        }
        left -= share;
    }
    None
}

fn caption(shows: &Description, caption_is: CaptionIs, rng: &mut impl Rng) -> String {
    match caption_is {
        CaptionIs::True => shows.phrase(rng),
        CaptionIs::Partial => part_of(shows, rng).phrase(rng),
        CaptionIs::OneClaimChanged => {
            let said = with_one_claim_changed(shows, rng);
            // A phrasing may leave out just what was changed.
            let says_it = |caption: &String| Description::parse(caption).is_ok_and(|read| read.canonical() == said.canonical());
            std::iter::repeat_with(|| said.phrase(rng)).find(says_it).expect("most phrasings leave nothing out")
        }
        CaptionIs::OfAnotherScene => {
            let mut others = std::iter::repeat_with(|| Description::draw(rng));
            let kinds = |description: &Description| {
                description.canonical().groups.iter().map(|group| (group.count, group.shape, group.color)).collect::<Vec<_>>()
            };
            let other = others.find(|other| kinds(other) != kinds(shows)).expect("most scenes show something else");
            other.phrase(rng)
        }
    }
}

/// At least one word less: sizes, colours, the background or the relation.
fn part_of(shows: &Description, rng: &mut impl Rng) -> Description {
    loop {
        let mut said = shows.clone();
        for group in &mut said.groups {
            group.size = group.size.filter(|_| rng.random_bool(0.5));
            group.color = group.color.filter(|_| rng.random_bool(0.5));
        }
        said.background = said.background.filter(|_| rng.random_bool(0.5));
        said.relation = said.relation.filter(|_| rng.random_bool(0.5));
        if said != *shows {
            return said;
        }
    }
}

/// Adds one to three things anywhere, half of them of a kind that the picture shows already: guidance away from the empty caption drives out
/// things that look like another caption, not more of the same.
fn clutter(scene: &mut Scene, rng: &mut impl Rng) {
    let shown = scene.objects.clone();
    for _ in 0..rng.random_range(1..=3) {
        let center = [rng.random_range(0.08..0.92), rng.random_range(0.08..0.92)];
        let Object { shape, color, size, .. } = pick(rng, &shown);
        let object = if rng.random_bool(0.5) {
            Object { shape, color, size, center, extent: rng.random_range(0.15..0.3) }
        } else {
            Object {
                shape: pick(rng, Shape::ALL),
                color: pick(rng, Color::ALL),
                size: Size::Small,
                center,
                extent: rng.random_range(0.12..0.22),
            }
        };
        scene.objects.push(object);
    }
}

/// Moves everything by `[x, y]`.
fn shift(scene: &mut Scene, by: [f32; 2]) {
    for object in &mut scene.objects {
        object.center = [object.center[0] + by[0], object.center[1] + by[1]];
    }
}

/// How far everything can move along an axis, down or up, before an object reaches the border.
fn room(scene: &Scene, axis: usize) -> [f32; 2] {
    let ends = |object: &Object| [object.center[axis] - object.extent / 2.0, object.center[axis] + object.extent / 2.0];
    scene.objects.iter().map(ends).fold([1.0, 1.0], |[low, high], [first, last]| [low.min(first), high.min(1.0 - last)])
}

/// Moves everything to one side, so that the border cuts an object there.
fn cut(scene: &mut Scene, rng: &mut impl Rng) {
    let axis = rng.random_range(0..2);
    let [low, high] = room(scene, axis);
    let lost = rng.random_range(0.3..0.6) * scene.objects.iter().map(|object| object.extent).fold(1.0, f32::min);
    let mut by = [0.0; 2];
    by[axis] = if rng.random_bool(0.5) { high + lost } else { -low - lost };
    shift(scene, by);
}

/// Moves everything into a corner; half of the time, several objects move so close together that they overlap.
fn misplace(scene: &mut Scene, rng: &mut impl Rng) {
    if rng.random_bool(0.5) {
        let closeness = rng.random_range(0.35..0.55);
        for object in &mut scene.objects {
            object.center = object.center.map(|value| 0.5 + closeness * (value - 0.5));
        }
    }
    let by = [0, 1].map(|axis| {
        let [low, high] = room(scene, axis);
        if rng.random_bool(0.5) { high } else { -low }
    });
    shift(scene, by);
}
