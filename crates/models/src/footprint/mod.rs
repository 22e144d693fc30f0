//! How much memory a network takes, from its config alone: nothing is allocated and no weight is read.
//!
//! A network whose weights are not loaded yet knows the shapes of its parameters: [`counted`] adds them up. What it takes to run follows from
//! shapes too. Beside the `forward` of each layer is a `trace`, which does with shapes what `forward` does with tensors and writes into a
//! [`Ledger`] which buffers are made, which ones the tape keeps, and when each is dropped. The most that is held at once is the peak, forward
//! and backward; `tests/memory.rs` holds it to what the allocator sees.

mod ledger;
mod operations;
mod published;
mod scoring;

pub use ledger::{Engine, Ledger, Traced};
pub use operations::Weight;
pub use published::{ModelSizes, Published};
pub use scoring::{ScoringKind, ScoringNetwork};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};

use crate::number_format::NumberFormat;
use crate::parameters::KeyPath;

/// A float parameter, of which only the shape is known.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Its key in a checkpoint.
    pub name: String,
    /// Its number of values.
    pub values: u64,
    id: ParamId,
}

impl Counted {
    /// The identity by which a [`Ledger`] knows it.
    pub fn id(&self) -> ParamId {
        self.id
    }
}

/// Every float parameter of a module, in the order of its fields. None of them is initialised for it.
pub fn counted<M: Module>(module: &M) -> Vec<Counted> {
    #[derive(Default)]
    struct Count(KeyPath, Vec<Counted>);
    impl ModuleVisitor for Count {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = param.lazy_shape().num_elements() as u64;
            self.1.push(Counted { name: self.0.key(), values, id: param.id });
        }
    }
    let mut count = Count::default();
    module.visit(&mut count);
    count.1
}

/// The values of all parameters of a module together.
pub fn values<M: Module>(module: &M) -> u64 {
    counted(module).iter().map(|parameter| parameter.values).sum()
}

/// The device on which networks are laid out that are only counted: nothing is ever put there.
pub fn nowhere() -> Device {
    Device::flex()
}

/// Bytes of one value.
pub fn bytes_of(format: NumberFormat) -> u64 {
    if format.is_half() { 2 } else { 4 }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::blip::{BlipConfig, BlipReward};
    use crate::clip::ClipTextConfig;
    use crate::config_json::NetworkConfig;
    use crate::parameters::named_parameters;
    use crate::unet::UNetConfig;
    use crate::vae::AutoencoderConfig;

    /// The number of values that the initialised module holds.
    fn held<M: Module>(module: &M) -> u64 {
        named_parameters(module).iter().map(|parameter| parameter.values.dims()[0] as u64).sum()
    }

    fn assert_counted<M: Module>(what: &str, lazy: &M, initialised: &M) {
        assert!(values(lazy) > 0, "{what}");
        assert_eq!(values(lazy), held(initialised), "{what}");
    }

    #[test]
    fn counts_are_those_of_initialised_networks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let device = nowhere();
        for model in
            ["tests/golden/sd15_tiny/pipeline", "tests/golden/sd21_tiny/pipeline", "tests/golden/sdxl_tiny/pipeline", "checkpoints/shapes"]
        {
            let folder = root.join(model);
            let unet = UNetConfig::read(&folder.join("unet/config.json")).unwrap();
            assert_counted(model, &unet.init(&device), &unet.init(&device));
            let vae = AutoencoderConfig::read(&folder.join("vae/config.json")).unwrap();
            assert_counted(model, &vae.init(&device), &vae.init(&device));
            let text = ClipTextConfig::read(&folder.join("text_encoder/config.json")).unwrap();
            assert_counted(model, &text.init(&device), &text.init(&device));
        }
        for reward in ["checkpoints/shapes/vp-score", "tests/golden/blip_reward_tiny/model"] {
            let config = BlipConfig::read(&root.join(reward).join("config.json")).unwrap();
            assert_counted(reward, &BlipReward::new(&config, &device), &BlipReward::new(&config, &device));
        }
    }

    /// 3 · 2 weights and 2 biases of a linear map; half precision halves their bytes.
    #[test]
    fn a_linear_map_is_counted_by_hand() {
        let parameters = counted(&crate::layers::Linear::new(3, 2, &nowhere()));
        let found: Vec<_> = parameters.iter().map(|parameter| (parameter.name.as_str(), parameter.values)).collect();
        assert_eq!(found, [("weight", 6), ("bias", 2)]);
        assert_eq!([NumberFormat::F32, NumberFormat::Bf16].map(bytes_of), [4, 2]);
    }

    /// 2 · 5 · 3 · 4 operations of five rows through a linear map, 2 · 9 · 2 · 4 · 36 of a convolution, 4 · 7 · 9 · 8 of attention.
    #[test]
    fn operations_are_counted_by_hand() {
        let ledger = Ledger::off_the_tape(Engine::Cpu);
        let x = ledger.constant(&[5, 3], NumberFormat::F32);
        drop(crate::layers::Linear::new(3, 4, &nowhere()).trace(&ledger, x, NumberFormat::F32));
        assert_eq!(ledger.operations(), 120);
        let x = ledger.constant(&[1, 2, 6, 6], NumberFormat::F32);
        let y = crate::layers::Conv2d::same(2, 4, 3, &nowhere()).trace(&ledger, x, NumberFormat::F32);
        assert_eq!((y.dims(), ledger.operations()), (&[1, 4, 6, 6][..], 120 + 2 * 9 * 2 * 4 * 36));
        let [q, k, v] = [7, 9, 9].map(|tokens| ledger.constant(&[1, tokens, 8], NumberFormat::F32));
        drop(ledger.attention([q, k, v], 2));
        assert_eq!(ledger.operations(), 120 + 5184 + 4 * 7 * 9 * 8);
    }

    /// The sizes that the models' authors publish: 859.5 M and 2,567 M for the UNets, 83.7 M for the autoencoder, 123.1 M for CLIP's text encoder.
    #[test]
    fn published_networks_have_their_published_sizes() {
        let count = |published: Published| {
            let sizes = published.sizes();
            let text: u64 = sizes.text.iter().map(|config| values(&config.init(&nowhere()))).sum();
            [values(&sizes.unet.init(&nowhere())), values(&sizes.vae.init(&nowhere())), text]
        };
        assert_eq!(count(Published::One), [859_520_964, 83_653_863, 123_060_480]);
        assert_eq!(count(Published::Two)[0], 865_910_724);
        assert_eq!(count(Published::Xl)[0], 2_567_463_684);
    }
}
