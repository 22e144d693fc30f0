//! HTTP: connections in, replies out. One thread waits for all connections; whatever waits for files does so on a few others.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::body::{Body, Incoming};
use hyper::header::IF_NONE_MATCH;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use super::reply::{Asked, Payload, Reply};
use super::{Site, events, pages, security};

/// Threads that read files and decode images.
const WORKERS: usize = 4;
/// Connections at a time; more wait.
const CONNECTIONS: usize = 256;
/// How long a client may take to send its headers.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest address, and the most that is sent along with one.
const LONGEST: usize = 16 << 10;

/// Answers requests until the process ends.
///
/// # Errors
/// When the system cannot start a thread or open a socket.
pub fn run(listener: TcpListener, site: Arc<Site>) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().max_blocking_threads(WORKERS).build().context("start the server")?;
    runtime.block_on(async {
        listener.set_nonblocking(true).context("listen without waiting")?;
        accept(tokio::net::TcpListener::from_std(listener).context("listen")?, site).await;
        Ok(())
    })
}

async fn accept(listener: tokio::net::TcpListener, site: Arc<Site>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, most likely: some will be free again.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let site = site.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, site.clone()));
            let mut connection = http1::Builder::new();
            let connection = connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 << 10);
            // A client that went away is not an error.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>, site: Arc<Site>) -> Result<Response<Payload>, Infallible> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    if query.len() > LONGEST {
        return Ok(Reply::refused(414, "the address is too long").send());
    }
    let mut asked = Asked {
        path: head.uri.path().to_string(),
        query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        writes: head.method == Method::POST,
        known: head.headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).map(String::from),
        body: Vec::new(),
    };
    if let Err(refused) = site.guard.check(&head.method, &head.headers, asked.value("token")) {
        return Ok(Reply::refused(refused.status, refused.reason).send());
    }
    // The token need not stay in the address, where others see it over one's shoulder.
    if !asked.writes
        && let Some(location) = security::without_token(&head.uri)
    {
        return Ok(Reply::elsewhere(location, site.guard.cookie()).send());
    }
    if asked.path == "/events" && !asked.writes {
        return Ok(events::stream(&asked, site));
    }
    if asked.writes {
        match whole(body).await {
            Some(body) => asked.body = body,
            None => return Ok(Reply::refused(413, "that is more than any page sends").send()),
        }
    }
    let reply = tokio::task::spawn_blocking(move || pages::reply(&site, &asked)).await;
    // A panic was told where it happened.
    Ok(reply.unwrap_or_else(|_| Reply::refused(500, "a fault of the program; its terminal says which")).send())
}

/// All that is sent along with a request; `None` if it is too much or breaks off.
async fn whole(mut body: Incoming) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let piece = frame.ok()?.into_data().unwrap_or_default();
        if bytes.len() + piece.len() > LONGEST {
            return None;
        }
        bytes.extend_from_slice(&piece);
    }
    Some(bytes)
}
