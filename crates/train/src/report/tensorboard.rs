//! TensorBoard event files: TFRecord frames around protobuf messages.
//!
//! A frame is the length (u64), its masked CRC-32C, the message, its masked CRC-32C, all little-endian; the mask is
//! `rotate_right(crc, 15) + 0xa282ead8`, so that a file of checksums does not checksum to itself (TensorFlow,
//! `tsl/lib/hash/crc32c.h`). The messages are those of `event.proto` and `summary.proto`, with the fields that are used.
//!
//! Scalars and images have the older, untyped forms (`simple_value`, `Image`), which every reader understands. Each start of a
//! run writes its own file, which begins with a session start at its first step: readers discard what an earlier, killed
//! process reported from that step on.

mod proto;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ddpm_run::clock;
use ddpm_run::disk::{Output, create_dir_all};
use ddpm_run::durable::parent_of;
use ddpm_run::lock::host_name;
use prost::Message;

use super::ReportError;
use super::pictures::Png;
use proto::{Event, Image, PluginData, SessionLog, Summary, SummaryMetadata, Tensor, TensorShape, Value, event, value};

/// The version that makes readers respect session starts.
const FILE_VERSION: &str = "brain.Event:2";

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: Output,
    path: PathBuf,
}

impl EventWriter {
    /// Creates a new event file in `dir` for a process whose first step will be `first_step`.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(dir: &Path, first_step: u64) -> Result<Self, ReportError> {
        let (file, path) = create_file(dir)?;
        let mut writer = Self { file, path };
        writer.write(0, event::What::FileVersion(FILE_VERSION.into()))?;
        let start = SessionLog { status: proto::SESSION_START, ..Default::default() };
        writer.write(first_step, event::What::SessionLog(start))?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes named numbers of one step; TensorBoard keeps them in f32.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<(), ReportError> {
        let value = |(tag, number): &(String, f64)| Value {
            tag: tag.clone(),
            metadata: None,
            value: Some(value::Content::SimpleValue(*number as f32)),
        };
        let values = scalars.iter().map(value).collect();
        self.write(step, event::What::Summary(Summary { values }))
    }

    /// Writes a picture of one step.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn image(&mut self, step: u64, tag: &str, png: &Png) -> Result<(), ReportError> {
        let image = Image {
            height: png.height.cast_signed(),
            width: png.width.cast_signed(),
            colorspace: 3,
            encoded_image_string: png.bytes.clone(),
        };
        let value = Value { tag: tag.into(), metadata: None, value: Some(value::Content::Image(image)) };
        self.write(step, event::What::Summary(Summary { values: vec![value] }))
    }

    /// Writes a text, shown as Markdown.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<(), ReportError> {
        let tensor = Tensor {
            dtype: proto::DT_STRING,
            tensor_shape: Some(TensorShape::vector(1)),
            string_val: vec![markdown.as_bytes().to_vec()],
        };
        let plugin = PluginData { plugin_name: "text".into(), content: Vec::new() };
        let value = Value {
            tag: tag.into(),
            metadata: Some(SummaryMetadata { plugin_data: Some(plugin) }),
            value: Some(value::Content::Tensor(tensor)),
        };
        self.write(step, event::What::Summary(Summary { values: vec![value] }))
    }

    fn write(&mut self, step: u64, what: event::What) -> Result<(), ReportError> {
        if !self.file.is_at(&self.path) {
            // Removed with its directory, or hidden by another disk: no reader would find what is written.
            let dir = parent_of(&self.path).to_owned();
            create_dir_all(&dir).map_err(ReportError::io("create the directory", &dir))?;
            *self = Self::create(&dir, step)?;
        }
        let wall_time = clock::since_epoch().as_secs_f64();
        let event = Event { wall_time, step: step.cast_signed(), what: Some(what) };
        // One write, so that a kill leaves a whole frame or, at worst, a torn last one, which readers skip.
        self.file.write_all(&frame(&event.encode_to_vec())).map_err(ReportError::io("write the event", &self.path))
    }
}

