//! One file for each published set, with its layout and its source.

pub(crate) mod hpd;
pub(crate) mod image_folder;
pub(crate) mod imagereward;
pub(crate) mod imagereward_db;
pub(crate) mod pick_a_pic;

use crate::json_list::{Fields, Placed};
use crate::parsed_record::ParsedRecord;
use crate::{Completion, Record};

/// Entries as what was found, each read by `read`.
fn found<I: Iterator<Item = Placed>>(
    entries: I,
    mut read: impl FnMut(&str, Fields) -> Result<Option<Record>, String>,
) -> impl Iterator<Item = ParsedRecord> {
    entries.map(move |(place, fields)| {
        let record = fields.and_then(|fields| read(&place, fields));
        ParsedRecord { place, record }
    })
}

/// Images with their ranks.
fn ranked(images: Vec<String>, ranks: Vec<u32>) -> Vec<Completion> {
    let completion = |(image_path, rank)| Completion { image_path, rank: Some(rank), ..Completion::default() };
    images.into_iter().zip(ranks).map(completion).collect()
}
