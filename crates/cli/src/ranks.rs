//! The ranks that this process is one of: those that an MPI launcher started, or itself alone.
//!
//! The first rank is the one that people see: it writes, and it tells how the command ends. The others tell only what they alone know, with
//! their name before it.

#[cfg(feature = "mpi")]
mod mpi;

use std::sync::OnceLock;

use vp_trainers::ranks::Ranks;

use crate::failure::Failure;
use crate::{device, progress, terminal};

/// What this process is among the ranks.
#[derive(Debug, Default)]
struct Place {
    ranks: Ranks,
    /// The number of this rank among those of its machine.
    local: usize,
}

static PLACE: OnceLock<Place> = OnceLock::new();

/// The ranks of this command.
pub fn all() -> Ranks {
    PLACE.get().map(|place| place.ranks.clone()).unwrap_or_default()
}

/// What people call this rank, if it is one of several.
pub fn own_name() -> Option<String> {
    PLACE.get().map(|place| &place.ranks).filter(|ranks| !ranks.are_one()).map(|ranks| ranks.name(ranks.rank()))
}

/// Does `work` on the first rank before the others do it, where they would be in each other's way.
pub fn first_before_others<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let ranks = all();
    if !ranks.is_first() {
        ranks.gather(&[])?;
        return work();
    }
    let done = work()?;
    ranks.gather(&[])?;
    Ok(done)
}

/// Does the work of a command on all ranks, if a launcher started several. If one fails, all end, and the first rank tells why.
pub fn together(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let place = PLACE.get_or_init(begun);
    device::set_local_rank(place.local);
    if place.ranks.are_one() {
        let ended = work();
        end();
        return ended;
    }
    if !place.ranks.is_first() {
        progress::be_quiet();
        terminal::leave_news_to_another();
    }
    let ended = work();
    if let Err(failure) = &ended {
        place.ranks.fail(&failure.message());
    }
    place.ranks.part();
    end();
    if !place.ranks.is_first() {
        terminal::leave_all_to_another();
    }
    ended
}

#[cfg(feature = "mpi")]
fn begun() -> Place {
    mpi::begun().unwrap_or_default()
}

#[cfg(not(feature = "mpi"))]
fn begun() -> Place {
    Place::default()
}

#[cfg(feature = "mpi")]
fn end() {
    mpi::end();
}

#[cfg(not(feature = "mpi"))]
fn end() {}
