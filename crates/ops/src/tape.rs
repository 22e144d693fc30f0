//! How an operation with a backward pass of its own takes its place among Burn's: on every backend, in every number format, on the tape or
//! off it. A tensor off the tape is a constant to one on it.

use std::fmt::Debug;

#[cfg(feature = "gpu")]
use burn::backend::Cube;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, BackendTypes, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex,
    GradientCheckpointingStrategy as Strategy,
};
use burn::tensor::Tensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy, NoCheckpointing};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

/// A float tensor whose rank is forgotten.
#[derive(Debug, Clone)]
pub struct Ranked(DispatchTensor);

impl Ranked {
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        Self(tensor.into_dispatch())
    }

    /// The tensor. `D` is the rank that it had.
    pub(crate) fn tensor<const D: usize>(self) -> Tensor<D> {
        Tensor::from_dispatch(self.0)
    }

    /// Whether it lives on the CPU (flex), on the tape or off it.
    pub(crate) fn is_on_cpu(&self) -> bool {
        match &self.0.kind {
            DispatchTensorKind::Flex(_) => true,
            DispatchTensorKind::Autodiff(inner) => matches!(**inner, DispatchTensorKind::Flex(_)),
            #[allow(unreachable_patterns, reason = "a build without a GPU knows no other")]
            _ => false,
        }
    }
}

/// What an operation does to tensors, and how its gradient goes back. All tensors that it sees are off the tape.
pub(crate) trait Operation<const N: usize>: Debug + Clone + Send + 'static {
    /// What the backward pass needs.
    type Saved: Debug + Clone + Send + 'static;

    /// The output, and what is kept for the backward pass. `wanted` says which inputs will want a gradient: off the tape, none.
    fn forward(&self, inputs: [Ranked; N], wanted: [bool; N]) -> (Ranked, Self::Saved);

    /// The gradient of each input where it is wanted, given that of the output.
    fn backward(self, saved: Self::Saved, output: Ranked, wanted: [bool; N]) -> [Option<Ranked>; N];
}

/// Runs `operation`, on the tape if an input is on it.
///
/// # Panics
/// When the inputs are on different backends, or on tapes with and without Burn's own checkpointing.
pub(crate) fn apply<O: Operation<N>, const N: usize>(operation: O, inputs: [Ranked; N]) -> Ranked {
    let strategy = inputs.iter().find_map(|input| match input.0.autodiff {
        DispatchAutodiffContext::Enabled(strategy) => Some(strategy),
        DispatchAutodiffContext::Disabled => None,
    });
    let Some(strategy) = strategy else { return operation.forward(inputs, [false; N]).0 };
    #[cfg(feature = "gpu")]
    if !inputs[0].is_on_cpu() {
        return match strategy {
            Strategy::Disabled => on_tape::<Cube, NoCheckpointing, O, N>(operation, inputs),
            Strategy::Balanced => on_tape::<Cube, BalancedCheckpointing, O, N>(operation, inputs),
        };
    }
    match strategy {
        Strategy::Disabled => on_tape::<Flex, NoCheckpointing, O, N>(operation, inputs),
        Strategy::Balanced => on_tape::<Flex, BalancedCheckpointing, O, N>(operation, inputs),
    }
}

/// A float tensor of backend `B`.
type Plain<B> = <B as BackendTypes>::FloatTensorPrimitive;
/// A float tensor of backend `B` on its tape.
type Taped<B, C> = <Autodiff<B, C> as BackendTypes>::FloatTensorPrimitive;

/// A backend, and a strategy of its tape.
trait Engine<C: CheckpointStrategy>: Backend {
    fn wrap(plain: Plain<Self>) -> Ranked;
    fn unwrap(tensor: Ranked) -> Plain<Self>;
    fn wrap_taped(taped: Taped<Self, C>) -> Ranked;
    fn unwrap_taped(tensor: Ranked) -> Taped<Self, C>;
}

const MIXED: &str = "an operation's inputs are on one backend and one kind of tape";

macro_rules! engine {
    ($backend:ident with $($strategy:ident),+) => {
        $(impl Engine<$strategy> for $backend {
            fn wrap(plain: Plain<Self>) -> Ranked {
                Ranked::of(Tensor::<1>::from_primitive::<Self>(plain))
            }
            fn unwrap(tensor: Ranked) -> Plain<Self> {
                tensor.tensor::<1>().try_into_primitive::<Self>().expect(MIXED)
            }
            fn wrap_taped(taped: Taped<Self, $strategy>) -> Ranked {
                Ranked::of(Tensor::<1>::from_primitive::<Autodiff<Self, $strategy>>(taped))
            }
            fn unwrap_taped(tensor: Ranked) -> Taped<Self, $strategy> {
                tensor.tensor::<1>().try_into_primitive::<Autodiff<Self, $strategy>>().expect(MIXED)
            }
        })+
    };
}
engine!(Flex with NoCheckpointing, BalancedCheckpointing);
#[cfg(feature = "gpu")]
engine!(Cube with NoCheckpointing, BalancedCheckpointing);

fn on_tape<B: Engine<C>, C: CheckpointStrategy, O: Operation<N>, const N: usize>(operation: O, inputs: [Ranked; N]) -> Ranked {
    let taped = inputs.map(|input| match input.0.autodiff {
        DispatchAutodiffContext::Enabled(_) => B::unwrap_taped(input),
        DispatchAutodiffContext::Disabled => <Autodiff<B, C> as AutodiffBackend>::from_inner(B::unwrap(input)),
    });
    // Which inputs want a gradient: an operation on one of them alone would be tracked.
    let wanted = taped.each_ref().map(|tensor| {
        let probe = Backward::<B, 1>::prepare::<C>(Probe, [tensor.node()]);
        matches!(probe.compute_bound().stateful(), OpsKind::Tracked(_))
    });
    let mut guards = Vec::with_capacity(N);
    let inputs = taped.map(|tensor| {
        let (primitive, guard) = tensor.into_parts();
        guards.push(guard);
        B::wrap(primitive)
    });
    let guards: [_; N] = guards.try_into().unwrap_or_else(|_| unreachable!("one guard per input"));
    let (output, saved) = operation.forward(inputs, wanted);
    let output = B::unwrap(output);
    B::wrap_taped(match Step::<O, C>(operation, std::marker::PhantomData).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    })
}

#[derive(Debug)]
struct Probe;

impl<B: Backend> Backward<B, 1> for Probe {
    type State = ();
    fn backward(self, _: Ops<(), 1>, _: &mut Gradients, _: &mut Checkpointer) {
        unreachable!("a probe is never finished");
    }
}

/// An operation's place on the tape.
#[derive(Debug)]
struct Step<O, C>(O, std::marker::PhantomData<fn() -> C>);

impl<B: Engine<C>, C: CheckpointStrategy, O: Operation<N>, const N: usize> Backward<B, N> for Step<O, C> {
    type State = O::Saved;
    fn backward(self, ops: Ops<O::Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let output = B::wrap(gradients.consume::<B>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in ops.parents.into_iter().zip(self.0.backward(ops.state, output, wanted)) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, B::unwrap(gradient.expect("a gradient for each input that wants one")));
            }
        }
    }
}
