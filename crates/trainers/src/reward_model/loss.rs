//! What is known of ranked images, and what each thing that is known counts in the loss of a micro-batch.

use burn::tensor::Tensor;
use vp_rewards::{pair_losses, tie_losses};

use crate::data::rankings::Order;
use crate::losses::rating_errors;

/// The middle of a rating's scale, 1 to 5, where a head's score is 0.
const MIDDLE: f64 = 3.0;

/// What is known of some images.
#[derive(Default)]
pub(super) struct Known {
    /// Of their order: overall, then on each aspect; as indices into the images.
    pub orders: [Order; 5],
    /// Each aspect's ratings, with the images they are of.
    pub ratings: [Vec<(usize, f64)>; 4],
}

impl Known {
    /// Takes up what is known of further images, which are the `first` and the next.
    pub fn extend(&mut self, other: &Self, first: usize) {
        let shift = |(a, b): &(usize, usize)| (a + first, b + first);
        for (all, order) in self.orders.iter_mut().zip(&other.orders) {
            all.pairs.extend(order.pairs.iter().map(shift));
            all.ties.extend(order.ties.iter().map(shift));
        }
        for (all, ratings) in self.ratings.iter_mut().zip(&other.ratings) {
            all.extend(ratings.iter().map(|(image, rating)| (image + first, *rating)));
        }
    }
}

/// What one of what is known counts in the loss of a micro-batch.
pub(super) enum LossWeights {
    /// A pair of each order, and whether ties are learnt.
    Pairs([f64; 5], bool),
    /// A rating on each aspect.
    Ratings([f64; 4]),
}

/// Every kind of which there is one counts alike, and so do all of a kind.
fn alike<const N: usize>(counts: [usize; N]) -> [f64; N] {
    let kinds = counts.iter().filter(|count| **count > 0).count().max(1) as f64;
    counts.map(|count| 1.0 / (kinds * count.max(1) as f64))
}

impl LossWeights {
    /// For Bradley-Terry: each order counts alike, and so does each of its pairs (and ties, where they are learnt).
    pub fn of_pairs(known: &[&Known], ties: bool) -> Self {
        let count = |order: &Order| order.pairs.len() + if ties { order.ties.len() } else { 0 };
        Self::Pairs(alike(std::array::from_fn(|i| known.iter().map(|one| count(&one.orders[i])).sum())), ties)
    }

    /// For ratings: each aspect counts alike, and so does each of its ratings.
    pub fn of_ratings(known: &[&Known]) -> Self {
        Self::Ratings(alike(std::array::from_fn(|i| known.iter().map(|one| one.ratings[i].len()).sum())))
    }

    /// `[1]`.
    pub fn loss(&self, scores: &Tensor<2>, known: &Known) -> Tensor<1> {
        let [images, heads] = scores.dims();
        let device = scores.device().without_autodiff();
        let of_head = |head| scores.clone().narrow(1, head, 1).reshape([images]);
        let mut total = Tensor::zeros([1], &device);
        match self {
            Self::Pairs(weights, ties) => {
                for (head, (order, weight)) in known.orders.iter().zip(weights).enumerate().take(heads) {
                    if !order.pairs.is_empty() {
                        total = pair_losses(of_head(head), &order.pairs).sum() * *weight + total;
                    }
                    if *ties && !order.ties.is_empty() {
                        total = tie_losses(of_head(head), &order.ties).sum() * *weight + total;
                    }
                }
            }
            Self::Ratings(weights) => {
                for (head, (ratings, weight)) in (1..heads).zip(known.ratings.iter().zip(weights)) {
                    if !ratings.is_empty() {
                        total = rating_errors(of_head(head), &about_the_middle(ratings)).sum() * *weight + total;
                    }
                }
            }
        }
        total
    }
}

/// Each rating less the middle of its scale.
fn about_the_middle(ratings: &[(usize, f64)]) -> Vec<(usize, f64)> {
    ratings.iter().map(|(image, rating)| (*image, rating - MIDDLE)).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::run::values;

    #[test]
    fn ratings_are_learnt_as_squared_errors_a_mean_over_images_then_over_rated_aspects() {
        let device = Device::flex();
        // Overall, then four aspects, of two images.
        let scores = Tensor::<2>::from_data([[9.0, 1.0, 0.0, 0.5, 7.0], [9.0, -1.0, 0.0, 0.0, 7.0]], &device);
        // Prompt following 4 and 3, fidelity 5 of the second image alone; the others were not rated.
        let ratings = [vec![(0, 4.0), (1, 3.0)], vec![], vec![(1, 5.0)], vec![]];
        let known = Known { ratings, ..Known::default() };
        let loss = LossWeights::of_ratings(&[&known]).loss(&scores, &known);
        // ((1 − 1)² + (−1 − 0)²) / 2 and (0 − 2)², halved.
        assert_eq!(values(&loss), [(0.5 + 4.0) / 2.0]);
    }

    #[test]
    fn what_is_known_of_further_images_is_said_of_them() {
        let order = Order { pairs: vec![(1, 0)], ties: vec![(0, 2)] };
        let one = Known { orders: std::array::from_fn(|_| order.clone()), ratings: std::array::from_fn(|_| vec![(2, 4.5)]) };
        let mut all = Known::default();
        all.extend(&one, 0);
        all.extend(&one, 3);
        assert_eq!((&all.orders[4].pairs[..], &all.orders[4].ties[..]), (&[(1, 0), (4, 3)][..], &[(0, 2), (3, 5)][..]));
        assert_eq!(all.ratings[3], [(2, 4.5), (5, 4.5)]);
    }
}
