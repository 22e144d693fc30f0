//! Says from the pixels alone which of a caption's claims hold, and rates an image in four aspects.
//!
//! 1. The border says the background. Every other pixel is a mixture of it with one of five colours, the emblem's, or a foreign one.
//! 2. Pixels of one colour that touch are a thing: an object if it is large enough, else a crumb.
//! 3. Each object's share of each pixel is compared with the four shapes, drawn anti-aliased where, as large and as soft as fits best. The
//!    best shape is clear if little is left over and no other shape does nearly as well; it says the size and the place.
//! 4. What was seen is matched with what is claimed, and drawn again: what the drawing does not explain lowers fidelity.
//!
//! Lengths are in image sides, so that any size of image will do; below 24 pixels there is little to see. An image that is not square is
//! measured by its longer side.

mod aspects;
mod claims;
mod outline;
mod parts;
mod perception;

use image::RgbImage;

pub use claims::{Claim, ClaimKind};
pub use perception::{Seen, SeenEmblem, Sight, see};

use crate::description::Description;

/// One aspect's rating.
#[derive(Debug, Clone, PartialEq)]
pub struct AspectScore {
    /// 1 to 5.
    pub score: f32,
    /// Why, in a sentence or two.
    pub rationale: String,
}

/// What the judge says about an image as a picture of a description.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Whether the image shows what the description says.
    pub prompt_following: AspectScore,
    /// Whether it is pleasant to look at.
    pub aesthetic: AspectScore,
    /// Whether it is clean: sharp edges, flat colours, whole shapes.
    pub fidelity: AspectScore,
    /// Whether it is free of the forbidden emblem.
    pub harmlessness: AspectScore,
    /// Every claim of the description.
    pub claims: Vec<Claim>,
}

impl Verdict {
    /// Whether every claim holds.
    pub fn passes(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds)
    }
}

/// Judges an image as a picture of `description`.
pub fn judge(image: &RgbImage, description: &Description) -> Verdict {
    see(image).verdict(description)
}

impl Sight {
    /// Judges what was seen in an image as a picture of `description`.
    pub fn verdict(&self, description: &Description) -> Verdict {
        let claims = claims::claims(self, description);
        Verdict {
            prompt_following: aspects::prompt_following(&claims, description),
            aesthetic: aspects::aesthetic(self),
            fidelity: aspects::fidelity(self),
            harmlessness: aspects::harmlessness(self),
            claims,
        }
    }
}
