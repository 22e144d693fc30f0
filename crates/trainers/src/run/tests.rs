use burn::module::Param;
use burn::tensor::DType;
use vp_core::run_dir::RunDir;

use super::*;
use crate::optim::AdamWConfig;
use crate::run::journal::Silent;
use crate::sections::{CheckpointSection, GuardSection, OptimizerSection, RunSection};

#[derive(Module, Debug)]
struct Toy {
    weight: Param<Tensor<1>>,
    other: Param<Tensor<1>>,
}

fn settings(max_skips: u64) -> Settings {
    Settings {
        loss_scaling: false,
        run: RunSection { seed: 0, num_train_steps: 3, workers: 1, reduction: Default::default() },
        trainable: ".".into(),
        micro_batches: 1,
        items: crate::ranks::Items::of("algo.sft.batch_size", 1),
        optimizer: OptimizerSection {
            learning_rate: 0.1,
            gradient_accumulation_steps: 1,
            max_grad_norm: 1.0,
            adamw: AdamWConfig::default(),
        },
        lr_scheduler: Default::default(),
        ema: None,
        checkpoint: CheckpointSection::default(),
        guard: GuardSection { max_skips },
        sentinel: None,
        preview_every: 0,
    }
}

fn toy_run(dir: &Path, max_skips: u64) -> Run<Toy> {
    let device = Device::flex();
    let toy = Toy { weight: Param::from_data([0.0], &device), other: Param::from_data([1.0], &device) };
    let journal = |_| Ok(Journal::new(RunDir::create(dir, "")?, Silent));
    Run::new(toy, settings(max_skips), Start::default(), journal).unwrap()
}

/// √w at w = 0: the loss is finite, its slope is not.
fn poisoned_slope(run: &mut Run<Toy>) -> Result<Option<u64>, Error> {
    let loss = run.model.weight.val().sqrt() + run.model.other.val();
    run.backward(loss, vec![], &|_| None)
}

fn other(run: &Run<Toy>) -> f32 {
    run.model.other.val().into_scalar()
}

#[test]
fn a_gradient_that_is_not_finite_updates_nothing_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = toy_run(&dir.path().join("run"), 0);
    run.next_batch().unwrap();
    let error = poisoned_slope(&mut run).unwrap_err().to_string();
    assert!(error.contains("update 1: the gradient of weight is not finite"), "{error}");
    assert_eq!(other(&run), 1.0);
    let (checkpoint, warnings) = newest_checkpoint(&dir.path().join("run"), &Device::flex());
    assert!(warnings.is_empty());
    assert_eq!(checkpoint.unwrap().state.cursor, Cursor { step: 0, micro: 0 });
}

/// A gradient that overflows with the loss's scale: the same update is made again with half of it, as often as that takes.
#[test]
fn an_update_whose_gradients_overflow_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let toy = Toy { weight: Param::from_data([0.0], &device), other: Param::from_data([1.0], &device) };
    let journal = |_| Ok(Journal::new(RunDir::create(&dir.path().join("run"), "")?, Silent));
    let settings = Settings { loss_scaling: true, ..settings(0) };
    let mut run = Run::new(toy, settings, Start::default(), journal).unwrap();
    // The gradient on its way through f16 is 1.5 times the scale: 98304 is beyond f16, half of that is not.
    let steep = |run: &mut Run<Toy>| {
        let loss = run.model.other.val().cast(DType::F16).cast(DType::F32) * 1.5;
        run.backward(loss, vec![], &|_| None).unwrap()
    };
    assert_eq!(run.next_batch().unwrap(), Some(Batch::first_of_update(0)));
    assert_eq!(steep(&mut run), None);
    assert_eq!((run.updates(), other(&run)), (0, 1.0));
    assert_eq!(run.next_batch().unwrap(), Some(Batch::first_of_update(0)));
    assert_eq!(steep(&mut run), Some(1));
    assert_eq!(run.state.loss_scale.map(|scale| scale.scale()), Some(32768.0));
    assert!(other(&run) < 1.0 && run.state.skipped == 0);
}

#[test]
fn what_may_be_left_out_is_left_out_and_the_next_update_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = toy_run(&dir.path().join("run"), 1);
    run.next_batch().unwrap();
    assert_eq!(poisoned_slope(&mut run).unwrap(), None);
    assert_eq!(run.next_batch().unwrap(), Some(Batch::first_of_update(1)));
    let loss = run.model.other.val().square();
    assert_eq!(run.backward(loss, vec![], &|_| None).unwrap(), Some(2));
    assert!(other(&run) < 1.0);
    run.next_batch().unwrap();
    assert!(poisoned_slope(&mut run).unwrap_err().to_string().contains("(1 updates were left out before)"));
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = toy_run(&dir.path().join("run"), 0);
    run.model.weight = Param::from_data([f32::NAN], &Device::flex().autodiff());
    run.interrupt.flag().store(15, Ordering::Relaxed);
    let error = run.next_batch().unwrap_err().to_string();
    assert!(error.contains("weight in the checkpoint's weights is not finite, so it is not saved"), "{error}");
    assert!(run.checkpoints.list().is_empty());
}
