//! Stable Diffusion 1.x, 2.x and XL: text encoder, UNet, autoencoder; values and gradients. A UNet whose time embedding sees the text.

use crate::device::device;
use burn::module::Module;
use burn::tensor::{DType, Device, Gradients, Tensor};
use vp_models::clip::{self, ClipTextConfig, ClipTextModel};
use vp_models::denoiser::{AddedConditioning, Conditioning, Denoiser};
use vp_models::parameters::{load, named_gradients};
use vp_models::unet::{UNet2DConditionModel, UNetConfig};
use vp_models::vae::{self, AutoencoderConfig, AutoencoderKL};
use vp_models::weights::Weights;
use vp_models::{NetworkConfig, NumberFormat};

use crate::support::{Tensors, assert_close_values, case_dir, load_tensors};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

fn tape() -> Device {
    device().autodiff()
}

fn unet(case: &str) -> UNet2DConditionModel {
    let folder = case_dir(case).join("pipeline/unet");
    let config = UNetConfig::read(&folder.join("config.json")).unwrap();
    load(config.init(&tape()), Weights::open_component(&folder, "diffusion_pytorch_model").unwrap()).unwrap()
}

fn autoencoder(case: &str) -> AutoencoderKL {
    let folder = case_dir(case).join("pipeline/vae");
    let config = AutoencoderConfig::read(&folder.join("config.json")).unwrap();
    let mut weights = Weights::open_component(&folder, "diffusion_pytorch_model").unwrap();
    vae::rename_published(&mut weights);
    load(config.init(&tape()), weights).unwrap()
}

fn text_encoder(case: &str, folder: &str) -> ClipTextModel {
    let folder = case_dir(case).join("pipeline").join(folder);
    let config = ClipTextConfig::read(&folder.join("config.json")).unwrap();
    let mut weights = Weights::open_component(&folder, "model").unwrap();
    clip::rename_published(&mut weights);
    load(config.init(&tape()), weights).unwrap()
}

fn check_gradients<M: Module>(case: &str, tensors: &Tensors, prefix: &str, module: &M, gradients: &mut Gradients) {
    let ours = named_gradients(module, gradients);
    let expected = tensors.names_under(prefix);
    assert!(!expected.is_empty(), "{case} has no gradients under {prefix}");
    for name in expected {
        // Cases write a text encoder's parameters with or without the prefix that we drop.
        let ours_name = name.strip_prefix("text_model.").unwrap_or(name);
        let (_, got) = ours.iter().find(|(ours, _)| ours == ours_name).unwrap_or_else(|| panic!("{case}: no gradient for {name}"));
        let expected = format!("{prefix}{name}");
        let got = got.to_data().iter::<f64>().collect::<Vec<_>>();
        assert_close_values(&format!("{case}: {expected}"), &got, tensors.values(&expected), GRADIENT);
    }
}

fn conditioning(tensors: &Tensors, states: Tensor<3>, rows: usize) -> Conditioning {
    let added = tensors.contains("time_ids").then(|| AddedConditioning {
        text_embeds: tensors.get::<2>("text_embeds_2").narrow(0, 0, rows),
        time_ids: Some(tensors.values("time_ids").chunks(6).take(rows).map(|ids| std::array::from_fn(|i| ids[i] as f32)).collect()),
    });
    Conditioning { encoder_hidden_states: states, added }
}

fn check_unet(case: &str) {
    let (tensors, unet) = (load_tensors(case), unet(case));
    let timesteps = |name: &str| tensors.values(name).iter().map(|t| *t as f32).collect::<Vec<_>>();
    // The second form has an odd size somewhere on the way down.
    let wide = conditioning(&tensors, tensors.get("unet_wide.encoder_hidden_states"), 1);
    let output = unet.valid().forward(tensors.get("unet_wide.sample"), &timesteps("unet_wide.timesteps"), &wide);
    tensors.assert_close("unet_wide.output", output, FORWARD);

    let sample = tensors.get::<4>("unet.sample").autodiff().require_grad();
    let states = tensors.get::<3>("unet.encoder_hidden_states").autodiff().require_grad();
    let rows = sample.dims()[0];
    let output = unet.forward(sample.clone(), &timesteps("unet.timesteps"), &conditioning(&tensors, states.clone(), rows));
    tensors.assert_close("unet.output", output.clone().without_autodiff(), FORWARD);
    let mut gradients = (output * tensors.get("unet.cotangent")).sum().backward();
    tensors.assert_close("unet.grad_input.sample", sample.grad(&gradients).unwrap(), GRADIENT);
    tensors.assert_close("unet.grad_input.encoder_hidden_states", states.grad(&gradients).unwrap(), GRADIENT);
    check_gradients(case, &tensors, "unet.grad.", &unet, &mut gradients);
}

