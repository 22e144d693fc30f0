//! Writes the scalars and images of a run to an event file for TensorBoard.
//!
//! An event file is a sequence of TFRecords, each of them a length, a CRC, a serialized `Event` and a CRC. The messages are the parts that a
//! run needs of TensorBoard's `event.proto` and `summary.proto`, with the numbers that their fields have there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};
use vp_data::{RgbImage, png_bytes};

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// In seconds.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Shown", tags = "2, 4")]
    shown: Option<Shown>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Shown {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// The number of channels.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    png: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionStatus.START`: TensorBoard forgets what older files say of this step and later ones.
const START: i32 = 1;

/// An event file that is being written.
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// Begins a new file in `folder`, beside existing ones. If the run was resumed after update `resumed_at`, the file tells TensorBoard to
    /// forget the later steps of older files.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(folder: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut events = Self { file: new_file(folder)? };
        events.write(0, What::FileVersion("brain.Event:2".into()))?;
        if let Some(step) = resumed_at {
            events.write(step + 1, What::SessionLog(SessionLog { status: START }))?;
        }
        Ok(events)
    }

    /// Writes one event with a scalar for each metric, under its name. The format holds f32 only.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars(&mut self, step: u64, metrics: &[(&str, f64)]) -> io::Result<()> {
        let value = |(name, value): &(&str, f64)| SummaryValue { tag: (*name).into(), shown: Some(Shown::Scalar(*value as f32)) };
        self.write(step, What::Summary(Summary { values: metrics.iter().map(value).collect() }))
    }

    /// Writes an image, which must have at least one pixel, under `tag`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn image(&mut self, tag: &str, step: u64, pixels: &RgbImage) -> io::Result<()> {
        let (width, height) = pixels.dimensions();
        let image = Image { height: height as i32, width: width as i32, colorspace: 3, png: png_bytes(pixels)? };
        self.write(step, What::Summary(Summary { values: vec![SummaryValue { tag: tag.into(), shown: Some(Shown::Image(image)) }] }))
    }

    /// Writes an event in one piece, so that a killed run has its events up to its last update.
    fn write(&mut self, step: u64, what: What) -> io::Result<()> {
        let event = Event { wall_time: since_epoch(), step: step as i64, what: Some(what) }.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        self.file.write_all(&[&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat())
    }
}

/// The CRC of a TFRecord: CRC-32C, turned and shifted, so that the CRC of data that holds CRCs is still of use.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Creates a file whose name sorts after those of all existing ones. TensorBoard reads a folder's files in the order of their names, which
/// contain a time in seconds, and a run may be resumed within the same second.
fn new_file(folder: &Path) -> io::Result<File> {
    let mut time = since_epoch() as u64;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let written = name.to_str().and_then(|name| name.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse::<u64>().ok());
        time = time.max(written.map_or(0, |written| written + 1));
    }
    loop {
        let path = folder.join(format!("events.out.tfevents.{time:010}.visionprefer.{}.0", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => time += 1,
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file; tests/cli/progress.rs checks the framing.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&rest[12..12 + length]).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn events_carry_names_steps_times_and_sizes_and_a_resumed_run_purges() {
        let folder = std::env::temp_dir().join(format!("vp-events-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let mut events = Events::begin(&folder, None).unwrap();
        events.scalars(3, &[("loss", 0.5), ("watch/brightness", f64::NAN)]).unwrap();
        events.image("validation", 3, &RgbImage::from_pixel(5, 2, [1, 2, 3].into())).unwrap();
        // Read while the writer is still open, as after a killed run.
        let files = |folder: &Path| {
            let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        };
        let first = files(&folder);
        let written = read(&first[0]);
        assert_eq!(written[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert!(written.iter().all(|event| (since_epoch() - event.wall_time).abs() < 60.0));
        let values = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => summary.values.clone(),
            other => panic!("{other:?}"),
        };
        let scalars = values(&written[1]);
        assert_eq!((written[1].step, scalars[0].tag.as_str(), &scalars[0].shown), (3, "loss", &Some(Shown::Scalar(0.5))));
        let not_a_number = matches!(scalars[1].shown, Some(Shown::Scalar(value)) if value.is_nan());
        assert!(scalars[1].tag == "watch/brightness" && not_a_number);
        let value = &values(&written[2])[0];
        let Some(Shown::Image(image)) = &value.shown else { panic!("{value:?}") };
        assert_eq!((value.tag.as_str(), image.width, image.height, image.colorspace), ("validation", 5, 2, 3));
        let size = |at: usize| u32::from_be_bytes(image.png[at..at + 4].try_into().unwrap());
        assert_eq!((size(16), size(20)), (5, 2), "the PNG's own width and height");

        drop(Events::begin(&folder, Some(7)).unwrap());
        let both = files(&folder);
        assert_eq!((both.len(), &both[0]), (2, &first[0]));
        let restart = &read(&both[1])[1];
        assert_eq!((restart.step, &restart.what), (8, &Some(What::SessionLog(SessionLog { status: START }))));
        fs::remove_dir_all(folder).unwrap();
    }
}
