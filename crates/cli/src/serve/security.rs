//! Who may ask: those who know the token that the program printed, and no page of another site.

use std::net::SocketAddr;

use anyhow::Context;
use hyper::header::{COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Method, Uri};

/// What a report may do: as little, but its one script and style are inside it. It comes from a run's folder, which somebody else may have
/// written, so that it is kept apart from the other pages, as if it came from elsewhere.
pub const POLICY_OF_REPORTS: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                                     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What every page may do: load what comes from here, and nothing else. No script or style within a page, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Headers of every reply.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    // Another site's page can neither show these images nor hold on to a window with these pages.
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];
/// Where a page sends the token with what it writes.
const TOKEN: &str = "x-token";

/// Decides who may ask.
pub struct Guard {
    address: SocketAddr,
    token: String,
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// What the page says.
    pub reason: &'static str,
}

const fn refusal(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

impl Guard {
    /// Of a server at this address, with a token of its own.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).context("get random numbers for a token")?;
        Ok(Self { address, token: bytes.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What pages send with what they write.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Checks a request. `token` is the one in its address, if there is one.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn check(&self, method: &Method, headers: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(&HOST).ok_or(refusal(400, "the request names no host"))?;
        // Under a name of its own that leads here, a foreign site would be "the same" site.
        if self.address.ip().is_loopback() && !is_loopback_name(host) {
            return Err(refusal(403, "this server answers to localhost and 127.0.0.1 alone"));
        }
        let writes = match *method {
            Method::GET | Method::HEAD => false,
            Method::POST => true,
            _ => return Err(refusal(405, "expected GET, HEAD or POST")),
        };
        if is_foreign(headers, host, writes) {
            return Err(refusal(403, "pages of other sites may not use this one"));
        }
        let knows = |given: Option<&str>| given.is_some_and(|given| is_same(given, &self.token));
        // Even on loopback: other users of the machine reach it, and may not read these folders.
        if !knows(token) && !knows(cookie(headers, &self.cookie_name())) {
            return Err(refusal(401, "the address lacks its token: open the one that the program printed"));
        }
        if writes && !knows(headers.get(TOKEN).and_then(|value| value.to_str().ok())) {
            return Err(refusal(403, "the token is missing or is not this server's; load the page again"));
        }
        Ok(())
    }

    fn cookie_name(&self) -> String {
        // Cookies are a host's, whatever the port.
        format!("visionprefer-{}", self.address.port())
    }

    /// The cookie that remembers the token of the address, so that it need not stay there.
    pub fn cookie(&self) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name(), self.token)
    }
}

/// Adds the headers that every reply has.
pub fn add_headers(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

/// The query of an address without its token, if there is one in it.
pub fn without_token(uri: &Uri) -> Option<String> {
    let pairs: Vec<_> = form_urlencoded::parse(uri.query()?.as_bytes()).collect();
    pairs.iter().find(|(name, _)| name == "token")?;
    let kept = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs.iter().filter(|(name, _)| name != "token")).finish();
    Some(if kept.is_empty() { uri.path().to_string() } else { format!("{}?{kept}", uri.path()) })
}

/// Whether a page of another site is behind a request. Browsers say so themselves, in headers that pages cannot set; programs say nothing.
fn is_foreign(headers: &HeaderMap, host: &str, writes: bool) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let origin_is_other = text(ORIGIN.as_str()).is_some_and(|origin| !is_origin(origin, host));
    let site_is_other = match text("sec-fetch-site") {
        None | Some("same-origin" | "none") => false,
        // A link on another page may lead here: what it opens is a page of its own, of which the other one sees nothing.
        Some(_) => writes || text("sec-fetch-mode") != Some("navigate") || text("sec-fetch-dest") != Some("document"),
    };
    origin_is_other || site_is_other
}

fn is_origin(origin: &str, host: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host))
}

/// Whether a host header means this machine, whatever the port: a tunnel may have another one at its other end.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    cookies.filter_map(|cookie| cookie.trim().split_once('=')).find(|(found, _)| *found == name).map(|(_, value)| value)
}

