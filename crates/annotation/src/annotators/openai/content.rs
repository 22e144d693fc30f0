//! Where the text of a reply stands.
//!
//! OpenAI's `message.content` is a string. Mistral and some gateways send a list of parts, in which reasoning is a part of its own. vLLM with
//! a reasoning parser and a schema puts the whole answer into `message.reasoning_content` (newer: `reasoning`) and leaves the content null.

use serde_json::Value;

/// What is wrong with a reply, and whether the model can repair that.
type Unread = (bool, Vec<String>);

/// The text of a reply, and what stands beside it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content {
    /// `message.content`, the text parts joined if it is a list.
    pub(super) text: String,
    /// The model's reason not to answer.
    pub(super) refusal: Option<String>,
    /// Where there is reasoning: the name of its member, and its text.
    reasoning: Option<Reasoning>,
}

#[derive(Debug, PartialEq)]
struct Reasoning {
    member: &'static str,
    text: String,
}

impl Content {
    /// The content of the first choice.
    pub(super) fn of(body: &Value) -> Self {
        let message = &body["choices"][0]["message"];
        let content = &message["content"];
        let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
        let of_parts = |kinds: &[&str]| -> String {
            let is_wanted = |part: &&Value| part["type"].as_str().is_none_or(|kind| kinds.contains(&kind));
            parts.iter().filter(is_wanted).filter_map(text_of).collect()
        };
        let text = content.as_str().map_or_else(|| of_parts(&["text", "output_text"]), str::to_owned);
        let said = |value: &Value| value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
        let refusal = said(&message["refusal"]).or_else(|| parts.iter().find_map(|part| said(&part["refusal"])));
        let reasoning = ["reasoning_content", "reasoning"].into_iter().find_map(|member| {
            let text = said(&message[member])?;
            Some(Reasoning { member, text })
        });
        Self { text, refusal, reasoning }
    }

    /// The result of `read` on the reply's text, or on its reasoning if the text is empty.
    pub(super) fn read<T>(&self, read: impl Fn(&str) -> Result<T, Vec<String>>) -> Result<T, Unread> {
        if !self.text.trim().is_empty() {
            return read(&self.text).map_err(|findings| (true, findings));
        }
        let Some(Reasoning { member, text }) = &self.reasoning else { return Err((false, vec!["the reply is empty".into()])) };
        let way_out = "raise max_tokens, or turn the server's reasoning parser off";
        read(text).map_err(|_| (false, vec![format!("content is empty, all of the reply is in {member}: {way_out}")]))
    }
}

/// The text of a part: `{"type": "text", "text": "…"}`, or the bare string that some servers take for one.
fn text_of(part: &Value) -> Option<&str> {
    part["text"].as_str().or(part.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(message: Value) -> Content {
        Content::of(&json!({ "choices": [{ "message": message }] }))
    }

    #[test]
    fn parts_of_text_are_joined_and_thoughts_are_not() {
        let text = |content: Value| of(json!({ "content": content })).text;
        assert_eq!(text(json!("whole")), "whole");
        assert_eq!(text(json!([{ "type": "text", "text": "one, " }, { "type": "text", "text": "two" }])), "one, two");
        let thinking = json!({ "type": "thinking", "thinking": [{ "type": "text", "text": "Hm." }] });
        assert_eq!(text(json!([thinking, { "type": "output_text", "text": "said" }])), "said");
        assert_eq!(text(json!([{ "type": "reasoning", "text": "Hm." }, { "text": "said" }, " so"])), "said so");
        assert_eq!((text(Value::Null), text(json!([])), text(json!(3))), (String::new(), String::new(), String::new()));
    }

    #[test]
    fn refusals_are_found_beside_the_content_and_among_its_parts() {
        let refusal = |message: Value| of(message).refusal;
        assert_eq!(refusal(json!({ "content": null, "refusal": "No." })).as_deref(), Some("No."));
        assert_eq!(refusal(json!({ "content": [{ "type": "refusal", "refusal": "No." }] })).as_deref(), Some("No."));
        assert_eq!(refusal(json!({ "content": "Yes.", "refusal": "" })), None);
    }

    #[test]
    fn reasoning_is_read_where_there_is_no_content() {
        let read = |text: &str| text.parse::<u32>().map_err(|_| vec!["not a number".to_owned()]);
        assert_eq!(of(json!({ "content": "1", "reasoning": "2" })).read(read), Ok(1));
        assert_eq!(of(json!({ "content": null, "reasoning": "2" })).read(read), Ok(2));
        assert_eq!(of(json!({ "content": " \n", "reasoning_content": "3" })).read(read), Ok(3));
        assert_eq!(of(json!({ "content": "x", "reasoning": "2" })).read(read), Err((true, vec!["not a number".to_owned()])));
        let (repairable, findings) = of(json!({ "content": "", "reasoning": "Hm." })).read(read).unwrap_err();
        assert!(
            !repairable && findings[0].starts_with("content is empty, all of the reply is in reasoning: raise max_tokens"),
            "{findings:?}"
        );
        assert_eq!(of(json!({ "content": "" })).read(read), Err((false, vec!["the reply is empty".to_owned()])));
    }
}
