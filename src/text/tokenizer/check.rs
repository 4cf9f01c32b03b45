//! Checks of `tokenizer.json` before the `tokenizers` crate reads it: that crate panics on some of
//! what they refuse.

use std::collections::HashSet;

use serde_json::Value;
use tokenizers::Tokenizer as Backend;

use crate::core::panic::catch;
use crate::{Context, Error, Result};

/// Longest rules of a `Precompiled` normalizer, bytes; those of XLM-RoBERTa have 240 KB.
const LONGEST_CHARSMAP: usize = 64 << 20;

/// Parses a `tokenizer.json`.
///
/// # Errors
/// A text that is no tokenizer, or that would encode differently each time.
pub(crate) fn parse(json: &str) -> Result<Backend> {
    let document: Value = serde_json::from_str(json).context("not a tokenizer")?;
    check_bpe(document.get("model").unwrap_or(&Value::Null))?;
    check_normalizer(document.get("normalizer").unwrap_or(&Value::Null), "normalizer")?;
    drop(document);
    match catch(|| json.parse::<Backend>()) {
        Ok(parsed) => parsed.context("not a tokenizer"),
        Err(panic) => Err(Error::failed(format!("not a tokenizer: {}", panic.message))),
    }
}

/// Refuses merges whose result is no token and is longer than all tokens, on which `tokenizers`
/// panics, and dropout, with which every encoding would be different.
fn check_bpe(model: &Value) -> Result<()> {
    if model.get("dropout").and_then(Value::as_f64).is_some_and(|dropout| dropout > 0.0) {
        return Err(Error::failed("BPE dropout is set; remove it"));
    }
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let (Some(vocab), Some(merges)) =
        (model.get("vocab").and_then(Value::as_object), model.get("merges").and_then(Value::as_array))
    else {
        return Ok(());
    };
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            other => other.get(0).and_then(Value::as_str).zip(other.get(1).and_then(Value::as_str)),
        };
        let merged = pair.and_then(|(left, right)| Some(format!("{left}{}", right.strip_prefix(prefix)?)));
        if merged.is_none_or(|token| !vocab.contains_key(&token)) {
            return Err(Error::failed(format!("the merge {merge} does not make a token")));
        }
    }
    Ok(())
}

/// Checks the rules of every `Precompiled` normalizer: `tokenizers` itself checks none.
fn check_normalizer(normalizer: &Value, place: &str) -> Result<()> {
    if let Some(parts) = normalizer.get("normalizers").and_then(Value::as_array) {
        let mut parts = parts.iter().enumerate();
        return parts.try_for_each(|(n, part)| check_normalizer(part, &format!("{place}.normalizers[{n}]")));
    }
    if normalizer.get("type").and_then(Value::as_str) != Some("Precompiled") {
        return Ok(());
    }
    let bad = |what: &str| Err(Error::failed(format!("{place}.precompiled_charsmap: {what}")));
    match normalizer.get("precompiled_charsmap") {
        None | Some(Value::Null) => bad("is null; where the model normalises nothing, set the normalizer to null"),
        Some(Value::String(text)) => match base64(text).filter(|bytes| bytes.len() <= LONGEST_CHARSMAP) {
            None => bad("is not base64"),
            Some(bytes) if is_charsmap(&bytes) => Ok(()),
            Some(_) => bad("is damaged; download the file again"),
        },
        Some(_) => bad("is not a string"),
    }
}

