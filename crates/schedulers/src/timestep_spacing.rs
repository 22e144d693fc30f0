//! Which of the T training timesteps the N sampling steps visit: table 2 of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed"
//! (2305.08891).
//!
//! Follows `set_timesteps` of diffusers' schedulers, rounding included: NumPy rounds halves to even, and `np.arange` accumulates its own rounding error.

use crate::{
    class::SchedulerClass,
    config::{SchedulerConfig, TimestepSpacing},
    error::{Result, SchedulerError},
};

impl SchedulerConfig {
    pub(crate) fn timestep_spacing(&self, class: &SchedulerClass) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or(class.timestep_spacing)
    }

    pub(crate) fn steps_offset(&self) -> usize {
        self.steps_offset.unwrap_or(0)
    }

    /// The N timesteps, largest first, of the samplers that end at the first training timestep. Whole numbers, except that classes that
    /// step along σ leave `linspace` unrounded.
    pub(crate) fn spaced_timesteps(&self, class: &SchedulerClass, num_inference_steps: usize) -> Vec<f64> {
        let (train, n) = (self.num_train_timesteps(), num_inference_steps);
        match self.timestep_spacing(class) {
            TimestepSpacing::Linspace => {
                let points = linspace(0.0, (train - 1) as f64, n).into_iter().rev();
                if class.steps_along_sigmas { points.collect() } else { points.map(f64::round_ties_even).collect() }
            }
            TimestepSpacing::Leading => leading(train / n, 0..n, self.steps_offset()),
            TimestepSpacing::Trailing => trailing(train, train as f64 / n as f64, n),
        }
    }

    /// The N timesteps, largest first, of the high-order multi-step samplers: N + 1 points without the last, over the first `last_timestep` of training.
    pub(crate) fn spaced_timesteps_of_intervals(
        &self,
        class: &SchedulerClass,
        num_inference_steps: usize,
        last_timestep: usize,
    ) -> Result<Vec<f64>> {
        let (train, n) = (self.num_train_timesteps(), num_inference_steps);
        let timesteps = match self.timestep_spacing(class) {
            TimestepSpacing::Linspace => {
                linspace(0.0, (last_timestep - 1) as f64, n + 1)[1..].iter().rev().map(|t| t.round_ties_even()).collect()
            }
            TimestepSpacing::Leading => leading(last_timestep / (n + 1), 1..n + 1, self.steps_offset()),
            TimestepSpacing::Trailing => trailing(last_timestep, train as f64 / n as f64, n),
        };
        if timesteps.windows(2).any(|pair| pair[0] <= pair[1]) {
            return Err(SchedulerError::NumInferenceSteps {
                got: n,
                reason: format!("{} would visit a timestep twice; use fewer steps (the schedule has {last_timestep})", class.class_name),
            });
        }
        Ok(timesteps)
    }
}

/// The numbers of `np.linspace`, whose last point is exactly `stop`; one point is `start`.
pub(crate) fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / (count.max(2) - 1) as f64;
    (0..count).map(|i| if i > 0 && i + 1 == count { stop } else { start + i as f64 * step }).collect()
}

fn leading(step_ratio: usize, multiples: std::ops::Range<usize>, steps_offset: usize) -> Vec<f64> {
    multiples.rev().map(|i| (i * step_ratio + steps_offset) as f64).collect()
}

/// `np.arange(first, 0, -step_ratio).round() - 1`, never more than `count` points.
fn trailing(first: usize, step_ratio: f64, count: usize) -> Vec<f64> {
    let first = first as f64;
    // NumPy takes the increment from the first two points it made, rounding error and all; ties are decided by it.
    let increment = (first - step_ratio) - first;
    let points = (first / step_ratio).ceil().min(count as f64) as usize;
    (0..points).map(|i| (first + i as f64 * increment).round_ties_even() - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ddim, ddpm, dpm_solver_multistep, euler};

    fn timesteps(class: &SchedulerClass, spacing: TimestepSpacing, offset: usize, n: usize) -> Vec<f64> {
        SchedulerConfig { timestep_spacing: Some(spacing), steps_offset: Some(offset), ..SchedulerConfig::new(class) }
            .spaced_timesteps(class, n)
    }

    #[test]
    fn leading_is_stable_diffusions_981_to_1() {
        let t = timesteps(&ddim::CLASS, TimestepSpacing::Leading, 1, 50);
        assert_eq!((t.len(), t[0], t[1], t[48], t[49]), (50, 981.0, 961.0, 21.0, 1.0));
        let t = timesteps(&ddpm::CLASS, TimestepSpacing::Leading, 0, 40);
        assert_eq!((t.len(), t[0], t[38], t[39]), (40, 975.0, 25.0, 0.0));
    }

    #[test]
    fn trailing_starts_at_the_very_end_and_linspace_touches_both() {
        assert_eq!(timesteps(&ddim::CLASS, TimestepSpacing::Trailing, 0, 4), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(timesteps(&ddim::CLASS, TimestepSpacing::Linspace, 0, 4), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(timesteps(&ddim::CLASS, TimestepSpacing::Linspace, 0, 3), [999.0, 500.0, 0.0]);
        assert_eq!(timesteps(&euler::CLASS, TimestepSpacing::Linspace, 0, 3), [999.0, 499.5, 0.0]);
        // 1000 / 61 makes np.arange overshoot by one point.
        assert_eq!(timesteps(&ddim::CLASS, TimestepSpacing::Trailing, 0, 61).len(), 61);
    }

    #[test]
    fn intervals_drop_the_last_point() {
        let class = &dpm_solver_multistep::CLASS;
        let config =
            SchedulerConfig { timestep_spacing: Some(TimestepSpacing::Leading), steps_offset: Some(1), ..SchedulerConfig::new(class) };
        assert_eq!(
            config.spaced_timesteps_of_intervals(class, 10, 1000).unwrap(),
            [901., 811., 721., 631., 541., 451., 361., 271., 181., 91.]
        );
        let error = config.spaced_timesteps_of_intervals(class, 1000, 1000).unwrap_err().to_string();
        assert!(error.contains("num_inference_steps = 1000"), "{error}");
    }
}
