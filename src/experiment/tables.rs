//! The results as CSV, Markdown and LaTeX.

use super::results::{ExperimentReport, Interval, PRIMARY, Row, RunResult, Spread, Status};
use crate::evaluate::Summary;
use crate::{Context, Result};

/// The columns of the tables for people: a heading, the windows and the metric.
pub(crate) const COLUMNS: [(&str, Targets, &str); 6] = [
    ("NDCG@5", Targets::All, "ndcg@5"),
    ("NDCG@10", Targets::All, "ndcg@10"),
    ("HR@5", Targets::All, "hr@5"),
    ("HR@10", Targets::All, "hr@10"),
    ("cold NDCG@10", Targets::Cold, "ndcg@10"),
    ("warm NDCG@10", Targets::Warm, "ndcg@10"),
];

/// Windows that a column is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Targets {
    /// All windows.
    All,
    /// Windows with a cold target.
    Cold,
    /// Windows with a warm target.
    Warm,
}

impl Targets {
    /// Returns a metric of a row.
    pub fn metric(self, row: &Row, metric: &str) -> Option<Interval> {
        let metrics = match self {
            Self::All => &row.metrics,
            Self::Cold => &row.cold,
            Self::Warm => &row.warm,
        };
        metrics.get(metric).copied()
    }
}

/// Standing of a value in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The best value.
    Best,
    /// The second best.
    Second,
    /// Any other.
    Other,
}

/// A row of the tables for people.
pub(crate) struct TableRow<'a> {
    /// Its letter, by which others say that they beat it.
    pub letter: String,
    /// The row.
    pub row: &'a Row,
    /// The letters of the rows that it beats significantly by [`PRIMARY`].
    pub beaten: Vec<String>,
    /// A value a column of [`COLUMNS`].
    pub values: Vec<Option<(Interval, Standing)>>,
}

/// Returns the rows of the tables, baselines first.
pub(crate) fn table_rows(report: &ExperimentReport) -> Vec<TableRow<'_>> {
    let rows: Vec<&Row> = report.rows().collect();
    let standings: Vec<Vec<Standing>> =
        COLUMNS.iter().map(|(_, targets, metric)| standings(&rows, *targets, metric)).collect();
    let table_row = |(index, row): (usize, &&'_ Row)| {
        let beaten = rows.iter().enumerate().filter(|(_, other)| report.beats(&row.name, &other.name));
        let value = |(column, (_, targets, metric)): (usize, &(&str, Targets, &str))| {
            Some((targets.metric(row, metric)?, standings[column][index]))
        };
        (
            letter(index),
            beaten.map(|(other, _)| letter(other)).collect(),
            COLUMNS.iter().enumerate().map(value).collect(),
        )
    };
    let made: Vec<_> = rows.iter().enumerate().map(table_row).collect();
    rows.iter().zip(made).map(|(&row, (letter, beaten, values))| TableRow { letter, row, beaten, values }).collect()
}

fn standings(rows: &[&Row], targets: Targets, metric: &str) -> Vec<Standing> {
    // As the tables print them: what looks equal has one place.
    let printed = |mean: f64| (mean * 1e4).round() / 1e4;
    let values: Vec<Option<f64>> = rows.iter().map(|row| Some(printed(targets.metric(row, metric)?.mean))).collect();
    let mut distinct: Vec<f64> = values.iter().flatten().copied().collect();
    distinct.sort_by(|a, b| b.total_cmp(a));
    distinct.dedup();
    let place = |value: &Option<f64>| match value.and_then(|value| distinct.iter().position(|&other| other == value)) {
        // A column in which all are equal has no best, and 0 is second to nothing.
        Some(0) if distinct.len() > 1 => Standing::Best,
        Some(1) if distinct[1] > 0.0 => Standing::Second,
        _ => Standing::Other,
    };
    values.iter().map(place).collect()
}

