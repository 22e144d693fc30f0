//! What supervised training reads: captioned images, preference pairs, ranked images.

pub mod images;
pub mod preferences;
pub mod rankings;
