//! A language model on disk: its configuration, tensors and tokenizer, as plain host data.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use memmap2::Mmap;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::safetensors;
use crate::core::files::{hex, persist, temporary_beside, write_atomic};
use crate::model::llm::config::DecoderConfig;
use crate::model::llm::gguf;
use crate::model::llm::quantized::Blocks;
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

const LONGEST_CONFIG: u64 = 16 << 20;

/// An opened language model.
pub struct Llm {
    /// The sizes.
    pub config: DecoderConfig,
    /// The tensors, on disk until taken.
    pub weights: Weights,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// SHA-256 (hex) over the sizes, every tensor and the tokenizer: which model a run was trained
    /// on.
    pub fingerprint: String,
}

/// Opens a Hugging Face directory (`config.json`, `model.safetensors` or its shards,
/// `tokenizer.json`) or one `.gguf` file, and checks that its parts fit one another.
///
/// # Errors
/// One line naming the file and the key or tensor: unreadable, truncated or lying files, another
/// architecture, missing, unexpected or misshapen tensors, a tokenizer that does not fit the model.
pub fn open_llm(path: &Path) -> Result<Llm> {
    let (config, weights, tokenizer) = if path.is_dir() {
        let config_path = path.join("config.json");
        let text = read_text(&config_path, LONGEST_CONFIG)?;
        let config = DecoderConfig::from_json(&config_path, &text)?;
        let weights = Weights::open(path, &config)?;
        (config, weights, Tokenizer::from_dir(path)?)
    } else {
        let (config, mut weights, tokenizer) = gguf::open(path)?;
        weights.tied = config.tie_word_embeddings;
        weights.check(&config)?;
        (config, weights, tokenizer)
    };
    check_fit(&tokenizer, &config).context(path.display())?;
    let fingerprint = fingerprint(&config, &weights, &tokenizer);
    Ok(Llm { config, weights, tokenizer, fingerprint })
}

fn check_fit(tokenizer: &Tokenizer, config: &DecoderConfig) -> Result<()> {
    for (what, id) in [("has token id", tokenizer.largest_id()), ("ends with token id", tokenizer.eos())] {
        if id as usize >= config.vocab_size {
            return Err(Error::failed(format!(
                "the tokenizer does not fit the model: it {what} {id}, but the model has {} embeddings",
                config.vocab_size
            )));
        }
    }
    Ok(())
}

/// How a tensor's bytes encode its numbers (little endian).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    /// A block quantisation of GGUF.
    Blocks(GgmlDType),
}

impl Encoding {
    /// Numbers per block and bytes per block.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }

