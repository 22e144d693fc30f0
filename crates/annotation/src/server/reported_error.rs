//! Errors as servers write them, in the body of any status.
//!
//! A gateway that answers before the model runs (OpenRouter) has to say 200 first, so its errors come as `{"error": {"message": …, "code": 429}}`
//! without an answer, or in the choice itself; older servers of Ollama write `{"error": "…"}`, some of vLLM's `{"object": "error", "message": …}`.

use serde_json::Value;

/// How much of an error's text is shown, in characters.
const MAX_SAID: usize = 600;

/// Words in the kind of an error (`type`, `code` or `status`) and the HTTP status that they stand for; the first that fits counts.
const KINDS: [(&str, u16); 10] = [
    ("insufficient_quota", 402),
    ("rate_limit", 429),
    ("resource_exhausted", 429),
    ("overloaded", 503),
    ("unavailable", 503),
    ("server_error", 500),
    ("api_error", 500),
    ("invalid_api_key", 401),
    ("authentication", 401),
    ("permission", 403),
];

/// The error in a reply with status 200, if it is one: what stands in place of the member `answer`, or in the first choice.
pub(super) fn reported_error<'a>(body: &'a Value, answer: &str) -> Option<&'a Value> {
    let is_error = |error: &&Value| matches!(error, Value::Object(_)) || error.as_str().is_some_and(|text| !text.trim().is_empty());
    let has_answer = !body[answer].is_null() && body[answer].as_array().is_none_or(|list| !list.is_empty());
    if body["object"] == "error" {
        return Some(if is_error(&&body["error"]) { &body["error"] } else { body });
    }
    Some(&body["error"]).filter(|_| !has_answer).filter(is_error).or_else(|| Some(&body["choices"][0]["error"]).filter(is_error))
}

/// The HTTP status that an error stands for, by its number or by its kind; `None` if it has neither.
pub(super) fn status_of(error: &Value) -> Option<u16> {
    let members = [&error["code"], &error["status"], &error["status_code"], &error["type"]];
    let number = |value: &&Value| {
        let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
        u16::try_from(number).ok().filter(|status| (400..600).contains(status))
    };
    let kind = |value: &&Value| {
        let kind = value.as_str()?.to_lowercase();
        KINDS.iter().find(|(word, _)| kind.contains(word)).map(|(_, status)| *status)
    };
    members.iter().find_map(number).or_else(|| members.iter().find_map(kind))
}

/// The message in an error's body, on one line and cut short; with what stands behind it, where a gateway passes that on.
pub(super) fn said(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let message = [&value["error"]["message"], &value["message"], &value["error"], &value["detail"], &value];
    let mut text = message.iter().find_map(|message| message.as_str()).unwrap_or(body).to_owned();
    let raw = [&value["error"]["metadata"]["raw"], &value["metadata"]["raw"]].into_iter().find_map(Value::as_str);
    if let Some(raw) = raw.filter(|raw| !raw.trim().is_empty()) {
        text = format!("{text}: {}", said(raw));
    }
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SAID) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None if line.is_empty() => "(it said nothing)".into(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_are_told_on_one_line() {
        assert_eq!(said(r#"{"error": {"message": "no\n such   model"}}"#), "no such model");
        assert_eq!(said(r#"{"error": "model not found"}"#), "model not found");
        assert_eq!(said(r#""model not found""#), "model not found");
        assert_eq!(said("<html>\nBad gateway"), "<html> Bad gateway");
        assert_eq!(said(""), "(it said nothing)");
        assert_eq!(said(&"ä".repeat(5000)).chars().count(), MAX_SAID + 1);
        let passed_on =
            json!({ "message": "Provider returned error", "metadata": { "raw": "{\"error\": {\"message\": \"overloaded\"}}" } });
        assert_eq!(said(&passed_on.to_string()), "Provider returned error: overloaded");
    }

    #[test]
    fn errors_with_status_200_are_known_and_answers_are_not() {
        let error = |body: Value| reported_error(&body, "choices").map(|error| (said(&error.to_string()), status_of(error)));
        let of = |text: &str, status: Option<u16>| Some((text.to_owned(), status));
        assert_eq!(error(json!({ "error": { "message": "wait", "code": 429 } })), of("wait", Some(429)));
        assert_eq!(error(json!({ "error": { "message": "wait", "code": "429" }, "choices": [] })), of("wait", Some(429)));
        assert_eq!(error(json!({ "error": { "message": "wait", "type": "rate_limit_error" } })), of("wait", Some(429)));
        assert_eq!(error(json!({ "error": "no such model" })), of("no such model", None));
        assert_eq!(error(json!({ "object": "error", "message": "bad", "code": 400 })), of("bad", Some(400)));
        assert_eq!(error(json!({ "choices": [{ "error": { "message": "cut", "code": 502 } }] })), of("cut", Some(502)));
        // A code that is not an HTTP status, such as a provider's own, is ignored.
        assert_eq!(error(json!({ "error": { "message": "odd", "code": 1302 } })), of("odd", None));
        for answer in [json!({ "choices": [{ "message": {} }], "error": null }), json!({ "choices": [{}], "error": "" }), json!({})] {
            assert_eq!(error(answer), None);
        }
    }
}
