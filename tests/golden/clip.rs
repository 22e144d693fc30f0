//! CLIP whole: embeddings, PickScore's formula, gradients of pixels, the file's names in and out.

use crate::device::device;
use burn::tensor::{Device, Tensor};
use vp_models::clip::{ClipCheckpoint, ClipModel};
use vp_models::parameters::named_parameters;
use vp_models::weights::SaveType;
use vp_rewards::{ClipScore, ClipScoreConfig, Reward};

use crate::support::{Tensors, assert_close_values, case_dir, case_json, load_tensors, strings};

const CASE: &str = "clip_tiny";
const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

fn model(device: &Device) -> ClipModel {
    ClipCheckpoint::load(&case_dir(CASE).join("model"), device).unwrap().model
}

fn ids(tensors: &Tensors) -> Vec<Vec<u32>> {
    let columns = tensors.shape("input_ids")[1];
    tensors.values("input_ids").chunks(columns).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}

#[test]
fn golden_clip_embeddings_and_scores() {
    let (tensors, device) = (load_tensors(CASE), device());
    let (model, pixel_values, ids) = (model(&device), tensors.get::<4>("pixel_values"), ids(&tensors));
    tensors.assert_close("image_embeds", model.image_embeds(pixel_values.clone()), FORWARD);
    tensors.assert_close("text_embeds", model.text_embeds(&ids, &device), FORWARD);
    tensors.assert_close("logit_scale_exp", model.logit_scale.val().exp(), FORWARD);
    tensors.assert_close("scores", model.logits(pixel_values, &ids, &device), FORWARD);
}

#[test]
fn golden_clip_scores_from_prompts_and_their_gradient_reaches_images() {
    let tensors = load_tensors(CASE);
    let config = ClipScoreConfig { logit_scale: true, ..ClipScoreConfig::new(case_dir(CASE).join("model")) };
    let reward = ClipScore::load(&config, &device().autodiff()).unwrap();
    assert!(reward.differentiable());
    let prompts = strings(&case_json(CASE)["prompts"]);
    let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
    let scores = reward.score_pixel_values(pixel_values.clone(), &prompts);
    let found: Vec<f64> = scores.clone().without_autodiff().into_data().iter::<f64>().collect();
    assert_close_values("scores", &found, tensors.values("scores"), FORWARD);
    let gradient: Tensor<4> = pixel_values.grad(&scores.sum().backward()).unwrap();
    tensors.assert_close("grad_input.pixel_values", gradient, GRADIENT);
}

#[test]
fn a_clip_is_written_as_it_was_read() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let checkpoint = ClipCheckpoint::load(&case_dir(CASE).join("model"), &device).unwrap();
    checkpoint.save(folder.path(), SaveType::F32).unwrap();
    let again = ClipCheckpoint::load(folder.path(), &device).unwrap();
    for (a, b) in named_parameters(&checkpoint.model).iter().zip(named_parameters(&again.model)) {
        assert_eq!(a.name, b.name);
        a.values.to_data().assert_eq(&b.values.to_data(), true);
    }
    let header = |path: &std::path::Path| {
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut shapes: Vec<_> = file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect();
        shapes.sort();
        shapes
    };
    // Names and shapes are transformers', the scalar too.
    assert_eq!(header(folder.path()), header(&case_dir(CASE).join("model")));
}
