//! Tensors of files by name: memory-mapped, and decoded one at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use super::blocks::Blocks;
use crate::{Context, Error, Result};

/// Encoding of a tensor's numbers in bytes (little endian).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    /// A block quantisation of GGUF.
    Blocks(GgmlDType),
}

impl Encoding {
    /// Returns the numbers of a block and its bytes.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }

    /// Decodes the `values` numbers in `bytes`, whose length the file's reader has checked.
    fn decode(self, bytes: &[u8], values: usize) -> Result<Vec<f32>> {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let decoded = match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => pairs().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Self::Bf16 => pairs().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            Self::Blocks(dtype) => {
                let (size, length) = self.block();
                // candle asserts both conditions.
                if values / size * length != bytes.len() || !bytes.as_ptr().cast::<u16>().is_aligned() {
                    return Err(Error::failed("its bytes do not fit its shape or are not aligned"));
                }
                match dtype.from_data(Cow::Borrowed(bytes)).dequantize(values).context("dequantisation")? {
                    CpuStorage::F32(decoded) => decoded,
                    _ => return Err(Error::failed("dequantisation gave something else than f32")),
                }
            }
        };
        if decoded.len() != values {
            return Err(Error::failed("its bytes do not fit its shape"));
        }
        Ok(decoded)
    }
}

/// A tensor's position in a file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// Number of heads of a matrix whose rows are in llama.cpp's order for interleaved RoPE.
    pub(crate) interleaved_heads: Option<usize>,
    /// Number that is added to all of the tensor's: -1 for norms that a file stores with the 1 that
    /// the model adds.
    pub(crate) offset: f32,
}

/// A model's tensors by their Hugging Face names, memory-mapped and read one at a time.
pub struct Weights {
    source: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, StoredTensor>,
    tied: bool,
    quantized: bool,
}

impl Weights {
    pub(crate) fn new(source: &Path) -> Self {
        Self { source: source.to_owned(), files: Vec::new(), tensors: BTreeMap::new(), tied: false, quantized: false }
    }

    pub(crate) fn add_mapped(&mut self, path: &Path, bytes: Mmap) -> usize {
        self.files.push((path.to_owned(), bytes));
        self.files.len() - 1
    }

    pub(crate) fn add(&mut self, name: String, tensor: StoredTensor) -> Result<()> {
        let file = tensor.file;
        if self.tensors.contains_key(&name) {
            return Err(Error::failed(format!("{}: a second tensor {name}", self.path(file).display())));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// Returns the names of the tensors that were not taken yet.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|tensor| tensor.file)
    }

    /// Puts `prefix` before every name but those in `without`, where the model was saved without
    /// it: where there is a tensor `first`, and none of that name with the prefix.
    ///
    /// # Errors
    /// Two tensors of one name.
    pub(crate) fn complete_names(&mut self, first: &str, prefix: &str, without: &[&str]) -> Result<()> {
        if !self.tensors.contains_key(first) || self.tensors.contains_key(&format!("{prefix}{first}")) {
            return Ok(());
        }
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let keeps = without.contains(&name.as_str()) || name.starts_with(prefix);
            self.add(if keeps { name } else { format!("{prefix}{name}") }, tensor)?;
        }
        Ok(())
    }

    /// Returns whether both tensors are there and hold different numbers or shapes.
    ///
    /// # Errors
    /// Bytes that do not fit a shape.
    pub(crate) fn differ(&self, one: &str, other: &str) -> Result<bool> {
        let (Some(a), Some(b)) = (self.tensors.get(one), self.tensors.get(other)) else { return Ok(false) };
        if a.shape != b.shape {
            return Ok(true);
        }
        if a.encoding == b.encoding {
            return Ok(self.bytes(a) != self.bytes(b));
        }
        Ok(self.decode(one, a)? != self.decode(other, b)?)
    }

