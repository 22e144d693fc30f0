//! The known orders and ratings of images, and their weights in the loss of a micro-batch.

use burn::tensor::Tensor;
use vp_rewards::{pair_losses, tie_losses};

use crate::data::rankings::Order;
use crate::losses::rating_errors;

/// The middle of the rating scale, which runs from 1 to 5; a head's score of 0 stands for it.
const MIDDLE: f64 = 3.0;

/// The known orders and ratings of some images.
#[derive(Default)]
pub(super) struct Known {
    /// The orders of the images, as pairs of indices: overall, then on each aspect.
    pub orders: [Order; 5],
    /// The ratings on each aspect, as (image, rating).
    pub ratings: [Vec<(usize, f64)>; 4],
}

impl Known {
    /// Appends the orders and ratings of further images, whose indices start at `first`.
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

/// The weights of orders or ratings in the loss of a micro-batch.
pub(super) enum LossWeights {
    /// The weight of each pair, overall and on each aspect, and whether ties are learnt too.
    Pairs([f64; 5], bool),
    /// The weight of each rating, by aspect.
    Ratings([f64; 4]),
}

/// Equal weights for all kinds with a count above 0, and within a kind for all its members. The weights of all members sum to 1.
fn alike<const N: usize>(counts: [usize; N]) -> [f64; N] {
    let kinds = counts.iter().filter(|count| **count > 0).count().max(1) as f64;
    counts.map(|count| 1.0 / (kinds * count.max(1) as f64))
}

impl LossWeights {
    /// The weights for Bradley-Terry: equal for each order, and within an order for each pair (and each tie, if ties are learnt).
    pub fn of_pairs(known: &[&Known], ties: bool) -> Self {
        let count = |order: &Order| order.pairs.len() + if ties { order.ties.len() } else { 0 };
        Self::Pairs(alike(std::array::from_fn(|i| known.iter().map(|one| count(&one.orders[i])).sum())), ties)
    }

    /// The weights for ratings: equal for each aspect, and within an aspect for each rating.
    pub fn of_ratings(known: &[&Known]) -> Self {
        Self::Ratings(alike(std::array::from_fn(|i| known.iter().map(|one| one.ratings[i].len()).sum())))
    }

    /// The loss of `scores`, `[images, heads]` → `[1]`.
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

/// The ratings minus the middle of their scale.
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
        // Scores of two images: overall, then on four aspects.
        let scores = Tensor::<2>::from_data([[9.0, 1.0, 0.0, 0.5, 7.0], [9.0, -1.0, 0.0, 0.0, 7.0]], &device);
        // Prompt following 4 and 3; fidelity 5, of the second image only. The other aspects were not rated.
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
