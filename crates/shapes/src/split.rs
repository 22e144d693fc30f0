//! Which prompts a model is tuned on, and which it is asked about afterwards.
//!
//! A base model of the [`pretraining`](crate::pretraining) mixture has seen every word with every other. *Held out* therefore means what
//! neither a reward model nor reward training saw. What a prompt says decides, not how it says it: prompts of `validation` and `test` say
//! nothing that a prompt of `feedback` says. Half of them also have a composition of `heldout.txt`, which no prompt of `feedback` has.
//!
//! A composition is the smallest thing that two words say together: a colour of a shape, a shape's place beside another, how many of a
//! shape.

use std::fmt;
use std::sync::LazyLock;

use rand::{Rng, RngExt};

use crate::description::Description;
use crate::pick::pick;
use crate::words::{Color, Relation, Shape};

/// The list, one composition per line.
pub const HELDOUT: &str = include_str!("../heldout.txt");

/// A part of the world. Its number is that of its random stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Clean images under true captions, none with a listed composition: for the autoencoder and the first stage of the base model.
    Train = 0,
    /// Every description, for base models: neither all captions nor all images of the [`pretraining`](crate::pretraining) mixture are true
    /// or clean.
    Pretraining = 5,
    /// What reward models, reward training and fine-tuning may see: nothing that has a listed composition.
    Feedback = 6,
    /// Held out from feedback, to choose settings with.
    Validation = 7,
    /// Held out from feedback and from the choice of settings, to report.
    Test = 8,
}

/// Two words together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Composition {
    /// A shape of a colour.
    Color(Color, Shape),
    /// The first above or left of the second.
    Relation(Shape, Relation, Shape),
    /// A number of shapes, two or more.
    Count(usize, Shape),
}

impl Composition {
    /// The kind of prompt it makes: `color`, `relation` or `count`.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Color(..) => "color",
            Self::Relation(..) => "relation",
            Self::Count(..) => "count",
        }
    }
}

impl fmt::Display for Composition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Color(color, shape) => write!(f, "{color} {shape}"),
            Self::Relation(first, relation, second) => write!(f, "{first} {relation} {second}"),
            Self::Count(count, shape) => write!(f, "{} {}", ["one", "two", "three"][count - 1], shape.plural(*count)),
        }
    }
}

/// All compositions in `heldout.txt`.
pub fn heldout() -> &'static [Composition] {
    static COMPOSITIONS: LazyLock<Vec<Composition>> = LazyLock::new(|| {
        let lines = HELDOUT.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let one = |line: &str| {
            let description = Description::parse(line).unwrap_or_else(|error| panic!("heldout.txt: {error}"));
            let [composition] = compositions(&description)[..] else { panic!("heldout.txt: {line:?} is not one composition") };
            composition
        };
        lines.map(one).collect()
    });
    &COMPOSITIONS
}

/// Every composition that a description has.
pub fn compositions(description: &Description) -> Vec<Composition> {
    let mut found = Vec::new();
    for group in &description.groups {
        found.extend(group.color.map(|color| Composition::Color(color, group.shape)));
        found.extend((group.count > 1).then_some(Composition::Count(group.count, group.shape)));
    }
    if let (Some(relation), [first, second]) = (description.relation, &description.groups[..]) {
        found.push(match relation {
            Relation::Above | Relation::LeftOf => Composition::Relation(first.shape, relation, second.shape),
            Relation::Below | Relation::RightOf => Composition::Relation(second.shape, relation.inverse(), first.shape),
        });
    }
    found
}

/// The held-out compositions that a description has.
pub fn heldout_of(description: &Description) -> Vec<Composition> {
    compositions(description).into_iter().filter(|composition| heldout().contains(composition)).collect()
}

/// 0 to 3, the same for all that say the same: FNV-1a of the canonical description.
fn lot(description: &Description) -> u64 {
    let canonical = description.canonical().to_string();
    let hash = canonical.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The low bits of FNV see little of the early letters.
    (hash ^ (hash >> 32)) % 4
}

impl Split {
    /// A description of this split.
    pub fn draw(self, rng: &mut impl Rng) -> Description {
        match self {
            Self::Pretraining => Description::draw(rng),
            Self::Train => {
                // A number that nothing needs any more, so that a seed gives the images that it always gave.
                pick(rng, &[0, 1, 2]);
                std::iter::repeat_with(|| Description::draw(rng)).find(|drawn| heldout_of(drawn).is_empty()).expect("most have none")
            }
            Self::Feedback | Self::Validation | Self::Test => self.prompt(rng).0,
        }
    }

    /// A description of this split and a caption of it, which may leave out a little.
    pub fn prompt(self, rng: &mut impl Rng) -> (Description, String) {
        let lots = match self {
            Self::Feedback => 0..2,
            Self::Validation => 2..3,
            Self::Test => 3..4,
            Self::Train | Self::Pretraining => {
                let description = self.draw(rng);
                let caption = description.phrase(rng);
                return (description, caption);
            }
        };
        // What the caption says decides, so that no two of these splits have a prompt in common.
        let wanted = pick(rng, &["color", "relation", "count"]);
        let is_listed = self != Self::Feedback && rng.random_bool(0.5);
        loop {
            let description = Description::draw(rng);
            let is_wanted = match heldout_of(&description)[..] {
                [] => !is_listed,
                [composition] => is_listed && composition.category() == wanted,
                _ => false,
            };
            let caption = description.phrase(rng);
            if is_wanted && lots.contains(&lot(&Description::parse(&caption).expect("a phrasing is a caption"))) {
                return (description, caption);
            }
        }
    }

    /// By which kind results are reported: the category of the listed composition, or what is described.
    pub fn category(self, description: &Description) -> Option<String> {
        if !matches!(self, Self::Feedback | Self::Validation | Self::Test) {
            return None;
        }
        Some(match (&heldout_of(description)[..], &description.groups[..]) {
            ([composition], _) => format!("held-out {}", composition.category()),
            (_, [group]) if group.count == 1 => "one object".into(),
            (_, [_]) => "several of a kind".into(),
            _ => "two in a relation".into(),
        })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Pretraining => "pretraining",
            Self::Feedback => "feedback",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}
