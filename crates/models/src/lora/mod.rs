//! LoRA (arXiv 2106.09685): low-rank factors beside frozen weights, attached to a network, merged into one, read and written.
//!
//! | paper | here |
//! |---|---|
//! | A | `down`, `[rank, in]`, of a convolution `[rank, in, k, k]` |
//! | B | `up`, `[out, rank]`, of a convolution `[out, rank, 1, 1]` |
//! | α / r | `alpha / rank` |
//!
//! On the CPU a small weight is merged with its factors while it is used; otherwise a layer computes `W x + (α/r) B (A x)`:
//! `docs/decisions/0014-lora.md`.

mod adapter;
mod change;
mod file;
mod names;
mod parts;
mod settings;

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId, Reparameterizer};
use burn::tensor::{DType, Tensor, TensorData};
use regex::Regex;
use vp_core::noise::{Noise, Purpose};

use crate::error::{Error, Result};
use crate::layers::{LowRank, parameter};
use crate::parameters::{KeyPath, map_parameters, map_parameters_where, name_key, named_parameters, parameter_names};

pub use adapter::{Adapter, left_out};
pub use file::Dialect;
pub use names::Names;

/// Which layers a LoRA adapts, and by how much.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The factors' inner dimension: `down` has this many rows, `up` this many columns.
    pub rank: usize,
    /// The numerator of the scale, alpha / rank.
    pub alpha: f64,
    /// Matches the names of the layers that are adapted, like `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub targets: Regex,
}

/// A layer that can be adapted: a linear map or a convolution.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The name of its weight without `.weight`.
    pub name: String,
    /// Shape of its weight, `[out, in]` or `[out, in, k, k]`; of a norm `[channels]`.
    pub shape: Vec<usize>,
    /// Whether it has a bias.
    pub has_bias: bool,
    id: ParamId,
}

/// The linear maps and convolutions of a module, in the order of its fields. Tables of embeddings are not among them.
pub fn layers<M: Module>(module: &M) -> Vec<Layer> {
    let mut found = layers_and_norms(module);
    found.retain(|layer| layer.shape.len() > 1);
    found
}

