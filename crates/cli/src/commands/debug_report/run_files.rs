//! What is taken of a run's folder: texts that say how it went. No images, no weights, and no prompts unless they are asked for.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use toml::Value;
use vp_core::input_file;

use super::Packed;
use crate::redaction::Redactor;
use crate::run_failure;

/// How many of the last lines of a log are taken, and at most how many bytes.
const LINES: usize = 200;
const BYTES: u64 = 256 << 10;
/// How many files of the folder are listed.
const LISTED: usize = 1000;

/// What takes the place of a prompt.
const PROMPT: &str = "(prompt)";

/// The texts of a run. `redactor` learns the prompts, which other files may quote.
pub fn of_run(run: &Path, redactor: &mut Redactor, with_prompts: bool) -> Vec<Packed> {
    let mut packed = Vec::new();
    let mut add = |name: &str, what: &str, text: Option<String>| {
        packed.extend(text.map(|text| Packed { name: format!("run/{name}"), what: what.into(), text }));
    };
    let config = end_of(&run.join("config.toml"), BYTES);
    let config = match (config, with_prompts) {
        (Some(text), false) => {
            let (text, prompts) = without_prompts(&text);
            redactor.hide_prompts(prompts);
            Some(text)
        }
        (text, _) => text,
    };
    let unless = if with_prompts { "" } else { ", without prompts" };
    add("config.toml", &format!("the run's config{unless}"), config);
    let log = |name: &str| {
        let text = last_lines(&end_of(&run.join(name), BYTES)?);
        Some(if with_prompts { text } else { without_quotations(&text) })
    };
    add("metrics.jsonl", &format!("its last {LINES} metrics"), end_of(&run.join("metrics.jsonl"), BYTES).as_deref().map(last_lines));
    let provenance = end_of(&run.join("provenance.json"), BYTES);
    let provenance = provenance.map(|text| if with_prompts { text } else { without_typed_prompts(&text) });
    add("provenance.json", "its command, versions and times", provenance);
    add(run_failure::FILE, "what ended it", log(run_failure::FILE));
    for name in logs(run) {
        add(&name, &format!("its last {LINES} lines"), log(&name));
    }
    add("files.txt", "names and sizes of its files", Some(listing(run)));
    packed
}

/// Logs that somebody directed into the folder.
fn logs(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| [".log", ".out", ".err"].iter().any(|end| name.ends_with(end)));
    names.sort();
    names
}

/// The last `most` bytes of a regular file, as text, from the beginning of a line on.
fn end_of(path: &Path, most: u64) -> Option<String> {
    let mut file = input_file::open_regular(path).ok()?;
    let skipped = file.metadata().ok()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(skipped)).ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(if skipped > 0 { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) } else { text })
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("{line}\n")).collect()
}

/// A config without its prompts, and the prompts. One that cannot be read is left out, since nobody knows what is in it.
fn without_prompts(config: &str) -> (String, Vec<String>) {
    let Ok(mut table) = toml::from_str::<toml::Table>(config) else {
        return ("# It cannot be read as TOML, and is left out: it may hold prompts (--with-prompts packs it).\n".into(), Vec::new());
    };
    let mut prompts = Vec::new();
    hide(&mut table, false, &mut prompts);
    (toml::to_string(&table).unwrap_or_default(), prompts)
}

/// Replaces what is a prompt by its name, and what a table of prompts lists.
fn hide(table: &mut toml::Table, is_of_prompts: bool, found: &mut Vec<String>) {
    const WORDS: [&str; 6] = ["prompt", "caption", "question", "instruction", "system", "template"];
    for (key, value) in table.iter_mut() {
        let is_prompt = WORDS.iter().any(|word| key.to_lowercase().contains(word));
        // Whoever writes headers into a config writes a key into one.
        let is_header = key.to_lowercase().ends_with("headers");
        match value {
            Value::Table(inner) if is_header => {
                inner.iter_mut().for_each(|(_, value)| *value = Value::String(crate::redaction::REMOVED.into()))
            }
            Value::Table(inner) => hide(inner, is_prompt, found),
            Value::Array(items) if items.iter().any(Value::is_table) => {
                items.iter_mut().filter_map(Value::as_table_mut).for_each(|inner| hide(inner, is_prompt, found))
            }
            // A table of prompts may name the file that they are in.
            _ if is_prompt || (is_of_prompts && key != "file") => empty(value, found),
            _ => {}
        }
    }
}

fn empty(value: &mut Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(std::mem::replace(text, PROMPT.into())),
        Value::Array(items) => items.iter_mut().for_each(|item| empty(item, found)),
        _ => {}
    }
}

