use burn::tensor::TensorData;

use super::super::testing::{numbers, same};
use super::*;
use crate::backend::Training;

/// Heads, key/value heads and their width.
const SHAPE: [usize; 3] = [6, 2, 8];

fn inputs(batch: usize, seq: usize, keys: usize) -> [TensorData; 3] {
    let [heads, kv_heads, dim] = SHAPE;
    let kv = |seed| numbers([batch, kv_heads, keys, dim], seed, 1.0);
    [numbers([batch, heads, seq, dim], 1, 3.0), kv(2), kv(3)]
}

fn shared(past: usize) -> [TensorData; 2] {
    [4, 5].map(|seed| numbers([1, SHAPE[1], past, SHAPE[2]], seed, 1.0))
}

/// Without a past, and with one that all rows share.
fn check(batch: usize, queries: usize, keys: usize, visible: &Visible) {
    let mask = Mask::Visible(visible.clone());
    same(
        inputs(batch, queries, keys),
        |[q, k, v]| plain(q.clone(), (k.clone(), v.clone()), None, &mask),
        |[q, k, v]| attention(q.clone(), (k.clone(), v.clone()), None, &mask),
    );
    let [q, k, v] = inputs(batch, queries, keys);
    let [past_k, past_v] = shared(11);
    let past = |k: &Tensor<Training, 4>, v: &Tensor<Training, 4>| Some((k.clone(), v.clone()));
    same(
        [q, k, v, past_k, past_v],
        |[q, k, v, pk, pv]| plain(q.clone(), (k.clone(), v.clone()), past(pk, pv), &mask),
        |[q, k, v, pk, pv]| attention(q.clone(), (k.clone(), v.clone()), past(pk, pv), &mask),
    );
}

#[test]
fn causal_rows() {
    for (batch, seq) in [(1, 1), (3, 7), (2, 100)] {
        check(batch, seq, seq, &Visible::causal(seq));
    }
}

#[test]
fn trees_that_differ_from_row_to_row() {
    let chain = |n: usize| (0..n).map(|t| t.checked_sub(1)).collect();
    let branches = vec![None, Some(0), Some(1), Some(1), Some(3), Some(0), Some(5), None, Some(7)];
    check(3, 60, 60, &Visible::trees(&[chain(60), branches, (0..50).map(|t: usize| (t > 0).then_some(t / 2)).collect()]));
}

/// As a beam search asks: a few new tokens, and keys of a row's own past.
#[test]
fn few_queries_at_the_end_of_many_keys() {
    let seen = (0..2 * 5 * 70).map(|at: usize| at % 70 < 40 || at % 7 == 3).collect();
    check(2, 5, 70, &Visible::new(2, 5, 70, seen));
}

#[test]
fn an_additive_mask_says_the_same() {
    let visible = Visible::trees(&[vec![None, Some(0), Some(0)], vec![None, None, Some(1)]]);
    let device = crate::backend::BackendName::Cpu.device().unwrap();
    for past in [0, 4] {
        let additive = Mask::<Training>::Visible(visible.clone()).additive(past, &device);
        let Mask::Visible(found) = Mask::from_additive(additive, past) else { panic!("it is one of 0 and MASKED") };
        assert!((0..2).all(|row| (0..3).all(|query| found.of(row, query) == visible.of(row, query))));
        assert_eq!((found.span(0, 0..3), found.span(1, 1..2)), (0..3, 1..2));
    }
    let odd = Tensor::<Training, 4>::from_data([[[[0.0, -1.0]]]], &device);
    assert!(matches!(Mask::from_additive(odd, 0), Mask::Additive(_)), "a bias is no mask");
}

#[test]
fn a_query_that_sees_nothing_gets_zeros_and_gives_none() {
    let device = crate::backend::BackendName::Cpu.device().unwrap();
    let [q, k, v] = inputs(1, 2, 2).map(|data| Tensor::<Training, 4>::from_data(data, &device).require_grad());
    let mask = Mask::Visible(Visible::new(1, 2, 2, vec![false, false, true, false]));
    let _turn = crate::train::AUTODIFF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let output = attention(q.clone(), (k.clone(), v.clone()), None, &mask);
    assert_eq!(output.clone().narrow(2, 0, 1).abs().max().into_scalar(), 0.0);
    let gradients = output.sum().backward();
    assert_eq!(v.grad(&gradients).unwrap().narrow(2, 1, 1).abs().max().into_scalar(), 0.0);
    assert!(q.grad(&gradients).unwrap().abs().max().into_scalar().is_finite());
}
