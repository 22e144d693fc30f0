//! Values for the journal, which may still be on the device: to read one is to wait for everything before it.

use burn::tensor::Tensor;

/// Values by name; the journal reports their means.
pub type Observed = Vec<(String, Values)>;

/// Values of one kind.
#[derive(Debug, Clone)]
pub enum Values {
    /// On the host.
    Known(Vec<f64>),
    /// `[n]`, on its device and off the tape.
    Pending(Box<Tensor<1>>),
}

impl From<Vec<f64>> for Values {
    fn from(values: Vec<f64>) -> Self {
        Self::Known(values)
    }
}

impl From<&Tensor<1>> for Values {
    fn from(values: &Tensor<1>) -> Self {
        Self::Pending(Box::new(values.clone().without_autodiff()))
    }
}

impl Values {
    /// The values, read from the device if need be.
    pub fn read(self) -> Vec<f64> {
        match self {
            Self::Known(values) => values,
            Self::Pending(tensor) => values(&tensor),
        }
    }
}

/// Everything in `observed` on the host, in one transfer.
pub fn gathered(observed: Observed) -> Vec<(String, Vec<f64>)> {
    let pending: Vec<Tensor<1>> = observed
        .iter()
        .filter_map(|(_, values)| match values {
            Values::Pending(tensor) => Some((**tensor).clone()),
            Values::Known(_) => None,
        })
        .collect();
    let mut read = if pending.is_empty() { Vec::new() } else { values(&Tensor::cat(pending, 0)) }.into_iter();
    let known = observed.into_iter().map(|(name, values)| match values {
        Values::Known(values) => (name, values),
        Values::Pending(tensor) => (name, read.by_ref().take(tensor.dims()[0]).collect()),
    });
    known.collect()
}

/// The values of a tensor `[n]`, on the host.
pub fn values(tensor: &Tensor<1>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn what_is_gathered_keeps_its_place() {
        let tensor = |values: &[f32]| Values::from(&Tensor::<1>::from_data(values, &Device::flex()));
        let observed = vec![("a".into(), tensor(&[1.0, 2.0])), ("b".into(), vec![0.1].into()), ("c".into(), tensor(&[3.0]))];
        assert_eq!(gathered(observed), [("a".to_string(), vec![1.0, 2.0]), ("b".into(), vec![0.1]), ("c".into(), vec![3.0])]);
        assert_eq!(gathered(vec![]), []);
    }
}
