//! Short reports as text.

use std::path::Path;

use crate::commands::{AlignReport, CfReport, Evaluation, QuickstartReport, TextEvaluation, TrainReport};
use crate::evaluate::{Comparison, Group, Summary, TextQuality};
use crate::run::{BulkReport, Recommendation};

/// Returns a row for each ranker, the example users and the run directories.
pub(super) fn quickstart(report: &QuickstartReport) -> String {
    let rows: Vec<(&str, &Summary)> = report.results.iter().map(|r| (r.name.as_str(), &r.summary)).collect();
    let mut text = format!("\nSYNTHETIC data, {} test windows. {}\n", report.windows, table(&rows));
    let Comparison { a, b, all, .. } = &report.comparison;
    text += &format!(
        "\n{a} above {b} by NDCG@10: {:+.4} [{:.4}, {:.4}] (paired, 95 % bootstrap interval over users)\n",
        all.difference, all.low, all.high
    );
    for example in &report.examples {
        text += &format!("\n{} read: {}\n  then: {}\n", example.user, example.history.join(" · "), example.target);
        for (place, title) in example.top.iter().enumerate() {
            text += &format!("  {}. {title}{}\n", place + 1, if *title == example.target { "  <- this" } else { "" });
        }
    }
    let runs: Vec<String> = report.runs.iter().map(|r| r.display().to_string()).collect();
    text += &format!("\nRun directories: {} ({:.0} s in all)\n", runs.join(", "), report.seconds);
    text += &format!("Report: {}\n", report.page.display());
    text
}

/// Returns the progress of `train`, and notices that the dashboard had no room for.
pub(super) fn train_report(report: &TrainReport) -> String {
    let notice = report.notice.as_ref().map_or_else(String::new, |notice| format!("note: {notice}\n"));
    format!(
        "{notice}{}: {} of {} steps, {} samples, loss {} → {}, temperature {:.3}, {:.2} samples/s, {} MiB at most\n",
        report.run.display(),
        report.steps,
        report.total_steps,
        report.samples,
        number(report.loss.first),
        number(report.loss.last),
        report.temperature,
        report.samples_per_second,
        report.peak_memory_bytes >> 20
    )
}

/// Returns the progress of `align`.
pub(super) fn align_report(report: &AlignReport) -> String {
    let recall = report.retrieval.map_or("-".to_string(), |r| {
        format!("text→item {:.4}, item→text {:.4} of {}", r.text_to_item.at_10, r.item_to_text.at_10, r.items)
    });
    format!(
        "{}: {} of {} steps, loss {} → {}, temperature {:.3}, recall@10 {recall}, {:.1} samples/s, {} MiB at most\n",
        report.run.display(),
        report.steps,
        report.total_steps,
        number(report.loss.first),
        number(report.loss.last),
        report.temperature,
        report.samples_per_second,
        report.peak_memory_bytes >> 20
    )
}

/// Returns what `cf` has written.
pub(super) fn vectors(report: &CfReport) -> String {
    format!(
        "{}: {} items and {} users, {} numbers each; {:.0} s, loss {:.4}, valid NDCG@10 {}\n",
        report.out.display(),
        report.items,
        report.users,
        report.dim,
        report.seconds,
        report.loss,
        number(report.valid_ndcg_at_10)
    )
}

/// Returns a table of the metrics, with a row for each prompt.
pub(super) fn evaluation(run: &Path, evaluation: &Evaluation) -> String {
    let mut rows = vec![(run.display().to_string(), &evaluation.summary)];
    if let (Some(task), Some(prompt)) = (&evaluation.task, evaluation.prompt) {
        rows[0].0 = format!("{task}, {prompt}");
    }
    rows.extend(evaluation.tasks.iter().skip(1).map(|t| (format!("{}, {}", t.task, t.prompt), &t.summary)));
    let rows: Vec<(&str, &Summary)> = rows.iter().map(|(name, summary)| (name.as_str(), *summary)).collect();
    format!("{}{}\n{:.2} users/s\n", table(&rows), prior(evaluation), evaluation.users_per_second)
}

