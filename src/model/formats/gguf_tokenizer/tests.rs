use super::byte_level::{is_spelling, spelling};
use super::*;

fn byte_level() -> GgufVocabulary {
    let mut tokens: Vec<String> = spelling().into_iter().map(String::from).collect();
    tokens.extend(["<|end|>", "Ġa", "12", "<think>"].map(String::from));
    let mut types = vec![1.0; 256];
    types.extend([3.0, 1.0, 1.0, 4.0]);
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
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

/// Token ids that the publisher's kind of `tokenizer.json` gives
/// (tests/reference/gguf_tokenizer_reference.py).
#[test]
fn equals_the_publishers_tokenizers() {
    #[derive(serde::Deserialize)]
    struct Case {
        model: String,
        pre: Option<String>,
        tokens: Vec<String>,
        types: Vec<f32>,
        #[serde(default)]
        scores: Option<Vec<f32>>,
        #[serde(default)]
        merges: Option<Vec<String>>,
        eos: u32,
        #[serde(default)]
        bos: Option<u32>,
        #[serde(default)]
        unknown: Option<u32>,
        #[serde(default)]
        add_bos: Option<bool>,
        #[serde(default)]
        add_space_prefix: Option<bool>,
        texts: Vec<String>,
        ids: Vec<Vec<u32>>,
        prompt: Vec<u32>,
    }
    let cases: std::collections::BTreeMap<String, Case> =
        serde_json::from_str(include_str!("../../../../tests/fixtures/gguf/publishers.json")).unwrap();
    assert_eq!(cases.len(), 13);
    let mut wrong = Vec::new();
    for (name, case) in cases {
        let Case { model, pre, tokens, types, scores, merges, eos, bos, unknown, add_bos, add_space_prefix, .. } = case;
        let special = [Some(eos), bos, unknown].into_iter().flatten().collect();
        let vocabulary = GgufVocabulary {
            model,
            pre,
            tokens,
            types,
            scores,
            merges,
            eos,
            bos,
            unknown,
            special,
            add_bos,
            add_space_prefix,
            legacy: false,
        };
        let tokenizer = vocabulary.build().unwrap();
        for (text, ids) in case.texts.iter().zip(&case.ids) {
            let found = tokenizer.encode(text).unwrap();
            if found != *ids {
                wrong.push(format!("{name}: {text:?}: {found:?}, not {ids:?}"));
            }
        }
        if tokenizer.encode_prompt(&case.texts[0]).unwrap() != case.prompt {
            wrong.push(format!("{name}: the prompt begins with {:?}", tokenizer.prefix()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs that were trained with itemlm's earlier tokenizer keep it.
#[test]
fn legacy_tokenizers_are_as_they_were() {
    let legacy = |pre: &str| GgufVocabulary { pre: Some(pre.into()), legacy: true, ..byte_level() }.build().unwrap();
    assert_eq!(legacy("smollm").encode("0  12").unwrap(), [48, 32, 32, 258].map(|id: u32| id));
    assert_eq!(
        GgufVocabulary { pre: None, legacy: true, ..byte_level() }.build().unwrap().encode(" a").unwrap(),
        [257]
    );
    assert!(legacy("llama-bpe").prefix().is_empty());
}

#[test]
fn bos_is_first_where_the_file_or_its_publisher_says_so() {
    let prefix = |token: &str, add_bos: Option<bool>| {
        let mut vocabulary = GgufVocabulary { add_bos, bos: Some(256), ..byte_level() };
        vocabulary.tokens[256] = token.into();
        vocabulary.build().unwrap().prefix().len()
    };
    assert_eq!((prefix("<|end|>", Some(true)), prefix("<|end|>", Some(false)), prefix("<|end|>", None)), (1, 0, 0));
    assert_eq!((prefix("<|begin_of_text|>", None), prefix("<|begin_of_text|>", Some(false))), (1, 0));
}

#[test]
fn a_missing_pre_is_told_by_the_vocabulary() {
    let rule_of = |tokens: &[&str]| {
        let mut vocabulary = GgufVocabulary { pre: None, types: Vec::new(), ..byte_level() };
        vocabulary.tokens.extend(tokens.iter().map(|token| (*token).to_owned()));
        vocabulary.tokens.retain(|token| token != "12" || tokens.contains(&"12"));
        vocabulary.merges = Some(Vec::new());
        vocabulary.build().map(|tokenizer| tokenizer.encode("12 1234 \"a").unwrap().len())
    };
    assert!(rule_of(&[]).is_ok());
    assert!(rule_of(&["\"a", "1234"]).unwrap_err().to_string().contains("tokenizer.ggml.pre is missing"));
    assert!(rule_of(&["\"a", "123"]).is_ok() && rule_of(&["\"a"]).is_ok());
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
