//! Which prompts are held out.

use vp_core::noise::{Noise, Purpose};

use crate::near_duplicates::groups;
use crate::{Error, Record, Result, ShuffledOrder};

/// Records in two parts, as indices in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSplit {
    /// Records to learn from.
    pub train: Vec<usize>,
    /// Records to test on.
    pub held_out: Vec<usize>,
}

/// Holds out about `fraction` of the records, by prompt: no two records of one prompt, or of near-duplicates, are on different sides.
///
/// Near-duplicates have the same letters and digits, or share three fifths of their word 3-grams (Jaccard similarity); chains of them
/// stay together. Groups are drawn in an order that `seed` gives and held out as long as they fit: never more than `fraction`, and less
/// where what is left comes in larger groups. The same records, fraction and seed give the same parts.
///
/// # Errors
/// A fraction that is not between 0 and 1.
pub fn split(records: &[Record], fraction: f64, seed: u64) -> Result<RecordSplit> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::BadFraction { fraction });
    }
    let group_of = groups(&records.iter().map(|record| record.prompt.as_str()).collect::<Vec<_>>());
    let mut members = vec![Vec::new(); records.len()];
    group_of.into_iter().enumerate().for_each(|(record, group)| members[group].push(record));
    members.retain(|group| !group.is_empty());

    let wanted = (fraction * records.len() as f64).round() as usize;
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    if !members.is_empty() {
        let mut order = ShuffledOrder::new(members.len(), Noise::new(seed), Purpose::DATA_ORDER);
        for group in order.entries(0, members.len()) {
            let group = &members[group];
            if held_out.len() + group.len() <= wanted { &mut held_out } else { &mut train }.extend(group);
        }
    }
    train.sort_unstable();
    held_out.sort_unstable();
    Ok(RecordSplit { train, held_out })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::near_duplicates::tests::{are_near_duplicates, prompts};

    fn records(prompts: &[String]) -> Vec<Record> {
        prompts.iter().map(|prompt| Record::new("1", prompt, Vec::new())).collect()
    }

    #[test]
    fn no_near_duplicates_straddle_and_nothing_is_lost() {
        let prompts = prompts(600, 300);
        let parts = split(&records(&prompts), 0.25, 3).unwrap();
        let straddling = parts.train.iter().flat_map(|&a| parts.held_out.iter().map(move |&b| (a, b)));
        let straddling: Vec<_> = straddling.filter(|&(a, b)| are_near_duplicates(&prompts[a], &prompts[b])).collect();
        assert_eq!(straddling, [], "near-duplicates on both sides");
        let pairs = (0..prompts.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        assert!(pairs.filter(|&(a, b)| are_near_duplicates(&prompts[a], &prompts[b])).count() > 100, "there is something to keep together");
        let mut all = [parts.train, parts.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..prompts.len()).collect::<Vec<_>>());
        assert!((140..=150).contains(&parts.held_out.len()), "{} of 600", parts.held_out.len());
    }

    #[test]
    fn the_seed_decides() {
        let records = records(&prompts(300, 300));
        assert_eq!(split(&records, 0.2, 1).unwrap(), split(&records, 0.2, 1).unwrap());
        assert_ne!(split(&records, 0.2, 1).unwrap(), split(&records, 0.2, 2).unwrap());
        let same = vec![records[0].clone(); 5];
        assert_eq!(split(&same, 0.5, 1).unwrap(), RecordSplit { train: (0..5).collect(), held_out: vec![] });
        assert_eq!(split(&[], 0.5, 1).unwrap(), RecordSplit { train: vec![], held_out: vec![] });
        for fraction in [0.0, 1.0, -0.5, f64::NAN] {
            let message = split(&records, fraction, 1).unwrap_err().to_string();
            assert!(message.contains("above 0 and below 1"), "{message}");
        }
    }
}
