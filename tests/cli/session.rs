//! Sessions: a run loaded once answers as the command line does, alone and together.

use std::collections::HashSet;

use itemlm::ErrorKind;
use itemlm::config::TooLong;
use itemlm::data::Split;
use itemlm::device::BackendName;
use itemlm::run::{ItemRef, PROMPT_BLOCK, RankRequest, RecommendRequest, Recommendation, Session};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::lab::{ITEMS, Lab, document, succeeded, write_llm_as};

/// Log-probabilities of sums in another order: prompts of other lengths run in products of other
/// shapes.
const TOLERANCE: f64 = 1e-4;

pub fn session(lab: &Lab) -> Session {
    // This process is elsewhere.
    let [corpus, llm] = ["corpus", "llm"].map(|name| lab.path(name).display().to_string());
    lab.ok(&format!(
        "train run.toml --out run --ui none --max-steps 5 --set data.corpus={corpus} --set llm.path={llm}"
    ));
    Session::open(&lab.path("run"), &BackendName::Cpu.device().unwrap()).unwrap()
}

fn request(history: &[&str], k: usize) -> RecommendRequest {
    let history = history.iter().map(|title| ItemRef::Title(title.to_string())).collect();
    RecommendRequest { history, k, ..RecommendRequest::default() }
}

fn assert_same(found: &[Recommendation], expected: &[Recommendation]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.rank, &found.item, &found.title), (expected.rank, &expected.item, &expected.title));
        assert!((found.log_prob - expected.log_prob).abs() < TOLERANCE, "{found:?} {expected:?}");
    }
}

/// Returns those of `all` with `ids`, ranked again.
fn recommended_items(all: &[Recommendation], keep: impl Fn(&Recommendation) -> bool) -> Vec<Recommendation> {
    let kept = all.iter().filter(|item| keep(item)).cloned();
    kept.zip(1..).map(|(item, rank)| Recommendation { rank, ..item }).collect()
}

#[test]
fn answers_alone_together_and_of_the_command_line() {
    let lab = Lab::new();
    let session = session(&lab);
    let requests = [request(&["Red Pen 0"], 4), request(&["Red Pen 0", "never seen"], 12), request(&["x y z"], 5)];
    let alone: Vec<_> = requests.iter().map(|request| session.recommend(request).unwrap()).collect();
    for (together, alone) in session.recommend_all(&requests).into_iter().zip(&alone) {
        assert_same(&together.unwrap().items, &alone.items);
    }
    let line = "recommend run --json -k 4";
    let mut command = lab.command(line);
    let printed = document(&succeeded(line, command.args(["--history", "Red Pen 0"]).output().unwrap()));
    let printed = printed["items"].as_array().unwrap().iter().map(|item| Recommendation {
        rank: item["rank"].as_u64().unwrap() as usize,
        item: item["item"].as_str().unwrap().into(),
        title: item["title"].as_str().unwrap().into(),
        log_prob: item["log_prob"].as_f64().unwrap(),
        score: item["score"].as_f64().unwrap(),
    });
    assert_same(&printed.collect::<Vec<_>>(), &alone[0].items);
    // One that cannot be answered leaves the others as they are.
    let mut mixed = session.recommend_all(&[request(&["Red Pen 0"], 0), requests[0].clone()]);
    assert_same(&mixed.pop().unwrap().unwrap().items, &alone[0].items);
    assert_eq!(mixed.pop().unwrap().unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn filters_and_given_items_keep_their_scores() {
    let lab = Lab::new();
    let session = session(&lab);
    let all = session.recommend(&request(&["Red Pen 0"], ITEMS)).unwrap().items;
    assert_eq!(all.len(), ITEMS - 1, "equal titles are one item");
    let chosen: Vec<String> = [2, 11, 17].iter().map(|&n: &usize| all[n].item.clone()).collect();

    let plain = request(&["Red Pen 0"], 5);
    let only = RecommendRequest { only: Some(chosen.clone()), ..plain.clone() };
    assert_same(&session.recommend(&only).unwrap().items, &recommended_items(&all, |item| chosen.contains(&item.item)));
    let exclude = RecommendRequest { exclude: chosen.clone(), k: ITEMS, ..plain.clone() };
    assert_same(
        &session.recommend(&exclude).unwrap().items,
        &recommended_items(&all, |item| !chosen.contains(&item.item)),
    );
    let unseen = RecommendRequest { exclude_history: Some(true), k: ITEMS, ..plain.clone() };
    assert_same(&session.recommend(&unseen).unwrap().items, &recommended_items(&all, |item| item.title != "Red Pen 0"));

    let rank = RankRequest { history: plain.history.clone(), items: chosen.clone(), ..RankRequest::default() };
    assert_same(&session.rank(&rank).unwrap().items, &recommended_items(&all, |item| chosen.contains(&item.item)));

    let unknown = [
        RecommendRequest { exclude: vec!["nothing".into()], ..plain.clone() },
        RecommendRequest { only: Some(vec!["nothing".into()]), ..plain.clone() },
        RecommendRequest { history: vec![ItemRef::Id("nothing".into())], ..plain.clone() },
    ];
    for request in unknown {
        let error = session.recommend(&request).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("nothing"), "{error}");
    }
    for request in [request(&[], 5), RecommendRequest { user: Some("u1".into()), ..plain }] {
        let error = session.recommend(&request).unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && !error.to_string().contains("--"), "{error}");
    }
    assert!(session.check().is_ok());
}

