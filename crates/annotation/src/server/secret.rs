//! The key of a server: read from the environment and shown only to the server.

use std::env;
use std::fmt;

/// Replaces the key in texts.
const MASK: &str = "[api key]";
/// Shorter keys are placeholders (`EMPTY`, `x`), not secrets, and redacting them would garble messages.
const LEAST_SECRET: usize = 8;

/// An API key, or none. Neither `Debug` nor any other output shows it.
#[derive(Clone, Default)]
pub struct ApiKey(Option<String>);

impl ApiKey {
    /// The value of the environment variable `name`; none if it is not set or blank. A leading `Bearer`, copied along with the key, is left out.
    pub fn from_env(name: &str) -> Self {
        Self::of(&env::var(name).unwrap_or_default())
    }

    fn of(text: &str) -> Self {
        let key = match text.trim().split_once(char::is_whitespace) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key,
            _ => text,
        };
        Self(Some(key.trim().to_owned()).filter(|key| !key.is_empty()))
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The name and the value of the header that shows the key: the bare key in `header`, or `Authorization: Bearer`.
    pub(crate) fn header<'a>(&self, header: Option<&'a str>) -> Option<(&'a str, String)> {
        let key = self.0.as_ref()?;
        Some(header.map_or_else(|| ("authorization", format!("Bearer {key}")), |name| (name, key.clone())))
    }

    /// `text` with the key redacted, because messages of a server may quote it. Keys under 8 bytes are left.
    pub fn redact(&self, text: &str) -> String {
        match &self.0 {
            Some(key) if key.len() >= LEAST_SECRET => text.replace(key.as_str(), MASK),
            _ => text.to_owned(),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "ApiKey(set)" } else { "ApiKey(none)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sent_once_whatever_was_copied_with_it() {
        let sent = |text: &str| ApiKey::of(text).header(None);
        for text in ["sk-1", " sk-1\n", "Bearer sk-1", "bearer  sk-1 "] {
            assert_eq!(sent(text), Some(("authorization", "Bearer sk-1".into())), "{text:?}");
        }
        assert_eq!(sent(" "), None);
        assert_eq!(ApiKey::of("Bearer sk-1").header(Some("api-key")), Some(("api-key", "sk-1".into())));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = ApiKey(Some("sk-very-secret".into()));
        assert_eq!(format!("{key:?}"), "ApiKey(set)");
        assert_eq!(key.redact("Incorrect key sk-very-secret, I said sk-very-secret."), "Incorrect key [api key], I said [api key].");
        assert_eq!(ApiKey(Some("x".into())).redact("max_tokens"), "max_tokens");
        assert_eq!(ApiKey::from_env("VP_NO_SUCH_VARIABLE").header(None), None);
    }
}
