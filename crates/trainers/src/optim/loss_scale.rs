//! Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740, section 3.2) with the constants of PyTorch's `GradScaler`.

use serde::{Deserialize, Serialize};

/// Updates without an overflow after which the scale doubles.
const GROWTH_INTERVAL: u64 = 2000;

/// The factor of the loss in the backward pass. It keeps gradients within the range of f16, whose smallest positive number is 6e-8.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    scale: f64,
    /// Updates since the scale last changed.
    good: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65536.0, good: 0 }
    }
}

impl LossScale {
    /// The factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// After an update whose gradients were finite.
    pub fn keep(&mut self) {
        self.good += 1;
        if self.good == GROWTH_INTERVAL {
            *self = Self { scale: self.scale * 2.0, good: 0 };
        }
    }

    /// After an overflow: halves the scale. Returns whether that can help; at a scale of 1 it cannot.
    pub fn back_off(&mut self) -> bool {
        let can = self.scale > 1.0;
        if can {
            *self = Self { scale: self.scale / 2.0, good: 0 };
        }
        can
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_to_one_and_rises_after_two_thousand_updates() {
        let mut scale = LossScale::default();
        let halvings = std::iter::from_fn(|| scale.back_off().then_some(())).count();
        assert_eq!((halvings, scale.scale()), (16, 1.0));
        (0..1999).for_each(|_| scale.keep());
        assert_eq!(scale.scale(), 1.0);
        scale.keep();
        assert_eq!(scale.scale(), 2.0);
        (0..1999).for_each(|_| scale.keep());
        assert!(scale.back_off());
        // The count begins anew.
        (0..1999).for_each(|_| scale.keep());
        assert_eq!(scale.scale(), 1.0);
    }
}
