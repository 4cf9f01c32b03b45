use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::data::{Item, Provenance, UserLog};

fn corpus(titles: &[&str], users: &[(&str, &[u32])], train: Vec<Window>, test: Vec<Window>) -> Corpus {
    let items = titles.iter().enumerate().map(|(i, t)| Item { id: format!("i{i}"), title: (*t).into() }).collect();
    let log =
        |(id, items): &(&str, &[u32])| UserLog { id: (*id).into(), events: items.iter().map(|&i| (i, None)).collect() };
    Corpus::new("made up", items, users.iter().map(log).collect(), train, Some(vec![]), test).unwrap()
}

fn inspect_quietly(corpus: &Corpus, options: &InspectOptions) -> Result<Inspection> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("corpus");
    let steps =
        vec![Step { name: "k-core".into(), before: 9, after: 5, users: None, items: None, what: "5-core".into() }];
    corpus.save(&dir, &Provenance { source: "by hand".into(), inputs: vec![], steps }).unwrap();
    inspect(&dir, options)
}

fn plain(examples: usize) -> InspectOptions {
    InspectOptions { llm: None, prompt: None, examples }
}

fn window(user: u32, start: u32, len: u32) -> Window {
    Window { user, start, len }
}

fn bins(bins: &[Bin]) -> Vec<(usize, usize, usize)> {
    bins.iter().map(|b| (b.from, b.to, b.count)).collect()
}

/// Returns a corpus of three users. Items: 0 five times, 1 twice, 2 and 3 once, 4 never. Users: 6,
/// 2 and 1 interactions.
fn three_users() -> Corpus {
    let users: [(&str, &[u32]); 3] = [("a", &[0, 0, 1, 0, 2, 0]), ("b", &[1, 3]), ("c", &[0])];
    let test = vec![window(0, 3, 3), window(1, 6, 2)];
    corpus(&["Pen", "Ink", "Pen", " ", "Café"], &users, vec![window(0, 0, 4)], test)
}

#[test]
fn counts_by_hand() {
    let found = inspect_quietly(&three_users(), &plain(1)).unwrap();
    assert_eq!((found.users, found.items, found.interactions), (3, 5, 9));
    assert_eq!(found.density, Some(0.6));
    assert_eq!((found.name.as_str(), found.source.as_str(), found.steps.len()), ("made up", "by hand", 1));
    assert_eq!((found.windows.train, found.windows.valid, found.windows.test), (1, 0, 2));
    // Training saw items 0 and 1 and user a: of the targets 0 and 3 the second is cold, user b is
    // new.
    assert_eq!((found.unseen.cold_test_targets, found.unseen.cold_test_share), (1, Some(0.5)));
    assert_eq!((found.unseen.test_users, found.unseen.new_test_users, found.unseen.new_test_share), (2, 1, Some(0.5)));
    let characters = Some(Spread { min: 3, median: 3.0, mean: 3.25, max: 4 });
    assert_eq!(found.titles, Titles { characters, distinct: 3, duplicates: 2, missing: 1 });

    let lengths = &found.sequence_lengths;
    assert_eq!(lengths.spread, Some(Spread { min: 1, median: 2.0, mean: 3.0, max: 6 }));
    assert_eq!(bins(&lengths.histogram), [(1, 1, 1), (2, 2, 1), (3, 3, 0), (4, 4, 0), (5, 5, 0), (6, 6, 1)]);
    assert_eq!(bins(&found.popularity.histogram), [(0, 0, 1), (1, 1, 2), (2, 2, 1), (3, 3, 0), (4, 5, 1)]);
    assert_eq!(found.popularity.spread, Some(Spread { min: 0, median: 1.0, mean: 1.8, max: 5 }));
    // Of 5 items 1 % and 10 % are one, 50 % are three: 5, and 5 + 2 + 1 of 9.
    let top: Vec<_> = found.popularity.top.iter().map(|t| (t.percent, t.items, t.share)).collect();
    assert_eq!(top, [(1, 1, Some(5.0 / 9.0)), (10, 1, Some(5.0 / 9.0)), (50, 3, Some(8.0 / 9.0))]);

    let [example] = &found.examples[..] else { panic!("one example") };
    assert_eq!((example.window, example.user.as_str(), example.target.as_str()), (0, "a", "Pen"));
    assert_eq!(example.history, ["Pen", "Pen"]);
    assert_eq!(found.prompt, "items");
    assert_eq!(example.prompt, Prompt::open("items").unwrap().render_titles(["Pen", "Pen"].into_iter()));
    assert_eq!((example.label.as_str(), &example.tokens), ("\"Pen\"", &None));
}

#[test]
fn lengths_have_equal_bins_and_an_open_end() {
    assert!(linear_bins(&[]).is_empty());
    assert_eq!(bins(&linear_bins(&[7])), [(7, 7, 1)]);
    // 99 of 100 values are 5..=46: 42 values in bins of 3; the last bin extends to the outlier.
    let mut values: Vec<usize> = (0..99).map(|n| 5 + n % 42).collect();
    values.push(1000);
    let found = linear_bins(&values);
    assert_eq!(found.len(), 14);
    assert_eq!(bins(&found[..2]), [(5, 7, 9), (8, 10, 9)]);
    // 44, 45 and 46 occur twice each; the outlier is the seventh.
    assert_eq!(bins(&found[13..]), [(44, 1000, 7)]);
    assert_eq!(found.iter().map(|b| b.count).sum::<usize>(), 100);
    assert_eq!(linear_bins(&(1..=20).collect::<Vec<_>>()).len(), LENGTH_BINS);
    assert_eq!(linear_bins(&(1..=21).collect::<Vec<_>>()).len(), 11);
}