/// Decodes base64 of the standard alphabet, padded.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    for (n, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|&&byte| byte == b'=').count();
        if padding > 2 || (padding > 0 && n + 1 < groups.len()) {
            return None;
        }
        let digits = group[..4 - padding].iter().map(|&byte| digit(byte).map(u32::from));
        let bits = digits.chain(std::iter::repeat_n(Some(0), padding)).try_fold(0, |bits, d| Some(bits << 6 | d?))?;
        bytes.extend(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

/// Returns whether every search in SentencePiece's rules stays inside them: the trie's length in
/// bytes, its units (Darts' double array) and the replacements, each closed by a zero byte.
///
/// Reference: the crate spm_precompiled, `DoubleArray::common_prefix_search` and
/// `Precompiled::transform`.
fn is_charsmap(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let count = u32::from_le_bytes(*length) as usize / 4;
    let Some((trie, texts)) = rest.split_at_checked(count * 4) else { return false };
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let (Ok(texts), Some(root)) = (std::str::from_utf8(texts), units.first()) else { return false };
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let (mut open, mut seen) = (vec![offset(*root)], HashSet::new());
    while let Some(node) = open.pop() {
        if !seen.insert(node) {
            continue;
        }
        for label in 1..=usize::from(u8::MAX) {
            let at = node ^ label;
            let Some(&unit) = units.get(at) else { return false };
            if unit & ((1 << 31) | 0xff) != label {
                continue;
            }
            let child = at ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = units.get(child).map(|value| value & ((1 << 31) - 1));
                if value.is_none_or(|value| value > texts.len() || !texts.is_char_boundary(value)) {
                    return false;
                }
            }
            open.push(child);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use base64_of::encode;
    use serde_json::json;

    use super::*;

    mod base64_of {
        /// Encodes bytes as base64, padded.
        pub(super) fn encode(bytes: &[u8]) -> String {
            const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let group = |part: &[u8]| {
                let mut three = [0; 3];
                three[..part.len()].copy_from_slice(part);
                let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
                (0..4)
                    .map(
                        move |n| {
                            if n > part.len() { '=' } else { DIGITS[(bits >> (18 - 6 * n) & 63) as usize] as char }
                        },
                    )
                    .collect::<String>()
            };
            bytes.chunks(3).map(group).collect()
        }
    }

    /// Rules that replace "A" by "b": a root, the unit of "A" and its value.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        // The root's children lie at 256 ^ label.
        units[0] = 256 << 10;
        let at = 256 ^ usize::from(b'A');
        // A leaf whose value lies at `at ^ offset`.
        let offset = at ^ 256;
        units[at] = (offset as u32) << 10 | 1 << 8 | u32::from(b'A');
        units[256] = 1 << 31;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(trie.len() as u32).to_le_bytes()[..], &trie, b"b\0"].concat()
    }

    fn tokenizer(charsmap: &Value) -> Result<Backend> {
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": charsmap});
        let normalizer = json!({"type": "Sequence", "normalizers": [precompiled]});
        let model = json!({"type": "WordLevel", "vocab": {"[UNK]": 0, "b": 1, "A": 2}, "unk_token": "[UNK]"});
        parse(&json!({"version": "1.0", "normalizer": normalizer, "model": model}).to_string())
    }

    #[test]
    fn base64_both_ways() {
        for text in ["", "a", "ab", "abc", "abcd"] {
            assert_eq!(base64(&encode(text.as_bytes())).unwrap(), text.as_bytes());
        }
        for bad in ["a", "====", "ab=c", "a=bc", "ab==abcd", "ab c"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn damaged_rules_of_a_normalizer_are_named() {
        let whole = tokenizer(&json!(encode(&charsmap()))).unwrap();
        assert_eq!(whole.encode_fast("A", false).unwrap().get_ids(), [1]);
        for bad in [json!(null), json!(""), json!(encode(&[0; 4])), json!(7), json!("!!!!")] {
            let error = tokenizer(&bad).unwrap_err().to_string();
            assert!(error.starts_with("normalizer.normalizers[0].precompiled_charsmap: "), "{bad}: {error}");
        }
        use rand::{Rng, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let texts: Vec<String> = (0..50).map(|_| (0..30).map(|_| random.random::<char>()).collect()).collect();
        let mut accepted = 0;
        for round in 0..400 {
            let mut bytes = charsmap();
            let bytes = if round % 2 == 0 {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
                bytes
            } else {
                (0..random.random_range(0..200)).map(|_| random.random()).collect()
            };
            if let Ok(tokenizer) = tokenizer(&json!(encode(&bytes))) {
                accepted += 1;
                texts
                    .iter()
                    .chain([&"AbA".to_string()])
                    .for_each(|text| drop(tokenizer.encode_fast(text.as_str(), false)));
            }
        }
        assert!(accepted > 10, "{accepted}");
    }
}
