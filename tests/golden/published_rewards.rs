//! Rewards in the files that people download: HPS v2, a CLIP of open_clip's, LAION's aesthetic predictor, CycleReward. Each with its
//! preprocessing, its tokenizer, its scale and the gradients of its scores.

use std::path::{Path, PathBuf};

use crate::device::device;
use burn::tensor::Tensor;
use vp_core::config::Validate;
use vp_data::{RgbImage, to_tensor};
use vp_models::blip::{BlipFiles, TextInputs};
use vp_models::weights::{SaveType, Weights, save_safetensors};
use vp_rewards::{Aesthetic, AestheticConfig, ClipScore, ClipScoreConfig, HpsV2Config, Reward, RewardConfig, VpScore, VpScoreConfig};

use crate::support::{Tensors, assert_close_values, case_dir, case_json, load_tensors, strings};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;
const HPS: &str = "HPS_v2.1_compressed.pt";
const LAION: &str = "sac+logos+ava1-l14-linearMSE.pth";

/// The three 8-bit images of a case: square, wide and tall.
fn images(tensors: &Tensors) -> Vec<RgbImage> {
    let image = |i: usize| {
        let name = format!("preprocess.{i}.image_u8");
        let [height, width, _] = tensors.shape(&name) else { panic!("`{name}` is no image") };
        let pixels = tensors.values(&name).iter().map(|value| *value as u8).collect();
        RgbImage::from_raw(*width as u32, *height as u32, pixels).unwrap()
    };
    (0..3).map(image).collect()
}

fn check_preprocessing(tensors: &Tensors, prefix: &str, pixel_values: impl Fn(&[RgbImage]) -> Tensor<4>) {
    for (i, image) in images(tensors).iter().enumerate() {
        tensors.assert_close(&format!("{prefix}.{i}.pixel_values"), pixel_values(std::slice::from_ref(image)), FORWARD);
    }
}

fn check_ids(tensors: &Tensors, name: &str, ids: &[Vec<u32>]) {
    let ids: Vec<f64> = ids.iter().flatten().map(|id| f64::from(*id)).collect();
    assert_eq!(ids, tensors.values(name), "{name}");
}

fn check_clip(tensors: &Tensors, reward: &ClipScore, case: &str) {
    let (texts, prompts) = (strings(&case_json(case)["texts"]), strings(&case_json(case)["prompts"]));
    check_ids(tensors, "texts.input_ids", &reward.input_ids(&texts));
    let ids = reward.input_ids(&prompts);
    check_ids(tensors, "input_ids", &ids);
    tensors.assert_close("image_embeds", reward.model().image_embeds(tensors.get("pixel_values")), FORWARD);
    tensors.assert_close("text_embeds", reward.model().text_embeds(&ids, &device()), FORWARD);
    tensors.assert_close("scores", reward.score_pixel_values(tensors.get("pixel_values"), &prompts), FORWARD);
    let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
    let gradients = reward.score_pixel_values(pixel_values.clone(), &prompts).sum().backward();
    tensors.assert_close("grad_input.pixel_values", pixel_values.grad(&gradients).unwrap(), GRADIENT);
}

/// The gradient of the score of image 1, in `[0, 1]` and of its own size.
fn gradient_of_image_1(tensors: &Tensors, reward: &dyn Reward, prompt: &str) -> Tensor<4> {
    let image = to_tensor(&images(tensors)[1..2], &device()).unwrap().autodiff().require_grad();
    let gradients = reward.score(image.clone(), &[prompt.to_string()]).unwrap().sum().backward();
    image.grad(&gradients).unwrap()
}

