//! Quality of free text, measured as ELM and ILM do: log-perplexity and semantic consistency, task
//! by task.
//!
//! With R rows of a task, y_r the tokens of row r's answer (its EOS included where it is learnt)
//! and x_r its prompt:
//!
//! ```text
//! log-perplexity       = - Σ_r Σ_t ln p(y_rt | x_r, y_r1 … y_r(t-1)) / Σ_r |y_r|
//! semantic consistency = 1/R Σ_r cos(s(decoded text of r), s(answer of r))
//! ```
//!
//! Log-perplexity is the mean negative log-likelihood a token, in nats: 0 or more, the lower the
//! better, and exp of it is the perplexity. Figures quoted for ILM below 0 (such as -1.7) are its
//! opposite, the higher the better. It compares only models of the same tokenizer.
//!
//! s is a sentence encoder's vector of length 1, so semantic consistency is between -1 and 1 (the
//! papers print percent). ELM and ILM encode with Sentence-T5-11B; cosines of another encoder are
//! on another scale and compare only with one another.
//!
//! The mean over tasks is that of the tasks' figures, each with the same weight, whatever its
//! number of rows: as in ILM's mean over the 24 tasks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The result of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextOutcome {
    /// The task's index among the names.
    pub task: usize,
    /// Number of tokens of the answer.
    pub tokens: usize,
    /// The answer's log-probability, summed over its tokens, in nats
    /// ([`crate::decode::log_likelihoods`]).
    pub log_likelihood: f64,
    /// The cosine of the generated and the original text; none if none was generated.
    pub cosine: Option<f64>,
}

/// The measures of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextQuality {
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens of their answers.
    pub tokens: usize,
    /// Mean negative log-likelihood of a token, in nats.
    pub log_perplexity: f64,
    /// Number of rows whose text was generated.
    pub decoded: usize,
    /// Mean cosine of these rows; none without any.
    pub semantic_consistency: Option<f64>,
}

/// The measures of each task, and their mean over the tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextSummary {
    /// The measures by the task's name; tasks without rows are left out.
    pub tasks: BTreeMap<String, TextQuality>,
    /// The mean, to which every task contributes the same; rows and tokens are summed. None without
    /// tasks.
    pub mean: Option<TextQuality>,
}

/// Summarises rows of the tasks `names`.
pub fn summarise_texts(names: &[&str], outcomes: &[TextOutcome]) -> TextSummary {
    let mut tasks = BTreeMap::new();
    for (task, name) in names.iter().enumerate() {
        let rows: Vec<&TextOutcome> = outcomes.iter().filter(|outcome| outcome.task == task).collect();
        let tokens: usize = rows.iter().map(|row| row.tokens).sum();
        if tokens > 0 {
            let log_perplexity = -rows.iter().map(|row| row.log_likelihood).sum::<f64>() / tokens as f64;
            let cosines: Vec<f64> = rows.iter().filter_map(|row| row.cosine).collect();
            let (decoded, semantic_consistency) = (cosines.len(), mean(&cosines));
            let quality = TextQuality { rows: rows.len(), tokens, log_perplexity, decoded, semantic_consistency };
            tasks.insert((*name).to_string(), quality);
        }
    }
    let all: Vec<&TextQuality> = tasks.values().collect();
    let log_perplexities: Vec<f64> = all.iter().map(|task| task.log_perplexity).collect();
    let consistencies: Vec<f64> = all.iter().filter_map(|task| task.semantic_consistency).collect();
    let mean = mean(&log_perplexities).map(|log_perplexity| TextQuality {
        rows: all.iter().map(|task| task.rows).sum(),
        tokens: all.iter().map(|task| task.tokens).sum(),
        log_perplexity,
        decoded: all.iter().map(|task| task.decoded).sum(),
        semantic_consistency: mean(&consistencies),
    });
    TextSummary { tasks, mean }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: usize, probabilities: &[f64], cosine: Option<f64>) -> TextOutcome {
        let log_likelihood = probabilities.iter().map(|p| p.ln()).sum();
        TextOutcome { task, tokens: probabilities.len(), log_likelihood, cosine }
    }

    #[test]
    fn equals_the_hand_worked_means() {
        let outcomes = [
            row(2, &[0.5, 0.25], Some(0.9)),
            row(0, &[0.125], None),
            row(2, &[1.0, 0.125, 0.25], Some(0.5)),
            row(2, &[0.5], None),
        ];
        let summary = summarise_texts(&["pitch", "sadder", "summary"], &outcomes);
        assert_eq!(summary.tasks.keys().collect::<Vec<_>>(), ["pitch", "summary"]);
        let ln2 = std::f64::consts::LN_2;
        let (pitch, plot, mean) = (summary.tasks["pitch"], summary.tasks["summary"], summary.mean.unwrap());
        // 1/8 is 3 bits in one token; 1/2 · 1/4 · 1 · 1/8 · 1/4 · 1/2 are 9 bits in six.
        assert!((pitch.log_perplexity - 3.0 * ln2).abs() < 1e-12 && (plot.log_perplexity - 1.5 * ln2).abs() < 1e-12);
        assert!((mean.log_perplexity - 2.25 * ln2).abs() < 1e-12);
        assert_eq!((pitch.rows, pitch.tokens, pitch.decoded, pitch.semantic_consistency), (1, 1, 0, None));
        assert_eq!((plot.rows, plot.tokens, plot.decoded), (3, 6, 2));
        assert!((plot.semantic_consistency.unwrap() - 0.7).abs() < 1e-12);
        assert_eq!((mean.rows, mean.tokens, mean.semantic_consistency), (4, 7, plot.semantic_consistency));
        assert_eq!(summarise_texts(&["a"], &[]), TextSummary { tasks: BTreeMap::new(), mean: None });
    }
}
