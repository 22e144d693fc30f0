//! Whether an annotator agrees with itself: when two images change places, and when it is asked again.

use serde::{Deserialize, Serialize};

use crate::interval::{Interval, wilson};

/// What was preferred of two images, by where they were shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The one shown first.
    First,
    /// The one shown second.
    Second,
    /// Neither.
    Tie,
}

impl Choice {
    /// The same preference with the images in the other order.
    pub fn swapped(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
            Self::Tie => Self::Tie,
        }
    }
}

/// How answers depend on the order in which two images are shown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PositionBias {
    /// Pairs asked in both orders.
    pub pairs: usize,
    /// Of those, pairs whose image shown first was preferred both times.
    pub always_first: usize,
    /// Pairs whose image shown second was preferred both times.
    pub always_second: usize,
    /// Pairs that were a tie in one order and not in the other.
    pub tied_once: usize,
    /// `(always_first + always_second + tied_once) / pairs`: answers that the order changed. 0 is an annotator that looks at the images alone.
    pub flip_rate: Interval,
    /// Among the single answers that are not ties, the share that prefers the image shown first; ½ without bias. `None` if all are ties. Its interval
    /// takes the answers as independent, though the two to one pair exclude each other where the annotator is consistent: too wide if anything.
    pub first_rate: Option<Interval>,
}

/// Counts position bias over pairs asked in both orders: the answer to `[a, b]`, then the answer to `[b, a]`, each by where the images were shown,
/// with [`wilson`]'s intervals. `None` for no pair, or a level outside (0, 1).
///
/// Source: Zheng et al., "Judging LLM-as-a-Judge" (arXiv 2306.05685), section 3.3 and Table 2, where 1 − `flip_rate` is "consistency".
pub fn position_bias(answers: &[(Choice, Choice)], level: f64) -> Option<PositionBias> {
    let count = |is_counted: &dyn Fn(Choice, Choice) -> bool| answers.iter().filter(|(one, other)| is_counted(*one, *other)).count();
    let always = |choice| count(&|one, other| one == choice && other == choice);
    let (always_first, always_second) = (always(Choice::First), always(Choice::Second));
    let flipped = count(&|one, other| one != other.swapped());
    let single = |choice| answers.iter().flat_map(|(one, other)| [one, other]).filter(|answer| **answer == choice).count();
    let (first, second) = (single(Choice::First), single(Choice::Second));
    Some(PositionBias {
        pairs: answers.len(),
        always_first,
        always_second,
        tied_once: flipped - always_first - always_second,
        flip_rate: wilson(flipped as f64, answers.len(), level)?,
        first_rate: wilson(first as f64, first + second, level),
    })
}

/// How an annotator's repeated answers to the same questions agree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SelfConsistency {
    /// Questions answered twice or more.
    pub items: usize,
    /// The chance that two answers to the same question are the same, averaged over questions, in [0, 1].
    pub pairwise: f64,
    /// The share of questions whose answers are all the same. It falls with the number of repeats; `pairwise` does not.
    pub unanimous: Interval,
}

/// Self-consistency over repeats, a list of answers per question; questions with fewer than 2 answers do not count. With `m` answers, `n_c` of them
/// `c`, a question's share is `Σ_c n_c (n_c − 1) / (m (m − 1))`. Not corrected for chance: [`crate::agreement::krippendorff_alpha`] of the same lists
/// is. `None` if no question counts, or for a level outside (0, 1).
///
/// Source: the observed agreement of Fleiss, Psychological Bulletin 76 (1971).
pub fn self_consistency<T: PartialEq>(answers: &[Vec<T>], level: f64) -> Option<SelfConsistency> {
    let repeated: Vec<_> = answers.iter().filter(|repeats| repeats.len() > 1).collect();
    let agreement = |repeats: &&Vec<T>| {
        let m = repeats.len();
        let alike: usize = (1..m).map(|i| repeats[..i].iter().filter(|earlier| **earlier == repeats[i]).count()).sum();
        (2 * alike) as f64 / (m * (m - 1)) as f64
    };
    let unanimous = repeated.iter().filter(|repeats| repeats.iter().all(|answer| *answer == repeats[0])).count();
    let unanimous = wilson(unanimous as f64, repeated.len(), level)?;
    let pairwise = repeated.iter().map(agreement).sum::<f64>() / repeated.len() as f64;
    Some(SelfConsistency { items: repeated.len(), pairwise, unanimous })
}

#[cfg(test)]
mod tests {
    use super::Choice::{First, Second, Tie};
    use super::*;

    #[test]
    fn each_kind_of_flip_is_counted() {
        let answers =
            [(First, Second), (Second, First), (Tie, Tie), (First, First), (First, First), (Second, Second), (Tie, First), (Second, Tie)];
        let bias = position_bias(&answers, 0.95).unwrap();
        assert_eq!((bias.pairs, bias.always_first, bias.always_second, bias.tied_once), (8, 2, 1, 2));
        assert_eq!(bias.flip_rate, wilson(5.0, 8, 0.95).unwrap());
        // 1 + 1 + 4 + 1 of 12 that are no tie.
        assert_eq!(bias.first_rate, wilson(7.0, 12, 0.95));
    }

    #[test]
    fn a_consistent_annotator_has_no_bias_and_a_blind_one_nothing_else() {
        let consistent = position_bias(&[(First, Second), (Second, First), (First, Second)], 0.95).unwrap();
        assert_eq!((consistent.flip_rate.estimate, consistent.first_rate.unwrap().estimate), (0.0, 0.5));
        let blind = position_bias(&[(First, First); 3], 0.95).unwrap();
        assert_eq!((blind.flip_rate.estimate, blind.first_rate.unwrap().estimate), (1.0, 1.0));
        assert_eq!(position_bias(&[(Tie, Tie)], 0.95).unwrap().first_rate, None);
        assert_eq!(position_bias(&[], 0.95), None);
        assert_eq!(position_bias(&[(Tie, Tie)], 2.0), None);
    }

    #[test]
    fn repeats_agree_by_pairs() {
        // 2 of 6 ordered pairs; all; the third is asked once.
        let found = self_consistency(&[vec!["a", "a", "b"], vec!["c", "c"], vec!["d"]], 0.95).unwrap();
        assert_eq!((found.items, found.pairwise), (2, (1.0 / 3.0 + 1.0) / 2.0));
        assert_eq!(found.unanimous, wilson(1.0, 2, 0.95).unwrap());
        assert_eq!(self_consistency(&[vec![1], vec![]], 0.95), None);
    }

    #[test]
    fn answers_that_are_nan_agree_with_nothing() {
        let found = self_consistency(&[vec![f64::NAN, f64::NAN], vec![1.0, 1.0]], 0.95).unwrap();
        assert_eq!((found.pairwise, found.unanimous.estimate), (0.5, 0.5));
    }
}
