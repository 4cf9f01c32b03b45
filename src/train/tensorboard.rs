//! TensorBoard's event files: numbers by tag and step, which `tensorboard --logdir RUN_DIR` shows.
//!
//! An event file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h):
//!
//! ```text
//! u64 length | u32 masked CRC-32C of the length's bytes | data | u32 masked CRC-32C of data
//! masked(c) = rotate_right(c, 15) + 0xa282ead8
//! ```
//!
//! all little-endian. Each record is an `Event` (tensorflow/core/util/event.proto), of which five
//! fields are written: `wall_time` (1, double), `step` (2, int64), `file_version` (3, string, of
//! the first event alone), `summary` (5) and `session_log` (7). A `Summary` (summary.proto) has
//! values (1) with `tag` (1, string) and `simple_value` (2, float).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Context, Result};

/// The folder of a run directory that holds event files.
pub const TENSORBOARD: &str = "tensorboard";

/// An event file that grows by the numbers of a step.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// Begins a new event file in `dir`. Where a run goes on, its first event tells TensorBoard to
    /// drop what an earlier file has of steps after `step`.
    ///
    /// # Errors
    /// A directory or file that cannot be written.
    pub fn create(dir: &Path, step: usize) -> Result<Self> {
        fs::create_dir_all(dir).context(dir.display())?;
        let time = wall_time();
        // TensorBoard reads the files of a folder in the order of their names; two of one second
        // are told apart by a number.
        let names = (0u32..).map(|n| dir.join(format!("events.out.tfevents.{:010}.itemlm.{n}", time as u64)));
        let mut names = names.skip_while(|path| path.exists());
        let path = names.next().unwrap_or_else(|| dir.join("events.out.tfevents.itemlm"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).context(path.display())?;
        let mut board = Self { file, path };
        board.append(&record(&event(time, 0, &bytes_field(3, b"brain.Event:2"))))?;
        if step > 0 {
            // SessionLog { status: START }
            board.append(&record(&event(time, step as u64 + 1, &bytes_field(7, &varint_field(1, 1)))))?;
        }
        Ok(board)
    }

    /// Appends the numbers of a step, each with its tag.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let values = values.iter().map(|(tag, value)| {
            let number = [&key(2, 5)[..], &(*value as f32).to_le_bytes()].concat();
            bytes_field(1, &[bytes_field(1, tag.as_bytes()), number].concat())
        });
        let summary = values.collect::<Vec<_>>().concat();
        self.append(&record(&event(wall_time(), step as u64, &bytes_field(5, &summary))))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).context(self.path.display())
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Returns an `Event` of a time in seconds since 1970, a step, and the field that tells its kind.
fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    // As protobuf's own writers, without a number that is 0.
    let step = if step == 0 { Vec::new() } else { varint_field(2, step) };
    [&key(1, 1)[..], &time.to_le_bytes(), &step, what].concat()
}

/// Returns the key of a protobuf field.
///
/// * `wire_type`: 0 for a varint, 1 for 8 bytes, 2 for bytes with their length, 5 for 4 bytes.
fn key(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

fn varint_field(field: u64, value: u64) -> Vec<u8> {
    [key(field, 0), varint(value)].concat()
}

fn bytes_field(field: u64, bytes: &[u8]) -> Vec<u8> {
    [&key(field, 2)[..], &varint(bytes.len() as u64), bytes].concat()
}

/// Returns a protobuf varint: seven bits a byte, the lowest first, the high bit set but in the
/// last.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Returns a TFRecord of `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns the CRC-32C (Castagnoli; RFC 3720, appendix B.4), bit by bit: records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 3720, and the check value of "123456789".
    #[test]
    fn checksums() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// `tests/reference/tensorboard_reference.py` wrote the records with Python's tensorboard.
    #[test]
    fn records_equal_tensorboards() {
        let fixture = include_bytes!("../../tests/fixtures/reference/tensorboard/events");
        let values = [("loss", 2.5), ("lr", 1e-4)].map(|(tag, value): (&str, f64)| {
            let number = [&key(2, 5)[..], &(value as f32).to_le_bytes()].concat();
            bytes_field(1, &[bytes_field(1, tag.as_bytes()), number].concat())
        });
        let records = [
            record(&event(1_764_547_200.25, 0, &bytes_field(3, b"brain.Event:2"))),
            record(&event(1_764_547_201.5, 301, &bytes_field(7, &varint_field(1, 1)))),
            record(&event(1_764_547_202.0, 300, &bytes_field(5, &values.concat()))),
        ];
        assert_eq!(records.concat(), fixture);
    }

    #[test]
    fn files_of_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(TENSORBOARD);
        let mut first = TensorBoard::create(&folder, 0).unwrap();
        first.write(1, &[("loss".into(), 1.0)]).unwrap();
        let mut second = TensorBoard::create(&folder, 1).unwrap();
        second.write(2, &[("loss".into(), 0.5), ("lr".into(), 0.1)]).unwrap();
        let mut sizes: Vec<(String, u64)> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
            })
            .collect();
        sizes.sort();
        assert_eq!(sizes.len(), 2);
        // 16 bytes around each record; an event has 9 of time and 2 of a step that is not 0.
        let (version, start, loss, lr) = (16 + 9 + 15, 16 + 11 + 4, 2 + 6 + 5, 2 + 4 + 5);
        assert_eq!(sizes[0].1, version + 16 + 11 + 2 + loss);
        assert_eq!(sizes[1].1, version + start + 16 + 11 + 2 + loss + lr);
    }
}
