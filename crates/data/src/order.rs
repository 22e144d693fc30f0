//! The order in which a list is walked, epoch after epoch.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use vp_core::noise::{Noise, Purpose};

/// An endless walk over the indices `0..len`, in a new order each epoch.
///
/// The order of an epoch is a function of `(noise, purpose, epoch, len)` alone, and the place in the walk is the caller's to
/// know: there is nothing to save and nothing to restore. The Fisher-Yates shuffle is spelled out here, so that no release of
/// the `rand` crates can change an order.
#[derive(Clone, Debug)]
pub struct ShuffledOrder {
    len: usize,
    noise: Noise,
    purpose: Purpose,
    /// The epoch walked last, so that a walk in order shuffles once an epoch.
    cached: (u64, Vec<usize>),
}

impl ShuffledOrder {
    /// The walk over `len` entries.
    ///
    /// `purpose` keeps the lists of one run apart (its prompts, its regularising images): two lists of equal length
    /// walked under one noise and one purpose would pair the same entries in every epoch.
    ///
    /// # Panics
    /// When the list is empty.
    pub fn new(len: usize, noise: Noise, purpose: Purpose) -> Self {
        assert!(len > 0, "an order of no entries");
        Self { len, noise, purpose, cached: (0, epoch_order(len, noise.stream(purpose, 0, 0))) }
    }

    /// The `count` entries from place `start` of the walk on.
    pub fn entries(&mut self, start: u64, count: usize) -> Vec<usize> {
        (start..start + count as u64).map(|place| self.entry(place)).collect()
    }

    fn entry(&mut self, place: u64) -> usize {
        let (epoch, position) = (place / self.len as u64, (place % self.len as u64) as usize);
        if self.cached.0 != epoch {
            self.cached = (epoch, epoch_order(self.len, self.noise.stream(self.purpose, epoch, 0)));
        }
        self.cached.1[position]
    }
}

fn epoch_order(len: usize, mut rng: ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A uniform draw from `0..bound`: draws from the incomplete last multiple of `bound` are thrown away.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let incomplete = (u64::MAX % bound + 1) % bound;
    loop {
        let draw = rng.next_u64();
        if draw <= u64::MAX - incomplete {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn walk(len: usize, seed: u64, purpose: Purpose) -> ShuffledOrder {
        ShuffledOrder::new(len, Noise::new(seed), purpose)
    }

    /// From a separate ChaCha8 and Fisher-Yates in Python: the orders of existing runs must never change.
    #[test]
    fn orders_are_pinned() {
        assert_eq!(epoch_order(8, ChaCha8Rng::from_seed([0; 32])), [2, 1, 3, 7, 0, 4, 5, 6]);
        // The key (42, 7, 3, 0).
        assert_eq!(epoch_order(8, Noise::new(42).stream(Purpose::PARAMETER_INIT, 3, 0)), [4, 2, 6, 5, 1, 3, 0, 7]);
    }

    #[test]
    fn every_epoch_is_another_permutation() {
        let entries = walk(50, 1, Purpose::DATA_ORDER).entries(0, 150);
        for epoch in entries.chunks(50) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(entries[..50], entries[50..100]);
        assert_ne!(entries[..50], walk(50, 2, Purpose::DATA_ORDER).entries(0, 50));
        assert_ne!(entries[..50], walk(50, 1, Purpose::AUGMENTATION).entries(0, 50));
    }

    /// Each of the 6 orders of 3 entries has probability 1/6: over 6000 epochs 1000 +- 29 (one sigma).
    #[test]
    fn shuffle_is_uniform() {
        let mut counts = std::collections::BTreeMap::new();
        for epoch in 0..6000 {
            *counts.entry(epoch_order(3, Noise::new(9).stream(Purpose::DATA_ORDER, epoch, 0))).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (1000i32 - count).abs() < 130), "{counts:?}");
    }

    #[test]
    fn any_place_can_be_entered() {
        let whole = walk(5, 3, Purpose::DATA_ORDER).entries(0, 20);
        for start in 0..15 {
            assert_eq!(walk(5, 3, Purpose::DATA_ORDER).entries(start as u64, 5), whole[start..start + 5]);
        }
    }
}
