//! What the operations of `vp_ops` and Burn hold and keep.
//!
//! On the CPU each is one fused kernel, which computes in f32, or in bf16 where it is a matrix product of that. It makes its output, and keeps what the
//! type `Saved` of its operation says (`crates/ops/src`).
//! On a GPU it is composed of Burn's operations, each of which makes a map and keeps its inputs where a gradient needs them; the counts of
//! maps below are those of `vp_ops::composed`. They were read, not measured, as no GPU was at hand.

use std::rc::Rc;

use super::ledger::{Back, Buffer, Engine, Ledger, Node, Passed, Traced, size};
use crate::number_format::NumberFormat;

/// The most bytes of attention scores that are computed at once on a GPU: `vp_ops`' tiles of queries.
const SCORES: u64 = 128 << 20;

/// A parameter, of which shape and number format are known.
#[derive(Debug, Clone)]
pub struct Weight {
    pub(super) shape: Vec<usize>,
    pub(super) format: NumberFormat,
    pub(super) node: Option<Node>,
}

impl Weight {
    fn wants(&self) -> Option<Passed> {
        Some(Passed::New(self.node?, size(&self.shape, self.format)))
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// The same values in another shape.
    #[must_use]
    pub fn shaped(self, shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), ..self }
    }
}

fn count(shape: &[usize]) -> u64 {
    shape.iter().map(|side| *side as u64).product()
}

/// The shape of a convolution's output.
fn convolved(x: &Traced, weight: &Weight, stride: usize, padding: (usize, usize)) -> [usize; 4] {
    let side = |length: usize| (length + padding.0 + padding.1 - weight.shape[2]) / stride + 1;
    [x.shape[0], weight.shape[0], side(x.shape[2]), side(x.shape[3])]
}

impl Ledger {
    fn on_cpu(&self) -> bool {
        self.engine == Engine::Cpu
    }

    fn new_buffer(&self, shape: &[usize], format: NumberFormat) -> Rc<Buffer> {
        self.buffer(size(shape, format))
    }

    /// `x` in another number format; itself where it has it already.
    pub fn cast(&self, x: Traced, format: NumberFormat) -> Traced {
        if x.format == format {
            return x;
        }
        let (buffer, back) = (self.new_buffer(&x.shape, format), Back { passed: vec![x.wants()], ..Back::default() });
        self.output(&x.shape, format, buffer, back)
    }

    /// `x` as a kernel of the CPU reads it: f32, its values in order. What is neither is copied.
    fn read(&self, x: Traced) -> Traced {
        if !self.on_cpu() {
            return x;
        }
        self.ordered(self.cast(x, NumberFormat::F32))
    }

    /// `x` with its values in order.
    fn ordered(&self, x: Traced) -> Traced {
        if x.in_order { x } else { Traced { buffer: self.new_buffer(&x.shape, x.format), in_order: true, ..x } }
    }

    /// Whether the CPU multiplies `x` and `weight` as they are, in bf16.
    fn is_in_bf16(&self, x: &Traced, weight: &Weight) -> bool {
        self.on_cpu() && vp_ops::is_in_bf16(x.format.dtype().into(), weight.format.dtype().into(), &weight.shape)
    }

    /// A view of `x` in another shape; `in_order` if its values still lie in order.
    pub fn view(&self, x: Traced, shape: &[usize], in_order: bool) -> Traced {
        Traced { shape: shape.to_vec(), in_order: in_order && x.in_order, ..x }
    }

    /// `x` in another shape, copied if its values do not lie in order.
    pub fn reshaped(&self, x: Traced, shape: &[usize]) -> Traced {
        let buffer = if x.in_order { x.buffer.clone() } else { self.new_buffer(&x.shape, x.format) };
        Traced { shape: shape.to_vec(), in_order: true, buffer, ..x }
    }

    /// Part of `x` as a view. Its gradient has the size of the whole.
    pub fn part(&self, x: &Traced, shape: &[usize]) -> Traced {
        let back = Back { passed: vec![x.wants()], ..Back::default() };
        Traced { in_order: false, ..self.output(shape, x.format, x.buffer.clone(), back) }
    }

    /// The weight in the format that the kernel multiplies in, that of `x`. A copy, if it has another.
    fn multiplied(&self, weight: &Weight, x: &Traced) -> Option<Rc<Buffer>> {
        (weight.format != x.format).then(|| self.new_buffer(&weight.shape, x.format))
    }