fn copied(files: &[(PathBuf, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in files {
        std::fs::create_dir_all(folder.path().join(to).parent().unwrap()).unwrap();
        std::fs::copy(from, folder.path().join(to)).unwrap();
    }
    folder
}

fn prefixed(from: &Path, prefix: &str, to: &Path) {
    let mut weights = Weights::open(from).unwrap();
    let names: Vec<String> = weights.names().map(String::from).collect();
    let stored: Vec<_> = names.iter().map(|name| (format!("{prefix}{name}"), weights.take(name).unwrap())).collect();
    let tensors = stored.iter().map(|(name, stored)| {
        let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| stored.read().unwrap());
        (name.as_str(), stored.shape(), read)
    });
    save_safetensors(to, tensors, &[], SaveType::F32).unwrap();
}

#[test]
fn golden_hps_v2() {
    let (case, tensors) = (case_dir("hpsv2_tiny"), load_tensors("hpsv2_tiny"));
    let config = HpsV2Config::new(case.join(HPS));
    assert_eq!(RewardConfig::from_weights(&config.weights).unwrap().name(), "hps_v2");
    let reward = config.load(&device().autodiff()).unwrap();
    check_clip(&tensors, &reward, "hpsv2_tiny");
    check_preprocessing(&tensors, "preprocess", |image| reward.pixel_values(image));
    let prompts = strings(&case_json("hpsv2_tiny")["prompts"]);
    tensors.assert_close("grad_input.image_1", gradient_of_image_1(&tensors, &reward, &prompts[1]), GRADIENT);
    // A tensor and a file go the same way.
    let image = &images(&tensors)[1..2];
    let of_tensor = reward.score(to_tensor(image, &device()).unwrap(), &prompts[1..2]).unwrap().into_scalar::<f32>();
    assert_eq!(reward.score_rgb(image, &prompts[1..2], &device()).unwrap().scores, [f64::from(of_tensor)]);

    let old = HpsV2Config { antialias: false, ..config }.load(&device()).unwrap();
    check_preprocessing(&tensors, "preprocess_no_antialias", |image| old.pixel_values(image));
}

/// Neither the published file nor imscore's copy comes with a config.
#[test]
fn golden_hps_v2_needs_no_config() {
    let (case, tensors) = (case_dir("hpsv2_tiny"), load_tensors("hpsv2_tiny"));
    let tokenizer = |name: &str| case.join("tokenizer").join(name);
    let folder = copied(&[(case.join(HPS), HPS), (tokenizer("vocab.json"), "vocab.json"), (tokenizer("merges.txt"), "merges.txt")]);
    let copy = copied(&[(tokenizer("vocab.json"), "tokenizer/vocab.json"), (tokenizer("merges.txt"), "tokenizer/merges.txt")]);
    prefixed(&case.join(HPS), "model.", &copy.path().join("model.safetensors"));
    for weights in [folder.path().join(HPS), folder.path().into(), copy.path().join("model.safetensors"), copy.path().into()] {
        let config = HpsV2Config::new(&weights);
        assert_eq!(RewardConfig::from_weights(&weights).unwrap().name(), "hps_v2");
        check_clip(&tensors, &config.load(&device()).unwrap(), "hpsv2_tiny");
    }
}

#[test]
fn golden_open_clip() {
    let (folder, tensors) = (case_dir("openclip_tiny").join("model"), load_tensors("openclip_tiny"));
    assert_eq!(RewardConfig::from_weights(&folder).unwrap().name(), "clip_score");
    let files = ["open_clip_model.safetensors", "vocab.json", "merges.txt"].map(|name| (folder.join(name), name));
    let text = std::fs::read_to_string(folder.join("open_clip_config.json")).unwrap();
    for mode in ["shortest", "longest", "squash"] {
        let copy = copied(&files);
        std::fs::write(copy.path().join("open_clip_config.json"), text.replace("\"shortest\"", &format!("\"{mode}\""))).unwrap();
        let config = ClipScoreConfig { logit_scale: true, ..ClipScoreConfig::new(copy.path()) };
        let reward = ClipScore::load(&config, &device().autodiff()).unwrap();
        tensors.assert_close("logit_scale_exp", reward.model().logit_scale.val().exp(), FORWARD);
        check_clip(&tensors, &reward, "openclip_tiny");
        check_preprocessing(&tensors, &format!("preprocess_{mode}"), |image| reward.pixel_values(image));
    }
}

#[test]
fn golden_aesthetic() {
    let (case, tensors) = (case_dir("aesthetic_tiny"), load_tensors("aesthetic_tiny"));
    for file in [LAION, "imscore.safetensors"] {
        let config = AestheticConfig::new(case.join(file));
        assert_eq!(RewardConfig::from_weights(&config.weights).unwrap().name(), "aesthetic");
        let reward = Aesthetic::load(&config, &device().autodiff()).unwrap();
        tensors.assert_close("image_embeds", reward.image_embeds(tensors.get("pixel_values")), FORWARD);
        let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
        let scores = reward.score_pixel_values(pixel_values.clone());
        tensors.assert_close("scores", scores.clone().without_autodiff(), FORWARD);
        tensors.assert_close("grad_input.pixel_values", pixel_values.grad(&scores.sum().backward()).unwrap(), GRADIENT);

        let images = images(&tensors);
        check_preprocessing(&tensors, "preprocess", |image| vp_rewards::pixel_values(image, 32, &device()));
        let prompt = [String::new()];
        for image in &images {
            let expected = reward.score_pixel_values(vp_rewards::pixel_values(std::slice::from_ref(image), 32, &device()));
            let got = reward.score_rgb(std::slice::from_ref(image), &prompt, &device()).unwrap().scores;
            assert_eq!(got, [f64::from(expected.into_scalar::<f32>())]);
        }
        let score = reward.score(to_tensor(&images[1..2], &device()).unwrap(), &prompt).unwrap();
        tensors.assert_close("tensor_score_1", score, FORWARD);
        tensors.assert_close("grad_input.image_1", gradient_of_image_1(&tensors, &reward, "of no matter"), GRADIENT);
    }
}

#[test]
fn golden_cycle_reward() {
    let (folder, tensors) = (case_dir("cyclereward_tiny").join("model"), load_tensors("cyclereward_tiny"));
    let prompts = strings(&case_json("cyclereward_tiny")["prompts"]);
    let rows = |name: &str| -> Vec<Vec<u32>> {
        tensors.values(name).chunks(tensors.shape(name)[1]).map(|row| row.iter().map(|value| *value as u32).collect()).collect()
    };
    let network = BlipFiles::find(&folder).unwrap().load(&device()).unwrap().model;
    let text = TextInputs::new(&rows("input_ids"), &rows("attention_mask"), &device());
    tensors.assert_close("features", network.features(tensors.get("pixel_values"), &text), FORWARD);
    for weights in [folder.clone(), folder.join("CycleReward-Combo.pth")] {
        let config = VpScoreConfig::new(&weights);
        assert_eq!(RewardConfig::from_weights(&weights).unwrap().name(), "vp_score");
        let reward = VpScore::load(&config, &device().autodiff()).unwrap();
        let pixel_values = tensors.get::<4>("pixel_values").autodiff().require_grad();
        let rewards = reward.score_pixel_values(pixel_values.clone(), &prompts);
        let found: Vec<f64> = rewards.clone().without_autodiff().into_data().iter::<f64>().collect();
        assert_close_values("rewards", &found, tensors.values("rewards"), FORWARD);
        tensors.assert_close("grad_input.pixel_values", pixel_values.grad(&rewards.sum().backward()).unwrap(), GRADIENT);
    }
}

/// One line each: what it is, and where it belongs; or what is missing, and where to get it.
#[test]
fn a_reward_of_another_kind_is_answered_with_what_it_is() {
    let (hps, laion) = (case_dir("hpsv2_tiny").join(HPS), case_dir("aesthetic_tiny").join(LAION));
    let (blip, clip) = (case_dir("blip_reward_tiny").join("model"), case_dir("clip_tiny").join("model"));
    let answer = |config: RewardConfig, parts: &[&str]| {
        let mut findings = Vec::new();
        config.findings(&mut findings);
        let [finding] = &findings[..] else { panic!("expected one finding: {findings:?}") };
        assert!(!finding.contains('\n') && parts.iter().all(|part| finding.contains(part)), "{finding} lacks one of {parts:?}");
    };
    answer(
        RewardConfig::VpScore(VpScoreConfig::new(&hps)),
        &["reward.vp_score.weights", "open_clip checkpoint (HPS v2)", "[reward.hps_v2]"],
    );
    answer(RewardConfig::VpScore(VpScoreConfig::new(&clip)), &["a CLIP as transformers writes it", "[reward.clip_score]"]);
    answer(RewardConfig::ClipScore(ClipScoreConfig::new(&laion)), &["an aesthetic predictor", "[reward.aesthetic]"]);
    answer(RewardConfig::ClipScore(ClipScoreConfig::new(&blip)), &["a BLIP reward", "[reward.vp_score]"]);
    answer(RewardConfig::HpsV2(HpsV2Config::new(case_dir("openclip_tiny").join("model"))), &["[reward.clip_score]"]);
    answer(RewardConfig::Aesthetic(AestheticConfig::new(&hps)), &["reward.aesthetic.weights", "[reward.hps_v2]"]);
    let clip_of = |clip: &Path| RewardConfig::Aesthetic(AestheticConfig { clip: Some(clip.into()), ..AestheticConfig::new(&laion) });
    answer(clip_of(&blip), &["reward.aesthetic.clip", "a BLIP reward", "openai/clip-vit-large-patch14"]);

    let alone = copied(&[(hps, HPS), (laion, LAION)]);
    answer(
        RewardConfig::from_weights(&alone.path().join(HPS)).unwrap(),
        &["no tokenizer", "vocab.json and merges.txt", "reward.hps_v2.tokenizer"],
    );
    answer(RewardConfig::from_weights(&alone.path().join(LAION)).unwrap(), &["reward.aesthetic.clip", "openai/clip-vit-large-patch14"]);
    let several = RewardConfig::from_weights(alone.path()).unwrap_err().to_string();
    assert!(several.contains("several files of weights") && several.contains(HPS), "{several}");
}

#[test]
fn what_is_no_reward_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (name, what) in [
        ("cross_model.layers.0.0.fn.norm.weight", "is MPS, which is not among the rewards"),
        ("unet.mid_block.attentions.0.lora_A.weight", "a LoRA, not a reward"),
        ("down_blocks.0.resnets.0.conv1.weight", "part of a diffusion model"),
        ("visual_encoder.cls_token", "a BLIP without a reward's head"),
        ("fc.weight", "of a form that no reward has"),
    ] {
        let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| vec![0.0]);
        save_safetensors(&path, [(name, &[1usize][..], values)], &[], SaveType::F32).unwrap();
        let error = RewardConfig::from_weights(&path).unwrap_err().to_string();
        assert!(error.contains(what) && !error.contains('\n'), "{name}: {error}");
    }
    let error = RewardConfig::from_weights(&folder.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("there is no file or folder"), "{error}");
}
