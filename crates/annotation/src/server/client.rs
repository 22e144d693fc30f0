//! Requests to a server that speaks JSON over HTTP. One that fails is sent again as long as that may help.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{HeaderMap, Uri};

use super::limiter::Limiter;
use super::reported_error::{reported_error, said, status_of};
use super::retry::{Advice, LONGEST_ASKED, advice, backoff, jitter, spelt_out};
use crate::{ApiKey, Budget, Clock, Error, Estimate, Unanswered, Usage};

/// Larger than any reply; an endless one is cut off here.
const MAX_REPLY_BYTES: u64 = 16 << 20;
/// Longer waits are announced.
const SILENT_WAIT: Duration = Duration::from_secs(10);

/// USD per million tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prices {
    /// Of what is sent.
    pub input: f64,
    /// Of what is received.
    pub output: f64,
}

impl Prices {
    pub(crate) fn usage(&self, input_tokens: u64, output_tokens: u64) -> Usage {
        let usd = (input_tokens as f64 * self.input + output_tokens as f64 * self.output) / 1e6;
        Usage { input_tokens, output_tokens, usd }
    }
}

/// How requests are sent.
pub struct Connection {
    /// The whole address, with its query.
    pub url: String,
    /// The config key that the address was read from, for messages.
    pub url_name: &'static str,
    /// What to check when nothing is there (404).
    pub not_found: &'static str,
    /// The member that every reply has; one without it is an error that came with status 200.
    pub answer: &'static str,
    /// Sent with every request, if there is one.
    pub key: ApiKey,
    /// The name of the key's variable, for messages.
    pub key_variable: String,
    /// The header that holds the bare key; `None` sends `Authorization: Bearer`.
    pub key_header: Option<String>,
    /// From sending a request to the end of its reply.
    pub timeout: Duration,
    /// How often a request is sent at most.
    pub max_attempts: u32,
    /// The largest number of requests in any minute.
    pub requests_per_minute: Option<u32>,
    /// The largest number of tokens, sent and received, in any minute.
    pub tokens_per_minute: Option<u64>,
    /// What tokens cost.
    pub prices: Prices,
    /// Measures waiting times.
    pub clock: Clock,
}

impl Connection {
    /// The address for messages. A query and a user's name and password are left out, for they may be secret.
    fn shown_url(&self) -> String {
        let (path, query) = self.url.split_once('?').map_or((&*self.url, ""), |(path, _)| (path, "?…"));
        let (scheme, rest) = path.split_once("://").map_or(("", path), |(scheme, rest)| (scheme, rest));
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = host.rsplit_once('@').map_or(host.to_string(), |(_, host)| format!("…@{host}"));
        let separator = if scheme.is_empty() { "" } else { "://" };
        format!("{scheme}{separator}{host}{path}{query}")
    }
}

/// The circumstances of a request.
#[derive(Clone, Copy)]
pub struct Sending<'a> {
    /// Names it in the server's log.
    pub request_id: &'a str,
    /// What it will probably cost.
    pub estimate: &'a Estimate,
    /// Every attempt is announced here.
    pub budget: &'a Budget,
    /// Tells whether to give up waiting; called often.
    pub stopped: &'a dyn Fn() -> bool,
    /// Long waits are announced here.
    pub notice: &'a dyn Fn(&str),
}

/// Sends requests; shared by all threads.
pub struct Client {
    connection: Connection,
    agent: Agent,
    limiter: Limiter,
    /// Until when everybody knows that there is a wait.
    announced_until: Mutex<Duration>,
}

/// A reply with status 200.
pub struct Reply {
    /// Its JSON, without the key if the server quoted it.
    pub body: Value,
    /// Its cost: as the server counts, or as estimated.
    pub usage: Usage,
}

/// A member of a request that some servers refuse, and that can be left out or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedMember {
    /// `response_format`, which the server does not know.
    ResponseFormat,
    /// `max_tokens`, in whose place the server wants `max_completion_tokens`.
    MaxTokens,
}

/// Why a request has no reply.
pub enum Failure {
    /// The server does not take a member of the request.
    Refuses {
        /// Which.
        member: RefusedMember,
        /// The status and what the server said.
        said: String,
    },
    /// Everything else.
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
    /// A client that has sent nothing yet.
    pub fn new(connection: Connection) -> Self {
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
        Self { agent: config.build().into(), limiter, connection, announced_until: Mutex::default() }
    }

    /// Where requests go, for messages: a query is left out, for it may hold a token.
    pub fn address(&self) -> String {
        self.connection.shown_url()
    }

    /// What tokens cost.
    pub fn prices(&self) -> Prices {
        self.connection.prices
    }

