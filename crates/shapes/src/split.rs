//! Which compositions training never sees.
//!
//! A composition is the smallest thing that two words say together: a colour of a shape, a shape's place beside another, how many
//! of a shape. `heldout.txt` lists those that no training caption has; each held-out prompt has exactly one.

use std::fmt;
use std::sync::LazyLock;

use rand::Rng;

use crate::description::Description;
use crate::scene::pick;
use crate::words::{Color, Relation, Shape};

/// The list, a composition a line.
pub const HELDOUT: &str = include_str!("../heldout.txt");

/// A part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Heldout,
}

/// Two words together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Composition {
    /// A shape of a colour.
    Color(Color, Shape),
    /// The first above or left of the second.
    Relation(Shape, Relation, Shape),
    /// So many, two or more, of a shape.
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

/// Everything of `heldout.txt`.
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

impl Split {
    /// A description of this split. Held-out ones have one held-out composition, of each category as often.
    pub fn draw(self, rng: &mut impl Rng) -> Description {
        let wanted = pick(rng, &["color", "relation", "count"]);
        loop {
            let description = Description::draw(rng);
            match (self, &heldout_of(&description)[..]) {
                (Self::Train, []) => return description,
                (Self::Heldout, [composition]) if composition.category() == wanted => return description,
                _ => {}
            }
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        }
    }
}
