//! How an image was made, as the text that AUTOMATIC1111's web UI writes into its PNGs.

use serde_json::Value;

const NEGATIVE_PROMPT: &str = "Negative prompt:";
/// The web UI takes a last line with fewer fields than this for a part of the prompt.
const LEAST_FIELDS: usize = 3;

/// The recipe of an image: the `parameters` text that the web UI, and the many programs that read its images, show.
///
/// ```text
/// a cat
/// Negative prompt: blurry
/// Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: "a, b"
/// ```
///
/// [`Parameters::parse`] gives back what [`Parameters::to_text`] was given, as long as there are at least three fields,
/// the prompts do not begin or end their lines with spaces, and no line of the prompt begins with `Negative prompt:`:
/// the format has no way to write those. It follows the web UI's `quote` and `parse_generation_parameters` in
/// `modules/infotext_utils.py`, and also quotes the few values that the web UI would not read back as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The prompt, perhaps over several lines.
    pub prompt: String,
    /// The negative prompt; empty for none.
    pub negative_prompt: String,
    /// The other settings in their order. The web UI's own begin with `Steps`, `Sampler`, `Schedule type`, `CFG scale`,
    /// `Seed`, `Size`, `Model hash`, `Model` and end with `Version`. A key is two or more letters, digits, `_`, spaces,
    /// `-` or `/`.
    pub fields: Vec<(String, String)>,
}

impl Parameters {
    /// The recipe of an image made from this prompt, without settings yet.
    pub fn new(prompt: impl Into<String>, negative_prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), negative_prompt: negative_prompt.into(), fields: Vec::new() }
    }

    /// Adds a setting after the others.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.fields.push((key.into(), value.to_string()));
        self
    }

    /// The value of a setting, if it is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The text to store in a PNG under the key `parameters`.
    pub fn to_text(&self) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text += &format!("\n{NEGATIVE_PROMPT} {}", self.negative_prompt);
        }
        let fields: Vec<String> = self.fields.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        text += &format!("\n{}", fields.join(", "));
        text.trim().to_owned()
    }

    /// Reads such a text, whoever wrote it. Whatever is not a setting ends up in the prompt: no text is an error.
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.trim().split('\n').map(str::trim).collect();
        let mut fields = lines.last().map(|line| parse_fields(line)).unwrap_or_default();
        if fields.len() < LEAST_FIELDS {
            fields.clear();
        } else {
            lines.pop();
        }
        let negative = lines.iter().position(|line| line.starts_with(NEGATIVE_PROMPT)).unwrap_or(lines.len());
        let (prompt, negative) = lines.split_at(negative);
        let negative_prompt = negative.join("\n");
        let negative_prompt = negative_prompt.strip_prefix(NEGATIVE_PROMPT).unwrap_or_default().trim().to_owned();
        Self { prompt: prompt.join("\n"), negative_prompt, fields }
    }
}

/// A value as the web UI writes it: a JSON string where the bare text would end early or lose its edges.
fn quoted(value: &str) -> String {
    let bare = !value.contains([',', ':', '\n', '\r']) && !value.starts_with('"') && value == value.trim();
    if bare { value.to_owned() } else { Value::from(value).to_string() }
}

/// The `key: value` pairs of a line; what lies between them and is none is passed over.
fn parse_fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let after = match split_field(rest) {
            Some((key, value, after)) => {
                fields.push((key.to_owned(), value));
                after
            }
            None => rest.split_once(',').map_or("", |(_, after)| after),
        };
        rest = after.trim_start();
    }
    fields
}

/// Splits `key: value, rest` into the three.
fn split_field(text: &str) -> Option<(&str, String, &str)> {
    // A key has no comma. Looked for no further, for else a text of many commas would be read once for each of them.
    let end = text.find([':', ',']).filter(|end| text[*end..].starts_with(':'))?;
    let (key, value) = (&text[..end], &text[end + 1..]);
    if !is_key(key) {
        return None;
    }
    let value = value.trim_start();
    if let Some((string, after)) = split_json_string(value)
        && (after.is_empty() || after.starts_with(','))
    {
        return Some((key, string, after.strip_prefix(',').unwrap_or(after)));
    }
    let (value, after) = value.split_once(',').unwrap_or((value, ""));
    Some((key, value.to_owned(), after))
}

