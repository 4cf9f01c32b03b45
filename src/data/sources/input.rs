//! Files as their owners publish them: plain, gzip or zstd by content, read once, hashed as they
//! are read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::read_context::ReadContext;
use crate::core::files::hex;
use crate::data::corpus::FileDigest;
use crate::data::progress::check_stop;
use crate::{Context, Error, Result};

/// A line longer than this is no line.
const MAX_LINE: usize = 64 << 20;
/// Lines are parsed in blocks of about this many bytes.
const BLOCK: usize = 1 << 20;

/// How text is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// UTF-8, checked.
    Utf8,
    /// ISO 8859-1: each byte is the character of that number.
    Latin1,
}

/// A file being read: its content, decompressed.
pub(crate) struct Input {
    path: PathBuf,
    content: Box<dyn BufRead + Send>,
    read: Arc<Mutex<StoredBytes>>,
}

/// What was read of the stored bytes so far.
#[derive(Default)]
struct StoredBytes {
    hash: Sha256,
    bytes: u64,
}

struct HashingReader {
    file: File,
    read: Arc<Mutex<StoredBytes>>,
    progress: Option<Arc<AtomicU64>>,
}

impl Read for HashingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check_stop().map_err(io::Error::other)?;
        let count = self.file.read(buffer)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.hash.update(buffer.get(..count).unwrap_or_default());
        read.bytes += count as u64;
        if let Some(progress) = &self.progress {
            progress.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(count)
    }
}

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Is the file compressed?
pub(super) fn is_packed(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(4).read_to_end(&mut start)).context(path.display())?;
    Ok(start.starts_with(&GZIP) || start.starts_with(&ZSTD))
}

impl Input {
    /// Opens `path`; gzip and zstd are known by their first bytes. An empty file is an error.
    pub(crate) fn open(path: &Path, context: &ReadContext) -> Result<Self> {
        Self::new(path, Some(context.progress.bytes.clone()))
    }

    fn new(path: &Path, progress: Option<Arc<AtomicU64>>) -> Result<Self> {
        let place = path.display();
        let file = File::open(path).context(place.to_string())?;
        let read = Arc::new(Mutex::new(StoredBytes::default()));
        let mut stored = BufReader::with_capacity(1 << 20, HashingReader { file, read: read.clone(), progress });
        let start = stored.fill_buf().context(place.to_string())?;
        if start.is_empty() {
            return Err(Error::failed(format!("{place}: the file is empty")));
        }
        let content: Box<dyn BufRead + Send> = if start.starts_with(&GZIP) {
            Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(stored)))
        } else if start.starts_with(&ZSTD) {
            let decoder = zstd::stream::read::Decoder::with_buffer(stored).context(place)?;
            Box::new(BufReader::with_capacity(1 << 20, decoder))
        } else {
            Box::new(stored)
        };
        Ok(Self { path: path.to_path_buf(), content, read })
    }

    /// Opens `path` to look into it: it does not count as read.
    pub(super) fn peek(path: &Path) -> Result<Self> {
        Self::new(path, None)
    }

    /// The first line of the content, without its end; at most 1 MiB of it.
    pub(crate) fn first_line(path: &Path) -> Result<String> {
        let mut line = Vec::new();
        let mut input = Self::peek(path)?;
        let mut start = (&mut input.content).take(1 << 20);
        let read = loop {
            match start.read_until(b'\n', &mut line) {
                // Blank lines are skipped when the file is read, too.
                Ok(count) if count > 0 && line.iter().all(u8::is_ascii_whitespace) => line.clear(),
                read => break read,
            }
        };
        read.map_err(|e| input.broken(&e))?;
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).trim_start_matches('\u{feff}').to_string())
    }

    /// The content as a stream, for a reader of its own; [`Input::finish`] afterwards.
    pub(crate) fn content(&mut self) -> &mut (dyn BufRead + Send) {
        &mut self.content
    }

    /// Stored bytes read so far.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Reads what is left, then gives the digest of the stored file.
    pub(crate) fn finish(mut self) -> Result<FileDigest> {
        io::copy(&mut self.content, &mut io::sink()).map_err(|e| self.broken(&e))?;
        let name = self.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let read = std::mem::take(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner));
        let sha256 = hex(&read.hash.finalize());
        Ok(FileDigest { name, bytes: read.bytes, sha256 })
    }

    /// A read error, which for a compressed file mostly means that it is cut or damaged.
    pub(crate) fn broken(&self, error: &io::Error) -> Error {
        if let Err(stopped) = check_stop() {
            return stopped;
        }
        Error::failed(format!(
            "{}: after {} stored bytes: {error}; is the file cut or damaged?",
            self.path.display(),
            self.stored_bytes()
        ))
    }

    /// The next block of whole lines; empty at the end.
    fn block(&mut self, carry: &mut Vec<u8>, line: u64) -> Result<Vec<u8>> {
        let mut block = std::mem::take(carry);
        block.reserve(BLOCK);
        loop {
            let buffer = match self.content.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(&error)),
            };
            let count = buffer.len();
            if count == 0 {
                return Ok(block);
            }
            block.extend_from_slice(buffer);
            self.content.consume(count);
            if block.len() >= BLOCK {
                if let Some(end) = block.iter().rposition(|b| *b == b'\n') {
                    *carry = block.split_off(end + 1);
                    return Ok(block);
                }
                if block.len() > MAX_LINE {
                    let what = format!("line {line} or one after it is longer than {} MiB", MAX_LINE >> 20);
                    return Err(Error::failed(format!("{}: {what}", self.path.display())));
                }
            }
        }
    }
}

