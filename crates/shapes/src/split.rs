//! Which compositions training never sees.
//!
//! A composition is the smallest thing that two words say together: a colour of a shape, a shape's place beside another, how many
//! of a shape. `heldout.txt` lists those that no training caption has; each held-out prompt has exactly one.
//!
//! The model that ships has never seen these compositions. What it was never trained on can still be learnt from feedback. For that, half
//! of the held-out descriptions serve to ask for it (`feedback`, beside as many of training's), a quarter to choose settings (`validation`),
//! a quarter to report (`test`): no description is in two of these, whichever way round or in which phrase it is said.
//!
//! A base model of the [`pretraining`](crate::pretraining) mixture has seen every composition. For it, held out means what neither reward
//! models nor reward training saw: prompts of `tuning-validation` and `tuning-test` say nothing that a prompt of `tuning` says, in whichever
//! words, and half of them have a listed composition, which no prompt of `tuning` has.

use std::fmt;
use std::sync::LazyLock;

use rand::{Rng, RngExt};

use crate::description::Description;
use crate::pick::pick;
use crate::words::{Color, Relation, Shape};

/// The list, one composition per line.
pub const HELDOUT: &str = include_str!("../heldout.txt");

/// A part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What base models are trained on.
    Train,
    /// What a base model is evaluated on.
    Heldout,
    /// What reward models and reinforcement learn from: half of it held out from the base model's training.
    Feedback,
    /// Held out from feedback too, to choose settings with.
    Validation,
    /// Held out from feedback and from the choice of settings, to report.
    Test,
    /// Every description, for base models of the [`pretraining`](crate::pretraining) mixture, whose captions and images are not all true.
    Pretraining,
    /// What reward models, reward training and fine-tuning of such a base model may see: nothing that has a listed composition.
    Tuning,
    /// Held out from that, to choose settings with.
    TuningValidation,
    /// Held out from that and from the choice of settings, to report.
    TuningTest,
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
    /// A description of this split. Held-out ones have one held-out composition, of each category as often.
    pub fn draw(self, rng: &mut impl Rng) -> Description {
        let trained_on = match self {
            Self::Pretraining => return Description::draw(rng),
            Self::Tuning | Self::TuningValidation | Self::TuningTest => return self.prompt(rng).0,
            Self::Train => true,
            Self::Feedback => pick(rng, &[true, false]),
            Self::Heldout | Self::Validation | Self::Test => false,
        };
        let wanted = pick(rng, &["color", "relation", "count"]);
        loop {
            let description = Description::draw(rng);
            match &heldout_of(&description)[..] {
                [] if trained_on => return description,
                [composition] if !trained_on && composition.category() == wanted && self.has(&description) => return description,
                _ => {}
            }
        }
    }

    /// A description of this split and a caption of it, which may leave out a little.
    pub fn prompt(self, rng: &mut impl Rng) -> (Description, String) {
        let lots = match self {
            Self::Tuning => 0..2,
            Self::TuningValidation => 2..3,
            Self::TuningTest => 3..4,
            _ => {
                let description = self.draw(rng);
                let caption = description.phrase(rng);
                return (description, caption);
            }
        };
        // What the caption says decides, so that no two of these splits have a prompt in common.
        let wanted = pick(rng, &["color", "relation", "count"]);
        let is_listed = self != Self::Tuning && rng.random_bool(0.5);
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

    /// By which kind results are reported: the category of the held-out composition; of the splits of tuning, also what else is described.
    pub fn category(self, description: &Description) -> Option<String> {
        let listed = match heldout_of(description)[..] {
            [composition] => Some(composition.category()),
            _ => None,
        };
        if !matches!(self, Self::Tuning | Self::TuningValidation | Self::TuningTest) {
            return listed.map(String::from);
        }
        let others = match &description.groups[..] {
            [group] if group.count == 1 => "one object",
            [_] => "several of a kind",
            _ => "two in a relation",
        };
        Some(listed.map_or(others.into(), |category| format!("held-out {category}")))
    }

    /// Whether a held-out description is of this split.
    fn has(self, description: &Description) -> bool {
        match self {
            Self::Heldout => true,
            Self::Feedback => lot(description) < 2,
            Self::Validation => lot(description) == 2,
            Self::Test => lot(description) == 3,
            _ => false,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
            Self::Feedback => "feedback",
            Self::Validation => "validation",
            Self::Test => "test",
            Self::Pretraining => "pretraining",
            Self::Tuning => "tuning",
            Self::TuningValidation => "tuning-validation",
            Self::TuningTest => "tuning-test",
        }
    }
}