fn split_json_string(text: &str) -> Option<(String, &str)> {
    let mut values = serde_json::Deserializer::from_str(text.strip_prefix('"').map(|_| text)?).into_iter::<String>();
    let string = values.next()?.ok()?;
    Some((string, &text[values.byte_offset()..]))
}

fn is_key(key: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    key.starts_with(word) && key.chars().count() > 1 && key.chars().all(|c| word(c) || " -/".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Parameters {
        Parameters::new("a cat", "blurry, dark")
            .with("Steps", 20)
            .with("Sampler", "DDIM")
            .with("CFG scale", 7.5)
            .with("Seed", 1)
            .with("Size", "512x512")
            .with("Model", "sd15, tuned: v2")
    }

    #[test]
    fn text_is_the_web_uis() {
        let text = "a cat\nNegative prompt: blurry, dark\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: \"sd15, tuned: v2\"";
        assert_eq!(recipe().to_text(), text);
        let plain = Parameters { negative_prompt: String::new(), ..recipe() };
        assert_eq!(plain.to_text().lines().count(), 2);
    }

    /// The example in the documentation of the web UI's own reader.
    #[test]
    fn reads_the_web_uis_text() {
        let text = "girl with an artist's beret, ((eyeshadow)), detailed\r\nNegative prompt: ugly, (((deformed))), [blurry]\r\n\
                    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, Lora hashes: \"a: 1, b: 2\"\r\n";
        let parameters = Parameters::parse(text);
        assert_eq!(parameters.prompt, "girl with an artist's beret, ((eyeshadow)), detailed");
        assert_eq!(parameters.negative_prompt, "ugly, (((deformed))), [blurry]");
        assert_eq!(parameters.get("Sampler"), Some("Euler a"));
        assert_eq!(parameters.get("Lora hashes"), Some("a: 1, b: 2"));
        assert_eq!(parameters.get("Version"), None);
        assert_eq!(parameters.fields.len(), 7);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let values = [
            "",
            "plain",
            "a, b",
            "a: b",
            "two\nlines",
            "back\\slash, \"quoted\"",
            "\"",
            "\"whole\"",
            " edges ",
            "tab\t, é 猫",
            "1:2,3",
            "half\"",
        ];
        let prompts = [
            "a cat",
            "a cat\nin two lines\n\nand a blank one",
            "(blue:1.2), [x], \"said\", 50%: so",
            "Steps: 20, Seed: 3",
            "猫, Ölbild",
            "",
        ];
        for value in values {
            for prompt in prompts {
                for negative in ["", "ugly", "ugly\nSteps: 3, Seed: 1, Size: 1x1\ndark"] {
                    let parameters =
                        Parameters::new(prompt, negative).with("Steps", 20).with("Model", value).with("Seed", 1).with("Reward/2nd", value);
                    assert_eq!(Parameters::parse(&parameters.to_text()), parameters, "{}", parameters.to_text());
                }
            }
        }
    }

    #[test]
    fn many_commas_take_no_time() {
        let text = format!("{}: x", "a,".repeat(1 << 20));
        assert_eq!(Parameters::parse(&text), Parameters::new(text, ""));
    }

    #[test]
    fn text_without_settings_is_a_prompt() {
        assert_eq!(Parameters::parse(""), Parameters::default());
        assert_eq!(Parameters::parse("a cat"), Parameters::new("a cat", ""));
        assert_eq!(Parameters::parse("a cat\nSteps: 20, Seed: 1"), Parameters::new("a cat\nSteps: 20, Seed: 1", ""));
        assert_eq!(Parameters::parse("a cat\nNegative prompt: dog"), Parameters::new("a cat", "dog"));
    }
}
