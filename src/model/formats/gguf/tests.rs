use rand::{Rng, SeedableRng};

use super::*;

const TINY: &[u8] = include_bytes!("../../../../tests/fixtures/gguf/tiny.gguf");

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Returns a file of version 3 with the given metadata entries and tensor entries, then 1 KiB of
/// data.
fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.concat());
    bytes.extend(tensors.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + 1024, 0);
    bytes
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

/// Returns a tensor's entry; `dims` in GGUF's order, the row's length first.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn error(bytes: &[u8]) -> String {
    Header::parse(bytes).expect_err("parsed").to_string()
}

fn tensor_error(tensors: &[Vec<u8>]) -> String {
    error(&file(&[], tensors))
}

#[test]
fn reads_metadata_and_tensors() {
    let words = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("é")].concat();
    let numbers = [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &(-1i32).to_le_bytes(), &7i32.to_le_bytes()].concat();
    let bytes = file(
        &[
            entry("u", 4, &7u32.to_le_bytes()),
            entry("i", 5, &(-7i32).to_le_bytes()),
            entry("f", 6, &0.5f32.to_le_bytes()),
            entry("t", 7, &[1]),
            entry("s", 8, &string("text")),
            entry("words", 9, &words),
            entry("numbers", 9, &numbers),
        ],
        &[tensor("a", &[3, 2], 0, 0), tensor("b", &[32], 8, 32)],
    );
    let header = Header::parse(&bytes).unwrap();
    assert_eq!((header.size("u"), header.number("f")), (Ok(Some(7)), Ok(Some(0.5))));
    assert_eq!((header.text("s"), header.size("none")), (Ok(Some("text")), Ok(None)));
    assert_eq!((header.flag("t"), header.flag("none")), (Ok(Some(true)), Ok(None)));
    assert_eq!((header.unread_key("", &["i", "words"]), header.unread_key("w", &[])), (Some("numbers"), Some("words")));
    assert_eq!(header.strings(&bytes, "words").unwrap().unwrap(), ["a", "é"]);
    assert_eq!(header.numbers(&bytes, "numbers").unwrap().unwrap(), [-1.0, 7.0]);
    for failed in [header.size("i").err(), header.text("u").err(), header.strings(&bytes, "numbers").err()] {
        assert!(failed.unwrap().to_string().starts_with("metadata key "));
    }
    assert_eq!((&header.tensors[0].shape[..], header.tensors[0].range.len()), (&[2, 3][..], 24));
    assert_eq!((header.tensors[1].range.start % 32, header.tensors[1].range.len()), (0, 34));
}

#[test]
fn refuses_lies() {
    assert!(error(b"GGML").contains("not a GGUF"));
    assert!(error(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(error(b"GGUF\0\0\0\x03").contains("big-endian"));
    let mut many = file(&[], &[]);
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error(&many).contains("claims"));

    let huge = entry("key", 8, &u64::MAX.to_le_bytes());
    assert!(error(&file(&[huge], &[])).contains("metadata key key: "));
    for item in [0u32, 6, 8, 12] {
        let array = [&item.to_le_bytes()[..], &(u64::MAX / 4).to_le_bytes()].concat();
        assert!(error(&file(&[entry("key", 9, &array)], &[])).contains("metadata key key: "));
    }
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(10);
    assert!(error(&file(&[entry("key", 9, &nested)], &[])).contains("nest deeper"));
    assert!(error(&file(&[entry("key", 99, &[])], &[])).contains("unknown type 99"));
    let twice = entry("key", 7, &[1]);
    assert!(error(&file(&[twice.clone(), twice], &[])).contains("key key: comes twice"));
    assert!(error(&file(&[entry("general.alignment", 4, &1u32.to_le_bytes())], &[])).contains("general.alignment"));

    let good = tensor("t", &[32, 2], 8, 0);
    assert!(Header::parse(&file(&[], std::slice::from_ref(&good))).is_ok());
    assert!(tensor_error(&[good.clone(), good]).contains("tensor t: comes twice"));
    assert!(tensor_error(&[tensor("t", &[32, 2], 8, 0), tensor("o", &[8], 0, 64)]).contains("overlap"));
    assert!(tensor_error(&[tensor("t", &[31, 2], 8, 0)]).contains("tensor t: shape"));
    assert!(tensor_error(&[tensor("t", &[1 << 40, 1 << 40], 0, 0)]).contains("too large"));
    assert!(tensor_error(&[tensor("t", &[1 << 20], 0, 0)]).contains("beyond the end"));
    assert!(tensor_error(&[tensor("t", &[8], 0, u64::MAX - 31)]).contains("beyond the end"));
    assert!(tensor_error(&[tensor("t", &[8], 0, 8)]).contains("multiple of 32"));
    assert!(tensor_error(&[tensor("t", &[0, 8], 0, 0)]).contains("dimension"));
    assert!(tensor_error(&[tensor("t", &[1; 5], 0, 0)]).contains("5 dimensions"));
    for (kind, name) in [(9, "Q8_1"), (23, "IQ4_XS"), (39, "MXFP4"), (77, "77")] {
        let error = tensor_error(&[tensor("t", &[256], kind, 0)]);
        assert!(error.contains("tensor t: has type") && error.contains(name), "{error}");
    }
    for kind in [10, 11, 12, 13, 14] {
        assert!(Header::parse(&file(&[], &[tensor("t", &[256], kind, 0)])).is_ok(), "{kind}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    assert!(Header::parse(TINY).is_ok());
    let header_end = Header::parse(TINY).unwrap().tensors.iter().map(|t| t.range.start).min().unwrap();
    for end in (0..header_end).chain((header_end..TINY.len()).step_by(997)) {
        assert!(Header::parse(&TINY[..end]).is_err(), "{end}");
    }
}

/// Any byte may be anything: the parser returns, and what it keeps lies inside the file.
#[test]
fn no_bytes_panic() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let header_end = Header::parse(TINY).unwrap().tensors.iter().map(|t| t.range.start).min().unwrap();
    for _ in 0..20_000 {
        let mut bytes = TINY.to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..header_end);
            bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, random.random()].get(random.random_range(0..6)).unwrap();
        }
        if let Ok(header) = Header::parse(&bytes) {
            let _ = header.strings(&bytes, "tokenizer.ggml.tokens");
            let _ = header.numbers(&bytes, "tokenizer.ggml.token_type");
            assert!(header.tensors.iter().all(|t| t.range.start <= t.range.end && t.range.end <= bytes.len()));
        }
    }
}
