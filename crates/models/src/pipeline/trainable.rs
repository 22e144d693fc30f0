//! The networks that train: the denoiser and, where they train too, the text encoders.

use std::collections::BTreeMap;

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use super::text::{TextEncoders, TextModel};
use super::write::Component;
use crate::denoiser::Denoiser;

/// The tuned parts of a pipeline under one roof, so that one optimizer, one moving average and one checkpoint hold them all.
/// The names of its parameters begin with those of their components: [`Denoiser::COMPONENT`], `text_encoder` and `text_encoder_2`.
#[derive(Debug, Clone)]
pub struct Trainable<D> {
    /// The network that predicts the noise.
    pub denoiser: D,
    /// The text encoders that train, by component.
    pub text_encoders: BTreeMap<&'static str, TextModel>,
}

impl<D: Denoiser> Trainable<D> {
    /// A denoiser alone, without text encoders.
    pub fn of(denoiser: D) -> Self {
        Self { denoiser, text_encoders: BTreeMap::new() }
    }

    /// The pipeline's text encoders, with those that train in place of their originals; embeddings by these are on the tape.
    pub fn text(&self, text: &TextEncoders) -> TextEncoders {
        text.with_models(&self.text_encoders)
    }

    /// The denoiser and the text encoders, to be written as components of a folder.
    pub fn components(&self) -> Vec<Component> {
        let encoders = self.text_encoders.iter().map(|(component, model)| Component::text_encoder(component, model));
        std::iter::once(Component::denoiser(&self.denoiser)).chain(encoders).collect()
    }

    /// Applies one function to the denoiser and another to each text encoder.
    fn each(self, denoiser: impl FnOnce(D) -> D, encoder: impl Fn(TextModel) -> TextModel) -> Self {
        let text_encoders = self.text_encoders.into_iter().map(|(component, model)| (component, encoder(model))).collect();
        Self { denoiser: denoiser(self.denoiser), text_encoders }
    }
}

/// Written by hand for the names' sake: Burn's derive would name parameters after fields and indices (`denoiser.…`,
/// `text_encoders.0.…`), not after their components.
impl<D: Denoiser> Module for Trainable<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visit_component(D::COMPONENT, &self.denoiser, visitor);
        self.text_encoders.iter().for_each(|(component, model)| visit_component(component, model, visitor));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let denoiser = map_component(D::COMPONENT, self.denoiser, mapper);
        let encoders = self.text_encoders.into_iter();
        Self { denoiser, text_encoders: encoders.map(|(component, model)| (component, map_component(component, model, mapper))).collect() }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.text_encoders.values().fold(self.denoiser.collect_devices(devices), |devices, model| model.collect_devices(devices))
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|denoiser| denoiser.to_device(device), |model| model.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|denoiser| denoiser.fork(device), |model| model.fork(device))
    }

    fn train(self) -> Self {
        self.each(Module::train, Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().each(|denoiser| denoiser.valid(), |model| model.valid())
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize, Module::materialize)
    }
}

/// The type of the components' container, as Burn's derive would name it on a walk.
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
        let text_encoders = BTreeMap::from([("text_encoder", TextModel::Clip(first)), ("text_encoder_2", TextModel::Clip(second))]);
        let model = Trainable { denoiser, text_encoders };
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
