use super::*;

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("vp-atomic-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_failed_replacement_leaves_the_old_file_and_no_litter() {
    let folder = folder("failed");
    let path = folder.join("file");
    write(&path, b"old").unwrap();
    assert!(replace(&path, |file| file.write_all(b"new").and(Err(io::Error::other("disk full")))).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(&folder), ["file"]);
    fs::remove_dir_all(folder).unwrap();
}

#[cfg(unix)]
#[test]
fn a_link_keeps_pointing_and_a_pipe_stays_a_pipe() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let folder = folder("links");
    let [real, link, link_to_link, pipe] = ["real", "link", "link-to-link", "pipe"].map(|name| folder.join(name));
    symlink("real", &link).unwrap();
    symlink(&link, &link_to_link).unwrap();
    // The target is not there yet, then it is.
    for text in ["first", "second"] {
        write(&link_to_link, text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), text);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("real"));
        assert_eq!(fs::read_link(&link_to_link).unwrap(), link);
    }
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    write(&pipe, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), "through");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    write(Path::new("/dev/null"), b"nothing").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let circle = folder.join("circle");
    symlink("circle", &circle).unwrap();
    assert!(write(&circle, b"").unwrap_err().to_string().contains("links"));
    assert_eq!(write(&folder, b"").unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(names(&folder), ["circle", "link", "link-to-link", "pipe", "real"]);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_a_killed_process_left_of_a_name_goes_when_it_is_written_again() {
    let folder = folder("leftovers");
    for name in [".a.tmp-1-0", ".b.tmp-1-1", ".a.tmp-1", ".a.txt.tmp-1-2"] {
        fs::write(folder.join(name), "half").unwrap();
    }
    fs::create_dir_all(folder.join(".a.tmp-77-3/unet")).unwrap();
    let in_use = File::create(folder.join(".a.tmp-1-4")).unwrap();
    in_use.lock().unwrap();
    write(&folder.join("a"), b"whole").unwrap();
    assert_eq!(names(&folder), [".a.tmp-1", ".a.tmp-1-4", ".a.txt.tmp-1-2", ".b.tmp-1-1", "a"]);
    in_use.unlock().unwrap();
    sweep(&folder);
    assert_eq!(names(&folder), [".a.tmp-1", "a"]);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_folder_appears_whole_or_not_at_all() {
    let folder = folder("folders");
    let model = folder.join("model");
    drop(TemporaryFolder::beside(&model).unwrap());
    assert!(names(&folder).is_empty());
    for text in ["first", "second"] {
        let temporary = TemporaryFolder::beside(&model).unwrap();
        fs::write(temporary.path().join("weights"), text).unwrap();
        // Another process does not take it for a leftover.
        sweep(&folder);
        temporary.replace().unwrap();
        assert_eq!(fs::read_to_string(model.join("weights")).unwrap(), text);
        assert_eq!(names(&folder), ["model"]);
    }
    let late = TemporaryFolder::beside(&model).unwrap();
    assert!(late.rename().is_err());
    // Killed while the old folder had made room and the new one had not come.
    fs::rename(&model, folder.join(".model.old-1-0")).unwrap();
    sweep(&folder);
    assert_eq!(names(&folder), ["model"]);
    fs::create_dir(folder.join(".model.old-1-0")).unwrap();
    sweep(&folder);
    assert_eq!(names(&folder), ["model"]);
    assert_eq!(fs::read_to_string(model.join("weights")).unwrap(), "second");
    fs::remove_dir_all(folder).unwrap();
}
