//! Ranks: processes that train one model side by side, each with a device of its own.
//!
//! A run on several ranks is the run of one. Every rank holds the whole model and computes its [part](Portion) of every update; the gradients are summed in
//! the order of the ranks, so that all ranks make the same update to the bit, and nothing but rounding depends on their number. What decides how a
//! run goes on, such as a signal, a value that is not finite or a rank that failed, is exchanged before anybody acts on it. The first rank
//! writes the run's folder; the others write nothing.
//!
//! How messages travel is a [`Transport`]: threads of one process here, MPI in the program.

mod grid;
pub mod threads;
mod told;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use half::bf16;
use serde::{Deserialize, Serialize};
use vp_core::profile::{self, Stage};

use crate::Error;

pub use grid::{Grid, Items, Portion};
pub(crate) use told::{Told, scores_from, scores_to};

/// Carries messages between ranks.
pub trait Transport: Debug + Send + Sync {
    /// The number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// What people call a rank, such as `rank 1 (process 1234 on node7)`.
    fn name(&self, rank: usize) -> String;

    /// Sends `messages[r]` to every rank `r`, this one included, and returns what each rank sent to this one, in the order of the ranks. All ranks
    /// call it equally often. It returns always: where a rank is gone, the transport ends the process.
    fn exchange(&self, messages: &[&[u8]]) -> Vec<Vec<u8>>;

    /// Waits until all ranks call it, however long the work of one of them still takes.
    fn part(&self) {
        self.exchange(&vec![&[][..]; self.size()]);
    }
}

/// The number format in which gradients travel between ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// 4 bytes for each value.
    #[default]
    F32,
    /// 2 bytes for each value, which keep 8 bits of its precision. The sums are made in f64.
    Bf16,
}