    fn decode(&self, name: &str, tensor: &StoredTensor) -> Result<Vec<f32>> {
        let place = format!("{}: tensor {name}", self.path(tensor.file).display());
        let bytes = self.bytes(tensor).ok_or_else(|| Error::failed(format!("{place} lies outside the file")))?;
        let values = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
        tensor.encoding.decode(bytes, values).context(place)
    }

    fn path(&self, file: usize) -> &Path {
        self.files.get(file).map_or(&self.source, |(path, _)| path)
    }

    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<&StoredTensor> {
        let Some(tensor) = self.tensors.get(name) else {
            let source = self.source.display();
            return Err(Error::failed(format!("{source}: no tensor {name}; the model needs it with shape {shape:?}")));
        };
        if tensor.shape != shape {
            return Err(Error::failed(format!(
                "{}: tensor {name} has shape {:?}; the model needs {shape:?}",
                self.path(tensor.file).display(),
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    /// Reads a tensor as f32, row-major, `[out, in]` as Hugging Face stores it, and marks it as
    /// used.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by file and name.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.find(name, shape)?;
        let mut decoded = self.decode(name, tensor)?;
        if let Some(heads) = tensor.interleaved_heads {
            decoded = half_rotation_rows(&decoded, shape, heads);
        }
        if tensor.offset != 0.0 {
            decoded.iter_mut().for_each(|value| *value += tensor.offset);
        }
        self.tensors.remove(name);
        Ok(decoded)
    }

    /// Keeps the decoder's matrices in the blocks that they have on disk, where a matrix is in
    /// blocks. Returns the sizes of those.
    ///
    /// # Errors
    /// Weights without a block quantisation.
    pub fn keep_quantized(&mut self) -> Result<QuantizedSize> {
        let mut size = QuantizedSize::default();
        for tensor in self
            .tensors
            .iter()
            .filter(|(name, stored)| name.starts_with("model.layers.") && stored.shape.len() == 2)
            .map(|(_, tensor)| tensor)
        {
            if let (Encoding::Blocks(format), values) = (tensor.encoding, tensor.shape.iter().product::<usize>()) {
                size.matrices += 1;
                size.bytes += values / 8 * Blocks::bits_per_number(format);
                size.plain_bytes += values * 4;
            }
        }
        self.quantized = true;
        match size.matrices {
            0 => Err(Error::usage(format!(
                "llm.quantized: {}: no decoder matrix is in 4- or 8-bit blocks",
                self.source.display()
            ))),
            _ => Ok(size),
        }
    }

    /// Takes a matrix as it is on disk; `None` if it is not in blocks, or if
    /// [`Self::keep_quantized`] was not called.
    pub(crate) fn take_blocks(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<Blocks>> {
        let tensor = self.find(name, &shape)?;
        let (true, Encoding::Blocks(format)) = (self.quantized, tensor.encoding) else { return Ok(None) };
        let place = || format!("{}: tensor {name}", self.path(tensor.file).display());
        let bytes = self.bytes(tensor).ok_or_else(|| Error::failed(format!("{} lies outside the file", place())))?;
        let blocks = Blocks::read(format, bytes).filter(|blocks| blocks.numbers() == shape[0] * shape[1]);
        let mut blocks = blocks.ok_or_else(|| Error::failed(format!("{}: its bytes do not fit its shape", place())))?;
        if let Some(heads) = tensor.interleaved_heads {
            let rows: Vec<usize> = (0..shape[0]).collect();
            blocks = blocks.with_rows(&half_rotation_rows(&rows, &[shape[0]], heads));
        }
        self.tensors.remove(name);
        Ok(Some(blocks))
    }

    fn bytes(&self, tensor: &StoredTensor) -> Option<&[u8]> {
        self.files.get(tensor.file).and_then(|(_, bytes)| bytes.get(tensor.range.clone()))
    }

    /// Checks that the whole model was taken.
    ///
    /// # Errors
    /// Tensors that were never taken, by name, save `lm_head.weight` where the head is tied.
    pub fn finish(self) -> Result<()> {
        self.check_unexpected(|_| false)
    }

    /// Checks every name and shape before anything is allocated by the configuration's sizes. With
    /// `tied` embeddings an `lm_head.weight` may be there or not.
    ///
    /// # Errors
    /// Missing, unexpected and misshapen tensors, by name.
    pub(crate) fn check(mut self, needed: impl Iterator<Item = (String, Vec<usize>)>, tied: bool) -> Result<Self> {
        self.tied = tied;
        let mut expected = BTreeSet::new();
        for (name, shape) in needed {
            self.find(&name, &shape)?;
            expected.insert(name);
        }
        self.check_unexpected(|name| expected.contains(name))?;
        Ok(self)
    }

    /// Removes the tensors of a decoder's blocks from `layers` on.
    pub(crate) fn keep_layers(&mut self, layers: usize) {
        let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok();
        self.tensors.retain(|name, _| layer(name).is_none_or(|layer| layer < layers));
    }

    /// Returns every tensor's description and bytes on disk, in the order of the names: a model's
    /// fingerprint is made of them.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.tensors.iter().map(|(name, tensor)| {
            let StoredTensor { shape, encoding, interleaved_heads, .. } = tensor;
            let description = format!("{name} {shape:?} {encoding:?} {interleaved_heads:?}");
            (description, self.bytes(tensor).unwrap_or_default())
        })
    }

    fn check_unexpected(&self, expected: impl Fn(&str) -> bool) -> Result<()> {
        let tied_head = |name: &str| self.tied && name == "lm_head.weight";
        let names = self.tensors.keys().filter(|name| !expected(name) && !tied_head(name));
        let names: Vec<&str> = names.map(String::as_str).collect();
        let Some(first) = names.first().and_then(|name| self.tensors.get(*name)) else {
            return Ok(());
        };
        let more = if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
        let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        Err(Error::failed(format!(
            "{}: unexpected tensors, which the model does not have: {shown}{more}",
            self.path(first.file).display()
        )))
    }
}

/// Size of the matrices of a model that stay quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuantizedSize {
    /// Number of matrices.
    pub matrices: usize,
    /// Bytes that they take.
    pub bytes: usize,
    /// Bytes that they would take in f32.
    pub plain_bytes: usize,
}

/// Returns whether a tensor is a buffer that old files hold and no model needs.
pub(crate) fn is_ignored(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with("embeddings.position_ids")
}

/// Reorders the rows of q and k, which llama.cpp stores for RoPE on neighbours, for the RoPE on
/// halves of Hugging Face, as transformers' `LlamaTensorProcessor._reverse_permute_weights` does.
fn half_rotation_rows<T: Copy>(rows: &[T], shape: &[usize], heads: usize) -> Vec<T> {
    let width: usize = shape.iter().skip(1).product();
    let (Some(&height), true) = (shape.first(), heads > 0 && width > 0) else {
        return rows.to_vec();
    };
    let head_dim = height / heads;
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact((head_dim * width).max(1)) {
        for parity in 0..2 {
            for row in head.chunks_exact(width).skip(parity).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}

pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).context(path.display())?;
    if !file.metadata().context(path.display())?.is_file() {
        return Err(Error::failed(format!("{}: not a file", path.display())));
    }
    // SAFETY: the map is only read, as bytes. Whoever truncates a model while it is being loaded
    // gets SIGBUS, as in every program that maps model files.
    unsafe { Mmap::map(&file) }.context(path.display())
}

/// Reads a text file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let file = File::open(path).context(path.display())?;
    let mut text = String::new();
    let length = file.take(most + 1).read_to_string(&mut text).context(path.display())?;
    if length as u64 > most {
        return Err(Error::failed(format!("{}: longer than {most} bytes", path.display())));
    }
    Ok(text)
}