/// Answers do not depend, to the bit, on the prompts that were answered before: histories that
/// grow, shrink and come again, among those of others, with lists of several lengths and given
/// items.
#[test]
fn a_cached_prompt_changes_no_bit() {
    let lab = Lab::new();
    let session = session(&lab);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let title = |n: usize| format!("item {n} of a title that is long enough for blocks of tokens {}", n * n);
    let mut users: Vec<Vec<usize>> = (0..4).map(|user| vec![user; 2]).collect();
    let mut cached = 0;
    for round in 0..60 {
        let user = &mut users[rng.random_range(0..4)];
        match rng.random_range(0..5) {
            0 if user.len() > 1 => user.truncate(user.len() - 1),
            1 => {}
            _ => user.push(rng.random_range(0..9)),
        }
        user.truncate(8);
        let titles: Vec<String> = user.iter().map(|&n| title(n)).collect();
        let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
        let asked = request(&titles, [3, 5, 9][round % 3]);
        // A copy has answered nothing yet.
        let fresh = session.clone_to_device(&session.device).unwrap();
        assert_eq!(session.recommend(&asked).unwrap(), fresh.recommend(&asked).unwrap(), "round {round}");
        assert_eq!(fresh.take_prompt_tokens().cached, 0);
        let items = fresh.recommend(&asked).unwrap().items.into_iter().map(|item| item.item).collect();
        let given = RankRequest { history: asked.history, user: None, prompt: asked.prompt, items };
        assert_eq!(session.rank(&given).unwrap(), fresh.rank(&given).unwrap(), "round {round}");
        let tokens = session.take_prompt_tokens();
        assert!(tokens.cached < tokens.all, "the last token runs");
        cached += tokens.cached / PROMPT_BLOCK as u64;
    }
    assert!(cached > 60, "only {cached} blocks were cached");
}

/// Two items of the lab have one title.
#[test]
fn a_title_of_several_items_says_which_it_takes() {
    let lab = Lab::new();
    let session = session(&lab);
    let corpus = &session.context.corpus;
    let mut seen = HashSet::new();
    let twice = corpus.items.iter().find(|item| !seen.insert(item.title.as_str())).unwrap().title.clone();
    let cold = corpus.cold_items(Split::Test);
    let answer = session.recommend(&request(&[&twice, &twice], 3)).unwrap();
    let [note] = answer.notes.as_slice() else { panic!("{:?}", answer.notes) };
    let named = corpus.items.iter().position(|item| note.contains(&format!("item {} is taken", item.id))).unwrap();
    assert!(corpus.items[named].title == twice && note.contains("2 items"), "{note}");
    let warm = corpus.items.iter().zip(&cold).any(|(item, cold)| item.title == twice && !cold);
    assert!(!warm || !cold[named]);
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_or_shortened() {
    let lab = Lab::new();
    let mut session = session(&lab);
    let context = &mut session.context;
    let window = context.corpus.windows(Split::Test)[0];
    let prompt = context.prompt.clone();
    let (whole, dropped) = context.window_tokens(&prompt, &window).unwrap();
    assert_eq!(dropped, 0);
    // EOS is predicted and never run.
    let fits = whole.len() + context.catalogue.trie.depth() - 1;
    context.context = fits;
    assert_eq!(context.window_tokens(&prompt, &window).unwrap(), (whole.clone(), 0));
    context.context = fits - 1;
    let error = context.window_tokens(&prompt, &window).unwrap_err().to_string();
    assert!(error.contains("data.too_long") && error.contains(&format!("need {fits}")), "{error}");
    context.too_long = TooLong::Shorten;
    let (shortened, dropped) = context.window_tokens(&prompt, &window).unwrap();
    assert!(dropped == 1 && shortened.len() < whole.len());
    // As if the window had begun one item later.
    context.too_long = TooLong::Error;
    context.history = Some(context.corpus.history(&window).len() - 1);
    assert_eq!(context.window_tokens(&prompt, &window).unwrap(), (shortened, 0));
    context.context = 1;
    context.too_long = TooLong::Shorten;
    assert!(context.window_tokens(&prompt, &window).is_err());
}

#[test]
fn one_window_too_long_is_named_before_training() {
    let lab = Lab::new();
    write_llm_as(&lab.path("llm"), 1, |config| config.max_position_embeddings = 2);
    lab.assert_refused("train run.toml --out run", 1, &[" window ", "of user", "data.history", "data.too_long"]);
}
