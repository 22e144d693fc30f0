//! How an operation with a backward pass of its own takes its place among Burn's.
//!
//! A fused operation works on flex's f32 tensors, on the tape or off it. Where it is given anything else (another backend, another
//! number format), [`apply`] says so, and the caller composes Burn's own operations. A tensor off the tape is a constant to one on it.

use std::fmt::Debug;
use std::mem::MaybeUninit;

use burn::backend::{Autodiff, AutodiffBackend, Flex, TensorMetadata};
use burn::tensor::{DType, Shape, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_flex::{FlexTensor, Layout};

type Taped<C> = <Autodiff<Flex, C> as burn::backend::BackendTypes>::FloatTensorPrimitive;

/// Contiguous f32 values and their shape, cheap to clone.
#[derive(Debug, Clone)]
pub struct Values(FlexTensor);

impl Values {
    fn new(tensor: FlexTensor) -> Self {
        Self(tensor.to_contiguous())
    }

    /// # Panics
    /// When there are not as many values as the shape says.
    pub(crate) fn from_vec(values: Vec<f32>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.num_elements());
        Self(FlexTensor::new(burn::tensor::Bytes::from_elems(values), Layout::contiguous(shape), DType::F32))
    }

    /// The values of a tensor on the CPU and off the tape.
    ///
    /// # Panics
    /// When it is anywhere else.
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        Self::new(tensor.try_into_primitive::<Flex>().expect("a tensor on the CPU, off the tape"))
    }

    /// The same values as a tensor off the tape.
    pub(crate) fn tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_primitive::<Flex>(self.0)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.0.shape()
    }

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

impl std::ops::Deref for Values {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.0.as_slice::<f32>().expect("contiguous f32 values")
    }
}

/// A vector of `len` values: `write` is given its memory, uninitialised, and returns it with every value written.
///
/// `vec![0.0; len]` is simpler, and is what products and attention start from. Activations and norms wait for memory most of the time:
/// to clear theirs first costs them 10 to 20 %.
///
/// # Panics
/// When `write` returns anything but the memory that it was given.
pub(crate) fn written(len: usize, write: impl for<'v> FnOnce(&'v mut [MaybeUninit<f32>]) -> &'v mut [f32]) -> Vec<f32> {
    let mut values = Vec::<f32>::with_capacity(len);
    let first = values.as_ptr();
    let back = write(&mut values.spare_capacity_mut()[..len]);
    assert!(back.as_ptr() == first && back.len() == len, "a kernel returned other values than it was given");
    // SAFETY: the vector has room for `len` values, and these came back as `[f32]`, which is proof that they are initialised.
    unsafe { values.set_len(len) };
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

/// An input of any rank.
#[derive(Debug, Clone)]
pub enum Input {
    /// Off the tape.
    Plain(FlexTensor),
    /// On the tape.
    Taped(Taped<NoCheckpointing>),
    /// On the tape with Burn's own checkpointing.
    Balanced(Taped<BalancedCheckpointing>),
}

impl Input {
    /// `None` where fused operations do not know the tensor's backend or number format.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        if !tensor.device().is_autodiff() {
            return tensor.clone().try_into_primitive::<Flex>().ok().map(Self::Plain);
        }
        let taped = tensor.clone().try_into_primitive::<Autodiff<Flex, NoCheckpointing>>().ok().map(Self::Taped);
        taped.or_else(|| tensor.clone().try_into_primitive::<Autodiff<Flex, BalancedCheckpointing>>().ok().map(Self::Balanced))
    }

    /// In place of an optional input that was not given.
    pub(crate) fn absent() -> Self {
        Self::Plain(FlexTensor::empty(Shape::from([0]), DType::F32))
    }
}

/// Runs `operation` on the inputs, or returns none where one of them is not known.
pub(crate) fn apply<F: Fused<N>, const N: usize, const D: usize>(operation: F, inputs: [Option<Input>; N]) -> Option<Tensor<D>> {
    if inputs.iter().any(Option::is_none) {
        return None;
    }
    let inputs = inputs.map(|input| input.expect("all are there"));
    if inputs.iter().any(|input| matches!(input, Input::Balanced(_))) {
        return on_tape::<F, BalancedCheckpointing, N>(operation, inputs)
            .map(Tensor::from_primitive::<Autodiff<Flex, BalancedCheckpointing>>);
    }
    if inputs.iter().any(|input| matches!(input, Input::Taped(_))) {
        return on_tape::<F, NoCheckpointing, N>(operation, inputs).map(Tensor::from_primitive::<Autodiff<Flex, NoCheckpointing>>);
    }
    let inputs = inputs.map(|input| match input {
        Input::Plain(tensor) => Values::new(tensor),
        Input::Taped(_) | Input::Balanced(_) => unreachable!("no input is on the tape"),
    });
    Some(Tensor::from_primitive::<Flex>(operation.forward(inputs, [false; N]).0.0))
}

/// A strategy of the tape and the inputs that are on it.
trait OnTape: CheckpointStrategy {
    fn taped(input: Input) -> Option<Taped<Self>>
    where
        Self: Sized;
}

impl OnTape for NoCheckpointing {
    fn taped(input: Input) -> Option<Taped<Self>> {
        match input {
            Input::Plain(tensor) => Some(<Autodiff<Flex, Self> as AutodiffBackend>::from_inner(tensor)),
            Input::Taped(tensor) => Some(tensor),
            Input::Balanced(_) => None,
        }
    }
}

impl OnTape for BalancedCheckpointing {
    fn taped(input: Input) -> Option<Taped<Self>> {
        match input {
            Input::Plain(tensor) => Some(<Autodiff<Flex, Self> as AutodiffBackend>::from_inner(tensor)),
            Input::Balanced(tensor) => Some(tensor),
            Input::Taped(_) => None,
        }
    }
}

fn on_tape<F: Fused<N>, C: OnTape, const N: usize>(operation: F, inputs: [Input; N]) -> Option<Taped<C>> {
    let mut taped = inputs.map(C::taped);
    if taped.iter().any(Option::is_none) {
        return None;
    }
    // Which inputs want a gradient: an operation on one of them alone would be tracked.
    let wanted = taped.each_ref().map(|tensor| {
        let guard = tensor.as_ref().expect("all are there").node();
        matches!(Backward::<Flex, 1>::prepare::<C>(Probe, [guard]).compute_bound().stateful(), OpsKind::Tracked(_))
    });
    let parts = taped.each_mut().map(|tensor| tensor.take().expect("all are there").into_parts());
    let mut guards = Vec::with_capacity(N);
    let values = parts.map(|(primitive, guard)| {
        guards.push(guard);
        Values::new(primitive)
    });
    let guards: [_; N] = guards.try_into().unwrap_or_else(|_| unreachable!("one guard an input"));
    let (output, saved) = operation.forward(values, wanted);
    Some(match Step(operation).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output.0),
        OpsKind::UnTracked(prepared) => prepared.finish(output.0),
    })
}

#[derive(Debug)]
struct Probe;

impl Backward<Flex, 1> for Probe {
    type State = ();
    fn backward(self, _: Ops<(), 1>, _: &mut Gradients, _: &mut Checkpointer) {
        unreachable!("a probe is never finished");
    }
}

#[derive(Debug)]
struct Step<F>(F);

impl<F: Fused<N>, const N: usize> Backward<Flex, N> for Step<F> {
    type State = F::Saved;
    fn backward(self, ops: Ops<F::Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let output = Values::new(gradients.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in ops.parents.into_iter().zip(self.0.backward(ops.state, output, wanted)) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, gradient.expect("a gradient for each input that wants one").0);
            }
        }
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
