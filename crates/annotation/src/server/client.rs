//! Requests to a chat completions server. One that fails is sent again as long as that may help.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{HeaderMap, Uri};

use super::limiter::Limiter;
use super::retry::{Advice, advice, backoff, jitter};
use crate::{ApiKey, Ask, Clock, Error, Estimate, Unanswered, Usage};

/// Larger than any reply; an endless one is cut off here.
const MAX_REPLY_BYTES: u64 = 16 << 20;
/// How much of an error's text is shown, in characters.
const MAX_SAID: usize = 600;

/// USD per million tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prices {
    pub(crate) input: f64,
    pub(crate) output: f64,
}

impl Prices {
    pub(crate) fn usage(&self, input_tokens: u64, output_tokens: u64) -> Usage {
        let usd = (input_tokens as f64 * self.input + output_tokens as f64 * self.output) / 1e6;
        Usage { input_tokens, output_tokens, usd }
    }
}

/// How requests are sent.
pub(crate) struct Connection {
    /// `…/chat/completions`.
    pub(crate) url: String,
    pub(crate) key: ApiKey,
    /// The name of the key's variable, for messages.
    pub(crate) key_variable: String,
    pub(crate) timeout: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) requests_per_minute: Option<u32>,
    pub(crate) tokens_per_minute: Option<u64>,
    pub(crate) prices: Prices,
    pub(crate) clock: Clock,
}

/// Sends requests; shared by all threads.
pub(crate) struct Client {
    connection: Connection,
    agent: Agent,
    limiter: Limiter,
}

/// A reply with status 200: its JSON, without the key if the server quoted it.
pub(crate) struct Reply {
    pub(crate) body: Value,
    pub(crate) usage: Usage,
}

/// Why a request has no reply.
pub(crate) enum Failure {
    /// The server does not know `response_format`.
    NoResponseFormat,
    Unanswered(Unanswered),
}

/// How one attempt ended.
enum Attempt {
    Reply(Reply),
    /// Worth another attempt. `lost` says that the request may have been carried out all the same.
    Retry {
        reason: String,
        advice: Advice,
        lost: bool,
    },
    Failed(Failure),
}

