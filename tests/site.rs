//! The documentation as a site and on the forge: every link leads somewhere, every page is in the contents, every image is described. Nothing here
//! asks the network; links to this repository's own address are looked up in the checkout.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;
use toml::Table;

/// Markdown outside docs/, which is read on the forge alone.
const FORGE_PAGES: [&str; 5] = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "checkpoints/shapes/README.md"];
/// Pages of docs/ that are not chapters.
const NO_CHAPTERS: [&str; 2] = ["docs/404.md", "docs/SUMMARY.md"];
const CONTENTS: &str = "docs/SUMMARY.md";

/// Text by path from the root of the repository.
type Pages = BTreeMap<String, String>;

/// Where a page points to, or what it shows.
struct Link {
    line: usize,
    target: String,
    is_image: bool,
    /// The text of a link, or the alternative text of an image.
    text: String,
}

// Markdown, as far as links go.

/// The page with code blanked out, lines kept: what stands in code is not a link. Blocks that are indented by four spaces stay, since items of lists are
/// too.
fn without_code(page: &str) -> String {
    let (span, mut fenced) = (Regex::new(r"`+[^`]*`+").unwrap(), false);
    let line = |line: &str| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        if fenced || is_fence { "" } else { line }.to_owned()
    };
    let prose = page.lines().map(line).collect::<Vec<_>>().join("\n");
    // A span may go over the end of a line, but not over that of a paragraph.
    let blank = |found: &regex::Captures| format!("`code`{}", "\n".repeat(found[0].matches('\n').count()));
    prose.split("\n\n").map(|paragraph| span.replace_all(paragraph, blank)).collect::<Vec<_>>().join("\n\n")
}

fn links(page: &str) -> Vec<Link> {
    let page = without_code(page);
    let markdown = Regex::new(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)").unwrap();
    let tag = Regex::new(r"<(img|a)\s[^>]*>").unwrap();
    let attribute = |tag: &str, name: &str| {
        let value = Regex::new(&format!(r#"\s{name}="([^"]*)""#)).unwrap();
        value.captures(tag).map(|found| found[1].to_owned())
    };
    let line = |at: usize| page[..at].lines().count().max(1);
    let mut links = Vec::new();
    for found in markdown.captures_iter(&page) {
        let at = found.get(3).expect("the group of the target").start();
        links.push(Link { line: line(at), target: found[3].to_owned(), is_image: &found[1] == "!", text: found[2].to_owned() });
    }
    for found in tag.captures_iter(&page) {
        let is_image = &found[1] == "img";
        let (target, text) = if is_image { ("src", attribute(&found[0], "alt")) } else { ("href", None) };
        let Some(target) = attribute(&found[0], target) else { continue };
        links.push(Link { line: line(found.get(0).expect("a match").end()), target, is_image, text: text.unwrap_or_default() });
    }
    links
}

/// The anchors of a page, as the forge and mdBook make them from headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let (target, mut anchors) = (Regex::new(r"\]\([^()]*\)").unwrap(), BTreeSet::new());
    let mut fenced = false;
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let heading = target.replace_all(heading.trim(), "]").to_lowercase().replace(char::is_whitespace, "-");
        let anchor: String = heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let repeated = (1..).map(|number| format!("{anchor}-{number}"));
        let free = [anchor.clone()].into_iter().chain(repeated).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

/// `folder/../a` without the detour; `None` above the root.
fn resolved(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

// The rules. Each returns its findings, one per line.

/// Links and anchors that lead nowhere, on the forge or in the site. `exists` knows the files that are not pages.
fn broken_links(pages: &Pages, repository: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, page) in pages {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for Link { line, target, .. } in links(page) {
            let finding = broken_link(path, folder, &target, pages, repository, exists);
            findings.extend(finding.map(|finding| format!("{path}:{line}: ({target}): {finding}")));
        }
    }
    findings
}

fn broken_link(path: &str, folder: &str, target: &str, pages: &Pages, repository: &str, exists: &dyn Fn(&str) -> bool) -> Option<String> {
    let ours = ["blob", "tree"].iter().find_map(|kind| target.strip_prefix(&format!("{repository}/{kind}/main/")));
    if ours.is_none() && (target.contains("://") || target.starts_with("mailto:")) {
        return None;
    }
    let (file, anchor) = ours.unwrap_or(target).split_once('#').unwrap_or((ours.unwrap_or(target), ""));
    let found = match (ours, file) {
        (Some(_), file) => Some(file.trim_end_matches('/').to_owned()),
        (None, "") => Some(path.to_owned()),
        (None, file) => resolved(&format!("{folder}/{file}")),
    };
    let Some(found) = found else { return Some("leads out of the repository".into()) };
    let in_docs = |path: &str| path.starts_with("docs/");
    if ours.is_none() && in_docs(path) && !in_docs(&found) {
        return Some(format!("the site holds docs/ alone; write {repository}/blob/main/{found}"));
    }
    if ours.is_some() && in_docs(path) && in_docs(&found) {
        return Some("leads from the site to the forge; write a relative link".into());
    }
    match pages.get(&found) {
        Some(page) => (!anchor.is_empty() && !anchors(page).contains(anchor)).then(|| format!("{found} has no heading #{anchor}")),
        None if !exists(&found) => Some(format!("there is no {found}")),
        None => None,
    }
}

/// Images that a reader who does not see them learns nothing of.
fn undescribed_images(pages: &Pages) -> Vec<String> {
    let images = pages.iter().flat_map(|(path, page)| links(page).into_iter().map(move |link| (path, link)));
    images
        .filter(|(_, link)| link.is_image && link.text.trim().is_empty())
        .map(|(path, link)| format!("{path}:{}: {} has no alternative text", link.line, link.target))
        .collect()
}

/// Pages of docs/ that are not in the contents exactly once, and READMEs to which the site does not know the way.
fn misplaced_pages(pages: &Pages, book: &Table) -> Vec<String> {
    let mut findings = Vec::new();
    let listed: Vec<String> = pages.get(CONTENTS).map(|contents| links(contents)).into_iter().flatten().map(|link| link.target).collect();
    let redirects = || book.get("output")?.get("html")?.get("redirect");
    for (path, page) in pages.iter().filter(|(path, _)| !NO_CHAPTERS.contains(&path.as_str())) {
        let Some(chapter) = path.strip_prefix("docs/") else { continue };
        match listed.iter().filter(|target| *target == chapter).count() {
            1 => {}
            0 => findings.push(format!("{CONTENTS} does not list {chapter}")),
            times => findings.push(format!("{CONTENTS} lists {chapter} {times} times")),
        }
        // mdBook renders it as index.html, but leaves the name in links to it.
        let rendered = format!("/{}.html", chapter.trim_end_matches(".md"));
        if chapter.ends_with("README.md") && redirects().and_then(|table| table.get(&rendered)?.as_str()) != Some("index.html") {
            findings.push(format!("book.toml: [output.html.redirect] needs \"{rendered}\" = \"index.html\""));
        }
        if !page.starts_with("# ") {
            findings.push(format!("{path}: begins without a title"));
        }
    }
    findings
}

// This repository.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &str, pages: &mut Pages) {
    for entry in fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}")) {
        let entry = entry.expect("a readable folder");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("a UTF-8 name"));
        if entry.path().is_dir() {
            walk(&path, pages);
        } else if path.ends_with(".md") {
            pages.insert(path.clone(), fs::read_to_string(entry.path()).unwrap_or_else(|error| panic!("{path}: {error}")));
        }
    }
}

