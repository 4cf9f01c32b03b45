//! The losses of one optimiser step of phase 1.

use burn::prelude::*;

use crate::Result;
use crate::batch::TextBatch;
use crate::loss::{Negatives, contrastive, query_query_similarity, query_text_similarity, smoothed_cross_entropy};
use crate::model::{Aligner, QFormerMask};
use crate::tensor::{indices, to_vec};

/// Weights of the losses of items and texts; a loss of weight 0 is not computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ItemTextWeights {
    /// Weight of the item-text contrastive loss.
    pub contrastive: f64,
    /// Weight of item-grounded text generation.
    pub generation: f64,
    /// Weight of item-text matching.
    pub matching: f64,
}

/// A loss by its short name: its weight and its value, `[1]`.
pub type WeightedLoss<B> = (&'static str, f64, Tensor<B, 1>);

/// Computes the losses of items with their texts, n of at least 2: `itc`, `itg` and `itm`, those
/// with a weight.
///
/// * `negatives`: gets the similarities `[n, n]`, items by texts, over the temperature.
///
/// # Shapes
/// `vectors`: `[n, 1, width]`.
///
/// # Errors
/// A device that failed.
pub fn item_text_losses<B: Backend>(
    aligner: &Aligner<B>,
    vectors: Tensor<B, 3>,
    text: &TextBatch,
    weights: &ItemTextWeights,
    smoothing: f64,
    negatives: impl FnOnce(&[f32]) -> Negatives,
) -> Result<Vec<WeightedLoss<B>>> {
    let mut losses = Vec::new();
    if weights.contrastive > 0.0 || weights.matching > 0.0 {
        let (queries, words) = aligner.qformer.forward(vectors.clone(), text, QFormerMask::Unimodal);
        let similarity = query_text_similarity(aligner.query_features(queries), aligner.text_features(words));
        let similarity = Aligner::over_temperature(similarity, &aligner.temperature);
        if weights.matching > 0.0 {
            let negatives = negatives(&to_vec(similarity.clone().detach(), "similarities")?);
            let loss = matching_loss(aligner, vectors.clone(), text, &negatives);
            losses.push(("itm", weights.matching, loss));
        }
        if weights.contrastive > 0.0 {
            losses.push(("itc", weights.contrastive, contrastive(similarity, smoothing)));
        }
    }
    if weights.generation > 0.0 {
        losses.push(("itg", weights.generation, generation_loss(aligner, vectors, text, smoothing)));
    }
    Ok(losses)
}

/// Computes the matching loss: whether item and text belong together, for each pair, each text with
/// another item, each item with another text.
fn matching_loss<B: Backend>(
    aligner: &Aligner<B>,
    vectors: Tensor<B, 3>,
    text: &TextBatch,
    negatives: &Negatives,
) -> Tensor<B, 1> {
    let n = text.lengths.len();
    let items = indices(negatives.items.iter().copied(), n, &vectors.device());
    let other_items = vectors.clone().select(0, items);
    let vectors = Tensor::cat(vec![vectors.clone(), other_items, vectors], 0);
    let text = text.select((0..n).chain(0..n).chain(negatives.texts.iter().copied()));
    let (queries, _) = aligner.qformer.forward(vectors, &text, QFormerMask::Bidirectional);
    let labels: Vec<usize> = (0..3 * n).map(|row| usize::from(row < n)).collect();
    smoothed_cross_entropy(aligner.match_logits(queries), &labels, 0.0)
}

/// Computes the generation loss: of each token after `[DEC]`, from the item and the tokens before
/// it; the mean over all texts' tokens.
fn generation_loss<B: Backend>(
    aligner: &Aligner<B>,
    vectors: Tensor<B, 3>,
    text: &TextBatch,
    smoothing: f64,
) -> Tensor<B, 1> {
    let text = text.with_first_token(aligner.qformer.config().dec());
    let (_, words) = aligner.qformer.forward(vectors, &text, QFormerMask::Causal);
    let [n, seq, width] = words.dims();
    let predicting = || (0..n).flat_map(|row| (0..text.lengths[row] - 1).map(move |t| row * seq + t));
    let labels: Vec<usize> = predicting().map(|index| text.tokens[index + 1] as usize).collect();
    let before = indices(predicting(), n * seq, &words.device());
    let logits = aligner.qformer.next_tokens(words.reshape([n * seq, width]).select(0, before));
    smoothed_cross_entropy(logits, &labels, smoothing)
}

/// Computes the contrast of entities with their partners.
///
/// # Shapes
/// `left`, `right`: `[n, 1, width]`.
pub fn pair_loss<B: Backend>(
    aligner: &Aligner<B>,
    left: Tensor<B, 3>,
    right: Tensor<B, 3>,
    smoothing: f64,
) -> Tensor<B, 1> {
    let features = |vectors| aligner.query_features(aligner.qformer.encode(vectors));
    let similarity = query_query_similarity(features(left), features(right));
    contrastive(Aligner::over_temperature(similarity, &aligner.pair_temperature), smoothing)
}