impl Client {
    pub(crate) fn new(connection: Connection) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(connection.timeout))
            // A redirected POST would arrive without its body; the user had better write the new address down.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("visionprefer/", env!("CARGO_PKG_VERSION")));
        if is_local(&connection.url) {
            config = config.proxy(None);
        }
        let limiter = Limiter::new(connection.requests_per_minute, connection.tokens_per_minute, connection.clock.clone());
        Self { agent: config.build().into(), limiter, connection }
    }

    pub(crate) fn prices(&self) -> Prices {
        self.connection.prices
    }

    /// Sends `body` until there is a reply, at most `max_attempts` times. `request_id` names it in the server's log.
    pub(crate) fn post(&self, body: &Value, request_id: &str, estimate: &Estimate, ask: &Ask) -> Result<Reply, Failure> {
        let text = body.to_string();
        let mut last_reason = String::new();
        for attempt in 0..self.connection.max_attempts {
            let advice = match self.attempt(&text, request_id, estimate, ask)? {
                Attempt::Reply(reply) => return Ok(reply),
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Retry { reason, advice, .. } => {
                    last_reason = reason;
                    advice
                }
            };
            if attempt + 1 < self.connection.max_attempts {
                let wait = backoff(attempt, jitter()).max(advice.retry_after.unwrap_or_default());
                if !self.connection.clock.wait_until(self.connection.clock.now() + wait, ask.stopped) {
                    return Err(Failure::Unanswered(Unanswered::Stopped));
                }
            }
        }
        let (attempts, url) = (self.connection.max_attempts, &self.connection.url);
        Err(Failure::Unanswered(Unanswered::Unreachable(format!(
            "{url}: no reply in {attempts} attempt(s), the last one because: {last_reason}"
        ))))
    }

    /// Waits for its turn, asks the budget, sends, and reports the true cost to both.
    fn attempt(&self, text: &str, request_id: &str, estimate: &Estimate, ask: &Ask) -> Result<Attempt, Failure> {
        let tokens = estimate.usage.input_tokens + estimate.usage.output_tokens;
        let ticket = self.limiter.admit(tokens, ask.stopped).ok_or(Failure::Unanswered(Unanswered::Stopped))?;
        let reserved = ask.budget.reserve(estimate.usage.usd).map_err(|reason| Failure::Unanswered(Unanswered::BudgetSpent(reason)))?;
        let attempt = self.send(text, request_id, estimate);
        let (usd, tokens) = match &attempt {
            Attempt::Reply(reply) => (Some(reply.usage.usd), reply.usage.input_tokens + reply.usage.output_tokens),
            Attempt::Retry { lost: true, .. } => (None, tokens),
            Attempt::Retry { .. } | Attempt::Failed(_) => (Some(0.0), 0),
        };
        ask.budget.close(reserved, usd);
        self.limiter.correct(ticket, tokens);
        if let Attempt::Retry { advice, .. } = &attempt
            && let Some(pause) = advice.retry_after.max(advice.exhausted_for)
        {
            // Whoever sent it: the server's allowance is one for all threads.
            self.limiter.quiet_for(pause);
        }
        Ok(attempt)
    }

    fn send(&self, text: &str, request_id: &str, estimate: &Estimate) -> Attempt {
        let mut request = self.agent.post(&self.connection.url).content_type("application/json").header("x-client-request-id", request_id);
        if let Some(bearer) = self.connection.key.bearer() {
            request = request.header("authorization", bearer);
        }
        let mut response = match request.send(text) {
            Ok(response) => response,
            Err(error) => return self.no_response(&error),
        };
        let status = response.status().as_u16();
        let advice = advised(response.headers(), &self.connection.clock);
        let body = match response.body_mut().with_config().limit(MAX_REPLY_BYTES).lossy_utf8(true).read_to_string() {
            Ok(body) => self.connection.key.redact(&body),
            Err(error) => {
                let reason = format!("the reply ({status}) broke off: {}", self.connection.key.redact(&error.to_string()));
                return Attempt::Retry { reason, advice, lost: status == 200 };
            }
        };
        match status {
            200 => match self.reply(&body, estimate) {
                Some(reply) => {
                    if let Some(pause) = advice.exhausted_for {
                        self.limiter.quiet_for(pause);
                    }
                    Attempt::Reply(reply)
                }
                None => Attempt::Retry { reason: format!("the reply is not a JSON object: {}", said(&body)), advice, lost: true },
            },
            _ => self.refused(status, &body, advice),
        }
    }

    fn reply(&self, body: &str, estimate: &Estimate) -> Option<Reply> {
        let body: Value = serde_json::from_str(body).ok().filter(Value::is_object)?;
        let tokens = |name: &str| body["usage"][name].as_u64();
        let usage = match (tokens("prompt_tokens"), tokens("completion_tokens")) {
            (Some(input), Some(output)) => self.connection.prices.usage(input, output),
            // Servers need not count.
            _ => estimate.usage,
        };
        Some(Reply { body, usage })
    }

    fn no_response(&self, error: &ureq::Error) -> Attempt {
        let text = self.connection.key.redact(&error.to_string());
        let advice_to_user = match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                "check base_url, and that the key holds no characters that a header cannot"
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                "the connection is not secure; check base_url (a local server is often http://, not https://) and the machine's clock"
            }
            _ => {
                let lost = match error {
                    ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => false,
                    ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
                    _ => true,
                };
                return Attempt::Retry { reason: text, advice: Advice::default(), lost };
            }
        };
        self.fatal("no connection".into(), text, advice_to_user.into())
    }

    /// What a status other than 200 means for this request and for all others.
    fn refused(&self, status: u16, body: &str, advice: Advice) -> Attempt {
        let said = said(body);
        let named = format!("{status} {}", meaning(status));
        if status == 402 || (status == 429 && body.contains("insufficient_quota")) {
            return self.fatal(named, said, "the account has no credit left, and waiting does not help".into());
        }
        match status {
            408 | 409 | 425 | 429 | 500..=599 => Attempt::Retry { reason: format!("{named}: {said}"), advice, lost: false },
            300..=399 => self.fatal(named, said, "the server sends requests elsewhere; put the address it names into base_url".into()),
            401 | 403 => {
                let variable = &self.connection.key_variable;
                let key = if self.connection.key.is_set() { "is set, but refused" } else { "is not set" };
                let advice = format!(
                    "check the key: the environment variable {variable} (config api_key_env) {key}; check too that it may use this model"
                );
                self.fatal(named, said, advice)
            }
            404 => self.fatal(named, said, "check base_url (most servers want it to end in /v1) and model".into()),
            400 | 422 if names_response_format(body) => Attempt::Failed(Failure::NoResponseFormat),
            _ => Attempt::Failed(Failure::Unanswered(Unanswered::Rejected(format!(
                "{named}: {said} (if it dislikes a member of the request, list it under omit, or set another with extra)"
            )))),
        }
    }

    fn fatal(&self, status: String, said: String, advice: String) -> Attempt {
        Attempt::Failed(Failure::Unanswered(Unanswered::Fatal(Error::Refused { url: self.connection.url.clone(), status, said, advice })))
    }
}

fn advised(headers: &HeaderMap, clock: &Clock) -> Advice {
    advice(|name| headers.get(name)?.to_str().ok(), clock.time_of_day())
}

/// OpenAI names the parameter; others only speak of it, or of its kind.
fn names_response_format(body: &str) -> bool {
    ["response_format", "json_schema", "response format"].iter().any(|name| body.contains(name))
}

/// The message in an error's body, on one line and cut short.
fn said(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let message = [&value["error"]["message"], &value["message"], &value["error"], &value["detail"]];
    let text = message.iter().find_map(|message| message.as_str()).unwrap_or(body);
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SAID) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None if line.is_empty() => "(it said nothing)".into(),
        None => line,
    }
}

fn meaning(status: u16) -> &'static str {
    ureq::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("unknown status")
}

/// A server on this machine is never behind a proxy.
fn is_local(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_on_one_line() {
        assert_eq!(said(r#"{"error": {"message": "no\n such   model"}}"#), "no such model");
        assert_eq!(said(r#"{"error": "model not found"}"#), "model not found");
        assert_eq!(said("<html>\nBad gateway"), "<html> Bad gateway");
        assert_eq!(said(""), "(it said nothing)");
        assert_eq!(said(&"ä".repeat(5000)).chars().count(), MAX_SAID + 1);
    }

    #[test]
    fn local_servers_are_known() {
        for url in ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/"] {
            assert!(is_local(url), "{url}");
        }
        assert!(!is_local("https://api.openai.com/v1") && !is_local("http://localhost.example.org/v1"));
    }
}
