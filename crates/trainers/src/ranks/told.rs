//! What ranks tell each other beside gradients.

use serde::{Deserialize, Serialize};

use super::Ranks;
use crate::Error;

/// What a rank tells the others about its part of an update.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The observed values by name, as bits: JSON has no NaN.
    observed: Vec<(String, Vec<u64>)>,
    /// Images drawn or read.
    pub images: u64,
    /// The name of what is not finite, if something is.
    pub unsound: Option<String>,
    /// The names of the parameters with a gradient.
    pub with_gradient: Vec<String>,
    /// Seconds that the rank has spent with messages since the last update.
    pub waited: f64,
}

impl Told {
    /// With these values observed.
    pub fn of(observed: &[(String, Vec<f64>)]) -> Self {
        Self { observed: scores_to(observed), ..Self::default() }
    }

    /// What all ranks tell, in their order.
    pub fn exchanged(&self, ranks: &Ranks) -> Result<Vec<Self>, Error> {
        let own = serde_json::to_vec(self).expect("names and numbers are JSON");
        let read =
            |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(|error| Error::Config(format!("a rank of another version: {error}")));
        ranks.gather(&own)?.iter().map(read).collect()
    }

    /// The values that all ranks observed, by name, those of the first rank first.
    pub fn observed(all: &[Self]) -> Vec<(String, Vec<f64>)> {
        let mut merged: Vec<(String, Vec<f64>)> = Vec::new();
        for (name, values) in all.iter().flat_map(|told| scores_from(&told.observed)) {
            match merged.iter_mut().find(|(known, _)| *known == name) {
                Some((_, seen)) => seen.extend(values),
                None => merged.push((name, values)),
            }
        }
        merged
    }
}

/// Values by name, as bits.
pub(crate) fn scores_to(scores: &[(String, Vec<f64>)]) -> Vec<(String, Vec<u64>)> {
    scores.iter().map(|(name, values)| (name.clone(), values.iter().map(|value| value.to_bits()).collect())).collect()
}

/// The values that [`scores_to`] made bits of.
pub(crate) fn scores_from(bits: &[(String, Vec<u64>)]) -> Vec<(String, Vec<f64>)> {
    bits.iter().map(|(name, bits)| (name.clone(), bits.iter().map(|bits| f64::from_bits(*bits)).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::threads::side_by_side;
    use super::*;

    #[test]
    fn values_of_all_ranks_come_together_by_name_even_if_they_are_no_numbers() {
        let all = side_by_side(2, |ranks| {
            let own = match ranks.rank() {
                0 => vec![("loss".to_string(), vec![0.1]), ("kl".to_string(), vec![2.0])],
                _ => vec![("loss".to_string(), vec![f64::INFINITY, 0.3])],
            };
            Told::observed(&Told::of(&own).exchanged(&ranks).unwrap())
        });
        let expected = [("loss".to_string(), vec![0.1, f64::INFINITY, 0.3]), ("kl".into(), vec![2.0])];
        assert!(all.iter().all(|merged| *merged == expected), "{all:?}");
    }
}
