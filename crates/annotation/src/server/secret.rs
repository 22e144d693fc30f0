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
    /// The value of the environment variable `name`; none if it is not set or blank.
    pub fn from_env(name: &str) -> Self {
        Self(env::var(name).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()))
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The value of an `Authorization` header.
    pub(crate) fn bearer(&self) -> Option<String> {
        self.0.as_ref().map(|key| format!("Bearer {key}"))
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
    fn a_key_is_never_shown() {
        let key = ApiKey(Some("sk-very-secret".into()));
        assert_eq!(format!("{key:?}"), "ApiKey(set)");
        assert_eq!(key.redact("Incorrect key sk-very-secret, I said sk-very-secret."), "Incorrect key [api key], I said [api key].");
        assert_eq!(ApiKey(Some("x".into())).redact("max_tokens"), "max_tokens");
        assert_eq!(ApiKey::from_env("VP_NO_SUCH_VARIABLE").bearer(), None);
    }
}
