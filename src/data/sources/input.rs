//! Files as their owners publish them: plain, gzip, zstd or bzip2 by content, in UTF-8 or another
//! encoding, hashed as they are read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::encoding::{DecodingReader, Encoding};
use super::read_context::ReadContext;
use super::signature::{HEAD, Signature};
use super::source_file::SourceFile;
use crate::core::files::hex;
use crate::data::corpus::FileDigest;
use crate::data::progress::check_stop;
use crate::{Context, Error, Result};

/// Bytes of a reader's buffer.
const BUFFER: usize = 1 << 20;

type Content = Box<dyn BufRead + Send>;

/// A file being read: its content, decompressed and in UTF-8.
pub(crate) struct Input {
    file: SourceFile,
    content: Content,
    read: Arc<Mutex<StoredBytes>>,
}

/// The stored bytes read so far.
#[derive(Default)]
struct StoredBytes {
    hash: Sha256,
    bytes: u64,
}

/// A reader that hashes and counts the bytes that it reads.
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

/// Returns whether the file is compressed.
pub(super) fn is_compressed(file: &SourceFile) -> Result<bool> {
    Ok(signature(file)?.compression().is_some())
}

/// Returns what the stored file is, by its first bytes.
pub(super) fn signature(file: &SourceFile) -> Result<Signature> {
    let mut head = Vec::new();
    file.open()?.take(HEAD as u64).read_to_end(&mut head).context(file)?;
    Ok(Signature::detect(&head))
}

impl Input {
    /// Opens a file in UTF-8. An empty file is an error, and so is a format that is not supported.
    pub(crate) fn open(file: &SourceFile, context: &ReadContext) -> Result<Self> {
        Self::open_as(file, Encoding::Utf8, context)
    }

    /// Opens a file in an encoding.
    pub(super) fn open_as(file: &SourceFile, encoding: Encoding, context: &ReadContext) -> Result<Self> {
        Self::new(file, encoding, Some(context.progress.bytes.clone()))
    }

    /// Opens a file to look into it: it does not count as a file that was read.
    pub(super) fn peek(file: &SourceFile) -> Result<Self> {
        Self::peek_as(file, Encoding::Utf8)
    }

    /// Opens a file in an encoding as [`Input::peek`] does.
    pub(super) fn peek_as(file: &SourceFile, encoding: Encoding) -> Result<Self> {
        Self::new(file, encoding, None)
    }

    fn new(file: &SourceFile, encoding: Encoding, progress: Option<Arc<AtomicU64>>) -> Result<Self> {
        let read = Arc::new(Mutex::new(StoredBytes::default()));
        let stored = HashingReader { file: file.open()?, read: read.clone(), progress };
        let stored: Content = Box::new(BufReader::with_capacity(BUFFER, stored));
        let content = unpack(file, stored, encoding)?;
        Ok(Self { file: file.clone(), content, read })
    }

    /// Returns the first line of the content that is not blank, without its end; at most 1 MiB of
    /// it.
    pub(crate) fn first_line(file: &SourceFile) -> Result<String> {
        Self::first_line_as(file, Encoding::Utf8)
    }

    /// Returns the first line as [`Input::first_line`] does, of a file in an encoding.
    pub(super) fn first_line_as(file: &SourceFile, encoding: Encoding) -> Result<String> {
        let mut line = Vec::new();
        let mut input = Self::peek_as(file, encoding)?;
        let mut start = (&mut input.content).take(1 << 20);
        let read = loop {
            match start.read_until(b'\n', &mut line) {
                // Blank lines are skipped when the file is read in full, too.
                Ok(count) if count > 0 && line.iter().all(u8::is_ascii_whitespace) => line.clear(),
                read => break read,
            }
        };
        read.map_err(|e| input.read_error(&e))?;
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string())
    }

    /// Returns the content as a stream, for another reader; [`Input::finish`] comes after it.
    pub(crate) fn content(&mut self) -> &mut (dyn BufRead + Send) {
        &mut self.content
    }

    /// Returns the number of stored bytes read so far.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Reads the rest and returns the digest of the stored file.
    pub(crate) fn finish(mut self) -> Result<FileDigest> {
        io::copy(&mut self.content, &mut io::sink()).map_err(|e| self.read_error(&e))?;
        let read = std::mem::take(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner));
        let sha256 = hex(&read.hash.finalize());
        Ok(FileDigest { name: self.file.base_name(), bytes: read.bytes, sha256 })
    }

    /// Returns a read error, which for a compressed file mostly means that it is cut or damaged.
    pub(crate) fn read_error(&self, error: &io::Error) -> Error {
        if let Err(stopped) = check_stop() {
            return stopped;
        }
        Error::failed(format!(
            "{}: after {} stored bytes: {error}; is the file cut or damaged?",
            self.file,
            self.stored_bytes()
        ))
    }
}

