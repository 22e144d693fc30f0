//! The laws of DRaFT-LV's renoised samples.

use super::*;
use crate::direct::draft::{LOW_VARIANCE, renoised_sample};
use crate::direct::through_sampling::mean_reward_loss;

/// DRaFT-LV: √ᾱ x_0 + √(1 − ᾱ) ε, one step from there, the gradient of that step alone.
#[test]
fn a_renoised_sample_is_the_last_step_from_noised_latents() {
    for name in ["ddim", "euler"] {
        let config = SchedulerConfig { set_alpha_to_one: Some(true), clip_sample: Some(false), ..config_of(name) };
        let mut scheduler = build_scheduler(&config, None, STEPS, 0.0).unwrap();
        let alpha = scheduler.training_level(scheduler.timesteps()[STEPS - 1]).signal.powi(2);
        let (toy, guidance, original, epsilon) = (toy(SLOPE, PULL), guidance(), 0.6, -1.5);
        let noise = |step| constant(step_noise(step));
        let chain = TapedChain::new(&toy, &mut *scheduler, &guidance, &noise);
        // On the tape, as sampled latents are; the gradient must not follow their graph.
        let tracked = toy.slope.val().reshape([1, 1, 1, 1]) - constant(SLOPE) + constant(original);
        let renoised = renoised_sample(&chain, &tracked, constant(epsilon));
        let seen = alpha.sqrt() * original + (1.0 - alpha).sqrt() * epsilon;
        let text = guided_text();
        let (factor, m) = ((1.0 - alpha).sqrt() / alpha.sqrt(), SLOPE * seen + PULL * text);
        assert_close(scalar(&renoised), seen / alpha.sqrt() - factor * m, name);
        let gradient = of_toy(&toy, renoised.sum());
        assert_close(gradient[0], -factor * seen, name);
        assert_close(gradient[1], -factor * text, name);
    }
}

#[test]
fn draft_lv_renoises_the_drawn_latents_with_noise_of_its_own() {
    let (toy, guidance, mut scheduler) = (toy(SLOPE, PULL), guidance(), ddim(0.0));
    let draft = Draft { num_lv_samples: 2, ..Draft::default() };
    let start = StartingPoint { prompts: vec![String::new()], guidance, latents: constant(UNIT), draw: draw(3), device: Device::flex() };
    let mut chain = start.chain(&toy, &mut *scheduler);
    let latents = chain.run(start.latents.clone(), &draft.calls(STEPS, start.draw), End::Sample);
    let further = draft.further_samples(&chain, &latents, &start);
    assert_eq!(further.len(), 2);
    for (sample, further) in further.iter().enumerate() {
        let epsilon = start.normal(LOW_VARIANCE, sample);
        assert_eq!(scalar(further), scalar(&renoised_sample(&chain, &latents, epsilon)));
    }
    assert!(scalar(&further[0]) != scalar(&further[1]) && scalar(&further[0]) != scalar(&latents));
    assert!(Draft::default().further_samples(&chain, &latents, &start).is_empty());
}

#[test]
fn draft_lvs_loss_and_gradient_are_the_means_of_its_parts() {
    let parts = |num_lv_samples: usize, only: Option<usize>| {
        let (toy, guidance, mut scheduler) = (toy(SLOPE, PULL), guidance(), ddim(0.0));
        let noise = |step| constant(step_noise(step));
        let mut chain = TapedChain::new(&toy, &mut *scheduler, &guidance, &noise);
        let latents = chain.run(constant(UNIT), &Draft::default().calls(STEPS, draw(1)), End::Sample);
        // The reward is curved, so that a mean of samples is not a sample of the mean.
        let reward = |latents: Tensor<4>| latents.powi_scalar(2).reshape([1]);
        let renoised = |sample: usize| reward(renoised_sample(&chain, &latents, constant([0.4, -0.9][sample])));
        let rewards = match only {
            None => std::iter::once(reward(latents.clone())).chain((0..num_lv_samples).map(renoised)).collect(),
            Some(sample) => vec![renoised(sample)],
        };
        let loss = mean_reward_loss(rewards, 2.0);
        let [slope, pull] = of_toy(&toy, loss.clone());
        [values(&loss)[0], slope, pull]
    };
    let (together, alone) = (parts(2, None), [parts(0, None), parts(0, Some(0)), parts(0, Some(1))]);
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    for (index, together) in together.into_iter().enumerate() {
        assert_close(together, alone.iter().map(|part| part[index]).sum::<f64>() / 3.0, "the mean");
    }
}
