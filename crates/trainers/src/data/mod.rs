//! The data of supervised training: captioned images, preference pairs, ranked images.

pub mod images;
pub mod preferences;
pub mod rankings;
