//! The reports of `doctor` as text.
//!
//! Names come from drivers and must not move the cursor, so control characters are escaped.

use std::path::Path;

use super::inspect::escape;
use crate::commands::{BackendReport, DoctorReport, Status, WarmReport};
use crate::device::{Adapter, ProductRate};
use crate::run::Check;

/// Returns the whole report.
pub(super) fn text(report: &DoctorReport) -> String {
    let host = &report.host;
    let mut text = format!("itemlm {}, burn {}\n", report.itemlm, report.burn);
    let limit = host.limit_bytes.map_or(String::new(), |bytes| format!(", limited to {}", size(Some(bytes))));
    text += &format!(
        "{}, {}, {} threads, memory {}, {} available{limit}\n",
        host.system,
        host.instruction_set,
        host.threads,
        size(host.memory_bytes),
        size(host.available_bytes)
    );
    if report.tuned {
        text += &format!("kernels of wgpu and cuda: {}\n", kernels(report.tuned, report.kernels.as_deref()));
    }
    report.backends.iter().for_each(|report| text += &backend(report));
    text
}

fn kernels(tuned: bool, dir: Option<&Path>) -> String {
    let kind = if tuned { "fused and tuned" } else { "plain, not kept" };
    let kept = dir.map_or(String::new(), |dir| format!(", choices kept in {}", escape(&dir.display().to_string())));
    format!("{kind}{kept}")
}

/// Returns the report of `doctor --warm`.
pub(super) fn warm_report(report: &WarmReport) -> String {
    let mut text = format!(
        "{}, {}: kernels {}\n",
        report.backend,
        report.precision,
        kernels(report.tuned, report.kernels.as_deref())
    );
    if let Some(seconds) = report.ranking_seconds {
        text += &format!("  ranking validation windows took {seconds:.1} s\n");
    }
    for (n, step) in report.steps.iter().enumerate() {
        text += &format!(
            "  step {}  {:>6.1} s  loss {:.6}  gradient norm {:.6}",
            n + 1,
            step.seconds,
            step.loss,
            step.grad_norm
        );
        if let Some(cpu) = report.cpu.get(n) {
            text += &format!("  (cpu {:>6.1} s  {:.6}  {:.6})", cpu.seconds, cpu.loss, cpu.grad_norm);
        }
        text += "\n";
    }
    text += &match report.max_relative_difference {
        Some(difference) => {
            let verdict = if report.passed == Some(true) { "ok" } else { "FAILED" };
            format!(
                "  largest difference from the CPU {difference:.1e} (at most {:e} passes)  {verdict}\n",
                report.tolerance
            )
        }
        None => "  not compared with the CPU: each device draws the Q-Former's dropout for itself\n".into(),
    };
    text
}

fn backend(report: &BackendReport) -> String {
    let status = match report.status {
        Status::NotCompiled => "not compiled",
        Status::NoDevice => "no device",
        Status::Passed => "ok",
        Status::Failed => "FAILED",
    };
    let reason = report.reason.as_ref().map_or(String::new(), |reason| format!(": {}", escape(reason)));
    let mut text = format!("\n{}  {status}{reason}\n", report.name);
    report.adapters.iter().for_each(|found| text += &adapter(found));
    if let Some(rate) = report.matmul {
        text += &format!(
            "  matrix product {:>10.1} GFLOP/s  {} × {1}, {2}\n",
            rate.gflops,
            rate.rows,
            if rate.tf32 { "TF32" } else { "f32" }
        );
    }
    for ProductRate { m, k, n, gflops } in &report.step_products {
        text += &format!("    of a training step {gflops:>6.1} GFLOP/s  [{m}, {k}] · [{k}, {n}]\n");
    }
    if let Some(rate) = report.copy {
        text += &format!(
            "  copy           {:>10.1} GB/s     {} MiB, read and written\n",
            rate.gb_per_second,
            rate.bytes >> 20
        );
    }
    if let Some(Check { tolerance, .. }) = report.checks.first() {
        text += &format!(
            "  self-check, the largest difference as a share of the largest value (at most {tolerance:e} passes)\n"
        );
    }
    for Check { name, against, max_relative_difference, passed, .. } in &report.checks {
        let verdict = if *passed { "ok" } else { "FAILED" };
        text += &format!("    {name:<9} {max_relative_difference:>10.1e}  {verdict}, against {against}\n");
    }
    text
}

