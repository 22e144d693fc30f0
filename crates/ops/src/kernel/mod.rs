//! The loops behind the operations, on the CPU. They work on slices and know nothing of tensors.
//!
//! `pulp` picks the widest vector instructions at run time (AVX-512, AVX2 with FMA, NEON) and has a scalar path; threads come from
//! `rayon`'s pool. Where the threads' parts of an output are contiguous, [`cut`] splits it and the loops are safe code. Only a matrix
//! product and attention write parts that interleave, through [`Shared`].

pub mod activation;
pub mod attention;
pub mod conv;
pub mod lanes;
pub mod linear;
pub mod math;
pub mod norm;
pub mod product;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

/// `0..len` in `count` nearly equal parts, each but the last a multiple of `unit`.
pub fn parts(len: usize, count: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let units = len.div_ceil(unit);
    let edge = move |i: usize| (units * i / count * unit).min(len);
    (0..count).map(move |i| edge(i)..edge(i + 1))
}

/// `values` cut into the parts that [`parts`] names, each with its range.
pub fn cut<T>(values: &mut [T], count: usize, unit: usize) -> impl Iterator<Item = (Range<usize>, &mut [T])> {
    let mut rest = values;
    parts(rest.len(), count, unit).map(move |range| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(range.len());
        rest = after;
        (range, part)
    })
}

/// Calls `work` with each item: on the pool, or on this thread where `threads` is 1 or there is only one item.
pub fn on_threads<T: Send>(threads: usize, items: impl Iterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if threads == 1 {
        return items.for_each(work);
    }
    let items: Vec<T> = items.collect();
    if items.len() == 1 { items.into_iter().for_each(work) } else { items.into_par_iter().with_max_len(1).for_each(work) }
}

/// A slice that several tasks write at the same time, each its own values, where these interleave and [`cut`] cannot part them.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    first: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: memory is reached through `slice` alone, whose callers promise that no two tasks have the same value at the same time.
unsafe impl Send for Shared<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    pub fn len(self) -> usize {
        self.len
    }

    /// The same slice without its first `count` values.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn skip(self, count: usize) -> Self {
        assert!(count <= self.len, "skipped {count} of {} values", self.len);
        // SAFETY: `count` is at most the slice's length.
        Self { first: unsafe { self.first.add(count) }, len: self.len - count, ..self }
    }

    /// # Safety
    /// The range lies within the slice, and as long as the returned part is in use, nothing else reads or writes its values.
    #[inline(always)]
    pub unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        // In debug builds only: products call this for each row of each tile, and the check would cost them 3 %.
        debug_assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        // SAFETY: the caller promises that the range lies within, and that nothing else uses it while it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

/// Buffers that were given back, for the next operation: fresh pages cost more than what is done in them.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Buffers kept; more are freed.
const POOL_SIZE: usize = 8;

/// A slice from the pool, given back on drop.
pub struct Scratch {
    /// As long as `len` or longer.
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` values, which are whatever the last user left.
    pub fn new(len: usize) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The smallest that suffices, else the largest to be grown.
        let fits = (0..pool.len()).filter(|i| pool[*i].len() >= len).min_by_key(|i| pool[*i].len());
        let taken = fits.or_else(|| (0..pool.len()).max_by_key(|i| pool[*i].len())).map(|i| pool.swap_remove(i));
        drop(pool);
        let mut buffer = taken.unwrap_or_default();
        if buffer.len() < len {
            buffer = vec![0.0; len];
        }
        Self { buffer, len }
    }

    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.fill(0.0);
        scratch
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pool.len() < POOL_SIZE {
            pool.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// Values for tests, between −1 and 1.
#[cfg(test)]
fn noise(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) % 200) as f32 / 100.0 - 1.0).collect()
}
