//! Text in blocks of whole records, parsed in parallel and handed on in their order.

use std::io;

use memchr::memrchr;
use rayon::prelude::*;

use super::encoding::Encoding;
use super::input::Input;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use crate::{Error, Result};

/// Bytes of a block, about.
const BLOCK: usize = 1 << 20;
/// A longer record is an error: a file without line ends, or a quote that is not closed.
pub(super) const MAX_RECORD: usize = 64 << 20;

/// The value of a record, or what is wrong with it.
pub(super) type RecordResult<T> = std::result::Result<T, String>;

/// Whole records of a file.
pub(super) struct TextBlock {
    /// The line, from 1, that the first record begins on.
    pub(super) first_line: u64,
    pub(super) bytes: Vec<u8>,
    /// The section that the first record belongs to; see [`super::delimited::Dialect::sections`].
    pub(super) section: String,
}

/// The values and bad records of a block.
#[derive(Default)]
pub(super) struct ParsedBlock<C> {
    pub(super) values: C,
    /// Line, from 1, of each bad record, and what is wrong with it.
    pub(super) bad: Vec<(u64, String)>,
    /// Number of records, bad ones included.
    pub(super) records: u64,
}

/// Cuts content into blocks of whole records.
pub(super) struct BlockReader {
    file: SourceFile,
    input: Input,
    pending: Vec<u8>,
    line: u64,
    section: String,
    ended: bool,
}

impl BlockReader {
    pub(super) fn new(file: &SourceFile, input: Input) -> Self {
        Self { file: file.clone(), input, pending: Vec::new(), line: 1, section: String::new(), ended: false }
    }

    /// Returns the next block; `None` at the end of the content.
    ///
    /// * `complete`: how many of these bytes are whole records; `true` if no bytes follow them, and
    ///   then all are.
    /// * `section`: updates the section by the records of a block.
    pub(super) fn next(
        &mut self,
        complete: impl Fn(&[u8], bool) -> usize,
        section: impl Fn(&[u8], &mut String),
    ) -> Result<Option<TextBlock>> {
        loop {
            self.fill()?;
            if self.pending.is_empty() {
                return Ok(None);
            }
            let too_long = self.pending.len() > MAX_RECORD;
            let end = complete(&self.pending, self.ended);
            if end > 0 {
                let rest = self.pending.split_off(end);
                let bytes = std::mem::replace(&mut self.pending, rest);
                let block = TextBlock { first_line: self.line, section: self.section.clone(), bytes };
                self.line += memchr::memchr_iter(b'\n', &block.bytes).count() as u64;
                section(&block.bytes, &mut self.section);
                return Ok(Some(block));
            }
            if too_long {
                let what = format!("line {} or one after it is longer than {} MiB", self.line, MAX_RECORD >> 20);
                return Err(Error::failed(format!("{}: {what}", self.file)));
            }
        }
    }

    /// Reads about one block more.
    fn fill(&mut self) -> Result<()> {
        let goal = self.pending.len() + BLOCK;
        self.pending.reserve(BLOCK);
        while !self.ended && self.pending.len() < goal {
            let buffer = match self.input.content().fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.input.read_error(&error)),
            };
            let count = buffer.len();
            self.ended = count == 0;
            self.pending.extend_from_slice(buffer);
            self.input.content().consume(count);
        }
        Ok(())
    }

    /// Parses all blocks. While a batch of them is parsed, the next is read and the one before is
    /// passed to `sink`, in the order of the file.
    pub(super) fn parse_all<C: Default + Send>(
        mut self,
        context: &mut ReadContext,
        mut next: impl FnMut(&mut Self) -> Result<Option<TextBlock>> + Send,
        parse: impl Fn(&TextBlock) -> ParsedBlock<C> + Sync,
        mut sink: impl FnMut(&mut ReadContext, C) -> Result<()> + Send,
    ) -> Result<()> {
        let batch = 2 * rayon::current_num_threads();
        let file = self.file.clone();
        let mut read = |blocks: &mut Self| -> Result<Vec<TextBlock>> {
            let mut batch_of_blocks = Vec::with_capacity(batch);
            while batch_of_blocks.len() < batch
                && let Some(block) = next(blocks)?
            {
                batch_of_blocks.push(block);
            }
            Ok(batch_of_blocks)
        };
        let mut waiting = read(&mut self)?;
        let mut parsed: Vec<ParsedBlock<C>> = Vec::new();
        let mut rows = 0;
        while !waiting.is_empty() || !parsed.is_empty() {
            let done = std::mem::take(&mut parsed);
            rows += done.iter().map(|block| block.records).sum::<u64>();
            let (handed, (now_parsed, following)) = rayon::join(
                || pass_on(&file, done, context, &mut sink),
                || rayon::join(|| waiting.par_iter().map(&parse).collect(), || read(&mut self)),
            );
            handed?;
            parsed = now_parsed;
            waiting = match following {
                Ok(blocks) => blocks,
                // Bad records before the position where reading failed are reported first.
                Err(error) => {
                    pass_on(&file, parsed, context, &mut sink)?;
                    return Err(error);
                }
            };
        }
        let digest = self.input.finish()?;
        context.finish_file(&self.file, rows, digest);
        Ok(())
    }
}

/// Counts the bad records of parsed blocks and passes the values of the others to `sink`.
fn pass_on<C>(
    file: &SourceFile,
    done: impl IntoIterator<Item = ParsedBlock<C>>,
    context: &mut ReadContext,
    sink: &mut impl FnMut(&mut ReadContext, C) -> Result<()>,
) -> Result<()> {
    for block in done {
        for (line, what) in block.bad {
            context.bad_row(file, line, &what)?;
        }
        sink(context, block.values)?;
        context.progress.add(block.records)?;
    }
    Ok(())
}

