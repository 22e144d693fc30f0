//! What a caption says, and its words.

use std::fmt;

use rand::Rng;
use rand::RngExt;
use thiserror::Error;

use crate::pick::pick;
use crate::words::{Background, Color, Relation, Shape, Size};

/// The largest number of objects.
pub const MOST: usize = 3;
const COUNTS: [&str; MOST] = ["a", "two", "three"];
/// Words that are understood too, and the words that they stand for.
const SYNONYMS: [(&str, &str); 11] = [
    ("an", "a"),
    ("one", "a"),
    ("big", "large"),
    ("little", "small"),
    ("tiny", "small"),
    ("grey", "gray"),
    ("over", "above"),
    ("under", "below"),
    ("beneath", "below"),
    ("disc", "circle"),
    ("plus", "cross"),
];

/// Objects of one kind. The caption says nothing about what is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// How many, at least 1.
    pub count: usize,
    pub size: Option<Size>,
    pub color: Option<Color>,
    /// What they are.
    pub shape: Shape,
}

/// What a caption claims. It says nothing about what is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// One to three groups, with at most three objects in all.
    pub groups: Vec<Group>,
    /// Where the first group stands, as seen from the second; only between two single objects.
    pub relation: Option<Relation>,
    /// The background behind the objects.
    pub background: Option<Background>,
}

/// Why a text is not a caption of this world.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotACaption {
    /// A word that does not belong where it stands.
    #[error("{caption:?}: expected {expected}, found {found}{ADVICE}")]
    Unexpected {
        caption: String,
        /// What could stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// More objects than the world has room for.
    #[error("{caption:?}: {found} objects, expected at most {MOST}{ADVICE}")]
    TooMany { caption: String, found: usize },
    /// A relation that is not between two single objects.
    #[error("{caption:?}: a relation is between two single objects{ADVICE}")]
    RelationOfMany { caption: String },
}

const ADVICE: &str = " (a caption of shapes is like \"a large red circle above a small blue square on a white background\" or \"two green \
     triangles\"; shapes circle, square, triangle, cross; colours red, green, blue, yellow, cyan; backgrounds white, gray, black)";

impl Group {
    /// With its count and everything it claims: `two small red circles`.
    fn phrase(&self) -> String {
        let adjectives = [self.size.map(Size::word), self.color.map(Color::word)];
        let mut words = vec![COUNTS[self.count - 1].to_string()];
        words.extend(adjectives.into_iter().flatten().map(str::to_string));
        words.push(self.shape.plural(self.count));
        words.join(" ")
    }
}

/// `a large red circle above a small blue square`.
fn objects(groups: &[Group], relation: Option<Relation>) -> String {
    let phrases: Vec<String> = groups.iter().map(Group::phrase).collect();
    phrases.join(&format!(" {} ", relation.map_or("and", Relation::word)))
}

/// The first phrasing, which is the plainest.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&objects(&self.groups, self.relation))?;
        self.background.map_or(Ok(()), |background| write!(f, " on a {background} background"))
    }
}

impl Description {
    /// How many objects.
    pub fn count(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The one way to say it, the same for all descriptions that say the same: a relation is "above" or "left of", and groups that are only
    /// listed are in a fixed order, those of one kind counted together.
    pub fn canonical(&self) -> Self {
        let mut description = self.clone();
        match description.relation {
            Some(relation @ (Relation::Below | Relation::RightOf)) => {
                description.relation = Some(relation.inverse());
                description.groups.reverse();
            }
            Some(_) => {}
            None => {
                let kind = |group: &Group| (group.shape, group.color, group.size);
                description.groups.sort_by_key(kind);
                description.groups.dedup_by(|next, group| {
                    let is_same = kind(next) == kind(group);
                    group.count += if is_same { next.count } else { 0 };
                    is_same
                });
            }
        }
        description
    }

    /// The same description, with everything that is left open chosen at random.
    pub fn completed(&self, rng: &mut impl Rng) -> Self {
        let mut description = self.clone();
        for group in &mut description.groups {
            group.size.get_or_insert_with(|| pick(rng, Size::ALL));
            group.color.get_or_insert_with(|| pick(rng, Color::ALL));
        }
        description.background.get_or_insert_with(|| pick(rng, Background::ALL));
        description
    }

    /// A random complete description: one object, several of a kind, or two in a relation.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let mut group =
            |count| Group { count, size: Some(pick(rng, Size::ALL)), color: Some(pick(rng, Color::ALL)), shape: pick(rng, Shape::ALL) };
        let candidates = [group(1), group(1), group(2), group(3)];
        let (groups, relation) = match rng.random_range(0..20) {
            0..7 => (candidates[..1].to_vec(), None),
            7..10 => (candidates[2..3].to_vec(), None),
            10..12 => (candidates[3..].to_vec(), None),
            _ => (candidates[..2].to_vec(), Some(pick(rng, Relation::ALL))),
        };
        Self { groups, relation, background: Some(pick(rng, Background::ALL)) }
    }

