//! Choosing at random.

use rand::{Rng, RngExt};

/// One of `values`, each as likely as the others.
pub fn pick<T: Copy>(rng: &mut impl Rng, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}
