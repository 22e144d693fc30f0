//! Values that a file may hold: an infinity or a NaN in one weight makes every image of a model black.

use std::path::Path;

use half::f16;

use super::{LoadError, SaveType, Stored};

impl SaveType {
    /// Checks that a file of this type can hold the values of a tensor, and that whoever reads them can use them.
    ///
    /// # Errors
    /// For an infinity, a NaN, and in half precision for what would become infinite.
    pub(super) fn check(self, path: &Path, name: &str, values: &[f32]) -> Result<(), LoadError> {
        let unfit = |reason: String| LoadError::NotFinite { path: path.display().to_string(), name: name.into(), reason };
        if self == Self::State {
            return Ok(());
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(unfit(format!("{value}, which no image can be drawn with; restore the weights that it comes from")));
        }
        let beyond = |value: &&f32| self == Self::F16 && f16::from_f32(**value).is_infinite();
        match values.iter().find(beyond) {
            Some(value) => Err(unfit(format!("{value}, and half precision ends at {}; write single precision", f16::MAX))),
            None => Ok(()),
        }
    }
}

impl Stored {
    /// The values of this tensor, `values`, if all are finite in f32.
    ///
    /// # Errors
    /// The first that is not.
    pub(super) fn finite(&self, values: Vec<f32>) -> Result<Vec<f32>, LoadError> {
        // All are looked at, in blocks of the machine's width: a search that may end early takes twice as long.
        if values.iter().fold(true, |finite, value| finite & value.is_finite()) {
            return Ok(values);
        }
        let value = values.iter().find(|value| !value.is_finite()).expect("one is not");
        Err(LoadError::NotFinite {
            path: self.path().display().to_string(),
            name: self.name.clone(),
            reason: format!("{value}, which nothing can be computed with; get the file anew, or an earlier one"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Weights, save_safetensors};

    fn save(path: &Path, values: &[f32], kind: SaveType) -> Result<(), LoadError> {
        let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| values.to_vec());
        let fine: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| vec![1.0]);
        save_safetensors(path, [("fine", [1].as_slice(), fine), ("conv.weight", [2].as_slice(), values)], &[], kind)
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for (values, kind, expected) in [
            ([0.0, 65520.0], SaveType::F16, "conv.weight holds 65520, and half precision ends at 65504"),
            ([-1e6, 0.0], SaveType::F16, "conv.weight holds -1000000"),
            ([f32::NAN, 0.0], SaveType::F16, "conv.weight holds NaN"),
            ([0.0, f32::NEG_INFINITY], SaveType::F32, "conv.weight holds -inf"),
        ] {
            let refused = save(&path, &values, kind).unwrap_err().to_string();
            assert!(refused.contains(expected) && refused.contains("model.safetensors"), "{refused}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        save(&path, &[65519.0, -65504.0], SaveType::F16).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.get("conv.weight").unwrap().read().unwrap(), [65504.0, -65504.0]);
        // A run's state comes back as it was, whatever it was.
        save(&path, &[f32::INFINITY, 1e-45], SaveType::State).unwrap();
        let weights = Weights::open(&path).unwrap();
        let stored = weights.get("conv.weight").unwrap();
        assert_eq!(stored.read_state().unwrap(), [f32::INFINITY, 1e-45]);
        let refused = stored.read().unwrap_err().to_string();
        assert!(refused.ends_with(
            "model.safetensors: conv.weight holds inf, which nothing can be computed with; get the file anew, or an earlier one"
        ));
    }
}
