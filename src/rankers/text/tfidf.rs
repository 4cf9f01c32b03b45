//! TF-IDF vectors of titles, equal to scikit-learn's `TfidfVectorizer(sublinear_tf=True,
//! ngram_range=(1, n))`.
//!
//! A term is a word of at least two characters, in lower case, or up to n words in a row, joined by
//! a space. With N titles, df(t) of which hold the term t, and tf(t) its number in a title:
//!
//! weight(t) = (1 + ln tf(t)) · (ln((1 + N) / (1 + df(t))) + 1), and each title's vector has length
//! 1.

use std::collections::HashMap;

use regex::Regex;

use crate::{Context, Result};

/// Letters, numbers and `_`, as Python's `\w`, two or more of them: scikit-learn's `token_pattern`.
const WORD: &str = r"[\p{L}\p{N}_]{2,}";

/// Sparse vectors of titles, and the titles of each term.
#[derive(Clone, Debug)]
pub(crate) struct Tfidf {
    /// `[items + 1]`: where each item's terms begin in `terms`.
    item_starts: Vec<usize>,
    /// The terms of each item with their weights, ascending by term.
    terms: Vec<(u32, f32)>,
    /// `[terms + 1]`: where each term's items begin in `postings`.
    term_starts: Vec<usize>,
    /// The items of each term with their weights, ascending by item.
    postings: Vec<(u32, f32)>,
}

impl Tfidf {
    /// Makes the vectors of `titles`; a term is at most `longest` words.
    ///
    /// # Errors
    /// A pattern that does not compile.
    pub(crate) fn new<'a>(titles: impl Iterator<Item = &'a str>, longest: usize) -> Result<Self> {
        let word = Regex::new(WORD).context("the pattern of words")?;
        let mut numbers: HashMap<String, u32> = HashMap::new();
        let mut document_frequency: Vec<u32> = Vec::new();
        let mut item_starts = vec![0];
        // Each item's terms with how often it has them.
        let mut counts: Vec<(u32, u32)> = Vec::new();
        for title in titles {
            let title = title.to_lowercase();
            let words: Vec<&str> = word.find_iter(&title).map(|found| found.as_str()).collect();
            let mut own: Vec<u32> = Vec::new();
            for length in 1..=longest {
                for words in words.windows(length) {
                    let next = document_frequency.len() as u32;
                    let term = *numbers.entry(words.join(" ")).or_insert(next);
                    if term == next {
                        document_frequency.push(0);
                    }
                    own.push(term);
                }
            }
            own.sort_unstable();
            for same in own.chunk_by(|a, b| a == b) {
                document_frequency[same[0] as usize] += 1;
                counts.push((same[0], same.len() as u32));
            }
            item_starts.push(counts.len());
        }
        let items = item_starts.len() - 1;
        let inverse = |term: u32| {
            let frequency = f64::from(document_frequency[term as usize]);
            ((1.0 + items as f64) / (1.0 + frequency)).ln() + 1.0
        };
        let mut terms: Vec<(u32, f32)> = Vec::with_capacity(counts.len());
        for item in item_starts.windows(2) {
            let weights = counts[item[0]..item[1]].iter();
            let weights = weights.map(|&(term, count)| (term, (1.0 + f64::from(count).ln()) * inverse(term)));
            let weights: Vec<(u32, f64)> = weights.collect();
            let length = weights.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
            terms.extend(weights.into_iter().map(|(term, weight)| (term, (weight / length) as f32)));
        }
        let mut tfidf = Self { item_starts, terms, term_starts: Vec::new(), postings: Vec::new() };
        tfidf.invert(&document_frequency);
        Ok(tfidf)
    }

    /// Fills the titles of each term.
    fn invert(&mut self, document_frequency: &[u32]) {
        let mut next = Vec::with_capacity(document_frequency.len());
        self.term_starts.push(0);
        let mut end = 0;
        for &frequency in document_frequency {
            next.push(end);
            end += frequency as usize;
            self.term_starts.push(end);
        }
        let mut postings = vec![(0, 0.0); end];
        for item in 0..self.items() as u32 {
            for &(term, weight) in self.terms(item) {
                let next = &mut next[term as usize];
                postings[*next] = (item, weight);
                *next += 1;
            }
        }
        self.postings = postings;
    }

    /// Returns the cosine of two items' vectors; 0 where one has no term.
    pub(crate) fn cosine(&self, a: u32, b: u32) -> f64 {
        let (mut a, mut b) = (self.terms(a), self.terms(b));
        let mut sum = 0.0;
        while let (Some(&(x, of_a)), Some(&(y, of_b))) = (a.first(), b.first()) {
            if x == y {
                sum += f64::from(of_a) * f64::from(of_b);
            }
            if x <= y {
                a = &a[1..];
            }
            if y <= x {
                b = &b[1..];
            }
        }
        sum
    }

    /// Number of items.
    pub(crate) fn items(&self) -> usize {
        self.item_starts.len() - 1
    }

    /// Number of terms.
    pub(crate) fn vocabulary(&self) -> usize {
        self.term_starts.len() - 1
    }

    /// An item's terms with their weights, ascending by term; none for an item that is not there.
    pub(crate) fn terms(&self, item: u32) -> &[(u32, f32)] {
        match self.item_starts.get(item as usize..=item as usize + 1) {
            Some(&[start, end]) => &self.terms[start..end],
            _ => &[],
        }
    }

    /// A term's items with their weights, ascending by item.
    pub(crate) fn postings(&self, term: u32) -> &[(u32, f32)] {
        &self.postings[self.term_starts[term as usize]..self.term_starts[term as usize + 1]]
    }
}
