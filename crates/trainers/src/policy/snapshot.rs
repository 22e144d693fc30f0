//! Policies of the past: the trained parameters as they once were, kept in a run's memory, so that a resumed run has them too.
//!
//! A LoRA's factors are a few megabytes, so that keeping them and running the network once more takes far less memory than keeping what the
//! network said of every step. flow_grpo's GRPO-Guard and GARDO keep a second adapter in the same way.

use burn::module::Module;
use vp_models::parameters::{map_parameters_where, trainable_parameters};

use crate::run::Run;

/// Puts the trained parameters of the current policy into the run's memory under `name`, in place of earlier ones. Returns the policy, off
/// the tape.
pub(crate) fn keep<M: Module>(run: &mut Run<M>, name: &str) -> M {
    run.memory.retain(|key, _| !is_of(name, key));
    let parameters = trainable_parameters(&run.model).into_iter();
    run.memory.extend(parameters.map(|parameter| (key(name, &parameter.name), parameter.values)));
    run.model.valid()
}

/// The policy that was [kept](keep) under `name`, off the tape; `None` if none was.
pub(crate) fn recall<M: Module>(run: &Run<M>, name: &str) -> Option<M> {
    let kept = |parameter: &str| run.memory.get(&key(name, parameter));
    run.memory.keys().any(|key| is_of(name, key)).then(|| {
        map_parameters_where(
            run.model.valid(),
            |parameter, _| kept(parameter).is_some(),
            |parameter, _, values| kept(parameter).cloned().map_or_else(|| values.clone(), |kept| kept.to_device(&values.device())),
        )
    })
}

/// Moves the policy that was [kept](keep) under `name` towards the current one: `kept ← d · kept + (1 − d) · current`.
pub(crate) fn follow<M: Module>(run: &mut Run<M>, name: &str, d: f64) {
    for parameter in trainable_parameters(&run.model) {
        if let Some(kept) = run.memory.get_mut(&key(name, &parameter.name)) {
            *kept = kept.clone() * d + parameter.values * (1.0 - d);
        }
    }
}

fn key(name: &str, parameter: &str) -> String {
    format!("{name}.{parameter}")
}

fn is_of(name: &str, key: &str) -> bool {
    key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::{Device, Tensor};
    use vp_core::run_dir::RunDir;
    use vp_models::parameters::map_parameters;

    use super::*;
    use crate::config::{AlgorithmConfig, TrainConfig};
    use crate::run::Start;
    use crate::run::journal::{Journal, Silent};
    use crate::sections::Settings;

    #[derive(Module, Debug)]
    struct Toy {
        trained: Param<Tensor<1>>,
        frozen: Param<Tensor<1>>,
    }

    fn values(toy: &Toy) -> [Vec<f32>; 2] {
        [&toy.trained, &toy.frozen].map(|parameter| parameter.val().into_data().iter::<f32>().collect())
    }

    /// A run that trains one of two parameters.
    fn toy(dir: &tempfile::TempDir) -> Run<Toy> {
        let device = Device::flex();
        let toy = Toy { trained: Param::from_data([1.0, 2.0], &device), frozen: Param::from_data([7.0], &device) };
        let settings = TrainConfig::with_steps(AlgorithmConfig::Ddpo(Default::default()), 10).settings();
        let settings = Settings { trainable: "^trained$".into(), ..settings };
        let journal = |_| Ok(Journal::new(RunDir::create(&dir.path().join("run"), "")?, Silent));
        Run::new(toy, settings, Start::default(), journal).unwrap()
    }

    #[test]
    fn a_policy_comes_back_as_it_was_and_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = toy(&dir);
        let move_on = |run: &mut Run<Toy>| {
            run.model = map_parameters(run.model.clone(), |_, trains, values| if trains { values + 1.0 } else { values });
        };
        assert!(recall(&run, "old").is_none());
        let kept = keep(&mut run, "old");
        move_on(&mut run);
        let back = recall(&run, "old").unwrap();
        for toy in [&kept, &back] {
            assert_eq!(values(toy), [vec![1.0, 2.0], vec![7.0]]);
            assert!(!toy.trained.val().is_autodiff());
        }
        assert_eq!(values(&run.model), [vec![2.0, 3.0], vec![7.0]]);
        // Only what trains is kept, and once; another name is another policy.
        assert_eq!(run.memory.keys().collect::<Vec<_>>(), ["old.trained"]);
        keep(&mut run, "older");
        move_on(&mut run);
        keep(&mut run, "old");
        assert_eq!(values(&recall(&run, "older").unwrap())[0], [2.0, 3.0]);
        assert_eq!(values(&recall(&run, "old").unwrap())[0], [3.0, 4.0]);
        assert_eq!(run.memory.len(), 2);
    }

    #[test]
    fn a_kept_policy_follows_the_current_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = toy(&dir);
        keep(&mut run, "average");
        run.model = map_parameters(run.model.clone(), |_, trains, values| if trains { values + 4.0 } else { values });
        follow(&mut run, "average", 0.75);
        assert_eq!(values(&recall(&run, "average").unwrap()), [vec![2.0, 3.0], vec![7.0]]);
        assert_eq!(values(&run.model)[0], [5.0, 6.0]);
    }
}
