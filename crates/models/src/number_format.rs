//! The number format of a network's frozen weights and activations.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::parameters::KeyPath;
use crate::weights::LoadError;

/// The number format of a network's frozen weights and activations.
///
/// Whatever it is, these are f32: norms, softmax and activation functions, trained parameters, everything of schedulers, losses and
/// optimizers, and what goes in and out of a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberFormat {
    /// IEEE binary32: 24 significant bits, four bytes per value.
    #[default]
    F32,
    /// bfloat16: 8 significant bits and the range of f32, two bytes per value.
    Bf16,
    /// IEEE binary16: 11 significant bits, at most 65504, two bytes per value.
    F16,
}

impl NumberFormat {
    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Burn's name for it.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// Whether it holds fewer bits than f32.
    pub fn is_half(self) -> bool {
        self != Self::F32
    }

    /// The distance between 1 and the next number, which bounds the relative error of one rounding.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-23),
            Self::Bf16 => 2f64.powi(-7),
            Self::F16 => 2f64.powi(-10),
        }
    }

    /// Whether `device` computes in this format.
    ///
    /// # Errors
    /// A sentence with the reason and the way out.
    pub fn check(self, device: &Device) -> Result<(), String> {
        // What the processor does not multiply, the CPU's kernels compute in f32 and round.
        if is_cpu(device) || device.supports_dtype(DType::from(self.dtype())) {
            return Ok(());
        }
        let others = [Self::F16, Self::Bf16].into_iter().filter(|other| device.supports_dtype(DType::from(other.dtype())));
        let others: Vec<_> = others.chain([Self::F32]).map(|other| format!("\"{}\"", other.name())).collect();
        Err(format!("this device has no arithmetic for {}; choose {}", self.name(), others.join(" or ")))
    }

    /// A sentence that says so, if `device` is a processor that does not multiply this format.
    pub fn warning(self, device: &Device) -> Option<String> {
        let multiplied = self == Self::F32 || !is_cpu(device) || self == Self::Bf16 && vp_ops::multiplies_bf16();
        (!multiplied).then(|| {
            let name = self.name();
            format!("this processor does not multiply {name}: it is computed in f32 and rounded, which takes less memory for weights and more time")
        })
    }

    /// The format that takes the least memory for equal results: bf16 where the device computes in it, otherwise f32. On the CPU, where
    /// bf16 is faster only on some processors, f32: a config means the same on all of them.
    pub fn best(device: &Device) -> Self {
        if !is_cpu(device) && device.supports_dtype(DType::BF16) { Self::Bf16 } else { Self::F32 }
    }
}

/// Whether `device` is the CPU (flex).
pub fn is_cpu(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// `module` with every parameter in `format`, except those whose full name, `component.name`, matches `exact`: they train, and stay f32.
/// On the CPU too, a half format takes half the memory.
///
/// # Errors
/// The first parameter with a value that f16 cannot hold: it would become infinite, and every image black.
pub fn in_format<M: Module>(module: M, component: &str, format: NumberFormat, exact: Option<&Regex>) -> Result<M, LoadError> {
    struct Cast<'a> {
        path: KeyPath,
        component: &'a str,
        format: NumberFormat,
        exact: Option<&'a Regex>,
        too_large: Option<LoadError>,
    }
    impl ModuleMapper for Cast<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = format!("{}.{}", self.component, self.path.key());
            if self.exact.is_some_and(|exact| exact.is_match(&name)) {
                return param;
            }
            let (id, value, mapper) = param.consume();
            if self.format == NumberFormat::F16 && self.too_large.is_none() {
                let largest = value.clone().without_autodiff().abs().max().into_scalar::<f32>();
                self.too_large = half::f16::from_f32(largest).is_infinite().then_some(LoadError::BeyondHalf { name, largest });
            }
            Param::from_mapped_value(id, value.cast(self.format.dtype()), mapper)
        }
    }
    if !format.is_half() {
        return Ok(module);
    }
    let mut cast = Cast { path: KeyPath::default(), component, format, exact, too_large: None };
    let module = module.map(&mut cast);
    cast.too_large.map_or(Ok(module), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Linear;
    use crate::parameters::{initialize, named_parameters};
    use vp_core::noise::Noise;

    #[test]
    fn what_trains_stays_exact() {
        let layer = initialize(Linear::new(3, 2, &Device::flex()), &Noise::new(1));
        let exact = Regex::new(r"^net\.bias$").unwrap();
        let cast = in_format(layer.clone(), "net", NumberFormat::Bf16, Some(&exact)).unwrap();
        let formats: Vec<_> = named_parameters(&cast).into_iter().map(|p| (p.name, p.values.dtype())).collect();
        assert_eq!(formats, [("weight".into(), DType::BF16), ("bias".into(), DType::F32)]);
        let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5]], &Device::flex());
        let (exact, rounded) = (layer.forward(x.clone()), cast.forward(x.clone().cast(DType::BF16)));
        assert_eq!(rounded.dtype(), DType::BF16);
        let off = (exact.clone() - rounded.cast(DType::F32)).abs().max().into_scalar::<f32>();
        assert!(off > 0.0 && f64::from(off) < 4.0 * NumberFormat::Bf16.epsilon(), "{off}");
        // An f32 input is not rounded; the weights are.
        assert_eq!(cast.forward(x).dtype(), DType::F32);
    }

    #[test]
    fn a_weight_beyond_f16_is_refused_by_name() {
        let layer = |largest: f32| {
            let mut layer = initialize(Linear::new(3, 2, &Device::flex()), &Noise::new(1));
            layer.bias = layer.bias.map(|bias| bias.map(|bias| bias.zeros_like() - largest));
            layer
        };
        let refused = in_format(layer(65520.0), "net", NumberFormat::F16, None).unwrap_err().to_string();
        assert_eq!(refused, "net.bias holds a value of 65520, and f16 ends at 65504; choose the dtype bf16 or f32 for it");
        in_format(layer(65519.0), "net", NumberFormat::F16, None).unwrap();
        in_format(layer(65520.0), "net", NumberFormat::Bf16, None).unwrap();
        // What trains stays f32.
        in_format(layer(65520.0), "net", NumberFormat::F16, Some(&Regex::new("bias").unwrap())).unwrap();
    }

    #[test]
    fn the_cpu_computes_in_every_format() {
        for format in [NumberFormat::F32, NumberFormat::Bf16, NumberFormat::F16] {
            assert_eq!(format.check(&Device::flex()), Ok(()));
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
        assert_eq!(NumberFormat::best(&Device::flex()), NumberFormat::F32);
        let warns = |format: NumberFormat| format.warning(&Device::flex()).is_some();
        assert_eq!([NumberFormat::F32, NumberFormat::Bf16, NumberFormat::F16].map(warns), [false, !vp_ops::multiplies_bf16(), true]);
    }
}
