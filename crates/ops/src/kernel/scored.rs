//! What attention multiplies its values and keys with: tiles of scores, in the number format of both.

use half::bf16;

use super::round::round;
use super::words::Element;
use super::write_into;

/// Keys of a tile of scores.
pub const KEYS: usize = 128;

/// A number format of queries, keys and values. Scores and everything made of them are f32, and rounded to it before they are multiplied.
pub trait Scored: Element {
    /// A tile of `m` rows of `n` values, each row [`KEYS`] after the one before, as the operand of a product.
    fn rounded<'a>(tile: &'a [f32], m: usize, n: usize, memory: &'a mut Vec<Self>) -> &'a [Self];

    /// Such a tile with its columns as rows of A: terms are the tile's rows.
    fn columns<'a>(tile: &'a [Self], m: usize, memory: &'a mut Vec<Self::Word>) -> &'a [Self::Word];
}

impl Scored for f32 {
    fn rounded<'a>(tile: &'a [Self], _: usize, _: usize, _: &'a mut Vec<Self>) -> &'a [Self] {
        tile
    }

    fn columns<'a>(tile: &'a [Self], _: usize, _: &'a mut Vec<Self>) -> &'a [Self] {
        tile
    }
}

impl Scored for bf16 {
    fn rounded<'a>(tile: &'a [f32], m: usize, n: usize, memory: &'a mut Vec<Self>) -> &'a [Self] {
        write_into(memory, m * KEYS, |rounded| round(&tile[..m * KEYS], rounded));
        if n < KEYS {
            // The other term of a row's last word.
            memory.chunks_exact_mut(KEYS).for_each(|row| row[n] = Self::ZERO);
        }
        memory
    }

    fn columns<'a>(tile: &'a [Self], m: usize, memory: &'a mut Vec<[Self; 2]>) -> &'a [[Self; 2]] {
        memory.resize(m.div_ceil(2) * KEYS, [Self::ZERO; 2]);
        for (rows, out) in tile[..m * KEYS].chunks(2 * KEYS).zip(memory.chunks_exact_mut(KEYS)) {
            let (first, second) = rows.split_at(KEYS);
            if second.is_empty() {
                out.iter_mut().zip(first).for_each(|(out, first)| *out = [*first, Self::ZERO]);
            } else {
                out.iter_mut().zip(first.iter().zip(second)).for_each(|(out, (first, second))| *out = [*first, *second]);
            }
        }
        memory
    }
}
