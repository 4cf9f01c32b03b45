//! A bounded reader for the header of a GGUF file (versions 2 and 3, little endian).
//!
//! Every length is checked against the rest of the file before anything is allocated by it.
//! candle-core's reader does not serve: it holds a vocabulary's strings twice, takes the last of
//! two equal keys, does not see tensors that overlap or lie beyond the file, and refuses a type
//! that it does not know without the tensor's name.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod split;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use candle_core::quantized::GgmlDType;
pub(crate) use split::{Gguf, GgufFile};

use super::tensor_store::Encoding;
use crate::{Error, Result};

/// No model has more metadata entries or tensors than this.
const MOST_ENTRIES: u64 = 1 << 16;
const LONGEST_NAME: u64 = 1 << 16;
const DEEPEST_ARRAY: usize = 4;

/// Ids of GGUF's metadata types.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// One metadata value. Arrays stay in the file.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array { item: u32, count: usize, range: Range<usize> },
}

/// A tensor's entry in the header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    /// Outermost dimension first, the reverse of GGUF's order.
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// Range of its bytes in the file; inside it, and apart from the other tensors' bytes.
    pub(crate) range: Range<usize>,
}

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Header {
    metadata: BTreeMap<String, Value>,
    /// The keys that were read so far.
    read: RefCell<HashSet<String>>,
    pub(crate) tensors: Vec<GgufTensor>,
}

fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::failed(message))
}

