//! Tests of both searches against plainer ones, and of filters against scoring every item.

use std::collections::HashMap as Map;

use rand::seq::SliceRandom;

use super::*;
use crate::config::SearchKind;

/// The log-probabilities after every node of a trie, each prefix run whole.
struct Nodes {
    masked: Map<Node, Vec<f64>>,
    full: Map<Node, Vec<f64>>,
}

impl Nodes {
    fn new(llm: &Decoder<Dispatch>, trie: &Trie, prompt: &[u32], device: &DispatchDevice) -> Self {
        let (mut masked, mut full) = (Map::new(), Map::new());
        for node in (0..trie.len() as Node).filter(|&node| !trie.is_leaf(node)) {
            let path: Vec<u32> = trie.path(node).into_iter().map(|n| trie.token(n)).collect();
            let log_probs = next_token(llm, &[prompt, &path].concat(), device);
            let valid: Vec<f64> = trie.valid_tokens(node).iter().map(|&token| log_probs[token as usize]).collect();
            let sum = valid.iter().map(|log_prob| log_prob.exp()).sum::<f64>().ln();
            masked.insert(node, valid.iter().map(|log_prob| log_prob - sum).collect());
            full.insert(node, valid);
        }
        Self { masked, full }
    }

    fn next_log_probs(&self, node: Node, scoring: Scoring) -> &[f64] {
        match scoring {
            Scoring::Masked => &self.masked[&node],
            Scoring::Full => &self.full[&node],
        }
    }
}

/// Scores all allowed items along their whole paths; best first.
fn exhaustive(nodes: &Nodes, trie: &Trie, decode: &DecodeConfig, allowed: impl Fn(Node) -> bool) -> Vec<RankedItem> {
    let mut ranked: Vec<RankedItem> = (0..trie.len() as Node)
        .filter(|&leaf| trie.is_leaf(leaf) && allowed(leaf))
        .map(|leaf| {
            let step = |&child: &Node| {
                let node = trie.parent(child);
                nodes.next_log_probs(node, decode.scoring)[(child - trie.children(node).start) as usize]
            };
            let path = trie.path(leaf);
            let log_prob: f64 = path.iter().map(step).sum();
            RankedItem { leaf, log_prob, score: log_prob / (path.len() as f64).powf(decode.length_penalty) }
        })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranked
}

/// Searches for one user, one beam and one token at a time: itemlm's search must equal it.
fn plain_search(nodes: &Nodes, trie: &Trie, decode: &DecodeConfig, filter: Option<&ItemFilter>) -> Vec<RankedItem> {
    let masked = decode.scoring == Scoring::Masked;
    let allows = |node: Node| filter.is_none_or(|filter| filter.allows_node(node));
    let end = |node: Node| if masked { trie.follow_forced(node) } else { node };
    let (mut beams, mut complete) = (vec![(0.0, end(ROOT))], Vec::new());
    while !beams.is_empty() {
        let mut next = Vec::new();
        for (before, node) in beams {
            for (step, child) in nodes.next_log_probs(node, decode.scoring).iter().zip(trie.children(node)) {
                let log_prob = before + step;
                match trie.is_leaf(end(child)) {
                    _ if !allows(child) => {}
                    true => {
                        let tokens = trie.path(end(child)).len() as f64;
                        let score = log_prob / tokens.powf(decode.length_penalty);
                        complete.push(RankedItem { leaf: end(child), log_prob, score });
                    }
                    false => next.push((log_prob, end(child))),
                }
            }
        }
        complete.sort_by(|a: &RankedItem, b| b.score.total_cmp(&a.score));
        complete.truncate(decode.beams);
        next.sort_by(|a, b| b.0.total_cmp(&a.0));
        next.truncate(decode.beams);
        let least = complete.get(decode.beams - 1).map_or(f64::NEG_INFINITY, |worst| worst.score);
        next.retain(|(log_prob, _)| log_prob / (trie.depth() as f64).powf(decode.length_penalty) > least);
        beams = next;
    }
    complete
}

fn assert_same(found: &[RankedItem], expected: &[RankedItem], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?} instead of {expected:?}");
    for (a, b) in found.iter().zip(expected) {
        assert_eq!(a.leaf, b.leaf, "{what}: {found:?} instead of {expected:?}");
        // Keys and values of a search are computed in another order than those of a whole prefix:
        // f32 noise.
        assert!((a.log_prob - b.log_prob).abs() < 1e-4 && (a.score - b.score).abs() < 1e-4, "{what}");
    }
}