/// The linear maps, convolutions and norms of a module, in the order of its fields: all that a file may change.
pub fn layers_and_norms<M: Module>(module: &M) -> Vec<Layer> {
    const KINDS: [&str; 4] = [":Linear", ":Conv2d", ":GroupNorm", ":LayerNorm"];
    #[derive(Default)]
    struct Collect {
        path: KeyPath,
        containers: Vec<String>,
        found: Vec<Layer>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
            self.containers.push(container.into());
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
            self.containers.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.containers.last().is_some_and(|container| KINDS.iter().any(|kind| container.ends_with(kind))) {
                return;
            }
            let key = self.path.key();
            if let Some(name) = key.strip_suffix(".weight") {
                self.found.push(Layer { name: name.into(), shape: param.lazy_shape().to_vec(), has_bias: false, id: param.id });
            } else if let Some(layer) = self.found.last_mut().filter(|layer| key.strip_suffix(".bias") == Some(&layer.name)) {
                layer.has_bias = true;
            }
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.found
}

/// Matches the names of the parameters that [`attach`] adds, and no others.
pub const FACTORS: &str = r"\.lora\.(down|up)\.weight$";

/// `module` with factors on every layer that `lora` targets: the first from N(0, 1 / (3 · fan-in)), whose variance is that of PEFT's
/// and kohya's uniform draw, the second zero, so that nothing changes yet. Each draw is keyed by its name.
///
/// # Errors
/// When no layer matches.
pub fn attach<M: Module>(module: M, lora: &Lora, noise: &Noise) -> Result<M> {
    attach_with(module, lora, Some(noise))
}

/// As [`attach`], but the factors are not drawn: to count what a network with factors takes. Nothing is allocated.
///
/// # Errors
/// When no layer matches.
pub fn attach_unfilled<M: Module>(module: M, lora: &Lora) -> Result<M> {
    attach_with(module, lora, None)
}

fn attach_with<M: Module>(module: M, lora: &Lora, noise: Option<&Noise>) -> Result<M> {
    let all = layers(&module);
    let targets: BTreeMap<String, Layer> =
        all.iter().filter(|layer| lora.targets.is_match(&layer.name)).map(|layer| (format!("{}", layer.id), layer.clone())).collect();
    if targets.is_empty() {
        let examples: Vec<&str> = all.iter().rev().take(2).map(|layer| layer.name.as_str()).collect();
        return Err(Error::Request(format!(
            "lora.targets {:?} matches no layer; their names are like {}",
            lora.targets.as_str(),
            examples.join(", ")
        )));
    }
    let most = targets.values().map(|layer| layer.shape[0].min(layer.shape[1..].iter().product())).max().unwrap_or_default();
    if lora.rank > most {
        return Err(Error::Request(format!("lora.rank is {}, larger than any layer it is for; expected at most {most}", lora.rank)));
    }
    Ok(module.apply_reparameterization(Attach { lora, noise, targets }))
}

struct Attach<'a> {
    lora: &'a Lora,
    /// Where the first factors are drawn from, if they are.
    noise: Option<&'a Noise>,
    targets: BTreeMap<String, Layer>,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = LowRank;

    fn reparameterize<const D: usize>(&mut self, _: &str, param: Param<Tensor<D>>) -> (Param<Tensor<D>>, Option<LowRank>) {
        let Some(Layer { name, shape, .. }) = self.targets.get(&format!("{}", param.id)) else { return (param, None) };
        let (rank, d_out, fan_in) = (self.lora.rank, shape[0], shape[1..].iter().product::<usize>());
        let (device, scale) = (param.lazy_device(), self.lora.alpha / rank as f64);
        let Some(noise) = self.noise else {
            let (down, up) = (parameter([rank, fan_in], 0.0, &device), parameter([d_out, rank], 0.0, &device));
            return (param, Some(LowRank { down, up, scale }));
        };
        let std = (1.0 / (3.0 * fan_in as f32)).sqrt();
        let key = name_key(&format!("{name}.lora.down.weight"));
        let mut down = noise.normal_values(Purpose::PARAMETER_INIT, key, 0, rank * fan_in);
        down.iter_mut().for_each(|value| *value *= std);
        let factors = LowRank {
            down: Param::from_data(TensorData::new(down, [rank, fan_in]), &device),
            up: Param::from_data(TensorData::zeros::<f32, _>([d_out, rank]), &device),
            scale,
        };
        (param, Some(factors))
    }
}

/// The factors of a whole network, on the host, by the names of its layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoraWeights {
    /// `unet.….to_q` to its factors.
    pub layers: BTreeMap<String, Factors>,
}

/// The factors of one layer, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Shape of the layer's weight, `[out, in]` or `[out, in, k, k]`.
    pub shape: Vec<usize>,
    /// The number of rows of `down` and of columns of `up`.
    pub rank: usize,
    /// The numerator of the scale, alpha / rank.
    pub alpha: f64,
    /// `[rank, in · k · k]`, row by row.
    pub down: Vec<f32>,
    /// `[out, rank]`, row by row.
    pub up: Vec<f32>,
}

impl Factors {
    fn down_shape(&self) -> Vec<usize> {
        [&[self.rank], &self.shape[1..]].concat()
    }

    fn up_shape(&self) -> Vec<usize> {
        [&[self.shape[0], self.rank][..], &vec![1; self.shape.len() - 2]].concat()
    }
}

impl LoraWeights {
    /// The factors that [`attach`] put on `module` with this alpha, as training left them.
    pub fn of<M: Module>(module: &M, alpha: f64) -> Self {
        let shapes: BTreeMap<String, Vec<usize>> = layers(module).into_iter().map(|layer| (layer.name, layer.shape)).collect();
        let mut values: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
        for parameter in named_parameters(module).into_iter().filter(|parameter| parameter.name.contains(".lora.")) {
            let on_host = parameter.values.into_data().try_into_vec().expect("factors are f32");
            values.insert(parameter.name, (parameter.shape, on_host));
        }
        let factors = |(name, shape): (String, Vec<usize>)| {
            let (down_shape, down) = values.remove(&format!("{name}.lora.down.weight"))?;
            let (_, up) = values.remove(&format!("{name}.lora.up.weight"))?;
            Some((name, Factors { shape, rank: down_shape[0], alpha, down, up }))
        };
        Self { layers: shapes.into_iter().filter_map(factors).collect() }
    }