fn these_pages() -> Pages {
    let mut pages = Pages::new();
    walk("docs", &mut pages);
    pages.extend(
        FORGE_PAGES.map(|page| (page.to_owned(), fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}")))),
    );
    pages
}

fn book() -> Table {
    fs::read_to_string(root().join("book.toml")).expect("book.toml").parse().expect("TOML in book.toml")
}

#[track_caller]
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_link_leads_somewhere() {
    let pages = these_pages();
    let relative = pages.values().flat_map(|page| links(page)).filter(|link| !link.target.contains("://")).count();
    assert!(relative >= 150, "found {relative} relative links only");
    assert_none(&broken_links(&pages, env!("CARGO_PKG_REPOSITORY"), &|path| root().join(path).exists()));
}

#[test]
fn every_image_has_an_alternative_text() {
    let pages = these_pages();
    assert!(pages.values().flat_map(|page| links(page)).any(|link| link.is_image), "found no image");
    assert_none(&undescribed_images(&pages));
}

#[test]
fn every_page_is_in_the_contents_once() {
    assert_none(&misplaced_pages(&these_pages(), &book()));
}

#[test]
fn the_site_is_that_of_this_repository() {
    let book = book();
    let html = &book["output"]["html"];
    assert_eq!(book["book"]["src"].as_str(), Some("docs"));
    assert_eq!(html["git-repository-url"].as_str(), Some(env!("CARGO_PKG_REPOSITORY")));
    assert_eq!(html["edit-url-template"].as_str(), Some(concat!(env!("CARGO_PKG_REPOSITORY"), "/edit/main/{path}")));
    for style in html["additional-css"].as_array().expect("a list of styles") {
        let style = style.as_str().expect("a path");
        assert!(root().join(style).is_file(), "there is no {style}");
    }
}

// What each rule refuses.

fn pages(texts: &[(&str, &str)]) -> Pages {
    texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

const FORGE: &str = "https://forge.example/o/r";

fn broken(path: &str, text: &str) -> Vec<String> {
    let other = ("docs/guide/other.md", "# Other\n\n## Whole weights: `[lora]`\n\n## Twice\n\n## Twice\n\n```sh\n# not a heading\n```\n");
    broken_links(&pages(&[(path, text), other]), FORGE, &|path| ["configs", "configs/a.toml", "docs/images/a.png"].contains(&path))
}

#[test]
fn broken_links_are_found() {
    let page = "docs/guide/page.md";
    for good in [
        "# Page\n\n[a](other.md) [b](../guide/other.md#twice-1) [c](#page) [d](https://example.org/x.md)",
        "[a](other.md#whole-weights-lora)\n\n<img src=\"../images/a.png\" alt=\"a\">",
        "[`a`](https://forge.example/o/r/blob/main/configs/a.toml), [all](https://forge.example/o/r/tree/main/configs)",
        "`[a](none.md)`\n\n```md\n[a](none.md)\n```",
    ] {
        assert_none(&broken(page, good));
    }
    let finding = |text: &str| broken(page, text).join("\n");
    assert_eq!(finding("# Page\n\nText with\n[a link](none.md)"), "docs/guide/page.md:4: (none.md): there is no docs/guide/none.md");
    assert_eq!(finding("[a](other.md#thrice)"), "docs/guide/page.md:1: (other.md#thrice): docs/guide/other.md has no heading #thrice");
    assert!(finding("[a](other.md#not-a-heading)").ends_with("has no heading #not-a-heading"));
    assert!(finding("[a](#nowhere)").ends_with("docs/guide/page.md has no heading #nowhere"));
    assert!(finding("[a](../../configs/a.toml)").ends_with("write https://forge.example/o/r/blob/main/configs/a.toml"));
    assert!(finding("[a](https://forge.example/o/r/blob/main/configs/b.toml)").ends_with("there is no configs/b.toml"));
    assert!(finding("[a](https://forge.example/o/r/blob/main/docs/guide/other.md)").ends_with("write a relative link"));
    assert!(finding("[a](../../../x)").ends_with("leads out of the repository"));
    assert!(finding("<img src=\"../images/b.png\" alt=\"b\">").ends_with("there is no docs/images/b.png"));
    assert!(finding("<a href=\"none.md\">a</a>").ends_with("there is no docs/guide/none.md"));
}

#[test]
fn pages_outside_docs_link_to_files() {
    assert_none(&broken("README.md", "[a](configs/a.toml) [b](docs/guide/other.md#twice)"));
    assert_eq!(broken("README.md", "[a](configs/b.toml)").len(), 1);
}

#[test]
fn images_without_a_text_are_found() {
    let found = |text: &str| undescribed_images(&pages(&[("docs/a.md", text)])).len();
    assert_eq!(found("![a fox](fox.png) <img src=\"fox.png\" width=\"5\" alt=\"a fox\"> [](fox.png)"), 0);
    for image in ["![](fox.png)", "![ ](fox.png)", "<img src=\"fox.png\">", "<img src=\"fox.png\" alt=\"\">", "<img\n  src=\"fox.png\">"] {
        assert_eq!(found(image), 1, "{image}");
    }
}

#[test]
fn pages_that_the_contents_miss_or_repeat_are_found() {
    let redirects = "[output.html.redirect]\n\"/README.html\" = \"index.html\"".parse().unwrap();
    let found = |contents: &str, book: &Table| {
        misplaced_pages(&pages(&[(CONTENTS, contents), ("docs/README.md", "# Front"), ("docs/a/b.md", "# B"), ("README.md", "")]), book)
    };
    assert_none(&found("[Front](README.md)\n- [B](a/b.md)", &redirects));
    assert_eq!(found("[Front](README.md)", &redirects), ["docs/SUMMARY.md does not list a/b.md"]);
    assert_eq!(found("[Front](README.md)\n- [B](a/b.md)\n- [C](a/b.md)", &redirects), ["docs/SUMMARY.md lists a/b.md 2 times"]);
    let lost = found("[Front](README.md)\n- [B](a/b.md)", &Table::new());
    assert_eq!(lost, ["book.toml: [output.html.redirect] needs \"/README.html\" = \"index.html\""]);
    let untitled = misplaced_pages(&pages(&[(CONTENTS, "[A](a.md)"), ("docs/a.md", "Text")]), &redirects);
    assert_eq!(untitled, ["docs/a.md: begins without a title"]);
}