/// Reads the first bytes; returns them, and the content with them put back.
fn head(file: &SourceFile, mut content: Content) -> Result<(Vec<u8>, Content)> {
    let mut head = Vec::new();
    (&mut content).take(HEAD as u64).read_to_end(&mut head).map_err(|error| match check_stop() {
        Err(stopped) => stopped,
        Ok(()) => Error::failed(format!("{file}: {error}; is the file cut or damaged?")),
    })?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(content))))
}

/// Decompresses and decodes.
fn unpack(file: &SourceFile, stored: Content, encoding: Encoding) -> Result<Content> {
    let (mut start, mut content) = head(file, stored)?;
    if start.is_empty() {
        return Err(Error::failed(format!("{file}: the file is empty")));
    }
    let mut signature = Signature::detect(&start);
    if let Some(outer) = signature.compression() {
        let unpacked: Box<dyn Read + Send> = match signature {
            Signature::Gzip => Box::new(MultiGzDecoder::new(content)),
            Signature::Bzip2 => Box::new(MultiBzDecoder::new(content)),
            Signature::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(content).context(file)?),
            _ => {
                let what =
                    "a zip archive: give it as an input of its own to amazon, movielens, openp5 or table, or unpack it";
                return Err(Error::failed(format!("{file}: {what}")));
            }
        };
        (start, content) = head(file, Box::new(BufReader::with_capacity(BUFFER, unpacked)))?;
        signature = Signature::detect(&start);
        if let Some(inner) = signature.compression() {
            let what = format!("the file is {inner} inside {outer}: decompress it once");
            return Err(Error::failed(format!("{file}: {what}")));
        }
        if signature == Signature::Parquet {
            let what = format!("the file is Parquet inside {outer}: decompress it");
            return Err(Error::failed(format!("{file}: {what}")));
        }
    }
    let decode = |content: Content, encoding: &'static encoding_rs::Encoding| -> Content {
        Box::new(BufReader::with_capacity(BUFFER, DecodingReader::new(content, encoding)))
    };
    match signature {
        Signature::Unreadable(what) => Err(Error::failed(format!("{file}: {what}"))),
        Signature::Utf16Le => Ok(decode(content, encoding_rs::UTF_16LE)),
        Signature::Utf16Be => Ok(decode(content, encoding_rs::UTF_16BE)),
        Signature::Parquet => Ok(content),
        _ if start.starts_with(b"\xef\xbb\xbf") => {
            // A byte-order mark means UTF-8, whatever encoding was given.
            content.consume(3);
            Ok(content)
        }
        _ => match encoding {
            Encoding::Utf8 => Ok(content),
            Encoding::Latin1 => Ok(Box::new(BufReader::with_capacity(BUFFER, DecodingReader::latin1(content)))),
            Encoding::Windows1252 => Ok(decode(content, encoding_rs::WINDOWS_1252)),
            Encoding::Utf16 => Ok(decode(content, encoding_rs::UTF_16LE)),
        },
    }
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

    fn bz2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn content(stored: &[u8], encoding: Encoding) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, stored).unwrap();
        let mut input = Input::open_as(&SourceFile::new(path), encoding, &ReadContext::quiet())?;
        let mut text = String::new();
        let read = input.content().read_to_string(&mut text);
        read.map_err(|error| input.read_error(&error))?;
        assert_eq!(input.finish().unwrap(), FileDigest::from_bytes("f", stored));
        Ok(text)
    }

    #[test]
    fn compression_and_encoding_are_recognised_by_content() {
        let text: String = (0..200_000).map(|i| format!("line {i} é\r\n")).collect();
        // A file of two members is one stream.
        let (a, b) = text.split_at(1000);
        let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf16_be: Vec<u8> = std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect();
        for stored in [
            text.clone().into_bytes(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            [gz(a.as_bytes()), gz(b.as_bytes())].concat(),
            [bz2(a.as_bytes()), bz2(b.as_bytes())].concat(),
            [zstd(a.as_bytes()), zstd(b.as_bytes())].concat(),
            [b"\x50\x2a\x4d\x18\x04\x00\x00\x00\x01\x02\x03\x04".to_vec(), zstd(text.as_bytes())].concat(),
            gz(&utf16),
            utf16,
            utf16_be,
        ] {
            assert!(content(&stored, Encoding::Utf8).unwrap() == text, "{:?}", &stored[..16]);
        }
        assert_eq!(content(b"caf\xe9 \x80\x9f", Encoding::Latin1).unwrap(), "café \u{80}\u{9f}");
        assert_eq!(content(b"caf\xe9 \x80", Encoding::Windows1252).unwrap(), "café €");
    }

    #[test]
    fn unreadable_files_are_named() {
        let inner = gz(b"user,item\n");
        for (stored, what) in [
            (gz(&inner), "gzip inside gzip"),
            (bz2(&inner), "gzip inside bzip2"),
            (gz(b"PAR1\x00"), "Parquet inside gzip"),
            (b"".to_vec(), "empty"),
            (b"PK\x03\x04".to_vec(), "zip"),
            (gz(b"ARROW1\x00\x00"), "Arrow"),
            (gz(&[b'x'; 90_000])[..50].to_vec(), "damaged"),
        ] {
            let error = content(&stored, Encoding::Utf8).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
