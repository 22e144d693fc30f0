//! Writes the scalars and images of a run to an event file for TensorBoard.
//!
//! The `SummaryWriter` of `tensorboard-rs` writes on a thread that panics when the disk fails, and then so does every later call. Its parts
//! do not, so this file frames events with its `RecordWriter` and makes their contents with its `summary`. An event file is a sequence of
//! records, each of them a length, a CRC, a serialized `Event` and a CRC.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::Message;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::summary::Summary;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::{image, scalar};
use vp_data::RgbImage;

/// An event file that is being written.
pub struct Events {
    records: RecordWriter<BufWriter<File>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Begins a new file in `folder`, beside existing ones. If the run was resumed after update `resumed_at`, the file tells TensorBoard to
    /// forget the later steps of older files.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(folder: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut events = Self { records: RecordWriter::new(BufWriter::new(new_file(folder)?)) };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".into());
        events.write(version, 0)?;
        if let Some(step) = resumed_at {
            let mut restart = Event::new();
            let mut log = SessionLog::new();
            log.set_status(SessionLog_SessionStatus::START);
            restart.set_session_log(log);
            events.write(restart, step + 1)?;
        }
        Ok(events)
    }

    /// Writes one event with a scalar for each metric, under its name. The format holds f32 only.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars(&mut self, step: u64, metrics: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Summary::new();
        for (name, value) in metrics {
            summary.mut_value().extend(scalar(name, *value as f32).take_value());
        }
        let mut event = Event::new();
        event.set_summary(summary);
        self.write(event, step)
    }

    /// Writes an image, which must have at least one pixel, under `tag`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn image(&mut self, tag: &str, step: u64, pixels: &RgbImage) -> io::Result<()> {
        let (width, height) = pixels.dimensions();
        // The crate encodes dim[1] x dim[2] as width x height, but labels them height and width.
        let mut summary = image(tag, pixels.as_raw(), &[3, width as usize, height as usize]);
        let written_down = summary.mut_value()[0].mut_image();
        written_down.set_width(width as i32);
        written_down.set_height(height as i32);
        let mut event = Event::new();
        event.set_summary(summary);
        self.write(event, step)
    }

    /// Writes an event and flushes it, so that a killed run has its events up to its last update.
    fn write(&mut self, mut event: Event, step: u64) -> io::Result<()> {
        event.set_wall_time(since_epoch());
        event.set_step(step as i64);
        self.records.write(&event.write_to_bytes().map_err(io::Error::other)?)?;
        self.records.flush()
    }
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
            events.push(Event::parse_from_bytes(&rest[12..12 + length]).unwrap());
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
        assert_eq!(written[0].get_file_version(), "brain.Event:2");
        assert!(written.iter().all(|event| (since_epoch() - event.wall_time).abs() < 60.0));
        let values = written[1].get_summary().get_value();
        assert_eq!((written[1].step, values[0].get_tag(), values[0].get_simple_value()), (3, "loss", 0.5));
        assert!(values[1].get_tag() == "watch/brightness" && values[1].get_simple_value().is_nan());
        let value = &written[2].get_summary().get_value()[0];
        let image = value.get_image();
        assert_eq!((value.get_tag(), image.width, image.height, image.colorspace), ("validation", 5, 2, 3));
        let size = |at: usize| u32::from_be_bytes(image.get_encoded_image_string()[at..at + 4].try_into().unwrap());
        assert_eq!((size(16), size(20)), (5, 2), "the PNG's own width and height");

        drop(Events::begin(&folder, Some(7)).unwrap());
        let both = files(&folder);
        assert_eq!((both.len(), &both[0]), (2, &first[0]));
        let restart = &read(&both[1])[1];
        assert_eq!((restart.step, restart.get_session_log().get_status()), (8, SessionLog_SessionStatus::START));
        fs::remove_dir_all(folder).unwrap();
    }
}
