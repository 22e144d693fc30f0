//! Parameters by name: walking a module, loading into it, choosing what trains, initialising from scratch.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use regex::Regex;
use vp_core::noise::{Noise, Purpose};

use crate::weights::{LoadError, Weights};

/// Field names that Rust forbids, and the keys they stand for.
const RENAMED: &[(&str, &str)] = &[
    ("net_0", "net.0"),          // FeedForward: GEGLU
    ("net_2", "net.2"),          // FeedForward: output
    ("self_", "self"),           // BertAttention
    ("layer_norm", "LayerNorm"), // Bert*
    ("layers_0", "layers.0"),    // ImageReward's MLP, whose odd numbers are dropouts
    ("layers_2", "layers.2"),
    ("layers_4", "layers.4"),
    ("layers_6", "layers.6"),
    ("layers_7", "layers.7"),
];

/// The dotted path of the parameter being visited, which is its key in a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct KeyPath(Vec<String>);

impl KeyPath {
    /// A variant of an enum of layers is a choice, not a place: it is no part of the key.
    pub(crate) fn enter(&mut self, field: &str, container: &str) {
        if container.starts_with("Enum:") {
            return;
        }
        let segment = RENAMED.iter().find(|(renamed, _)| *renamed == field).map_or(field, |(_, key)| key);
        self.0.push(segment.into());
    }

    pub(crate) fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }

    /// Factors of a weight (`to_q.weight`, `lora`, `down`) are the layer's: `to_q.lora.down.weight`.
    pub(crate) fn key(&self) -> String {
        let path = self.0.join(".");
        match path.rsplit_once(".weight.lora.") {
            Some((layer, factor)) => format!("{layer}.lora.{factor}.weight"),
            None => path,
        }
    }
}

/// A float parameter of a module.
#[derive(Debug, Clone)]
pub struct NamedParameter {
    /// Its key in a checkpoint.
    pub name: String,
    pub shape: Vec<usize>,
    /// Its values, flattened, off the tape.
    pub values: Tensor<1>,
    /// Whether it requires a gradient.
    pub trainable: bool,
}

/// Every float parameter of a module, in the order of its fields.
pub fn named_parameters<M: Module>(module: &M) -> Vec<NamedParameter> {
    collect(module, |_| true)
}

/// The parameters of a module that require a gradient, in the order of its fields. No tensor operation is done for the frozen ones.
pub fn trainable_parameters<M: Module>(module: &M) -> Vec<NamedParameter> {
    collect(module, |trainable| trainable)
}

/// The parameters for which `select` returns true when given whether they train.
fn collect<M: Module>(module: &M, select: fn(bool) -> bool) -> Vec<NamedParameter> {
    struct Collect(KeyPath, fn(bool) -> bool, Vec<NamedParameter>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let trainable = param.is_require_grad();
            if self.1(trainable) {
                let (name, shape) = (self.0.key(), param.dims().to_vec());
                self.2.push(NamedParameter { name, shape, trainable, values: flat(param.val()) });
            }
        }
    }
    let mut collect = Collect(KeyPath::default(), select, Vec::new());
    module.visit(&mut collect);
    collect.2
}

/// The keys of a module's float parameters, in the order of its fields. Nothing is initialised for it.
pub fn parameter_names<M: Module>(module: &M) -> Vec<String> {
    #[derive(Default)]
    struct Names(KeyPath, Vec<String>);
    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            self.1.push(self.0.key());
        }
    }
    let mut names = Names::default();
    module.visit(&mut names);
    names.1
}

/// `module` with every parameter replaced by what `f(name, trainable, values)` returns for it, values flattened and off the tape.
/// Whether a parameter trains stays as it was.
pub fn map_parameters<M: Module>(module: M, f: impl FnMut(&str, bool, Tensor<1>) -> Tensor<1>) -> M {
    map_parameters_where(module, |_, _| true, f)
}

/// [`map_parameters`] of the parameters for which `select(name, trainable)` is true. The others stay as they are, and no tensor operation is
/// done for them.
pub fn map_parameters_where<M: Module>(
    module: M,
    select: impl FnMut(&str, bool) -> bool,
    f: impl FnMut(&str, bool, Tensor<1>) -> Tensor<1>,
) -> M {
    struct Map<S, F>(KeyPath, S, F);
    impl<S: FnMut(&str, bool) -> bool, F: FnMut(&str, bool, Tensor<1>) -> Tensor<1>> ModuleMapper for Map<S, F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, trainable) = (self.0.key(), param.is_require_grad());
            if !(self.1)(&name, trainable) {
                return param;
            }
            let (id, value, mapper) = param.consume();
            let (on_tape, dims) = (value.is_autodiff(), value.dims());
            let value = (self.2)(&name, trainable, flat(value)).reshape(dims);
            let value = if on_tape { value.autodiff().set_require_grad(trainable) } else { value };
            Param::from_mapped_value(id, value, mapper)
        }
    }
    module.map(&mut Map(KeyPath::default(), select, f))
}

