//! Operations of our own on the CPU with a backward pass of their own. Those that are [`Fused`] take f32 values and give f32 values.
//!
//! Where one is given anything else (another backend, another number format), [`apply`] says so, and the caller composes Burn's own
//! operations.

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};
use half::bf16;

use crate::kernel::round::{round, widen};
use crate::kernel::words::Element;
use crate::kernel::write_into;
use crate::tape::{self, Operation, Ranked};

/// Contiguous values of a number format, f32 or bf16, and their shape, cheap to clone.
#[derive(Debug, Clone)]
pub struct Values<E = f32>(FlexTensor, PhantomData<E>);

/// A number format that the CPU's matrix products know.
pub(crate) trait Format: Element + burn::tensor::Element {
    /// `len` values, rounded from those that `write` writes, as [`written`] says.
    fn rounded(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Vec<Self>;

    /// As many values each, rounded from those that `write` makes of zeros.
    fn summed<const N: usize>(sizes: [usize; N], write: impl FnOnce([&mut [f32]; N])) -> [Vec<Self>; N];

    /// The same values in f32.
    fn widened(values: &[Self]) -> Cow<'_, [f32]>;
}

impl Format for f32 {
    fn rounded(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Vec<Self> {
        written(len, write)
    }

    fn summed<const N: usize>(sizes: [usize; N], write: impl FnOnce([&mut [f32]; N])) -> [Vec<Self>; N] {
        let mut sums = sizes.map(|len| vec![0.0; len]);
        write(sums.each_mut().map(Vec::as_mut_slice));
        sums
    }

    fn widened(values: &[Self]) -> Cow<'_, [f32]> {
        values.into()
    }
}

impl Format for bf16 {
    fn rounded(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Vec<Self> {
        // Not in scratch memory, which keeps what it has: the allocator gives this to whatever comes next.
        let exact = written(len, write);
        written(len, |values| round(&exact, values))
    }

    fn summed<const N: usize>(sizes: [usize; N], write: impl FnOnce([&mut [f32]; N])) -> [Vec<Self>; N] {
        <f32 as Format>::summed(sizes, write).map(|sums| written(sums.len(), |values| round(&sums, values)))
    }

    fn widened(values: &[Self]) -> Cow<'_, [f32]> {
        written(values.len(), |wide| widen(values, wide)).into()
    }
}

impl<E: Format> Values<E> {
    fn new(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous(), PhantomData)
    }

    /// # Panics
    /// When there are not as many values as the shape says.
    pub(crate) fn from_vec(values: Vec<E>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.num_elements());
        Self::new(FlexTensor::new(burn::tensor::Bytes::from_elems(values), Layout::contiguous(shape), E::dtype()))
    }

    /// The values of a tensor on the CPU and off the tape.
    ///
    /// # Panics
    /// When it is anywhere else.
    pub(crate) fn of(tensor: Ranked) -> Self {
        Self::new(tensor.tensor::<1>().try_into_primitive::<Flex>().expect("a tensor on the CPU, off the tape"))
    }

    pub(crate) fn ranked(self) -> Ranked {
        Ranked::of(Tensor::<1>::from_primitive::<Flex>(self.0))
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }
}

impl Values {
    /// These values written over: in place where no one else holds them.
    pub(crate) fn overwritten(mut self, write: impl FnOnce(&mut [f32])) -> Self {
        // `storage_mut` copies what is shared; a view into a larger buffer is shared with its surroundings.
        if self.0.layout().start_offset() > 0 || self.0.storage::<f32>().len() != self.len() {
            self = Self::from_vec(self.to_vec(), self.shape());
        }
        write(self.0.storage_mut::<f32>());
        self
    }
}

impl<E: Format> std::ops::Deref for Values<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        self.0.as_slice::<E>().expect("contiguous values of this format")
    }
}

/// A vector of the `len` values that `write` writes, as [`write_into`] says.
///
/// `vec![0.0; len]` is simpler, and is what attention starts from. Activations, norms and products with few terms wait for memory most of the
/// time: to clear theirs first costs them 10 to 20 %.
pub(crate) fn written<E>(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<E>]) -> &'v mut [E]) -> Vec<E> {
    let mut values = Vec::new();
    write_into(&mut values, len, write);
    values
}

