//! Values that a file for others may hold: an infinity or a NaN in one weight makes every image of a model black.

use std::path::Path;

use half::f16;

use super::{LoadError, SaveType, Weights};

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

impl Weights {
    /// Checks that all tensors of a float type hold finite numbers.
    ///
    /// # Errors
    /// When one does not, or cannot be read.
    pub(crate) fn check_finite(&self) -> Result<(), LoadError> {
        let floats = self.tensors.iter().filter(|(_, stored)| stored.is_float());
        floats.into_iter().try_for_each(|(name, stored)| SaveType::F32.check(Path::new(&self.origin), name, &stored.read()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::save_safetensors;

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
        weights.check_finite().unwrap();
        // A run's state comes back as it was, whatever it was.
        save(&path, &[f32::INFINITY, 1e-45], SaveType::State).unwrap();
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.get("conv.weight").unwrap().read().unwrap(), [f32::INFINITY, 1e-45]);
        assert!(weights.check_finite().unwrap_err().to_string().contains("conv.weight holds inf"));
    }
}
