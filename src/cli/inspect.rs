//! A corpus's statistics, histograms and examples as text of at most 100 columns.
//!
//! Names, titles and ids come from the data and must not move the cursor, so control characters are
//! escaped.

use crate::commands::{Bin, ExampleWindow, Inspection, LabelledToken, MASKED, Spread};

const COLUMNS: usize = 100;
const LONGEST_BAR: usize = 50;
/// Longest token, in columns; a longer one is cut.
const LONGEST_TOKEN: usize = 40;

/// Returns the whole report.
pub(super) fn text(report: &Inspection) -> String {
    let mut out = Lines::default();
    out.push_wrapped("", "  ", &format!("{}: {}", report.name, report.source));
    out.push_wrapped("", "  ", &format!("Written by {}. {}", report.software, report.validation));
    if !report.steps.is_empty() {
        out.line(format!("\n{:<24}{:>12}{:>12}", "Steps", "before", "after"));
    }
    for step in &report.steps {
        let name = fit(&step.name, 20);
        let padding = " ".repeat(22usize.saturating_sub(columns(&name)));
        out.line(format!("  {name}{padding}{:>12}{:>12}", step.before, step.after));
        out.push_wrapped("    ", "    ", &step.what);
    }
    statistics(report, &mut out);

    out.line("\nInteractions a user");
    out.spread(report.sequence_lengths.spread.as_ref());
    histogram("interactions", "users", &report.sequence_lengths.histogram, &mut out);
    out.line("\nInteractions an item");
    out.spread(report.popularity.spread.as_ref());
    histogram("interactions", "items", &report.popularity.histogram, &mut out);
    for top in &report.popularity.top {
        let (items, share) = (top.items, percent(top.share));
        out.line(format!(
            "  the most popular {:>2} % of the items ({items}) have {share} of the interactions",
            top.percent
        ));
    }

    out.push_wrapped(
        "\n",
        "  ",
        &format!("Examples: the first windows of test, with the prompt template {}", report.prompt),
    );
    if report.examples.is_empty() {
        out.line(if report.windows.test == 0 { "  the test split has no window" } else { "  none asked for" });
    }
    report.examples.iter().for_each(|shown| example(shown, &mut out));
    out.text
}

fn statistics(report: &Inspection, out: &mut Lines) {
    let (unseen, titles, windows) = (&report.unseen, &report.titles, &report.windows);
    let density = report.density.map_or("-".into(), |density| format!("{:.4} %", 100.0 * density));
    out.line(format!("\nusers         {:>12}", report.users));
    out.line(format!("items         {:>12}", report.items));
    out.line(format!("interactions  {:>12}  density {density}", report.interactions));
    out.line(format!("windows       {:>12}  train, {} valid, {} test", windows.train, windows.valid, windows.test));
    out.line(format!(
        "cold targets  {:>12}  {} of the test windows",
        unseen.cold_test_targets,
        percent(unseen.cold_test_share)
    ));
    out.line(format!(
        "new users     {:>12}  {} of the {} test users",
        unseen.new_test_users,
        percent(unseen.new_test_share),
        unseen.test_users
    ));
    out.line(format!("titles        {:>12}  different", titles.distinct));
    out.line(format!("              {:>12}  items share theirs with another item", titles.duplicates));
    out.line(format!("              {:>12}  items have none", titles.missing));
    out.line("Characters a title");
    out.spread(titles.characters.as_ref());
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
}

/// Appends a row for each bin: its range, its count, its share and a bar.
fn histogram(of: &str, counted: &str, bins: &[Bin], out: &mut Lines) {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    let largest = bins.iter().map(|bin| bin.count).max().unwrap_or(0);
    if total == 0 {
        return;
    }
    out.line(format!("  {of:>21}  {counted:>10}"));
    for bin in bins {
        let range = if bin.from == bin.to { bin.from.to_string() } else { format!("{}–{}", bin.from, bin.to) };
        let share = 100.0 * bin.count as f64 / total as f64;
        let row = format!("  {range:>21}  {:>10} {share:>5.1} %  {}", bin.count, bar(bin.count, largest));
        out.line(row.trim_end());
    }
}

/// Returns a bar in eighths of a column; a count above 0 has at least one eighth.
fn bar(count: usize, largest: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if count == 0 {
        return String::new();
    }
    let length = (8.0 * LONGEST_BAR as f64 * count as f64 / largest as f64).round().max(1.0) as usize;
    format!("{}{}", "█".repeat(length / 8), EIGHTHS[length % 8])
}

