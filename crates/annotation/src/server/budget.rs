//! How much may be spent, and how much has been.
//!
//! A request is counted before it is sent: with its estimated price while it is in flight, with its true price once the reply tells it. So the
//! limits hold with any number of requests in flight, as far as the estimates are right. Estimates are never below the most expensive reply so far.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The limits of an output folder, and what was spent there, including by earlier runs.
#[derive(Debug)]
pub struct Budget {
    max_usd: Option<f64>,
    max_requests: Option<u64>,
    spent: Mutex<Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    usd: f64,
    requests: u64,
    usd_in_flight: f64,
    dearest: f64,
}

/// A request in flight. It must be closed by [`Budget::close`].
#[derive(Debug)]
#[must_use]
pub struct Reserved {
    usd: f64,
}

impl Budget {
    /// A budget of which `usd` and `requests` are already spent. A limit of `None` never ends a run.
    pub fn new(max_usd: Option<f64>, max_requests: Option<u64>, usd: f64, requests: u64) -> Self {
        Self { max_usd, max_requests, spent: Mutex::new(Spent { usd, requests, ..Spent::default() }) }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a request of about `usd`.
    ///
    /// # Errors
    /// When a limit would be exceeded, a sentence that says which. Then the request must not be sent.
    pub fn reserve(&self, usd: f64) -> Result<Reserved, String> {
        let mut spent = self.spent();
        let usd = usd.max(spent.dearest);
        if let Some(max) = self.max_requests
            && spent.requests >= max
        {
            return Err(format!("max_requests = {max}: {} were sent", spent.requests));
        }
        if let Some(max) = self.max_usd
            && spent.usd + spent.usd_in_flight + usd > max
        {
            let (paid, flight) = (spent.usd, spent.usd_in_flight);
            return Err(format!(
                "max_usd = {max}: {paid:.4} USD are spent, {flight:.4} USD are in flight, and the next request costs about {usd:.4} USD"
            ));
        }
        spent.requests += 1;
        spent.usd_in_flight += usd;
        Ok(Reserved { usd })
    }

    /// The request ended. `usd` is its cost according to the reply, 0 if it was refused. `None` is for a lost request, which may be billed or not:
    /// it counts as estimated.
    pub fn close(&self, reserved: Reserved, usd: Option<f64>) {
        let mut spent = self.spent();
        spent.usd_in_flight -= reserved.usd;
        spent.usd += usd.unwrap_or(reserved.usd);
        spent.dearest = spent.dearest.max(usd.unwrap_or(0.0));
    }

    /// Requests announced so far, including earlier runs.
    pub fn requests(&self) -> u64 {
        self.spent().requests
    }

    /// How many USD are left, if there is a limit.
    pub fn usd_left(&self) -> Option<f64> {
        Some((self.max_usd? - self.spent().usd).max(0.0))
    }

    /// How many requests are left, if there is a limit.
    pub fn requests_left(&self) -> Option<u64> {
        Some(self.max_requests?.saturating_sub(self.spent().requests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_counts() {
        let budget = Budget::new(Some(1.0), None, 0.25, 3);
        let first = budget.reserve(0.5).unwrap();
        assert!(budget.reserve(0.5).unwrap_err().contains("0.5000 USD are in flight"));
        budget.close(first, Some(0.125));
        assert_eq!((budget.usd_left(), budget.requests()), (Some(0.625), 4));
        let lost = budget.reserve(0.5).unwrap();
        budget.close(lost, None);
        // 0.125 is left, and that is what the dearest reply cost.
        let last = budget.reserve(0.001).unwrap();
        assert!(budget.reserve(0.001).is_err());
        budget.close(last, Some(0.0));
        assert_eq!(budget.usd_left(), Some(0.125));
    }

    #[test]
    fn requests_are_counted_as_they_are_sent() {
        let budget = Budget::new(None, Some(5), 9.0, 4);
        budget.close(budget.reserve(100.0).unwrap(), Some(0.0));
        assert!(budget.reserve(0.0).unwrap_err().contains("max_requests = 5: 5 were sent"));
        assert_eq!((budget.requests_left(), budget.usd_left()), (Some(0), None));
    }
}
