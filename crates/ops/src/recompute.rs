//! Recomputation, also called gradient checkpointing (Chen et al., arXiv 1604.06174): a stage of a network runs off the tape and
//! only what enters it is kept; the backward pass runs it again, on a tape of its own that lives no longer than that.
//!
//! Costs one more forward pass of the stage, and keeps its inputs instead of everything in between.

use std::fmt;
use std::marker::PhantomData;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

use crate::tape::{Operation, Ranked, apply};

/// The most tensors that can enter a stage.
const MOST: usize = 4;
/// Behind them, the trained parameters as one.
const SLOTS: usize = MOST + 1;

/// The tensors that enter a stage: a tuple of one to four, each of its own rank.
pub trait Boundary: sealed::Boundary {}

mod sealed {
    use super::*;

    /// What recomputation asks of the tensors.
    pub trait Boundary: Clone + Send + 'static {
        /// Whether any of them is on a tape.
        fn is_autodiff(&self) -> bool;
        /// Something to fill an unused place with: off the tape, on the device of the first.
        fn filler(&self) -> Ranked;
        fn inputs(&self) -> Vec<Ranked>;
        /// The same tensors from their values; those that want a gradient begin a tape.
        fn from_values(values: &mut dyn Iterator<Item = (Ranked, bool)>) -> Self;
        fn gradients(&self, wanted: &[bool], gradients: &mut Gradients) -> Vec<Option<Ranked>>;
    }
}

macro_rules! boundary {
    ($($rank:ident $place:tt),+) => {
        impl<$(const $rank: usize),+> Boundary for ($(Tensor<$rank>,)+) {}
        impl<$(const $rank: usize),+> sealed::Boundary for ($(Tensor<$rank>,)+) {
            fn is_autodiff(&self) -> bool {
                [$(self.$place.is_autodiff()),+].contains(&true)
            }
            fn filler(&self) -> Ranked {
                Ranked::of(self.0.clone().without_autodiff())
            }
            fn inputs(&self) -> Vec<Ranked> {
                vec![$(Ranked::of(self.$place.clone())),+]
            }
            fn from_values(values: &mut dyn Iterator<Item = (Ranked, bool)>) -> Self {
                ($(from_values::<$rank>(values),)+)
            }
            fn gradients(&self, wanted: &[bool], gradients: &mut Gradients) -> Vec<Option<Ranked>> {
                vec![$(wanted[$place].then(|| Ranked::of(gradient(&self.$place, gradients)))),+]
            }
        }
    };
}

boundary!(A 0);
boundary!(A 0, B 1);
boundary!(A 0, B 1, C 2);
boundary!(A 0, B 1, C 2, D 3);

fn from_values<const D: usize>(values: &mut dyn Iterator<Item = (Ranked, bool)>) -> Tensor<D> {
    let (values, wanted) = values.next().expect("a value for each tensor");
    if wanted { values.tensor().autodiff().require_grad() } else { values.tensor() }
}

/// The gradient of a leaf; zero where the stage made nothing of it.
fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &mut Gradients) -> Tensor<D> {
    leaf.grad_remove(gradients).unwrap_or_else(|| leaf.clone().without_autodiff().zeros_like())
}

/// `f` of every parameter that asks for a gradient, in the order of the fields.
fn of_trained<M: Module>(module: &M, f: impl FnMut(Trained<'_>)) {
    struct Visit<F>(F);
    impl<F: FnMut(Trained<'_>)> ModuleVisitor for Visit<F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.base();
            if value.is_require_grad() {
                (self.0)(Trained { flat: &|| flat(value.clone()), gradient: &|gradients| flat(gradient(&value, gradients)) });
            }
        }
    }
    module.visit(&mut Visit(f));
}

/// A parameter of any rank that asks for a gradient.
struct Trained<'a> {
    /// Its values `[n]`, on its tape.
    flat: &'a dyn Fn() -> Tensor<1>,
    /// Its gradient `[n]`.
    gradient: &'a dyn Fn(&mut Gradients) -> Tensor<1>,
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}

/// Whether any parameter of `module` asks for a gradient.
pub fn trains<M: Module>(module: &M) -> bool {
    let mut found = false;
    of_trained(module, |_| found = true);
    found
}

