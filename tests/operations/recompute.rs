//! Recomputed stages against stages on the tape: gradients of everything that enters them, how often they run, and that what is kept is
//! let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use vp_ops::{linear, recompute, silu};

use crate::device::device;

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
    unused: Param<Tensor<1>>,
}

impl Layer {
    fn new(shift: f32) -> Self {
        let device = device();
        let weight = Tensor::<1>::from_data([0.5, -1.0, 2.0, 0.25, 1.5, -0.75], &device).reshape([2, 3]) + shift;
        let bias = Tensor::from_data([0.1, -0.2], &device);
        Self { weight: Param::from_tensor(weight), bias: Param::from_tensor(bias), unused: Param::from_data([7.0], &device) }
    }

    /// `[b, 3]` and `[1, b, 2]` → `[b, 2]`.
    fn forward(&self, x: Tensor<2>, gate: Tensor<3>) -> Tensor<2> {
        silu(linear(x, self.weight.val(), Some(self.bias.val()))) * gate.squeeze_dim::<2>(0)
    }
}

fn x() -> Tensor<2> {
    Tensor::from_data([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]], &device())
}

fn gate() -> Tensor<3> {
    Tensor::from_data([[[1.5, -0.5], [0.2, 2.0]]], &device())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn assert_same(name: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let scale = expected.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-6 * scale, "{name}: {got} but expected {expected}");
    }
}

type Form = fn(&Layer, Tensor<2>, Tensor<3>) -> Tensor<2>;

const FORMS: [Form; 2] = [
    |layer, x, gate| layer.forward(x, gate),
    |layer, x, gate| recompute(layer, (x, gate), |layer: &Layer, (x, gate)| layer.forward(x, gate)),
];

/// Two layers one after the other, the first one's output in both places of the second: gradients of all that asks for one.
fn gradients(form: Form, (train_first, train_second): (bool, bool), tracked: bool) -> Vec<(&'static str, Vec<f64>)> {
    let put = |layer: Layer, train: bool| if train { layer.train() } else { layer };
    let (first, second) = (put(Layer::new(0.0), train_first), put(Layer::new(0.3), train_second));
    let x = if tracked { x().autodiff().require_grad() } else { x() };
    let hidden = form(&first, x.clone(), gate());
    let wide = Tensor::cat(vec![hidden.clone(), hidden.clone().narrow(1, 0, 1)], 1);
    let loss = (form(&second, wide, hidden.clone().unsqueeze_dim(0)) + hidden).square().sum();
    let mut gradients = loss.backward();
    let mut found = Vec::new();
    if tracked {
        found.push(("x", host(x.grad_remove(&mut gradients).unwrap())));
    }
    for (name, layer, train) in [("first", first, train_first), ("second", second, train_second)] {
        if train {
            let weight = host(layer.weight.val().grad_remove(&mut gradients).unwrap());
            found.extend([(name, weight), (name, host(layer.bias.val().grad_remove(&mut gradients).unwrap()))]);
        }
    }
    found
}

#[test]
fn gradients_are_those_of_the_tape() {
    for which in [(true, true, true), (false, false, true), (true, false, false), (false, true, true), (true, true, false)] {
        let (first, second, tracked) = which;
        let [expected, got] = FORMS.map(|form| gradients(form, (first, second), tracked));
        assert!(
            expected.iter().all(|(_, values)| values.iter().any(|value| *value != 0.0)),
            "{which:?}: a gradient of zeros tests nothing"
        );
        assert_eq!(got.len(), expected.len());
        for ((name, got), (_, expected)) in got.iter().zip(&expected) {
            assert_same(&format!("{which:?} {name}"), got, expected);
        }
    }
}

#[test]
fn values_are_those_of_a_plain_call() {
    let (layer, x) = (Layer::new(0.0).train(), x().autodiff().require_grad());
    let [tape, again] = FORMS.map(|form| host(form(&layer, x.clone(), gate()).without_autodiff()));
    assert_eq!(tape, again);
}

#[test]
fn what_a_stage_does_not_use_has_a_gradient_of_zero() {
    let layer = Layer::new(0.0).train();
    let (x, idle) = (x().autodiff().require_grad(), gate().autodiff().require_grad());
    let stage = |layer: &Layer, (x, _): (Tensor<2>, Tensor<3>)| linear(x, layer.weight.val(), None);
    let mut gradients = recompute(&layer, (x, idle.clone()), stage).sum().backward();
    assert_eq!(host(idle.grad_remove(&mut gradients).unwrap()), [0.0; 4]);
    assert_eq!(host(layer.unused.val().grad_remove(&mut gradients).unwrap()), [0.0]);
}

/// Stages that count their calls; the count is also what they hold.
fn counted(layer: &Layer, x: Tensor<2>, calls: &Arc<AtomicUsize>) -> Tensor<2> {
    let calls = calls.clone();
    recompute(layer, (x, gate()), move |layer: &Layer, (x, gate)| {
        calls.fetch_add(1, Relaxed);
        layer.forward(x, gate)
    })
}

#[test]
fn a_stage_runs_again_on_the_way_back_and_is_let_go() {
    let (layer, calls) = (Layer::new(0.0), Arc::new(AtomicUsize::new(0)));
    let output = counted(&layer, x().autodiff().require_grad(), &calls);
    assert_eq!((calls.load(Relaxed), Arc::strong_count(&calls)), (1, 2), "run, and kept for the way back");
    drop(output.sum().backward());
    assert_eq!((calls.load(Relaxed), Arc::strong_count(&calls)), (2, 1), "run again, and let go");
}

#[test]
fn a_stage_on_a_tape_that_is_given_up_is_let_go_with_the_next() {
    let (layer, calls) = (Layer::new(0.0).train(), Arc::new(AtomicUsize::new(0)));
    drop(counted(&layer, x(), &calls).sum());
    assert_eq!(Arc::strong_count(&calls), 2);
    drop(counted(&layer, x(), &Arc::default()).sum().backward());
    assert_eq!((calls.load(Relaxed), Arc::strong_count(&calls)), (1, 1));
}

#[test]
fn nothing_is_kept_where_nothing_asks_for_a_gradient() {
    let (layer, calls) = (Layer::new(0.0), Arc::new(AtomicUsize::new(0)));
    let plain = counted(&layer, x(), &calls);
    let frozen = counted(&layer.train().no_grad(), x(), &calls);
    assert_eq!((calls.load(Relaxed), Arc::strong_count(&calls)), (2, 1));
    assert_eq!(host(plain), host(frozen.without_autodiff()));
}

/// Stages inside stages: what is recomputed may recompute.
#[test]
fn a_recomputed_stage_may_recompute() {
    let layer = Layer::new(0.0).train();
    let nested: Form = |layer, x, gate| {
        recompute(layer, (x, gate), |layer: &Layer, (x, gate)| {
            recompute(layer, (x, gate), |layer: &Layer, (x, gate)| layer.forward(x, gate)).tanh()
        })
    };
    let plain: Form = |layer, x, gate| layer.forward(x, gate).tanh();
    let [expected, got] = [plain, nested].map(|form| {
        let mut gradients = form(&layer, x(), gate()).sum().backward();
        host(layer.weight.val().grad_remove(&mut gradients).unwrap())
    });
    assert_same("nested", &got, &expected);
}
