//! The HTML page: what every section says.
//!
//! All text from data goes through [`text`]. The page has no script and asks for nothing outside
//! itself; its content security policy forbids both.

use std::fmt::Write;

use super::curves::{Against, NAMED};
use super::examples::ExampleUser;
use super::plots::{DotRow, Series, Value, dots, lines};
use super::provenance::{Provenance, RunLine};
use crate::Result;
use crate::experiment::{
    COLUMNS, ExperimentReport, Interval, PRIMARY, PRIMARY_COLUMN, Row, Standing, TableRow, legend, table_rows,
    unfinished,
};

/// Lists of a user that are open; those of further rows are folded.
const MOST_LISTS: usize = 12;

const STYLE: &str = include_str!("report.css");

/// Contents of a page.
pub(super) struct Page<'a> {
    /// Its heading.
    pub title: String,
    /// A sentence below the heading; empty for none.
    pub lead: String,
    /// The results.
    pub report: &'a ExperimentReport,
    /// Loss by optimiser step.
    pub losses: Vec<Series>,
    /// The metric against settings.
    pub against: Vec<Against>,
    /// Users, and what was recommended to them.
    pub users: Vec<ExampleUser>,
    /// Origin of the numbers.
    pub provenance: Provenance,
}

/// Escapes text for HTML; what is no character to show is not shown.
pub(super) fn text(text: &str) -> String {
    html_escape::encode_text(&text.replace(char::is_control, " ")).into_owned()
}

