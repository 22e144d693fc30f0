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
pub mod operands;
pub mod product;
pub mod round;
pub mod scored;
pub mod tile;
pub mod words;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

/// The vector instructions that these loops use on this machine, as `pulp` picks them.
pub fn vector_unit() -> &'static str {
    match pulp::Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        pulp::Arch::V4(_) => "AVX-512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        pulp::Arch::V3(_) => "AVX2",
        #[cfg(target_arch = "aarch64")]
        pulp::Arch::Neon(_) => "NEON",
        _ => "no vectors",
    }
}

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

// SAFETY: memory is reached through `slice` and `at` alone, whose callers promise that no two tasks have the same value at the same time.
unsafe impl Send for Shared<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares `values` out for as long as they are borrowed.
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), len: values.len(), borrowed: PhantomData }
    }

    /// Shares memory out that is not written yet: until it is, it may be reached through [`Self::at`] alone.
    pub fn unwritten(values: &'a mut [MaybeUninit<f32>]) -> Self {
        Self { first: values.as_mut_ptr().cast(), len: values.len(), borrowed: PhantomData }
    }

    /// The address of value `i`. Whoever reads or writes there promises what [`Self::slice`] asks for; to read, that it is written.
    #[inline(always)]
    pub fn at(self, i: usize) -> *mut f32 {
        // In debug builds only: products call this for each vector that they store.
        debug_assert!(i < self.len, "value {i} of {}", self.len);
        self.first.wrapping_add(i)
    }

    /// The number of values.
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
    /// The range lies within the slice, its values are written, and as long as the returned part is in use, nothing else reads or writes them.
    #[inline(always)]
    pub unsafe fn slice(self, range: Range<usize>) -> &'a mut [f32] {
        debug_assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        // SAFETY: the caller promises that the range lies within, and that nothing else uses it while it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

/// Makes `values` the `len` that `write` writes: it is given their memory, uninitialised, and returns it with every value written.
///
/// # Panics
/// When `write` returns anything but the memory that it was given.
pub fn write_into<E>(values: &mut Vec<E>, len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<E>]) -> &'v mut [E]) {
    values.clear();
    values.reserve(len);
    let first = values.as_ptr();
    let back = write(&mut values.spare_capacity_mut()[..len]);
    assert!(back.as_ptr() == first && back.len() == len, "a kernel returned other values than it was given");
    // SAFETY: the vector has room for `len` values, and these came back as `[E]`, which is proof that they are initialised.
    unsafe { values.set_len(len) };
}

/// Buffers that were given back, for the next operation: fresh pages cost more than what is done in them.
struct Pool(Vec<Vec<f32>>);

thread_local! {
    /// Buffers of up to [`NEAR`] values, which this thread alone uses: to fetch one from another core's cache costs time.
    static OWN: RefCell<Pool> = const { RefCell::new(Pool(Vec::new())) };
}
/// Larger buffers, of all threads.
static SHARED: Mutex<Pool> = Mutex::new(Pool(Vec::new()));
/// 512 KiB: a slab of B fits, and what all threads keep stays small beside a run's memory.
const NEAR: usize = 1 << 17;
/// Buffers kept; more are freed.
const POOL_SIZE: usize = 8;

impl Pool {
    /// Calls `with` with the pool for buffers of `len` values.
    fn of<T>(len: usize, with: impl FnOnce(&mut Self) -> T) -> T {
        if len <= NEAR { OWN.with_borrow_mut(with) } else { with(&mut SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())) }
    }

    /// The smallest buffer that suffices, else the largest, to be grown.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let Self(buffers) = self;
        let fits = (0..buffers.len()).filter(|i| buffers[*i].len() >= len).min_by_key(|i| buffers[*i].len());
        fits.or_else(|| (0..buffers.len()).max_by_key(|i| buffers[*i].len())).map(|i| buffers.swap_remove(i))
    }
}

