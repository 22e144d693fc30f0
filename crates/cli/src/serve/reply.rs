//! A request, and the reply to it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use super::security;

/// What was asked, as far as replies depend on it.
pub struct Asked {
    /// `/api/run`
    pub path: String,
    /// The pairs of the query, decoded.
    pub query: Vec<(String, String)>,
    /// Whether it is to change something.
    pub writes: bool,
    /// The version that the browser has already.
    pub known: Option<String>,
    /// What is sent along.
    pub body: Vec<u8>,
}

impl Asked {
    /// The first value of this name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// All values of this name.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A number; `None` also for what is none.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.value(name)?.parse().ok()
    }
}

/// A whole reply.
pub struct Reply {
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
    /// Which version of it this is, by which a browser can ask whether it has it.
    version: Option<String>,
    /// Where to go instead, and what to remember.
    elsewhere: Option<(String, String)>,
    /// What it may do, if it is not what every page may.
    policy: Option<&'static str>,
}

impl Reply {
    /// Bytes of a kind.
    pub fn new(kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, kind, body: body.into(), version: None, elsewhere: None, policy: None }
    }

    /// JSON.
    pub fn json(value: &Value) -> Self {
        Self::new("application/json", value.to_string())
    }

    /// That something cannot be done, and why.
    pub fn refused(status: u16, reason: &str) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, ..Self::json(&json!({ "error": reason })) }
    }

    /// There is nothing of that name.
    pub fn missing() -> Self {
        Self::refused(404, "there is nothing here of that name")
    }

    /// To be asked for at another address of this server, with a cookie.
    pub fn elsewhere(location: String, cookie: String) -> Self {
        Self { status: StatusCode::SEE_OTHER, elsewhere: Some((location, cookie)), ..Self::new("text/plain; charset=utf-8", "") }
    }

    /// Of this version; without its bytes if the browser has them.
    pub fn versioned(self, version: String, known: Option<&str>) -> Self {
        if known == Some(&*version) {
            return Self { status: StatusCode::NOT_MODIFIED, body: Bytes::new(), version: Some(version), ..self };
        }
        Self { version: Some(version), ..self }
    }

    /// With a policy of its own.
    pub fn under(self, policy: &'static str) -> Self {
        Self { policy: Some(policy), ..self }
    }

    /// As it is sent.
    pub fn send(self) -> Response<Payload> {
        let mut response = Response::new(Payload::Whole(Some(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        security::add_headers(headers);
        if let Some(policy) = self.policy {
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        // Images are asked for again, and answered with "the same" where they are; a run that is resumed draws some of them again.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(if self.version.is_some() { "private, no-cache" } else { "no-store" }));
        headers.extend(self.version.and_then(|version| Some((ETAG, HeaderValue::from_str(&version).ok()?))));
        if let Some((location, cookie)) = self.elsewhere {
            headers.extend(HeaderValue::from_str(&location).ok().map(|value| (LOCATION, value)));
            headers.extend(HeaderValue::from_str(&cookie).ok().map(|value| (SET_COOKIE, value)));
        }
        response
    }
}

/// What is sent behind the headers.
pub enum Payload {
    /// At once.
    Whole(Option<Bytes>),
    /// As it comes.
    Stream(Receiver<Bytes>),
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(receiver) => receiver.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
