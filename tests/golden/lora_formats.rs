//! LoRA files in the forms and under the names that other tools give them, merged: weights, the UNet's output, the text encoder's.

use std::collections::BTreeMap;

use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::lora::{Adapter, LoraWeights, Names};
use vp_models::parameters::named_parameters;
use vp_models::pipeline::{ModelFolder, Pipeline, TextModel, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_models::weights::Weights;

use crate::device::device;
use crate::support::{Tensors, assert_close_values, case_dir, case_json, load_tensors, strings};

const LYCORIS: &str = "lora_lycoris_tiny";
const PEFT: &str = "lora_peft_tiny";
const FORWARD: f64 = 1e-4;

/// The files and folders of PEFT's case that hold each of its adapters.
const OF_PEFT: [(&str, &[&str]); 9] = [
    (
        "dora",
        &[
            "dora",
            "dora_diffusers/pytorch_lora_weights.safetensors",
            "dora_diffusers_mixed/pytorch_lora_weights.safetensors",
            "dora_kohya.safetensors",
        ],
    ),
    ("rslora", &["rslora", "rslora/adapter_model.bin"]),
    ("patterns", &["patterns/adapter_model.safetensors", "patterns_diffusers"]),
    ("dora_rslora_patterns", &["dora_rslora_patterns", "dora_rslora_patterns_diffusers"]),
    ("excluded", &["excluded"]),
    ("attn_procs", &["attn_procs"]),
    ("attn_procs_text", &["attn_procs_text/pytorch_lora_weights.bin"]),
    ("fp8_e4m3", &["fp8_e4m3.safetensors"]),
    ("fp8_e5m2", &["fp8_e5m2.safetensors"]),
];

/// A case, and the model that its files are for.
struct Case {
    name: &'static str,
    tensors: Tensors,
    base: Trainable<UNet2DConditionModel>,
    names: Names,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let folder = case_dir(&strings(&case_json(name)["uses"])[0]).join("pipeline");
        let (pipeline, unet) = Pipeline::load(ModelFolder::open(&folder).unwrap(), &device()).unwrap();
        let names = pipeline.lora_names(&unet);
        Self { name, tensors: load_tensors(name), base: pipeline.adaptable(unet), names }
    }

    fn adapter(&self, file: &str) -> Adapter {
        Adapter::read(&case_dir(self.name).join(file), &self.names).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Holds what the file makes of the model against the numbers of `kind`.
    fn check(&self, kind: &str, file: &str) {
        let merged = self.adapter(file).merge(self.base.clone(), 1.0);
        let parameters: BTreeMap<String, Vec<f64>> = named_parameters(&merged)
            .into_iter()
            .map(|parameter| (parameter.name, parameter.values.into_data().iter::<f64>().collect()))
            .collect();
        for name in self.tensors.names_under(&format!("{kind}.merged.")) {
            let ours = name.strip_prefix("text_model.").map_or_else(|| format!("unet.{name}"), |name| format!("text_encoder.{name}"));
            let expected = self.tensors.values(&format!("{kind}.merged.{name}"));
            assert_close_values(&format!("{file}: {name}"), &parameters[&ours], expected, FORWARD);
        }
        let timesteps: Vec<f32> = self.tensors.values("unet.timesteps").iter().map(|t| *t as f32).collect();
        let conditioning = Conditioning { encoder_hidden_states: self.tensors.get("unet.encoder_hidden_states"), added: None };
        let output = merged.denoiser.forward(self.tensors.get("unet.sample"), &timesteps, &conditioning);
        self.tensors.assert_close(&format!("{kind}.unet_output"), output, FORWARD);
        let text = format!("{kind}.text_last_hidden_state");
        if self.tensors.contains(&text) {
            let TextModel::Clip(encoder) = &merged.text_encoders["text_encoder"];
            let columns = self.tensors.shape("input_ids")[1];
            let ids: Vec<Vec<u32>> =
                self.tensors.values("input_ids").chunks(columns).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
            self.tensors.assert_close(&text, encoder.forward(&ids, &device()).last_hidden_state, FORWARD);
        }
    }
}

#[test]
fn golden_lora_forms_of_lycoris() {
    let case = Case::open(LYCORIS);
    let kinds = case_json(LYCORIS)["kinds"].as_object().unwrap().clone();
    assert_eq!(kinds.len(), 12);
    for (kind, about) in &kinds {
        case.check(kind, about["file"].as_str().unwrap());
    }
}

#[test]
fn golden_lora_adapters_of_peft() {
    let case = Case::open(PEFT);
    for (kind, files) in OF_PEFT {
        files.iter().for_each(|file| case.check(kind, file));
    }
}

/// Rank and scale of every layer, as PEFT gave them.
#[test]
fn golden_lora_scales_of_peft() {
    let case = Case::open(PEFT);
    let kinds = case_json(PEFT)["kinds"].clone();
    for (kind, files) in OF_PEFT.into_iter().filter(|(kind, _)| ["rslora", "patterns", "excluded"].contains(kind)) {
        for file in files {
            let LoraWeights { layers } = case.adapter(file).into_factors().unwrap();
            let expected = kinds[kind]["layers"].as_object().unwrap();
            assert_eq!(layers.len(), expected.len(), "{file}");
            for (layer, factors) in layers {
                let expected = &expected[layer.strip_prefix("unet.").unwrap()];
                let scale = factors.alpha / factors.rank as f64;
                assert_eq!(Some(factors.rank as u64), expected["rank"].as_u64(), "{file}: {layer}");
                assert!((scale - expected["scale"].as_f64().unwrap()).abs() < 1e-6, "{file}: {layer}: {scale}");
            }
        }
    }
}

/// Two and three factors can be trained further and written; of anything else it is said what it is, with a handful of names.
#[test]
fn golden_lora_forms_that_are_more_than_factors() {
    let case = Case::open(LYCORIS);
    for file in ["locon", "locon_tucker", "rslora"] {
        let adapter = case.adapter(&format!("{file}.safetensors"));
        let factors = adapter.clone().into_factors().unwrap();
        let [merged, of_factors] = [adapter.merge(case.base.clone(), 1.0), factors.merge(case.base.clone(), 1.0)];
        for (a, b) in named_parameters(&merged).into_iter().zip(named_parameters(&of_factors)) {
            a.values.into_data().assert_eq(&b.values.into_data(), true);
        }
    }
    let forms = [("loha", "LoHa"), ("lokr", "LoKr"), ("dora", "DoRA"), ("full", "differences of biases"), ("full", "differences of norms")];
    for (file, form) in forms {
        let told = case.adapter(&format!("{file}.safetensors")).into_factors().unwrap_err().to_string();
        assert!(told.contains(form) && told.contains("neither trained further nor written"), "{told}");
        assert!(told.matches("unet.").count() + told.matches("text_encoder.").count() <= 10, "{told}");
    }
    assert!(case.adapter("loha.safetensors").into_factors().unwrap_err().to_string().contains("and 5 more"));
}

/// Every value of both eight-bit formats, their NaNs too.
#[test]
fn golden_lora_bytes_of_eight_bit_formats() {
    let (tensors, dir) = (load_tensors(PEFT), tempfile::tempdir().unwrap());
    for (dtype, name) in [("F8_E4M3", "fp8_table.e4m3"), ("F8_E5M2", "fp8_table.e5m2")] {
        let header = format!(r#"{{"x":{{"dtype":"{dtype}","shape":[256],"data_offsets":[0,256]}}}}"#);
        let path = dir.path().join("table.safetensors");
        let bytes: Vec<u8> = (0..=255).collect();
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat()).unwrap();
        let read = Weights::open(&path).unwrap().take("x").unwrap().read_state().unwrap();
        for (byte, (ours, theirs)) in read.iter().zip(tensors.values(name)).enumerate() {
            let same = f64::from(*ours) == *theirs || (ours.is_nan() && theirs.is_nan());
            assert!(same, "{name}: {byte} is {theirs}, read as {ours}");
        }
    }
}