/// Parses the lines of a file, in parallel, and passes the values to `sink` in their order.
///
/// `parse` adds a line (without its end; never an empty one) to the block's values, or returns what
/// is wrong and leaves them alone. The first `skip` lines are not parsed (headers). Bad lines count
/// against [`ReadContext::skip_bad`].
pub(crate) fn read_lines<C: Default + Send>(
    file: &SourceFile,
    encoding: Encoding,
    skip: u64,
    context: &mut ReadContext,
    parse: impl Fn(&str, &mut C) -> RecordResult<()> + Sync,
    mut sink: impl FnMut(C) -> Result<()> + Send,
) -> Result<()> {
    read_numbered_lines(file, encoding, skip, context, |_, line, values| parse(line, values), |_, values| sink(values))
}

/// Reads lines as [`read_lines`], where a line can turn out bad only in `sink`, against what came
/// before: `parse` gets the line's number, from 1, and `sink` gets the context, for
/// [`ReadContext::bad_row`].
pub(crate) fn read_numbered_lines<C: Default + Send>(
    file: &SourceFile,
    encoding: Encoding,
    skip: u64,
    context: &mut ReadContext,
    parse: impl Fn(u64, &str, &mut C) -> RecordResult<()> + Sync,
    sink: impl FnMut(&mut ReadContext, C) -> Result<()> + Send,
) -> Result<()> {
    let input = Input::open_as(file, encoding, context)?;
    BlockReader::new(file, input).parse_all(
        context,
        |blocks| blocks.next(whole_lines, |_, _| ()),
        |block| parse_lines(block, skip, &parse),
        sink,
    )
}

/// Returns the number of bytes up to the last line end; all of them at the end of the content.
pub(super) fn whole_lines(bytes: &[u8], at_end: bool) -> usize {
    match memrchr(b'\n', bytes) {
        Some(end) if !at_end => end + 1,
        None if !at_end => 0,
        _ => bytes.len(),
    }
}

fn parse_lines<C: Default>(
    block: &TextBlock,
    skip: u64,
    parse: &impl Fn(u64, &str, &mut C) -> RecordResult<()>,
) -> ParsedBlock<C> {
    let mut parsed = ParsedBlock::default();
    let body = block.bytes.strip_suffix(b"\n").unwrap_or(&block.bytes);
    for (number, bytes) in (block.first_line..).zip(body.split(|b| *b == b'\n')) {
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if number <= skip || bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        parsed.records += 1;
        let line = std::str::from_utf8(bytes).map_err(|_| NOT_UTF8.to_string());
        if let Err(what) = line.and_then(|line| parse(number, line, &mut parsed.values)) {
            parsed.bad.push((number, what));
        }
    }
    parsed
}

/// The message for bytes that are not UTF-8.
pub(super) const NOT_UTF8: &str = "not UTF-8 (table: option `encoding` says what else it is)";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &SourceFile, encoding: Encoding, context: &mut ReadContext) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let parse = |line: &str, out: &mut Vec<String>| {
            if line.contains("bad") {
                return Err("it is bad".to_string());
            }
            out.push(line.to_string());
            Ok(())
        };
        read_lines(file, encoding, 0, context, parse, |block: Vec<String>| {
            all.extend(block);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn lines_come_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = SourceFile::new(dir.path().join("f"));
        std::fs::write(file.path(), (0..300_000).map(|i| format!("line {i}\r\n")).collect::<String>()).unwrap();
        let all = lines(&file, Encoding::Utf8, &mut ReadContext::quiet()).unwrap();
        assert_eq!((all.len(), all[123_456].as_str()), (300_000, "line 123456"));
        assert_eq!(Input::first_line(&file).unwrap(), "line 0");
        std::fs::write(file.path(), "").unwrap();
        assert!(Input::first_line(&file).err().unwrap().to_string().contains("empty"));
    }

    /// A line that is too long is refused and never cut in two.
    #[test]
    fn a_line_of_more_than_64_mib_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = SourceFile::new(dir.path().join("f"));
        std::fs::write(file.path(), ["a\n", &"b".repeat(MAX_RECORD + 2 * BLOCK), "\nc\n"].concat()).unwrap();
        let error = lines(&file, Encoding::Utf8, &mut ReadContext::quiet()).unwrap_err().to_string();
        assert!(error.contains("line 2 or one after it is longer than 64 MiB"), "{error}");
    }

    #[test]
    fn bad_lines_are_named_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let file = SourceFile::new(dir.path().join("f"));
        std::fs::write(file.path(), b"\xef\xbb\xbfa\n\nbad\n\xff\nbad\nb").unwrap();
        let mut context = ReadContext::quiet();
        context.skip_bad = 3;
        assert_eq!(lines(&file, Encoding::Utf8, &mut context).unwrap(), ["a", "b"]);
        assert_eq!(context.skipped, 3);
        for (allowed, line) in [(0, "line 3: it is bad"), (1, "line 4: not UTF-8"), (2, "line 5: it is bad")] {
            let mut context = ReadContext::quiet();
            context.skip_bad = allowed;
            let error = lines(&file, Encoding::Utf8, &mut context).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
        std::fs::write(file.path(), b"caf\xe9").unwrap();
        assert_eq!(lines(&file, Encoding::Latin1, &mut ReadContext::quiet()).unwrap(), ["café"]);
    }
}
