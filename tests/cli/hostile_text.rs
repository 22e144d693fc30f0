//! Text of files that would act on the terminal or fill it, and files that are none.

use crate::util::{Finished, root, run};

/// Asserts that nothing in a refused command's message acts on a terminal, and that it is short.
fn clean(finished: Finished) -> String {
    let (told, out) = (finished.stderr(), finished.stdout());
    for text in [&told, &out] {
        assert!(!text.contains(|c: char| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
        assert!(text.lines().all(|line| line.chars().count() <= 600), "{} characters", text.len());
    }
    finished.refused()
}

#[test]
fn names_that_would_act_on_the_terminal_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let manifest = path("metadata.jsonl");
    std::fs::write(&manifest, "{\"file_name\": \"a\\u001b[2Jb\\u202ec.png\", \"text\": \"x\"}\n").unwrap();
    let told = clean(run(&["score", "-r", "brightness", "--manifest", &manifest]));
    assert!(told.contains("a\\u001b[2Jb\\u202ec.png"), "{told}");
    clean(run(&["dataset", "validate", folder.path().to_str().unwrap()]));
    let lora = path("lora.safetensors");
    let name = "unet.\u{1b}]0;title\u{7}x.lora_A.weight";
    let empty = (name, &[0usize][..], Box::new(Vec::new) as Box<dyn FnOnce() -> Vec<f32>>);
    vp_models::weights::save_safetensors(lora.as_ref(), [empty], &[], vp_models::weights::SaveType::F32).unwrap();
    let told = clean(run(&["sample", "--lora", &lora, "-p", "x", "--steps", "1", "-o", &path("out")]));
    assert!(told.contains("\\u001b]0;title\\u0007x"), "{told}");
}

#[test]
fn a_line_of_ninety_kilobytes_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    std::fs::write(path("p.tsv"), "x".repeat(90_000)).unwrap();
    let told = clean(run(&["annotate", "-a", "judge", "--prompts", &path("p.tsv"), "--dry-run", "-o", &path("out")]));
    assert!(told.contains("p.tsv") && told.contains("named Prompt"), "{told}");
    let config = std::fs::read_to_string(root().join("configs/refl/tiny.toml")).unwrap();
    std::fs::write(path("c.toml"), format!("{config}\nkey = [{}", "[".repeat(90_000))).unwrap();
    let told = clean(run(&["train", "--config", &path("c.toml"), "--dry-run"]));
    assert!(told.contains("c.toml"), "{told}");
}

#[test]
fn a_folder_is_no_file_of_records() {
    for command in ["split", "validate"] {
        let told = clean(run(&["dataset", command, "docs"]));
        assert!(told.contains("docs"), "{told}");
    }
    assert!(clean(run(&["dataset", "split", "docs"])).contains("it is a folder"));
}