/// What a block of lines gave.
#[derive(Default)]
pub(super) struct ParsedBlock<C> {
    pub(super) values: C,
    /// Line, from 1, and what is wrong with it.
    pub(super) bad: Vec<(u64, String)>,
    pub(super) lines: u64,
}

/// Parses the lines of a file, the blocks in parallel and handed to `sink` in their order.
///
/// `parse` adds a line (without its end; never an empty one) to the block's values, or says what is
/// wrong and leaves them alone. `skip` first lines are not parsed (headers). Bad lines count
/// against [`ReadContext::skip_bad`].
pub(crate) fn read_lines<C: Default + Send>(
    path: &Path,
    encoding: Encoding,
    skip: u64,
    context: &mut ReadContext,
    parse: impl Fn(&str, &mut C) -> std::result::Result<(), String> + Sync,
    mut sink: impl FnMut(C) -> Result<()> + Send,
) -> Result<()> {
    read_numbered_lines(path, encoding, skip, context, |_, line, values| parse(line, values), |_, values| sink(values))
}

/// [`read_lines`] where a line can turn out bad only in `sink`, against what came before: `parse`
/// is told the line's number, from 1, and `sink` is handed the job, for [`ReadContext::bad`].
pub(crate) fn read_numbered_lines<C: Default + Send>(
    path: &Path,
    encoding: Encoding,
    skip: u64,
    context: &mut ReadContext,
    parse: impl Fn(u64, &str, &mut C) -> std::result::Result<(), String> + Sync,
    mut sink: impl FnMut(&mut ReadContext, C) -> Result<()> + Send,
) -> Result<()> {
    let mut input = Input::open(path, context)?;
    let mut carry = Vec::new();
    let mut lines = 0u64;
    // While a batch of blocks is parsed, the next is read and the one before is handed on.
    let batch = 2 * rayon::current_num_threads();
    let mut read = |lines: &mut u64| -> Result<Vec<(u64, Vec<u8>)>> {
        let mut blocks = Vec::with_capacity(batch);
        while blocks.len() < batch {
            let block = input.block(&mut carry, *lines + 1)?;
            if block.is_empty() {
                break;
            }
            let first = *lines + 1;
            *lines += block.iter().filter(|b| **b == b'\n').count() as u64 + u64::from(block.last() != Some(&b'\n'));
            blocks.push((first, block));
        }
        Ok(blocks)
    };
    let mut waiting = read(&mut lines)?;
    let mut done: Vec<ParsedBlock<C>> = Vec::new();
    while !waiting.is_empty() || !done.is_empty() {
        let (handed, (parsed, following)) = rayon::join(
            || hand_on(path, std::mem::take(&mut done), context, &mut sink),
            || {
                rayon::join(
                    || {
                        waiting
                            .par_iter()
                            .map(|(first, block)| parse_block(block, *first, encoding, skip, &parse))
                            .collect()
                    },
                    || read(&mut lines),
                )
            },
        );
        handed?;
        done = parsed;
        waiting = match following {
            Ok(blocks) => blocks,
            // Bad lines before the place where reading failed are named first.
            Err(error) => {
                hand_on(path, done, context, &mut sink)?;
                return Err(error);
            }
        };
    }
    context.inputs.push(input.finish()?);
    Ok(())
}