fn check_autoencoder(case: &str) {
    let (tensors, vae) = (load_tensors(case), autoencoder(case));
    let latents = tensors.get::<4>("vae.latents").autodiff().require_grad();
    let decoded = vae.decode(latents.clone());
    tensors.assert_close("vae.decoded", decoded.clone().without_autodiff(), FORWARD);
    let mut gradients = (decoded * tensors.get("vae.cotangent")).sum().backward();
    tensors.assert_close("vae.grad_input.latents", latents.grad(&gradients).unwrap(), GRADIENT);
    check_gradients(case, &tensors, "vae.grad.", &vae, &mut gradients);

    let image = tensors.get::<4>("vae.image").autodiff().require_grad();
    let posterior = vae.valid().encode(image.clone().without_autodiff());
    tensors.assert_close("vae.mean", posterior.mean, FORWARD);
    tensors.assert_close("vae.logvar", posterior.logvar, FORWARD);
    let mut gradients = (vae.moments(image.clone()) * tensors.get("vae.encode_cotangent")).sum().backward();
    tensors.assert_close("vae.encode_grad_input.image", image.grad(&gradients).unwrap(), GRADIENT);
    check_gradients(case, &tensors, "vae.encode_grad.", &vae, &mut gradients);
}

fn check_text_encoder(case: &str, folder: &str, suffix: &str) {
    let (tensors, encoder) = (load_tensors(case), text_encoder(case, folder));
    let ids = format!("input_ids{suffix}");
    let columns = tensors.shape(&ids)[1];
    let ids: Vec<Vec<u32>> = tensors.values(&ids).chunks(columns).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
    let output = encoder.forward(&ids, &device());
    let named = |name: &str| format!("{name}{suffix}");
    tensors.assert_close(&named("text_last_hidden_state"), output.last_hidden_state.clone().without_autodiff(), FORWARD);
    tensors.assert_close(&named("text_penultimate"), output.penultimate.without_autodiff(), FORWARD);
    match output.text_embeds {
        Some(embeds) => tensors.assert_close(&named("text_embeds"), embeds.without_autodiff(), FORWARD),
        None => tensors.assert_close(&named("text_pooled"), output.pooled.without_autodiff(), FORWARD),
    }
    let mut gradients = (output.last_hidden_state * tensors.get(&named("text.cotangent"))).sum().backward();
    check_gradients(case, &tensors, &format!("text{suffix}.grad."), &encoder, &mut gradients);
}

/// In bf16 and f16, against the reference's f32 numbers: the tolerances are these many roundings of the format.
const HALF_FORWARD: f64 = 8.0;
const HALF_GRADIENT: f64 = 16.0;

/// The formats that the device computes in.
fn half_formats() -> impl Iterator<Item = NumberFormat> {
    [NumberFormat::Bf16, NumberFormat::F16].into_iter().filter(|format| format.check(&device()).is_ok())
}

/// The comparison of a case in a format: tensor, values, and roundings allowed.
fn in_half<'a>(case: &'a str, tensors: &'a Tensors, format: NumberFormat) -> impl Fn(&str, Vec<f64>, f64) + 'a {
    move |name, got, roundings| {
        assert_close_values(&format!("{case} in {}: {name}", format.name()), &got, tensors.values(name), roundings * format.epsilon());
    }
}

fn check_unet_in_half_precision(case: &str) {
    let tensors = load_tensors(case);
    for format in half_formats() {
        let assert_close = in_half(case, &tensors, format);
        let unet = unet(case).in_format(format, None).unwrap();
        let sample = tensors.get::<4>("unet.sample").autodiff().require_grad();
        let states = tensors.get::<3>("unet.encoder_hidden_states").autodiff().require_grad();
        let timesteps: Vec<f32> = tensors.values("unet.timesteps").iter().map(|t| *t as f32).collect();
        let rows = sample.dims()[0];
        let output = unet.forward(sample.clone(), &timesteps, &conditioning(&tensors, states.clone(), rows));
        assert_close("unet.output", host(output.clone()), HALF_FORWARD);
        let gradients = (output * tensors.get("unet.cotangent")).sum().backward();
        assert_close("unet.grad_input.sample", host(sample.grad(&gradients).unwrap()), HALF_GRADIENT);
        assert_close("unet.grad_input.encoder_hidden_states", host(states.grad(&gradients).unwrap()), HALF_GRADIENT);
    }
}