fn flat<const D: usize>(value: Tensor<D>) -> Tensor<1> {
    let count = value.shape().num_elements();
    value.without_autodiff().reshape([count])
}

/// The gradients of a module's trainable parameters by name, flattened, in the order of its fields.
pub fn named_gradients<M: Module>(module: &M, gradients: &mut Gradients) -> Vec<(String, Tensor<1>)> {
    struct Collect<'a>(KeyPath, &'a mut Gradients, Vec<(String, Tensor<1>)>);
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad_remove(self.1) {
                self.2.push((self.0.key(), flat(gradient)));
            }
        }
    }
    let mut collect = Collect(KeyPath::default(), gradients, Vec::new());
    module.visit(&mut collect);
    collect.2
}

/// `module` with gradients required of exactly the parameters whose names match `pattern`, and the number of values in those.
pub fn select_trainable<M: Module>(module: M, pattern: &Regex) -> (M, usize) {
    struct Select<'a>(KeyPath, &'a Regex, usize);
    impl ModuleMapper for Select<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let trains = self.1.is_match(&self.0.key());
            self.2 += if trains { param.lazy_shape().num_elements() } else { 0 };
            param.set_require_grad(trains)
        }
    }
    let mut select = Select(KeyPath::default(), pattern, 0);
    let module = module.map(&mut select);
    (module, select.2)
}

/// `module` with every parameter taken from `weights`, on the device where it was to be initialised.
///
/// # Errors
/// When a parameter has no tensor, or one of another shape, or a tensor is left over. All of them are listed.
pub fn load<M: Module>(module: M, weights: Weights) -> Result<M, LoadError> {
    struct Load {
        path: KeyPath,
        weights: Weights,
        missing: Vec<String>,
        misshaped: Vec<String>,
        unreadable: Option<LoadError>,
    }
    impl ModuleMapper for Load {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (key, expected) = (self.path.key(), param.lazy_shape());
            let Some(stored) = self.weights.take(&key) else {
                self.missing.push(format!("{key} {:?}", expected.as_slice()));
                return param;
            };
            if stored.shape() != expected.as_slice() {
                self.misshaped.push(format!("{key}: expected {:?}, found {:?}", expected.as_slice(), stored.shape()));
                return param;
            }
            match stored.read() {
                Ok(values) => {
                    let value = Tensor::from_data(TensorData::new(values, expected), &param.lazy_device());
                    let id = param.id;
                    param.transform_for_load(value, id)
                }
                Err(error) => {
                    self.unreadable.get_or_insert(error);
                    param
                }
            }
        }
    }
    let origin = weights.origin().to_string();
    let mut load = Load { path: KeyPath::default(), weights, missing: Vec::new(), misshaped: Vec::new(), unreadable: None };
    let module = module.map(&mut load);
    let Load { weights, missing, misshaped, unreadable, .. } = load;
    if let Some(error) = unreadable {
        return Err(error);
    }
    let unexpected: Vec<String> = weights.into_names().collect();
    if missing.is_empty() && misshaped.is_empty() && unexpected.is_empty() {
        return Ok(module);
    }
    Err(LoadError::Mismatch { path: origin, missing, unexpected, misshaped })
}

/// `module` with new random values in every parameter: matrices and kernels normal with the variance 1 / (3 fan_in) of the uniform
/// distribution PyTorch draws them from, tables of embeddings N(0, 0.02²), a pooling's learned vector N(0, 1 / channels), norms 1, biases 0.
/// Each draw is keyed by the parameter's name, so it does not depend on the device or on the other parameters.
pub fn initialize<M: Module>(module: M, noise: &Noise) -> M {
    initialize_with(module, noise, 3.0)
}

/// [`initialize`] with the variance 1 / fan_in for matrices and kernels, which keeps the size of what a layer is given (LeCun and others,
/// *Efficient BackProp*, 1998, section 4.6). A reward wants it: ImageReward's head is five linear layers with nothing between them, which
/// at a third of the variance let 6 % of an image's differences through, and as much of the gradient.
pub fn initialize_reward<M: Module>(module: M, noise: &Noise) -> M {
    initialize_with(module, noise, 1.0)
}