/// Returns titles with branchings, then long runs of forced tokens; some are equal.
fn titles(rng: &mut rand_chacha::ChaCha8Rng, count: usize) -> Vec<Vec<u32>> {
    let title = |_| {
        let mut token = |from, to| rng.random_range(from..to);
        let (branches, forced) = (token(0, 3), token(0, 7));
        let start: Vec<u32> = (0..branches).map(|_| token(3, 6)).collect();
        [start, (0..forced).map(|_| token(6, 96)).collect(), vec![2]].concat()
    };
    (0..count).map(title).collect()
}

/// Few beams drop most prefixes; all users run together, and each alone, whatever their lengths;
/// with and without a filter.
#[test]
fn the_search_equals_the_plain_one_whatever_the_batch() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(12);
    for round in 0..4 {
        let shared: Vec<u32> = (0..3).map(|_| rng.random_range(3..96)).collect();
        let prompts: Vec<Vec<u32>> = prompts(&mut rng).iter().map(|prompt| [&shared[..], prompt].concat()).collect();
        let targets = titles(&mut rng, 40);
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let trie = &catalogue.trie;
        let nodes: Vec<Nodes> = prompts.iter().map(|prompt| Nodes::new(&llm, trie, prompt, &device)).collect();
        let filters: Vec<Option<ItemFilter>> = (0..prompts.len())
            .map(|user| {
                let items: Vec<u32> = (0..12).map(|_| rng.random_range(0..40)).collect();
                [None, Some(ItemFilter::new(trie, None, &items)), Some(ItemFilter::new(trie, Some(&items), &[]))]
                    [(user + round) % 3]
                    .clone()
            })
            .collect();
        let model = match round % 2 {
            0 => ItemLanguageModel::from(llm.clone()),
            _ => ItemLanguageModel::from(llm.clone()).with_prefix_cache(&shared),
        };
        for (scoring, beams, length_penalty) in
            [(Scoring::Full, 2, 0.0), (Scoring::Full, 5, 1.0), (Scoring::Masked, 2, 0.0), (Scoring::Masked, 5, 0.5)]
        {
            let decode = DecodeConfig { beams, scoring, length_penalty, ..DecodeConfig::default() };
            let queries: Vec<Query> = prompts
                .iter()
                .zip(&filters)
                .map(|(prompt, filter)| Query { prompt, prior: None, filter: filter.as_ref() })
                .collect();
            let together = search(&model, &catalogue, &queries, &decode, &device).unwrap();
            for ((query, nodes), found) in queries.iter().zip(&nodes).zip(&together) {
                let expected = plain_search(nodes, trie, &decode, query.filter);
                let alone = search(&model, &catalogue, &[*query], &decode, &device).unwrap().remove(0);
                let what = format!("{scoring:?}, {beams} beams");
                assert_same(found, &expected, &what);
                assert_same(&alone, &expected, &what);
            }
        }
    }
}

/// There are always k items if so many are allowed, with the scores that they have without the
/// filter; with as many beams as allowed items the list is the exhaustive one.
#[test]
fn a_filtered_search_equals_scoring_the_allowed_items() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(13);
    for round in 0..10 {
        let count = rng.random_range(2..30);
        let targets = titles(&mut rng, count);
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let trie = &catalogue.trie;
        let prompt: Vec<u32> = (0..rng.random_range(1..6)).map(|_| rng.random_range(3..96)).collect();
        let nodes = Nodes::new(&llm, trie, &prompt, &device);
        let mut some = |most: usize| -> Vec<u32> {
            let mut items: Vec<u32> = (0..count as u32).collect();
            items.shuffle(&mut rng);
            items.truncate(rng.random_range(0..=most.min(count)));
            items
        };
        let (exclude, only) = (some(count), some(count));
        let history = &exclude[..exclude.len().min(4)];
        let filters = [
            ItemFilter::new(trie, None, &exclude),
            ItemFilter::new(trie, Some(&only), &[]),
            ItemFilter::new(trie, Some(&only), &exclude),
            ItemFilter::without_titles(trie, history),
        ];
        for filter in &filters {
            let allowed = |leaf: Node| trie.items(leaf).any(|item| filter.allows(item));
            for (scoring, length_penalty) in [(Scoring::Masked, 0.0), (Scoring::Full, 0.0), (Scoring::Full, 1.0)] {
                let mut decode = DecodeConfig { scoring, length_penalty, ..DecodeConfig::default() };
                let expected = exhaustive(&nodes, trie, &decode, allowed);
                decode.beams = expected.len().max(1);
                let query = Query { prompt: &prompt, prior: None, filter: Some(filter) };
                let list =
                    |decode: &DecodeConfig| search(&model, &catalogue, &[query], decode, &device).unwrap().remove(0);
                assert_same(&list(&decode), &expected, &format!("round {round}, {scoring:?}"));
                let every = exhaustive(&nodes, trie, &decode, |_| true);
                for beams in 1..=expected.len() {
                    let found = list(&DecodeConfig { beams, ..decode.clone() });
                    assert_eq!(found.len(), beams);
                    for ranked in found {
                        let unfiltered = every.iter().find(|other| other.leaf == ranked.leaf).unwrap();
                        assert!(allowed(ranked.leaf) && (ranked.log_prob - unfiltered.log_prob).abs() < 1e-4);
                    }
                }
            }
        }
    }
}

