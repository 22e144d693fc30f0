//! Which rank computes what of an update.

use std::ops::Range;

use super::{Ranks, share_of};
use crate::Error;

/// One rank's rows of a micro-batch: part `index`, counted from 0, of `of` equal parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// The part's number, counted from 0.
    pub index: usize,
    /// The number of parts.
    pub of: usize,
}

impl Portion {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The rows of this part, of `count` in all, which the parts divide.
    pub fn rows(self, count: usize) -> Range<usize> {
        share_of(count, self.index, self.of)
    }

    /// The numbers of this part's `rows` in the micro-batch, under which their random numbers are drawn.
    pub fn samples(self, rows: usize) -> Vec<u64> {
        let first = (rows * self.index) as u64;
        (first..first + rows as u64).collect()
    }
}

/// What an update consists of, as far as ranks can share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// How many rows, pairs or groups a micro-batch has.
    pub count: usize,
    /// How many images or pairs of the config's batch size each of them is.
    pub size: usize,
    /// The key of the batch size in the config.
    pub key: String,
}

impl Items {
    /// As many items as the config's `key` says.
    pub fn of(key: impl Into<String>, count: usize) -> Self {
        Self { count, size: 1, key: key.into() }
    }
}

/// The place of a rank: the micro-batches of an update are dealt out to `lanes`, and each is split into `parts`. Ranks with the same micro-batch follow
/// one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Micro-batches that are computed at the same time, by different ranks.
    pub lanes: usize,
    /// The lane of this rank.
    pub lane: usize,
    /// The rows of this rank in the micro-batches of its lane.
    pub part: Portion,
}

impl Grid {
    /// The place of a rank in updates of so many `micro_batches`, each of these `items`. Whole micro-batches are dealt out where they can be, because the
    /// larger an operation, the better a device is used.
    ///
    /// # Errors
    /// When the ranks do not divide an update, with the numbers that would.
    pub fn of(ranks: &Ranks, micro_batches: usize, items: &Items) -> Result<Self, Error> {
        if ranks.are_one() {
            return Ok(Self { lanes: 1, lane: 0, part: Portion::WHOLE });
        }
        let (rank, size) = (ranks.rank(), ranks.size());
        let Some(lanes) = lanes(size, micro_batches, items.count) else { return Err(refused(size, micro_batches, items)) };
        let parts = size / lanes;
        Ok(Self { lanes, lane: rank / parts, part: Portion { index: rank % parts, of: parts } })
    }
}

/// The largest number of lanes with which `size` ranks share an update equally.
fn lanes(size: usize, micro_batches: usize, items: usize) -> Option<usize> {
    let fits = |lanes: &usize| size.is_multiple_of(*lanes) && micro_batches.is_multiple_of(*lanes) && items.is_multiple_of(size / lanes);
    (1..=size.min(micro_batches)).rev().find(fits)
}

fn refused(size: usize, micro_batches: usize, Items { count, size: each, key }: &Items) -> Error {
    let works: Vec<String> = (1..=count * micro_batches)
        .filter(|size| lanes(*size, micro_batches, *count).is_some())
        .take(12)
        .map(|size| size.to_string())
        .collect();
    let below = count / size * size;
    let near: Vec<String> = [below, below + size].iter().filter(|count| **count > 0).map(|count| (count * each).to_string()).collect();
    let (of_update, ranks) = match micro_batches {
        1 => ("one micro-batch".to_string(), if works.len() == 1 { "rank" } else { "ranks" }),
        more => (format!("{more} micro-batches"), "ranks"),
    };
    Error::Config(format!(
        "{size} ranks do not divide an update of {of_update} of {} ({key}); expected {} {ranks}, or {key} = {}",
        count * each,
        works.join(", "),
        near.join(" or ")
    ))
}

#[cfg(test)]
mod tests {
    use super::super::threads::side_by_side;
    use super::*;

    fn grids(size: usize, micro_batches: usize, items: usize) -> Vec<Grid> {
        side_by_side(size, |ranks| Grid::of(&ranks, micro_batches, &Items::of("algo.sft.batch_size", items)).unwrap())
    }

    #[test]
    fn micro_batches_are_dealt_out_first_and_rows_where_they_do_not_suffice() {
        let place = |grid: &Grid| (grid.lanes, grid.lane, grid.part.index, grid.part.of);
        assert_eq!(grids(1, 4, 8).iter().map(place).collect::<Vec<_>>(), [(1, 0, 0, 1)]);
        assert_eq!(grids(2, 4, 8).iter().map(place).collect::<Vec<_>>(), [(2, 0, 0, 1), (2, 1, 0, 1)]);
        assert_eq!(grids(2, 3, 8).iter().map(place).collect::<Vec<_>>(), [(1, 0, 0, 2), (1, 0, 1, 2)]);
        assert_eq!(
            grids(6, 2, 9).iter().map(place).collect::<Vec<_>>(),
            [(2, 0, 0, 3), (2, 0, 1, 3), (2, 0, 2, 3), (2, 1, 0, 3), (2, 1, 1, 3), (2, 1, 2, 3)]
        );
        let parts: Vec<Portion> = grids(3, 1, 6).iter().map(|grid| grid.part).collect();
        assert_eq!(parts.iter().map(|part| part.rows(6)).collect::<Vec<_>>(), [0..2, 2..4, 4..6]);
        assert_eq!(parts[2].samples(2), [4, 5]);
    }

    #[test]
    fn what_does_not_divide_is_refused_with_numbers_that_would() {
        let told = |size, micro_batches, items: Items| {
            let told = side_by_side(size, move |ranks| Grid::of(&ranks, micro_batches, &items).unwrap_err().to_string());
            told.into_iter().next().unwrap()
        };
        assert_eq!(
            told(3, 1, Items::of("algo.refl.batch_size", 4)),
            "3 ranks do not divide an update of one micro-batch of 4 (algo.refl.batch_size); expected 1, 2, 4 ranks, or algo.refl.batch_size = 3 or 6"
        );
        let groups = Items { count: 4, size: 8, key: "algo.dgpo.train.batch_size".into() };
        assert!(told(3, 2, groups).ends_with("expected 1, 2, 4, 8 ranks, or algo.dgpo.train.batch_size = 24 or 48"));
        assert!(told(3, 1, Items::of("a", 1)).ends_with("expected 1 rank, or a = 3"));
    }
}
