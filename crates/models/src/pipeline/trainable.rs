//! What one optimizer step owns: the denoiser and, where they train too, the text encoders.

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use super::text::TextEncoders;
use crate::clip::ClipTextModel;
use crate::denoiser::Denoiser;

/// The components of the text encoders, in a pipeline's order.
pub const TEXT_ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// The tuned parts of a pipeline under one roof, so that one optimizer, one moving average and one checkpoint hold them all.
/// The names of its parameters begin with those of their components: [`Denoiser::COMPONENT`], `text_encoder` and `text_encoder_2`.
#[derive(Debug, Clone)]
pub struct Trainable<D> {
    /// The network that predicts the noise.
    pub denoiser: D,
    /// The first text encoder, where it trains.
    pub text_encoder: Option<ClipTextModel>,
    /// SDXL's second text encoder, where it trains.
    pub text_encoder_2: Option<ClipTextModel>,
}

impl<D: Denoiser> Trainable<D> {
    /// A denoiser alone, without text encoders.
    pub fn of(denoiser: D) -> Self {
        Self { denoiser, text_encoder: None, text_encoder_2: None }
    }

    /// The pipeline's text encoders with those that train in place of their originals. On the tape, embeddings are then too.
    pub fn text(&self, text: &TextEncoders) -> TextEncoders {
        text.with_models([self.text_encoder.as_ref(), self.text_encoder_2.as_ref()])
    }
}

/// Written by hand, where Burn would derive it, for the sake of one name: derived, the denoiser's parameters would be called after the
/// field and not after its component.
impl<D: Denoiser> Module for Trainable<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visit_component(D::COMPONENT, &self.denoiser, visitor);
        visit_component(TEXT_ENCODERS[0], &self.text_encoder, visitor);
        visit_component(TEXT_ENCODERS[1], &self.text_encoder_2, visitor);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self {
            denoiser: map_component(D::COMPONENT, self.denoiser, mapper),
            text_encoder: map_component(TEXT_ENCODERS[0], self.text_encoder, mapper),
            text_encoder_2: map_component(TEXT_ENCODERS[1], self.text_encoder_2, mapper),
        }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.text_encoder_2.collect_devices(self.text_encoder.collect_devices(self.denoiser.collect_devices(devices)))
    }

    fn to_device(self, device: &Device) -> Self {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        Self {
            denoiser: denoiser.to_device(device),
            text_encoder: text_encoder.to_device(device),
            text_encoder_2: text_encoder_2.to_device(device),
        }
    }

    fn fork(self, device: &Device) -> Self {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        Self { denoiser: denoiser.fork(device), text_encoder: text_encoder.fork(device), text_encoder_2: text_encoder_2.fork(device) }
    }

    fn train(self) -> Self {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        Self { denoiser: denoiser.train(), text_encoder: text_encoder.train(), text_encoder_2: text_encoder_2.train() }
    }

    fn valid(&self) -> Self {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        Self { denoiser: denoiser.valid(), text_encoder: text_encoder.valid(), text_encoder_2: text_encoder_2.valid() }
    }

    fn materialize(self) -> Self {
        let Self { denoiser, text_encoder, text_encoder_2 } = self;
        Self { denoiser: denoiser.materialize(), text_encoder: text_encoder.materialize(), text_encoder_2: text_encoder_2.materialize() }
    }
}

/// What a walk over a module calls the place where the components lie.
const CONTAINER: &str = "Struct:Trainable";

fn visit_component<M: Module, V: ModuleVisitor>(component: &str, network: &M, visitor: &mut V) {
    visitor.enter_module(component, CONTAINER);
    network.visit(visitor);
    visitor.exit_module(component, CONTAINER);
}

fn map_component<M: Module, F: ModuleMapper>(component: &str, network: M, mapper: &mut F) -> M {
    mapper.enter_module(component, CONTAINER);
    let network = network.map(mapper);
    mapper.exit_module(component, CONTAINER);
    network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ClipTextConfig;
    use crate::config_json::NetworkConfig;
    use crate::lora::layers;
    use crate::parameters::{map_parameters, named_parameters, parameter_names};
    use crate::unet::UNetConfig;
    use std::path::Path;

    /// A checkpoint, a LoRA file and an optimizer's state hold tensors under these names: they never change.
    #[test]
    fn parameters_are_named_after_their_components() {
        let (folder, device) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sdxl_tiny/pipeline"), Device::flex());
        let denoiser = UNetConfig::read(&folder.join("unet/config.json")).unwrap().init(&device);
        let encoder = |name: &str| ClipTextConfig::read(&folder.join(name).join("config.json")).unwrap().init(&device);
        let (first, second) = (encoder("text_encoder"), encoder("text_encoder_2"));
        let under = |component: &str, names: Vec<String>| names.into_iter().map(|name| format!("{component}.{name}")).collect::<Vec<_>>();
        let expected = [
            under("unet", parameter_names(&denoiser)),
            under("text_encoder", parameter_names(&first)),
            under("text_encoder_2", parameter_names(&second)),
        ]
        .concat();
        let model = Trainable { denoiser, text_encoder: Some(first), text_encoder_2: Some(second) };
        assert_eq!(parameter_names(&model), expected);
        let (mut mapped, mut names) = (Vec::new(), layers(&model).into_iter().map(|layer| layer.name));
        map_parameters(model.clone(), |name, _, values| {
            mapped.push(name.to_string());
            values
        });
        assert_eq!(mapped, expected);
        assert!(names.any(|name| name == "text_encoder_2.encoder.layers.0.self_attn.q_proj"));
        let alone: Vec<String> = named_parameters(&Trainable::of(model.denoiser)).into_iter().map(|parameter| parameter.name).collect();
        assert!(alone.iter().all(|name| name.starts_with("unet.")) && alone.contains(&"unet.conv_in.weight".to_string()));
    }
}
