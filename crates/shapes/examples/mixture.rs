//! A folder of captioned images of a mixture with other shares, to try out what a base model learns from it.
//!
//! ```text
//! cargo run --release -p vp-shapes --example mixture -- DIR N [SHARE=X ...]
//! ```
//!
//! SHARE is a field of `Mixture`; the others are as `dataset shapes --split pretraining` has them. `faults=X` multiplies all six.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_shapes::pretraining::{Mixture, PRETRAINING};

fn set(mixture: &mut Mixture, name: &str, value: f64) -> Result<(), String> {
    let Mixture { one_claim_changed, another_scene, partial, blurred, noisy, dull, cluttered, cut, misplaced, emblem } = mixture;
    let field = match name {
        "faults" => {
            [blurred, noisy, dull, cluttered, cut, misplaced].into_iter().for_each(|share| *share *= value);
            return Ok(());
        }
        "one_claim_changed" => one_claim_changed,
        "another_scene" => another_scene,
        "partial" => partial,
        "blurred" => blurred,
        "noisy" => noisy,
        "dull" => dull,
        "cluttered" => cluttered,
        "cut" => cut,
        "misplaced" => misplaced,
        "emblem" => emblem,
        _ => return Err(format!("{name} is not a share of a mixture")),
    };
    *field = value;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("expected a folder")?);
    let count: u64 = arguments.next().ok_or("expected a number of images")?.parse()?;
    let mut mixture = PRETRAINING;
    for argument in arguments {
        let (name, value) = argument.split_once('=').ok_or("expected SHARE=X")?;
        set(&mut mixture, name, value.parse()?)?;
    }
    std::fs::create_dir_all(&folder)?;
    let mut lines = String::new();
    for index in 0..count {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        rng.set_stream(index);
        let one = mixture.draw(32, &mut rng);
        let name = format!("{index:06}.png");
        one.image.save(folder.join(&name))?;
        writeln!(lines, "{{\"file_name\":\"{name}\",\"text\":\"{}\"}}", one.caption)?;
    }
    std::fs::write(folder.join("metadata.jsonl"), lines)?;
    println!("{mixture:?}");
    Ok(())
}