impl Reduction {
    /// Bytes of a value on its way.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The ranks of a run, as one of them sees the others; by default it is alone.
#[derive(Debug, Clone, Default)]
pub struct Ranks {
    transport: Option<Arc<dyn Transport>>,
    /// Whether a rank failed, after which nothing is exchanged but farewells.
    failed: Arc<AtomicBool>,
    waited: Arc<Mutex<Duration>>,
}

/// The first byte of a message.
const FINE: u8 = 0;
/// The first byte of the message of a rank that ends with an error, which follows.
const FAILED: u8 = 1;

impl Ranks {
    /// The ranks that `transport` connects.
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport: Some(transport).filter(|transport| transport.size() > 1), ..Self::default() }
    }

    /// The number of this rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.transport.as_ref().map_or(0, |transport| transport.rank())
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.transport.as_ref().map_or(1, |transport| transport.size())
    }

    /// Whether this is the only rank.
    pub fn are_one(&self) -> bool {
        self.transport.is_none()
    }

    /// Whether this is the rank that writes the run's folder.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What people call a rank.
    pub fn name(&self, rank: usize) -> String {
        self.transport.as_ref().map_or_else(|| format!("rank {rank}"), |transport| transport.name(rank))
    }

    /// This rank's share of `count` things in a row. The shares follow one another in the order of the ranks; the first ones are longer by one if the
    /// ranks do not divide `count`.
    pub fn share(&self, count: usize) -> Range<usize> {
        share_of(count, self.rank(), self.size())
    }

    /// The length of the longest share of `count` things.
    pub fn longest_share(&self, count: usize) -> usize {
        count.div_ceil(self.size())
    }

    /// What every rank gives, in the order of the ranks.
    ///
    /// # Errors
    /// When a rank ended with an error; all ranks that did not get this one.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if self.are_one() {
            return Ok(vec![own.to_vec()]);
        }
        let message = framed(FINE, own);
        self.exchange(&vec![message.as_slice(); self.size()])
    }

    /// As [`gather`](Self::gather), but of values.
    ///
    /// # Errors
    /// As there.
    pub fn gather_values(&self, own: &[f32]) -> Result<Vec<Vec<f32>>, Error> {
        if self.are_one() {
            return Ok(vec![own.to_vec()]);
        }
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(self.gather(&bytes)?.iter().map(|bytes| decoded(bytes, Reduction::F32).collect()).collect())
    }

    /// Measures `items`, each rank its share, and returns the `N` columns of values that all of them measured, in the order of the items. All ranks
    /// get the same, to the bit, as one rank that measures every item.
    ///
    /// # Errors
    /// Those of `measure`, and as [`gather`](Self::gather).
    pub fn measure<T, const N: usize>(
        &self,
        items: &[T],
        mut measure: impl FnMut(&T) -> Result<[Vec<f64>; N], Error>,
    ) -> Result<[Vec<f64>; N], Error> {
        let mut columns: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
        for item in &items[self.share(items.len())] {
            columns.iter_mut().zip(measure(item)?).for_each(|(column, values)| column.extend(values));
        }
        if self.are_one() {
            return Ok(columns);
        }
        let names: Vec<String> = (0..N).map(|column| column.to_string()).collect();
        let told: Vec<(String, Vec<f64>)> = names.into_iter().zip(columns).collect();
        let all = Told::observed(&Told::of(&told).exchanged(self)?);
        let columns: Vec<Vec<f64>> = all.into_iter().map(|(_, values)| values).collect();
        Ok(columns.try_into().expect("every rank tells all columns"))
    }

    /// Replaces `values` by their sums over all ranks, which have equally many. The sums are the same on all ranks to the bit: each is made by one
    /// rank, of the values in the order of the ranks.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn sum(&self, values: &mut [f32], reduction: Reduction) -> Result<(), Error> {
        if self.are_one() {
            return Ok(());
        }
        // Each rank sums a share: in all, every value travels twice, however many ranks there are.
        let shares = (0..self.size()).map(|rank| share_of(values.len(), rank, self.size()));
        let parts: Vec<Vec<u8>> = shares.map(|share| framed(FINE, &encoded(&values[share], reduction))).collect();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut sums = vec![0f64; self.share(values.len()).len()];
        for part in self.exchange(&parts)? {
            sums.iter_mut().zip(decoded(&part, reduction)).for_each(|(sum, value)| *sum += f64::from(value));
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        let all = self.gather(&encoded(&sums, reduction))?;
        values.iter_mut().zip(all.iter().flat_map(|part| decoded(part, reduction))).for_each(|(value, sum)| *value = sum);
        Ok(())
    }

    /// Tells the other ranks that this one ends with an error. They learn it where they wait next. Nothing happens if they know, or if a rank failed
    /// before.
    pub fn fail(&self, message: &str) {
        let Some(transport) = &self.transport else { return };
        if !self.failed.swap(true, Ordering::Relaxed) {
            let message = framed(FAILED, message.as_bytes());
            transport.exchange(&vec![message.as_slice(); self.size()]);
        }
    }

    /// Waits until all ranks are at their end, failed or not. The last that they exchange.
    pub fn part(&self) {
        if let Some(transport) = &self.transport {
            transport.part();
        }
    }

    /// The time that this rank has spent with messages, waiting for the others included, since this was asked last.
    pub fn take_waited(&self) -> Duration {
        std::mem::take(&mut *self.waited.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn exchange(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, Error> {
        let transport = self.transport.as_ref().expect("one rank alone exchanges nothing");
        let began = Instant::now();
        let mut received = profile::time(Stage::Ranks, || transport.exchange(messages));
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner) += began.elapsed();
        if let Some(rank) = received.iter().position(|message| message.first() != Some(&FINE)) {
            self.failed.store(true, Ordering::Relaxed);
            let problem = String::from_utf8_lossy(received[rank].get(1..).unwrap_or_default()).into_owned();
            return Err(Error::OfRank { rank: self.name(rank), problem });
        }
        for message in &mut received {
            message.remove(0);
        }
        Ok(received)
    }
}

/// Rank `rank`'s share of `count` things.
pub(crate) fn share_of(count: usize, rank: usize, size: usize) -> Range<usize> {
    let start = |rank: usize| rank * (count / size) + rank.min(count % size);
    start(rank)..start(rank + 1)
}

fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(content.len() + 1);
    message.push(kind);
    message.extend_from_slice(content);
    message
}

fn encoded(values: &[f32], reduction: Reduction) -> Vec<u8> {
    match reduction {
        Reduction::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Reduction::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}

fn decoded(bytes: &[u8], reduction: Reduction) -> Box<dyn Iterator<Item = f32> + '_> {
    match reduction {
        Reduction::F32 => Box::new(bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("4 bytes")))),
        Reduction::Bf16 => Box::new(bytes.chunks_exact(2).map(|value| bf16::from_le_bytes(value.try_into().expect("2 bytes")).to_f32())),
    }
}