    /// Sends `body` until there is a reply, at most `max_attempts` times.
    ///
    /// # Errors
    /// [`Failure`] says whether another request, another time or nobody at all would fare better.
    pub fn post(&self, body: &Value, sending: &Sending) -> Result<Reply, Failure> {
        let text = body.to_string();
        let mut last_reason = String::new();
        for attempt in 0..self.connection.max_attempts {
            let advice = match self.attempt(&text, sending)? {
                Attempt::Reply(reply) => return Ok(reply),
                Attempt::Failed(failure) => return Err(failure),
                Attempt::Retry { reason, advice, .. } => {
                    if let Some(wait) = advice.longest().filter(|wait| *wait > LONGEST_ASKED) {
                        return Err(self.asked_too_much(wait, &reason));
                    }
                    last_reason = reason;
                    advice
                }
            };
            if attempt + 1 < self.connection.max_attempts {
                let wait = backoff(attempt, jitter()).max(advice.retry_after.unwrap_or_default());
                self.announce(wait.max(advice.exhausted_for.unwrap_or_default()), &last_reason, sending);
                if !self.connection.clock.wait_until(self.connection.clock.now() + wait, sending.stopped) {
                    return Err(Failure::Unanswered(Unanswered::Stopped));
                }
            }
        }
        let (attempts, url) = (self.connection.max_attempts, self.connection.shown_url());
        Err(Failure::Unanswered(Unanswered::Unreachable(format!(
            "{url}: no reply in {attempts} attempt(s), the last one because: {last_reason}"
        ))))
    }

    /// The question stays open: nobody wants to watch a program that does nothing for hours.
    fn asked_too_much(&self, wait: Duration, reason: &str) -> Failure {
        let (url, wait, longest) = (self.connection.shown_url(), spelt_out(wait), spelt_out(LONGEST_ASKED));
        Failure::Unanswered(Unanswered::Unreachable(format!(
            "{url}: the server asks to wait {wait}, and more than {longest} are not waited for; run the same command again then ({reason})"
        )))
    }

    /// Says once, whichever thread it is, that nothing is sent for a while.
    fn announce(&self, wait: Duration, reason: &str, sending: &Sending) {
        let now = self.connection.clock.now();
        let mut until = self.announced_until.lock().unwrap_or_else(PoisonError::into_inner);
        if wait > SILENT_WAIT && *until <= now {
            *until = now + wait;
            (sending.notice)(&format!("{}: waiting {} ({reason})", self.connection.shown_url(), spelt_out(wait)));
        }
    }

    /// Waits for its turn, asks the budget, sends, and reports the true cost to both.
    fn attempt(&self, text: &str, sending: &Sending) -> Result<Attempt, Failure> {
        let Sending { estimate, budget, stopped, .. } = *sending;
        let tokens = estimate.usage.input_tokens + estimate.usage.output_tokens;
        let ticket = self.limiter.admit(tokens, stopped).ok_or(Failure::Unanswered(Unanswered::Stopped))?;
        let reserved = budget.reserve(estimate.usage.usd).map_err(|reason| Failure::Unanswered(Unanswered::BudgetSpent(reason)))?;
        let attempt = self.send(text, sending);
        let (usd, tokens) = match &attempt {
            Attempt::Reply(reply) => (Some(reply.usage.usd), reply.usage.input_tokens + reply.usage.output_tokens),
            Attempt::Retry { lost: true, .. } => (None, tokens),
            Attempt::Retry { .. } | Attempt::Failed(_) => (Some(0.0), 0),
        };
        budget.close(reserved, usd);
        self.limiter.correct(ticket, tokens);
        if let Attempt::Retry { advice, .. } = &attempt
            && let Some(pause) = advice.longest().filter(|pause| *pause <= LONGEST_ASKED)
        {
            // Whoever sent it: the server's allowance is one for all threads.
            self.limiter.quiet_for(pause);
        }
        Ok(attempt)
    }

