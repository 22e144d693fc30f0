//! What every registered reward promises.

#[path = "contract/server.rs"]
mod server;

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use vp_data::{RgbImage, to_tensor};
use vp_rewards::{Reward, RewardConfig};

fn every_reward() -> Vec<Box<dyn Reward>> {
    every_config().iter().map(|config| config.build(&Device::flex()).unwrap()).collect()
}

/// A configuration of every entry of the table: with the weights of a golden case, if it needs weights.
fn every_config() -> Vec<RewardConfig> {
    let weights = |name: &str| {
        let is_own = |path: &PathBuf| RewardConfig::from_weights(path).is_ok_and(|config| config.name() == name);
        golden_models().into_iter().find(is_own).unwrap_or_else(|| panic!("{name} recognises the weights of no golden case"))
    };
    let config = |entry: &vp_core::Entry| {
        let section = match entry.name {
            "weighted_sum" => format!(
                "[[weighted_sum.terms]]\nweight = 0.5\nmean = 0.3\nstd = 0.2\n[weighted_sum.terms.reward.brightness]\n\
                 [[weighted_sum.terms]]\nweight = 1.0\n[weighted_sum.terms.reward.vp_score]\nweights = '{}'",
                weights("vp_score").display()
            ),
            "http" => format!("[http]\nurl = '{}'\nbatch_size = 2", server::address()),
            // Weights of which no two sums are alike.
            "vlm" => {
                format!("[vlm.openai]\nmodel = 'm'\nbase_url = '{}/v1'\n[vlm.aspects]\naesthetic = 5.1\nfidelity = 26.3", server::address())
            }
            "command" => format!("[command]\nprogram = ['/bin/sh', '-c', '{CHECKSUM}']\nbatch_size = 1"),
            name if RewardConfig::names_with_weights().any(|with_weights| with_weights == name) => {
                format!("[{name}]\nweights = '{}'", weights(name).display())
            }
            name => format!("[{name}]"),
        };
        let origin = format!("the contract of {}", entry.name);
        let config: RewardConfig = vp_core::config::parse(&section, &origin, &[]).unwrap();
        assert_eq!(config.name(), entry.name);
        config
    };
    RewardConfig::ENTRIES.iter().map(config).collect()
}

/// Scores a line by its checksum, as a number below one.
const CHECKSUM: &str = r#"while read -r line; do sum=$(printf %s "$line" | cksum); printf "[0.%09d]\n" $((${sum%% *} % 1000000000)); done"#;

fn golden_models() -> Vec<PathBuf> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let golden = std::env::var_os("VP_REFERENCE_DIR").map_or(default, PathBuf::from);
    let cases = std::fs::read_dir(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
    let in_case = ["model", "HPS_v2.1_compressed.pt", "sac+logos+ava1-l14-linearMSE.pth"];
    let mut models: Vec<PathBuf> = cases.flat_map(|case| in_case.map(|name| case.as_ref().unwrap().path().join(name))).collect();
    models.retain(|model| model.exists());
    models.sort();
    models
}

/// Three different pictures and prompts; neither square nor of any encoder's size.
fn batch(device: &Device) -> (Tensor<4>, Vec<String>) {
    let values: Vec<f32> = (0..3 * 3 * 40 * 56).map(|i| (i as f32 * 0.37 + (i / 5000) as f32).sin() * 0.5 + 0.5).collect();
    let prompts = ["a red fox", "an ocean", ""].map(String::from).to_vec();
    (Tensor::from_data(TensorData::new(values, [3, 3, 40, 56]), device), prompts)
}

#[test]
fn a_batch_scores_as_its_images_do_alone() {
    for reward in every_reward() {
        let (images, prompts) = batch(&Device::flex());
        let scores = reward.score(images.clone(), &prompts).unwrap();
        assert_eq!(scores.dims(), [3], "{}", reward.name());
        assert!(scores.clone().is_finite().all().into_scalar::<bool>(), "{}", reward.name());
        let alone = (0..3).map(|i| reward.score(images.clone().narrow(0, i, 1), &prompts[i..=i]).unwrap()).collect();
        let alone = Tensor::cat(alone, 0);
        scores.clone().into_data().assert_approx_eq::<f32>(&alone.into_data(), Tolerance::relative(1e-4));
        let values: Vec<f32> = scores.into_data().try_into_vec().unwrap();
        assert!(values[0] != values[1], "{} gives different images one score: {values:?}", reward.name());
    }
}