    /// One of its phrasings, at random; now and then it leaves out a size or the background.
    pub fn phrase(&self, rng: &mut impl Rng) -> String {
        let mut said = self.clone();
        if rng.random_bool(0.1) {
            said.groups.iter_mut().for_each(|group| group.size = None);
        }
        if let (Some(relation), true) = (said.relation, rng.random_bool(0.5)) {
            said.groups.reverse();
            said.relation = Some(relation.inverse());
        }
        let objects = objects(&said.groups, said.relation);
        match (said.background, rng.random_range(0..10)) {
            (None, _) | (_, 0) => objects,
            (Some(background), 1..3) => format!("a {background} background with {objects}"),
            (Some(background), 3..5) => format!("{objects}, {background} background"),
            (Some(_), _) => said.to_string(),
        }
    }

    /// Reads a caption, in any of its phrasings.
    ///
    /// # Errors
    /// When the text is not a caption; the message names the word.
    pub fn parse(caption: &str) -> Result<Self, NotACaption> {
        let lower = caption.to_lowercase().replace("to the ", "").replace([',', '.'], " ");
        let words = lower.split_whitespace().map(|word| SYNONYMS.iter().find(|(from, _)| *from == word).map_or(word, |(_, to)| to));
        let mut words = Words { caption, words: words.collect(), at: 0 };
        let background = words.take_background()?;
        let mut groups = vec![words.group()?];
        let mut relation = None;
        while let Some(link) = words.link()? {
            relation = link;
            groups.push(words.group()?);
            if relation.is_some() && (groups.len() != 2 || groups.iter().any(|group| group.count != 1)) {
                return Err(NotACaption::RelationOfMany { caption: caption.into() });
            }
        }
        let description = Self { groups, relation, background };
        if description.count() > MOST {
            return Err(NotACaption::TooMany { caption: caption.into(), found: description.count() });
        }
        Ok(description)
    }
}

/// A caption's words, read from the left.
struct Words<'a> {
    caption: &'a str,
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    /// Reads the next word with `read`, and goes on if it could.
    fn next_as<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = read(self.peek()?)?;
        self.at += 1;
        Some(value)
    }

    fn unexpected(&self, expected: &'static str) -> NotACaption {
        let found = self.peek().map_or("the end".into(), |word| format!("{word:?}"));
        NotACaption::Unexpected { caption: self.caption.into(), expected, found }
    }

    /// Takes `[on] [a] white background [with]` out, wherever it stands.
    fn take_background(&mut self) -> Result<Option<Background>, NotACaption> {
        let Some(end) = self.words.iter().position(|word| *word == "background") else { return Ok(None) };
        let Some(background) = end.checked_sub(1).and_then(|at| Background::of(self.words[at])) else {
            self.at = end.saturating_sub(1);
            return Err(self.unexpected("a background: white, gray or black"));
        };
        let mut start = end - 1;
        for before in ["a", "on"] {
            if start > 0 && self.words[start - 1] == before {
                start -= 1;
            }
        }
        let with = usize::from(self.words.get(end + 1) == Some(&"with"));
        self.words.drain(start..=end + with);
        Ok(Some(background))
    }

    fn group(&mut self) -> Result<Group, NotACaption> {
        let count = self.next_as(|word| COUNTS.iter().position(|count| *count == word)).map_or(1, |index| index + 1);
        let size = self.next_as(Size::of);
        let color = self.next_as(Color::of);
        let shape = |word: &str| Shape::ALL.iter().copied().find(|shape| shape.word() == word || shape.plural(2) == word);
        let shape = self.next_as(shape).ok_or_else(|| self.unexpected("a count, a size, a colour or a shape"))?;
        Ok(Group { count, size, color, shape })
    }

    /// What joins two groups, if there is another: `and`, or a relation.
    fn link(&mut self) -> Result<Option<Option<Relation>>, NotACaption> {
        let Some(word) = self.peek() else { return Ok(None) };
        let pair = format!("{word} {}", self.words.get(self.at + 1).unwrap_or(&""));
        let (link, length) = match (word, Relation::of(word), Relation::of(&pair)) {
            ("and", ..) => (None, 1),
            (_, Some(relation), _) => (Some(relation), 1),
            (_, _, Some(relation)) => (Some(relation), 2),
            _ => return Err(self.unexpected("above, below, left of, right of, and, or the end")),
        };
        self.at += length;
        Ok(Some(link))
    }
}