    /// A product of `x` and `weight`, `[out, in, ..]`, whose output has this shape.
    fn product(&self, x: Traced, weight: &Weight, bias: Option<&Weight>, shape: &[usize], keeps_input: bool) -> Traced {
        let (format, in_bf16) = (x.format, self.is_in_bf16(&x, weight));
        let x = if in_bf16 { self.ordered(x) } else { self.read(x) };
        let copy = self.multiplied(weight, &x);
        let buffer = self.new_buffer(shape, x.format);
        let mut scratch = 0;
        if in_bf16 {
            // The sums, before they are rounded; going back, also a convolution's weight the other way round.
            self.touch(size(shape, NumberFormat::F32));
            let turned = if weight.shape.len() > 2 { size(&weight.shape, weight.format) } else { 0 };
            scratch = size(&x.shape, NumberFormat::F32) + turned;
        }
        // Each value of the output is a sum over the weights of its channel.
        self.note_operations(2 * count(shape) * count(&weight.shape[1..]));
        let (mut kept, bias) = (Vec::new(), bias.and_then(Weight::wants));
        if self.records(&[x.node, weight.node]) {
            // The input for the weight's gradient, the weight for the input's.
            if keeps_input || weight.node.is_some() {
                kept.push(x.buffer.clone());
            }
            if x.node.is_some() {
                kept.extend(copy.clone());
            }
        }
        let y = self.output(shape, x.format, buffer, Back { passed: vec![x.wants(), weight.wants(), bias], kept, scratch });
        drop((x, copy));
        self.cast(y, format)
    }

