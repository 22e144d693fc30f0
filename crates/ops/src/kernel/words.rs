//! The number formats that matrix products multiply: f32, and bf16 two terms at a time.
//!
//! Operands are read in words, each as much as one multiplication takes of a row of A and a column of B: a value in f32, in bf16 two
//! neighbouring terms of a sum. A word has four bytes either way, so that one set of loops serves both. All sums are f32.

use half::bf16;
use pulp::bytemuck::{Pod, cast_slice};
use pulp::{Arch, Simd, WithSimd};

/// A value of an operand.
pub trait Element: Pod + Send + Sync {
    /// As many values as one multiplication takes.
    type Word: Word;
    /// Values per word.
    const TERMS: usize = size_of::<Self::Word>() / size_of::<Self>();

    /// Values that are neighbours in a sum as words.
    ///
    /// # Panics
    /// When the number of values is not a multiple of [`Self::TERMS`].
    fn words(values: &[Self]) -> &[Self::Word] {
        cast_slice(values)
    }

    /// Word `i` of values that are not neighbours: of each of the places in `terms`, the value `i · step` after it.
    ///
    /// # Panics
    /// When there are fewer than [`Self::TERMS`] places, or `values` ends before.
    fn put(values: &[Self], terms: &[usize], step: usize, out: &mut [Self::Word]);

    /// The same for `N` neighbours.
    fn put_all<const N: usize>(values: &[Self], terms: &[usize], out: &mut [Self::Word; N]);

    /// The same value in f32.
    fn exact(self) -> f32;
}

/// What products multiply at a time.
pub trait Word: Pod + Send + Sync {
    /// Has `work` done with the widest vector instructions that there are for such words.
    fn dispatch<W: OnWords<Self>>(work: W);
}

/// A loop over words.
pub trait OnWords<W: Word> {
    /// The loop, compiled for one set of vector instructions.
    fn run<S: Simd, T: Terms<S, Word = W>>(self, simd: S, terms: T);
}

/// How words become terms of a sum.
pub trait Terms<S: Simd>: Copy {
    /// What is multiplied.
    type Word: Word;

    /// A word in every lane.
    fn splat(self, simd: S, word: Self::Word) -> S::f32s;

    /// `sum + a b` lane by lane; a and b hold the bits of a word in each.
    fn add(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s;
}

impl Element for f32 {
    type Word = Self;

    #[inline(always)]
    fn put(values: &[Self], terms: &[usize], step: usize, out: &mut [Self]) {
        let values = row(values, terms[0], step, out.len());
        if step == 1 {
            out.copy_from_slice(values);
        } else {
            out.iter_mut().zip(values.iter().step_by(step)).for_each(|(out, value)| *out = *value);
        }
    }

    #[inline(always)]
    fn put_all<const N: usize>(values: &[Self], terms: &[usize], out: &mut [Self; N]) {
        *out = values[terms[0]..terms[0] + N].try_into().expect("N values");
    }

    #[inline(always)]
    fn exact(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    type Word = [Self; 2];

    #[inline(always)]
    fn put(values: &[Self], terms: &[usize], step: usize, out: &mut [[Self; 2]]) {
        let [first, second] = [terms[0], terms[1]].map(|place| row(values, place, step, out.len()));
        if step == 1 {
            out.iter_mut().zip(first.iter().zip(second)).for_each(|(out, (first, second))| *out = [*first, *second]);
        } else {
            let words = first.iter().step_by(step).zip(second.iter().step_by(step));
            out.iter_mut().zip(words).for_each(|(out, (first, second))| *out = [*first, *second]);
        }
    }

    #[inline(always)]
    fn put_all<const N: usize>(values: &[Self], terms: &[usize], out: &mut [[Self; 2]; N]) {
        let [first, second]: [&[Self; N]; 2] = [terms[0], terms[1]].map(|place| values[place..place + N].try_into().expect("N values"));
        *out = std::array::from_fn(|i| [first[i], second[i]]);
    }

    #[inline(always)]
    fn exact(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// The values from `place` on to the last of `count` that are `step` apart.
#[inline(always)]
fn row<E>(values: &[E], place: usize, step: usize, count: usize) -> &[E] {
    if count == 0 { &[] } else { &values[place..place + (count - 1) * step + 1] }
}

impl Word for f32 {
    fn dispatch<W: OnWords<Self>>(work: W) {
        struct Run<W>(W);
        impl<W: OnWords<f32>> WithSimd for Run<W> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.run(simd, Singles);
            }
        }
        Arch::new().dispatch(Run(work));
    }
}

impl Word for [bf16; 2] {
    fn dispatch<W: OnWords<Self>>(work: W) {
        struct Run<W>(W);
        impl<W: OnWords<[bf16; 2]>> WithSimd for Run<W> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.run(simd, Unpacked);
            }
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(pairs) = native::Pairs::new() {
            return pairs.run(work);
        }
        Arch::new().dispatch(Run(work));
    }
}

/// Whether this processor multiplies bf16, two terms per lane: AVX512-BF16.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return native::Pairs::new().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[derive(Clone, Copy)]
struct Singles;

impl<S: Simd> Terms<S> for Singles {
    type Word = f32;