/// Returns a, b, … z, aa, ab, …
fn letter(index: usize) -> String {
    let last = char::from(b'a' + (index % 26) as u8);
    match index / 26 {
        0 => last.to_string(),
        more => letter(more - 1) + &last.to_string(),
    }
}

/// Returns what the tables' notations mean.
pub(crate) fn legend(report: &ExperimentReport) -> Vec<String> {
    let summary = report.rows().flat_map(|row| &row.runs).find_map(|run| run.summary.as_ref());
    let windows = summary.map_or(String::new(), |summary| format!(", {} windows", summary.all.users));
    let mut lines = vec![format!(
        "Split {}{windows}. Best in bold, second underlined. In brackets: 95 % intervals, over seeds by Student's t, \
         of rows with one run over users by the bootstrap.",
        report.split
    )];
    if !report.comparisons.is_empty() {
        lines.push(format!(
            "Raised letters: rows that this row beats by {} (paired randomisation test over users, p < 0.05 after \
             Holm's correction over {} comparisons).",
            PRIMARY.to_uppercase(),
            report.comparisons.len()
        ));
    }
    let mut reasons: Vec<&str> = report.not_compared.iter().map(|pair| pair.why.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    if !reasons.is_empty() {
        lines.push(format!("{} pairs were not compared: {}.", report.not_compared.len(), reasons.join("; ")));
    }
    lines
}

/// Returns what there is to say of a row's runs that are not done.
pub(crate) fn unfinished(row: &Row) -> Vec<String> {
    let name = |run: &RunResult| run.seed.map_or(String::new(), |seed| format!("seed {seed}: "));
    let say = |run: &RunResult| match run.status {
        Status::Done => None,
        Status::Failed => Some(format!("{}{}", name(run), run.why.as_deref().unwrap_or("failed"))),
        Status::Open => Some(format!("{}not finished", name(run))),
    };
    row.runs.iter().filter_map(say).collect()
}

/// Returns the results as CSV: a line a row, seed, kind of target and metric.
///
/// # Errors
/// None but those of memory.
pub(super) fn csv(report: &ExperimentReport) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |line: [&str; 9]| writer.write_record(line).context("results.csv");
    write(["kind", "name", "seed", "status", "targets", "metric", "value", "low", "high"])?;
    let kinds = [("baseline", &report.baselines), ("cell", &report.cells)];
    for (kind, row) in kinds.into_iter().flat_map(|(kind, rows)| rows.iter().map(move |row| (kind, row))) {
        for (targets, metrics) in [("all", &row.metrics), ("cold", &row.cold), ("warm", &row.warm)] {
            for (metric, interval) in metrics {
                let [value, low, high] = [interval.mean, interval.low, interval.high].map(|x| x.to_string());
                write([kind, &row.name, "", "mean", targets, metric, &value, &low, &high])?;
            }
        }
        for run in &row.runs {
            let seed = run.seed.map_or(String::new(), |seed| seed.to_string());
            let status = match run.status {
                Status::Done => "done".into(),
                Status::Failed => format!("failed: {}", run.why.as_deref().unwrap_or_default()),
                Status::Open => "not finished".to_string(),
            };
            let Some(Summary { all, cold, warm }) = &run.summary else {
                write([kind, &row.name, &seed, &status, "", "", "", "", ""])?;
                continue;
            };
            for (targets, group) in [("all", all), ("cold", cold), ("warm", warm)] {
                for (metric, value) in &group.metrics {
                    let [low, high] = group.intervals.get(metric).copied().unwrap_or([f64::NAN; 2]);
                    let [value, low, high] = [*value, low, high].map(|x| x.to_string());
                    write([kind, &row.name, &seed, &status, targets, metric, &value, &low, &high])?;
                }
            }
        }
    }
    writer.into_inner().context("results.csv")
}