impl Page<'_> {
    /// Returns the page.
    ///
    /// # Errors
    /// A plot that cannot be drawn.
    pub fn html(&self) -> Result<String> {
        let sections = [
            ("results", "Results", self.results()?),
            ("settings", "Against the settings", self.settings()?),
            ("targets", "Cold and warm targets", self.targets()?),
            ("recommended", "What is recommended", self.recommended()),
            ("curves", "Learning curves", self.curves()?),
            ("comparisons", "Comparisons", self.comparisons()),
            ("users", "Some users", self.some_users()),
            ("provenance", "Where this comes from", self.provenance()),
        ];
        let sections: Vec<_> = sections.into_iter().filter(|(_, _, body)| !body.is_empty()).collect();
        let links: String = sections.iter().map(|(id, title, _)| format!("<a href=\"#{id}\">{title}</a> ")).collect();
        let body: String = sections
            .iter()
            .map(|(id, title, body)| {
                format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{body}</section>\n")
            })
            .collect();
        let title = text(&self.title);
        let lead = if self.lead.is_empty() { String::new() } else { format!("<p>{}</p>\n", text(&self.lead)) };
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
             content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n{lead}<nav \
             aria-label=\"Sections\">{links}</nav>\n</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
        ))
    }

    fn results(&self) -> Result<String> {
        let row = |row: &Row| DotRow { name: row.name.clone(), values: vec![row.metrics.get(PRIMARY).map(value)] };
        let rows: Vec<DotRow> = self.report.rows().map(row).collect();
        let name = format!("{} of every row with its 95 % interval", PRIMARY.to_uppercase());
        let plot = match rows.len() {
            0 | 1 => None,
            _ => dots(&name, &PRIMARY.to_uppercase(), &[&PRIMARY.to_uppercase()], &rows)?,
        };
        let legend: String =
            legend(self.report).iter().map(|line| format!("<p class=\"soft\">{}</p>\n", text(line))).collect();
        Ok(figure(plot, &name) + &self.table() + &legend)
    }

    fn table(&self) -> String {
        let headings: String =
            COLUMNS.iter().map(|(heading, ..)| format!("<th scope=\"col\">{heading}</th>")).collect();
        let mut html = format!(
            "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\" class=\"left\"></th><th scope=\"col\" \
             class=\"left\">row</th>{headings}<th scope=\"col\">runs</th></tr></thead>\n<tbody>\n"
        );
        let baselines = self.report.baselines.len();
        for (index, row) in table_rows(self.report).into_iter().enumerate() {
            if index == baselines && baselines > 0 {
                let columns = COLUMNS.len() + 3;
                _ = writeln!(html, "<tr class=\"group\"><td colspan=\"{columns}\"></td></tr>");
            }
            html += &table_line(&row);
        }
        html + "</tbody>\n</table></div>\n"
    }

    fn settings(&self) -> Result<String> {
        let mut html = String::new();
        for Against { key, series } in &self.against {
            let name = format!("{} by {key}, with 95 % intervals", PRIMARY.to_uppercase());
            html += &figure(lines(&name, key, &PRIMARY.to_uppercase(), series)?, &(name.clone() + &grey(series)));
        }
        Ok(html)
    }

    fn targets(&self) -> Result<String> {
        let row = |row: &Row| DotRow {
            name: row.name.clone(),
            values: vec![row.warm.get(PRIMARY).map(value), row.cold.get(PRIMARY).map(value)],
        };
        let rows: Vec<DotRow> =
            self.report.rows().map(row).filter(|row| row.values.iter().any(Option::is_some)).collect();
        let name = format!(
            "{} on windows with a warm and with a cold target (one that is in no training window), with 95 % intervals",
            PRIMARY.to_uppercase()
        );
        Ok(figure(dots(&name, &PRIMARY.to_uppercase(), &["warm", "cold"], &rows)?, &name))
    }

    fn curves(&self) -> Result<String> {
        let name = "Training loss by optimiser step";
        let caption =
            format!("{name}, the mean over a row's seeds. Losses of different kinds are on different scales.");
        Ok(figure(lines(name, "optimiser step", "loss", &self.losses)?, &(caption + &grey(&self.losses))))
    }

    /// Coverage, popularity and the like, as `evaluate` measures them.
    fn recommended(&self) -> String {
        let mut names: Vec<&String> = self.report.rows().flat_map(|row| row.list_metrics.keys()).collect();
        names.sort_by_key(|name| (name.rsplit('@').next().and_then(|k| k.parse::<usize>().ok()), name.as_str()));
        names.dedup();
        // The longest lists tell the most; one cutoff is enough for a table.
        let last = names.last().and_then(|name| name.rsplit('@').next()).map(String::from);
        names.retain(|name| name.rsplit('@').next().map(String::from) == last);
        if names.is_empty() {
            return String::new();
        }
        let heading = |name: &&String| format!("<th scope=\"col\">{}</th>", text(name));
        let headings: String = names.iter().map(heading).collect();
        let mut html = format!(
            "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\" \
             class=\"left\">row</th>{headings}</tr></thead>\n<tbody>\n"
        );
        for row in self.report.rows().filter(|row| !row.list_metrics.is_empty()) {
            let cell = |name: &&String| match row.list_metrics.get(*name) {
                Some(value) if value.abs() >= 100.0 => format!("<td>{value:.0}</td>"),
                Some(value) if value.abs() >= 10.0 => format!("<td>{value:.1}</td>"),
                Some(value) => format!("<td>{value:.3}</td>"),
                None => "<td>–</td>".into(),
            };
            let cells: String = names.iter().map(cell).collect();
            _ = writeln!(html, "<tr><th scope=\"row\">{}</th>{cells}</tr>", text(&row.name));
        }
        html + "</tbody>\n</table></div>\n<p class=\"soft\">Coverage: share of the titles that are recommended at \
                all. Gini: 0 where all titles are recommended equally often, near 1 where a few always are. \
                Popularity: mean training interactions of a recommended item. Novelty: its mean self-information, \
                bits. Similarity: mean cosine of the titles within a list.</p>\n"
    }

    fn comparisons(&self) -> String {
        let comparisons = &self.report.comparisons;
        if comparisons.is_empty() {
            return String::new();
        }
        let mut order: Vec<_> = comparisons.iter().collect();
        order.sort_by(|a, b| a.all.p_holm.total_cmp(&b.all.p_holm).then(a.all.p.total_cmp(&b.all.p)));
        let mut html = format!(
            "<details{}><summary>{} pairs by {}</summary>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\" \
             class=\"left\">row</th><th scope=\"col\" class=\"left\">against</th><th \
             scope=\"col\">difference</th><th scope=\"col\">95 % interval</th><th scope=\"col\">d<sub>z</sub></th>\
             <th scope=\"col\">p</th><th scope=\"col\">p after Holm</th><th scope=\"col\">users</th></tr></thead>\n\
             <tbody>\n",
            if comparisons.len() <= 12 { " open" } else { "" },
            comparisons.len(),
            text(&PRIMARY.to_uppercase())
        );
        for c in order {
            let d = &c.all;
            let dz = d.cohens_dz.map_or("–".into(), |dz| format!("{dz:+.3}"));
            _ = writeln!(
                html,
                "<tr><th scope=\"row\">{}</th><td class=\"left\">{}</td><td>{:+.4}</td><td>[{:+.4}, \
                 {:+.4}]</td><td>{dz}</td><td>{:.4}</td><td>{}</td><td>{}</td></tr>",
                text(&c.a),
                text(&c.b),
                d.difference,
                d.low,
                d.high,
                d.p,
                if d.p_holm < 0.05 { format!("<b>{:.4}</b>", d.p_holm) } else { format!("{:.4}", d.p_holm) },
                d.users
            );
        }
        html += "</tbody>\n</table></div></details>\n";
        html + "<p class=\"soft\">Difference of the means (row less against), its bootstrap interval over users, \
                Cohen's d for pairs, and the two-sided p of the paired randomisation test.</p>\n"
    }

    fn some_users(&self) -> String {
        self.users.iter().map(example).collect()
    }

    fn provenance(&self) -> String {
        let Provenance { facts, runs, .. } = &self.provenance;
        let mut html = String::from("<div class=\"scroll\"><table>\n<tbody>\n");
        for (name, fact) in facts {
            let time = if fact.is_time { " class=\"left wrap time\"" } else { " class=\"left wrap\"" };
            _ = writeln!(html, "<tr><th scope=\"row\">{}</th><td{time}>{}</td></tr>", text(name), text(&fact.text));
        }
        html += "</tbody>\n</table></div>\n";
        _ = write!(
            html,
            "<details><summary>{} runs</summary>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\" \
             class=\"left\">directory</th><th scope=\"col\">steps</th><th scope=\"col\">hours of training</th><th \
             scope=\"col\" class=\"left\">run file and corpus</th><th scope=\"col\" \
             class=\"left\">model</th></tr></thead>\n<tbody>\n",
            runs.len()
        );
        for RunLine { dir, steps, hours, key, model } in runs {
            _ = writeln!(
                html,
                "<tr><th scope=\"row\">{}</th><td>{steps}</td><td class=\"time\">{hours:.3}</td><td \
                 class=\"left\"><code>{}</code></td><td class=\"left\"><code>{}</code></td></tr>",
                text(dir),
                text(key),
                text(model)
            );
        }
        html + "</tbody>\n</table></div></details>\n"
    }
}

