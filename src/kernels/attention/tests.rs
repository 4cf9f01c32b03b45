use burn::tensor::TensorData;

use super::*;
use crate::device::{Concrete, Training};
use crate::kernels::testing::{assert_same, numbers};

/// Numbers of heads and key/value heads, and the heads' width.
const SHAPE: [usize; 3] = [6, 2, 8];

fn inputs(batch: usize, seq: usize, keys: usize) -> [TensorData; 3] {
    let [heads, kv_heads, dim] = SHAPE;
    let kv = |seed| numbers([batch, kv_heads, keys, dim], seed, 1.0);
    [numbers([batch, heads, seq, dim], 1, 3.0), kv(2), kv(3)]
}

fn shared_inputs(past: usize) -> [TensorData; 2] {
    [4, 5].map(|seed| numbers([1, SHAPE[1], past, SHAPE[2]], seed, 1.0))
}

fn cache(own: &[&Tensor<Training, 4>], shared: Option<[&Tensor<Training, 4>; 2]>) -> LayerCache<Training> {
    let own = own.chunks(2).map(|block| (block[0].clone(), block[1].clone())).collect();
    LayerCache { shared: shared.map(|[k, v]| (k.clone(), v.clone())), own }
}

/// Checks attention without shared keys, and with some; own keys in one block, and in two.
fn check(batch: usize, queries: usize, keys: usize, visible: &AttentionMask) {
    for scaling in [ScoreScaling::for_head_dim(SHAPE[2]), ScoreScaling { query_scalar: 5.0, soft_cap: Some(1.5) }] {
        check_scaled(batch, queries, keys, visible, scaling);
    }
}

fn check_scaled(batch: usize, queries: usize, keys: usize, visible: &AttentionMask, scaling: ScoreScaling) {
    let mask = Mask::Visible(visible.clone());
    let both = |q: &Tensor<Training, 4>, cache: &LayerCache<Training>| {
        let (found, back) = attention(q.clone(), cache.clone(), &mask, scaling);
        assert_eq!((back.own_keys(), back.shared.is_some()), (keys, cache.shared.is_some()));
        (plain(q.clone(), cache, &mask, scaling), found)
    };
    let one = |[q, k, v]: &[Tensor<Training, 4>; 3]| both(q, &cache(&[k, v], None));
    assert_same(inputs(batch, queries, keys), |x| one(x).0, |x| one(x).1);
    let [q, k, v] = inputs(batch, queries, keys);
    let [past_k, past_v] = shared_inputs(11);
    let inputs = [q.clone(), k.clone(), v.clone(), past_k, past_v];
    let with_shared = |[q, k, v, pk, pv]: &[Tensor<Training, 4>; 5]| both(q, &cache(&[k, v], Some([pk, pv])));
    assert_same(inputs.clone(), |x| with_shared(x).0, |x| with_shared(x).1);
    let split =
        |k: &Tensor<Training, 4>| [k.clone().narrow(2, 0, keys / 2), k.clone().narrow(2, keys / 2, keys - keys / 2)];
    let blocks = |[q, k, v, pk, pv]: &[Tensor<Training, 4>; 5]| {
        let ([k0, k1], [v0, v1]) = (split(k), split(v));
        both(q, &cache(&[&k0, &v0, &k1, &v1], Some([pk, pv])))
    };
    if keys > 1 {
        assert_same(inputs.clone(), |x| with_shared(x).0, |x| blocks(x).1);
        attend_untracked(inputs, &mask, keys, scaling);
    }
}

/// Checks attention without autodiff: three blocks and shared keys, against one tensor of all own
/// keys.
fn attend_untracked(inputs: [TensorData; 5], mask: &Mask<Training>, keys: usize, scaling: ScoreScaling) {
    let Mask::Visible(visible) = mask else { unreachable!("the tests' masks are") };
    let mask = Mask::<Concrete>::Visible(visible.clone());
    let device = crate::device::BackendName::Cpu.device().unwrap();
    let [q, k, v, past_k, past_v] = inputs.map(|data| Tensor::<Concrete, 4>::from_data(data, &device));
    let shared = Some((past_k, past_v));
    let part = |t: &Tensor<Concrete, 4>, from: usize, to: usize| t.clone().narrow(2, from, to - from);
    let cuts = [0, keys / 3, keys / 2, keys];
    let own = cuts.windows(2).filter(|c| c[0] < c[1]).map(|c| (part(&k, c[0], c[1]), part(&v, c[0], c[1]))).collect();
    let expected = plain(q.clone(), &LayerCache { shared: shared.clone(), own: vec![(k.clone(), v)] }, &mask, scaling);
    let (found, mut cache) = attention(q, LayerCache { shared, own }, &mask, scaling);
    assert!((found - expected).abs().max().into_scalar() < 1e-5);
    cache.join(0);
    assert_eq!(cache.own[0].0.to_data(), k.to_data(), "the cache comes back as it was");
}