    /// `module` with `weight · (alpha / rank) · up · down` added to each layer's weight. Layers that `module` lacks are left out.
    #[must_use]
    pub fn merge<M: Module>(&self, module: M, weight: f64) -> M {
        map_parameters(module, |name, _, values| {
            let Some(factors) = name.strip_suffix(".weight").and_then(|layer| self.layers.get(layer)) else { return values };
            let (count, format) = (values.dims()[0], values.dtype());
            let delta = factors.delta(weight, &values.device());
            (values.cast(DType::F32) + delta.reshape([count])).cast(format)
        })
    }

    /// `module`, on which [`attach`] put factors as `lora` says, with these factors in their place: it computes what it would with this LoRA
    /// merged. Layers that have factors and no counterpart here keep theirs. The scale is that of `lora`, so the second factor of a layer with
    /// another alpha takes up the ratio.
    ///
    /// # Errors
    /// When a layer here has another rank than `lora`, or has no factors in `module`.
    pub fn attached<M: Module>(&self, module: M, lora: &Lora) -> Result<M> {
        let other: Vec<String> =
            self.layers.iter().filter(|(_, of)| of.rank != lora.rank).map(|(name, of)| format!("{name} has rank {}", of.rank)).collect();
        if !other.is_empty() {
            let way_out = "give lora.rank the file's rank (a file whose layers differ in rank cannot be trained further)";
            return Err(Error::Request(format!("lora.rank is {}, but {}: {way_out}", lora.rank, some(&other, "; "))));
        }
        let has: BTreeSet<String> =
            parameter_names(&module).iter().filter_map(|name| Some(name.strip_suffix(".lora.down.weight")?.into())).collect();
        let left: Vec<String> = self.layers.keys().filter(|layer| !has.contains(*layer)).cloned().collect();
        if !left.is_empty() {
            let targets = lora.targets.as_str();
            let way_out = "widen it, so that no part of the file is lost";
            return Err(Error::Request(format!("lora.targets {targets:?} does not match {}: {way_out}", some(&left, ", "))));
        }
        Ok(map_parameters_where(
            module,
            |name, _| name.split_once(".lora.").is_some_and(|(layer, _)| self.layers.contains_key(layer)),
            |name, _, values| {
                let Some((layer, factor)) = name.split_once(".lora.") else { return values };
                let Factors { alpha, down, up, .. } = &self.layers[layer];
                let (stored, ratio) = if factor == "up.weight" { (up, alpha / lora.alpha) } else { (down, 1.0) };
                Tensor::<1>::from_floats(stored.as_slice(), &values.device()) * ratio
            },
        ))
    }
}

/// How many names a message lists before it counts the rest.
const SHOWN: usize = 4;