#[test]
fn popularity_has_two_bins_an_octave() {
    assert!(octave_bins(&[]).is_empty());
    assert_eq!(bins(&octave_bins(&[0, 0])), [(0, 0, 2)]);
    assert_eq!(
        bins(&octave_bins(&[5, 6, 8, 11, 12, 16, 23, 24, 47])),
        [(4, 5, 1), (6, 7, 1), (8, 11, 2), (12, 15, 1), (16, 23, 2), (24, 31, 1), (32, 47, 1)]
    );
    assert_eq!(bins(&octave_bins(&[0, 3])), [(0, 0, 1), (3, 3, 1)]);
    let wide = octave_bins(&[1, 1_000_000]);
    assert!(wide.len() < 45 && wide.windows(2).all(|pair| pair[0].to + 1 == pair[1].from));
}

#[test]
fn odd_corpora() {
    // One user and one item, without a title; nothing to test.
    let one = inspect_quietly(&corpus(&[""], &[("u", &[0, 0])], vec![], vec![]), &plain(3)).unwrap();
    assert_eq!((one.density, one.unseen.cold_test_share, one.unseen.new_test_share), (Some(2.0), None, None));
    assert_eq!(one.titles, Titles { characters: None, distinct: 0, duplicates: 0, missing: 1 });
    assert_eq!((bins(&one.popularity.histogram), one.examples.len()), (vec![(2, 2, 1)], 0));
    // Nobody.
    let none = inspect_quietly(&corpus(&["T"], &[], vec![], vec![]), &plain(2)).unwrap();
    assert_eq!((none.density, none.sequence_lengths.spread), (None, None));
    assert!(none.sequence_lengths.histogram.is_empty());
    assert!(none.popularity.top.iter().all(|top| top.items == 1 && top.share.is_none()));
    // More examples than windows; none.
    assert_eq!(inspect_quietly(&three_users(), &plain(usize::MAX)).unwrap().examples.len(), 2);
    assert!(inspect_quietly(&three_users(), &plain(0)).unwrap().examples.is_empty());
}

#[test]
fn prompts_and_models_that_are_not_there() {
    let options = InspectOptions { prompt: Some("nowhere".into()), ..plain(1) };
    assert_eq!(inspect_quietly(&three_users(), &options).unwrap_err().exit_code(), 2);
    let options = InspectOptions { llm: Some("nowhere".into()), ..plain(1) };
    assert!(inspect_quietly(&three_users(), &options).unwrap_err().to_string().contains("nowhere"));
}

/// The tokens are laid out once more by hand, from the tokenizer alone.
#[test]
fn tokens_carry_labels_children_and_loss() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/tiny.gguf");
    let folder = tempfile::tempdir().unwrap();
    let prompt = folder.path().join("prompt.txt");
    fs::write(&prompt, "{history}:").unwrap();
    let options = InspectOptions { llm: Some(tiny.clone()), prompt: Some(prompt.display().to_string()), examples: 2 };
    let found = inspect_quietly(&three_users(), &options).unwrap();
    let tokenizer = open_llm(&tiny).unwrap().tokenizer;
    for (example, (prompt, label)) in
        found.examples.iter().zip([("\"Pen\", \"Pen\":", "\"Pen\""), ("\"Ink\":", "\" \"")])
    {
        let tokens = example.tokens.as_ref().unwrap();
        let (masked, labels): (Vec<_>, Vec<_>) = tokens.iter().partition(|token| token.label == MASKED);
        let ids = |tokens: &[&LabelledToken]| tokens.iter().map(|t| t.id).collect::<Vec<u32>>();
        assert_eq!(ids(&masked), tokenizer.encode(prompt).unwrap());
        let mut target = tokenizer.encode(label).unwrap();
        target.push(tokenizer.eos());
        assert_eq!(ids(&labels), target);
        assert!(masked.iter().all(|token| token.children.is_none() && !token.loss));
        assert!(labels.iter().all(|token| token.label == i64::from(token.id)));
        assert!(labels.iter().all(|token| token.loss == (token.children.unwrap() > 1)));
        assert!(labels.iter().any(|token| token.loss), "titles differ somewhere");
        assert_eq!(labels.last().map(|token| token.children), Some(Some(1)), "only the end follows a closing quote");
    }
}

#[test]
fn json_keys() {
    let value = serde_json::to_value(inspect_quietly(&three_users(), &plain(1)).unwrap()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(
        keys(&value),
        "cold_test_share cold_test_targets density examples interactions items name new_test_share new_test_users \
         popularity \
         prompt sequence_lengths software source steps test_users titles users validation windows"
    );
    assert_eq!(value["windows"], json!({"train": 1, "valid": 0, "test": 2}));
    assert_eq!(value["sequence_lengths"]["histogram"][0], json!({"from": 1, "to": 1, "count": 1}));
    assert_eq!(keys(&value["popularity"]), "histogram spread top");
    assert_eq!(keys(&value["titles"]), "characters distinct duplicates missing");
    assert_eq!(keys(&value["examples"][0]), "history label prompt target user window");
}
