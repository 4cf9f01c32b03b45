//! The report of `train --profile` as text.

use crate::commands::ProfileReport;
use crate::core::profiler::{Part, Pass};

/// Returns the whole report.
pub(super) fn text(report: &ProfileReport) -> String {
    let ProfileReport { backend, threads, steps, warm_up, seconds_per_step, samples_per_step, .. } = report;
    let mut text = format!(
        "{steps} steps after {warm_up}, {backend}, {threads} threads: {seconds_per_step:.3} s a step, {:.2} \
         samples/s\n\n",
        samples_per_step / seconds_per_step
    );
    text += "part                   seconds   share     GFLOP   of peak\n";
    for part in &report.parts {
        let name = match part.part {
            Part::Data => "data",
            Part::Embedding => "embedding",
            Part::Attention => "attention",
            Part::Mlp => "MLP",
            Part::Loss => "loss",
            Part::Optimizer => "optimiser",
            Part::Rest => "rest",
        };
        let pass = match part.pass {
            None => "",
            Some(Pass::Forward) => "forward",
            Some(Pass::Backward) => "backward",
        };
        let of_peak = part.share_of_peak.map_or("-".to_string(), |share| format!("{:.1} %", 100.0 * share));
        text += &format!(
            "{name:<10} {pass:<8} {:>10.4} {:>5.1} % {:>9.2} {of_peak:>9}\n",
            part.seconds,
            100.0 * part.share,
            part.flops / 1e9
        );
    }
    text += &format!(
        "{:<19} {seconds_per_step:>10.4} 100.0 % {:>9.2} {:>7.1} %\n\n",
        "step",
        report.flops / 1e9,
        100.0 * report.share_of_peak
    );
    let (peak, tokens, plain) = (report.peak, report.tokens, report.plain_tokens);
    text + &format!(
        "peak: {:.1} GFLOP/s, a product of {} × {}, {}\n\
         tokens a step: {tokens:.0} run, {plain:.0} in a plain batch ({:.2} times as many)\n\
         memory: {} MiB at most\n",
        peak.gflops,
        peak.rows,
        peak.rows,
        report.precision,
        plain / tokens,
        report.peak_memory_bytes >> 20
    ) + &report.notice.as_ref().map_or_else(String::new, |notice| format!("note: {notice}\n"))
}