/// Matrices and kernels with the variance 1 / (`divisor` · fan_in).
fn initialize_with<M: Module>(module: M, noise: &Noise, divisor: f32) -> M {
    struct Init<'a>(KeyPath, &'a Noise, f32);
    impl ModuleMapper for Init<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if D < 2 {
                return param;
            }
            let (key, shape) = (self.0.key(), param.lazy_shape());
            let mut values = self.1.normal_values(Purpose::PARAMETER_INIT, name_key(&key), 0, shape.num_elements());
            let fan_in = (shape.num_elements() / shape[0]) as f32;
            // The layer decides, not what it lies in: add_embedding.proj is a matrix.
            let (layer, parameter) = key.rsplit_once('.').unwrap_or(("", &key));
            let is_table = D == 2 && layer.rsplit('.').next().is_some_and(|name| name.contains("embedding"));
            let std = match parameter {
                "positional_embedding" => (1.0 / fan_in).sqrt(),
                _ if is_table => 0.02,
                _ => (1.0 / (self.2 * fan_in)).sqrt(),
            };
            values.iter_mut().for_each(|v| *v *= std);
            let value = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
            let id = param.id;
            param.transform_for_load(value, id)
        }
    }
    module.map(&mut Init(KeyPath::default(), noise, divisor))
}

/// FNV-1a: a fixed number for a name, the same on every machine and in every version.
pub(crate) fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{GroupNorm, Linear};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Toy {
        net_0: Linear,
        norm: GroupNorm,
        to_out: Vec<Linear>,
    }

    fn toy(device: &Device) -> Toy {
        let to_out = vec![Linear::without_bias(2, 4, device)];
        Toy { net_0: Linear::new(4, 2, device), norm: GroupNorm::new(2, 4, 1e-5, device), to_out }
    }

    #[test]
    fn paths_are_checkpoint_keys() {
        let names: Vec<_> = named_parameters(&toy(&Device::flex())).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["net.0.weight", "net.0.bias", "norm.weight", "norm.bias", "to_out.0.weight"]);
    }

    #[test]
    fn only_the_selected_parameters_train() {
        let (toy, count) = select_trainable(toy(&Device::flex().autodiff()), &Regex::new(r"to_out\.").unwrap());
        assert_eq!(count, 8);
        let x = Tensor::<2>::ones([1, 4], &Device::flex());
        let mut gradients = toy.to_out[0].forward(toy.net_0.forward(x)).sum().backward();
        let names: Vec<_> = named_gradients(&toy, &mut gradients).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["to_out.0.weight"]);
        let mapped = map_parameters(toy, |_, _, values| values + 1.0);
        let trainable: Vec<_> = named_parameters(&mapped).into_iter().map(|p| p.trainable).collect();
        assert_eq!(trainable, [false, false, false, false, true]);
    }

    #[test]
    fn parameters_that_are_not_selected_are_not_touched() {
        let (toy, _) = select_trainable(toy(&Device::flex().autodiff()), &Regex::new(r"^net").unwrap());
        let trained: Vec<_> = trainable_parameters(&toy).into_iter().map(|p| (p.name, p.shape, p.trainable)).collect();
        assert_eq!(trained, [("net.0.weight".into(), vec![2, 4], true), ("net.0.bias".into(), vec![2], true)]);
        let first: Vec<_> = named_parameters(&toy).into_iter().map(|p| p.values).collect();
        let mut touched = Vec::new();
        let mapped = map_parameters_where(
            toy,
            |name, trainable| trainable && name.ends_with("bias"),
            |name, trainable, values| {
                touched.push((name.to_string(), trainable));
                values + 1.0
            },
        );
        assert_eq!(touched, [("net.0.bias".into(), true)]);
        for (before, after) in first.into_iter().zip(named_parameters(&mapped)) {
            let expected = if after.name == "net.0.bias" { before + 1.0 } else { before };
            after.values.into_data().assert_eq(&expected.into_data(), true);
            assert_eq!(after.trainable, after.name.starts_with("net"));
        }
    }

    #[test]
    fn initial_values_depend_on_the_name_alone() {
        let device = Device::flex();
        let values = |toy: Toy| named_parameters(&initialize(toy, &Noise::new(3))).remove(4).values.into_data();
        values(toy(&device)).assert_eq(&values(toy(&device.clone().autodiff())), true);
        let linear = named_parameters(&initialize(toy(&device), &Noise::new(3))).remove(0).values;
        // fan_in 4: standard deviation 0.289; eight values stay within five of them.
        let largest = linear.abs().max().into_scalar::<f32>();
        assert!(largest > 0.0 && largest < 1.45, "{largest}");
        // A reward's: three times the variance.
        let reward = named_parameters(&initialize_reward(toy(&device), &Noise::new(3))).remove(0).values;
        assert!((reward.abs().max().into_scalar::<f32>() / largest - 3f32.sqrt()).abs() < 1e-6);
    }
}
