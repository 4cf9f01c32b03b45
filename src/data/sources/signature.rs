//! Detection of a file's format by its first bytes.

/// Bytes of a file's beginning that [`Signature::detect`] looks at.
pub(super) const HEAD: usize = 1024;

/// The format that the first bytes of a file or of decompressed content show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    Gzip,
    Zstd,
    Bzip2,
    Zip,
    /// Text in UTF-16, with or without a byte-order mark.
    Utf16Le,
    Utf16Be,
    Parquet,
    /// A format that is not supported: its name and what to do.
    Unreadable(&'static str),
    /// Text in UTF-8 or an 8-bit encoding: anything else.
    Text,
}

/// First bytes of formats that are not supported.
const UNREADABLE: [(&[u8], &str); 30] = [
    (b"\xfd7zXZ\x00", "xz compression: decompress it (xz -d)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\x04\x22\x4d\x18", "lz4 compression: decompress it (lz4 -d)"),
    (b"LZIP", "lzip compression: decompress it (lzip -d)"),
    (b"\x1f\x9d", "compress (.Z) compression: decompress it (uncompress)"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy compression: decompress it"),
    (b"ARROW1", "an Arrow IPC (Feather) file: write it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream: write it as Parquet"),
    (b"FEA1", "a Feather file: write it as Parquet"),
    (b"PARE", "an encrypted Parquet file"),
    (b"ORC", "an ORC file: write it as Parquet"),
    (b"Obj\x01", "an Avro file: write it as Parquet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: write it as Parquet or CSV"),
    (b"SQLite format 3\x00", "an SQLite database: export the table as CSV"),
    (b"\x80\x02", "a Python pickle: write it as Parquet or CSV"),
    (b"\x80\x03", "a Python pickle: write it as Parquet or CSV"),
    (b"\x80\x04", "a Python pickle: write it as Parquet or CSV"),
    (b"\x80\x05", "a Python pickle: write it as Parquet or CSV"),
    (b"\x93NUMPY", "a NumPy array: write it as Parquet or CSV"),
    (b"RDX2", "an R workspace: write it as Parquet or CSV"),
    (b"RDX3", "an R workspace: write it as Parquet or CSV"),
    (b"%PDF-", "a PDF file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook: save it as CSV"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it (git lfs pull)"),
    (b"\xff\xfe\x00\x00", "text in UTF-32: convert it to UTF-8 (iconv)"),
    (b"\x00\x00\xfe\xff", "text in UTF-32: convert it to UTF-8 (iconv)"),
    (b"<?xml", "an XML file: write it as CSV or JSON lines"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
];

impl Signature {
    /// Recognises content by its first [`HEAD`] bytes, or all of them if it has fewer.
    pub(super) fn detect(head: &[u8]) -> Self {
        if let Some((_, what)) = UNREADABLE.iter().find(|(start, _)| head.starts_with(start)) {
            return Self::Unreadable(what);
        }
        // zstd's frames, and the frames that its readers skip.
        let skippable = matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        if head.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
            Self::Zstd
        } else if matches!(head, [b'B', b'Z', b'h', b'1'..=b'9', ..]) && head.get(4..10).is_some_and(is_bzip2_block) {
            Self::Bzip2
        } else if [b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"].iter().any(|start| head.starts_with(*start)) {
            Self::Zip
        } else if head.starts_with(b"PAR1") {
            Self::Parquet
        } else if head.starts_with(b"\xff\xfe") {
            Self::Utf16Le
        } else if head.starts_with(b"\xfe\xff") {
            Self::Utf16Be
        } else if head.get(257..262) == Some(b"ustar") {
            Self::Unreadable("a tar archive: unpack it (tar -xf)")
        } else if head.contains(&0) {
            without_mark(head)
        } else if is_html(head) {
            Self::Unreadable("a web page (HTML), not data: was the download a login or an error page?")
        } else {
            Self::Text
        }
    }

    /// Returns the name of a compression; `None` for anything else.
    pub(super) fn compression(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Bzip2 => Some("bzip2"),
            Self::Zip => Some("zip"),
            _ => None,
        }
    }
}

/// Returns whether these six bytes begin a block or the end of a bzip2 stream.
fn is_bzip2_block(bytes: &[u8]) -> bool {
    bytes == [0x31, 0x41, 0x59, 0x26, 0x53, 0x59] || bytes == [0x17, 0x72, 0x45, 0x38, 0x50, 0x90]
}

fn is_html(head: &[u8]) -> bool {
    let start: Vec<u8> = head.trim_ascii_start().iter().take(14).map(u8::to_ascii_lowercase).collect();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

/// Detects UTF-16 in content with NUL bytes: every other byte of an ASCII beginning is one.
fn without_mark(head: &[u8]) -> Signature {
    let start = head.get(..head.len().min(64) & !1).unwrap_or_default();
    let zeros = |parity: usize| start.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
    let half = start.len() / 2;
    match (zeros(0), zeros(1)) {
        (0, zeros) if half > 1 && zeros * 2 > half => Signature::Utf16Le,
        (zeros, 0) if half > 1 && zeros * 2 > half => Signature::Utf16Be,
        _ => Signature::Unreadable("binary data: neither text nor a format that is read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_formats() {
        let mut tar = vec![b'a'; 257];
        tar.extend(b"ustar\x0000");
        let utf16: Vec<u8> = "user,item\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf16_be: Vec<u8> = "user,item\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (head, wanted) in [
            (&b"\x1f\x8b\x08"[..], Signature::Gzip),
            (b"\x28\xb5\x2f\xfd", Signature::Zstd),
            (b"\x50\x2a\x4d\x18\x04", Signature::Zstd),
            (b"BZh91AY&SY", Signature::Bzip2),
            (b"BZh9 is a name,item", Signature::Text),
            (b"PK\x03\x04", Signature::Zip),
            (b"PAR1\x00", Signature::Parquet),
            (b"\xff\xfeu\x00", Signature::Utf16Le),
            (&utf16, Signature::Utf16Le),
            (&utf16_be, Signature::Utf16Be),
            (b"user,item\n", Signature::Text),
            (b"caf\xe9,1\n", Signature::Text),
            (b"", Signature::Text),
        ] {
            assert_eq!(Signature::detect(head), wanted, "{head:?}");
        }
        for (head, what) in [
            (&tar[..], "tar"),
            (b"\xfd7zXZ\x00", "xz"),
            (b"ARROW1\x00\x00", "Arrow"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (b"\xff\xfe\x00\x00u\x00\x00\x00", "UTF-32"),
            (b"crc\x00\x00\x00\x02\x00", "binary"),
            (b"\n <!DOCTYPE HTML><html>", "HTML"),
        ] {
            assert!(matches!(Signature::detect(head), Signature::Unreadable(text) if text.contains(what)), "{what}");
        }
    }
}
