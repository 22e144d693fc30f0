//! Whether a device computes rightly: small forward, gradient and sampling cases whose expected numbers are part of the binary.
//!
//! Kernels of GPU backends are generated, fused and tuned on the user's machine, so no test of ours has run the ones that the user gets.
//! A case is a row of [`CASES`]; its numbers lie in `expected.json`, which a test writes and holds against loops in f64.

mod cases;
mod inputs;
mod networks;
mod operations;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub mod tests;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::Device;

pub use self::cases::CASES;
use self::inputs::{Input, Place};
use self::operations::Operation;

/// Of a larger tensor, this many values are compared one by one.
const KEPT: usize = 40;

/// A computation whose result is known.
pub struct Case {
    /// What is computed, in a few words; also its key in `expected.json`.
    pub name: &'static str,
    /// The largest `max|a - b| / max|b|` that is right.
    pub tolerance: f64,
    /// Has few kernels to be tuned and takes less than a second then: `train` runs it at its start.
    pub quick: bool,
    /// Why this build cannot run it, if it cannot.
    pub skip: Option<&'static str>,
    work: Work,
}

enum Work {
    /// The operation's output.
    Forward(&'static Operation, &'static [Input]),
    /// The gradients of a weighted sum of the operation's output.
    Gradient(&'static Operation, &'static [Input]),
    /// Anything else, as networks are.
    Network(&'static Network),
}

/// A computation that does not fit into one operation.
struct Network {
    compute: fn(&Place) -> anyhow::Result<Vec<Computed>>,
    /// The same in f64, where that is simple.
    #[cfg(test)]
    exact: Option<fn() -> Vec<Computed>>,
}

/// A tensor of a case's result, by name.
struct Computed {
    name: String,
    values: Vec<f64>,
}

impl Computed {
    fn new(name: impl Into<String>, values: Vec<f64>) -> Self {
        Self { name: name.into(), values }
    }
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Within the tolerance.
    Right { deviation: f64 },
    /// Beyond the tolerance: by how much at most, and in which tensor. Infinite where a value is not a number.
    Wrong { deviation: f64, tensor: String },
    /// The device gave up, as when a kernel does not compile.
    Failed { reason: String },
    /// This build cannot run it.
    Skipped { reason: &'static str },
}

/// A case after it was run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The case's name.
    pub case: &'static str,
    /// The case's tolerance.
    pub tolerance: f64,
    /// How it came out.
    pub verdict: Verdict,
    /// Wall time, tuning included.
    pub seconds: f64,
}

impl Outcome {
    /// Whether the device did not compute what it should.
    pub fn is_fault(&self) -> bool {
        matches!(self.verdict, Verdict::Wrong { .. } | Verdict::Failed { .. })
    }
}

impl Case {
    /// Runs the case on `device`, which is without autodiff. A panic of the backend is an outcome too.
    pub fn run(&self, device: &Device) -> Outcome {
        let began = Instant::now();
        let verdict = match self.skip {
            Some(reason) => Verdict::Skipped { reason },
            None => match catch_unwind(AssertUnwindSafe(|| self.compute(&Place::new(device)))) {
                Ok(Ok(computed)) => self.judge(&computed),
                Ok(Err(error)) => Verdict::Failed { reason: format!("{error:#}") },
                Err(panic) => Verdict::Failed { reason: message(panic.as_ref()) },
            },
        };
        Outcome { case: self.name, tolerance: self.tolerance, verdict, seconds: began.elapsed().as_secs_f64() }
    }

    fn compute(&self, place: &Place) -> anyhow::Result<Vec<Computed>> {
        match self.work {
            Work::Forward(operation, inputs) => Ok(operation.output(inputs, place)),
            Work::Gradient(operation, inputs) => Ok(operation.gradients(inputs, place)),
            Work::Network(network) => (network.compute)(place),
        }
    }

    fn judge(&self, computed: &[Computed]) -> Verdict {
        let expected = expected();
        let tensors = expected.get(self.name).unwrap_or_else(|| panic!("expected.json has no case {:?}", self.name));
        assert_eq!(computed.len(), tensors.len(), "the tensors of {:?}", self.name);
        let deviations = computed.iter().map(|tensor| (deviation(&digest(&tensor.values), &tensors[&tensor.name]), &tensor.name));
        let (deviation, tensor) = deviations.max_by(|(a, _), (b, _)| a.total_cmp(b)).expect("a case computes something");
        if deviation <= self.tolerance { Verdict::Right { deviation } } else { Verdict::Wrong { deviation, tensor: tensor.clone() } }
    }
}

/// The kept values of each tensor of each case, and after them their root mean square.
type Expected = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

fn expected() -> Expected {
    serde_json::from_slice(include_bytes!("expected.json")).expect("expected.json is written by a test")
}

/// At most [`KEPT`] values, evenly spaced from the first to the last, and the root mean square of all, in which no value is left out.
fn digest(values: &[f64]) -> Vec<f64> {
    let (count, kept) = (values.len(), values.len().min(KEPT));
    let places = (0..kept).map(|place| if kept == count { place } else { place * (count - 1) / (kept - 1) });
    let rms = (values.iter().map(|value| value * value).sum::<f64>() / count as f64).sqrt();
    places.map(|place| values[place]).chain([rms]).collect()
}

/// `max|a - b| / max|b|`; infinite where a value of `a` is not finite, which the root mean square tells of any value.
fn deviation(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "values to be compared");
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |max: f64, value| max.max(value.abs()));
    let difference = largest(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if a.iter().all(|value| value.is_finite()) { difference / largest(&mut b.iter().copied()) } else { f64::INFINITY }
}

/// What a panic said, on one line.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").split_whitespace().collect::<Vec<_>>().join(" ")
}
