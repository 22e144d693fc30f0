//! What a tape holds between the forward and the backward pass, in bytes asked of the allocator. Alone in its program, so that nothing else
//! allocates.

mod counting_allocator;

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::GradientCheckpointing::{self, Blocks, None as Kept};
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::lora::{FACTORS, Lora};
use vp_models::parameters::select_trainable;
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_rewards::{Reward, VpScore, VpScoreConfig};

use crate::counting_allocator::HELD;

/// Bytes held by the tape of `forward`, from its end to the backward pass; and those that are left after it.
fn held<const D: usize>(forward: impl Fn() -> Tensor<D>) -> (usize, usize) {
    // What threads allocate once and keep.
    drop(forward().sum().backward());
    let before = HELD.load(Relaxed);
    let output = forward();
    let held = HELD.load(Relaxed) - before;
    drop(output.sum().backward());
    (held, HELD.load(Relaxed).saturating_sub(before))
}

/// Asserts that recomputation brings what `forward` holds down to `most` of it, and leaves nothing behind.
fn assert_less<const D: usize>(what: &str, most: f64, forward: impl Fn(GradientCheckpointing) -> Tensor<D>) {
    let (everything, _) = held(|| forward(Kept));
    let (blocks, left) = held(|| forward(Blocks));
    let share = blocks as f64 / everything as f64;
    println!("{what}: {:.2} MB, recomputed {:.2} MB ({share:.2} of it), {left} bytes left", everything as f64 / 1e6, blocks as f64 / 1e6);
    assert!(share < most, "{what}: {blocks} of {everything} bytes, expected less than {most} of them");
    assert!(left < everything / 50, "{what}: {left} bytes left of {blocks}");
}

#[test]
fn recomputation_holds_less() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let device = Device::flex();
    let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&golden.join("sd15_tiny/pipeline")).unwrap(), &device).unwrap();

    let lora = Lora { rank: 4, alpha: 4.0, targets: Regex::new(r"\.attn[12]\.").unwrap() };
    let (_, adapted) = pipeline.adapted(unet, &lora, &Noise::new(0)).unwrap();
    let (adapted, _) = select_trainable(adapted.train(), &Regex::new(FACTORS).unwrap());
    let width = pipeline.folder.unet_config().cross_attention_dim[0];
    let (sample, states) = (random([2, 4, 32, 32]), random([1, 2, 77, width]).squeeze_dim::<3>(0));
    assert_less("UNet with a LoRA", 0.6, |kept| {
        let mut unet = adapted.denoiser.clone();
        unet.gradient_checkpointing = kept;
        let conditioning = Conditioning { encoder_hidden_states: states.clone(), added: None };
        unet.forward(sample.clone(), &[10.0, 900.0], &conditioning)
    });

    let latents = random([2, 4, 32, 32]).autodiff().require_grad();
    assert_less("frozen decoder", 0.8, |kept| {
        let mut vae = pipeline.vae.clone();
        vae.gradient_checkpointing = kept;
        vae.decode(latents.clone())
    });
    let trained = pipeline.vae.clone().train();
    assert_less("trained decoder", 0.6, |kept| {
        let mut vae = trained.clone();
        vae.gradient_checkpointing = kept;
        vae.decode(latents.clone())
    });

    let config = VpScoreConfig::new(golden.join("blip_reward_tiny/model"));
    let [everything, mut blocks] = [(); 2].map(|()| VpScore::load(&config, &device).unwrap());
    blocks.set_gradient_checkpointing(Blocks);
    let size = blocks.config().image_size;
    let pixel_values = random([2, 3, size, size]).autodiff().require_grad();
    assert_less("reward", 0.6, |kept| {
        let reward = if kept == Blocks { &blocks } else { &everything };
        reward.score_pixel_values(pixel_values.clone(), &["a fox".into(), "a lighthouse at dusk".into()])
    });
}
