//! `openai`: a multimodal language model behind `POST {base_url}/chat/completions`.
//!
//! ```text
//! 1. ask          instructions, then "Image k:" before each image as a data URL, then the prompt
//! 2. repair       once: the model is shown its own reply and what is wrong with it
//! 3. ask afresh   at most `reasks` times
//! 4. set aside    with what was wrong
//! ```
//!
//! A refusal, an empty reply or one that was cut off is not shown to the model again; the question is asked afresh. A server that rejects
//! `response_format` is asked without it from then on, and one that wants `max_completion_tokens` in place of `max_tokens` gets that.
//! Everything is in one user message, because some chat templates have no system role.

mod content;
mod reply;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vp_core::config::Validate;
use vp_data::Ratings;

use self::content::Content;
use crate::picture::fitted;
use crate::server::client::{Client, Connection, Failure, Prices, RefusedMember, Reply, Sending};
use crate::{
    Annotator, Answered, ApiKey, Ask, Build, BuildContext, Choice, Estimate, Picture, Polished, Result, Task, Unanswered, Unusable, rubric,
};

const NAME: &str = "openai";
/// Seeds of questions that are asked afresh lie this far apart, so that they never equal those of repeats.
const SEED_STRIDE: u64 = 1_000_003;
/// The newer name of `max_tokens`; OpenAI's reasoning models take no other.
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";

/// The `[annotator.openai]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenAiConfig {
    /// The model's name, as the server knows it.
    pub model: String,
    /// The address without `/chat/completions`; it may have a query, such as Azure's `?api-version=…`.
    #[serde(default = "OpenAiConfig::base_url")]
    pub base_url: String,
    /// The name of the environment variable that holds the key; never the key itself. The variable may be missing if the server wants no key.
    #[serde(default = "OpenAiConfig::api_key_env")]
    pub api_key_env: String,
    /// The header that holds the key, such as Azure's `api-key`; if not set, the key is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_header: Option<String>,
    /// Sampling temperature. 0 asks for the most probable answer; use more with repeats.
    #[serde(default)]
    pub temperature: f64,
    /// The longest reply, in tokens; sent as `max_completion_tokens` to a server that asks for it.
    #[serde(default = "OpenAiConfig::max_tokens")]
    pub max_tokens: u64,
    /// If set, this plus the repeat's number is sent as the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How closely the model looks; not every server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// Larger images are shrunk to this longer side, in pixels, before they are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_side: Option<u32>,
    /// Members of the request that this server does not take: `temperature`, `max_tokens`, `seed`, `response_format`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omit: Vec<String>,
    /// Further members of the request, such as `top_p` or `reasoning_effort`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
    /// How often a question is asked afresh after unusable replies.
    #[serde(default = "OpenAiConfig::reasks")]
    pub reasks: u32,
    /// Seconds from sending a request to the end of its reply.
    #[serde(default = "OpenAiConfig::timeout_s")]
    pub timeout_s: f64,
    /// How often a request is sent at most when the server is busy, failing or unreachable.
    #[serde(default = "OpenAiConfig::max_attempts")]
    pub max_attempts: u32,
    /// The largest number of requests in any minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// The largest number of tokens, sent and received, in any minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// USD per million tokens sent.
    #[serde(default)]
    pub usd_per_million_input: f64,
    /// USD per million tokens received.
    #[serde(default)]
    pub usd_per_million_output: f64,
    /// Tokens per image, for estimates; if not set, OpenAI's rule for tiles is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tokens: Option<u64>,
}

/// How closely a model looks at an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// One look at a small version.
    Low,
    /// Tile by tile.
    High,
    /// As the server sees fit.
    Auto,
}

impl OpenAiConfig {
    fn base_url() -> String {
        "https://api.openai.com/v1".into()
    }

    fn api_key_env() -> String {
        "OPENAI_API_KEY".into()
    }

    fn max_tokens() -> u64 {
        4096
    }

    fn reasks() -> u32 {
        1
    }

    fn timeout_s() -> f64 {
        120.0
    }

    fn max_attempts() -> u32 {
        8
    }

    fn sends(&self, member: &str) -> bool {
        !self.omit.iter().any(|name| name == member)
    }

