//! Text in another encoding than UTF-8.

use std::io::{self, BufRead, Read};

use clap::ValueEnum;
use encoding_rs::{Decoder, DecoderResult};
use serde::Deserialize;

/// The encoding of a text file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
pub enum Encoding {
    /// UTF-8, checked
    #[default]
    #[serde(rename = "utf-8", alias = "utf8")]
    #[value(name = "utf-8", alias = "utf8")]
    Utf8,
    /// ISO 8859-1
    #[serde(rename = "latin-1", alias = "latin1", alias = "iso-8859-1")]
    #[value(name = "latin-1", aliases = ["latin1", "iso-8859-1"])]
    Latin1,
    /// Windows-1252
    #[serde(rename = "cp1252", alias = "windows-1252")]
    #[value(name = "cp1252", alias = "windows-1252")]
    Windows1252,
    /// UTF-16, little endian without a byte-order mark
    #[serde(rename = "utf-16", alias = "utf16")]
    #[value(name = "utf-16", alias = "utf16")]
    Utf16,
}

/// A reader that decodes content into UTF-8.
pub(super) struct DecodingReader<R> {
    content: R,
    /// `None` for ISO 8859-1, which [`encoding_rs`] reads as Windows-1252.
    decoder: Option<Decoder>,
    ended: bool,
    /// Decoded bytes that did not fit a reader's small buffer.
    pending: Vec<u8>,
}

impl<R: BufRead> DecodingReader<R> {
    pub(super) fn new(content: R, encoding: &'static encoding_rs::Encoding) -> Self {
        Self { content, decoder: Some(encoding.new_decoder_with_bom_removal()), ended: false, pending: Vec::new() }
    }

    /// Decodes ISO 8859-1: each byte is the character of that number.
    pub(super) fn latin1(content: R) -> Self {
        Self { content, decoder: None, ended: false, pending: Vec::new() }
    }
}

impl<R: BufRead> Read for DecodingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// Room for any character.
        const ROOM: usize = 64;
        if buffer.len() < ROOM && self.pending.is_empty() && !buffer.is_empty() {
            let mut room = [0; ROOM];
            let count = self.decode(&mut room)?;
            self.pending.extend(room.iter().take(count));
        }
        if self.pending.is_empty() {
            return if buffer.is_empty() { Ok(0) } else { self.decode(buffer) };
        }
        let count = buffer.len().min(self.pending.len());
        for (to, from) in buffer.iter_mut().zip(self.pending.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

impl<R: BufRead> DecodingReader<R> {
    /// Decodes into a buffer with room for a few characters; 0 at the end of the content.
    fn decode(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let source = self.content.fill_buf()?;
            let last = source.is_empty();
            let (read, written) = match &mut self.decoder {
                None => {
                    let source = source.get(..source.len().min(buffer.len() / 2)).unwrap_or_default();
                    (source.len(), encoding_rs::mem::convert_latin1_to_utf8(source, buffer))
                }
                Some(decoder) => {
                    let (result, read, written) = decoder.decode_to_utf8_without_replacement(source, buffer, last);
                    if let DecoderResult::Malformed(..) = result {
                        let what = format!("it is not text in {}", decoder.encoding().name());
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    self.ended = last && result == DecoderResult::InputEmpty;
                    (read, written)
                }
            };
            self.content.consume(read);
            if written > 0 || last {
                return Ok(written);
            }
        }
        Ok(0)
    }
}
