//! Who rates images: one file per annotator.

pub mod judge;
pub mod openai;
pub mod replay;
pub mod reward;