/// A unique name that sorts by time as readers expect.
fn create_file(dir: &Path) -> Result<(Output, PathBuf), ReportError> {
    let mut attempt = 0;
    loop {
        let now = clock::since_epoch();
        let (seconds, micros, pid) = (now.as_secs(), now.subsec_micros(), std::process::id());
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.{micros:06}.{}.{pid}", host_name()));
        match Output::create_new(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(error) => return Err(ReportError::io("create the event file", &path)(error)),
        }
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(message.len() + 16);
    frame.extend(length);
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(message);
    frame.extend(masked_crc(message).to_le_bytes());
    frame
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    /// CRC-32C bit by bit, from its polynomial: independent of the crate that the writer uses.
    fn slow_masked_crc(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    fn events_of(path: &Path) -> Vec<Event> {
        let file = fs::read(path).unwrap();
        let mut rest = file.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let crc_at = |position: usize| u32::from_le_bytes(rest[position..position + 4].try_into().unwrap());
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(crc_at(8), slow_masked_crc(&rest[..8]));
            let message = &rest[12..12 + length];
            assert_eq!(crc_at(12 + length), slow_masked_crc(message));
            events.push(Event::decode(message).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn the_checksum_is_castagnoli_masked() {
        // RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8a9136aa.
        assert_eq!(slow_masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(masked_crc(&[0; 32]), slow_masked_crc(&[0; 32]));
    }

    #[test]
    fn a_file_is_whole_frames_with_the_version_and_the_session_start_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 201).unwrap();
        writer.scalars(250, &[("train/loss".into(), 0.25), ("train/lr".into(), 1e-4)]).unwrap();
        writer.image(250, "samples", &Png { width: 3, height: 2, bytes: vec![1, 2, 3] }).unwrap();
        writer.text(201, "config", "lr = 1").unwrap();
        let events = events_of(writer.path());
        assert_eq!(events.len(), 5);
        assert!(events.iter().all(|event| event.wall_time > 1.6e9));
        assert_eq!(events[0].what, Some(event::What::FileVersion(FILE_VERSION.into())));
        let Some(event::What::SessionLog(start)) = &events[1].what else { panic!("{:?}", events[1]) };
        assert_eq!((events[1].step, start.status), (201, 1));
        let Some(event::What::Summary(summary)) = &events[2].what else { panic!("{:?}", events[2]) };
        assert_eq!((events[2].step, summary.values[1].tag.as_str()), (250, "train/lr"));
        assert_eq!(summary.values[0].value, Some(value::Content::SimpleValue(0.25)));
    }

    /// Field numbers and types by hand, from event.proto and summary.proto.
    #[test]
    fn messages_have_the_bytes_that_the_published_protos_ask_for() {
        let value = Value { tag: "t".into(), metadata: None, value: Some(value::Content::SimpleValue(1.0)) };
        let summary = Summary { values: vec![value] };
        let event = Event { wall_time: 1.0, step: 2, what: Some(event::What::Summary(summary)) };
        let expected = [
            &[0x09][..],
            &1.0f64.to_le_bytes(), // 1: fixed64 wall_time
            &[0x10, 2],            // 2: varint step
            &[0x2a, 10, 0x0a, 8],  // 5: summary, 10 bytes; its 1: value, 8 bytes
            &[0x0a, 1, b't'],      // its 1: tag
            &[0x15],
            &1.0f32.to_le_bytes(), // its 2: fixed32 simple_value
        ];
        assert_eq!(event.encode_to_vec(), expected.concat());
    }

    #[test]
    fn every_start_has_a_file_of_its_own_that_sorts_after_the_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..5).map(|_| EventWriter::create(dir.path(), 1).unwrap().path().to_owned()).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
    }

    #[test]
    fn a_directory_that_is_gone_is_named() {
        let error = EventWriter::create(Path::new("/no/such/events"), 1).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/events/events.out.tfevents."), "{error}");
    }
}
