//! The losses of phase 1: contrast, generation and matching of items and texts; contrast of items
//! with items and users with items.
//!
//! Source: BLIP-2 (arXiv 2301.12597) as in LAVIS, lavis/models/blip2_models/blip2_qformer.py; the
//! contrast of two entities by their most similar pair of queries is ILM's (arXiv 2406.02844).

use burn::prelude::*;
use rand::Rng;

use crate::tensor::indices;

/// Computes the mean over rows of the cross-entropy with the labels, smoothed as torch's
/// `label_smoothing`: a share `smoothing` of the target probability is spread over all classes.
///
/// # Shapes
/// `logits`: `[rows, classes]`; the result: `[1]`.
pub fn smoothed_cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: &[usize], smoothing: f64) -> Tensor<B, 1> {
    let labels = indices::<B>(labels.iter().copied(), logits.dims()[1], &logits.device()).unsqueeze_dim(1);
    let max = logits.clone().detach().max_dim(1);
    let log_sum = (logits.clone() - max.clone()).exp().sum_dim(1).log() + max;
    let target = logits.clone().gather(1, labels).mul_scalar(1.0 - smoothing);
    let target = if smoothing > 0.0 { target + logits.mean_dim(1).mul_scalar(smoothing) } else { target };
    (log_sum - target).mean()
}

/// Computes how much an entity's most similar query resembles a text. All vectors have length 1.
///
/// # Shapes
/// `queries`: `[b, K, p]`; `texts`: `[t, p]`; the result: `[b, t]`.
pub fn query_text_similarity<B: Backend>(queries: Tensor<B, 3>, texts: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([b, k, p], [t, _]) = (queries.dims(), texts.dims());
    let all = queries.reshape([b * k, p]).matmul(texts.transpose());
    all.reshape([b, k, t]).max_dim(1).reshape([b, t])
}

/// Computes how much the most similar pair of two entities' queries resemble one another. All
/// vectors have length 1.
///
/// # Shapes
/// `left`: `[b, K, p]`; `right`: `[c, K, p]`; the result: `[b, c]`.
pub fn query_query_similarity<B: Backend>(left: Tensor<B, 3>, right: Tensor<B, 3>) -> Tensor<B, 2> {
    let ([b, k, p], [c, l, _]) = (left.dims(), right.dims());
    let all = left.reshape([b * k, p]).matmul(right.reshape([c * l, p]).transpose());
    // First over the right queries, which lie side by side, then over the left ones.
    let over_right = all.reshape([b * k * c, l]).max_dim(1).reshape([b, k, c]);
    over_right.max_dim(1).reshape([b, c])
}

/// Computes the cross-entropy of each row with its own column and of each column with its own row,
/// averaged.
///
/// # Shapes
/// `similarity`: `[n, n]`, divided by the temperature; the result: `[1]`.
pub fn contrastive<B: Backend>(similarity: Tensor<B, 2>, smoothing: f64) -> Tensor<B, 1> {
    let own: Vec<usize> = (0..similarity.dims()[0]).collect();
    let rows = smoothed_cross_entropy(similarity.clone(), &own, smoothing);
    let columns = smoothed_cross_entropy(similarity.transpose(), &own, smoothing);
    (rows + columns).mul_scalar(0.5)
}

/// Hard negatives: for each text an item that is not its own, and for each item a text that is not
/// its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negatives {
    /// `[texts]`: row of an item.
    pub items: Vec<usize>,
    /// `[items]`: row of a text.
    pub texts: Vec<usize>,
}

/// Draws hard negatives: with probability in proportion to the exponential of the similarity (`[n,
/// n]`, items by texts, divided by the temperature; n of at least 2). An entity's own partner is
/// never drawn, nor (unlike LAVIS) one whose text equals its own, as with items of the same title:
/// that is no negative. If all texts are equal, any other one is drawn.
///
/// * `texts`: the n texts.
pub fn hard_negatives<T: PartialEq>(similarity: &[f32], texts: &[T], rng: &mut impl Rng) -> Negatives {
    let n = texts.len();
    let mut draw = |own: usize, at: &dyn Fn(usize) -> f32| {
        let alone = texts.iter().all(|text| *text == texts[own]);
        let others = || (0..n).filter(|&j| j != own && (alone || texts[j] != texts[own]));
        let max = others().map(at).fold(f32::NEG_INFINITY, f32::max);
        let weight = |j: usize| f64::from((at(j) - max).exp());
        let mut left = rng.random::<f64>() * others().map(weight).sum::<f64>();
        let chosen = others().find(|&j| {
            left -= weight(j);
            left < 0.0
        });
        // Rounding may leave a small rest; NaN leaves everything.
        chosen.or_else(|| others().next_back()).unwrap_or(own)
    };
    let items = (0..n).map(|text| draw(text, &|item| similarity[item * n + text])).collect();
    let texts = (0..n).map(|item| draw(item, &|text| similarity[item * n + text])).collect();
    Negatives { items, texts }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn hard_negatives_follow_the_similarity() {
        // Item 0's text is 0. Items 1 and 2 are as likely as e⁰ : e^ln3 for text 0.
        let n = 3;
        let similarity = [9.0, 0.0, 0.0, 0.0, 9.0, -50.0, 3f32.ln(), 0.0, 9.0];
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut third = 0;
        for _ in 0..4000 {
            let negatives = hard_negatives(&similarity, &["a", "b", "c"], &mut rng);
            assert!((0..n).all(|i| negatives.items[i] != i && negatives.texts[i] != i && negatives.items[i] < n));
            assert_eq!(negatives.texts[1], 0, "text 2 has no chance against text 0");
            third += usize::from(negatives.items[0] == 2);
        }
        assert!((2880..3120).contains(&third), "{third} of 4000 instead of 3000");
        // Of equal texts only the third is a negative, however similar the other.
        let equal = hard_negatives(&similarity, &["a", "b", "a"], &mut rng);
        assert_eq!((equal.items[0], equal.texts[0], equal.items[2], equal.texts[2]), (1, 1, 1, 1));
        let alike = hard_negatives(&similarity, &["a"; 3], &mut rng);
        assert!((0..n).all(|i| alike.items[i] != i && alike.texts[i] != i));
        let nan = hard_negatives(&[f32::NAN; 4], &["a", "b"], &mut rng);
        assert_eq!((nan.items, nan.texts), (vec![1, 0], vec![1, 0]));
    }
}