/// A command without the prompts that were typed into it.
fn without_typed_prompts(text: &str) -> String {
    static SET: LazyLock<Regex> =
        LazyLock::new(|| regex(r"'([\w.]*(?:prompt|caption|question|instruction|system)[\w.]*)=(?:[^']|'\\+'')*'"));
    static BARE: LazyLock<Regex> = LazyLock::new(|| regex(r#"([\w.]*(?:prompt|caption|question|instruction|system)[\w.]*)=([^\s'"]+)"#));
    static ARGUMENT: LazyLock<Regex> =
        LazyLock::new(|| regex(r#"( (?:-p|-n|--prompt|--negative-prompt)[ =])('(?:[^']|'\\+'')*'|[^\s"]+)"#));
    let set = |found: &Captures<'_>| if found[1].ends_with(".file") { found[0].to_owned() } else { format!("'{}={PROMPT}'", &found[1]) };
    let bare = |found: &Captures<'_>| if found[1].ends_with(".file") { found[0].to_owned() } else { format!("{}={PROMPT}", &found[1]) };
    let text = SET.replace_all(text, set);
    let text = BARE.replace_all(&text, bare);
    ARGUMENT.replace_all(&text, format!("${{1}}{PROMPT}")).into_owned()
}

/// A log without what it quotes at length: warnings about prompts quote them, and so do commands that it proposes.
fn without_quotations(text: &str) -> String {
    // A quote that ends one has a letter before it.
    static LONG: LazyLock<Regex> =
        LazyLock::new(|| regex(r#"(?m)(^|[\s(\[{:=,])(?:"[^"\n]*(?:\s[^"\n]*){2,}"|'[^'\n]*(?:\s[^'\n]*){2,}')"#));
    LONG.replace_all(&without_typed_prompts(text), format!("${{1}}\"{PROMPT}\"")).into_owned()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"))
}

/// The folder's files with their sizes, in order.
fn listing(run: &Path) -> String {
    let (mut lines, mut open) = (Vec::new(), vec![run.to_path_buf()]);
    while let Some(folder) = open.pop().filter(|_| lines.len() <= LISTED) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            match found.is_dir() {
                true => open.push(entry.path()),
                false => lines.push(format!("{:>14}  {}", found.len(), entry.path().strip_prefix(run).unwrap_or(&entry.path()).display())),
            }
        }
    }
    lines.sort_by(|a, b| a[16..].cmp(&b[16..]));
    let more = lines.len() > LISTED;
    lines.truncate(LISTED);
    lines.join("\n") + if more { "\n… and more\n" } else { "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_loses_its_prompts_and_keeps_their_files() {
        let config = "[prompts]\nfile = \"p.txt\"\nlist = [\"a fox\"]\n[preview]\nprompts = [\"a cat\", \"a dog\"]\nnegative_prompt = \"blurry\"\n\
                      seeds = [1]\n[[watch]]\n[watch.vlm]\nquestion = \"is it red?\"\nimages_per_prompt = 4\n[annotator.openai.headers]\nx = \"key\"\n";
        let (text, prompts) = without_prompts(config);
        let mut sorted = prompts.clone();
        sorted.sort();
        assert_eq!(sorted, ["a cat", "a dog", "a fox", "blurry", "is it red?"]);
        for gone in prompts.iter().map(String::as_str).chain(["\"key\""]) {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
        for kept in ["p.txt", "images_per_prompt = 4", "seeds = [1]", PROMPT] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        let (text, _) = without_prompts("prompts = [\"a fox\"\n");
        assert!(text.starts_with('#') && !text.contains("fox"), "{text}");
    }

    #[test]
    fn a_command_and_a_log_lose_the_prompts_that_are_in_them() {
        let command = "visionprefer train --set 'preview.prompts=[\"a fox\", '\\''it'\\'']' --set prompts.file=p.txt --set preview.negative_prompt=fog";
        let expected =
            "visionprefer train --set 'preview.prompts=(prompt)' --set prompts.file=p.txt --set preview.negative_prompt=(prompt)";
        assert_eq!(without_typed_prompts(command), expected);
        let log = "LoRA: a.safetensors\nvisionprefer sample --model 'm' -p 'a fox in snow' -n fog --steps 5\nwarning: \"a very long fox\" is cut, see \"x\" and \"a fox of old\"\n";
        let expected = "LoRA: a.safetensors\nvisionprefer sample --model 'm' -p (prompt) -n (prompt) --steps 5\nwarning: \"(prompt)\" is cut, see \"x\" and \"(prompt)\"\n";
        assert_eq!(without_quotations(log), expected);
    }

    #[test]
    fn the_end_of_a_file_begins_with_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let lines: String = (0..300).map(|number| format!("line {number}\n")).collect();
        fs::write(&path, &lines).unwrap();
        assert_eq!(end_of(&path, 12).as_deref(), Some("line 299\n"));
        assert_eq!(end_of(&path, BYTES).as_deref(), Some(lines.as_str()));
        let last = last_lines(&lines);
        assert!(last.starts_with("line 100\n") && last.ends_with("line 299\n"), "{last}");
        assert_eq!(logs(dir.path()), ["a.log"]);
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/c"), "12").unwrap();
        let listed = listing(dir.path());
        assert_eq!(listed.lines().map(|line| line.split_whitespace().last().unwrap()).collect::<Vec<_>>(), ["a.log", "b/c"]);
    }
}
