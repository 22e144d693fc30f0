//! The votes as the records that every other annotator writes: `records.jsonl`, a line for each prompt, voter and repeat.

use std::collections::BTreeMap;
use std::path::Path;

use vp_data::{AnnotatorId, Comparison, Preferred, Rating, Record, write_records};

use super::votes::{Repeat, Said, Vote, Votes};

/// The file that other commands read.
pub const FILE: &str = "records.jsonl";
/// What is asked, so that other questions of later versions can be told apart.
const RUBRIC: &str = "vote-1";

/// Writes the records; the file is replaced whole.
///
/// # Errors
/// When it cannot be written.
pub fn write(folder: &Path, asked: &[Record], votes: &Votes) -> anyhow::Result<()> {
    let records: Vec<Record> = votes.all().flat_map(|(voter, votes)| records(asked, voter, votes)).collect();
    let path = folder.join(FILE);
    if records.is_empty() && !path.exists() {
        return Ok(());
    }
    Ok(write_records(path, &records)?)
}

/// What one voter said. What they said when they were asked the same again is a record of its own, by which `dataset agreement` tells whether
/// they are of one mind; the same two in the other order are compared in the first record.
pub fn records(asked: &[Record], voter: &str, votes: &[Vote]) -> Vec<Record> {
    let mut of_record: BTreeMap<(u32, &str), Vec<&Vote>> = BTreeMap::new();
    for vote in votes {
        of_record.entry((u32::from(vote.repeat == Some(Repeat::Same)), &vote.record)).or_default().push(vote);
    }
    let by_id: BTreeMap<&str, &Record> = asked.iter().map(|record| (record.id.as_str(), record)).collect();
    let record = |((repeat, id), votes): ((u32, &str), Vec<&Vote>)| {
        let name = if voter.is_empty() { "human".to_string() } else { format!("human:{voter}") };
        let annotator = AnnotatorId { name, model: None, rubric: Some(RUBRIC.into()), repeat };
        let mut record = Record { annotator: Some(annotator), ..(*by_id.get(id)?).clone() };
        votes.iter().for_each(|vote| add(&mut record, &vote.said));
        if record.comparisons.is_empty() {
            // Where images are rated, those that are not would leave the others without an order.
            record.completions.retain(|completion| !completion.annotations.is_empty());
        }
        (!record.completions.is_empty()).then_some(record)
    };
    of_record.into_iter().filter_map(record).collect()
}

fn add(record: &mut Record, said: &Said) {
    match said {
        Said::Compared { shown, preferred, both_bad } => {
            let rationale = if *both_bad { "both are bad".to_string() } else { String::new() };
            record.comparisons.push(Comparison {
                shown: *shown,
                preferred: if *both_bad { Preferred::Tie } else { *preferred },
                rationale,
            });
        }
        Said::Rated { completion, ratings } => {
            let rated = ratings.iter().map(|(aspect, rating)| (*aspect, Rating { rating: *rating, rationale: String::new() }));
            record.completions[*completion].annotations.extend(rated);
        }
        Said::Skipped { .. } | Said::Undone => {}
    }
}

#[cfg(test)]
mod tests {
    use vp_data::{Aggregation, Aspect, Completion};

    use super::*;

    fn asked() -> Vec<Record> {
        let completion = |name: &str| Completion { image_path: format!("{name}.png"), ..Completion::default() };
        vec![Record::new("1", "a", vec![completion("x"), completion("y")]), Record::new("2", "b", vec![completion("z"), completion("w")])]
    }

    fn vote(record: &str, said: Said, repeat: Option<Repeat>) -> Vote {
        Vote { voter: "anna".into(), record: record.into(), said, repeat }
    }

    #[test]
    fn comparisons_in_both_orders_are_one_record_and_the_same_again_is_another() {
        let compared = |shown, preferred| Said::Compared { shown, preferred, both_bad: false };
        let votes = [
            vote("1", compared([1, 0], Preferred::First), None),
            vote("1", compared([0, 1], Preferred::Second), Some(Repeat::Swapped)),
            vote("1", compared([1, 0], Preferred::Second), Some(Repeat::Same)),
            vote("2", Said::Skipped { shown: vec![0, 1] }, None),
        ];
        let written = records(&asked(), "anna", &votes);
        let about: Vec<_> = written
            .iter()
            .map(|record| (record.id.as_str(), record.annotator.as_ref().unwrap().repeat, record.comparisons.len()))
            .collect();
        assert_eq!(about, [("1", 0, 2), ("1", 1, 1)], "nothing was said of what was skipped");
        assert_eq!(written[0].annotator.as_ref().unwrap().name, "human:anna");
        assert_eq!(written[0].pairs(&Aggregation::default()), [(1, 0)]);
        let bad = records(&asked(), "", &[vote("2", Said::Compared { shown: [0, 1], preferred: Preferred::Tie, both_bad: true }, None)]);
        assert_eq!((&*bad[0].annotator.as_ref().unwrap().name, &*bad[0].comparisons[0].rationale), ("human", "both are bad"));
    }

    #[test]
    fn only_images_that_were_rated_are_in_a_record_of_ratings() {
        let ratings: BTreeMap<Aspect, f64> = Aspect::ALL.into_iter().map(|aspect| (aspect, 4.0)).collect();
        let written = records(&asked(), "", &[vote("1", Said::Rated { completion: 1, ratings }, None)]);
        assert_eq!(written[0].completions.len(), 1);
        assert_eq!((&*written[0].completions[0].image_path, written[0].completions[0].annotations.len()), ("y.png", 4));
    }
}
