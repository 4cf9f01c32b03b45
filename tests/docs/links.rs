//! Links of the pages, without the network: files, anchors, and paths of the repository in code.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use crate::{pages, read, root};

/// Returns a page's lines outside of fenced and indented code.
fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            lines.push(line);
        }
    }
    lines
}

/// Returns the spans of code in backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the anchor that GitHub and mdBook give a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c.to_lowercase().to_string()),
        c if c.is_whitespace() => Some("-".to_string()),
        _ => None,
    });
    kept.collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let headings = prose(text).into_iter().filter(|l| l.starts_with('#'));
    let name = |heading: &str| {
        // A link in a heading counts by its text.
        let heading = heading.trim_start_matches('#').replace('`', "");
        slug(&heading)
    };
    headings
        .map(|heading| {
            let slug = name(heading);
            let count = seen.entry(slug.clone()).or_default();
            *count += 1;
            if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
        })
        .collect()
}

/// Returns the targets of the links and pictures of a page.
fn targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for line in prose(text) {
        let line = without_code_but_keep_links(line);
        let mut rest = line.as_str();
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            targets.push(rest[..end].trim().to_string());
            rest = &rest[end..];
        }
    }
    targets
}

/// Returns a line whose code spans cannot be taken for links: `[` and `]` in them are dropped.
fn without_code_but_keep_links(line: &str) -> String {
    let spans = line.split('`').enumerate();
    spans.map(|(n, span)| if n % 2 == 1 { span.replace(['[', ']'], "") } else { span.to_string() }).collect()
}

/// Returns `path` without `.` and `..`, or `None` where it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop().then_some(())?;
            }
            Component::Normal(name) => parts.push(name),
            _ => {}
        }
    }
    Some(parts)
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for target in targets(&text) {
            if target.starts_with("https://") || target.starts_with("http://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let goal = match file.is_empty() {
                true => Some(page.clone()),
                false => normal(&page.parent().unwrap().join(file)),
            };
            let mut complain = |why: &str| broken.push(format!("{}: ({target}) {why}", page.display()));
            let Some(goal) = goal.filter(|goal| root().join(goal).exists()) else {
                complain("is not there");
                continue;
            };
            if page.starts_with("docs") && !goal.starts_with("docs") {
                complain("leaves the book, where it would be broken: name the file in code instead");
            }
            if page.starts_with("docs") && !page.ends_with("SUMMARY.md") && goal.ends_with("README.md") {
                complain("is broken in the book, where a README.md becomes index.html");
            }
            if !anchor.is_empty() && !anchors(&read(&goal)).contains(anchor) {
                complain("has no such heading");
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_summary_lists_every_page_of_the_book() {
    let listed: BTreeSet<PathBuf> = targets(&read(Path::new("docs/SUMMARY.md")))
        .iter()
        .filter_map(|t| normal(&Path::new("docs").join(t)))
        .collect();
    for page in pages().into_iter().filter(|p| p.starts_with("docs") && !p.ends_with("SUMMARY.md")) {
        assert!(listed.contains(&page), "docs/SUMMARY.md does not list {}", page.display());
    }
}

/// A path such as `src/loss/` in a page's prose is a file or folder of the repository.
#[test]
fn paths_in_the_pages_exist() {
    let folders = ["src/", "tests/", "configs/", "assets/", "benches/", "docs/", ".ci/"];
    let mut missing = Vec::new();
    // A changelog and dated experiments name what was there then.
    let dated = |page: &Path| page.ends_with("CHANGELOG.md") || page.starts_with("docs/experiments");
    for page in pages().into_iter().filter(|p| !dated(p)) {
        let text = read(&page);
        for line in prose(&text) {
            for span in code_spans(line) {
                let path = span.split(['*', '{', ' ', ':', '<']).next().unwrap_or_default();
                if folders.iter().any(|folder| span.starts_with(folder)) && path == span && !root().join(path).exists()
                {
                    missing.push(format!("{}: `{span}`", page.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no such files:\n{}", missing.join("\n"));
}

#[test]
fn slugs_and_targets() {
    assert_eq!(slug(" A run's files: `run.toml`, 2 ways"), "a-runs-files-runtoml-2-ways");
    let text = "# A\n# A\n```\n# no\n[x](no)\n```\n[a](b.md#c) `x[1](no)` ![p](q.svg)\n";
    assert_eq!(anchors(text), ["a", "a-1"].map(String::from).into());
    assert_eq!(targets(text), ["b.md#c", "q.svg"]);
    assert_eq!(normal(Path::new("docs/a/../b.md")), Some("docs/b.md".into()));
    assert_eq!(normal(Path::new("../b.md")), None);
}