#[cfg(test)]
mod tests {
    use super::threads::side_by_side;
    use super::*;

    #[test]
    fn shares_follow_one_another_and_cover_all() {
        let shares = |count, size| (0..size).map(|rank| share_of(count, rank, size)).collect::<Vec<_>>();
        assert_eq!(shares(8, 3), [0..3, 3..6, 6..8]);
        assert_eq!(shares(2, 3), [0..1, 1..2, 2..2]);
        assert_eq!(Ranks::default().share(5), 0..5);
    }

    #[test]
    fn sums_are_the_same_to_the_bit_on_all_ranks_and_come_in_their_order() {
        for size in 1..=4 {
            let of_rank = |rank: usize| (0..7).map(|i| (rank + 1) as f32 * 0.1 + i as f32 * 1e-3).collect::<Vec<f32>>();
            let sums = side_by_side(size, |ranks| {
                let mut values = of_rank(ranks.rank());
                ranks.sum(&mut values, Reduction::F32).unwrap();
                values
            });
            assert!(sums.iter().all(|values| values == &sums[0]), "{sums:?}");
            for (i, sum) in sums[0].iter().enumerate() {
                let expected: f64 = (0..size).map(|rank| f64::from(of_rank(rank)[i])).sum();
                assert_eq!(*sum, expected as f32);
            }
        }
    }

    #[test]
    fn a_value_takes_as_many_bytes_as_its_format_says() {
        for reduction in [Reduction::F32, Reduction::Bf16] {
            assert_eq!(encoded(&[1.0, -2.5, 1e30], reduction).len() as u64, 3 * reduction.bytes());
        }
    }

    #[test]
    fn in_half_precision_sums_are_the_same_on_all_ranks_and_near() {
        let sums = side_by_side(3, |ranks| {
            let mut values = vec![1.0 / 3.0 + ranks.rank() as f32, 1e30, -0.1];
            ranks.sum(&mut values, Reduction::Bf16).unwrap();
            values
        });
        assert!(sums.iter().all(|values| values == &sums[0]), "{sums:?}");
        for (sum, exact) in sums[0].iter().zip([4.0, 3e30, -0.3]) {
            assert!((sum / exact - 1.0).abs() < 0.01, "{sum} {exact}");
        }
        assert_ne!(sums[0][2], -0.3);
    }

    #[test]
    fn what_is_gathered_is_in_the_order_of_the_ranks() {
        let all = side_by_side(3, |ranks| ranks.gather(&vec![ranks.rank() as u8; ranks.rank()]).unwrap());
        assert!(all.iter().all(|gathered| *gathered == [vec![], vec![1], vec![2, 2]]), "{all:?}");
        assert_eq!(Ranks::default().gather(b"a").unwrap(), [b"a".to_vec()]);
    }

    #[test]
    fn what_ranks_measure_is_in_the_order_of_the_items() {
        let squares = |item: &u32| Ok([vec![f64::from(*item)], vec![f64::from(item * item); (item % 2) as usize]]);
        let expected = [vec![1.0, 2.0, 3.0, 4.0, 5.0], vec![1.0, 9.0, 25.0]];
        for size in 1..=6 {
            let all = side_by_side(size, |ranks| ranks.measure(&[1, 2, 3, 4, 5], squares).unwrap());
            assert!(all.iter().all(|columns| *columns == expected), "{all:?}");
        }
    }

    #[test]
    fn a_rank_that_fails_is_named_to_all_others_where_they_wait_next() {
        let ends = side_by_side(3, |ranks| {
            let end = if ranks.rank() == 1 {
                Err("the server is gone".into())
            } else {
                ranks.sum(&mut [1.0; 5], Reduction::F32).map_err(|error| error.to_string())
            };
            if let Err(message) = &end {
                ranks.fail(message);
            }
            ranks.part();
            end.unwrap_err()
        });
        assert_eq!(ends[1], "the server is gone");
        assert_eq!([&ends[0], &ends[2]], ["thread 1: the server is gone"; 2]);
    }
}