/// Returns the prior, and how its weight was chosen.
fn prior(evaluation: &Evaluation) -> String {
    let Some(prior) = &evaluation.prior else { return String::new() };
    let mut text = format!("prior: {}, weight {}", prior.ranker, prior.weight);
    if prior.llm_weight != 1.0 {
        text += &format!(", weight of the LLM {}", prior.llm_weight);
    }
    if let Some(fit) = &evaluation.fit {
        text += &format!(
            ", fitted and kept for the run: nats a window on valid are {:.4}, of the LLM alone {:.4}, of the ranker \
             alone {:.4}",
            fit.loss, fit.llm_alone, fit.ranker_alone
        );
    }
    if !evaluation.tried.is_empty() {
        let tried = evaluation.tried.iter().map(|t| format!("{:.4} at {}", t.ndcg_at_10, t.weight)).collect::<Vec<_>>();
        text += &format!(", kept for the run: NDCG@10 on valid is {}", tried.join(", "));
    }
    text + "\n"
}

/// Returns log-perplexity and semantic consistency, task by task.
pub(super) fn texts(evaluation: &TextEvaluation) -> String {
    let (tasks, mean) = (&evaluation.summary.tasks, &evaluation.summary.mean);
    let rows =
        tasks.iter().map(|(name, quality)| (name.as_str(), quality)).chain(mean.iter().map(|mean| ("mean", mean)));
    let line = |(name, quality): (&str, &TextQuality)| {
        let (rows, perplexity) = (quality.rows, quality.log_perplexity);
        format!("{name:25}  {rows:>6}  {perplexity:>14.4}  {:>20}\n", number(quality.semantic_consistency))
    };
    let header = format!("{:25}  {:>6}  {:>14}  {:>20}\n", "task", "rows", "log-perplexity", "semantic consistency");
    format!("{header}{}{:.2} rows/s\n", rows.map(line).collect::<String>(), evaluation.rows_per_second)
}

/// Returns the items, best first.
pub(super) fn recommendations(items: &[Recommendation]) -> String {
    items.iter().map(|i| format!("{:>3}  {:>9.4}  {}\n", i.rank, i.log_prob, i.title)).collect()
}

/// Text of the report on recommendations for many users.
pub(super) fn bulk(report: &BulkReport) -> String {
    let resumed = match report.resumed {
        0 => String::new(),
        users => format!(", {users} of them before"),
    };
    let shortened = match report.shortened {
        0 => String::new(),
        users => format!("note: the prompts of {users} users do not show their oldest items\n"),
    };
    format!(
        "{shortened}{}: {} users{resumed}, {} rows; {:.0} s, {:.2} users/s\n",
        report.out.display(),
        report.users,
        report.rows,
        report.seconds,
        report.users_per_second
    )
}

/// Returns NDCG and HR with 95 % intervals, and cold and warm NDCG@10.
pub(super) fn table(rows: &[(&str, &Summary)]) -> String {
    let cell = |group: &Group, metric: &str| match (group.metric(metric), group.intervals.get(metric)) {
        (Some(value), Some([low, high])) => format!("{value:.4} [{low:.4}, {high:.4}]"),
        _ => "-".to_string(),
    };
    let plain = |group: &Group| group.metric("ndcg@10").map_or("-".to_string(), |v| format!("{v:.4}"));
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!(
        "95 % bootstrap intervals in brackets.\n{:width$}  {:24}  {:24}  {:24}  {:>8}  {:>8}\n",
        "", "NDCG@5", "NDCG@10", "HR@10", "cold N10", "warm N10"
    );
    for (name, summary) in rows {
        text += &format!(
            "{name:width$}  {:24}  {:24}  {:24}  {:>8}  {:>8}\n",
            cell(&summary.all, "ndcg@5"),
            cell(&summary.all, "ndcg@10"),
            cell(&summary.all, "hr@10"),
            plain(&summary.cold),
            plain(&summary.warm)
        );
    }
    text
}

/// Returns four digits, or a dash if no step ran.
fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::FirstLast;

    /// On a terminal the dashboard has closed by then, and had no line for it.
    #[test]
    fn a_notice_is_shown_at_the_end() {
        let report = TrainReport {
            run: "runs/office".into(),
            steps: 1,
            total_steps: 2,
            samples: 8,
            seconds: 1.0,
            samples_per_second: 8.0,
            peak_memory_bytes: 1 << 20,
            loss: FirstLast { first: Some(1.0), last: Some(0.5) },
            temperature: 1.5,
            valid_ndcg_at_10: None,
            validation: String::new(),
            notice: Some("the adaptive temperature stays at 1.5".into()),
        };
        let text = train_report(&report);
        assert!(text.starts_with("note: the adaptive temperature stays at 1.5\nruns/office: 1 of 2 steps"), "{text}");
    }
}
