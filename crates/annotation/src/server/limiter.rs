//! Limits requests and tokens per minute to what the server allows, and sends nothing while the server asked for a pause.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Clock;

const MINUTE: Duration = Duration::from_secs(60);

/// A window of one minute that slides: at no time were more requests sent, or tokens used, in the minute before it.
#[derive(Debug)]
pub(crate) struct Limiter {
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sent: VecDeque<Sent>,
    tickets: u64,
    quiet_until: Duration,
}

#[derive(Debug)]
struct Sent {
    ticket: u64,
    at: Duration,
    tokens: u64,
}

impl Limiter {
    pub(crate) fn new(requests_per_minute: Option<u32>, tokens_per_minute: Option<u64>, clock: Clock) -> Self {
        Self { requests_per_minute, tokens_per_minute, clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request of about `tokens` may be sent, and returns its ticket; `None` if `stopped` ended the wait. A request that alone exceeds
    /// the limit is sent after an empty minute.
    pub(crate) fn admit(&self, tokens: u64, stopped: &dyn Fn() -> bool) -> Option<u64> {
        loop {
            let ready = {
                let mut state = self.state();
                let now = self.clock.now();
                while state.sent.front().is_some_and(|sent| sent.at + MINUTE <= now) {
                    state.sent.pop_front();
                }
                let ready = self.ready(&state, tokens);
                if ready <= now && !stopped() {
                    state.tickets += 1;
                    let ticket = state.tickets;
                    state.sent.push_back(Sent { ticket, at: now, tokens });
                    return Some(ticket);
                }
                ready
            };
            if !self.clock.wait_until(ready, stopped) {
                return None;
            }
        }
    }

    /// The earliest time at which one more fits, if nothing else is sent.
    fn ready(&self, state: &State, tokens: u64) -> Duration {
        let mut ready = state.quiet_until;
        let must_leave = |over: usize| over.checked_sub(1).map_or(Duration::ZERO, |last| state.sent[last].at + MINUTE);
        if let Some(limit) = self.requests_per_minute {
            ready = ready.max(must_leave((state.sent.len() + 1).saturating_sub(limit as usize)));
        }
        if let Some(limit) = self.tokens_per_minute {
            let mut used: u64 = state.sent.iter().map(|sent| sent.tokens).sum();
            let mut over = 0;
            while over < state.sent.len() && used + tokens > limit {
                used -= state.sent[over].tokens;
                over += 1;
            }
            ready = ready.max(must_leave(over));
        }
        ready
    }

    /// Replaces the estimate of a request by the tokens that it really took.
    pub(crate) fn correct(&self, ticket: u64, tokens: u64) {
        if let Some(sent) = self.state().sent.iter_mut().find(|sent| sent.ticket == ticket) {
            sent.tokens = tokens;
        }
    }

    /// The server asked for a pause.
    pub(crate) fn quiet_for(&self, pause: Duration) {
        let until = self.clock.now() + pause;
        let mut state = self.state();
        state.quiet_until = state.quiet_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(limiter: &Limiter, tokens: &[u64]) -> Vec<u64> {
        let one = |tokens: &u64| {
            limiter.admit(*tokens, &|| false).unwrap();
            limiter.clock.now().as_secs()
        };
        tokens.iter().map(one).collect()
    }

    #[test]
    fn requests_wait_for_the_oldest_to_leave_the_window() {
        let limiter = Limiter::new(Some(2), None, Clock::simulated());
        assert_eq!(admitted(&limiter, &[1, 1, 1, 1, 1]), [0, 0, 60, 60, 120]);
    }

    #[test]
    fn tokens_are_limited_and_corrected() {
        let limiter = Limiter::new(None, Some(100), Clock::simulated());
        // The last one is over the limit all alone, and waits for an empty window.
        assert_eq!(admitted(&limiter, &[60, 40, 10, 500]), [0, 0, 60, 120]);
        let limiter = Limiter::new(None, Some(100), Clock::simulated());
        let ticket = limiter.admit(90, &|| false).unwrap();
        limiter.correct(ticket, 10);
        assert_eq!(admitted(&limiter, &[90, 1]), [0, 60]);
    }

    #[test]
    fn a_pause_holds_for_everyone_and_can_be_ended() {
        let limiter = Limiter::new(None, None, Clock::simulated());
        limiter.quiet_for(Duration::from_secs(7));
        limiter.quiet_for(Duration::from_secs(3));
        assert_eq!(admitted(&limiter, &[1]), [7]);
        assert_eq!(limiter.admit(1, &|| true), None);
    }
}