fn example(shown: &ExampleWindow, out: &mut Lines) {
    let history = shown.history.len();
    out.push_wrapped(
        "\n",
        "  ",
        &format!("Test window {}, user {}, {history} in the history", shown.window, shown.user),
    );
    out.line(format!("  prompt, masked (label {MASKED}):"));
    for line in shown.prompt.split('\n') {
        out.push_wrapped("  │ ", "  ┆ ", line);
    }
    match &shown.tokens {
        None => {
            out.line("  label, predicted (the model's end-of-sequence token follows):");
            out.push_wrapped("  │ ", "  ┆ ", &shown.label);
        }
        Some(tokens) => write_labelled_tokens(tokens, out),
    }
}

/// Appends the masked tokens in running lines, then a row for each label.
fn write_labelled_tokens(tokens: &[LabelledToken], out: &mut Lines) {
    let (masked, labels): (Vec<_>, Vec<_>) = tokens.iter().partition(|token| token.label == MASKED);
    out.line(format!("  its {} tokens, each as token:id, all with the label {MASKED}:", masked.len()));
    let mut line = String::from(" ");
    for token in masked {
        let shown = format!(" {}:{}", fit(&token.token, LONGEST_TOKEN), token.id);
        if columns(&line) + columns(&shown) > COLUMNS {
            out.line(std::mem::replace(&mut line, " ".into()));
        }
        line += &shown;
    }
    out.line(line);
    let losses = labels.iter().filter(|token| token.loss).count();
    out.line(format!(
        "  label, predicted: {losses} of its {} tokens carry loss under MSL, all under LML",
        labels.len()
    ));
    out.line(format!("  {:>9}  {:>9}  {:>9}  {:4}  token", "id", "label", "children", "loss"));
    for token in labels {
        let children = token.children.map_or("-".into(), |children| children.to_string());
        let (loss, text) = (if token.loss { "yes" } else { "-" }, fit(&token.token, LONGEST_TOKEN));
        out.line(format!("  {:>9}  {:>9}  {children:>9}  {loss:4}  {text}", token.id, token.label));
    }
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text += line.as_ref();
        self.text.push('\n');
    }

    fn spread(&mut self, spread: Option<&Spread>) {
        match spread {
            Some(Spread { min, median, mean, max }) => {
                self.line(format!("  {min} to {max}, median {median}, mean {mean:.2}"));
            }
            None => self.line("  none"),
        }
    }

    /// Appends untrusted text, escaped and complete, in lines that end after a space where there is
    /// one.
    fn push_wrapped(&mut self, first: &str, rest: &str, text: &str) {
        self.text += first;
        let mut column = columns(first.trim_start_matches('\n'));
        for word in escape(text).split_inclusive(' ') {
            let width = columns(word.trim_end_matches(' '));
            // A word too long for a whole line is cut where the line ends.
            let fits_a_line = columns(rest) + width <= COLUMNS;
            if fits_a_line && column + width > COLUMNS && column > columns(rest) {
                self.text = format!("{}\n{rest}", self.text);
                column = columns(rest);
            }
            for character in word.chars() {
                // The space after a word that fills its line may go beyond it.
                if column + width_of(character) > COLUMNS && character != ' ' {
                    self.text = format!("{}\n{rest}", self.text);
                    column = columns(rest);
                }
                self.text.push(character);
                column += width_of(character);
            }
        }
        self.text.push('\n');
    }
}

/// Returns at most `most` columns of untrusted text, escaped; an ellipsis stands for the rest.
fn fit(text: &str, most: usize) -> String {
    let text = escape(text);
    if columns(&text) <= most {
        return text;
    }
    let mut cut = String::new();
    let mut column = 0;
    for character in text.chars() {
        column += width_of(character);
        if column + width_of('…') > most {
            break;
        }
        cut.push(character);
    }
    cut + "…"
}

/// Returns the number of columns that a terminal gives the text, or a few more.
fn columns(text: &str) -> usize {
    text.chars().map(width_of).sum()
}

/// Returns the columns of a character. Wide characters (Hangul, Chinese, Japanese, emoji) begin at
/// U+1100; a narrow one above counts as wide, except those drawn here.
fn width_of(character: char) -> usize {
    if character < '\u{1100}' || matches!(character, '\u{2010}'..='\u{2027}' | '\u{2500}'..='\u{259f}') { 1 } else { 2 }
}

