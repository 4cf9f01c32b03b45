//! The estimate of a run's memory as text.

use super::doctor::size;
use super::inspect::escape;
use crate::commands::PlanReport;
use crate::run::LargestMicroBatch;

/// Returns the whole report.
pub(super) fn text(report: &PlanReport) -> String {
    let PlanReport { backend, precision, parameters, weights, step, memory, .. } = report;
    let mut text = format!(
        "{backend}, {precision}: {} parameters trained, {} frozen; the largest of {} of {} steps an epoch\n\n",
        millions(parameters.trained),
        millions(parameters.frozen),
        report.steps_planned,
        report.steps_per_epoch
    );
    let mut line =
        |what: &str, bytes: u64, more: String| text += &format!("{what:<18} {:>10}  {more}\n", size(Some(bytes)));
    let parts = [
        ("projections", weights.projections),
        ("embeddings and norms", weights.embeddings),
        ("head", weights.head),
        ("adapters", weights.adapters),
        ("items' and users' encoder", weights.encoder),
    ];
    let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", size(Some(*bytes)))).collect();
    line("weights", weights.total(), parts.join(", "));
    line("optimiser state", report.optimizer_bytes, "AdamW's two moments of all that trains".into());
    line("program", report.program_bytes, "with corpus, titles and tokenizer, as now".into());
    let cut = match report.micro_batch_tokens {
        Some(tokens) => format!("train.micro_batch_tokens = {tokens}"),
        None => "train.micro_batch_size".into(),
    };
    let checkpointing = if report.gradient_checkpointing { ", gradient checkpointing" } else { "" };
    line("gradients", step.gradients, "of all that trains".into());
    line(
        "activations",
        step.activations,
        format!("{} tokens below {} that a step shares, by {cut}{checkpointing}", step.tokens, step.shared_prefix),
    );
    line("temporary", step.temporary, "beside them, at a step's peak".into());
    line("between steps", report.between_steps_bytes, "the optimiser's step, in place of the three above".into());
    if let Some(ranking) = report.ranking {
        let more =
            format!("{} validation prompts together: keys and values {}", ranking.prompts, size(Some(ranking.cache)));
        line("ranking", ranking.cache + ranking.temporary, more);
    }
    line("allocator", report.allocator_bytes, "freed, kept, and too small to be used again".into());
    let verdict = match report.fits {
        Some(true) => "fits into",
        Some(false) => "DOES NOT FIT into",
        None => "not known to fit:",
    };
    let available = memory.bytes.map_or(String::new(), |bytes| format!(" {},", size(Some(bytes))));
    line("at most", report.peak_bytes, format!("{verdict}{available} {}", escape(&memory.of)));
    if let Some(limit) = memory.largest_tensor_bytes {
        let verdict = if step.largest_tensor > limit { "TOO LARGE for" } else { "fits into" };
        line("largest tensor", step.largest_tensor, format!("{verdict} the device's buffers of {}", size(Some(limit))));
    }
    if backend.to_string() != "cpu" {
        text += "\nActivations are counted as the CPU backend keeps them; other devices run some operations as \
                 several, and keep more.\n";
    }
    text + &report.largest.as_ref().map_or_else(String::new, |largest| {
        let lines: Vec<String> = largest.iter().map(largest_text).collect();
        let what = if backend.to_string() == "cpu" { "that fits" } else { "that may fit" };
        format!("\nthe largest train.micro_batch_tokens {what}\n{}", lines.concat())
    })
}

fn largest_text(found: &LargestMicroBatch) -> String {
    let with =
        if found.gradient_checkpointing { "with gradient checkpointing" } else { "without gradient checkpointing" };
    let peak = size(Some(found.peak_bytes));
    match found.micro_batch_tokens {
        None => format!("  {with:<31} none: a sample at a time takes {peak}\n"),
        Some(tokens) if found.whole_step => format!("  {with:<31} {tokens:>8}, a whole step: {peak} at most\n"),
        Some(tokens) => format!("  {with:<31} {tokens:>8}: {peak} at most\n"),
    }
}

fn millions(numbers: u64) -> String {
    match numbers {
        0..1_000_000 => numbers.to_string(),
        _ => format!("{:.1} million", numbers as f64 / 1e6),
    }
}