    /// Where questions go: `/chat/completions` is added to the path of `base_url`, unless it is there, and the query stays behind it.
    fn address(&self) -> String {
        let (path, query) = match self.base_url.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (self.base_url.as_str(), String::new()),
        };
        let path = path.trim_end_matches('/');
        format!("{}/chat/completions{query}", path.strip_suffix("/chat/completions").unwrap_or(path))
    }

    /// Tokens of an image. OpenAI's rule for GPT-4o: 85 at low detail; else it is shrunk into 2048 x 2048, then to a shorter side of 768,
    /// and costs 85 and 170 for each tile of 512 x 512 (platform.openai.com/docs/guides/images-vision). Other models count otherwise.
    fn tokens_of(&self, picture: &Picture) -> u64 {
        if let Some(tokens) = self.image_tokens {
            return tokens;
        }
        if self.detail == Some(Detail::Low) {
            return 85;
        }
        let (width, height) = picture.size().unwrap_or((1024, 1024));
        let (width, height) = fitted(width, height, self.max_side.unwrap_or(u32::MAX));
        let (width, height) = fitted(width, height, 2048);
        let scale = (768.0 / f64::from(width.min(height))).min(1.0);
        let tiles = |side: u32| (f64::from(side) * scale / 512.0).ceil() as u64;
        85 + 170 * tiles(width) * tiles(height)
    }
}

impl Validate for OpenAiConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.findings_in("annotator.openai", findings);
    }
}

impl OpenAiConfig {
    /// As [`findings`](Validate::findings), for a section of another name.
    pub fn findings_in(&self, section: &str, findings: &mut Vec<String>) {
        let mut check = |holds: bool, finding: String| {
            if !holds {
                findings.push(format!("{section}.{finding}"));
            }
        };
        check(!self.model.trim().is_empty(), "model is empty: expected a name that the server knows".into());
        let url = &self.base_url;
        check(
            url.starts_with("http://") || url.starts_with("https://"),
            format!("base_url = {url:?}: expected an address with http:// or https://"),
        );
        check(!self.api_key_env.is_empty(), "api_key_env is empty: expected the name of an environment variable".into());
        let name_like = self.api_key_env.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // Whoever put the key here does not want it in a message.
        check(
            name_like,
            "api_key_env is not the name of an environment variable: put the key into an environment variable, and the variable's name here".into(),
        );
        let is_header = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        check(
            self.key_header.as_ref().is_none_or(is_header),
            "key_header is not the name of a header: expected one such as api-key".into(),
        );
        check(self.temperature >= 0.0 && self.temperature.is_finite(), format!("temperature = {}: expected at least 0", self.temperature));
        check(self.timeout_s > 0.0 && self.timeout_s <= 86_400.0, format!("timeout_s = {}: expected seconds, above 0", self.timeout_s));
        let prices = [self.usd_per_million_input, self.usd_per_million_output];
        check(prices.iter().all(|price| *price >= 0.0 && price.is_finite()), format!("prices {prices:?}: expected USD of at least 0"));
        let counts = [
            ("max_tokens", Some(self.max_tokens)),
            ("max_side", self.max_side.map(u64::from)),
            ("max_attempts", Some(u64::from(self.max_attempts))),
            ("requests_per_minute", self.requests_per_minute.map(u64::from)),
            ("tokens_per_minute", self.tokens_per_minute),
        ];
        for (name, value) in counts {
            check(value != Some(0), format!("{name} = 0: expected at least 1"));
        }
        for name in &self.omit {
            let known = ["temperature", "max_tokens", "seed", "response_format"];
            check(known.contains(&name.as_str()), format!("omit names {name:?}: expected some of {}", known.join(", ")));
        }
        for name in ["model", "messages", "stream", "n"] {
            check(!self.extra.contains_key(name), format!("extra.{name}: it cannot be set here"));
        }
    }
}

impl Build for OpenAiConfig {
    fn build(&self, context: BuildContext) -> Result<Box<dyn Annotator>> {
        Ok(Box::new(OpenAi::new(self.clone(), ApiKey::from_env(&self.api_key_env), context.clock)))
    }
}

/// A model behind a server.
pub struct OpenAi {
    config: OpenAiConfig,
    client: Client,
    without_response_format: AtomicBool,
    /// The server wants `max_completion_tokens`.
    completion_tokens: AtomicBool,
}

/// What is asked, as the server wants it.
struct Message {
    task: Task,
    /// The parts of the user's message.
    content: Vec<Value>,
    estimate: Estimate,
}

/// One of the requests that a question may take.
struct Attempt<'a> {
    /// The reply to repair; `None` asks afresh.
    repair: Option<&'a Unusable>,
    /// How often the question was asked afresh before.
    fresh: u32,
    /// How many requests came before.
    number: usize,
}