/// The first few of `names`, and how many more there are.
fn some(names: &[String], separator: &str) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(separator);
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}{separator}and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv2d, Embedding, Linear};
    use crate::parameters::{named_gradients, select_trainable};
    use burn::tensor::{Device, Tolerance};

    #[derive(Module, Debug)]
    struct Toy {
        table: Embedding,
        linear: Linear,
        conv: Conv2d,
    }

    fn toy(device: &Device) -> Toy {
        let toy = Toy {
            table: Embedding::new(3, 2, device),
            linear: Linear::new(4, 2, device),
            conv: Conv2d::strided(2, 3, 3, 2, (1, 1), device),
        };
        crate::parameters::initialize(toy, &Noise::new(1))
    }

    fn adapted(device: &Device) -> Toy {
        let lora = Lora { rank: 2, alpha: 6.0, targets: Regex::new("^(linear|conv)$").unwrap() };
        attach(toy(device), &lora, &Noise::new(2)).unwrap()
    }

    fn moved(toy: Toy) -> Toy {
        map_parameters(toy, |name, _, values| if name.contains(".lora.up") { values + 0.3 } else { values })
    }

    #[test]
    fn factors_are_parameters_under_diffusers_names() {
        let names: Vec<String> = named_parameters(&adapted(&Device::flex())).into_iter().map(|parameter| parameter.name).collect();
        let expected = ["table.weight", "linear.weight", "linear.lora.down.weight", "linear.lora.up.weight", "linear.bias", "conv.weight"];
        assert_eq!(names[..6], expected);
        let (_, trained) = select_trainable(adapted(&Device::flex().autodiff()), &Regex::new(FACTORS).unwrap());
        assert_eq!(trained, 2 * 4 + 2 * 2 + 2 * 18 + 3 * 2);
    }

    #[test]
    fn nothing_changes_before_training() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5, 3.0]], &device);
        let image = Tensor::<4>::full([1, 2, 5, 5], 0.7, &device);
        let (plain, adapted) = (toy(&device), adapted(&device));
        adapted.linear.forward(x.clone()).into_data().assert_eq(&plain.linear.forward(x).into_data(), true);
        adapted.conv.forward(image.clone()).into_data().assert_eq(&plain.conv.forward(image).into_data(), true);
    }

    /// Through the factors, through the dense weight, and merged from the host: the same map.
    #[test]
    fn the_three_ways_agree() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5, 3.0]], &device);
        let image = Tensor::<4>::full([1, 2, 5, 5], 0.7, &device);
        let adapted = moved(adapted(&device));
        let dense = adapted.clone().materialize();
        let merged = LoraWeights::of(&adapted, 6.0).merge(toy(&device), 1.0);
        let base = toy(&device);
        for other in [&dense, &merged] {
            let expected = other.linear.forward(x.clone()).into_data();
            adapted.linear.forward(x.clone()).into_data().assert_approx_eq::<f32>(&expected, Tolerance::default());
            let expected = other.conv.forward(image.clone()).into_data();
            adapted.conv.forward(image.clone()).into_data().assert_approx_eq::<f32>(&expected, Tolerance::default());
        }
        let difference = (base.linear.forward(x.clone()) - adapted.linear.forward(x)).abs().max().into_scalar::<f32>();
        assert!(difference > 0.01, "{difference}");
    }

    #[test]
    fn only_the_factors_get_gradients() {
        let device = Device::flex().autodiff();
        let (toy, _) = select_trainable(moved(adapted(&device)), &Regex::new(FACTORS).unwrap());
        let image = Tensor::<4>::full([1, 2, 5, 5], 0.7, &device);
        let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5, 3.0]], &device);
        let loss = toy.conv.forward(image).sum() + toy.linear.forward(x).sum();
        let names: Vec<String> = named_gradients(&toy, &mut loss.backward()).into_iter().map(|(name, _)| name).collect();
        let expected = ["linear.lora.down.weight", "linear.lora.up.weight", "conv.lora.down.weight", "conv.lora.up.weight"];
        assert_eq!(names, expected);
    }

    /// Factors of a file go on training where they were: the network is the base with them merged, whatever the alpha of the file.
    #[test]
    fn factors_of_a_file_are_attached_as_they_are_merged() {
        let (device, x) = (Device::flex(), Tensor::<2>::from_data([[1.0, -2.0, 0.5, 3.0]], &Device::flex()));
        let weights = LoraWeights::of(&moved(adapted(&device)), 1.5);
        let lora = |rank: usize, targets: &str| Lora { rank, alpha: 6.0, targets: Regex::new(targets).unwrap() };
        let attached = |lora: &Lora| weights.attached(attach(toy(&device), lora, &Noise::new(7)).unwrap(), lora);
        let output = attached(&lora(2, "linear|conv")).unwrap().linear.forward(x.clone());
        let expected = weights.merge(toy(&device), 1.0).linear.forward(x.clone());
        output.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::default());
        let told = attached(&lora(3, "linear|conv")).unwrap_err().to_string();
        assert!(told.contains("lora.rank is 3, but conv has rank 2; linear has rank 2"), "{told}");
        let told = attached(&lora(2, "linear")).unwrap_err().to_string();
        assert!(told.contains(r#"lora.targets "linear" does not match conv: widen it"#), "{told}");
    }

    #[test]
    fn targets_that_match_nothing_are_answered_with_names() {
        let lora = Lora { rank: 2, alpha: 2.0, targets: Regex::new("to_q$").unwrap() };
        let error = attach(toy(&Device::flex()), &lora, &Noise::new(0)).unwrap_err().to_string();
        assert!(error.contains("to_q$") && error.contains("linear"), "{error}");
    }
}