/// Compares in a time that does not tell how much is right.
fn is_same(given: &str, token: &str) -> bool {
    given.len() == token.len() && given.bytes().zip(token.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn status(guard: &Guard, method: Method, pairs: &[(&'static str, &str)], token: Option<&str>) -> u16 {
        guard.check(&method, &headers(pairs), token).map_or_else(|refusal| refusal.status, |()| 200)
    }

    #[test]
    fn on_loopback_names_of_other_hosts_and_other_sites_are_refused() {
        let guard = Guard::new("127.0.0.1:8383".parse().unwrap()).unwrap();
        let get = |pairs: &[(&'static str, &str)]| status(&guard, Method::GET, pairs, Some(guard.token()));
        for host in ["127.0.0.1:8383", "localhost:8383", "LOCALHOST", "[::1]:9", "127.0.0.2:1"] {
            assert_eq!(get(&[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:8383", "localhost.evil.example", "10.0.0.1:8383", "", "127.0.0.1.evil.example"] {
            assert_eq!(get(&[("host", host)]), 403, "{host}");
        }
        assert_eq!(get(&[]), 400);
        let here = ("host", "localhost:8383");
        assert_eq!(get(&[here, ("origin", "http://localhost:8383")]), 200);
        for origin in ["http://evil.example", "http://localhost:1", "null", "http://localhost:8383.evil.example"] {
            assert_eq!(get(&[here, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(get(&[here, ("sec-fetch-site", "same-origin")]), 200);
        assert_eq!(get(&[here, ("sec-fetch-site", "same-site")]), 403, "another port of this machine is another site");
        let link = [here, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(get(&link), 200);
        assert_eq!(get(&[link[0], link[1], link[2], ("sec-fetch-dest", "iframe")]), 403);
        assert_eq!(status(&guard, Method::DELETE, &[here], Some(guard.token())), 405);
    }

    #[test]
    fn reading_needs_the_token_and_writing_needs_it_in_a_header() {
        let here = ("host", "localhost:8383");
        let guard = Guard::new("127.0.0.1:8383".parse().unwrap()).unwrap();
        let token = guard.token().to_string();
        assert_eq!(status(&guard, Method::POST, &[here], Some(&token)), 403, "it must be in the header, which other sites cannot set");
        let cookie = format!("visionprefer-8383={token}");
        let known = ("cookie", &*cookie);
        assert_eq!(status(&guard, Method::GET, &[here], None), 401, "another user of the machine");
        assert_eq!(status(&guard, Method::GET, &[here, known], None), 200);
        assert_eq!(status(&guard, Method::POST, &[here, known], None), 403);
        assert_eq!(status(&guard, Method::POST, &[here, known, ("x-token", &token)], None), 200);
        assert_eq!(status(&guard, Method::POST, &[here, known, ("x-token", &token[1..])], None), 403);
        let foreign =
            [here, ("x-token", &*token), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(status(&guard, Method::POST, &foreign, None), 403);

        let open = Guard::new("0.0.0.0:8383".parse().unwrap()).unwrap();
        let (there, token) = (("host", "desk.example:8383"), open.token().to_string());
        assert_ne!(token, guard.token());
        assert_eq!(status(&open, Method::GET, &[there], None), 401);
        assert_eq!(status(&open, Method::GET, &[there], Some("")), 401);
        assert_eq!(status(&open, Method::GET, &[there], Some(&token)), 200);
        let cookie = format!("other=1; visionprefer-8383={token}");
        assert_eq!(status(&open, Method::GET, &[there, ("cookie", &cookie)], None), 200);
        assert_eq!(status(&open, Method::POST, &[there, ("cookie", &cookie)], None), 403);
    }

    #[test]
    fn the_token_leaves_the_address() {
        let left = |address: &str| without_token(&address.parse().unwrap());
        assert_eq!(left("/run?id=0%2Fa&token=x&id=1"), Some("/run?id=0%2Fa&id=1".into()));
        assert_eq!(left("/?token=x"), Some("/".into()));
        assert_eq!((left("/run?id=0"), left("/")), (None, None));
    }
}