    /// The `values` numbers in `bytes`, whose length the file's reader has checked.
    fn decode(self, bytes: &[u8], values: usize) -> Result<Vec<f32>> {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let decoded = match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => pairs().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Self::Bf16 => pairs().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            Self::Blocks(dtype) => {
                let (size, length) = self.block();
                // candle asserts both.
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

/// Where a tensor lies on disk.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// Rows of this many heads are in llama.cpp's order for interleaved RoPE.
    pub(crate) interleaved_heads: Option<usize>,
    /// Added to its numbers: -1 for norms that a file keeps with the 1 that the model adds.
    pub(crate) offset: f32,
}

/// A model's tensors by their Hugging Face names, memory-mapped and read one at a time.
pub struct Weights {
    source: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
    tied: bool,
    quantized: bool,
}

impl Weights {
    /// The tensors of a Hugging Face directory, checked against `config`.
    ///
    /// # Errors
    /// Missing, unexpected and misshapen tensors, damaged files.
    pub fn open(dir: &Path, config: &DecoderConfig) -> Result<Self> {
        let mut weights = safetensors::open(dir)?;
        weights.tied = config.tie_word_embeddings;
        weights.check(config)?;
        Ok(weights)
    }

    pub(crate) fn new(source: &Path) -> Self {
        Self { source: source.to_owned(), files: Vec::new(), tensors: BTreeMap::new(), tied: false, quantized: false }
    }

    pub(crate) fn add_mapped(&mut self, path: &Path, bytes: Mmap) -> usize {
        self.files.push((path.to_owned(), bytes));
        self.files.len() - 1
    }

    pub(crate) fn add(&mut self, name: String, tensor: Stored) -> Result<()> {
        let file = tensor.file;
        if self.tensors.contains_key(&name) {
            return Err(Error::failed(format!("{}: a second tensor {name}", self.path(file).display())));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    pub(crate) fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name).map(|tensor| tensor.file)
    }

    fn path(&self, file: usize) -> &Path {
        self.files.get(file).map_or(&self.source, |(path, _)| path)
    }

    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<&Stored> {
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
        let place = format!("{}: tensor {name}", self.path(tensor.file).display());
        let bytes = self.bytes(tensor).ok_or_else(|| Error::failed(format!("{place} lies outside the file")))?;
        let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
        let mut decoded = tensor.encoding.decode(bytes, values).context(place)?;
        if let Some(heads) = tensor.interleaved_heads {
            decoded = half_rotation_rows(&decoded, shape, heads);
        }
        if tensor.offset != 0.0 {
            decoded.iter_mut().for_each(|value| *value += tensor.offset);
        }
        self.tensors.remove(name);
        Ok(decoded)
    }

    /// Has the decoder's matrices stay in the blocks that they are in on disk, where a matrix is in
    /// such; the sizes are of those.
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
                size.bytes += values / 8 * Blocks::bits_a_number(format);
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

    /// Takes a matrix as it is on disk; `None` if it is not in blocks, or [`Self::keep_quantized`]
    /// was not asked for.
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

    fn bytes(&self, tensor: &Stored) -> Option<&[u8]> {
        self.files.get(tensor.file).and_then(|(_, bytes)| bytes.get(tensor.range.clone()))
    }

    /// Checks that the whole model was taken.
    ///
    /// # Errors
    /// Names the tensors that nobody took, save `lm_head.weight` where the head is tied.
    pub fn finish(self) -> Result<()> {
        self.unexpected(|_| false)
    }

    /// Checks every name and shape before anything is allocated by the configuration's sizes.
    fn check(&self, config: &DecoderConfig) -> Result<()> {
        let mut expected = std::collections::BTreeSet::new();
        for (name, shape) in config.tensors() {
            self.find(&name, &shape)?;
            expected.insert(name);
        }
        self.unexpected(|name| expected.contains(name))
    }

    fn unexpected(&self, expected: impl Fn(&str) -> bool) -> Result<()> {
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

/// What of a model stays quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuantizedSize {
    /// So many matrices.
    pub matrices: usize,
    /// What they take.
    pub bytes: usize,
    /// What they would take in f32.
    pub plain_bytes: usize,
}

/// Buffers that old files hold and no model needs.
pub(crate) fn is_ignored(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with("embeddings.position_ids")
}

/// llama.cpp stores the rows of q and k for RoPE on neighbours; Hugging Face's turns halves. The
/// same as `LlamaTensorProcessor._reverse_permute_weights` of transformers.
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

fn fingerprint(config: &DecoderConfig, weights: &Weights, tokenizer: &Tokenizer) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(config.to_json(tokenizer.eos()).as_bytes());
    part(tokenizer.to_json().as_bytes());
    for (name, tensor) in &weights.tensors {
        let Stored { shape, encoding, interleaved_heads, .. } = tensor;
        part(format!("{name} {shape:?} {encoding:?} {interleaved_heads:?}").as_bytes());
        part(weights.bytes(tensor).unwrap_or_default());
    }
    hex(&hash.finalize())
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

/// Writes a Hugging Face directory that [`open_llm`] and transformers load: `model.safetensors`
/// (f32), `tokenizer.json`, `tokenizer_config.json` and, last, `config.json`. Each file is whole or
/// absent, and replaces one of the same name. Tensors (name, shape, values) may come in any order.
///
/// # Errors
/// A tensor that `config` does not ask for, or a missing or misshapen one; a failed write.
pub fn save_llm_dir(
    dir: &Path,
    config: &DecoderConfig,
    tensors: impl Iterator<Item = (String, Vec<usize>, Vec<f32>)>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    config.check().context(dir.display())?;
    check_fit(tokenizer, config).context(dir.display())?;
    fs::create_dir_all(dir).context(dir.display())?;
    write_safetensors(&dir.join("model.safetensors"), config, tensors)?;
    write_atomic(&dir.join("tokenizer.json"), tokenizer.to_json().as_bytes())?;
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.token(tokenizer.eos()),
        "clean_up_tokenization_spaces": false,
    });
    write_atomic(&dir.join("tokenizer_config.json"), format!("{tokenizer_config:#}\n").as_bytes())?;
    write_atomic(&dir.join("config.json"), config.to_json(tokenizer.eos()).as_bytes())
}

/// Streams the tensors into a file, so that a model is never in memory twice.
fn write_safetensors(
    path: &Path,
    config: &DecoderConfig,
    tensors: impl Iterator<Item = (String, Vec<usize>, Vec<f32>)>,
) -> Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut waiting: BTreeMap<String, (Vec<usize>, u64)> = BTreeMap::new();
    let mut end = 0u64;
    for (name, shape) in config.tensors() {
        let start = end;
        end += shape.iter().product::<usize>() as u64 * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
        waiting.insert(name, (shape, start));
    }
    let mut header = serde_json::to_vec(&header).context(path.display())?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = temporary_beside(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).context(path.display())?;
    file.write_all(&header).context(path.display())?;
    let data = 8 + header.len() as u64;
    for (name, shape, values) in tensors {
        let place = format!("{}: tensor {name}", path.display());
        let Some((needed, offset)) = waiting.remove(&name) else {
            return Err(Error::failed(format!("{place} is not one of this model's, or comes twice")));
        };
        if shape != needed || values.len() != needed.iter().product::<usize>() {
            let length = values.len();
            return Err(Error::failed(format!("{place} has shape {shape:?} and {length} values, not {needed:?}")));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::failed(format!("{place} holds {value}; it is not written")));
        }
        file.seek(SeekFrom::Start(data + offset)).context(&place)?;
        let mut bytes = Vec::with_capacity(values.len() * 4);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        file.write_all(&bytes).context(&place)?;
    }
    if let Some((name, (shape, _))) = waiting.first_key_value() {
        return Err(Error::failed(format!("{}: no tensor {name} {shape:?} was given", path.display())));
    }
    persist(file, path)
}

#[cfg(test)]
mod tests;
