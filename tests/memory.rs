//! What a tape holds between the forward and the backward pass, and the most that the autoencoder takes at once, in bytes asked of the
//! allocator; and that `vp_models::footprint` foretells both. Alone in its program, so that nothing else allocates: one test, which measures everything in turn.

mod counting_allocator;

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use burn::module::{Module, ParamId};
use burn::tensor::{Device, Distribution, Tensor};
use regex::Regex;
use vp_core::noise::Noise;
use vp_models::GradientCheckpointing::{self, Blocks, None as Kept};
use vp_models::NumberFormat::{Bf16, F32};
use vp_models::blip::BlipReward;
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::footprint::{Counted, Engine, Ledger, Traced, counted};
use vp_models::lora::{FACTORS, Lora};
use vp_models::parameters::select_trainable;
use vp_models::pipeline::{ModelFolder, Pipeline, load_vae};
use vp_models::vae::{Splitting, Tiling};
use vp_rewards::{Reward, VpScore, VpScoreConfig};

use crate::counting_allocator::{HELD, PEAK};

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

/// The most bytes that `run` takes at once, beyond those that are held before it.
fn peak<T>(run: impl Fn() -> T) -> usize {
    // What threads allocate once and keep.
    drop(run());
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    drop(run());
    PEAK.load(Relaxed) - before
}

#[test]
fn recomputation_holds_less_and_parts_of_images_take_less() {
    // On one thread: the buffers that operations keep for one another depend on how many run at a time, and are no part of a tape.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    recomputation_holds_less();
    parts_of_images_take_less();
    what_is_foretold_is_what_is_held();
}

/// Asserts that a trace tells what `forward` holds, and the most that it takes with its backward pass. `inputs` makes what lies in the ledger
/// before, `trace` goes forward.
fn assert_foretold<const D: usize>(
    what: &str,
    trained: HashSet<ParamId>,
    forward: impl Fn() -> Tensor<D>,
    inputs: impl Fn(&Ledger) -> Vec<Traced>,
    trace: impl Fn(&Ledger, &[Traced]) -> Traced,
) {
    let ledger = Ledger::on_the_tape(Engine::Cpu, Rc::new(trained));
    let given = inputs(&ledger);
    let before = ledger.held();
    let output = trace(&ledger, &given);
    let told_held = ledger.held() - before;
    let loss = ledger.loss(std::slice::from_ref(&output));
    drop(output);
    ledger.backward(loss);
    let told_peak = ledger.peak() - before;

    let (found_held, _) = held(&forward);
    let found_peak = peak(|| drop(forward().sum().backward()));
    for (part, told, found, most) in [("held", told_held, found_held, 0.1), ("peak", told_peak, found_peak, 0.15)] {
        let off = told as f64 / found as f64 - 1.0;
        println!("{what}, {part}: foretold {:.3} MB, found {:.3} MB ({:+.1} %)", told as f64 / 1e6, found as f64 / 1e6, 100.0 * off);
        assert!(off.abs() < most, "{what}, {part}: {told} bytes foretold, {found} found");
    }
}

fn conditioned(states: &Tensor<3>) -> Conditioning {
    Conditioning { encoder_hidden_states: states.clone(), added: None }
}

