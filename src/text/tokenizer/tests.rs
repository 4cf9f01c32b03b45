use std::fs;

use serde_json::{Value, json};

use super::*;

const TITLES: [&str; 4] = ["Red Pen, 12 pack", "Blue Pen", "Café \"Noir\" 🖊", "red pen 12\u{0}\n  x"];

fn train_tokenizer() -> Tokenizer {
    let texts = TITLES.iter().cycle().take(200).map(|title| (*title).to_owned());
    Tokenizer::train_bpe(texts, 280).unwrap()
}

#[test]
fn trains_the_same_each_time_and_loses_nothing() {
    let tokenizer = train_tokenizer();
    assert_eq!(tokenizer.to_json(), train_tokenizer().to_json());
    assert_eq!((tokenizer.vocab_size(), tokenizer.largest_id(), tokenizer.eos()), (280, 279, 0));
    assert_eq!(tokenizer.token(0).as_deref(), Some("<|endoftext|>"));
    for title in TITLES.into_iter().chain(["", "\u{feff}\u{10ffff}", "unseen text", " "]) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(title).unwrap()).unwrap(), title);
    }
    assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [0]);
    let again = Tokenizer::from_json(&tokenizer.to_json(), 0).unwrap();
    assert_eq!(again.to_json(), tokenizer.to_json());
    assert!(Tokenizer::from_json(&tokenizer.to_json(), 280).is_err());
    assert!(Tokenizer::train_bpe(std::iter::empty(), 256).is_err());
}

#[test]
fn any_text_is_encoded() {
    use rand::{Rng, SeedableRng};
    let tokenizer = train_tokenizer();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let length = random.random_range(0..40);
        let text: String = (0..length).map(|_| random.random::<char>()).collect();
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
    }
    assert!(tokenizer.encode(&" ".repeat(200_000)).is_ok());
    assert!(tokenizer.decode(&[7, u32::MAX]).is_ok());
}

#[test]
fn end_of_sequence_is_where_transformers_looks() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, value: Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
    let eos = || Tokenizer::from_dir(dir.path()).map(|t| t.eos()).map_err(|e| e.to_string());
    assert!(eos().unwrap_err().contains("tokenizer.json"));
    fs::write(dir.path().join("tokenizer.json"), train_tokenizer().to_json()).unwrap();
    put("config.json", json!({}));
    assert!(eos().unwrap_err().contains("eos_token_id"));
    put("config.json", json!({"eos_token_id": [5, 6]}));
    assert_eq!(eos(), Ok(5));
    put("config.json", json!({"eos_token_id": 900}));
    assert!(eos().unwrap_err().contains("900"));
    put("special_tokens_map.json", json!({"eos_token": {"content": "a", "lstrip": false}}));
    assert_eq!(eos().unwrap(), train_tokenizer().encode("a").unwrap()[0]);
    put("tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}));
    assert_eq!(
        eos().unwrap(),
        train_tokenizer().encode("a").unwrap()[0],
        "a repository from before added_tokens_decoder"
    );
    put("tokenizer_config.json", json!({"eos_token": "<|endoftext|>", "added_tokens_decoder": {}}));
    assert_eq!(eos(), Ok(0));
    fs::remove_file(dir.path().join("special_tokens_map.json")).unwrap();
    put("tokenizer_config.json", json!({"eos_token": "<|endoftext|>"}));
    assert_eq!(eos(), Ok(0));
    put("tokenizer_config.json", json!({"eos_token": "</s>"}));
    assert!(eos().unwrap_err().contains("</s>"));
}

#[test]
fn damaged_json_is_an_error() {
    let json = train_tokenizer().to_json();
    for end in (0..json.len()).step_by(37) {
        assert!(json.get(..end).is_none_or(|part| Tokenizer::from_json(part, 0).is_err()));
    }
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    for _ in 0..3000 {
        let mut bytes = json.clone().into_bytes();
        bytes[random.random_range(0..json.len())] = random.random_range(0x20..0x7f);
        if let Ok(tokenizer) = Tokenizer::from_json(&String::from_utf8_lossy(&bytes), 0) {
            let _ = tokenizer.encode("Red Pen 12").and_then(|ids| tokenizer.decode(&ids));
        }
    }
    let mut document: Value = serde_json::from_str(&json).unwrap();
    let longest = document["model"]["vocab"].as_object().unwrap().keys().max_by_key(|k| k.len()).unwrap().clone();
    document["model"]["merges"][0] = json!([longest, longest]);
    assert!(Tokenizer::from_json(&document.to_string(), 0).unwrap_err().to_string().contains("merge"));
    document["model"]["merges"] = json!([]);
    document["model"]["dropout"] = json!(0.5);
    assert!(Tokenizer::from_json(&document.to_string(), 0).unwrap_err().to_string().contains("dropout"));
}