    fn send(&self, text: &str, sending: &Sending) -> Attempt {
        let request = self.agent.post(&self.connection.url).content_type("application/json");
        let mut request = request.header("x-client-request-id", sending.request_id);
        if let Some((name, value)) = self.connection.key.header(self.connection.key_header.as_deref()) {
            request = request.header(name, value);
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
                let reason = format!("the reply ({status}) broke off: {}", self.redacted(&error.to_string()));
                return Attempt::Retry { reason, advice, lost: status == 200 };
            }
        };
        match status {
            200 => self.accepted(&body, advice, sending),
            _ => self.refused(status, &body, advice),
        }
    }

    /// What a body with status 200 means: a reply, or an error all the same.
    fn accepted(&self, body: &str, advice: Advice, sending: &Sending) -> Attempt {
        let value: Value = match serde_json::from_str(body) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => value,
            _ => return Attempt::Retry { reason: format!("the reply is not a JSON object: {}", said(body)), advice, lost: true },
        };
        let answer = self.connection.answer;
        if let Some(error) = reported_error(&value, answer) {
            return match status_of(error) {
                // As if the status had said so.
                Some(status) => self.refused(status, &error.to_string(), advice),
                None => self.unreached(&format!("an error in a reply with status 200: {}", said(&error.to_string()))),
            };
        }
        if value.is_object() && value[answer].is_null() && value["usage"].is_null() {
            return self.unreached(&format!("the reply has no {answer:?}: {}", said(body)));
        }
        // If the allowance comes back later than that, the server says so again to whoever asks next.
        if let Some(pause) = advice.exhausted_for.filter(|pause| *pause <= LONGEST_ASKED) {
            self.limiter.quiet_for(pause);
            self.announce(pause, "the server's allowance is used up", sending);
        }
        let tokens = |name: &str| value["usage"][name].as_u64();
        let usage = match (tokens("prompt_tokens"), tokens("completion_tokens")) {
            (Some(input), Some(output)) => self.connection.prices.usage(input, output),
            // Servers need not count.
            _ => sending.estimate.usage,
        };
        Attempt::Reply(Reply { body: value, usage })
    }

    /// `text` without the key and the address's query.
    fn redacted(&self, text: &str) -> String {
        self.connection.key.redact(text).replace(&self.connection.url, &self.connection.shown_url())
    }

    /// Nobody knows whether another attempt would help: the question stays open.
    fn unreached(&self, reason: &str) -> Attempt {
        let reason = format!("{}: {reason}", self.connection.shown_url());
        Attempt::Failed(Failure::Unanswered(Unanswered::Unreachable(reason)))
    }

    fn no_response(&self, error: &ureq::Error) -> Attempt {
        let (text, url) = (self.redacted(&error.to_string()), self.connection.url_name);
        let advice_to_user = match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                format!("check {url}, and that the key holds no characters that a header cannot")
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
                format!("the connection is not secure; check {url} (a local server is often http://, not https://) and the machine's clock")
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
        self.fatal("no connection".into(), text, advice_to_user)
    }

    /// What a status other than 200 means for this request and for all others.
    fn refused(&self, status: u16, body: &str, advice: Advice) -> Attempt {
        let said = said(body);
        let named = format!("{status} {}", meaning(status));
        if status == 402 || (status == 429 && body.contains("insufficient_quota")) {
            return self.fatal(named, said, "the account has no credit left, and waiting does not help".into());
        }
        let member = refused_member(body).filter(|_| matches!(status, 400 | 422));
        if let Some(member) = member {
            return Attempt::Failed(Failure::Refuses { member, said: format!("{named}: {said}") });
        }
        match status {
            408 | 409 | 425 | 429 | 500..=599 => Attempt::Retry { reason: format!("{named}: {said}"), advice, lost: false },
            300..=399 => {
                let url = self.connection.url_name;
                self.fatal(named, said, format!("the server sends requests elsewhere; put the address it names into {url}"))
            }
            401 | 403 => self.fatal(named, said, self.check_the_key()),
            404 => self.fatal(named, said, self.connection.not_found.into()),
            _ => Attempt::Failed(Failure::Unanswered(Unanswered::Rejected(format!("{named}: {said}")))),
        }
    }

    fn check_the_key(&self) -> String {
        let Connection { key_variable, key, key_header, .. } = &self.connection;
        let state = if key.is_set() { "is set, but refused" } else { "is not set" };
        let header = match key_header {
            Some(name) => format!("it is sent in the header {name}"),
            None => "it is sent as Authorization: Bearer; key_header names another header, such as api-key for Azure".into(),
        };
        format!(
            "check the key: the environment variable {key_variable} (config api_key_env) {state}; {header}; check too that it may use this model"
        )
    }

    fn fatal(&self, status: String, said: String, advice: String) -> Attempt {
        let url = self.connection.shown_url();
        Attempt::Failed(Failure::Unanswered(Unanswered::Fatal(Error::Refused { url, status, said, advice })))
    }
}

fn advised(headers: &HeaderMap, clock: &Clock) -> Advice {
    advice(|name| headers.get(name)?.to_str().ok(), clock.time_of_day())
}

/// OpenAI names the parameter, and the one to send in its place; others only speak of it, or of its kind.
fn refused_member(body: &str) -> Option<RefusedMember> {
    if body.contains("max_completion_tokens") {
        return Some(RefusedMember::MaxTokens);
    }
    let names_format = ["response_format", "json_schema", "response format"].iter().any(|name| body.contains(name));
    names_format.then_some(RefusedMember::ResponseFormat)
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
    fn local_servers_are_known() {
        for url in ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/"] {
            assert!(is_local(url), "{url}");
        }
        assert!(!is_local("https://api.openai.com/v1") && !is_local("http://localhost.example.org/v1"));
    }
}