/// Escapes control characters and those that reorder text or break lines, as Rust does.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        let mark = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}');
        let reorders = mark || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || reorders {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{Distribution, Popularity, Titles, TopShare, UnseenCounts};
    use crate::data::{Step, WindowCounts};

    fn report(examples: Vec<ExampleWindow>) -> Inspection {
        let bins =
            vec![Bin { from: 1, to: 1, count: 3 }, Bin { from: 2, to: 3, count: 0 }, Bin { from: 4, to: 9, count: 1 }];
        let spread = Some(Spread { min: 1, median: 1.0, mean: 1.75, max: 9 });
        Inspection {
            name: "a\u{1b}[2J".into(),
            source: "s\r\u{9b}31m".into(),
            software: "x".into(),
            validation: "v ".repeat(90),
            steps: vec![Step {
                name: "n".repeat(60),
                before: usize::MAX,
                after: 0,
                users: None,
                items: None,
                what: "\u{7}".into(),
            }],
            users: 1,
            items: 1,
            interactions: 1,
            density: None,
            windows: WindowCounts { train: 0, valid: 0, test: 0 },
            unseen: UnseenCounts {
                cold_test_targets: 0,
                cold_test_share: None,
                test_users: 0,
                new_test_users: 0,
                new_test_share: None,
            },
            titles: Titles { characters: None, distinct: 0, duplicates: 0, missing: 1 },
            sequence_lengths: Distribution { spread, histogram: bins },
            popularity: Popularity {
                spread: None,
                histogram: vec![Bin { from: 0, to: u32::MAX as usize, count: u32::MAX as usize }],
                top: vec![TopShare { percent: 1, items: 1, share: None }],
            },
            prompt: "items".into(),
            examples,
        }
    }

    fn hostile(tokens: Option<Vec<LabelledToken>>) -> ExampleWindow {
        let title = format!("\u{1b}]0;x\u{7}\u{202e}{}\t漢字{}", "word ".repeat(60), "漢".repeat(300));
        ExampleWindow {
            window: 0,
            user: "u\n\u{8}".into(),
            history: vec![title.clone()],
            target: title.clone(),
            prompt: format!("Read: {title}\nNext: "),
            label: title,
            tokens,
        }
    }

    /// Asserts that only line feeds control the terminal, and that no line is longer than 100
    /// columns, except for a space at its end.
    fn tame(text: &str) {
        for line in text.lines() {
            assert!(columns(line.trim_end()) <= COLUMNS, "{} columns: {line}", columns(line));
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }

    #[test]
    fn hostile_text_is_escaped_and_wrapped() {
        let token =
            |label: i64, token: &str| LabelledToken { token: token.into(), id: 7, label, children: None, loss: false };
        let mut tokens: Vec<LabelledToken> = (0..50).map(|_| token(MASKED, "\u{1b}[1m\u{85}")).collect();
        tokens.push(token(7, &"\r".repeat(99)));
        tame(&text(&report(vec![hostile(None), hostile(Some(tokens))])));
        let shown = text(&report(vec![hostile(None)]));
        assert!(shown.contains("a\\u{1b}[2J: s\\r\\u{9b}31m\n"), "{shown}");
        assert!(shown.contains("user u\\n\\u{8}, 1 in the history\n  prompt, masked"), "{shown}");
        assert!(shown.contains("  │ Read: \\u{1b}]0;x\\u{7}\\u{202e}word "), "{shown}");
        assert!(shown.contains("\n  │ Next: \n"), "{shown}");
        let mut empty = report(vec![]);
        empty.sequence_lengths = Distribution { spread: None, histogram: vec![] };
        tame(&text(&empty));
        assert!(text(&empty).contains("the test split has no window"));
    }

    #[test]
    fn bars_have_the_length_of_their_counts() {
        assert_eq!(bar(0, 8), "");
        assert_eq!(bar(8, 8), "█".repeat(50));
        assert_eq!(bar(1, 8), "██████▎");
        assert_eq!(bar(1, 1_000_000), "▏");
        let shown = text(&report(vec![]));
        assert!(shown.contains(&format!("{:>23}  {:>10}  75.0 %  {}\n", 1, 3, "█".repeat(50))), "{shown}");
        assert!(shown.contains(&format!("{:>23}  {:>10}   0.0 %\n", "2–3", 0)), "{shown}");
        assert!(shown.contains(&format!("{:>23}  {:>10}  25.0 %  {}▋\n", "4–9", 1, "█".repeat(16))), "{shown}");
    }

    #[test]
    fn wrapping_loses_nothing() {
        let mut lines = Lines::default();
        let text = format!("{} {}  {}", "a".repeat(70), "b".repeat(40), "c".repeat(250));
        lines.push_wrapped("> ", "| ", &text);
        let joined: String = lines.text.lines().map(|line| &line[2..]).collect();
        assert_eq!(joined, text);
        let starts: Vec<&str> = lines.text.lines().map(|line| &line[..3]).collect();
        assert_eq!(starts, ["> a", "| b", "| c", "| c"]);
    }
}