fn table_line(TableRow { letter, row, beaten, values }: &TableRow) -> String {
    let cell = |(column, value): (usize, &Option<(Interval, Standing)>)| {
        let Some((Interval { mean, low, high }, place)) = value else { return "<td>–</td>".to_string() };
        let mean = match place {
            Standing::Best => format!("<b>{mean:.4}</b>"),
            Standing::Second => format!("<span class=\"second\">{mean:.4}</span>"),
            Standing::Other => format!("{mean:.4}"),
        };
        let raised = match COLUMNS[column] == PRIMARY_COLUMN && !beaten.is_empty() {
            true => format!("<sup title=\"beats these rows significantly\">{}</sup>", beaten.join(" ")),
            false => String::new(),
        };
        format!("<td>{mean}{raised}<span class=\"interval\">[{low:.4}, {high:.4}]</span></td>")
    };
    let cells: String = values.iter().enumerate().map(cell).collect();
    let notes: String =
        unfinished(row).iter().map(|note| format!("<span class=\"interval failed\">{}</span>", text(note))).collect();
    let done = row.runs.iter().filter(|run| run.summary.is_some()).count();
    format!(
        "<tr><td class=\"left\">{letter}</td><th scope=\"row\">{}{notes}</th>{cells}<td>{done}</td></tr>\n",
        text(&row.name)
    )
}

fn value(interval: &Interval) -> Value {
    Value { mean: interval.mean, low: interval.low, high: interval.high }
}

fn figure(svg: Option<String>, caption: &str) -> String {
    let Some(svg) = svg else { return String::new() };
    format!("<figure>\n<div class=\"scroll\">\n{svg}</div>\n<figcaption>{}</figcaption>\n</figure>\n", text(caption))
}

fn grey(series: &[Series]) -> String {
    let others = series.iter().filter(|series| series.name.is_none()).count();
    if others == 0 { String::new() } else { format!(" The {NAMED} best have a colour, {others} others are grey.") }
}

fn example(user: &ExampleUser) -> String {
    let history: Vec<String> = user.history.iter().map(|title| text(title)).collect();
    let mut html = format!(
        "<div class=\"user\">\n<h3>User {}</h3>\n<p>{}</p>\n<p>Then: <b>{}</b></p>\n<div class=\"tops\">\n",
        text(&user.user),
        history.join(" · "),
        text(&user.target)
    );
    let (first, more) = user.tops.split_at(user.tops.len().min(MOST_LISTS));
    html.extend(first.iter().map(|(name, titles)| list(name, titles, &user.target)));
    html += "</div>\n";
    if !more.is_empty() {
        let lists: String = more.iter().map(|(name, titles)| list(name, titles, &user.target)).collect();
        _ = writeln!(
            html,
            "<details><summary>{} more rows</summary>\n<div class=\"tops\">\n{lists}</div></details>",
            more.len()
        );
    }
    html + "</div>\n"
}

/// A row's list for a user; the target is marked.
fn list(name: &str, titles: &[String], target: &str) -> String {
    let item = |title: &String| match title == target {
        true => format!("<li class=\"hit\">{} ✓</li>", text(title)),
        false => format!("<li>{}</li>", text(title)),
    };
    let items: String = titles.iter().map(item).collect();
    format!("<div><h4>{}</h4><ol>{items}</ol></div>\n", text(name))
}
