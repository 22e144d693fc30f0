//! `http`: a server of one's own, in any language.
//!
//! ```text
//! POST url   {"images": ["<PNG in base64>", …], "prompts": ["…", …]}   →   {"scores": [0.25, …]}
//! ```
//!
//! Requests are sent as those of the annotator `openai`: again where that may help, several at a time, within limits. A server that stays away
//! is an error, which ends a run after it was saved. `examples/reward_server.py` is such a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_annotation::{ApiKey, Budget, Client, Clock, Connection, Estimate, Failure, Prices, Sending, Unanswered, concurrently};
use vp_core::config::Validate;
use vp_core::waits;
use vp_data::RgbImage;

use crate::pixels::OfPixels;
use crate::{Build, Error, Result, Reward, ScoredRgb, batch_json};

const NAME: &str = "http";

/// The `[reward.http]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Where the batches go.
    pub url: String,
    /// Images per request.
    #[serde(default = "HttpConfig::batch_size")]
    pub batch_size: usize,
    /// Requests in flight.
    #[serde(default = "HttpConfig::concurrency")]
    pub concurrency: usize,
    /// Seconds from sending a request to the end of its reply.
    #[serde(default = "HttpConfig::timeout_s")]
    pub timeout_s: f64,
    /// How often a request is sent at most when the server is busy, failing or unreachable.
    #[serde(default = "HttpConfig::max_attempts")]
    pub max_attempts: u32,
    /// The largest number of requests in any minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// The largest number of requests before the command ends; a run that is resumed counts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// The name of the environment variable that holds a key, if the server wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The header that holds the key; if not set, the key is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_header: Option<String>,
}

impl HttpConfig {
    fn batch_size() -> usize {
        16
    }

    fn concurrency() -> usize {
        4
    }

    fn timeout_s() -> f64 {
        120.0
    }

    fn max_attempts() -> u32 {
        8
    }
}

impl Validate for HttpConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let mut check = |holds: bool, finding: String| {
            if !holds {
                findings.push(format!("reward.{NAME}.{finding}"));
            }
        };
        let (url, seconds) = (&self.url, self.timeout_s);
        let is_url = url.starts_with("http://") || url.starts_with("https://");
        check(is_url, format!("url = {url:?}: expected an address with http:// or https://"));
        check(seconds > 0.0 && seconds <= 86_400.0, format!("timeout_s = {seconds}: expected seconds, above 0"));
        let counts = [
            ("batch_size", Some(self.batch_size as u64)),
            ("concurrency", Some(self.concurrency as u64)),
            ("max_attempts", Some(self.max_attempts.into())),
            ("requests_per_minute", self.requests_per_minute.map(u64::from)),
            ("max_requests", self.max_requests),
        ];
        for (name, value) in counts {
            check(value != Some(0), format!("{name} = 0: expected at least 1"));
        }
        let name_like = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // Whoever put the key here does not want it in a message.
        check(
            self.api_key_env.as_ref().is_none_or(name_like),
            "api_key_env is not the name of an environment variable: put the key into an environment variable, and the variable's name here".into(),
        );
        let is_header = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        check(
            self.key_header.as_ref().is_none_or(is_header),
            "key_header is not the name of a header: expected one such as api-key".into(),
        );
    }
}

impl Build for HttpConfig {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        let key_variable = self.api_key_env.clone().unwrap_or_default();
        let client = Client::new(Connection {
            url: self.url.clone(),
            url_name: "reward.http.url",
            not_found: "check reward.http.url",
            answer: batch_json::SCORES,
            key: if key_variable.is_empty() { ApiKey::default() } else { ApiKey::from_env(&key_variable) },
            key_variable,
            key_header: self.key_header.clone(),
            timeout: Duration::from_secs_f64(self.timeout_s),
            max_attempts: self.max_attempts,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: None,
            prices: Prices::default(),
            clock: Clock::system(),
        });
        let budget = Budget::new(None, self.max_requests, 0.0, 0);
        Ok(Box::new(HttpReward { config: self.clone(), client, budget, sent: AtomicU64::new(0) }))
    }

    fn blank_connection(&mut self) {
        let (batch_size, concurrency, timeout_s, max_attempts) = (1, 1, 1.0, 1);
        *self = Self {
            url: String::new(),
            batch_size,
            concurrency,
            timeout_s,
            max_attempts,
            requests_per_minute: None,
            max_requests: None,
            api_key_env: None,
            key_header: None,
        };
    }
}

/// Scores that a server gives.
pub struct HttpReward {
    config: HttpConfig,
    client: Client,
    budget: Budget,
    /// Batches so far, for the requests' names in the server's log.
    sent: AtomicU64,
}

impl HttpReward {
    fn score_batch(&self, images: &[RgbImage], prompts: &[String], stopped: &dyn Fn() -> bool) -> Result<Vec<f64>> {
        let failed = |reason: String| Error::NoScores { reward: NAME, reason };
        let request_id = &format!("batch-{}", self.sent.fetch_add(1, Ordering::Relaxed));
        let stopped = || stopped() || waits::are_ended();
        let sending = Sending { request_id, estimate: &Estimate::default(), budget: &self.budget, stopped: &stopped, notice: &waits::tell };
        let url = self.client.address();
        let reply = self.client.post(&batch_json::request(images, prompts), &sending).map_err(|failure| match failure {
            Failure::Unanswered(Unanswered::Unreachable(reason)) => failed(reason),
            Failure::Unanswered(Unanswered::Fatal(error)) => failed(error.to_string()),
            Failure::Unanswered(Unanswered::BudgetSpent(limit)) => failed(format!("{url}: {limit}; raise it to go on")),
            Failure::Unanswered(Unanswered::Stopped) => failed(format!("{url}: stopped")),
            Failure::Refuses { said, .. } | Failure::Unanswered(Unanswered::Rejected(said) | Unanswered::SetAside(said)) => {
                failed(format!("{url}: {said}"))
            }
        })?;
        batch_json::scores(&reply.body, images.len()).map_err(|reason| failed(format!("{url}: {reason}")))
    }
}

impl OfPixels for HttpReward {
    const NAME: &'static str = NAME;

    fn score_pixels(&self, images: &[RgbImage], prompts: &[String]) -> Result<ScoredRgb> {
        let size = self.config.batch_size;
        let batches: Vec<(&[RgbImage], &[String])> = images.chunks(size).zip(prompts.chunks(size)).collect();
        let work = |number: usize, stopped: &dyn Fn() -> bool| self.score_batch(batches[number].0, batches[number].1, stopped);
        let scores = concurrently(batches.len(), self.config.concurrency, work)?.concat();
        Ok(ScoredRgb { scores, terms: Vec::new() })
    }
}
