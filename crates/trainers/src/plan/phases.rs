//! What comes and goes in each phase of a run.

use vp_models::GradientCheckpointing;
use vp_models::NumberFormat::F32;
use vp_models::footprint::{Engine, Ledger, Traced};
use vp_models::pipeline::LoadedDenoiser;
use vp_models::vae::{Splitting, Tiling};

use super::demand::Demand;
use super::networks::Laid;
use super::{AtOnce, PROCESS, Phase, side_by_side};
use crate::algorithm::{Driver, Kept};
use crate::config::TrainConfig;
use crate::policy::rollout::Rollout;
use crate::regularizer::RegularizerConfig;

/// The phases of a run, each with the most that comes and goes in it. `fixed` is what stays.
pub(super) fn all(config: &TrainConfig, laid: &Laid, demand: &Demand, fixed: u64) -> Vec<(Phase, u64)> {
    // While weights are read, nothing but the rewards and the process is there beside them.
    let rewards: u64 = laid.reward.iter().chain(&laid.watched).map(|network| network.bytes()).sum();
    let process = if laid.engine == Engine::Cpu { PROCESS } else { 0 };
    let at_load = (laid.read_bytes() + rewards + process).saturating_sub(fixed);
    let beside = side_by_side(config, laid.engine, config.settings().micro_batches);
    let [rollout, decode] = drawing(config, laid, demand);
    vec![
        (Phase::Load, at_load),
        (Phase::Rollout, rollout),
        (Phase::Update, beside * update(config, laid, demand, config.model.gradient_checkpointing).peak),
        (Phase::Decode, decode),
    ]
}

/// The most that drawing, and that decoding and scoring take: the images of training, and those of the preview.
fn drawing(config: &TrainConfig, laid: &Laid, demand: &Demand) -> [u64; 2] {
    let preview = config.preview.as_ref().map(|preview| AtOnce::new("seeds", preview.seeds.len(), preview.guidance_scale));
    // What is differentiated through a reward is decoded on the tape.
    let decoded = demand.drawn.filter(|_| demand.decoded == 0);
    let batch = |rows: AtOnce| rollout(laid, rows) + outputs(config, laid, rows.images);
    let of_drawn = demand.drawn.map_or(0, |rows| side_by_side(config, laid.engine, usize::MAX) * batch(rows));
    // Workers draw and decode a prompt each.
    let prompts = config.preview.as_ref().map_or(0, |preview| side_by_side(config, laid.engine, preview.prompts.len()));
    let of_preview = preview.map_or(0, |rows| prompts * rollout(laid, rows));
    let scored = |rows: AtOnce| decode_and_score(laid, rows.images, laid.vae.splitting);
    [of_drawn.max(of_preview), decoded.map_or(0, scored).max(preview.map_or(0, |rows| prompts * scored(rows)))]
}

/// The network's outputs of a whole chain, which are kept until the densities of its steps are computed.
fn outputs(config: &TrainConfig, laid: &Laid, images: usize) -> u64 {
    let Driver::Reward(algorithm) = config.algo.chosen().driver() else { return 0 };
    match algorithm.kept() {
        Kept::Trajectories(_) => Rollout::bytes(images, laid.latent_shape, config.num_inference_steps()),
        Kept::Nothing | Kept::Images(_) => 0,
    }
}

/// One step of a chain off the tape, or the encoding of its prompts before, whichever takes more.
fn rollout(laid: &Laid, rows: AtOnce) -> u64 {
    let ledger = Ledger::off_the_tape(laid.engine);
    let latents = latents(&ledger, laid, rows.images);
    laid.text.iter().for_each(|encoder| drop(encoder.trace(&ledger, rows.of_network(), laid.formats[0])));
    drop(predicted(&ledger, laid, &laid.model.denoiser, latents.clone(), rows, false));
    ledger.peak()
}

/// Decodes and scores images off the tape.
fn decode_and_score(laid: &Laid, images: usize, splitting: Splitting) -> u64 {
    let ledger = Ledger::off_the_tape(laid.engine);
    let mut vae = laid.vae.clone();
    vae.splitting = splitting;
    let decoded = vae.trace_decode(&ledger, latents(&ledger, laid, images), laid.formats[1]);
    for network in laid.reward.iter().chain(&laid.watched) {
        drop(network.trace(&ledger, decoded.clone(), GradientCheckpointing::None));
    }
    ledger.peak()
}

/// Decoding and scoring of one image off the tape: whole, and in tiles.
pub(super) fn decoding(laid: &Laid) -> [u64; 2] {
    [Tiling::Off, Tiling::Own].map(|tiling| decode_and_score(laid, 1, Splitting { tiling, ..laid.vae.splitting }))
}

/// Multiplications and additions of one image, forward: a call of the network without guidance, decoding, and the reward that is trained on.
pub(super) fn operations(laid: &Laid) -> [u64; 3] {
    let counted = |work: &dyn Fn(&Ledger)| {
        let ledger = Ledger::off_the_tape(laid.engine);
        work(&ledger);
        ledger.operations()
    };
    let one = AtOnce::new("", 1, 1.0);
    let [height, width] = laid.size;
    [
        counted(&|ledger| drop(predicted(ledger, laid, &laid.model.denoiser, latents(ledger, laid, 1), one, false))),
        counted(&|ledger| drop(laid.vae.trace_decode(ledger, latents(ledger, laid, 1), laid.formats[1]))),
        counted(&|ledger| {
            for network in &laid.reward {
                let image = ledger.constant(&[1, 3, height, width], F32);
                drop(network.trace(ledger, image, GradientCheckpointing::None));
            }
        }),
    ]
}