fn adapter(found: &Adapter) -> String {
    let Adapter { index, id, name, kind, api, driver, memory_bytes, largest_buffer_bytes, used } = found;
    let kind = if kind == "software" { "software, runs on the CPU" } else { kind };
    let memory = memory_bytes.map_or(String::new(), |bytes| format!(", memory {}", size(Some(bytes))));
    let largest = largest_buffer_bytes.map_or(String::new(), |bytes| format!(", tensors up to {}", size(Some(bytes))));
    let used = if *used { "  <- in use" } else { "" };
    let (name, driver) = (escape(name), escape(driver));
    format!("  {index}: {name} ({kind}; {api}, {driver}{memory}{largest}; {id}){used}\n")
}

pub(super) fn size(bytes: Option<u64>) -> String {
    match bytes {
        None => "unknown".into(),
        Some(bytes) if bytes < 1 << 30 => format!("{} MiB", bytes >> 20),
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Host;
    use crate::device::BackendName;
    use crate::device::{CopyRate, MatmulRate};

    #[test]
    fn drivers_cannot_move_the_cursor() {
        let check = |name, passed| Check {
            name,
            against: "the CPU",
            max_difference: 0.5,
            max_relative_difference: if passed { 2e-6 } else { f64::INFINITY },
            tolerance: 1e-4,
            passed,
        };
        let adapter = Adapter {
            index: 0,
            id: "Cpu".into(),
            name: "llvm\u{1b}[2Jpipe".into(),
            kind: "software".into(),
            api: "Vulkan".into(),
            driver: "Mesa\r\n".into(),
            memory_bytes: None,
            largest_buffer_bytes: Some(128 << 20),
            used: true,
        };
        let report = DoctorReport {
            itemlm: "1".into(),
            burn: "2".into(),
            host: Host {
                system: "linux".into(),
                threads: 2,
                instruction_set: "AVX2".into(),
                memory_bytes: Some(3 << 30),
                available_bytes: None,
                limit_bytes: Some(2 << 30),
            },
            tuned: true,
            kernels: Some("/home/a\u{7}/.cache".into()),
            backends: vec![BackendReport {
                name: BackendName::Wgpu,
                status: Status::Failed,
                reason: Some("gone\u{7}".into()),
                adapters: vec![adapter],
                matmul: Some(MatmulRate { rows: 256, gflops: 1.25, tf32: false }),
                copy: Some(CopyRate { bytes: 64 << 20, gb_per_second: 10.0 }),
                step_products: Vec::new(),
                checks: vec![check("forward", true), check("gradient", false)],
            }],
            passed: false,
        };
        let text = text(&report);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        for shown in [
            "memory 3.0 GiB, unknown available, limited to 2.0 GiB\n",
            "kernels of wgpu and cuda: fused and tuned, choices kept in /home/a\\u{7}/.cache\n",
            "\nwgpu  FAILED: gone\\u{7}\n",
            "  0: llvm\\u{1b}[2Jpipe (software, runs on the CPU; Vulkan, Mesa\\r\\n, tensors up to 128 MiB; Cpu)  <- \
             in use\n",
            "       1.2 GFLOP/s  256 × 256, f32\n",
            "forward       2.0e-6  ok, against the CPU\n",
            "gradient         inf  FAILED, against the CPU\n",
        ] {
            assert!(text.contains(shown), "{shown:?} is not in {text}");
        }
    }
}