    #[inline(always)]
    fn splat(self, simd: S, word: f32) -> S::f32s {
        simd.splat_f32s(word)
    }

    #[inline(always)]
    fn add(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(a, b, sum)
    }
}

/// Two bf16 per lane, multiplied as f32, in the order of AVX512-BF16: the second term is added first. With normal numbers that makes the same bits;
/// the instruction takes subnormal ones for zero. It is slower than f32, so only tests use it.
#[derive(Clone, Copy)]
struct Unpacked;

impl<S: Simd> Terms<S> for Unpacked {
    type Word = [bf16; 2];

    #[inline(always)]
    fn splat(self, simd: S, word: [bf16; 2]) -> S::f32s {
        simd.splat_f32s(bits(word))
    }

    #[inline(always)]
    fn add(self, simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        let (upper, sixteen) = (simd.splat_u32s(0xffff_0000), simd.splat_u32s(16));
        // A bf16 is the upper half of the f32 of the same value.
        let [[a, a2], [b, b2]] = [a, b].map(
            #[inline(always)]
            |words| {
                let words = simd.transmute_u32s_f32s(words);
                let (first, second) = (simd.wrapping_dyn_shl_u32s(words, sixteen), simd.and_u32s(words, upper));
                [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
            },
        );
        simd.mul_add_e_f32s(a, b, simd.mul_add_e_f32s(a2, b2, sum))
    }
}

/// The bits of two bf16 as they lie in a vector's lane, the first in the lower half.
#[inline(always)]
fn bits([first, second]: [bf16; 2]) -> f32 {
    f32::from_bits(u32::from(second.to_bits()) << 16 | u32::from(first.to_bits()))
}

#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};

    use half::bf16;
    use pulp::{Simd, cast, x86::V4};

    use super::{OnWords, Terms, bits};

    /// Proof that the processor has AVX512-BF16, whose instruction multiplies two bf16 per lane and adds both products to the sum.
    #[derive(Clone, Copy)]
    pub struct Pairs(V4);

    impl Pairs {
        /// None where the processor lacks it.
        pub fn new() -> Option<Self> {
            V4::try_new().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
        }

        /// Has `work` done with it.
        pub fn run<W: OnWords<[bf16; 2]>>(self, work: W) {
            // Every feature of `V4`, so that its instructions are inlined, and the one that it lacks.
            #[target_feature(enable = "avx,avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
            fn run<W: OnWords<[bf16; 2]>>(work: W, pairs: Pairs) {
                work.run(pairs.0, pairs);
            }
            // SAFETY: `self` is proof that the processor has all of these.
            unsafe { run(work, self) }
        }
    }

    impl Terms<V4> for Pairs {
        type Word = [bf16; 2];

        #[inline(always)]
        fn splat(self, simd: V4, word: [bf16; 2]) -> <V4 as Simd>::f32s {
            simd.splat_f32s(bits(word))
        }

        #[inline(always)]
        fn add(self, _: V4, a: <V4 as Simd>::f32s, b: <V4 as Simd>::f32s, sum: <V4 as Simd>::f32s) -> <V4 as Simd>::f32s {
            let [a, b]: [__m512; 2] = [cast(a), cast(b)];
            // SAFETY: `self` is proof that the processor has the instruction. All three types are vectors of 64 bytes, in which any bits are allowed.
            unsafe {
                let [a, b] = [std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b)];
                cast(_mm512_dpbf16_ps(cast(sum), a, b))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    /// The sums of products of two rows of words, lane by lane.
    struct Sums<'a> {
        operands: [&'a [[bf16; 2]]; 2],
        sums: &'a mut Vec<u32>,
    }

    impl OnWords<[bf16; 2]> for Sums<'_> {
        #[inline(always)]
        fn run<S: Simd, T: Terms<S, Word = [bf16; 2]>>(self, simd: S, terms: T) {
            let mut sum = simd.splat_f32s(0.0);
            for (a, b) in self.operands[0].iter().zip(self.operands[1]) {
                sum = terms.add(simd, terms.splat(simd, *a), terms.splat(simd, *b), sum);
                self.sums.push(simd.reduce_max_f32s(sum).to_bits());
            }
        }
    }

    /// Of normal numbers, the processor's instruction and what stands in for it where there is none make the same bits.
    #[test]
    fn pairs_are_multiplied_alike_everywhere() {
        struct Unpacking<'a>(Sums<'a>);
        impl WithSimd for Unpacking<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.run(simd, Unpacked);
            }
        }
        let rows = [1, 2].map(|seed| noise(2000, seed).into_iter().map(|value| bf16::from_f32(value * 3.7)).collect::<Vec<_>>());
        let operands = [bf16::words(&rows[0]), bf16::words(&rows[1])];
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        <[bf16; 2]>::dispatch(Sums { operands, sums: &mut found });
        Arch::new().dispatch(Unpacking(Sums { operands, sums: &mut expected }));
        assert_eq!(found, expected);
        let exact: f64 = rows[0].iter().zip(&rows[1]).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
        assert!((f64::from(f32::from_bits(found[999])) / exact - 1.0).abs() < 1e-5, "{}, expected {exact}", f32::from_bits(found[999]));
    }
}
