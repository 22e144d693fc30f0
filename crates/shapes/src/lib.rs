//! Floor 1: a small world whose truth is known.
//!
//! Pictures of one to three coloured shapes, captions that describe them, and a judge that says, from the pixels alone, which of a
//! caption's claims hold. Both rewards learnt in this world and models trained with them can be checked against it.
//!
//! No function draws random numbers of its own: generators are arguments.

pub mod description;
pub mod judge;
mod pick;
pub mod pretraining;
pub mod render;
pub mod scene;
pub mod split;
pub mod spoil;
pub mod variant;
pub mod words;

pub use description::{Description, Group, NotACaption};
pub use judge::{AspectScore, Claim, ClaimKind, Verdict, judge};
pub use render::render;
pub use scene::{Object, Scene};
pub use split::Split;
pub use variant::Variant;
