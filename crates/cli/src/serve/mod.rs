//! The pages that the program serves itself: runs as they train, evaluations and folders of images.
//!
//! A request goes through [`security`], then to one function that makes the whole reply, on a thread where it may wait for files; only
//! [`events`] is sent bit by bit. [`places`] turns what an address names into a path within the folders given, and nothing else opens a path.

mod charts;
mod evaluations;
mod events;
mod gallery;
mod images;
mod metrics;
mod pages;
mod pictures;
mod places;
mod previews;
mod reply;
mod runs;
mod security;
mod series;
mod server;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

pub use self::evaluations::sides as results_of_evaluation;
pub use self::images::captions as images_with_captions;
pub use self::pictures::image;
use self::places::Places;
use self::previews::Steps;
pub use self::reply::{Asked, Reply};
use self::runs::Watched;
use self::security::Guard;
use crate::terminal::say;
use crate::vote::Ballot;

/// Where pages are served if nothing else is said.
pub const ADDRESS: &str = "127.0.0.1:8383";

/// What the pages show, and what is remembered of it.
struct Site {
    places: Places,
    guard: Guard,
    /// What was read of each run, by its id.
    watched: Mutex<HashMap<String, Arc<Mutex<Watched>>>>,
    /// The steps of which each run has previews.
    steps: Mutex<HashMap<String, Steps>>,
    /// What is voted on, where the pages are for that.
    ballot: Option<Mutex<Ballot>>,
}

impl Site {
    fn new(folders: &[PathBuf], guard: Guard) -> anyhow::Result<Self> {
        Ok(Self { places: Places::open(folders)?, guard, watched: Mutex::default(), steps: Mutex::default(), ballot: None })
    }

    /// What is known of a run; nothing was read of it if it is new.
    fn watched(&self, id: &str, folder: &Path) -> Arc<Mutex<Watched>> {
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(id.to_string()).or_insert_with(|| Arc::new(Mutex::new(Watched::of(folder)))).clone()
    }
}

/// Listens on an address.
///
/// # Errors
/// When the address is taken or is not this machine's.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        let free = SocketAddr::new(address.ip(), 0);
        format!("listen on {address}; another --address serves elsewhere, and --address {free} takes a free port")
    })
}

/// Listens on an address, or on a free port of the same machine where that one is taken: a run should not fail for it.
///
/// # Errors
/// When the address is not this machine's.
pub fn listen_or_elsewhere(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => listen(SocketAddr::new(address.ip(), 0)),
        bound => bound.with_context(|| format!("--serve: listen on {address}")),
    }
}

/// Serves the pages of these folders until the process ends.
///
/// # Errors
/// When a folder is not there, or the system cannot start a thread or open a socket.
pub fn serve(listener: TcpListener, folders: &[PathBuf]) -> anyhow::Result<()> {
    let guard = Guard::new(listener.local_addr().context("look where this listens")?)?;
    let site = Arc::new(Site::new(folders, guard)?);
    say(format_args!("{}", address(&site.guard)));
    server::run(listener, site)
}

/// Serves the page on which people vote until the process ends.
///
/// # Errors
/// When the system cannot start a thread or open a socket.
pub fn serve_votes(listener: TcpListener, ballot: Ballot) -> anyhow::Result<()> {
    let guard = Guard::new(listener.local_addr().context("look where this listens")?)?;
    let site = Arc::new(Site { ballot: Some(Mutex::new(ballot)), ..Site::new(&[], guard)? });
    say(format_args!("{}", address(&site.guard)));
    server::run(listener, site)
}

/// Serves the pages of one run on threads of their own, and goes on.
///
/// # Errors
/// As [`serve`].
pub fn beside(listener: TcpListener, run: &Path) -> anyhow::Result<()> {
    let guard = Guard::new(listener.local_addr().context("look where this listens")?)?;
    let site = Arc::new(Site::new(&[run.to_path_buf()], guard)?);
    say(format_args!("watch it on {}", address(&site.guard)));
    std::thread::Builder::new()
        .name("pages".into())
        .spawn(move || {
            if let Err(error) = server::run(listener, site) {
                crate::terminal::warn(format_args!("the run is not shown any more: {error:#}; training goes on"));
            }
        })
        .context("start a thread for the pages")?;
    Ok(())
}

/// What to open in a browser.
fn address(guard: &Guard) -> String {
    let bound = guard.address();
    // Nobody can open "any address"; this machine's own is one of them.
    let host = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(host, bound.port());
    format!("http://{address}/?token={}", guard.token())
}
