//! Sentence vectors by a BERT.

use std::path::Path;

use burn::prelude::*;

use super::{Bert, BertConfig};
use crate::batch::TextBatch;
use crate::tensor::to_vec;
use crate::text::BertTokenizer;
use crate::{Error, Result};

/// Tokens of a text that the encoder reads at most: as sentence-transformers' all-MiniLM-L6-v2.
const LONGEST: usize = 256;

/// Texts encoded together.
const BATCH: usize = 32;

/// A BERT-family encoder of sentences: the mean of its last hidden states, of length 1
/// ([`Bert::sentence_vectors`]).
#[derive(Debug)]
pub struct SentenceEncoder<B: Backend> {
    bert: Bert<B>,
    tokenizer: BertTokenizer,
    longest: usize,
    dim: usize,
}

impl<B: Backend> SentenceEncoder<B> {
    /// Reads a Hugging Face directory, such as MiniLM's.
    ///
    /// # Errors
    /// Damaged or missing files, another architecture, a tokenizer with more tokens than the model.
    pub fn open(dir: &Path, device: &B::Device) -> Result<Self> {
        let (config, tokenizer) = (BertConfig::from_dir(dir)?, BertTokenizer::from_dir(dir)?);
        if tokenizer.largest_id() as usize >= config.vocab_size {
            let (id, rows) = (tokenizer.largest_id(), config.vocab_size);
            return Err(Error::failed(format!(
                "{}: the tokenizer has an id {id}, the model {rows} tokens",
                dir.display()
            )));
        }
        let longest = config.max_position_embeddings.min(LONGEST);
        if longest < 2 {
            return Err(Error::failed(format!(
                "{}: max_position_embeddings is {longest}, no text fits",
                dir.display()
            )));
        }
        let dim = config.hidden_size;
        Ok(Self { bert: Bert::load(dir, &config, device)?, tokenizer, longest, dim })
    }

    /// Returns the cosine of each pair of texts. Of a long text the first 256 tokens count, or as many as
    /// the encoder takes.
    ///
    /// # Errors
    /// The tokenizer refuses a text.
    pub fn cosines(&self, pairs: &[(&str, &str)]) -> Result<Vec<f64>> {
        let mut cosines = Vec::with_capacity(pairs.len());
        for pairs in pairs.chunks(BATCH) {
            let decoded = self.vectors(pairs.iter().map(|(decoded, _)| *decoded))?;
            let original = self.vectors(pairs.iter().map(|(_, original)| *original))?;
            let products = to_vec((decoded * original).sum_dim(1), "cosines of texts")?;
            cosines.extend(products.into_iter().map(f64::from));
        }
        Ok(cosines)
    }

    /// Length of a sentence's vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the vectors of texts, each of length 1. Of a long text the first 256 tokens count, or
    /// as many as the encoder takes.
    ///
    /// # Shapes
    /// Returns `[texts, dim]`, row after row.
    ///
    /// # Errors
    /// The tokenizer refuses a text; a device that failed.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
        let mut vectors = Vec::with_capacity(texts.len() * self.dim);
        for texts in texts.chunks(BATCH) {
            vectors.extend(to_vec(self.vectors(texts.iter().copied())?, "sentence vectors")?);
        }
        Ok(vectors)
    }

    /// `[texts, dim]`.
    fn vectors<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Result<Tensor<B, 2>> {
        let tokens = texts.map(|text| self.tokenizer.encode(text, self.longest)).collect::<Result<Vec<_>>>()?;
        Ok(self.bert.sentence_vectors(&TextBatch::new(tokens.iter().map(Vec::as_slice))))
    }
}

#[cfg(test)]
mod tests {
    use burn::Dispatch;

    use super::*;
    use crate::device::BackendName;

    /// The tiny encoder of the fixtures: cosines are products of its sentence vectors, whatever is
    /// encoded beside them.
    #[test]
    fn cosines_of_texts() {
        let device = BackendName::Cpu.device().unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/bert");
        let encoder = SentenceEncoder::<Dispatch>::open(&dir, &device).unwrap();
        let (long, short) = ("a red pen of many words ".repeat(200), "blue ink");
        let pairs = [(short, short), (long.as_str(), short), (short, &long), ("", short), (long.as_str(), &long)];
        let cosines = encoder.cosines(&pairs).unwrap();
        for (&pair, &cosine) in pairs.iter().zip(&cosines) {
            let alone = encoder.cosines(&[pair]).unwrap();
            assert!(
                (alone[0] - cosine).abs() < 1e-5 && (-1.001..1.001).contains(&cosine),
                "{cosine} beside others, {alone:?} alone"
            );
        }
        assert!((cosines[0] - 1.0).abs() < 1e-5 && (cosines[4] - 1.0).abs() < 1e-5);
        assert!((cosines[1] - cosines[2]).abs() < 1e-5 && cosines[1] < 0.999);
        assert!(encoder.cosines(&[]).unwrap().is_empty());
        assert!(SentenceEncoder::<Dispatch>::open(Path::new("/nowhere"), &device).is_err());
    }
}