/// Counts the bad lines of parsed blocks and gives `sink` the values of the others.
pub(super) fn hand_on<C>(
    path: &Path,
    done: impl IntoIterator<Item = ParsedBlock<C>>,
    context: &mut ReadContext,
    sink: &mut impl FnMut(&mut ReadContext, C) -> Result<()>,
) -> Result<()> {
    for block in done {
        for (line, what) in block.bad {
            context.bad(path, line, &what)?;
        }
        sink(context, block.values)?;
        context.progress.add(block.lines)?;
    }
    Ok(())
}

fn parse_block<C: Default>(
    block: &[u8],
    first: u64,
    encoding: Encoding,
    skip: u64,
    parse: &impl Fn(u64, &str, &mut C) -> std::result::Result<(), String>,
) -> ParsedBlock<C> {
    let mut parsed = ParsedBlock::default();
    let mut latin1 = String::new();
    let body = block.strip_suffix(b"\n").unwrap_or(block);
    for (number, bytes) in (first..).zip(body.split(|b| *b == b'\n')) {
        parsed.lines += 1;
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if number <= skip || bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = match encoding {
            Encoding::Utf8 => std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_string()),
            Encoding::Latin1 => {
                latin1.clear();
                latin1.extend(bytes.iter().map(|b| char::from(*b)));
                Ok(latin1.as_str())
            }
        };
        let line = line.map(|line| if number == 1 { line.trim_start_matches('\u{feff}') } else { line });
        if let Err(what) = line.and_then(|line| parse(number, line, &mut parsed.values)) {
            parsed.bad.push((number, what));
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lines(path: &Path, encoding: Encoding, context: &mut ReadContext) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let parse = |line: &str, out: &mut Vec<String>| {
            if line.contains("bad") {
                return Err("it is bad".to_string());
            }
            out.push(line.to_string());
            Ok(())
        };
        read_lines(path, encoding, 0, context, parse, |block: Vec<String>| {
            all.extend(block);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn compression_is_known_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let text: String = (0..200_000).map(|i| format!("line {i}\r\n")).collect();
        // A file of two gzip members is one stream.
        let (a, b) = text.split_at(1000);
        let members = [gz(a.as_bytes()), gz(b.as_bytes())].concat();
        for stored in [text.clone().into_bytes(), members, zstd::stream::encode_all(text.as_bytes(), 1).unwrap()] {
            std::fs::write(&path, &stored).unwrap();
            let mut context = ReadContext::quiet();
            let all = lines(&path, Encoding::Utf8, &mut context).unwrap();
            assert_eq!(all.len(), 200_000);
            assert_eq!(all[123_456], "line 123456");
            assert_eq!(context.inputs, [FileDigest::of("f", &stored)]);
            assert_eq!(Input::first_line(&path).unwrap(), "line 0");
        }
        let cut = gz(text.as_bytes());
        std::fs::write(&path, &cut[..cut.len() / 2]).unwrap();
        let error = lines(&path, Encoding::Utf8, &mut ReadContext::quiet()).unwrap_err().to_string();
        assert!(error.contains("cut or damaged"), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(Input::first_line(&path).err().unwrap().to_string().contains("empty"));
    }

    #[test]
    fn bad_lines_are_named_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"\xef\xbb\xbfa\n\nbad\n\xff\nbad\nb").unwrap();
        let mut context = ReadContext::quiet();
        context.skip_bad = 3;
        assert_eq!(lines(&path, Encoding::Utf8, &mut context).unwrap(), ["a", "b"]);
        assert_eq!(context.skipped, 3);
        for (allowed, line) in [(0, "line 3: it is bad"), (1, "line 4: not UTF-8"), (2, "line 5: it is bad")] {
            let mut context = ReadContext::quiet();
            context.skip_bad = allowed;
            let error = lines(&path, Encoding::Utf8, &mut context).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
        std::fs::write(&path, b"caf\xe9").unwrap();
        assert_eq!(lines(&path, Encoding::Latin1, &mut ReadContext::quiet()).unwrap(), ["café"]);
    }
}
