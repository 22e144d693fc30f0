//! What secrets, addresses and people's folders look like.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::REMOVED;

/// Hosts that everybody asks: they say nothing of who asked.
const PUBLIC: [&str; 13] = [
    "localhost",
    "127.0.0.1",
    "0.0.0.0",
    "[::1]",
    "huggingface.co",
    "github.com",
    "api.openai.com",
    "openrouter.ai",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "arxiv.org",
    "burn.dev",
    "no-color.org",
];

/// Whether a host is one that everybody asks.
pub fn is_public(host: &str) -> bool {
    PUBLIC.contains(&host)
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"))
}

/// Patterns of secrets, each with what takes the place of a match.
static SECRETS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let all = [
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)", REMOVED),
        // Who logs in at an address. A password may hold an @, and wrongly a slash.
        (r#"(://)[^\s/"'?#]*@"#, "$1"),
        (r#"(://)[^\s/"'@:]*:[^\s"'@]*@"#, "$1"),
        // What an address asks for.
        (r#"(://[^\s"'?#<>]*)\?[^\s"'#<>]*"#, "$1?…"),
        (r"(?i)\b(bearer)\s+[a-z0-9._~+/=-]{4,}", "$1 (removed)"),
        // Keys of services begin alike.
        (
            r"(?:\b|_)(?:hf_|sk-|sk_|pk_|rk_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|nvapi-|gsk_|r8_|AIza|AKIA|ASIA|api_org_)[A-Za-z0-9_-]{4,}",
            REMOVED,
        ),
        (r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", REMOVED),
        // Headers, to the end of the line where no quote ends them.
        (r#"(?i)((?:authorization|cookie)["']?\s*[:=]\s*)"(?:[^"\\\n]|\\.)*""#, "$1\"(removed)\""),
        (r#"(?i)((?:authorization|cookie)["']?\s*[:=]\s*)[^"\s][^\n"]*"#, "$1(removed)"),
        // The name of a variable is in capitals; what is not may be the key itself.
        (r#"(api_key_env["']?\s*[:=]\s*)["'][^"'\n]*[a-z][^"'\n]*["']"#, "$1\"(removed)\""),
        // Arguments of programs, as words of a shell and as a list.
        (r#"(?i)(\s--?[a-z_-]*(?:token|key|secret|passw(?:or)?d)[= ])\S+"#, "$1(removed)"),
        (r#"(?i)(["']--?[a-z_-]*(?:token|key|secret|passw(?:or)?d)["']\s*,\s*)["'][^"'\n]*["']"#, "$1\"(removed)\""),
        (r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", "(address)"),
    ];
    all.into_iter().map(|(pattern, with)| (regex(pattern), with)).collect()
});

/// A name that ends like that of a secret, what stands between, and the value.
static ASSIGNED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?i)([a-z0-9_.-]*(?:api[_-]?key|access[_-]?key|private[_-]?key|secret|token|passw(?:or)?d|passphrase|credentials?)["']?\s*[:=]\s*)("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,;}\]"']+)"#,
    )
});

/// The folder of any user.
static HOME: LazyLock<Regex> = LazyLock::new(|| regex(r#"(?i)(?:/home/|/Users/|\b[A-Z]:\\{1,2}Users\\{1,2})[^/\\\s"':,;)]+"#));
/// The host of an address.
static HOST: LazyLock<Regex> = LazyLock::new(|| regex(r#"(://)(\[[0-9a-fA-F:]+\]|[^\s/"'?#:@<>~\]]+)"#));
/// A number of a machine in a network.
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\b"));

/// `text` without what looks like a secret or stands behind the name of one.
pub fn without_secrets(text: &str) -> String {
    let text = SECRETS.iter().fold(text.to_owned(), |text, (pattern, with)| pattern.replace_all(&text, *with).into_owned());
    let emptied = |found: &Captures<'_>| match found[2].chars().next() {
        Some(quote @ ('"' | '\'')) => format!("{}{quote}{REMOVED}{quote}", &found[1]),
        // It was taken out already.
        Some('(') => found[0].to_owned(),
        _ => format!("{}{REMOVED}", &found[1]),
    };
    ASSIGNED.replace_all(&text, emptied).into_owned()
}

/// `text` without the folders of users and the names and numbers of hosts.
pub fn without_places(text: &str) -> String {
    let text = HOME.replace_all(text, "~");
    let host = |found: &Captures<'_>| if is_public(&found[2].to_lowercase()) { found[0].to_owned() } else { format!("{}HOST", &found[1]) };
    let text = HOST.replace_all(&text, host);
    let number = |found: &Captures<'_>| if is_public(&found[0]) { found[0].to_owned() } else { "HOST".to_owned() };
    NUMBER.replace_all(&text, number).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_every_dress_are_taken_out() {
        let dressed = [
            "HF_TOKEN=s3same",
            "api_key = \"s3same\"",
            "{\"token\": \"s3same\", \"a\": 1}",
            "Authorization: Basic s3same more-s3same",
            "\"Authorization\": \"Bearer s3same\"",
            "sent as bearer s3same-long",
            "hf_s3same",
            "sk-s3same-proj",
            "https://user:s3same@host.example/v1",
            "https://user:p@s3same@host.example/v1",
            "https://user:p/s3same@host.example/v1",
            "https://host.example/v1?key=s3same&x=1",
            "api_key_env = \"s3same\"",
            "command = [\"score.py\", \"--token\", \"s3same\"]",
            "score.py --api-key s3same",
            "password: 's3same'",
            "x-api-key: s3same",
            "s3same@example.org wrote",
            "-----BEGIN PRIVATE KEY-----\ns3same\n-----END PRIVATE KEY-----",
            "eyJs3same00.s3same.s3same",
        ];
        for text in dressed {
            let told = without_secrets(text);
            assert!(!told.contains("s3same"), "{text}: {told}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        let plain = [
            "api_key_env = \"OPENAI_API_KEY\"",
            "max_tokens = 200",
            "vp_score reads 35 tokens",
            "disk-full, task-1234, risk-free",
            "https://huggingface.co/org/name",
            "tokenizer = \"bert\"",
            "learning_rate = 1e-5",
            "key_header = \"api-key\"",
            "sha256 0123456789abcdef",
        ];
        for text in plain {
            assert_eq!(without_secrets(text), text);
            assert_eq!(without_places(text), text);
        }
    }

    #[test]
    fn json_stays_json() {
        let text = r#"{"authorization":"Basic abcd","my_token":"x","url":"http://a:b@c/d?e","n":1}"#;
        let told: serde_json::Value = serde_json::from_str(&without_secrets(text)).unwrap();
        assert_eq!(told, serde_json::json!({ "authorization": REMOVED, "my_token": REMOVED, "url": "http://c/d?…", "n": 1 }));
    }

    #[test]
    fn hosts_are_taken_out_of_addresses_but_for_public_ones() {
        let text = "http://gpu7.lab:8000/v1, https://api.openai.com/v1, http://[fe80::1]:9, 10.0.3.4, 127.0.0.1:80, 1.4.305";
        assert_eq!(without_places(text), "http://HOST:8000/v1, https://api.openai.com/v1, http://HOST:9, HOST, 127.0.0.1:80, 1.4.305");
    }
}
