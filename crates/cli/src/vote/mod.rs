//! Votes of people on images: which of two is better, or ratings of one, asked on a page.
//!
//! [`sources`] makes records of what is to be voted on; [`ballot`] says what a voter is asked next, and takes the answers; [`votes`] keeps them, line
//! by line; [`written`] makes the records of them that every other command reads; [`results`] counts.

mod ballot;
mod pages;
mod results;
mod sources;
mod votes;
mod written;

pub use self::ballot::{Ballot, Mode};
pub use self::pages::reply;
pub use self::sources::Source;