    /// `vp_ops::linear`: `[.., in]` → `[.., out]`.
    pub fn linear(&self, x: Traced, weight: &Weight, bias: Option<&Weight>) -> Traced {
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = weight.shape[0];
        }
        self.product(x, weight, bias, &shape, false)
    }

    /// `vp_ops::conv2d`: `[b, in, h, w]` → `[b, out, h', w']`. Burn's own keeps its input whether the kernel trains or not.
    pub fn conv2d(&self, x: Traced, weight: &Weight, bias: Option<&Weight>, stride: usize, padding: (usize, usize)) -> Traced {
        let shape = convolved(&x, weight, stride, padding);
        self.product(x, weight, bias, &shape, !self.on_cpu())
    }

    /// `vp_ops::linear_with_lora`, with the factors down and up.
    pub fn linear_with_lora(&self, x: Traced, weight: &Weight, bias: Option<&Weight>, [down, up]: [&Weight; 2]) -> Traced {
        if self.is_merged(&x, weight) {
            let mut shape = x.shape.clone();
            shape[x.shape.len() - 1] = weight.shape[0];
            return self.merged(x, weight, bias, [down, up], &shape);
        }
        self.beside(x, |x| self.linear(x, weight, bias), |x| self.linear(x, down, None), |x| self.linear(x, up, None))
    }

    /// `vp_ops::conv2d_with_lora`, likewise.
    pub fn conv2d_with_lora(
        &self,
        x: Traced,
        weight: &Weight,
        bias: Option<&Weight>,
        (stride, padding): (usize, (usize, usize)),
        [down, up]: [&Weight; 2],
    ) -> Traced {
        if self.is_merged(&x, weight) {
            let shape = convolved(&x, weight, stride, padding);
            return self.merged(x, weight, bias, [down, up], &shape);
        }
        let rank = down.shape[0];
        let down = down.clone().shaped(&[&[rank], &weight.shape[1..]].concat());
        let up = up.clone().shaped(&[weight.shape[0], rank, 1, 1]);
        let whole = |x| self.conv2d(x, weight, bias, stride, padding);
        self.beside(x, whole, |x| self.conv2d(x, &down, None, stride, padding), |x| self.conv2d(x, &up, None, 1, (0, 0)))
    }

    fn is_merged(&self, x: &Traced, weight: &Weight) -> bool {
        self.on_cpu() && vp_ops::is_merged(x.format.dtype().into(), weight.format.dtype().into(), &weight.shape)
    }

    /// A product with the sum of a weight and its factors' product, which is there for the moment.
    fn merged(&self, x: Traced, weight: &Weight, bias: Option<&Weight>, [down, up]: [&Weight; 2], shape: &[usize]) -> Traced {
        let format = x.format;
        let x = self.read(x);
        let copy = self.multiplied(weight, &x);
        let buffer = self.new_buffer(shape, x.format);
        let (sum, rank) = (size(&weight.shape, NumberFormat::F32), down.shape[0] as u64);
        self.touch(sum);
        self.note_operations(2 * count(shape) * count(&weight.shape[1..]) + 2 * rank * count(&weight.shape));
        let passed = vec![x.wants(), weight.wants(), bias.and_then(Weight::wants), down.wants(), up.wants()];
        let (mut kept, mut scratch) = (Vec::new(), 0);
        if self.records(&[weight.node, down.node, up.node]) {
            kept.push(x.buffer.clone());
            // What the first factor makes of the input, or the second of the gradient.
            scratch = size(shape, NumberFormat::F32) / weight.shape[0] as u64 * rank;
        }
        if self.records(&[x.node]) {
            kept.extend(copy.clone());
            scratch = scratch.max(sum);
        }
        let y = self.output(shape, x.format, buffer, Back { passed, kept, scratch });
        drop((x, copy));
        self.cast(y, format)
    }

    /// What `whole` makes of `x`, and added to it the scaled output of `down` and `up`, which compute in f32.
    fn beside(
        &self,
        x: Traced,
        whole: impl FnOnce(Traced) -> Traced,
        down: impl FnOnce(Traced) -> Traced,
        up: impl FnOnce(Traced) -> Traced,
    ) -> Traced {
        let format = x.format;
        let inner = down(self.cast(x.clone(), NumberFormat::F32));
        let whole = whole(x);
        let change = self.cast(self.scale(up(inner)), format);
        self.add(whole, change)
    }

    /// A norm. On a GPU the centred values are kept, and with SiLU behind it also the norm's output and the sigmoid of it; in between there are
    /// as many maps again.
    pub fn norm(&self, x: Traced, [weight, bias]: [&Weight; 2], with_silu: bool) -> Traced {
        let (format, shape) = (x.format, x.shape.clone());
        let x = self.read(x);
        let map = size(&shape, NumberFormat::F32);
        let x = self.cast(x, NumberFormat::F32);
        let buffer = self.buffer(map);
        let mut back = Back { passed: vec![x.wants(), weight.wants(), bias.wants()], ..Back::default() };
        let records = self.records(&[x.node, weight.node, bias.node]);
        if self.on_cpu() {
            back.kept.extend(records.then(|| x.buffer.clone()));
        } else {
            let maps = if with_silu { 3 } else { 1 };
            self.touch(2 * map);
            back.kept.extend((0..maps).filter(|_| records).map(|_| self.buffer(map)));
            back.scratch = 2 * map;
        }
        let y = self.output(&shape, NumberFormat::F32, buffer, back);
        drop(x);
        self.cast(y, format)
    }

    /// An activation: SiLU or a GELU, whose gradient writes over that of the output.
    pub fn activation(&self, x: Traced) -> Traced {
        let (format, shape) = (x.format, x.shape.clone());
        let x = self.cast(self.read(x), NumberFormat::F32);
        let map = size(&shape, NumberFormat::F32);
        let (buffer, records) = (self.buffer(map), self.records(&[x.node]));
        let mut back = Back { passed: vec![x.node.map(Passed::Same)], ..Back::default() };
        back.kept.extend(records.then(|| x.buffer.clone()));
        if !self.on_cpu() {
            // The sigmoid, or the normal distribution and what it is taken of.
            back.kept.extend((0..2).filter(|_| records).map(|_| self.buffer(map)));
            back.scratch = map;
        }
        let y = self.output(&shape, NumberFormat::F32, buffer, back);
        drop(x);
        self.cast(y, format)
    }

    /// `vp_ops::geglu`: `[.., 2 d]` → `[.., d]`.
    pub fn geglu(&self, x: Traced) -> Traced {
        let (format, mut shape) = (x.format, x.shape.clone());
        if let Some(last) = shape.last_mut() {
            *last /= 2;
        }
        let x = self.cast(self.read(x), NumberFormat::F32);
        let half = size(&shape, NumberFormat::F32);
        let (buffer, records) = (self.buffer(half), self.records(&[x.node]));
        let mut back = Back { passed: vec![x.wants()], ..Back::default() };
        if self.on_cpu() {
            back.kept.extend(records.then(|| x.buffer.clone()));
        } else {
            // Value, gate, GELU(gate), the distribution and its argument.
            self.touch(2 * half);
            back.kept.extend((0..5).filter(|_| records).map(|_| self.buffer(half)));
            back.scratch = 2 * half;
        }
        let y = self.output(&shape, NumberFormat::F32, buffer, back);
        drop(x);
        self.cast(y, format)
    }

    /// `vp_ops::attention`: `q` `[b, queries, c]`, `k` and `v` `[b, keys, c]`. Kept are q, k and v; on the CPU also the output and a logarithm
    /// per head and query. On a GPU a tile of the scores is there two times, on the way back three times.
    pub fn attention(&self, [q, k, v]: [Traced; 3], heads: usize) -> Traced {
        let format = q.format;
        let formats = [&q, &k, &v].map(|x| x.format.dtype().into());
        let in_bf16 = self.on_cpu() && vp_ops::is_attention_in_bf16(formats, q.shape[2] / heads);
        let [q, k, v] = [q, k, v].map(|x| if in_bf16 { self.ordered(x) } else { self.read(x) });
        let (shape, keys) = (q.shape.clone(), k.shape[1]);
        let buffer = self.new_buffer(&shape, q.format);
        self.note_operations(4 * count(&shape) * keys as u64);
        let nodes = [q.node, k.node, v.node];
        let (records, passed) = (self.records(&nodes), [q.wants(), k.wants(), v.wants()]);
        let mut back = Back { passed: passed.to_vec(), ..Back::default() };
        if records {
            back.kept.extend([&q, &k, &v].map(|x| x.buffer.clone()));
        }
        if self.on_cpu() {
            let logarithms = self.buffer(4 * (shape[0] * heads * shape[1]) as u64);
            if records {
                back.kept.extend([buffer.clone(), logarithms]);
            }
            // The kernel makes all three gradients, wanted or not.
            let unwanted = [&q, &k, &v].into_iter().zip(passed).filter(|(_, passed)| passed.is_none());
            back.scratch = unwanted.map(|(x, _)| size(&x.shape, x.format)).sum();
            if in_bf16 {
                // The sums, before they are rounded.
                self.touch(size(&shape, NumberFormat::F32));
                back.scratch += [&q, &k, &v].map(|x| size(&x.shape, NumberFormat::F32)).iter().sum::<u64>();
            }
        } else {
            let scores = (4 * (shape[0] * heads * shape[1] * keys) as u64).min(SCORES);
            self.touch(2 * scores);
            back.scratch = 3 * scores;
            self.note_scores(if records { 3 * scores } else { 2 * scores });
        }
        let y = self.output(&shape, q.format, buffer, back);
        drop((q, k, v));
        self.cast(y, format)
    }

    /// `a + b` of one shape, or `b` of one that is repeated. Written over a tensor that nothing else holds.
    pub fn add(&self, a: Traced, b: Traced) -> Traced {
        let (shape, format) = (a.shape.clone(), a.format);
        let alike = size(&b.shape, b.format) == size(&shape, format);
        let of_b = if alike { b.node.map(Passed::Same) } else { b.wants() };
        let back = Back { passed: vec![a.node.map(Passed::Same), of_b], ..Back::default() };
        let buffer = if a.is_alone() && a.in_order {
            a.buffer.clone()
        } else if alike && b.is_alone() && b.in_order {
            b.buffer.clone()
        } else {
            self.new_buffer(&shape, format)
        };
        self.output(&shape, format, buffer, back)
    }

    /// `x` times a number.
    pub fn scale(&self, x: Traced) -> Traced {
        let back = Back { passed: vec![x.node.map(Passed::Same)], ..Back::default() };
        let buffer = if x.is_alone() && x.in_order { x.buffer.clone() } else { self.new_buffer(&x.shape, x.format) };
        self.output(&x.shape.clone(), x.format, buffer, back)
    }

    /// Tensors one after the other along `axis`.
    pub fn cat(&self, parts: Vec<Traced>, axis: usize) -> Traced {
        let (mut shape, format) = (parts[0].shape.clone(), parts[0].format);
        shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        let buffer = self.new_buffer(&shape, format);
        let back = Back { passed: parts.iter().map(Traced::wants).collect(), ..Back::default() };
        self.output(&shape, format, buffer, back)
    }

    /// Parts put together to a tensor of this shape, in which they overlap.
    pub fn cat_as(&self, parts: Vec<Traced>, shape: &[usize]) -> Traced {
        let (format, buffer) = (parts[0].format, self.new_buffer(shape, parts[0].format));
        let back = Back { passed: parts.iter().map(Traced::wants).collect(), ..Back::default() };
        self.output(shape, format, buffer, back)
    }

    /// `x` in a new buffer of another shape, as a resize or a repetition makes it; keeps nothing.
    pub fn resized(&self, x: Traced, shape: &[usize]) -> Traced {
        let (buffer, back) = (self.new_buffer(shape, x.format), Back { passed: vec![x.wants()], ..Back::default() });
        self.output(shape, x.format, buffer, back)
    }

    /// `x` limited to a range, which keeps where it was outside: as many values.
    pub fn clamped(&self, x: Traced) -> Traced {
        let buffer = self.new_buffer(&x.shape, x.format);
        let records = self.records(&[x.node]);
        let back = Back { passed: vec![x.wants()], kept: records.then(|| x.buffer.clone()).into_iter().collect(), scratch: 0 };
        self.output(&x.shape.clone(), x.format, buffer, back)
    }
}