/// Returns the results as a table in Markdown.
pub(super) fn markdown(report: &ExperimentReport) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*");
    let headings: Vec<&str> = COLUMNS.iter().map(|(heading, ..)| *heading).collect();
    let mut text = format!("| | | {} | seeds |\n|---|---|{}---|\n", headings.join(" | "), "---|".repeat(COLUMNS.len()));
    for TableRow { letter, row, beaten, values } in table_rows(report) {
        let cell = |(column, value): (usize, &Option<(Interval, Standing)>)| {
            let Some((Interval { mean, low, high }, place)) = value else { return "–".to_string() };
            let mean = match place {
                Standing::Best => format!("**{mean:.4}**"),
                Standing::Second => format!("<u>{mean:.4}</u>"),
                Standing::Other => format!("{mean:.4}"),
            };
            let raised = match COLUMNS[column] == PRIMARY_COLUMN && !beaten.is_empty() {
                true => format!("<sup>{}</sup>", beaten.join(",")),
                false => String::new(),
            };
            format!("{mean}{raised} [{low:.4}, {high:.4}]")
        };
        let cells: Vec<String> = values.iter().enumerate().map(cell).collect();
        let mut seeds = row.seeds.len().to_string();
        if row.intervals == Spread::Users && row.seeds.is_empty() {
            seeds = "–".into();
        }
        let notes: String = unfinished(row).iter().map(|note| format!("; {}", escape(note))).collect();
        text += &format!("| {letter} | {} | {} | {seeds}{notes} |\n", escape(&row.name), cells.join(" | "));
    }
    text + "\n" + &legend(report).join("\n\n") + "\n"
}

/// The column that holds the raised letters.
pub(crate) const PRIMARY_COLUMN: (&str, Targets, &str) = COLUMNS[1];

/// Returns the results as a table in LaTeX, for the package booktabs.
pub(super) fn latex(report: &ExperimentReport) -> String {
    let mut text = String::from("% needs \\usepackage{booktabs}\n\\begin{table}\n  \\centering\n");
    text += &format!("  \\begin{{tabular}}{{ll{}}}\n    \\toprule\n", "r".repeat(COLUMNS.len()));
    let headings: Vec<String> = COLUMNS.iter().map(|(heading, ..)| escape_latex(heading)).collect();
    text += &format!("    & & {} \\\\\n    \\midrule\n", headings.join(" & "));
    let baselines = report.baselines.len();
    for (index, TableRow { letter, row, beaten, values }) in table_rows(report).into_iter().enumerate() {
        if index == baselines && baselines > 0 {
            text += "    \\midrule\n";
        }
        let cell = |(column, value): (usize, &Option<(Interval, Standing)>)| {
            let Some((Interval { mean, low, high }, place)) = value else { return "--".to_string() };
            let mean = match place {
                Standing::Best => format!("\\textbf{{{mean:.4}}}"),
                Standing::Second => format!("\\underline{{{mean:.4}}}"),
                Standing::Other => format!("{mean:.4}"),
            };
            let raised = match COLUMNS[column] == PRIMARY_COLUMN && !beaten.is_empty() {
                true => format!("$^{{{}}}$", beaten.join(",")),
                false => String::new(),
            };
            format!("{mean}{raised} {{\\scriptsize [{low:.4}, {high:.4}]}}")
        };
        let cells: Vec<String> = values.iter().enumerate().map(cell).collect();
        text += &format!("    {letter} & {} & {} \\\\\n", escape_latex(&row.name), cells.join(" & "));
        for note in unfinished(row) {
            let columns = COLUMNS.len() + 1;
            text += &format!("    & \\multicolumn{{{columns}}}{{l}}{{\\scriptsize {}}} \\\\\n", escape_latex(&note));
        }
    }
    let caption: Vec<String> = legend(report).iter().map(|line| escape_latex(line)).collect();
    text + &format!("    \\bottomrule\n  \\end{{tabular}}\n  \\caption{{{}}}\n\\end{{table}}\n", caption.join(" "))
}

fn escape_latex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped += "\\textbackslash{}",
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '<' => escaped += "\\textless{}",
            '>' => escaped += "\\textgreater{}",
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            _ => escaped.push(c),
        }
    }
    escaped
}
