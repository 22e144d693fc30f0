//! `completions` and `man`.

use std::process::Command;

use crate::util::{files, run};

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = run(&["--help"]).ok().stdout();
    let list = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
    // A longer description goes on in a line that is indented further.
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<String> = names.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|name| name != "help").collect();
    assert!(names.len() > 10 && names.iter().any(|name| name == "train"), "{names:?}");
    names
}

fn completions(shell: &str) -> String {
    run(&["completions", shell]).ok().stdout()
}

#[test]
fn every_shell_gets_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = completions(shell);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: no {command}");
        }
        assert!(script.contains("vae-tiling"), "{shell}: no options");
        // What is hidden stays so.
        assert!(!script.contains("docs/reference"), "{shell}: offers `docs`");
    }
    let refused = run(&["completions", "csh"]).refused();
    assert!(refused.contains("[possible values: bash, elvish, fish, powershell, zsh]"), "{refused}");
}

#[cfg(unix)]
#[test]
fn bash_completes_commands_options_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("visionprefer");
    std::fs::write(&script, completions("bash")).unwrap();
    // As bash calls the function: the program, the word, and the word before it.
    let completed = |words: &[&str]| {
        let (word, before) = (words[words.len() - 1], words[words.len() - 2]);
        let call = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; _visionprefer visionprefer '{word}' '{before}'; echo \"${{COMPREPLY[*]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1
        );
        let output = Command::new("bash").args(["--norc", "-c", &call]).output().expect("bash runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert!(Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
    assert_eq!(completed(&["visionprefer", "sam"]), "sample");
    assert_eq!(completed(&["visionprefer", "train", "--prove"]), "--prove-resume");
    assert_eq!(completed(&["visionprefer", "dataset", "conv"]), "convert");
    assert_eq!(completed(&["visionprefer", "list", "sched"]), "schedulers");
}

#[test]
fn every_command_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    let told = run(&["man", folder.to_str().unwrap()]).ok().stdout();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let program = read("visionprefer.1");
    assert_eq!(program, run(&["man"]).ok().stdout());
    for command in commands() {
        let escaped = command.replace('-', "\\-");
        assert!(program.contains(&format!("visionprefer\\-{escaped}(1)")), "the program's page says nothing of {command}");
        let page = read(&format!("visionprefer-{command}.1"));
        let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        assert!(
            sections.starts_with(&["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]) && !sections.contains(&"EXTRA"),
            "{command}: {sections:?}"
        );
    }
    // A command below a command, an option, an example.
    assert!(read("visionprefer-dataset.1").contains("visionprefer\\-dataset\\-convert(1)"));
    assert!(read("visionprefer-dataset-convert.1").contains("\n.SH OPTIONS\n"));
    let train = read("visionprefer-train.1");
    assert!(train.contains("\\-\\-prove\\-resume") && train.contains("\n.SH NOTES\n") && train.contains("VP_DEVICE"), "{train}");
    assert!(!folder.join("visionprefer-docs.1").exists() && !folder.join("visionprefer-help.1").exists());
    assert_eq!(told, format!("wrote {} pages to {}\n", files(&folder).len(), folder.display()));
}