/// What the next request is.
enum Step {
    Fresh(u32),
    Repair,
    SetAside(String),
}

impl OpenAi {
    /// The model that `config` names, asked with this key.
    pub fn new(config: OpenAiConfig, key: ApiKey, clock: crate::Clock) -> Self {
        let client = Client::new(Connection {
            url: config.address(),
            url_name: "base_url",
            not_found: "check base_url (most servers want it to end in /v1) and model",
            answer: "choices",
            key,
            key_variable: config.api_key_env.clone(),
            key_header: config.key_header.clone(),
            timeout: Duration::from_secs_f64(config.timeout_s),
            max_attempts: config.max_attempts,
            requests_per_minute: config.requests_per_minute,
            tokens_per_minute: config.tokens_per_minute,
            prices: Prices { input: config.usd_per_million_input, output: config.usd_per_million_output },
            clock,
        });
        let without_response_format = AtomicBool::new(!config.sends("response_format"));
        Self { config, client, without_response_format, completion_tokens: AtomicBool::new(false) }
    }

    /// Asks, asks for a repair, and asks afresh, until `read` finds an answer.
    fn converse<T>(&self, message: &Message, read: impl Fn(&str) -> Result<T, Vec<String>>, ask: &Ask) -> Result<Answered<T>, Unanswered> {
        let mut unusable = ask.unusable.to_vec();
        loop {
            let (repair, fresh) = match next_step(&unusable, self.config.reasks) {
                Step::SetAside(reason) => return Err(Unanswered::SetAside(reason)),
                Step::Fresh(fresh) => (None, fresh),
                Step::Repair => (unusable.last(), 0),
            };
            let attempt = Attempt { repair, fresh, number: unusable.len() };
            let reply = self.request(message, &attempt, ask)?;
            let is_repair = repair.is_some();
            let content = Content::of(&reply.body);
            match self.check(&reply, &content).and_then(|()| content.read(&read)) {
                Ok(value) => return Ok(Answered { value, usage: reply.usage, repaired: is_repair }),
                Err((repairable, findings)) => {
                    let one = Unusable { repair: is_repair, reply: content.text, findings, repairable };
                    (ask.keep)(&one, reply.usage).map_err(Unanswered::Fatal)?;
                    unusable.push(one);
                }
            }
        }
    }

    /// Sends one request; again without a member, or with another in its place, if the server does not take it.
    fn request(&self, message: &Message, attempt: &Attempt, ask: &Ask) -> Result<Reply, Unanswered> {
        let request_id = &format!("{}-{}", ask.key, attempt.number);
        let seed = u64::from(ask.repeat) + SEED_STRIDE * u64::from(attempt.fresh);
        let sending = Sending { request_id, estimate: &message.estimate, budget: ask.budget, stopped: ask.stopped, notice: ask.notice };
        loop {
            let without_format = self.without_response_format.load(Ordering::Relaxed);
            let completion_tokens = self.completion_tokens.load(Ordering::Relaxed);
            let body = self.body(message, attempt.repair, seed);
            match self.client.post(&body, &sending) {
                Ok(reply) => return Ok(reply),
                Err(Failure::Refuses { member: RefusedMember::ResponseFormat, .. }) if !without_format => {
                    self.without_response_format.store(true, Ordering::Relaxed);
                }
                Err(Failure::Refuses { member: RefusedMember::MaxTokens, .. }) if !completion_tokens && self.sends_limit() => {
                    self.completion_tokens.store(true, Ordering::Relaxed);
                }
                Err(Failure::Refuses { said, .. } | Failure::Unanswered(Unanswered::Rejected(said))) => {
                    let way_out = "if it dislikes a member of the request, list it under omit, or set another with extra";
                    return Err(Unanswered::Rejected(format!("{said} ({way_out})")));
                }
                Err(Failure::Unanswered(unanswered)) => return Err(unanswered),
            }
        }
    }

    /// Whether `max_tokens` is sent, under either name. A config that sets the newer name under `extra` means it in place of the older one.
    fn sends_limit(&self) -> bool {
        self.config.sends("max_tokens") && !self.config.extra.contains_key(MAX_COMPLETION_TOKENS)
    }

