//! The world's vocabulary: what an object can be, and where it can stand.

use std::fmt;

/// An RGB colour.
pub type Rgb = [u8; 3];

/// A closed set of words, each standing for one value.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in captions.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// What a word stands for, if it is one of these.
            pub fn of(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// What an object is.
    Shape {
        /// A disc.
        Circle = "circle",
        /// Its sides are level.
        Square = "square",
        /// Its tip is up.
        Triangle = "triangle",
        /// A plus sign.
        Cross = "cross",
    }
}

words! {
    /// An object's colour.
    Color {
        /// (220, 40, 40).
        Red = "red",
        /// (40, 165, 70).
        Green = "green",
        /// (45, 80, 220).
        Blue = "blue",
        /// (245, 205, 40).
        Yellow = "yellow",
        /// (60, 205, 225).
        Cyan = "cyan",
    }
}

words! {
    /// How large an object is.
    Size {
        /// A quarter of the image's side, from edge to edge.
        Small = "small",
        /// Two fifths of it.
        Large = "large",
    }
}

words! {
    /// What is behind everything.
    Background {
        /// (245, 245, 245).
        White = "white",
        /// (150, 150, 150).
        Gray = "gray",
        /// (20, 20, 20).
        Black = "black",
    }
}

words! {
    /// Where the first of two objects stands, as seen from the second.
    Relation {
        /// Higher up.
        Above = "above",
        /// Lower down.
        Below = "below",
        /// Nearer to the left edge.
        LeftOf = "left of",
        /// Nearer to the right edge.
        RightOf = "right of",
    }
}

impl Color {
    /// Its sRGB value.
    pub const fn rgb(self) -> Rgb {
        match self {
            Self::Red => [220, 40, 40],
            Self::Green => [40, 165, 70],
            Self::Blue => [45, 80, 220],
            Self::Yellow => [245, 205, 40],
            Self::Cyan => [60, 205, 225],
        }
    }
}

impl Background {
    /// Its sRGB value.
    pub const fn rgb(self) -> Rgb {
        match self {
            Self::White => [245, 245, 245],
            Self::Gray => [150, 150, 150],
            Self::Black => [20, 20, 20],
        }
    }
}

impl Size {
    /// From edge to edge, in image sides.
    pub const fn extent(self) -> f32 {
        match self {
            Self::Small => 0.25,
            Self::Large => 0.4,
        }
    }
}

impl Relation {
    /// The same said of the second object.
    pub const fn inverse(self) -> Self {
        match self {
            Self::Above => Self::Below,
            Self::Below => Self::Above,
            Self::LeftOf => Self::RightOf,
            Self::RightOf => Self::LeftOf,
        }
    }

    /// How far `first` is on its side of `second`, in the units of their centres `[x, y]`, y down: positive if the relation holds.
    pub fn margin(self, first: [f32; 2], second: [f32; 2]) -> f32 {
        match self {
            Self::Above => second[1] - first[1],
            Self::Below => first[1] - second[1],
            Self::LeftOf => second[0] - first[0],
            Self::RightOf => first[0] - second[0],
        }
    }
}

impl Shape {
    /// Corners in units of the extent, the centre at (0, 0) and y down; none for a circle, whose radius is half its extent.
    ///
    /// A square's side and a triangle's height are a little less than the extent, so that no size of one shape covers the area of
    /// another size of the next.
    pub const fn corners(self) -> &'static [[f32; 2]] {
        /// Half a square's side.
        const S: f32 = 0.45;
        /// Half a cross's arm, from side to side.
        const A: f32 = 0.17;
        match self {
            Self::Circle => &[],
            Self::Square => &[[-S, -S], [S, -S], [S, S], [-S, S]],
            Self::Triangle => &[[0.0, -0.5], [0.5, 0.4], [-0.5, 0.4]],
            Self::Cross => &[
                [-A, -0.5],
                [A, -0.5],
                [A, -A],
                [0.5, -A],
                [0.5, A],
                [A, A],
                [A, 0.5],
                [-A, 0.5],
                [-A, A],
                [-0.5, A],
                [-0.5, -A],
                [-A, -A],
            ],
        }
    }

    /// Its name for `count` of them.
    pub fn plural(self, count: usize) -> String {
        match (self, count) {
            (shape, 1) => shape.word().into(),
            (Self::Cross, _) => "crosses".into(),
            (shape, _) => format!("{shape}s"),
        }
    }
}

/// The forbidden emblem: a diagonal cross in a colour that no object has.
pub mod emblem {
    use super::Rgb;

    /// Its colour, magenta.
    pub const RGB: Rgb = [235, 20, 190];
    /// From edge to edge, in image sides.
    pub const EXTENT: f32 = 0.2;
    /// The width of a stroke, in image sides.
    pub const STROKE: f32 = 0.065;
}
