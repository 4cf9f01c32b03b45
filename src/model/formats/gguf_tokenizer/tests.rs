use super::byte_level::{is_spelling, spelling};
use super::*;

fn byte_level() -> GgufVocabulary {
    let mut tokens: Vec<String> = spelling().into_iter().map(String::from).collect();
    tokens.extend(["<|end|>", "Ġa", "12", "<think>"].map(String::from));
    let mut types = vec![1.0; 256];
    types.extend([3.0, 1.0, 1.0, 4.0]);
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        types,
        merges: Some(vec!["Ġ a".into(), "1 2".into()]),
        eos: 256,
        special: vec![256],
        ..Default::default()
    }
}

#[test]
fn spelling_is_gpt_2_s() {
    let spelling = spelling();
    assert_eq!((spelling[b' ' as usize], spelling[0xad], spelling[0xff]), ('Ġ', '\u{143}', 'ÿ'));
    let all = ('\0'..='\u{200}').filter(|&c| is_spelling(c));
    assert!(all.eq(std::collections::BTreeSet::from_iter(spelling)));
}

#[test]
fn byte_level_vocabulary() {
    let tokenizer = byte_level().build().unwrap();
    assert_eq!(tokenizer.encode(" a12<|end|><think>").unwrap(), [257, 258, 256, 259]);
    assert_eq!(tokenizer.decode(&[257, 258, 256]).unwrap(), " a12<|end|>");
    for text in ["é\u{0}\n", "x  y"] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
    let llama3 = GgufVocabulary { pre: Some("llama-bpe".into()), ..byte_level() }.build().unwrap();
    assert_eq!(llama3.encode("012").unwrap(), [u32::from(b'0'), 258]);
    assert_eq!(llama3.encode("0012").unwrap().len(), 4, "digits are split by three");
}

/// The ids that transformers gives (tests/reference/gguf_reference.py).
#[test]
fn agrees_with_transformers() {
    #[derive(serde::Deserialize)]
    struct Case {
        model: String,
        pre: Option<String>,
        tokens: Vec<String>,
        types: Vec<f32>,
        scores: Option<Vec<f32>>,
        merges: Option<Vec<String>>,
        eos: u32,
        special: Vec<u32>,
        texts: Vec<String>,
        ids: Vec<Vec<u32>>,
    }
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../../tests/fixtures/gguf/tokenizers.json")).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let Case { model, pre, tokens, types, scores, merges, eos, special, texts, ids } = case;
        let vocabulary =
            GgufVocabulary { model, pre, tokens, types, scores, merges, eos, special, ..Default::default() };
        let (kind, size) = (format!("{} {:?}", vocabulary.model, vocabulary.pre), vocabulary.tokens.len());
        let tokenizer = vocabulary.build().unwrap();
        assert_eq!(tokenizer.vocab_size(), size);
        for (text, ids) in texts.iter().zip(ids) {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{kind}: {text:?}");
        }
    }
}

#[test]
fn refuses_by_name() {
    let message = |vocabulary: GgufVocabulary| vocabulary.build().unwrap_err().to_string();
    assert!(message(GgufVocabulary { pre: Some("bloom".into()), ..byte_level() }).contains("bloom"));
    assert!(message(GgufVocabulary { model: "t5".into(), ..byte_level() }).contains("t5"));
    assert!(message(GgufVocabulary { merges: None, ..byte_level() }).contains("merges"));
    assert!(message(GgufVocabulary { eos: 999, ..byte_level() }).contains("999"));
    for merge in ["12 12", "x", "zz y"] {
        assert!(message(GgufVocabulary { merges: Some(vec![merge.into()]), ..byte_level() }).contains(merge));
    }
    let scoreless = GgufVocabulary { model: "llama".into(), merges: None, ..byte_level() };
    assert!(message(scoreless).contains("scores"));
}

#[test]
fn sentencepiece_vocabulary() {
    let pieces: Vec<(&str, f32, f32)> = vec![
        ("<unk>", 0.0, 2.0),
        ("<s>", 0.0, 3.0),
        ("</s>", 0.0, 3.0),
        ("<0x21>", 0.0, 6.0),
        ("▁a", -1.0, 1.0),
        ("ab", -2.0, 1.0),
        ("▁ab", -3.0, 1.0),
        ("▁", -4.0, 1.0),
        ("a", -5.0, 1.0),
        ("b", -6.0, 1.0),
    ];
    let vocabulary = GgufVocabulary {
        model: "llama".into(),
        tokens: pieces.iter().map(|(piece, ..)| (*piece).to_owned()).collect(),
        scores: Some(pieces.iter().map(|(_, score, _)| *score).collect()),
        types: pieces.iter().map(|(_, _, kind)| *kind).collect(),
        eos: 2,
        special: vec![0, 1, 2],
        ..Default::default()
    };
    let tokenizer = vocabulary.build().unwrap();
    assert_eq!(tokenizer.encode("ab a!</s>").unwrap(), [6, 4, 3, 2]);
    assert_eq!(tokenizer.decode(&[6, 4, 3]).unwrap(), "ab a!");
}