/// Searches as transformers does, written as plainly as possible: token by token, all candidates
/// sorted.
fn plain_transformers(nodes: &Nodes, trie: &Trie, decode: &DecodeConfig, filter: &ItemFilter) -> Vec<RankedItem> {
    let (mut beams, mut complete): (_, Vec<RankedItem>) = (vec![(0.0, ROOT)], Vec::new());
    for length in 1.. {
        let mut candidates: Vec<(f64, Node)> = Vec::new();
        for &(before, node) in &beams {
            let steps = nodes.next_log_probs(node, decode.scoring).iter().zip(trie.children(node));
            candidates.extend(steps.filter(|(_, c)| filter.allows_node(*c)).map(|(step, c)| (before + step, c)));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(2 * decode.beams);
        let penalty = (length as f64).powf(decode.length_penalty);
        let ended = candidates.iter().take(decode.beams).filter(|(_, node)| trie.is_leaf(*node));
        complete.extend(ended.map(|&(log_prob, leaf)| RankedItem { leaf, log_prob, score: log_prob / penalty }));
        complete.sort_by(|a, b| b.score.total_cmp(&a.score));
        complete.truncate(decode.beams);
        beams = candidates.into_iter().filter(|(_, node)| !trie.is_leaf(*node)).take(decode.beams).collect();
        let worst = complete.get(decode.beams - 1).map_or(f64::NEG_INFINITY, |worst| worst.score);
        if beams.first().is_none_or(|(best, _)| best / penalty <= worst) {
            return complete;
        }
    }
    unreachable!("titles end")
}

#[test]
fn transformers_search_equals_the_plain_one_whatever_the_batch() {
    let device = BackendName::Cpu.device().unwrap();
    let llm = llama(&device);
    let model = ItemLanguageModel::from(llm.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(14);
    for _ in 0..4 {
        let prompts = prompts(&mut rng);
        let targets = titles(&mut rng, 30);
        let catalogue = Catalogue { trie: Trie::build(&targets).unwrap(), targets };
        let trie = &catalogue.trie;
        let nodes: Vec<Nodes> = prompts.iter().map(|prompt| Nodes::new(&llm, trie, prompt, &device)).collect();
        let exclude: Vec<u32> = (0..rng.random_range(0..6)).map(|_| rng.random_range(0..30)).collect();
        let filter = ItemFilter::new(trie, None, &exclude);
        for (scoring, beams, length_penalty) in
            [(Scoring::Full, 2, 0.0), (Scoring::Full, 5, 1.0), (Scoring::Masked, 3, 0.0), (Scoring::Masked, 5, 1.0)]
        {
            let decode = DecodeConfig {
                beams,
                scoring,
                length_penalty,
                search: SearchKind::Transformers,
                ..DecodeConfig::default()
            };
            let query = |prompt| Query { prompt, prior: None, filter: Some(&filter) };
            let queries: Vec<Query> = prompts.iter().map(|prompt| query(prompt.as_slice())).collect();
            let together = search(&model, &catalogue, &queries, &decode, &device).unwrap();
            for ((query, nodes), found) in queries.iter().zip(&nodes).zip(&together) {
                let expected = plain_transformers(nodes, trie, &decode, &filter);
                let alone = search(&model, &catalogue, &[*query], &decode, &device).unwrap().remove(0);
                assert_same(found, &expected, &format!("{scoring:?}, {beams} beams"));
                assert_same(&alone, &expected, "alone");
            }
        }
    }
}
