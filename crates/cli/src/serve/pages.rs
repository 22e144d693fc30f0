//! What is served under which address.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use vp_core::input_file;
use vp_evaluation::report::STYLE;
use vp_trainers::run::attendant::Request;

use super::places::{FolderKind, ShownFolder};
use super::reply::{Asked, Reply};
use super::security::POLICY_OF_REPORTS;
use super::{Site, charts, gallery, pictures, previews, runs};
use crate::vote;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
/// Where a page gets the token for what it writes.
const TOKEN: &str = "{{token}}";

/// Pages, by their address.
const PAGES: [(&str, &str); 3] = [
    ("/", include_str!("../../assets/index.html")),
    ("/run", include_str!("../../assets/run.html")),
    ("/gallery", include_str!("../../assets/gallery.html")),
];
/// What pages load, by its address. The first style sheet is that of reports.
const ASSETS: [(&str, &str, &str); 10] = [
    ("/assets/report.css", CSS, STYLE),
    ("/assets/pages.css", CSS, include_str!("../../assets/pages.css")),
    ("/assets/page.js", SCRIPT, include_str!("../../assets/page.js")),
    ("/assets/chart.js", SCRIPT, include_str!("../../assets/chart.js")),
    ("/assets/index.js", SCRIPT, include_str!("../../assets/index.js")),
    ("/assets/run.js", SCRIPT, include_str!("../../assets/run.js")),
    ("/assets/previews.js", SCRIPT, include_str!("../../assets/previews.js")),
    ("/assets/gallery.js", SCRIPT, include_str!("../../assets/gallery.js")),
    ("/assets/vote.js", SCRIPT, include_str!("../../assets/vote.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
];

/// The page on which people vote, in place of the others.
const VOTE: (&str, &str) = ("/", include_str!("../../assets/vote.html"));

/// The reply to a request that may be answered.
pub fn reply(site: &Site, asked: &Asked) -> Reply {
    let pages = if site.ballot.is_some() { &[VOTE][..] } else { &PAGES[..] };
    if let Some((_, text)) = pages.iter().find(|(path, _)| *path == asked.path && !asked.writes) {
        // Hexadecimal digits: nothing to escape.
        return Reply::new(HTML, text.replace(TOKEN, site.guard.token()));
    }
    if let Some((_, kind, text)) = ASSETS.iter().find(|(path, ..)| *path == asked.path && !asked.writes) {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        return Reply::new(kind, *text).versioned(format!("\"{:x}\"", hasher.finish()), asked.known.as_deref());
    }
    if let Some(ballot) = &site.ballot {
        return vote::reply(ballot, asked).unwrap_or_else(Reply::missing);
    }
    match (asked.writes, asked.path.as_str()) {
        (false, "/api/places") => Reply::json(&places(site)),
        (false, "/api/status") => of_run(site, asked, |place| Reply::json(&runs::status(site, place))),
        (false, "/api/details") => of_run(site, asked, runs::details),
        (false, "/api/charts") => charts::reply(site, asked),
        (false, "/api/previews") => of_run(site, asked, |place| previews::page(site, place, asked)),
        (false, "/api/preview") => of_run(site, asked, |place| previews::one(site, place, asked)),
        (false, "/api/gallery") => gallery::reply(site, asked),
        (false, "/image") => pictures::reply(site, asked),
        (false, "/report") => report(site, asked),
        (true, "/api/stop") => of_run(site, asked, |place| runs::ask(place, Request::Stop)),
        (true, "/api/save") => of_run(site, asked, |place| runs::ask(place, Request::Save)),
        _ => Reply::missing(),
    }
}

/// The report in the folder of a run or an evaluation.
fn report(site: &Site, asked: &Asked) -> Reply {
    let Some(path) = asked.value("id").and_then(|id| site.places.report(id)) else { return Reply::missing() };
    match input_file::read_regular(&path) {
        Ok(bytes) => Reply::new(HTML, bytes).under(POLICY_OF_REPORTS),
        Err(error) => Reply::refused(500, &format!("cannot read the report: {error}")),
    }
}

/// A reply about the run that the address names.
fn of_run(site: &Site, asked: &Asked, reply: impl FnOnce(&ShownFolder) -> Reply) -> Reply {
    let place = asked.value("id").and_then(|id| site.places.find(id)).filter(|place| place.kind == FolderKind::Run);
    place.map_or_else(Reply::missing, |place| reply(&place))
}

/// Everything there is to show.
pub fn places(site: &Site) -> Value {
    let about = |place: ShownFolder| match place.kind {
        FolderKind::Run => runs::listed(site, &place),
        kind => json!({ "id": place.id, "name": place.name, "kind": kind.name(), "folder": place.folder.display().to_string() }),
    };
    site.places.list().into_iter().map(about).collect()
}
