//! The BLIP reward: embeddings, features, rewards, gradients, ranking loss, preprocessing, resize.

use crate::device::device;
use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor};
use vp_data::RgbImage;
use vp_models::blip::{BlipCheckpoint, BlipFiles, BlipReward, TextInputs};
use vp_models::parameters::named_gradients;
use vp_models::resize::{Antialias, preprocess_bytes, resize_bicubic};
use vp_rewards::{Reward, VpScore, VpScoreConfig, ranking_loss};

use crate::support::{Tensors, assert_close, assert_close_values, case_dir, case_json, load_tensors};

const CASE: &str = "blip_reward_tiny";
const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

/// The two files that hold the same weights.
const WEIGHTS: [&str; 2] = ["model.safetensors", "model.pt"];

fn checkpoint(weights: &str, device: &Device) -> BlipCheckpoint {
    BlipFiles::find(&case_dir(CASE).join("model").join(weights)).unwrap().load(device).unwrap()
}

fn trainable() -> BlipReward {
    checkpoint(WEIGHTS[0], &device().autodiff()).model
}

fn prompts() -> Vec<String> {
    serde_json::from_value(case_json(CASE)["prompts"].clone()).unwrap()
}

/// `input_ids` and `attention_mask`; or one row of them, for `images` images.
fn text(tensors: &Tensors, one_for: Option<usize>) -> TextInputs {
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let columns = tensors.shape(name)[1];
        let rows: Vec<_> = tensors.values(name).chunks(columns).map(|row| row.iter().map(|v| *v as u32).collect()).collect();
        one_for.map_or(rows.clone(), |images| vec![rows[0].clone(); images])
    };
    TextInputs::new(&rows("input_ids"), &rows("attention_mask"), &device())
}

fn check_gradients(tensors: &Tensors, prefix: &str, model: &BlipReward, gradients: &mut Gradients) {
    let ours = named_gradients(model, gradients);
    let expected = tensors.names_under(prefix);
    assert!(!expected.is_empty(), "no gradients under {prefix}");
    for name in expected {
        let (_, got) = ours.iter().find(|(ours, _)| ours == name).unwrap_or_else(|| panic!("no gradient for {name}"));
        let got: Vec<f64> = got.to_data().iter::<f64>().collect();
        let expected = format!("{prefix}{name}");
        assert_close_values(&expected, &got, tensors.values(&expected), GRADIENT);
    }
}

#[test]
fn golden_embeddings_features_and_rewards() {
    let tensors = load_tensors(CASE);
    for weights in WEIGHTS {
        let BlipCheckpoint { model, config } = checkpoint(weights, &device());
        let pixel_values = tensors.get::<4>("pixel_values");
        let text = text(&tensors, None);
        tensors.assert_close("image_embeds", model.blip.visual_encoder.forward(pixel_values.clone()), FORWARD);
        tensors.assert_close("features", model.features(pixel_values.clone(), &text), FORWARD);
        tensors.assert_close("rewards", (model.forward(pixel_values, &text) - config.mean) / config.std, FORWARD);
    }
}

#[test]
fn golden_rewards_from_prompts() {
    let tensors = load_tensors(CASE);
    for weights in ["", "model.safetensors", "model.pt"] {
        let reward = VpScore::load(&VpScoreConfig::new(case_dir(CASE).join("model").join(weights)), &device()).unwrap();
        let rewards = reward.score_pixel_values(tensors.get("pixel_values"), &prompts());
        assert_close_values("rewards", &rewards.into_data().iter::<f64>().collect::<Vec<_>>(), tensors.values("rewards"), FORWARD);
    }
}

#[test]
fn golden_gradients_of_rewards() {
    let (tensors, model) = (load_tensors(CASE), trainable());
    let std = checkpoint(WEIGHTS[0], &device()).config.std;
    let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
    let mut gradients = (model.forward(pixel_values.clone(), &text(&tensors, None)) / std).sum().backward();
    tensors.assert_close("grad_input.pixel_values", pixel_values.grad(&gradients).unwrap(), GRADIENT);
    check_gradients(&tensors, "grad.", &model, &mut gradients);
}

#[test]
fn golden_gradient_reaches_images_through_a_frozen_reward() {
    let tensors = load_tensors(CASE);
    let reward = VpScore::load(&VpScoreConfig::new(case_dir(CASE).join("model")), &device().autodiff()).unwrap();
    assert!(reward.differentiable());
    let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
    let gradients = reward.score_pixel_values(pixel_values.clone(), &prompts()).sum().backward();
    tensors.assert_close("grad_input.pixel_values", pixel_values.grad(&gradients).unwrap(), GRADIENT);
}

#[test]
fn golden_ranking_loss() {
    let (tensors, model) = (load_tensors(CASE), trainable());
    let ranks: Vec<u32> = serde_json::from_value(case_json(CASE)["rank"].clone()).unwrap();
    let scores = model.forward(tensors.get("rank.pixel_values"), &text(&tensors, Some(ranks.len())));
    tensors.assert_close("rank.raw_scores", scores.clone().without_autodiff(), FORWARD);
    let loss = ranking_loss(scores.reshape([ranks.len()]), &ranks);
    tensors.assert_close("rank.loss", loss.clone().without_autodiff(), FORWARD);
    check_gradients(&tensors, "rank.grad.", &model, &mut loss.backward());
}