/// `stage(module, boundary)`, of which the tape keeps `boundary` alone; the backward pass runs `stage` again.
///
/// `stage` must be a function of what it is given: on its second call it gets copies that begin a tape of their own, equal in value.
/// What it captures is a constant. Gradients reach the tensors of `boundary` and the parameters of `module` that ask for one.
///
/// Where nothing asks for a gradient, this is a plain call of `stage`. The trained parameters of `module` share a number format.
///
/// # Panics
/// In the backward pass, when the output does not depend on anything that asks for a gradient.
pub fn recompute<M, B, const D: usize>(module: &M, boundary: B, stage: impl Fn(&M, B) -> Tensor<D> + Clone + Send + 'static) -> Tensor<D>
where
    M: Module + 'static,
    B: Boundary,
{
    let mut trained = Vec::new();
    of_trained(module, |parameter| trained.push((parameter.flat)()));
    if trained.is_empty() && !boundary.is_autodiff() {
        return stage(module, boundary);
    }
    let filler = boundary.filler();
    let mut inputs = boundary.inputs();
    let count = inputs.len();
    inputs.resize(MOST, filler.clone());
    // An operation has as many parents as its type says, so the parameters go in as one; its values are not looked at.
    inputs.push(if trained.is_empty() { filler } else { Ranked::of(Tensor::cat(trained, 0)) });
    let inputs: [Ranked; SLOTS] = inputs.try_into().expect("a boundary has one to four tensors");
    // Without its tape: a node that held on to other nodes would keep an abandoned tape from being freed.
    apply(Recompute { module: module.valid(), stage, count, boundary: PhantomData }, inputs).tensor()
}

struct Recompute<M, B, F, const D: usize> {
    module: M,
    stage: F,
    /// Tensors of the boundary.
    count: usize,
    boundary: PhantomData<fn() -> B>,
}

impl<M: Clone, B, F: Clone, const D: usize> Clone for Recompute<M, B, F, D> {
    fn clone(&self) -> Self {
        Self { module: self.module.clone(), stage: self.stage.clone(), count: self.count, boundary: PhantomData }
    }
}

impl<M, B, F, const D: usize> fmt::Debug for Recompute<M, B, F, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recompute").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<M, B, F, const D: usize> Operation<SLOTS> for Recompute<M, B, F, D>
where
    M: Module + 'static,
    B: Boundary,
    F: Fn(&M, B) -> Tensor<D> + Clone + Send + 'static,
{
    type Saved = Vec<Ranked>;

    fn forward(&self, inputs: [Ranked; SLOTS], _: [bool; SLOTS]) -> (Ranked, Vec<Ranked>) {
        let boundary: Vec<Ranked> = inputs.into_iter().take(self.count).collect();
        let plain = B::from_values(&mut boundary.iter().map(|values| (values.clone(), false)));
        (Ranked::of((self.stage)(&self.module, plain)), boundary)
    }

    fn backward(self, boundary: Vec<Ranked>, output: Ranked, wanted: [bool; SLOTS]) -> [Option<Ranked>; SLOTS] {
        // Fresh leaves all: the tape under way is locked, and nothing of it may be touched before its step is over.
        let module = if wanted[MOST] { self.module.train() } else { self.module };
        let leaves = B::from_values(&mut boundary.into_iter().zip(wanted));
        let again = (self.stage)(&module, leaves.clone());
        let from_here: Tensor<1> = apply(Cotangent(output), [Ranked::of(again.clone())]).tensor();
        drop(again);
        let mut gradients = from_here.backward();
        let mut found = leaves.gradients(&wanted, &mut gradients);
        found.resize_with(MOST, || None);
        found.push(wanted[MOST].then(|| {
            let mut of_parameters = Vec::new();
            of_trained(&module, |parameter| of_parameters.push((parameter.gradient)(&mut gradients)));
            Ranked::of(Tensor::cat(of_parameters, 0))
        }));
        found.try_into().unwrap_or_else(|_| unreachable!("four and one"))
    }
}

/// Begins a backward pass with a given gradient of the input rather than with ones; its own value means nothing.
#[derive(Debug, Clone)]
struct Cotangent(Ranked);

impl Operation<1> for Cotangent {
    type Saved = ();

    fn forward(&self, [x]: [Ranked; 1], _: [bool; 1]) -> (Ranked, ()) {
        (Ranked::of(Tensor::<1>::zeros([1], &x.tensor::<1>().device())), ())
    }

    fn backward(self, (): (), _: Ranked, _: [bool; 1]) -> [Option<Ranked>; 1] {
        [Some(self.0)]
    }
}
