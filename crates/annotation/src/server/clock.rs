//! Time and waiting: real, or simulated so that tests need not wait for hours.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a wait checks whether it should end early.
const SLICE: Duration = Duration::from_millis(50);

/// A clock whose zero is when it was made. Clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    System(Instant),
    Simulated(Arc<Mutex<Duration>>),
}

impl Clock {
    /// The system's time.
    pub fn system() -> Self {
        Self(Kind::System(Instant::now()))
    }

    /// A time that moves only when somebody waits, and then jumps to the end of the wait.
    pub fn simulated() -> Self {
        Self(Kind::Simulated(Arc::default()))
    }

    /// The time since the clock was made.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::System(start) => start.elapsed(),
            Kind::Simulated(now) => *now.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The time of day, to which HTTP dates are compared. A simulated clock starts at 1970.
    pub fn time_of_day(&self) -> SystemTime {
        match &self.0 {
            Kind::System(_) => SystemTime::now(),
            Kind::Simulated(_) => UNIX_EPOCH + self.now(),
        }
    }

    /// Waits until [`now`](Self::now) says `at`; `false` if `stopped` said so first.
    pub fn wait_until(&self, at: Duration, stopped: &dyn Fn() -> bool) -> bool {
        if let Kind::Simulated(now) = &self.0 {
            let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
            *now = at.max(*now);
            return !stopped();
        }
        loop {
            if stopped() {
                return false;
            }
            match at.saturating_sub(self.now()) {
                Duration::ZERO => return true,
                left => thread::sleep(left.min(SLICE)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_wait_takes_no_time_and_never_turns_the_clock_back() {
        let (clock, never) = (Clock::simulated(), || false);
        assert!(clock.wait_until(Duration::from_secs(3600), &never) && clock.wait_until(Duration::from_secs(60), &never));
        assert_eq!(clock.now(), Duration::from_secs(3600));
        assert_eq!(clock.time_of_day(), UNIX_EPOCH + Duration::from_secs(3600));
    }

    #[test]
    fn a_wait_ends_when_it_is_told_to() {
        let clock = Clock::system();
        assert!(!clock.wait_until(Duration::from_secs(3600), &|| true));
        assert!(clock.wait_until(Duration::from_millis(1), &|| false) && clock.now() >= Duration::from_millis(1));
    }
}
