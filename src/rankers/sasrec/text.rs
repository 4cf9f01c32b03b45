//! SASRec over titles: item vectors that are projected from vectors of their titles.

use burn::DispatchDevice;
use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;

use super::{SasRec, SasRecConfig};
use crate::data::Corpus;
use crate::rankers::text::DenseVectors;
use crate::tensor::to_vec;
use crate::{Context, Result};

/// The value of `text` that means TF-IDF.
const TFIDF: &str = "tfidf";

/// A learned projection of fixed vectors of titles. Nearest in print: UniSRec (Hou et al., KDD
/// 2022, arXiv 2206.05941), whose items are text alone in pre-training, text and id when
/// fine-tuned.
#[derive(Module, Debug)]
pub struct TextProjection<B: Backend> {
    /// `[width, dim]`: the projection.
    pub weight: Param<Tensor<B, 2>>,
    /// `[rows, width]`: the titles' vectors, of length 1, which do not train.
    pub(super) vectors: Tensor<B, 2>,
}

impl<B: Backend> TextProjection<B> {
    /// Returns the projected vectors.
    ///
    /// # Shapes
    /// Returns `[rows, dim]`.
    pub(super) fn forward(&self) -> Tensor<B, 2> {
        self.vectors.clone().matmul(self.weight.val())
    }
}

impl SasRecConfig {
    /// Makes the vectors of all titles of the corpus, if the settings ask for them.
    pub(super) fn title_vectors(&self, corpus: &Corpus, device: &DispatchDevice) -> Result<Option<DenseVectors>> {
        let Some(source) = &self.text else { return Ok(None) };
        let titles: Vec<&str> = corpus.items.iter().map(|item| item.title.as_str()).collect();
        let vectors = match source.as_str() {
            TFIDF => DenseVectors::from_tfidf(&titles, self.text_dim, self.seed)?,
            dir => DenseVectors::from_encoder(dir, &titles, device).context("text")?,
        };
        Ok(Some(vectors))
    }
}

impl<B: Backend> SasRec<B> {
    /// Returns the model of the whole catalogue, without a projection: the vectors of items in
    /// training are their own and the projected ones, all others the projected ones.
    ///
    /// * `warm`: the item of each row of the model.
    pub(super) fn with_all_items(self, titles: &DenseVectors, warm: &[u32]) -> Result<Self> {
        let Some(text) = &self.text else { return Ok(self) };
        let (device, dim) = (self.items.val().device(), self.dim());
        let own = to_vec(self.items.val(), "items")?;
        let all = TensorData::new(titles.values().to_vec(), [titles.items(), titles.dim()]);
        let all = Tensor::<B, 2>::from_data(all, &device).matmul(text.weight.val());
        let mut table = to_vec(all, "projected titles")?;
        for (&item, own) in warm.iter().zip(own.chunks_exact(dim)) {
            let row = &mut table[item as usize * dim..][..dim];
            row.iter_mut().zip(own).for_each(|(value, own)| *value += own);
        }
        let items = Tensor::from_data(TensorData::new(table, [titles.items(), dim]), &device);
        Ok(Self { items: Param::from_tensor(items), text: None, ..self })
    }
}