#[test]
fn golden_preprocessing_of_a_file() {
    let tensors = load_tensors(CASE);
    let size = checkpoint(WEIGHTS[0], &device()).config.image_size;
    let [height, width, _] = tensors.shape("preprocess.image_u8") else { panic!("`preprocess.image_u8` is no image") };
    let rgb: Vec<u8> = tensors.values("preprocess.image_u8").iter().map(|v| *v as u8).collect();
    let got = preprocess_bytes(&rgb, [*height, *width], size, &device());
    let expected: Tensor<3> = tensors.get("preprocess.pixel_values");
    assert_close("preprocess.pixel_values", got, expected.unsqueeze(), FORWARD);
}

/// As `ImageReward.py`'s `score` of a file: the score of Pillow's pixels, not of a tensor's resize.
#[test]
fn golden_score_of_a_file() {
    let tensors = load_tensors(CASE);
    let reward = VpScore::load(&VpScoreConfig::new(case_dir(CASE).join("model")), &device()).unwrap();
    let [height, width, _] = tensors.shape("preprocess.image_u8") else { panic!("`preprocess.image_u8` is no image") };
    let pixels = tensors.values("preprocess.image_u8").iter().map(|v| *v as u8).collect();
    let image = RgbImage::from_raw(*width as u32, *height as u32, pixels).unwrap();
    let pillows = tensors.get::<3>("preprocess.pixel_values").unsqueeze();
    for prompt in prompts() {
        let prompt = [prompt];
        let expected: Vec<f64> = reward.score_pixel_values(pillows.clone(), &prompt).into_data().iter::<f64>().collect();
        let got = reward.score_rgb(std::slice::from_ref(&image), &prompt, &device()).unwrap().scores;
        assert_close_values("score_rgb", &got, &expected, FORWARD);
    }
}

#[test]
fn golden_resize_and_its_gradient() {
    let tensors = load_tensors(CASE);
    let image = tensors.get::<4>("resize.image").autodiff().require_grad();
    let [_, _, height, width] = tensors.get::<4>("resize.cotangent").dims();
    let plain = resize_bicubic(image.clone().without_autodiff(), [height, width], Antialias::Off);
    tensors.assert_close("resize.bicubic_no_antialias", plain, FORWARD);
    let resized = resize_bicubic(image.clone(), [height, width], Antialias::On);
    tensors.assert_close("resize.bicubic_antialias", resized.clone().without_autodiff(), FORWARD);
    let gradients = (resized * tensors.get("resize.cotangent")).sum().backward();
    tensors.assert_close("resize.grad_input.image", image.grad(&gradients).unwrap(), GRADIENT);
}

#[test]
fn golden_stages_can_be_recomputed_one_by_one() {
    // Forward off the tape, keeping what crosses between stages; then backward stage by stage, each on a tape of its own.
    use vp_models::blip::Boundary;
    let (tensors, model) = (load_tensors(CASE), trainable());
    let (frozen, text) = (model.valid(), text(&tensors, None));
    let std = checkpoint(WEIGHTS[0], &device()).config.std;
    let stages = frozen.stages();
    let mut boundaries = vec![Boundary::Pixels(tensors.get("pixel_values"))];
    for stage in &stages {
        boundaries.push(frozen.run(*stage, boundaries.last().unwrap().clone(), &text));
    }
    let leaf = |x: Tensor<3>| x.autodiff().require_grad();
    // What flows back: towards the boundary's image part and towards its text part.
    let (mut to_image, mut to_text): (Option<Tensor<3>>, Option<Tensor<3>>) = (None, None);
    let weigh = |y: Tensor<3>, cotangent: &Option<Tensor<3>>| cotangent.as_ref().map(|c| (y * c.clone()).sum());
    for (stage, boundary) in stages.iter().zip(&boundaries).rev() {
        let loss = |out: Boundary| match out {
            Boundary::Rewards(rewards) => (rewards / std).sum(),
            Boundary::Image(x) => weigh(x, &to_image).unwrap(),
            Boundary::Fusion { hidden_states, .. } => weigh(hidden_states, &to_text).unwrap(),
            Boundary::Pixels(_) => panic!("no stage ends in pixels"),
        };
        match boundary.clone() {
            Boundary::Fusion { image_embeds, hidden_states } => {
                let (image_embeds, hidden_states) = (leaf(image_embeds), leaf(hidden_states));
                let inputs = Boundary::Fusion { image_embeds: image_embeds.clone(), hidden_states: hidden_states.clone() };
                let gradients = loss(frozen.run(*stage, inputs, &text)).backward();
                let through_image = image_embeds.grad(&gradients);
                to_text = hidden_states.grad(&gradients);
                to_image = match (to_image, through_image) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                };
            }
            Boundary::Image(x) => {
                let x = leaf(x);
                let loss = match frozen.run(*stage, Boundary::Image(x.clone()), &text) {
                    Boundary::Fusion { image_embeds, .. } => weigh(image_embeds, &to_image).unwrap(),
                    out => loss(out),
                };
                to_image = x.grad(&loss.backward());
            }
            Boundary::Pixels(x) => {
                let x = x.autodiff().require_grad();
                let gradients = loss(frozen.run(*stage, Boundary::Pixels(x.clone()), &text)).backward();
                tensors.assert_close("grad_input.pixel_values", x.grad(&gradients).unwrap(), GRADIENT);
            }
            Boundary::Rewards(_) => panic!("no stage begins with rewards"),
        }
    }
}