/// A slice from the pool, given back on drop.
pub struct Scratch {
    /// As long as `len` or longer.
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` values, which are whatever the last user left.
    pub fn new(len: usize) -> Self {
        Self { buffer: Self::buffer(len), len }
    }

    fn buffer(len: usize) -> Vec<f32> {
        let taken = Pool::of(len, |pool| pool.take(len));
        taken.filter(|buffer| buffer.len() >= len).unwrap_or_else(|| vec![0.0; len])
    }

    /// `len` values that `write` writes, as [`write_into`] says.
    ///
    /// # Panics
    /// As that.
    pub fn written(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Self {
        let mut buffer = Self::buffer(len);
        let first = buffer.as_ptr();
        // SAFETY: the buffer has `len` values or more, and what `write` puts there is read only if it came back as floats.
        let back = write(unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), len) });
        assert!(back.as_ptr() == first && back.len() == len, "a kernel returned other values than it was given");
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
        Pool::of(self.buffer.len(), |Pool(buffers)| {
            if buffers.len() < POOL_SIZE {
                buffers.push(std::mem::take(&mut self.buffer));
            }
        });
    }
}

/// Values for tests, between −1 and 1.
#[cfg(test)]
fn noise(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) % 200) as f32 / 100.0 - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::activation::Function;
    use super::attention::{Bias, Seen, Shape};
    use super::conv::Geometry;
    use super::norm::Groups;
    use super::operands::{Left, RowMajor};
    use super::product::{Start, product};
    use super::scored::Scored;
    use super::*;

    /// The bits of what `write` makes of `len` values that are unwritten, and NaN so far.
    fn bits(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Vec<u32> {
        write(&mut vec![MaybeUninit::new(f32::NAN); len]).iter().map(|value| value.to_bits()).collect()
    }

    fn products() -> Vec<(&'static str, Vec<u32>)> {
        let (a, b, dy) = (noise(700 * 500, 1), noise(500 * 700, 2), noise(700 * 700, 3));
        let of = |[m, n, k]: [usize; 3]| {
            bits(m * n, |c| product([m, n, k], Left::Rows(&a, k), &RowMajor { values: &b, stride: n }, c, Start::Zero))
        };
        let g = Geometry { batch: 2, d_in: 20, d_out: 30, size: [16, 16], kernel: 3, stride: 1, padding: (1, 1) };
        let (x, weight) = (&a[..2 * 20 * 256], &b[..30 * 20 * 9]);
        let rows = [100, 400, 500];
        let [half_a, half_b] = [&a, &b].map(|values| values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>());
        vec![
            ("linear map in bf16", bits(100 * 400, |y| linear::forward(rows, &half_a[..100 * 500], &half_b[..400 * 500], None, y))),
            ("convolution in bf16", bits(2 * 30 * 256, |y| conv::forward(&g, &half_a[..x.len()], &half_b[..weight.len()], None, y))),
            ("its dx in bf16", bits(x.len(), |dx| conv::input_gradient(&g, &half_a[..2 * 30 * 256], &half_b[..weight.len()], dx))),
            ("slabs", of([40, 700, 500])),
            ("rows", of([700, 40, 500])),
            ("convolution", bits(2 * 30 * 256, |y| conv::forward(&g, x, weight, None, y))),
            ("its dx", bits(x.len(), |dx| conv::input_gradient(&g, &dy[..2 * 30 * 256], weight, dx))),
            ("its dw", bits(weight.len(), |dw| conv::weight_gradient(&g, x, &dy[..2 * 30 * 256], dw))),
            ("linear map", bits(100 * 400, |y| linear::forward(rows, &a[..100 * 500], &b[..400 * 500], None, y))),
        ]
    }

    fn loops() -> Vec<(&'static str, Vec<u32>)> {
        let (x, dy, weight, bias) = (noise(300 * 70, 1), noise(300 * 70, 2), noise(70, 3), noise(70, 4));
        let (mut of_rows, mut of_groups) = (vec![[0.0; 2]; 300], vec![[0.0; 2]; 5 * 7]);
        let g = Groups { channels: 70, pixels: 60, groups: 7, eps: 1e-5, silu: true };
        vec![
            ("activation", bits(x.len(), |y| activation::forward(Function::Gelu, &x, y))),
            ("geglu", bits(x.len() / 2, |y| activation::geglu(35, &x, y))),
            ("its gradient", bits(x.len(), |dx| activation::geglu_backward(35, &x, &dy[..150 * 70], dx))),
            ("softmax", bits(x.len(), |y| norm::softmax(70, &x, y))),
            ("layer norm", bits(x.len(), |y| norm::layer_norm([&x, &weight, &bias], 1e-5, y, &mut of_rows))),
            ("its gradient", bits(x.len(), |dx| norm::layer_norm_backward([&x, &weight, &dy], &of_rows, dx, None))),
            ("group norm", bits(x.len(), |y| norm::group_norm(&g, [&x, &weight, &bias], y, &mut of_groups))),
            ("its gradient", bits(x.len(), |dx| norm::group_norm_backward(&g, [&x, &weight, &bias, &dy], &of_groups, dx, None))),
        ]
    }

    /// Output, logarithms, and gradients of queries, keys and values.
    fn attention<E: Scored>(heads: usize, rounded: fn(f32) -> E) -> [Vec<f32>; 5] {
        let shape = Shape { batch: 1, heads, queries: 130, keys: 301, d: 8 };
        let rounded = |values: &[f32]| values.iter().map(|value| rounded(*value)).collect::<Vec<_>>();
        let [q, dout] = [1, 2].map(|seed| rounded(&noise(130 * heads * 8, seed)));
        let [k, v] = [3, 4].map(|seed| rounded(&noise(301 * heads * 8, seed)));
        let (mut sums, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; heads * 130]);
        attention::forward(&shape, [&q, &k, &v], Bias::None, &mut sums, &mut lse);
        let out = rounded(&sums);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|values| vec![f32::NAN; values.len()]);
        let seen = Seen { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        attention::backward(&shape, &seen, Bias::None, &dout, [&mut dq, &mut dk, &mut dv]);
        [sums, lse, dq, dk, dv]
    }

    fn on<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    /// Every task writes what is its own, all of it and nothing else: any number of threads makes the same bits as one.
    #[test]
    fn threads_change_no_bit() {
        let all = || {
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
            let of_attention = |parts: [Vec<f32>; 5]| ["out", "lse", "dq", "dk", "dv"].into_iter().zip(parts.map(bits)).collect::<Vec<_>>();
            let [exact, half] = [of_attention(attention(8, |value| value)), of_attention(attention(8, bf16::from_f32))];
            [products(), loops(), exact, half].concat()
        };
        let alone = on(1, all);
        for (name, bits) in &alone {
            assert!(bits.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{name} is written in full");
        }
        for threads in [2, 3, 8] {
            for ((name, found), (_, expected)) in on(threads, all).iter().zip(&alone) {
                assert!(found == expected, "{name} on {threads} threads");
            }
        }
    }

    /// Where heads are fewer than threads, parts of a head's keys each add to the queries' gradients: in another order, so not to the bit.
    #[test]
    fn more_threads_than_heads_change_no_gradient() {
        let [alone, shared] = [1, 8].map(|threads| on(threads, || attention(1, |value| value)));
        for (name, (found, expected)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(shared.iter().zip(&alone)) {
            assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{name}");
        }
    }

    #[test]
    fn parts_follow_each_other() {
        for (len, count, unit) in [(0, 3, 4), (1, 3, 4), (37, 4, 5), (40, 3, 5), (7, 1, 16)] {
            let mut values: Vec<usize> = (0..len).collect();
            let mut next = 0;
            for (range, part) in cut(&mut values, count, unit) {
                assert!(range.start == next && part.iter().copied().eq(range.clone()), "{range:?} of {len} in {count}");
                assert!(range.end == len || range.end.is_multiple_of(unit));
                next = range.end;
            }
            assert_eq!(next, len);
        }
    }
}