#[test]
fn gradients_reach_images_exactly_when_promised() {
    for reward in every_reward() {
        let (images, prompts) = batch(&Device::flex().autodiff());
        let images = images.require_grad();
        let scores = reward.score(images.clone(), &prompts).unwrap();
        // A reward without a gradient has none to run back through.
        let gradient = scores.is_autodiff().then(|| images.grad(&scores.sum().backward())).flatten();
        assert_eq!(gradient.is_some(), reward.differentiable(), "{}", reward.name());
        if let Some(gradient) = gradient {
            assert!(gradient.clone().is_finite().all().into_scalar::<bool>(), "{}", reward.name());
            for image in 0..3 {
                let largest = gradient.clone().narrow(0, image, 1).abs().max().into_scalar::<f32>();
                assert!(largest > 0.0, "{}: image {image} gets no gradient", reward.name());
            }
        }
    }
}

#[test]
fn nan_in_an_image_is_seen_in_its_score_alone() {
    for reward in every_reward() {
        let (images, prompts) = batch(&Device::flex());
        let broken = Tensor::full([1, 3, 40, 56], f32::NAN, &Device::flex());
        let scores = reward.score(Tensor::cat(vec![images.narrow(0, 0, 2), broken], 0), &prompts).unwrap();
        let scores: Vec<f32> = scores.into_data().try_into_vec().unwrap();
        let nan: Vec<bool> = scores.iter().map(|score| score.is_nan()).collect();
        assert_eq!(nan, [false, false, true], "{}: {scores:?}", reward.name());
    }
}

#[test]
fn what_is_no_batch_is_refused_by_name() {
    for reward in every_reward() {
        let (images, prompts) = batch(&Device::flex());
        for error in [reward.score(images.clone(), &prompts[..2]), reward.score(images.narrow(1, 0, 1), &prompts)] {
            let message = error.unwrap_err().to_string();
            assert!(message.starts_with(&format!("reward {}: ", reward.name())), "{message}");
        }
    }
}

/// Files go by their bytes where a reward's original does: a grey level or so away from the same image as a tensor.
#[test]
fn images_of_different_sizes_score_as_they_do_alone() {
    let device = Device::flex();
    let image = |size: (u32, u32)| RgbImage::from_fn(size.0, size.1, |x, y| [(x * 5) as u8, (y * 3) as u8, (x * y) as u8].into());
    let images = [image((40, 56)), image((90, 33)), image((40, 56))];
    let prompts = ["a red fox", "an ocean", "an ocean"].map(String::from);
    for reward in every_reward() {
        let scored = reward.score_rgb(&images, &prompts, &device).unwrap();
        let scores = &scored.scores;
        assert_eq!(scores.len(), 3, "{}", reward.name());
        for i in 0..3 {
            let alone = reward.score_rgb(&images[i..=i], &prompts[i..=i], &device).unwrap().scores[0];
            let as_tensor: f32 = reward.score(to_tensor(&images[i..=i], &device).unwrap(), &prompts[i..=i]).unwrap().into_scalar();
            assert!((scores[i] - alone).abs() < 1e-4, "{}: {} and {alone}", reward.name(), scores[i]);
            assert!((scores[i] - f64::from(as_tensor)).abs() < 0.1, "{}: {} and {as_tensor}", reward.name(), scores[i]);
        }
        for (term, of_term) in &scored.terms {
            let alone = reward.score_rgb(&images[1..2], &prompts[1..2], &device).unwrap().terms;
            let (_, alone) = alone.iter().find(|(name, _)| name == term).unwrap();
            assert!(of_term.len() == 3 && (of_term[1] - alone[0]).abs() < 1e-4, "{}/{term}: {of_term:?} and {alone:?}", reward.name());
        }
        assert_ne!(scores[0], scores[1], "{}", reward.name());
        assert_eq!(reward.score_rgb(&[], &[], &device).unwrap().scores, [0.0; 0]);
        for error in [reward.score_rgb(&images, &prompts[..2], &device), reward.score_rgb(&[RgbImage::new(0, 4)], &prompts[..1], &device)] {
            let message = error.unwrap_err().to_string();
            assert!(message.starts_with(&format!("reward {}: ", reward.name())), "{message}");
        }
    }
}

