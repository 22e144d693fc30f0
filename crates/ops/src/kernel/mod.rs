//! Loops over slices: what the operations do on a CPU. No tensor is known here.
//!
//! Vector instructions come from `pulp`, which picks the widest set at run time (AVX-512, AVX2 with FMA, NEON) and has a scalar path;
//! threads from `rayon`'s pool.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod lanes;
pub mod linear;
pub mod math;
pub mod norm;
pub mod product;

use std::ops::Range;
use std::sync::Mutex;

/// A pointer that tasks share to write disjoint parts of one slice.
#[derive(Clone, Copy)]
pub struct Shared(*mut f32);

// SAFETY: whoever writes through it promises that no two tasks touch the same element.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Of the whole slice.
    pub fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// # Safety
    /// `index` lies in the slice.
    pub unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }

    /// # Safety
    /// The range lies in the slice, and no other task touches it.
    pub unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Buffers that were given back, for the next operation: fresh pages cost more than what is done in them.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Buffers kept; more are freed.
const POOL_SIZE: usize = 8;

/// A buffer from the pool, given back on drop. Its contents are what the last user left.
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// Room for `len` values, of unspecified content.
    pub fn new(len: usize) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The smallest that suffices, else the largest to be grown.
        let fits = (0..pool.len()).filter(|i| pool[*i].len() >= len).min_by_key(|i| pool[*i].len());
        let taken = fits.or_else(|| (0..pool.len()).max_by_key(|i| pool[*i].len())).map(|i| pool.swap_remove(i));
        drop(pool);
        let mut values = taken.unwrap_or_default();
        if values.len() < len {
            values = vec![0.0; len];
        }
        Self(values)
    }

    /// The same, all zero.
    pub fn zeroed(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.0[..len].fill(0.0);
        scratch
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pool.len() < POOL_SIZE {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}

/// The `i`-th of `parts` nearly equal parts of `0..len`, each but the last a multiple of `unit`.
pub fn part(len: usize, parts: usize, i: usize, unit: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let edge = |i: usize| (units * i / parts * unit).min(len);
    edge(i)..edge(i + 1)
}