    fn body(&self, message: &Message, repair: Option<&Unusable>, seed: u64) -> Value {
        let mut messages = vec![json!({ "role": "user", "content": message.content })];
        if let Some(unusable) = repair {
            messages.push(json!({ "role": "assistant", "content": unusable.reply }));
            messages.push(json!({ "role": "user", "content": rubric::repair(&unusable.findings) }));
        }
        let mut body = json!({ "model": self.config.model, "messages": messages });
        if self.config.sends("temperature") {
            body["temperature"] = json!(self.config.temperature);
        }
        if self.sends_limit() {
            let name = if self.completion_tokens.load(Ordering::Relaxed) { MAX_COMPLETION_TOKENS } else { "max_tokens" };
            body[name] = json!(self.config.max_tokens);
        }
        if let Some(base) = self.config.seed.filter(|_| self.config.sends("seed")) {
            body["seed"] = json!(base.wrapping_add(seed));
        }
        if !self.without_response_format.load(Ordering::Relaxed) {
            body["response_format"] = rubric::response_format(message.task);
        }
        for (member, value) in &self.config.extra {
            body[member] = value.clone();
        }
        body
    }

    /// Why a reply has no complete text. Asking the model to repair it would not help.
    fn check(&self, reply: &Reply, content: &Content) -> Result<(), (bool, Vec<String>)> {
        let unusable = |finding: String| Err((false, vec![finding]));
        if let Some(refusal) = &content.refusal {
            return unusable(format!("the model refused: {refusal}"));
        }
        match reply.body["choices"][0]["finish_reason"].as_str() {
            Some("content_filter") => unusable("the server's content filter stopped the reply".into()),
            Some("length") => {
                let limit = self.config.max_tokens;
                unusable(format!("the reply was cut off at max_tokens = {limit}; allow for more"))
            }
            _ => Ok(()),
        }
    }

    /// Instructions, then the images one by one, then the prompt.
    fn message(&self, task: Task, prompt: &str, images: &[&Picture]) -> Result<Message, Unanswered> {
        let mut content = vec![json!({ "type": "text", "text": rubric::instructions(task) })];
        for (index, picture) in images.iter().enumerate() {
            let mut image = json!({ "url": picture.data_url(self.config.max_side)? });
            if let Some(detail) = self.config.detail {
                image["detail"] = json!(detail);
            }
            content.push(json!({ "type": "text", "text": format!("Image {}:", index + 1) }));
            content.push(json!({ "type": "image_url", "image_url": image }));
        }
        content.push(json!({ "type": "text", "text": format!("Prompt: {prompt}") }));
        Ok(Message { task, content, estimate: self.estimated(task, prompt, images) })
    }

    fn estimated(&self, task: Task, prompt: &str, images: &[&Picture]) -> Estimate {
        // A token is about four characters of English; a reply has about 60 of them for an aspect, 80 for a choice.
        let tokens_in = |text: &str| text.chars().count().div_ceil(4) as u64;
        let pictures: u64 = images.iter().map(|picture| self.config.tokens_of(picture) + 4).sum();
        let output = match task {
            Task::Rate => 20 + 240 * images.len() as u64,
            Task::Compare => 80,
            Task::Polish => 20 + tokens_in(prompt),
        };
        let input = tokens_in(rubric::instructions(task)) + tokens_in(prompt) + pictures + 12;
        Estimate { requests: 1, usage: self.client.prices().usage(input, output.min(self.config.max_tokens)) }
    }
}

/// First the question, then at most one repair, then the question afresh as often as allowed.
fn next_step(unusable: &[Unusable], reasks: u32) -> Step {
    let Some(last) = unusable.last() else { return Step::Fresh(0) };
    let fresh = unusable.iter().filter(|one| !one.repair).count() as u32;
    if last.repairable && !unusable.iter().any(|one| one.repair) {
        Step::Repair
    } else if fresh <= reasks {
        Step::Fresh(fresh)
    } else {
        Step::SetAside(last.findings.join("; "))
    }
}

