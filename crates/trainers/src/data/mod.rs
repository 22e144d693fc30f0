//! The data of supervised training: captioned images, preference pairs, liked and disliked images, ranked images.

pub mod images;
pub mod likes;
pub mod preferences;
pub mod rankings;
