//! What changes while somebody looks, as server-sent events: `metrics` with the new lines of a run, `status` with how it is, `reload` where the page
//! must ask anew, and `places` for the list.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::places::ShownFolder;
use super::reply::{Asked, Payload, Reply};
use super::{Site, charts, pages, runs, security};

/// How often runs are looked at, and how often the list is.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AT_LIST: Duration = Duration::from_secs(2);
/// After so many looks without news, something is sent, by which a connection that is gone is noticed.
const SILENT_LOOKS: u32 = 20;

/// A run that somebody watches, and what they know of it.
struct Followed {
    place: ShownFolder,
    /// The number of the next line, and how often the file was replaced.
    position: (u64, u64),
    status: Value,
}

/// What somebody watches.
enum Watching {
    Runs(Vec<Followed>),
    List(Value),
}

/// The stream of events of the runs that the address names, each from the position behind its `after`; or of the list.
pub fn stream(asked: &Asked, site: Arc<Site>) -> Response<Payload> {
    let places = charts::asked_runs(&site, asked);
    let watching = if asked.value("id").is_none() {
        Watching::List(Value::Null)
    } else if places.is_empty() {
        return Reply::missing().send();
    } else {
        let mut after = asked.values("after").map(position);
        let follow = |place| Followed { place, position: after.next().flatten().unwrap_or((0, 0)), status: Value::Null };
        Watching::Runs(places.into_iter().map(follow).collect())
    };
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(send_news(watching, site, sender));
    let mut response = Response::new(Payload::Stream(receiver));
    let headers = response.headers_mut();
    security::add_headers(headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `12,0`
fn position(text: &str) -> Option<(u64, u64)> {
    let (line, replaced) = text.split_once(',')?;
    Some((line.parse().ok()?, replaced.parse().ok()?))
}

/// Sends what is new until nobody listens.
async fn send_news(mut watching: Watching, site: Arc<Site>, sender: mpsc::Sender<Bytes>) {
    let look = if matches!(watching, Watching::List(_)) { LOOK_AT_LIST } else { LOOK };
    let mut silent = 0;
    loop {
        let site = site.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let news = watching.news(&site);
            (watching, news)
        });
        let Ok((still, mut news)) = looked.await else { return };
        watching = still;
        silent = if news.is_empty() { silent + 1 } else { 0 };
        if silent >= SILENT_LOOKS {
            (silent, news) = (0, ": nothing new\n\n".into());
        }
        if !news.is_empty() && sender.send(news.into()).await.is_err() {
            return;
        }
        if tokio::time::timeout(look, sender.closed()).await.is_ok() {
            return;
        }
    }
}

impl Watching {
    /// What is new since the last time, as events.
    fn news(&mut self, site: &Site) -> String {
        match self {
            Self::List(known) => {
                let places = pages::places(site);
                if places == *known {
                    return String::new();
                }
                *known = places;
                event("places", known)
            }
            Self::Runs(runs) => runs.iter_mut().map(|run| run.news(site)).collect(),
        }
    }
}

impl Followed {
    fn news(&mut self, site: &Site) -> String {
        let status = runs::status(site, &self.place);
        let mut news = String::new();
        let watched = site.watched(&self.place.id, &self.place.folder);
        let watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
        let now = watched.metrics.position();
        if now != self.position {
            // The file was replaced, or more has come than is kept.
            let lines = watched.metrics.lines_from(self.position.0).filter(|_| now.1 == self.position.1);
            news += &match lines {
                Some(lines) => {
                    let lines: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
                    event("metrics", &json!({ "run": self.place.id, "lines": lines }))
                }
                None => event("reload", &json!({ "run": self.place.id })),
            };
            self.position = now;
        }
        if status != self.status {
            news += &event("status", &status);
            self.status = status;
        }
        news
    }
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
