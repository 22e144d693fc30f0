//! The book of a network's buffers: which are made, which the tape keeps, when each is dropped.
//!
//! A [`Traced`] stands for a tensor. It is cloned and dropped where the tensor would be, and its buffer lives as long as the last clone, or as
//! long as the tape keeps it. So the most that is held at once comes out of the same moves as in a run.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;

use super::operations::Weight;
use super::{bytes_of, counted};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::number_format::NumberFormat;

/// What computes. It decides what an operation keeps and what it needs in between: on the CPU operations are fused, elsewhere composed of Burn's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The CPU, whose kernels are those of `vp_ops`.
    Cpu,
    /// A GPU, by Burn's own operations.
    Gpu,
}

/// Bytes held now, and the most that ever were.
#[derive(Debug, Default)]
struct Held {
    now: Cell<u64>,
    most: Cell<u64>,
}

/// Memory that is counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: u64,
    held: Rc<Held>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.held.now.set(self.held.now.get() - self.bytes);
    }
}

/// A tensor, of which shape, number format and buffer are known, but no value.
#[derive(Debug, Clone)]
pub struct Traced {
    pub(super) shape: Vec<usize>,
    pub(super) format: NumberFormat,
    /// Whether its values lie in order. A view of another tensor's may not, and is copied by what reads it.
    pub(super) in_order: bool,
    pub(super) buffer: Rc<Buffer>,
    /// Its place on the tape, if a gradient is wanted of it.
    pub(super) node: Option<Node>,
}

/// A place on the tape.
pub(super) type Node = usize;

/// The gradient that an operation passes to one of its inputs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Passed {
    /// A new one, of so many bytes.
    New(Node, u64),
    /// That of the output, as it is or written over.
    Same(Node),
}

/// An operation on the tape.
#[derive(Debug)]
struct Step {
    output: Node,
    passed: Vec<Passed>,
    /// What the backward pass needs of the forward one; never read, only held.
    _kept: Vec<Rc<Buffer>>,
    /// What the backward pass takes in between, in bytes.
    scratch: u64,
}

/// How an operation goes back.
#[derive(Debug, Default)]
pub(super) struct Back {
    pub passed: Vec<Option<Passed>>,
    pub kept: Vec<Rc<Buffer>>,
    pub scratch: u64,
}

/// The book. Networks write into it as they are traced.
#[derive(Debug)]
pub struct Ledger {
    /// What computes.
    pub engine: Engine,
    held: Rc<Held>,
    trained: Rc<HashSet<ParamId>>,
    recording: Cell<bool>,
    steps: RefCell<Vec<Step>>,
    nodes: Cell<Node>,
    parameters: RefCell<BTreeMap<ParamId, (Node, u64)>>,
    gradients: RefCell<Vec<Rc<Buffer>>>,
    /// The largest tile of attention scores, with its gradient.
    scores: Cell<u64>,
    /// Multiplications and additions.
    operations: Cell<u64>,
}

impl Ledger {
    /// A book without a tape: no gradient is wanted of anything.
    pub fn off_the_tape(engine: Engine) -> Self {
        Self::on_the_tape(engine, Rc::default())
    }

    /// A book with a tape. Gradients are wanted of the parameters with these identities.
    pub fn on_the_tape(engine: Engine, trained: Rc<HashSet<ParamId>>) -> Self {
        Self {
            engine,
            held: Rc::default(),
            recording: Cell::new(true),
            trained,
            steps: RefCell::default(),
            nodes: Cell::new(0),
            parameters: RefCell::default(),
            gradients: RefCell::default(),
            scores: Cell::new(0),
            operations: Cell::new(0),
        }
    }

    /// The most bytes of attention scores that were there at once: none on the CPU, whose kernel keeps no more than a few rows of them.
    pub fn scores(&self) -> u64 {
        self.scores.get()
    }

    /// Multiplications and additions of the forward passes so far, in matrix products, convolutions and attention; what norms and activations
    /// add is under 2 %.
    pub fn operations(&self) -> u64 {
        self.operations.get()
    }

    pub(super) fn note_operations(&self, count: u64) {
        self.operations.set(self.operations.get() + count);
    }

    pub(super) fn note_scores(&self, bytes: u64) {
        self.scores.set(self.scores.get().max(bytes));
    }

    /// Bytes that are held now.
    pub fn held(&self) -> u64 {
        self.held.now.get()
    }

    /// The most bytes that were held at once.
    pub fn peak(&self) -> u64 {
        self.held.most.get()
    }

    /// A constant: an input of a network.
    pub fn constant(&self, shape: &[usize], format: NumberFormat) -> Traced {
        Traced { shape: shape.to_vec(), format, in_order: true, buffer: self.buffer(size(shape, format)), node: None }
    }

