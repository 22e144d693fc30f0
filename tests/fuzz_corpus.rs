//! What fuzzing needs no nightly toolchain for: every reader on the fixtures and the corpus that fuzzing starts from, and on a few mutations of each.
//!
//! A failure names the target, the seed and the mutation, from which the input is made again; `VP_FUZZ="target seed mutation"` repeats it alone
//! and keeps the input. Longer runs, with coverage, are those of `scripts/fuzz`.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::io::Write;
use std::time::{Duration, Instant};
use std::{env, fs, io, panic};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use targets::{BETWEEN, TARGETS, Target, root};
use vp_core::contained::{contain, is_contained};

/// Longer than any reader takes for a small file.
const LONGEST: Duration = Duration::from_secs(10);
/// How the names of seeds begin that are not files of the corpus.
const FIXTURE: &str = "fixture-";
/// Numbers at which sizes and counts break.
const EXTREMES: [u64; 12] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX];
/// What texts break on.
const TEXTS: [&str; 16] =
    ["{", "}", "[", "]", "\"", "\\", ",", "\n", "\0", "..", "\u{202e}", "\u{1f98a}", "-1", "1e999", "18446744073709551616", "null"];

/// What mutation starts from, by name: the fixtures, and the files of the corpus.
fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("fuzz/corpus").join(target.name);
    let files = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("a readable folder").path());
    let mut files: Vec<_> =
        files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())).collect();
    files.sort();
    let fixtures = target.seeds().into_iter().enumerate();
    fixtures.map(|(number, (_, bytes))| (format!("{FIXTURE}{number}"), bytes)).chain(files).collect()
}

/// The input that is `seed` after the mutation of this number; 0 is none.
fn mutated(seed: &[u8], number: u64, others: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut random) = (seed.to_vec(), ChaCha8Rng::seed_from_u64(number));
    for _ in 0..number.min(1 + number % 3) {
        mutate(&mut bytes, &mut random, others);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng, others: &[(String, Vec<u8>)]) {
    let mut place = |len: usize| random.random_range(0..=len);
    let (at, to) = (place(bytes.len()), place(bytes.len()));
    let (first, last) = (at.min(to), at.max(to).min(at.min(to) + 64));
    let kind = random.random_range(0..9);
    let extreme = EXTREMES[random.random_range(0..EXTREMES.len())];
    match kind {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = random.next_u32() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(first..last)),
        4 => {
            let part = bytes[first..last].to_vec();
            bytes.splice(to..to, part);
        }
        // A length of any width, in either order.
        5 => {
            let width = [1, 2, 4, 8][random.random_range(0..4)].min(bytes.len() - at);
            let (little, big) = (extreme.to_le_bytes(), extreme.to_be_bytes());
            let part = if random.random() { &little[..width] } else { &big[8 - width..] };
            bytes[at..at + width].copy_from_slice(part);
        }
        // A number that is written out.
        6 => {
            let start = (at..bytes.len()).find(|at| bytes[*at].is_ascii_digit()).unwrap_or(bytes.len());
            let end = (start..bytes.len()).find(|at| !bytes[*at].is_ascii_digit()).unwrap_or(bytes.len());
            bytes.splice(start..end, extreme.to_string().into_bytes());
        }
        7 => drop(bytes.splice(at..at, TEXTS[random.random_range(0..TEXTS.len())].bytes())),
        // The beginning of one and the end of another.
        _ => {
            let other = &others[random.random_range(0..others.len())].1;
            let from = random.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
    }
}

/// What is wrong with how an input was read. One that is a fixture must be what the target expects.
fn fault(target: &Target, input: &[u8], is_fixture: bool) -> Option<String> {
    let started = Instant::now();
    match contain(|| (target.read)(input)) {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Some(format!("a panic: {}", text.unwrap_or("of no text")))
        }
        Ok(_) if started.elapsed() > LONGEST => Some(format!("it took {:?}", started.elapsed())),
        Ok(false) if is_fixture => Some("a fixture, and refused".into()),
        Ok(_) => None,
    }
}

#[test]
fn readers_return_from_every_input() {
    let only = env::var("VP_FUZZ").ok();
    let (mut faults, mut all) = (Vec::new(), 0);
    // As the program's: what is contained is not told.
    let tells = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !is_contained() {
            tells(panic);
        }
    }));
    for target in TARGETS {
        let (seeds, started, mut inputs) = (seeds(target), Instant::now(), 0);
        assert!(!seeds.is_empty(), "{} has neither fixtures nor a folder in fuzz/corpus", target.name);
        // Past libtest, which would keep it: after an abort this is all that is known.
        let _ = write!(io::stderr(), "{}: ", target.name);
        for (name, seed) in &seeds {
            for number in 0..=target.mutations / seeds.len() as u64 {
                let id = format!("{} {name} {number}", target.name);
                if only.as_ref().is_some_and(|only| *only != id) {
                    continue;
                }
                let input = mutated(seed, number, &seeds);
                if only.is_some() {
                    let kept = env::temp_dir().join("vp-fuzz-input");
                    fs::write(&kept, &input).unwrap();
                    let _ = writeln!(io::stderr(), "the input is {}", kept.display());
                }
                inputs += 1;
                let is_fixture = number == 0 && name.starts_with(FIXTURE);
                faults.extend(fault(target, &input, is_fixture).map(|fault| format!("VP_FUZZ=\"{id}\": {fault}")));
            }
        }
        let _ = writeln!(io::stderr(), "{inputs} inputs, {:.1} s", started.elapsed().as_secs_f64());
        all += inputs;
    }
    assert!(all > 0, "VP_FUZZ is {only:?}: expected a target, a seed and a number");
    assert!(faults.is_empty(), "{} inputs are not read:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn mutations_change_what_they_are_given_and_can_be_made_again() {
    let seeds = vec![("a".into(), b"{\"a\": 12}".to_vec()), ("b".into(), [b"xyz", BETWEEN].concat())];
    let all: Vec<Vec<u8>> = (0..200).map(|number| mutated(&seeds[0].1, number, &seeds)).collect();
    assert_eq!(all[0], seeds[0].1);
    assert_eq!(all[7], mutated(&seeds[0].1, 7, &seeds));
    let changed = all[1..].iter().filter(|bytes| **bytes != seeds[0].1).count();
    assert!(changed > 150, "{changed} of 199");
    assert!(mutated(b"", 1, &seeds).len() < 100);
}
