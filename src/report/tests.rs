//! The page as a whole.

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::evaluate::{Group, Outcome, Summary, summarise};
use crate::experiment::{Interval, Row, RunResult, Spread, Status};

/// A name that would be markup, a script and an outside request if it were not escaped.
const HOSTILE: &str =
    "</td><script src=\"http://e.example/x.js\">alert(1)</script><img src=x onerror=alert(1)> & \u{1b}[2J";

fn metrics(mean: f64) -> BTreeMap<String, Interval> {
    let of = |name: &str| (name.to_string(), Interval { mean, low: mean - 0.01, high: mean + 0.01 });
    ["ndcg@5", "ndcg@10", "hr@5", "hr@10"].map(of).into()
}

fn row(name: &str, mean: f64, why: Option<&str>) -> Row {
    let summary: Summary = summarise(&[Outcome { window: 0, user: 0, target: 0, cold: false, rank: Some(1) }], 1);
    let run = RunResult {
        seed: Some(1),
        dir: format!("cells/{}/seed-1", name.len()).into(),
        key: "0123456789abcdef".into(),
        corpus: "fedcba".into(),
        status: if why.is_some() { Status::Failed } else { Status::Done },
        why: why.map(String::from),
        summary: why.is_none().then_some(summary),
    };
    let values = if why.is_some() { BTreeMap::new() } else { metrics(mean) };
    Row {
        name: name.into(),
        set: BTreeMap::from([("loss.temperature".to_string(), mean.into())]),
        seeds: Vec::new(),
        intervals: Spread::Users,
        cold: values.clone(),
        warm: values.clone(),
        list_metrics: BTreeMap::from([("coverage@10".to_string(), 0.5), ("popularity@10".to_string(), 250.0)]),
        metrics: values,
        runs: vec![run],
    }
}

fn report(cells: Vec<Row>) -> ExperimentReport {
    ExperimentReport {
        run: "configs/office.toml".into(),
        split: Split::Test,
        limit: Some(200),
        baselines: vec![row("popularity", 0.02, None)],
        cells,
        comparisons: Vec::new(),
        not_compared: Vec::new(),
    }
}

/// Every element that is opened is closed, in the right order; the elements' names.
fn check_tags(html: &str) -> Vec<String> {
    const EMPTY: [&str; 2] = ["meta", "!doctype"];
    let (mut open, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    // The style sheet has no `<`.
    for part in html.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("unclosed: {part:.60}"));
        let name = tag.trim_start_matches('/').split_whitespace().next().unwrap().trim_end_matches('/').to_lowercase();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "{part:.80}");
        } else if !tag.ends_with('/') && !EMPTY.contains(&name.as_str()) {
            open.push(name.clone());
            all.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

#[test]
fn text_from_data_is_escaped_and_nothing_is_asked_for_outside() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join(format!("cells/{}/seed-1", HOSTILE.len()));
    fs::create_dir_all(&run).unwrap();
    let line = |step: usize| format!("{{\"step\":{step},\"loss\":{},\"seconds\":0.5}}\n", 3.0 / step as f64);
    fs::write(run.join("metrics.jsonl"), (1..20).map(line).collect::<String>()).unwrap();
    let report = report(vec![row(HOSTILE, 0.05, None), row("b", 0.07, None), row("c", 0.0, Some(HOSTILE))]);
    let html = experiment_page(folder.path(), &report).unwrap();
    let tags = check_tags(&html);
    assert!(!tags.iter().any(|tag| ["script", "img", "link", "iframe", "object"].contains(&tag.as_str())), "{tags:?}");
    assert!(!html.contains('\u{1b}') && html.contains("&lt;script src="));
    // The name of SVG's elements is the one address.
    assert_eq!(
        html.matches("://").count(),
        html.matches("http://www.w3.org/2000/svg").count() + html.matches("http://e.example").count()
    );
    assert!(!html.contains("href=\"http") && !html.contains("url(") && !html.contains("@import"));
    // Results, targets, curves: each plot has a role and a name.
    let plots = html.matches("<svg ").count();
    assert_eq!((plots, html.matches("role=\"img\" aria-label=\"").count()), (3, plots));
    assert_eq!(html.matches("<svg ").count() + 1, html.matches("<title>").count());
    for shown in ["1 runs failed", "coverage@10", "0.0700", "<td>250</td>", "Learning curves", "prefers-color-scheme"] {
        assert!(html.contains(shown), "{shown}");
    }
}

#[test]
fn fifty_cells_are_a_row_each() {
    let folder = tempfile::tempdir().unwrap();
    let cells = (0..50).map(|n| row(&format!("kind=msl,temperature={n}"), 0.02 + 0.001 * f64::from(n), None)).collect();
    let html = experiment_page(folder.path(), &report(cells)).unwrap();
    check_tags(&html);
    assert_eq!(html.matches("<th scope=\"row\">kind=msl,temperature=").count(), 2 * 50, "two tables of rows");
    assert!(html.len() < 600_000, "{} bytes", html.len());
}

#[test]
fn a_page_of_no_results_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = report_page(folder.path()).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("neither an experiment"), "{error}");
    let empty = report(vec![row("a", 0.0, Some("out of memory"))]);
    let empty = ExperimentReport { baselines: Vec::new(), ..empty };
    let html = experiment_page(folder.path(), &empty).unwrap();
    check_tags(&html);
    assert!(html.contains("out of memory") && !html.contains("<svg"), "{html}");
    assert_eq!(Group::default().users, 0);
}