#[test]
fn what_is_read_can_be_resolved() {
    for mut config in every_config() {
        let given: Vec<PathBuf> = config.weights();
        let needs_weights = !given.is_empty();
        config.resolve(|path| if given.contains(&path.into()) { Ok(path.join("elsewhere")) } else { Err(path.to_path_buf()) }).unwrap();
        let resolved = config.weights().iter().any(|path| path.ends_with("elsewhere"));
        assert_eq!(resolved, needs_weights, "{}: {given:?} became {:?}", config.name(), config.weights());
    }
}

/// A sum passes on what its terms say.
#[test]
fn vp_score_says_what_it_cuts() {
    for name in ["vp_score", "weighted_sum"] {
        let reward = every_reward().into_iter().find(|reward| reward.name() == name).unwrap();
        let long = format!("{}the end", "a ".repeat(40));
        let warnings = reward.check_prompts(&["a red fox".into(), long]);
        assert_eq!(warnings.len(), 1, "{name}");
        assert_eq!(warnings[0].index, 1, "{name}");
        assert!(warnings[0].message.contains("a the end\""), "{name}: {}", warnings[0].message);
    }
}

#[test]
fn terms_leave_the_scores_as_they_are() {
    for reward in every_reward() {
        let (images, prompts) = batch(&Device::flex());
        let scored = reward.score_with_terms(images.clone(), &prompts).unwrap();
        scored.scores.into_data().assert_eq(&reward.score(images, &prompts).unwrap().into_data(), true);
        assert!(scored.terms.iter().all(|(_, scores)| scores.dims() == [3] && !scores.is_autodiff()), "{}", reward.name());
    }
}

/// Where a score is a weighted sum of terms, the terms are told, and the score rises and falls with the sum: normalised terms then say what it says.
#[test]
fn weighed_terms_make_the_score() {
    let mut sums = Vec::new();
    for reward in every_reward() {
        let weights = reward.term_weights();
        if weights.is_empty() {
            continue;
        }
        let (images, prompts) = batch(&Device::flex());
        let scored = reward.score_with_terms(images, &prompts).unwrap();
        let values = |scores: Tensor<1>| scores.into_data().iter::<f64>().collect::<Vec<f64>>();
        // A sum divides each term by its standard deviation, which is 1 or as in this file's config.
        let std = |name: &str| if reward.name() == "weighted_sum" && name == "brightness" { 0.2 } else { 1.0 };
        let mut sum = vec![0.0; 3];
        for (name, weight) in weights {
            let (_, term) = scored.terms.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{}: no {name}", reward.name()));
            sum.iter_mut().zip(values(term.clone())).for_each(|(sum, term)| *sum += weight / std(&name) * term);
        }
        let scores = values(scored.scores);
        // Between any two images the score differs as the sum does, but for one factor.
        let differences = |of: &[f64]| [of[1] - of[0], of[2] - of[0]];
        let ([a, b], [c, d]) = (differences(&scores), differences(&sum));
        assert!((a * d - b * c).abs() <= 1e-3 * (a.abs() + b.abs()) * (c.abs() + d.abs()), "{}: {scores:?} {sum:?}", reward.name());
        assert!(a * c >= 0.0 && b * d >= 0.0, "{}: {scores:?} {sum:?}", reward.name());
        sums.push(reward.name());
    }
    assert!(["judge", "weighted_sum", "vlm"].iter().all(|name| sums.contains(name)), "{sums:?}");
}

#[test]
fn every_finding_comes_before_a_byte_of_weights() {
    let section = "[vp_score]\nweights = 'no/such/ImageReward'\nvocab = 'no/vocab.txt'\nstd = 0.0\nmean = nan\n";
    let message = vp_core::config::parse::<RewardConfig>(section, "refl.toml", &[]).unwrap_err().to_string();
    for part in
        ["there is no file or folder no/such/ImageReward", "reward.vp_score.vocab", "reward.vp_score.std = 0", "reward.vp_score.mean = NaN"]
    {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let message = vp_core::config::parse::<RewardConfig>("[jpeg_compressibility]\nquality = 0", "x", &[]).unwrap_err().to_string();
    assert!(message.contains("quality = 0: expected 1 to 100"), "{message}");
    let message = vp_core::config::parse::<RewardConfig>("[jpeg_compressibility]\nqualty = 3", "x", &[]).unwrap_err().to_string();
    assert!(message.contains("line 2") && message.contains("did you mean `quality`?"), "{message}");
}