impl Header {
    /// Parses the header of the whole file `bytes`. The errors do not name the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(4, "the magic")? != b"GGUF" {
            return invalid("not a GGUF file");
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() < 256 && version > 256 => {
                return invalid("big-endian GGUF is not supported");
            }
            version => {
                return invalid(format!("GGUF version {version} is not supported, only 2 and 3 are"));
            }
        }
        let tensor_count = cursor.u64("the tensor count")?;
        let entry_count = cursor.u64("the metadata count")?;
        if tensor_count > MOST_ENTRIES || entry_count > MOST_ENTRIES {
            return invalid(format!(
                "claims {tensor_count} tensors and {entry_count} metadata entries; no model has that"
            ));
        }
        let mut metadata = BTreeMap::new();
        for number in 0..entry_count {
            let key = cursor.name(&format!("the name of metadata entry {number}"))?;
            let key_name = format!("metadata key {key}");
            let kind = cursor.u32(&key_name)?;
            let value = cursor.value(kind, &key_name)?;
            if metadata.insert(key, value).is_some() {
                return invalid(format!("{key_name}: comes twice"));
            }
        }
        let mut tensors = Vec::new();
        let mut names = HashSet::new();
        for number in 0..tensor_count {
            let tensor = cursor.tensor(number)?;
            if !names.insert(tensor.name.clone()) {
                return invalid(format!("tensor {}: comes twice", tensor.name));
            }
            tensors.push(tensor);
        }
        let mut header = Self { metadata, read: RefCell::default(), tensors };
        header.place_tensors(cursor.at, bytes.len())?;
        Ok(header)
    }

    /// Turns the tensors' offsets into positions in the file, and checks those.
    fn place_tensors(&mut self, header_end: usize, file_end: usize) -> Result<()> {
        let alignment = self.size("general.alignment")?.unwrap_or(32);
        if alignment == 0 || alignment % 8 != 0 || alignment > 1 << 20 {
            return invalid(format!("general.alignment is {alignment}; it must be a multiple of 8"));
        }
        let start = header_end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        for tensor in &mut self.tensors {
            let Range { start: offset, end: length } = tensor.range;
            if offset % alignment != 0 {
                return invalid(format!("tensor {}: offset {offset} is not a multiple of {alignment}", tensor.name));
            }
            let range = start.checked_add(offset).and_then(|from| Some(from..from.checked_add(length)?));
            match range.filter(|range| range.end <= file_end) {
                Some(range) => tensor.range = range,
                None => {
                    return invalid(format!(
                        "tensor {}: its {length} bytes at offset {offset} lie beyond the end of the file; the file \
                         is truncated, download it again",
                        tensor.name
                    ));
                }
            }
        }
        let mut order: Vec<&GgufTensor> = self.tensors.iter().collect();
        order.sort_by_key(|tensor| tensor.range.start);
        for (before, after) in order.iter().zip(order.iter().skip(1)) {
            if before.range.end > after.range.start {
                return invalid(format!("tensors {} and {} overlap", before.name, after.name));
            }
        }
        Ok(())
    }

    fn read<'a, T>(&'a self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.read.borrow_mut().insert(key.to_owned());
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => invalid(format!("metadata key {key}: is not {what}")),
            },
        }
    }

    /// Returns whether there is such a key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// Returns a key that begins with `prefix`, was never read, is not among `ignored` and has
    /// another value than 0, false or empty: it may change what the model computes.
    pub(crate) fn unread_key(&self, prefix: &str, ignored: &[&str]) -> Option<&str> {
        let neutral = |value: &Value| match value {
            Value::Unsigned(n) => *n == 0,
            Value::Signed(n) => *n == 0,
            Value::Float(n) => *n == 0.0,
            Value::Bool(flag) => !flag,
            Value::String(text) => text.is_empty(),
            Value::Array { count, .. } => *count == 0,
        };
        let read = self.read.borrow();
        let keys = self.metadata.iter().filter_map(|(key, value)| Some((key, key.strip_prefix(prefix)?, value)));
        let mut unread =
            keys.filter(|(key, name, value)| !read.contains(*key) && !ignored.contains(name) && !neutral(value));
        unread.next().map(|(key, ..)| key.as_str())
    }

    /// Reads true or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Reads a whole number that is not negative.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |value| match value {
            Value::Unsigned(n) => usize::try_from(*n).ok(),
            Value::Signed(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// Reads a number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", |value| match value {
            Value::Float(n) => Some(*n),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// Reads a string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Reads an array of strings in `bytes`, the file that this header was parsed from.
    pub(crate) fn strings(&self, bytes: &[u8], key: &str) -> Result<Option<Vec<String>>> {
        self.array(bytes, key, "an array of strings", |cursor, item| match item {
            STRING => cursor.string(key).map(Some),
            _ => Ok(None),
        })
    }

    /// Reads an array of numbers in `bytes`, the file that this header was parsed from.
    pub(crate) fn numbers(&self, bytes: &[u8], key: &str) -> Result<Option<Vec<f32>>> {
        self.array(bytes, key, "an array of numbers", |cursor, item| {
            Ok(match cursor.value(item, key)? {
                Value::Float(n) => Some(n as f32),
                Value::Signed(n) => Some(n as f32),
                Value::Unsigned(n) => Some(n as f32),
                _ => None,
            })
        })
    }

    fn array<T>(
        &self,
        bytes: &[u8],
        key: &str,
        what: &str,
        read: impl Fn(&mut Cursor<'_>, u32) -> Result<Option<T>>,
    ) -> Result<Option<Vec<T>>> {
        let array = self.read(key, what, |value| match value {
            Value::Array { item, count, range } => Some((*item, *count, range.clone())),
            _ => None,
        })?;
        let Some((item, count, range)) = array else {
            return Ok(None);
        };
        let mut cursor = Cursor { bytes: bytes.get(..range.end).unwrap_or_default(), at: range.start };
        let mut items = Vec::new();
        for _ in 0..count {
            match read(&mut cursor, item)? {
                Some(value) => items.push(value),
                None => return invalid(format!("metadata key {key}: is not {what}")),
            }
        }
        Ok(Some(items))
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64, place: &str) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => invalid(format!(
                "{place}: {length} bytes are claimed at byte {}, but {} are left; the file is truncated or damaged",
                self.at,
                rest.len()
            )),
        }
    }

    fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.take(N as u64, place)?);
        Ok(taken)
    }

    fn u32(&mut self, place: &str) -> Result<u32> {
        self.array(place).map(u32::from_le_bytes)
    }

    fn u64(&mut self, place: &str) -> Result<u64> {
        self.array(place).map(u64::from_le_bytes)
    }

    fn string(&mut self, place: &str) -> Result<String> {
        let length = self.u64(place)?;
        let bytes = self.take(length, place)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => invalid(format!("{place}: is not UTF-8")),
        }
    }

    fn name(&mut self, place: &str) -> Result<String> {
        let start = self.at;
        let length = self.u64(place)?;
        if length > LONGEST_NAME {
            return invalid(format!("{place}: claims {length} bytes; the file is damaged"));
        }
        self.at = start;
        self.string(place)
    }

    fn value(&mut self, kind: u32, place: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(place)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(place)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(place)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(place)?).into()),
            4 => Value::Unsigned(self.u32(place)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(place)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(place)?).into()),
            7 => Value::Bool(self.array::<1>(place)? != [0]),
            STRING => Value::String(self.string(place)?),
            ARRAY => {
                let item = self.u32(place)?;
                let count = self.u64(place)?;
                let start = self.at;
                self.skip_items(item, count, 1, place)?;
                // Every item took at least a byte, so the count fits.
                Value::Array { item, count: count as usize, range: start..self.at }
            }
            10 => Value::Unsigned(self.u64(place)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(place)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(place)?)),
            _ => return invalid(format!("{place}: has unknown type {kind}")),
        })
    }

    fn skip_items(&mut self, item: u32, count: u64, depth: usize, place: &str) -> Result<()> {
        let width = match item {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => {
                for _ in 0..count {
                    let length = self.u64(place)?;
                    self.take(length, place)?;
                }
                return Ok(());
            }
            ARRAY if depth < DEEPEST_ARRAY => {
                for _ in 0..count {
                    let (item, count) = (self.u32(place)?, self.u64(place)?);
                    self.skip_items(item, count, depth + 1, place)?;
                }
                return Ok(());
            }
            ARRAY => return invalid(format!("{place}: arrays nest deeper than {DEEPEST_ARRAY}")),
            _ => return invalid(format!("{place}: has items of unknown type {item}")),
        };
        let Some(length) = count.checked_mul(width) else {
            return invalid(format!("{place}: claims {count} items; the file is damaged"));
        };
        self.take(length, place).map(|_| ())
    }

    /// Reads a tensor's entry. Its `range` holds the offset and the *length*, until the start of
    /// the data is known.
    fn tensor(&mut self, number: u64) -> Result<GgufTensor> {
        let name = self.name(&format!("the name of tensor {number}"))?;
        let place = format!("tensor {name}");
        let dimensions = self.u32(&place)?;
        if !(1..=4).contains(&dimensions) {
            return invalid(format!("{place}: claims {dimensions} dimensions, not 1 to 4"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            match usize::try_from(self.u64(&place)?) {
                Ok(size) if size > 0 => shape.insert(0, size),
                _ => return invalid(format!("{place}: has an empty or too large dimension")),
            }
        }
        let encoding = encoding(self.u32(&place)?).map_err(|kind| {
            Error::failed(format!(
                "{place}: has type {kind}; only F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K are \
                 supported"
            ))
        })?;
        let (values, bytes) = encoding.block();
        let row = shape.last().copied().unwrap_or_default();
        let length = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .filter(|_| row.is_multiple_of(values))
            .and_then(|count| (count / values).checked_mul(bytes));
        let offset = usize::try_from(self.u64(&place)?).unwrap_or(usize::MAX);
        match length {
            Some(length) => Ok(GgufTensor { name, shape, encoding, range: offset..length }),
            None => invalid(format!("{place}: shape {shape:?} is too large or not whole blocks of {values}")),
        }
    }
}

/// Returns the encoding of a GGML type id, or that type's name (ggml/include/ggml.h, `ggml_type`).
fn encoding(kind: u32) -> std::result::Result<Encoding, String> {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let name = match kind {
        0 => return Ok(Encoding::F32),
        1 => return Ok(Encoding::F16),
        2 => return Ok(Encoding::Blocks(Q4_0)),
        3 => return Ok(Encoding::Blocks(Q4_1)),
        6 => return Ok(Encoding::Blocks(Q5_0)),
        7 => return Ok(Encoding::Blocks(Q5_1)),
        8 => return Ok(Encoding::Blocks(Q8_0)),
        10 => return Ok(Encoding::Blocks(Q2K)),
        11 => return Ok(Encoding::Blocks(Q3K)),
        12 => return Ok(Encoding::Blocks(Q4K)),
        13 => return Ok(Encoding::Blocks(Q5K)),
        14 => return Ok(Encoding::Blocks(Q6K)),
        30 => return Ok(Encoding::Bf16),
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "of integers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        other => return Err(other.to_string()),
    };
    Err(format!("{name} ({kind})"))
}

#[cfg(test)]
mod tests;