/// An update of one micro-batch.
pub(super) struct Update {
    /// The most that it takes, forward and back.
    pub peak: u64,
    /// What the tape holds between the forward and the backward pass.
    pub tape: u64,
    /// The largest tile of attention scores.
    pub scores: u64,
}

/// An update whose tape keeps this much.
pub(super) fn update(config: &TrainConfig, laid: &Laid, demand: &Demand, kept: GradientCheckpointing) -> Update {
    let ledger = laid.ledger();
    let (unet, vae) = laid.keeping(kept);
    let rows = demand.taped;
    let mut losses = Vec::new();

    // 1. The calls of the network, one after the other.
    let mut output = latents(&ledger, laid, rows.images);
    for _ in 0..demand.calls {
        output = predicted(&ledger, laid, &unet, output, rows, true);
    }

    // 2. Decoded and scored, if the gradient comes from there; the rewards that are watched look at the same images.
    let mut images = None;
    for _ in 0..demand.decoded {
        let decoded = vae.trace_decode(&ledger, output.clone(), laid.formats[1]);
        for _ in 0..demand.scored {
            losses.extend(laid.reward.iter().map(|network| network.trace(&ledger, decoded.clone(), kept)));
        }
        if laid.reward.is_empty() {
            losses.push(decoded.clone());
        }
        ledger.constantly(|| {
            let looked_at = || decoded.clone().without_gradient();
            laid.watched.iter().for_each(|network| drop(network.trace(&ledger, looked_at(), GradientCheckpointing::None)));
        });
        images = Some(decoded);
    }
    if demand.decoded == 0 {
        losses.push(output);
    }

    // 3. Another policy's prediction, off the tape; and the regulariser, on the same tape.
    if demand.compared {
        ledger.constantly(|| drop(predicted(&ledger, laid, &unet, latents(&ledger, laid, rows.images), rows, false)));
    }
    losses.extend(regularization(config, &ledger, laid, (&unet, rows)));

    // 4. Back.
    let tape = ledger.held();
    let loss = ledger.loss(&losses);
    drop(losses);
    ledger.backward(loss);
    drop(images);
    Update { peak: ledger.peak(), tape, scores: ledger.scores() }
}

/// What the regulariser puts on the tape: a prediction without guidance, after the base model's off the tape or the images' encoding.
fn regularization(config: &TrainConfig, ledger: &Ledger, laid: &Laid, (unet, rows): (&LoadedDenoiser, AtOnce)) -> Option<Traced> {
    let Driver::Reward(algorithm) = config.algo.chosen().driver() else { return None };
    let rows = AtOnce { guided: false, ..rows };
    match config.regularizer.clone().unwrap_or_else(|| algorithm.default_regularizer()) {
        RegularizerConfig::None(_) => return None,
        RegularizerConfig::BasePredictions(_) => {
            ledger.constantly(|| drop(predicted(ledger, laid, unet, latents(ledger, laid, rows.images), rows, false)));
        }
        RegularizerConfig::Images(_) => {
            ledger.constantly(|| {
                let images = ledger.constant(&[rows.images, 3, laid.size[0], laid.size[1]], F32);
                drop(laid.vae.trace_moments(ledger, images, laid.formats[1]));
            });
        }
    }
    Some(predicted(ledger, laid, unet, latents(ledger, laid, rows.images), rows, true))
}

fn latents(ledger: &Ledger, laid: &Laid, images: usize) -> Traced {
    let [c, h, w] = laid.latent_shape;
    ledger.constant(&[images, c, h, w], F32)
}

/// The network's prediction for latents, with guidance if the rows have it; text encoders that train are called for it on the tape.
fn predicted(ledger: &Ledger, laid: &Laid, unet: &LoadedDenoiser, latents: Traced, rows: AtOnce, on_tape: bool) -> Traced {
    let shape = latents.dims().to_vec();
    let sample = if rows.guided { ledger.cat(vec![latents.clone(), latents], 0) } else { latents };
    let [tokens, width] = laid.tokens;
    let mut text = ledger.constant(&[rows.of_network(), tokens, width], F32);
    for encoder in laid.model.text_encoders.values().filter(|_| on_tape) {
        let states = encoder.trace(ledger, rows.of_network(), laid.formats[0]);
        // Several encoders' states lie side by side.
        text = ledger.cat_as(vec![states, text], &[rows.of_network(), tokens, width]);
    }
    let output = unet.trace(ledger, sample, text, laid.formats[0]);
    if !rows.guided {
        return output;
    }
    let [of_text, of_nothing] = [(); 2].map(|()| ledger.part(&output, &shape));
    drop(output);
    let apart = ledger.scale(ledger.resized(of_text, &shape));
    ledger.add(apart, of_nothing)
}
