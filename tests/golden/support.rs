//! Reading a case and comparing with it.

use crate::device::device;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};

/// The folder of a case: under `VP_REFERENCE_DIR` where that is set and has it, else beside this file.
pub(crate) fn case_dir(name: &str) -> PathBuf {
    let elsewhere = std::env::var_os("VP_REFERENCE_DIR").map(|root| {
        assert!(Path::new(&root).is_dir(), "VP_REFERENCE_DIR={}: no such folder", root.display());
        Path::new(&root).join(name)
    });
    elsewhere.filter(|case| case.is_dir()).unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

/// The case's `case.json`.
pub(crate) fn case_json(case: &str) -> serde_json::Value {
    let path = case_dir(case).join("case.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A list of strings in a case's settings.
pub(crate) fn strings(value: &serde_json::Value) -> Vec<String> {
    let list = value.as_array().unwrap_or_else(|| panic!("expected a list of strings, found {value}"));
    list.iter().map(|item| item.as_str().unwrap_or_else(|| panic!("expected a string, found {item}")).into()).collect()
}

/// The case's `tensors.safetensors`.
pub(crate) fn load_tensors(case: &str) -> Tensors {
    Tensors::read(&case_dir(case).join("tensors.safetensors"))
}

/// Named tensors of one file, on the host.
pub(crate) struct Tensors {
    path: PathBuf,
    values: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
                Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
                Dtype::I32 => data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
                Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
                Dtype::U8 | Dtype::BOOL => data.iter().map(|b| f64::from(*b)).collect(),
                other => panic!("{}: `{name}` has element type {other:?}, which these tests do not read", path.display()),
            };
            (name, (view.shape().to_vec(), values))
        };
        Self { path: path.into(), values: file.tensors().into_iter().map(read).collect() }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn entry(&self, name: &str) -> &(Vec<usize>, Vec<f64>) {
        self.values.get(name).unwrap_or_else(|| panic!("{} has no tensor `{name}`", self.path.display()))
    }

    /// The elements in row-major order.
    pub(crate) fn values(&self, name: &str) -> &[f64] {
        &self.entry(name).1
    }

    /// The shape.
    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.entry(name).0
    }

    /// The names that begin with `prefix`, without it.
    pub(crate) fn names_under<'a>(&'a self, prefix: &'a str) -> Vec<&'a str> {
        self.values.keys().filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// As a tensor on the plain CPU device.
    pub(crate) fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.tensor(name, &device())
    }

    /// Asserts that `got` is the tensor of this name, within `tolerance` of its largest value.
    pub(crate) fn assert_close<const D: usize>(&self, name: &str, got: Tensor<D>, tolerance: f64) {
        assert_close(&format!("{}: {name}", self.path.display()), got, self.get(name), tolerance);
    }

    /// As a tensor of the file's own shape, which must have `D` dimensions.
    pub(crate) fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = self.entry(name);
        let shape: [usize; D] = shape.as_slice().try_into().unwrap_or_else(|_| panic!("`{name}` has shape {shape:?}, not {D} dimensions"));
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Tensor::<1>::from_data(values.as_slice(), device).reshape(shape)
    }
}

/// The rule of every golden test: max|got - expected| <= tolerance * max|expected|.
pub(crate) fn assert_close<const D: usize>(name: &str, got: Tensor<D>, expected: Tensor<D>, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{name}: shapes differ");
    let host = |tensor: Tensor<D>| tensor.into_data().iter::<f64>().collect::<Vec<f64>>();
    assert_close_values(name, &host(got), &host(expected), tolerance);
}

/// The same rule for host values.
pub(crate) fn assert_close_values(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    match compare(got, expected, tolerance) {
        // For scripts/check-gpu, which looks for the largest.
        Ok(deviation) => println!("deviation {deviation:.3e} of {tolerance:.0e}: {name}"),
        Err(message) => panic!("{name}: {message}"),
    }
}

/// The same rule, without a panic: the deviation, relative to the largest expected value.
pub(crate) fn compare(got: &[f64], expected: &[f64], tolerance: f64) -> Result<f64, String> {
    if got.len() != expected.len() {
        return Err(format!("{} values, expected {}", got.len(), expected.len()));
    }
    if let Some(i) = got.iter().position(|value| !value.is_finite()) {
        return Err(format!("value {i} is {}, expected {}", got[i], expected[i]));
    }
    let scale = expected.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    let error = |i: &usize| (got[*i] - expected[*i]).abs();
    let worst = (0..got.len()).max_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or(0);
    if got.is_empty() || error(&worst) <= tolerance * scale {
        return Ok(if scale > 0.0 { error(&worst) / scale } else { 0.0 });
    }
    let window = worst.saturating_sub(2)..(worst + 3).min(got.len());
    Err(format!(
        "off by {:.3e} of the largest value {scale:.6} (allowed {tolerance:e}) at element {worst}: got {} but expected {}; around it got {:?}, expected {:?}",
        error(&worst) / scale,
        got[worst],
        expected[worst],
        &got[window.clone()],
        &expected[window]
    ))
}

#[test]
fn the_comparison_can_fail() {
    assert!(compare(&[1.0, 2.0], &[1.0, 2.0001], 1e-4).is_ok());
    assert!(compare(&[1.0, 2.0], &[1.0, 2.0003], 1e-4).unwrap_err().contains("element 1"));
    assert!(compare(&[f64::NAN], &[f64::NAN], 1.0).is_err());
    assert!(compare(&[0.0], &[0.0], 0.0).is_ok() && compare(&[1e-9], &[0.0], 1.0).is_err());
    assert!(compare(&[], &[1.0], 1.0).is_err());
}

#[test]
#[should_panic(expected = "x: off by")]
fn a_wrong_tensor_panics_with_its_name() {
    let tensor = |value: f32| Tensor::<1>::from_floats([1.0, value], &device());
    assert_close("equal", tensor(2.0), tensor(2.0), 0.0);
    assert_close("x", tensor(2.1), tensor(2.0), 1e-4);
}