impl Annotator for OpenAi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn model(&self) -> Option<&str> {
        Some(&self.config.model)
    }

    fn rubric(&self, task: Task) -> Option<&'static str> {
        Some(rubric::version(task))
    }

    /// Everything that the reply depends on. The address is not part of it: a model is the same wherever it is served.
    fn settings(&self) -> Value {
        let config = &self.config;
        json!({
            "temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed, "detail": config.detail,
            "max_side": config.max_side, "omit": config.omit, "extra": config.extra,
        })
    }

    fn rate(&self, prompt: &str, images: &[Picture], ask: &Ask) -> Result<Answered<Vec<Ratings>>, Unanswered> {
        let images: Vec<&Picture> = images.iter().collect();
        self.converse(&self.message(Task::Rate, prompt, &images)?, |text| reply::ratings(text, images.len()), ask)
    }

    fn compare(&self, prompt: &str, pair: [&Picture; 2], ask: &Ask) -> Result<Answered<Choice>, Unanswered> {
        self.converse(&self.message(Task::Compare, prompt, &pair)?, reply::choice, ask)
    }

    fn polish(&self, prompt: &str, ask: &Ask) -> Result<Answered<Polished>, Unanswered> {
        self.converse(&self.message(Task::Polish, prompt, &[])?, reply::polished, ask)
    }

    fn estimate(&self, task: Task, prompt: &str, images: &[Picture]) -> Estimate {
        self.estimated(task, prompt, &images.iter().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> OpenAiConfig {
        toml::from_str(text).unwrap()
    }

    fn said(repair: bool, repairable: bool) -> Unusable {
        Unusable { repair, reply: String::new(), findings: vec!["bad".into()], repairable }
    }

    fn steps(unusable: &[Unusable], reasks: u32) -> String {
        match next_step(unusable, reasks) {
            Step::Fresh(number) => format!("fresh {number}"),
            Step::Repair => "repair".into(),
            Step::SetAside(reason) => format!("aside: {reason}"),
        }
    }

    #[test]
    fn one_repair_then_fresh_questions_then_aside() {
        assert_eq!(steps(&[], 1), "fresh 0");
        assert_eq!(steps(&[said(false, true)], 1), "repair");
        assert_eq!(steps(&[said(false, true), said(true, true)], 1), "fresh 1");
        assert_eq!(steps(&[said(false, true), said(true, true), said(false, true)], 1), "aside: bad");
        assert_eq!(steps(&[said(false, false)], 1), "fresh 1");
        assert_eq!(steps(&[said(false, false), said(false, true)], 1), "repair");
        assert_eq!(steps(&[said(false, true), said(true, true)], 0), "aside: bad");
    }

    #[test]
    fn images_are_counted_by_tiles() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = |width, height, more: &str| {
            let path = folder.path().join("a.png");
            vp_data::RgbImage::new(width, height).save(&path).unwrap();
            config(&format!("model = \"m\"\n{more}")).tokens_of(&Picture::read(&path).unwrap())
        };
        // The two examples of OpenAI's guide, and one that is shrunk before it is sent.
        assert_eq!(tokens(1024, 1024, ""), 765);
        assert_eq!(tokens(2048, 4096, ""), 1105);
        assert_eq!(tokens(1024, 1024, "max_side = 512"), 255);
        assert_eq!((tokens(9, 9, "detail = \"low\""), tokens(9, 9, "image_tokens = 1500")), (85, 1500));
    }

    #[test]
    fn questions_go_to_the_path_and_queries_stay_behind_it() {
        let address = |base_url: &str| config(&format!("model = \"m\"\nbase_url = \"{base_url}\"")).address();
        assert_eq!(address("http://a/v1"), "http://a/v1/chat/completions");
        assert_eq!(address("http://a/v1//"), "http://a/v1/chat/completions");
        assert_eq!(address("http://a/v1/chat/completions"), "http://a/v1/chat/completions");
        assert_eq!(address("http://a/gpt?api-version=2024-10-21"), "http://a/gpt/chat/completions?api-version=2024-10-21");
        assert_eq!(address("http://a/gpt/?to=http://b/v1/"), "http://a/gpt/chat/completions?to=http://b/v1/");
        assert_eq!(address("http://a/v1/chat/completions?k=v"), "http://a/v1/chat/completions?k=v");
    }

    #[test]
    fn configs_are_checked() {
        let mut findings = Vec::new();
        config("model = \"m\"").findings(&mut findings);
        assert_eq!(findings, [""; 0]);
        let text = "model = \"\"\nbase_url = \"localhost\"\napi_key_env = \"sk-12345678\"\ntemperature = -1\nmax_attempts = 0\nomit = [\"top_p\"]\nkey_header = \"api key\"\n[extra]\nstream = true";
        config(text).findings(&mut findings);
        assert_eq!(findings.len(), 8, "{findings:#?}");
        assert!(!findings.join("").contains("sk-12345678"));
        assert!(toml::from_str::<OpenAiConfig>("model = \"m\"\napi_key = \"sk\"").is_err());
    }
}