/// What an operation does to values, and how its gradient goes back.
pub(crate) trait Fused<const N: usize>: Debug + Clone + Send + 'static {
    /// What the backward pass needs.
    type Saved: Debug + Clone + Send + 'static;

    /// The output, and what is kept for the backward pass. `wanted` says which inputs will want a gradient: off the tape, none.
    fn forward(&self, inputs: [Values; N], wanted: [bool; N]) -> (Values, Self::Saved);

    /// The gradient of each input where it is wanted, given that of the output.
    fn backward(self, saved: Self::Saved, output: Values, wanted: [bool; N]) -> [Option<Values>; N];
}

/// Whether a tensor lives on the CPU (flex), whose kernels are our own.
pub(crate) fn on_cpu<const D: usize>(tensor: &Tensor<D>) -> bool {
    Ranked::of(tensor.clone()).is_on_cpu()
}

/// `f` of `x` in f32; its output in the number format of `x`.
pub(crate) fn in_f32<const D: usize, const E: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<E>) -> Tensor<E> {
    let format = x.dtype();
    cast(f(cast(x, DType::F32)), format)
}

/// `x` in another number format. On the CPU between f32 and bf16 on all cores.
pub fn cast<const D: usize>(x: Tensor<D>, to: DType) -> Tensor<D> {
    let from = x.dtype();
    match (from, to) {
        (DType::BF16, DType::F32) | (DType::F32, DType::BF16) if on_cpu(&x) => tape::apply(Cast { from, to }, [Ranked::of(x)]).tensor(),
        _ => x.cast(to),
    }
}

/// Between f32 and bf16.
#[derive(Debug, Clone)]
struct Cast {
    from: DType,
    to: DType,
}

impl Cast {
    fn of(x: Ranked, to: DType) -> Ranked {
        if to == DType::F32 {
            let x = Values::<bf16>::of(x);
            Values::from_vec(written(x.len(), |wide| widen(&x, wide)), x.shape()).ranked()
        } else {
            let x = Values::<f32>::of(x);
            Values::from_vec(written(x.len(), |values| round(&x, values)), x.shape()).ranked()
        }
    }
}

impl Operation<1> for Cast {
    type Saved = ();

    fn forward(&self, [x]: [Ranked; 1], _: [bool; 1]) -> (Ranked, ()) {
        (Self::of(x, self.to), ())
    }

    fn backward(self, (): (), output: Ranked, _: [bool; 1]) -> [Option<Ranked>; 1] {
        [Some(Self::of(output, self.from))]
    }
}

/// An input of any rank, on the CPU and in f32.
#[derive(Debug, Clone)]
pub struct Input(Ranked);

impl Input {
    /// `None` where fused operations do not know the tensor's backend or number format.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        let ranked = Ranked::of(tensor.clone());
        (tensor.dtype() == DType::F32 && ranked.is_on_cpu()).then_some(Self(ranked))
    }

    /// In place of an optional input that was not given.
    pub(crate) fn absent() -> Self {
        Self(Ranked::of(Tensor::<1>::empty([0], &Device::flex())))
    }
}

impl From<Input> for Ranked {
    fn from(Input(input): Input) -> Self {
        input
    }
}

/// Runs `operation` on the inputs, or returns none where one of them is not known.
pub(crate) fn apply<F: Fused<N>, const N: usize, const D: usize>(operation: F, inputs: [Option<Input>; N]) -> Option<Tensor<D>> {
    if inputs.iter().any(Option::is_none) {
        return None;
    }
    let inputs = inputs.map(|input| input.expect("all are there").0);
    Some(tape::apply(Kernel(operation), inputs).tensor())
}

/// A fused operation among those of any backend.
#[derive(Debug, Clone)]
struct Kernel<F>(F);

impl<F: Fused<N>, const N: usize> Operation<N> for Kernel<F> {
    type Saved = F::Saved;

    fn forward(&self, inputs: [Ranked; N], wanted: [bool; N]) -> (Ranked, F::Saved) {
        let (output, saved) = self.0.forward(inputs.map(Values::of), wanted);
        (output.ranked(), saved)
    }

    fn backward(self, saved: F::Saved, output: Ranked, wanted: [bool; N]) -> [Option<Ranked>; N] {
        self.0.backward(saved, Values::of(output), wanted).map(|gradient| gradient.map(Values::ranked))
    }
}

#[cfg(test)]
mod tests {
    use super::written;

    #[test]
    #[should_panic(expected = "a kernel returned other values than it was given")]
    fn memory_that_was_not_written_is_not_handed_out() {
        written(2, |_| Box::leak(Box::new([0.0; 2])));
    }
}