/// For the networks of a ReFL step, kept in full and recomputed.
fn what_is_foretold_is_what_is_held() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let device = Device::flex();
    let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let (pipeline, unet) = Pipeline::load(ModelFolder::open(&root.join("checkpoints/shapes")).unwrap(), &device).unwrap();
    let lora = Lora { rank: 4, alpha: 4.0, targets: Regex::new(r"\.attn[12]\.").unwrap() };
    let ids = |parameters: Vec<Counted>| parameters.iter().map(Counted::id).collect::<HashSet<ParamId>>();
    let [(adapted, factors), (in_bf16, factors_in_bf16)] = [F32, Bf16].map(|format| {
        let (_, adapted) = pipeline.adapted(unet.clone().in_format(format, None).unwrap(), &lora, &Noise::new(0)).unwrap();
        let (adapted, _) = select_trainable(adapted.train(), &Regex::new(FACTORS).unwrap());
        let factors = ids(counted(&adapted).into_iter().filter(|parameter| parameter.name.contains(".lora.")).collect());
        (adapted, factors)
    });
    let vae_in_bf16 = pipeline.vae.clone().in_format(Bf16, None).unwrap();
    let (whole, decoder) = (unet.train(), pipeline.vae.clone().train());
    let (of_whole, of_decoder) = (ids(counted(&whole)), ids(counted(&decoder)));

    let width = pipeline.folder.unet_config().cross_attention_dim[0];
    let (sample, states) = (random([4, 4, 32, 32]), random([1, 4, 20, width]).squeeze_dim::<3>(0));
    let latents = random([4, 4, 32, 32]).autodiff().require_grad();
    for kept in [Kept, Blocks] {
        for (what, of, ids) in [("UNet with a LoRA", &adapted.denoiser, &factors), ("whole UNet", &whole, &of_whole)] {
            let mut unet = of.clone();
            unet.gradient_checkpointing = kept;
            assert_foretold(
                &format!("{what}, {kept:?}"),
                ids.clone(),
                || unet.forward(sample.clone(), &[10.0, 300.0, 600.0, 900.0], &conditioned(&states)),
                |ledger| vec![ledger.constant(&[4, 4, 32, 32], F32), ledger.constant(&[4, 20, width], F32)],
                |ledger, given| unet.trace(ledger, given[0].clone(), given[1].clone(), F32),
            );
        }
        for (what, of, ids) in [("frozen decoder", &pipeline.vae, HashSet::new()), ("trained decoder", &decoder, of_decoder.clone())] {
            let mut vae = of.clone();
            vae.gradient_checkpointing = kept;
            assert_foretold(
                &format!("{what}, {kept:?}"),
                ids,
                || vae.decode_to_images(latents.clone()),
                |ledger| vec![ledger.leaf(&[4, 4, 32, 32], F32)],
                |ledger, given| vae.trace_decode(ledger, given[0].clone(), F32),
            );
        }
        let (mut unet, mut vae) = (in_bf16.denoiser.clone(), vae_in_bf16.clone());
        (unet.gradient_checkpointing, vae.gradient_checkpointing) = (kept, kept);
        assert_foretold(
            &format!("UNet in bf16 with a LoRA, {kept:?}"),
            factors_in_bf16.clone(),
            || unet.forward(sample.clone(), &[10.0, 300.0, 600.0, 900.0], &conditioned(&states)),
            |ledger| vec![ledger.constant(&[4, 4, 32, 32], F32), ledger.constant(&[4, 20, width], F32)],
            |ledger, given| unet.trace(ledger, given[0].clone(), given[1].clone(), Bf16),
        );
        assert_foretold(
            &format!("frozen decoder in bf16, {kept:?}"),
            HashSet::new(),
            || vae.decode_to_images(latents.clone()),
            |ledger| vec![ledger.leaf(&[4, 4, 32, 32], F32)],
            |ledger, given| vae.trace_decode(ledger, given[0].clone(), Bf16),
        );
        // Enough images that the bookkeeping of a tape's nodes, which is not counted, is little beside what they hold.
        const IMAGES: usize = 32;
        let mut reward = VpScore::load(&VpScoreConfig::new(root.join("checkpoints/shapes/vp-score")), &device).unwrap();
        reward.set_gradient_checkpointing(kept);
        let config = reward.config().clone();
        let size = config.image_size;
        let prompts = vec!["a red circle".to_string(); IMAGES];
        let pixel_values = random([IMAGES, 3, size, size]).autodiff().require_grad();
        let mut network = BlipReward::new(&config, &device);
        network.gradient_checkpointing = kept;
        assert_foretold(
            &format!("reward, {kept:?}"),
            HashSet::new(),
            || reward.score_pixel_values(pixel_values.clone(), &prompts),
            |ledger| vec![ledger.leaf(&[IMAGES, 3, size, size], F32)],
            |ledger, given| network.trace(ledger, given[0].clone(), config.max_length, F32),
        );
    }
}

/// Off the tape: an image of 256 pixels in tiles of 64, and four images one at a time.
fn parts_of_images_take_less() {
    let device = Device::flex();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/shapes");
    let whole = load_vae(&ModelFolder::open(&folder).unwrap(), &device).unwrap();
    let with = |tiling, slicing| {
        let mut vae = whole.clone();
        vae.splitting = Splitting { tiling, slicing };
        vae
    };
    let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let (tiled, sliced) = (with(Tiling::Pixels(64), false), with(Tiling::Off, true));
    let (latents, images) = (random([1, 4, 64, 64]), random([1, 3, 256, 256]));
    let (four_latents, four_images) = (random([4, 4, 16, 16]), random([4, 3, 64, 64]));
    let cases = [
        ("decoding in tiles", 0.25, peak(|| whole.decode(latents.clone())), peak(|| tiled.decode(latents.clone()))),
        ("encoding in tiles", 0.25, peak(|| whole.moments(images.clone())), peak(|| tiled.moments(images.clone()))),
        ("decoding in slices", 0.4, peak(|| whole.decode(four_latents.clone())), peak(|| sliced.decode(four_latents.clone()))),
        ("encoding in slices", 0.4, peak(|| whole.moments(four_images.clone())), peak(|| sliced.moments(four_images.clone()))),
    ];
    for (what, most, at_once, in_parts) in cases {
        let share = in_parts as f64 / at_once as f64;
        println!("{what}: {:.2} MB in place of {:.2} MB ({share:.2} of it)", in_parts as f64 / 1e6, at_once as f64 / 1e6);
        assert!(share < most, "{what}: {in_parts} of {at_once} bytes, expected less than {most} of them");
    }
}

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
