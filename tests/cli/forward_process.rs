//! AWM, NFT and DGPO: resuming with the policies that they compare with, and knobs that cannot work.

use crate::util::run;

const ALGORITHMS: [&str; 3] = ["awm", "nft", "dgpo"];

/// Two updates per epoch of 32 images, in groups of four.
fn settings(algo: &str) -> Vec<String> {
    let own = [
        "sample.batch_size=16",
        "sample.num_batches_per_epoch=2",
        "sample.images_per_prompt=4",
        "train.batch_size=16",
        "train.num_timesteps=2",
    ];
    let shared = [
        "run.num_train_steps=4",
        "model.size=[32, 32]",
        "scheduler.num_inference_steps=3",
        "preview.num_inference_steps=2",
        "preview.seeds=[1]",
        "reward={ brightness = {} }",
        "watch=[{ saturation = {} }]",
    ];
    own.iter().map(|set| format!("algo.{algo}.{set}")).chain(shared.map(String::from)).collect()
}

/// Stopped in the middle of the second epoch, a run comes back with the images, the policy that began the epoch, and the moving average.
#[test]
fn they_resume_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    for algo in ALGORITHMS {
        let (config, output, settings) = (format!("configs/{algo}/tiny.toml"), dir.path().join(algo), settings(algo));
        let sets = settings.iter().flat_map(|set| ["--set", set]);
        let begin = ["train", "--config", &config, "-o", output.to_str().unwrap(), "--prove-resume"];
        let proof = run(&begin.into_iter().chain(sets).collect::<Vec<_>>()).ok();
        assert!(proof.stdout().contains("stopped before batch 5 of 8"), "{algo}: {}", proof.stdout());
        let metrics = std::fs::read_to_string(output.join("interrupted/metrics.jsonl")).unwrap();
        let kl: Vec<f64> =
            metrics.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kl"].as_f64()).collect();
        // The policy begins as the base model and leaves it.
        assert!(kl.len() == 4 && kl[0] == 0.0 && kl[3] > 0.0, "{algo}: {kl:?}");
    }
}

#[test]
fn knobs_that_cannot_work_are_named() {
    let refused = |algo: &str, extra: &[&str]| {
        let (config, settings) = (format!("configs/{algo}/tiny.toml"), settings(algo));
        let sets = settings.iter().map(String::as_str).chain(extra.iter().copied()).flat_map(|set| ["--set", set]);
        run(&["train", "--config", &config].into_iter().chain(sets).collect::<Vec<_>>()).refused()
    };
    for algo in ALGORITHMS {
        let of = |set: &str| refused(algo, &[&format!("algo.{algo}.{set}")]);
        for (set, expected) in [
            ("sample.images_per_prompt=1", "sample.images_per_prompt is 1, expected at least 2".to_string()),
            ("sample.images_per_prompt=5", format!("which algo.{algo}.sample.images_per_prompt 5 does not divide")),
            ("train.num_timesteps=0", format!("algo.{algo}.train.num_timesteps is 0; expected at least 1")),
            ("train.timestep_range=[0.5, 0.5]", format!("algo.{algo}.train.timestep_range is [0.5, 0.5]")),
            ("train.batch_size=12", "which an update of 12".to_string()),
            ("train.kl_weight=-1.0", format!("algo.{algo}.train.kl_weight is -1")),
            ("advantages.per_reward=true", format!("which algo.{algo}.advantages.per_reward needs")),
        ] {
            let line = of(set);
            assert!(line.contains(&expected), "{algo}, {set}: {line}");
        }
    }
    let line = refused("dgpo", &["algo.dgpo.train.batch_size=2"]);
    assert!(line.contains("expected a multiple of sample.images_per_prompt, 4"), "{line}");
    let line = refused("nft", &["algo.nft.average.most=1.5"]);
    assert!(line.contains("algo.nft.average.most is 1.5; expected a number from 0 to 1"), "{line}");
}
