//! Texts padded to one length, as a text encoder takes them.

/// Token ids of several texts, padded on the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// `[texts, seq]` flattened: token ids, 0 where padded.
    pub tokens: Vec<u32>,
    /// `[texts]`: number of tokens of each text, at least 1.
    pub lengths: Vec<usize>,
    /// Number of tokens of the longest text.
    pub seq: usize,
}

impl TextBatch {
    /// Pads `texts`, none of them empty.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let texts: Vec<&[u32]> = texts.into_iter().collect();
        let seq = texts.iter().map(|t| t.len()).max().unwrap_or(0);
        let mut tokens = vec![0; texts.len() * seq];
        for (row, text) in tokens.chunks_mut(seq.max(1)).zip(&texts) {
            row[..text.len()].copy_from_slice(text);
        }
        Self { tokens, lengths: texts.iter().map(|t| t.len()).collect(), seq }
    }

    /// Returns the tokens of text `index`, without padding.
    pub fn text(&self, index: usize) -> &[u32] {
        &self.tokens[index * self.seq..][..self.lengths[index]]
    }

    /// Returns the texts with these indices, in that order.
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        Self::new(indices.into_iter().map(|index| self.text(index)))
    }

    /// Returns the same texts with another first token.
    pub fn with_first_token(&self, token: u32) -> Self {
        let mut texts = self.clone();
        texts.tokens.iter_mut().step_by(self.seq.max(1)).for_each(|first| *first = token);
        texts
    }

    /// Returns the number of tokens, padding not counted.
    pub fn len(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Returns whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_out_and_selects() {
        let texts = TextBatch::new([&[2u32, 7, 3][..], &[2, 3]]);
        assert_eq!((texts.tokens.as_slice(), texts.seq, texts.len()), (&[2, 7, 3, 2, 3, 0][..], 3, 5));
        assert_eq!(texts.select([1, 1]).tokens, [2, 3, 2, 3]);
        assert_eq!(texts.with_first_token(9).tokens, [9, 7, 3, 9, 3, 0]);
    }
}