    /// An input of which a gradient is wanted.
    pub fn leaf(&self, shape: &[usize], format: NumberFormat) -> Traced {
        Traced { node: Some(self.node()), ..self.constant(shape, format) }
    }

    /// `work` off the tape.
    pub fn constantly<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.recording.replace(false);
        let done = work();
        self.recording.set(before);
        done
    }

    /// A parameter as an operation sees it. `format` is that of the network; what trains is f32.
    pub fn weight<const D: usize>(&self, param: &Param<Tensor<D>>, format: NumberFormat) -> Weight {
        let shape = param.lazy_shape().to_vec();
        let trains = self.trained.contains(&param.id);
        let node = (trains && self.recording.get()).then(|| {
            let bytes = size(&shape, NumberFormat::F32);
            self.parameters.borrow_mut().entry(param.id).or_insert_with(|| (self.node(), bytes)).0
        });
        Weight { shape, format: if trains { NumberFormat::F32 } else { format }, node }
    }

    pub(super) fn buffer(&self, bytes: u64) -> Rc<Buffer> {
        let now = self.held.now.get() + bytes;
        self.held.now.set(now);
        self.held.most.set(self.held.most.get().max(now));
        Rc::new(Buffer { bytes, held: self.held.clone() })
    }

    fn node(&self) -> Node {
        self.nodes.set(self.nodes.get() + 1);
        self.nodes.get()
    }

    /// Holds so many bytes for a moment.
    pub(super) fn touch(&self, bytes: u64) {
        drop(self.buffer(bytes));
    }

    /// Whether an operation on these inputs goes onto the tape.
    pub(super) fn records(&self, inputs: &[Option<Node>]) -> bool {
        self.recording.get() && inputs.iter().any(Option::is_some)
    }

    /// The output of an operation in `buffer`, and how its gradient goes back.
    pub(super) fn output(&self, shape: &[usize], format: NumberFormat, buffer: Rc<Buffer>, back: Back) -> Traced {
        let passed: Vec<Passed> = back.passed.into_iter().flatten().collect();
        let node = (self.recording.get() && !passed.is_empty()).then(|| self.node());
        if let Some(output) = node {
            self.steps.borrow_mut().push(Step { output, passed, _kept: back.kept, scratch: back.scratch });
        }
        Traced { shape: shape.to_vec(), format, in_order: true, buffer, node }
    }

    /// Goes back from `output`. The gradients of parameters and leaves are held from then on.
    pub fn backward(&self, output: Traced) {
        let Some(root) = output.node else { return };
        let bytes = size(&output.shape, output.format);
        drop(output);
        let mut gradients = BTreeMap::from([(root, self.buffer(bytes))]);
        let steps = self.steps.take();
        for step in steps.into_iter().rev() {
            let Some(gradient) = gradients.remove(&step.output) else { continue };
            let scratch = self.buffer(step.scratch);
            for passed in &step.passed {
                let (node, new) = match passed {
                    Passed::New(node, bytes) => (*node, self.buffer(*bytes)),
                    Passed::Same(node) => (*node, gradient.clone()),
                };
                // Two gradients of one tensor are added up, into one of them unless others hold both.
                let sum = match gradients.remove(&node) {
                    None => new,
                    Some(_) if Rc::strong_count(&new) == 1 => new,
                    Some(old) if Rc::strong_count(&old) == 1 => old,
                    Some(old) => self.buffer(old.bytes),
                };
                gradients.insert(node, sum);
            }
            drop(scratch);
        }
        self.gradients.borrow_mut().extend(gradients.into_values());
    }

    /// One number made of several tensors: a loss.
    pub fn loss(&self, of: &[Traced]) -> Traced {
        let back = Back { passed: of.iter().map(Traced::wants).collect(), ..Back::default() };
        self.output(&[1], NumberFormat::F32, self.buffer(4), back)
    }

    /// `kept` for a module that trains; in full for one that does not. As [`GradientCheckpointing::where_trained`].
    pub fn where_trained<M: Module>(&self, kept: GradientCheckpointing, module: &M) -> GradientCheckpointing {
        let trains = self.recording.get() && counted(module).iter().any(|parameter| self.trained.contains(&parameter.id()));
        if trains { kept } else { GradientCheckpointing::None }
    }

    /// `block` of these inputs, kept in full or recomputed, as a network with this setting runs it.
    pub fn block(&self, kept: GradientCheckpointing, inputs: Vec<Traced>, block: impl Fn(&Self, Vec<Traced>) -> Traced) -> Traced {
        if kept == GradientCheckpointing::None || !self.recording.get() {
            return block(self, inputs);
        }
        // What the block takes in the backward pass: run again on a tape of its own, whose inputs are held here.
        let again = Self::on_the_tape(self.engine, self.trained.clone());
        let leaf = |input: &Traced| Traced { buffer: again.buffer(0), node: input.node.map(|_| again.node()), ..input.clone() };
        let leaves = inputs.iter().map(leaf).collect();
        let output = block(&again, leaves);
        // The gradient of the output is handed over to that tape, and so is held once.
        let handed = size(&output.shape, output.format);
        again.backward(output);
        let parameters = again.parameters.take();
        if parameters.is_empty() && inputs.iter().all(|input| input.node.is_none()) {
            return block(self, inputs);
        }
        let of_inputs = inputs.iter().filter_map(|input| Some(Passed::New(input.node?, size(&input.shape, input.format))));
        let of_parameters = parameters.into_iter().map(|(id, (_, bytes))| {
            let node = self.parameters.borrow_mut().entry(id).or_insert_with(|| (self.node(), bytes)).0;
            Passed::New(node, bytes)
        });
        let passed: Vec<Passed> = of_inputs.chain(of_parameters).collect();
        let new: u64 = passed.iter().map(|passed| if let Passed::New(_, bytes) = passed { *bytes } else { 0 }).sum();
        let kept = inputs.iter().map(|input| input.buffer.clone()).collect();
        let constants = inputs.into_iter().map(|input| Traced { node: None, ..input }).collect();
        let output = self.constantly(|| block(self, constants));
        self.note_scores(again.scores());
        let back = Back { passed: passed.into_iter().map(Some).collect(), kept, scratch: again.peak().saturating_sub(new + handed) };
        let Traced { shape, format, buffer, .. } = output;
        self.output(&shape, format, buffer, back)
    }
}

