//! Texts side by side, as an encoder takes them.

/// Texts of tokens, padded on the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// `[texts · seq]` token ids, 0 where padded.
    pub tokens: Vec<u32>,
    /// Tokens of each text; one a text at least.
    pub lengths: Vec<usize>,
    /// Tokens of the longest text.
    pub seq: usize,
}

impl TextBatch {
    /// Lays out `texts`, none of them empty.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let texts: Vec<&[u32]> = texts.into_iter().collect();
        let seq = texts.iter().map(|t| t.len()).max().unwrap_or(0);
        let mut tokens = vec![0; texts.len() * seq];
        for (row, text) in tokens.chunks_mut(seq.max(1)).zip(&texts) {
            row[..text.len()].copy_from_slice(text);
        }
        Self { tokens, lengths: texts.iter().map(|t| t.len()).collect(), seq }
    }

    /// The tokens of text `row`, without padding.
    pub fn text(&self, row: usize) -> &[u32] {
        &self.tokens[row * self.seq..][..self.lengths[row]]
    }

    /// The texts at `rows`, in that order.
    pub fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        Self::new(rows.into_iter().map(|row| self.text(row)))
    }

    /// The same texts with another first token.
    pub fn beginning_with(&self, token: u32) -> Self {
        let mut texts = self.clone();
        texts.tokens.iter_mut().step_by(self.seq.max(1)).for_each(|first| *first = token);
        texts
    }

    /// Real tokens.
    pub fn len(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Whether there is no text.
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
        assert_eq!(texts.beginning_with(9).tokens, [9, 7, 3, 9, 3, 0]);
    }
}