fn check_half_precision(case: &str) {
    check_unet_in_half_precision(case);
    let tensors = load_tensors(case);
    for format in half_formats() {
        let assert_close = in_half(case, &tensors, format);
        let vae = autoencoder(case).in_format(format, None).unwrap();
        let latents = tensors.get::<4>("vae.latents").autodiff().require_grad();
        let decoded = vae.decode(latents.clone());
        assert_close("vae.decoded", host(decoded.clone()), HALF_FORWARD);
        let gradients = (decoded * tensors.get("vae.cotangent")).sum().backward();
        assert_close("vae.grad_input.latents", host(latents.grad(&gradients).unwrap()), HALF_GRADIENT);

        let encoder = text_encoder(case, "text_encoder").in_format("text_encoder", format, None).unwrap();
        let columns = tensors.shape("input_ids")[1];
        let ids: Vec<Vec<u32>> = tensors.values("input_ids").chunks(columns).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
        assert_close("text_last_hidden_state", host(encoder.forward(&ids, &device()).last_hidden_state), HALF_FORWARD);
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    assert_eq!(tensor.dtype(), DType::F32, "what leaves a network is f32");
    tensor.into_data().iter::<f64>().collect()
}

macro_rules! cases {
    ($($case:ident: $($folder:literal $suffix:literal),+;)+) => { $(
        mod $case {
            #[test]
            fn golden_unet() { super::check_unet(stringify!($case)); }
            #[test]
            fn golden_autoencoder() { super::check_autoencoder(stringify!($case)); }
            #[test]
            fn golden_half_precision() { super::check_half_precision(stringify!($case)); }
            #[test]
            fn golden_text_encoder() { $( super::check_text_encoder(stringify!($case), $folder, $suffix); )+ }
        }
    )+ };
}
cases! {
    sd15_tiny: "text_encoder" "";
    sd21_tiny: "text_encoder" "";
    sdxl_tiny: "text_encoder" "", "text_encoder_2" "_2";
}

mod text_addition_tiny {
    use crate::device::device;
    use burn::tensor::Tensor;
    use regex::Regex;
    use vp_core::noise::Noise;
    use vp_models::NetworkConfig;
    use vp_models::denoiser::{Conditioning, Denoiser};
    use vp_models::parameters::{initialize, map_parameters, named_parameters, select_trainable};
    use vp_models::unet::UNetConfig;

    #[test]
    fn golden_unet() {
        super::check_unet("text_addition_tiny");
    }

    #[test]
    fn golden_half_precision() {
        super::check_unet_in_half_precision("text_addition_tiny");
    }

    fn standard_deviation(values: &[f64]) -> f64 {
        (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
    }

    /// As `nn.Linear` and `torch.randn(1, d) / d**0.5` draw them.
    #[test]
    fn the_pooling_begins_as_in_diffusers() {
        let mut config = UNetConfig::read(&super::case_dir("text_addition_tiny").join("pipeline/unet/config.json")).unwrap();
        config.cross_attention_dim = vec![96; 2];
        let drawn = named_parameters(&initialize(config.init(&device()), &Noise::new(3)));
        let of = |name: &str| {
            let parameter = drawn.iter().find(|parameter| parameter.name == format!("add_embedding.{name}")).unwrap();
            parameter.values.to_data().iter::<f64>().collect::<Vec<_>>()
        };
        for (name, expected) in
            [("pool.positional_embedding", 1.0 / 96.0), ("pool.q_proj.weight", 1.0 / 288.0), ("proj.weight", 1.0 / 288.0)]
        {
            let ratio = standard_deviation(&of(name)) / f64::sqrt(expected);
            assert!((0.75..1.25).contains(&ratio), "{name}: {ratio} of the expected standard deviation");
        }
        assert!(of("norm1.weight").iter().all(|value| *value == 1.0) && of("pool.k_proj.bias").iter().all(|value| *value == 0.0));
    }

    #[test]
    fn the_pooling_trains_and_is_blamed() {
        let unet = super::unet("text_addition_tiny");
        assert!(select_trainable(unet.clone(), &Regex::new(r"^add_embedding\.pool\.positional_embedding$").unwrap()).1 == 24);
        let broken = map_parameters(unet, |name, _, values| if name == "add_embedding.proj.bias" { values * f32::NAN } else { values });
        let conditioning = Conditioning { encoder_hidden_states: Tensor::ones([1, 3, 24], &device()), added: None };
        let found = broken.first_non_finite(Tensor::zeros([1, 4, 8, 8], &device()), &[5.0], &conditioning);
        assert_eq!(found.as_deref(), Some("add_embedding"));
    }
}