#[test]
fn causal_rows() {
    for (batch, seq) in [(1, 1), (3, 7), (2, 100)] {
        check(batch, seq, seq, &AttentionMask::causal(seq));
    }
}

#[test]
fn trees_that_differ_from_row_to_row() {
    let chain = |n: usize| (0..n).map(|t| t.checked_sub(1)).collect();
    let branches = vec![None, Some(0), Some(1), Some(1), Some(3), Some(0), Some(5), None, Some(7)];
    check(
        3,
        60,
        60,
        &AttentionMask::trees(&[chain(60), branches, (0..50).map(|t: usize| (t > 0).then_some(t / 2)).collect()]),
    );
}

/// As in a beam search: a few new tokens, and keys of a row's own past.
#[test]
fn few_queries_at_the_end_of_many_keys() {
    let seen = (0..2 * 5 * 70).map(|at: usize| at % 70 < 40 || at % 7 == 3).collect();
    check(2, 5, 70, &AttentionMask::new(2, 5, 70, seen));
}

/// A window counts positions: a tree's siblings stand at the same one, and shared keys before all.
#[test]
fn sliding_windows() {
    let parents = [None, Some(0), Some(1), Some(1), Some(3), Some(0), Some(5), None, Some(7)];
    let branches = vec![11, 12, 13, 13, 14, 12, 13, 11, 12];
    let chain: Vec<u32> = (11..20).collect();
    let trees = AttentionMask::trees(&[parents.to_vec(), (0..9usize).map(|t| t.checked_sub(1)).collect()]);
    let positions = [branches, chain];
    for window in [1, 2, 4, 7, 13, 100] {
        let mask = trees.intersect(&AttentionMask::window(&positions, &positions, window));
        for (row, positions) in positions.iter().enumerate() {
            for (query, &position) in positions.iter().enumerate() {
                let mut ancestors = vec![query];
                while let Some(parent) = ancestors.last().and_then(|&token: &usize| match row {
                    0 => parents[token],
                    _ => token.checked_sub(1),
                }) {
                    ancestors.push(parent);
                }
                ancestors.truncate(window);
                let expected: Vec<bool> = (0..9).map(|key| ancestors.contains(&key)).collect();
                assert_eq!(mask.seen_keys(row, query), expected, "window {window}, row {row}, query {query}");
                let seen = 11usize.saturating_sub(mask.shared_start(row, query));
                assert_eq!(seen, window.saturating_sub(position as usize - 10).min(11), "window {window}");
            }
        }
        check(2, 9, 9, &mask);
    }
    let rows = [vec![11, 12, 13], vec![11, 12, 13]];
    assert_eq!(AttentionMask::window(&rows, &rows, 2).rows, 1, "one mask where all rows are alike");
}

#[test]
fn an_additive_mask_says_the_same() {
    let visible = AttentionMask::trees(&[vec![None, Some(0), Some(0)], vec![None, None, Some(1)]]);
    let device = crate::device::BackendName::Cpu.device().unwrap();
    for past in [0, 4] {
        let additive = Mask::<Training>::Visible(visible.clone()).additive(past, &device);
        let Mask::Visible(found) = Mask::from_additive(additive, past) else { panic!("it is one of 0 and MASKED") };
        assert!((0..2).all(|row| (0..3).all(|query| found.seen_keys(row, query) == visible.seen_keys(row, query))));
        assert_eq!((found.span(0, 0..3), found.span(1, 1..2)), (0..3, 1..2));
    }
    let odd = Tensor::<Training, 4>::from_data([[[[0.0, -1.0]]]], &device);
    assert!(matches!(Mask::from_additive(odd, 0), Mask::Additive(_)), "a bias is no mask");
}

#[test]
fn a_query_that_sees_nothing_gets_zeros_and_gives_none() {
    let device = crate::device::BackendName::Cpu.device().unwrap();
    let [q, k, v] = inputs(1, 2, 2).map(|data| Tensor::<Training, 4>::from_data(data, &device).require_grad());
    let mask = Mask::Visible(AttentionMask::new(1, 2, 2, vec![false, false, true, false]));
    let _turn = crate::tensor::AUTODIFF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let output = attention(q.clone(), cache(&[&k, &v], None), &mask, ScoreScaling::for_head_dim(SHAPE[2])).0;
    assert_eq!(output.clone().narrow(2, 0, 1).abs().max().into_scalar(), 0.0);
    let gradients = output.sum().backward();
    assert_eq!(v.grad(&gradients).unwrap().narrow(2, 1, 1).abs().max().into_scalar(), 0.0);
    assert!(q.grad(&gradients).unwrap().abs().max().into_scalar().is_finite());
}