impl Traced {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Its number format.
    pub fn format(&self) -> NumberFormat {
        self.format
    }

    /// The same values as a constant.
    #[must_use]
    pub fn without_gradient(self) -> Self {
        Self { node: None, ..self }
    }

    /// The gradient of this tensor's own size that an operation passes to it.
    pub(super) fn wants(&self) -> Option<Passed> {
        Some(Passed::New(self.node?, size(&self.shape, self.format)))
    }

    /// Whether nothing else holds its buffer: an operation may then write over it.
    pub(super) fn is_alone(&self) -> bool {
        Rc::strong_count(&self.buffer) == 1
    }
}

/// Bytes of a tensor.
pub(super) fn size(shape: &[usize], format: NumberFormat) -> u64 {
    shape.iter().map(|side| *side as u64).product::<u64>() * bytes_of(format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use NumberFormat::F32;

    /// A tensor lives as long as its last holder.
    #[test]
    fn what_is_held_is_what_lives() {
        let ledger = Ledger::off_the_tape(Engine::Cpu);
        let x = ledger.constant(&[2, 3], F32);
        let y = ledger.scale(x.clone());
        assert_eq!((ledger.held(), ledger.peak()), (48, 48));
        drop(x);
        // Nobody else holds it: written over in place.
        let y = ledger.scale(y);
        assert_eq!((ledger.held(), ledger.peak()), (24, 48));
        drop(y);
        assert_eq!(ledger.held(), 0);
    }

    /// SiLU keeps its input until the backward pass has come by, which writes over the output's gradient.
    #[test]
    fn a_tape_keeps_what_the_backward_pass_needs() {
        let ledger = Ledger::on_the_tape(Engine::Cpu, Rc::default());
        let x = ledger.leaf(&[10], F32);
        let y = ledger.activation(ledger.scale(x.clone()));
        // x, the scaled copy that the tape keeps, and y.
        assert_eq!(ledger.held(), 120);
        ledger.backward(y);
        // While it goes back: x, what is kept, and one gradient. Then x and its gradient.
        assert_eq!((ledger.held(), ledger.peak()), (80, 120));
    }

    /// Three activations in a row keep three maps; recomputed, they keep their input, and take the rest in the backward pass.
    #[test]
    fn a_recomputed_block_keeps_its_input() {
        let held = |kept| {
            let ledger = Ledger::on_the_tape(Engine::Cpu, Rc::default());
            let x = ledger.leaf(&[25], F32);
            let inner = |ledger: &Ledger, mut inputs: Vec<Traced>| {
                let x = inputs.remove(0);
                ledger.activation(ledger.activation(ledger.activation(x)))
            };
            let y = ledger.block(kept, vec![x.clone()], inner);
            let after_forward = ledger.held();
            ledger.backward(y);
            (after_forward, ledger.held())
        };
        assert_eq!(held(GradientCheckpointing::None), (400, 200));
        assert_eq!(held(GradientCheckpointing::Blocks), (200, 200));
    }
}
