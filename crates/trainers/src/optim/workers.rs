//! Threads that compute the parts of a batch side by side.
//!
//! A large operation keeps every core busy by itself. The operations of a small network are over before the cores have started on them, so
//! it is faster to give each core its own part of the batch and let it run all operations alone. The parts and the cores of each are fixed
//! by the configuration, so the sum of their gradients is the same from run to run.

use std::panic::resume_unwind;
use std::thread;

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};
use vp_models::number_format::is_cpu;

use crate::Error;

/// A number of thread pools, each with an equal share of the cores. A single worker is the thread that calls, with all cores: in a pool of its own,
/// one part would run on one thread and the next on another, and the allocator would keep freed memory for each of them.
#[derive(Debug)]
pub struct Workers {
    count: usize,
    /// Of several workers, one each.
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// `count` workers, at least 1.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn new(count: usize) -> Result<Self, Error> {
        let share = (rayon::current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(share).build();
        let pools = (0..count).filter(|_| count > 1).map(pool).collect::<Result<_, _>>();
        Ok(Self { count, pools: pools.map_err(|error| Error::Config(format!("cannot start {count} workers: {error}; use fewer")))? })
    }

    /// `count` workers on the CPU. On another device one, because parts of a batch would only compete for it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on(device: &Device, count: usize) -> Result<Self, Error> {
        Self::new(if is_cpu(device) { count } else { 1 })
    }

    /// A worker per core on the CPU, but at most `most` and at least one; on another device one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn one_per_core(device: &Device, most: usize) -> Result<Self, Error> {
        Self::on(device, rayon::current_num_threads().min(most).max(1))
    }

    /// The number of workers.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Applies `work` to at most [`count`](Self::count) items side by side. Returns the results in the order of the items.
    pub fn map<I: Send, O: Send>(&self, items: Vec<I>, work: impl Fn(I) -> O + Sync) -> Vec<O> {
        assert!(items.len() <= self.count(), "{} items for {} workers", items.len(), self.count());
        if self.count == 1 {
            return items.into_iter().map(work).collect();
        }
        let work = &work;
        thread::scope(|scope| {
            let begin = |(pool, item): (_, I)| {
                let pool: &ThreadPool = pool;
                scope.spawn(move || pool.install(|| work(item)))
            };
            let threads: Vec<_> = self.pools.iter().zip(items).map(begin).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_in_its_place_by_a_thread_of_its_own() {
        let workers = Workers::new(3).unwrap();
        let done = workers.map(vec![1, 2, 3], |item| (10 * item, thread::current().id(), rayon::current_num_threads()));
        assert_eq!(done.iter().map(|(value, ..)| *value).collect::<Vec<_>>(), [10, 20, 30]);
        assert!(done[0].1 != done[1].1 && done[1].1 != done[2].1);
        assert!(done.iter().all(|(.., threads)| *threads == (rayon::current_num_threads() / 3).max(1)));
    }

    #[test]
    fn a_single_worker_is_the_calling_thread() {
        let done = Workers::new(1).unwrap().map(vec![1], |item| (10 * item, thread::current().id(), rayon::current_num_threads()));
        assert_eq!(done, [(10, thread::current().id(), rayon::current_num_threads())]);
    }
}
