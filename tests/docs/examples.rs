//! Commands and run files in the pages: each is parsed by the program itself.

use itemlm::config::{AlignConfig, RunConfig};
use itemlm::experiment::ExperimentConfig;

use crate::{pages, read};

/// Returns the fenced or indented blocks of code of a page: the language and the text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut fence: Option<String> = None;
    let mut indented = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fence = match fence {
                Some(_) => None,
                None => {
                    let language = line.trim().trim_start_matches('`').to_string();
                    blocks.push((language.clone(), String::new()));
                    Some(language)
                }
            };
        } else if fence.is_some() || line.starts_with("    ") {
            if fence.is_none() && !indented {
                blocks.push((String::new(), String::new()));
            }
            indented = fence.is_none();
            let block = &mut blocks.last_mut().expect("a block").1;
            block.push_str(if fence.is_none() { &line[4..] } else { line });
            block.push('\n');
        } else {
            indented = false;
        }
    }
    blocks
}

/// Returns the arguments of each call of itemlm in a block of shell commands.
fn calls(block: &str) -> Vec<Vec<String>> {
    let block = block.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in block.lines() {
        let line = line.trim().trim_start_matches("$ ");
        let rest = match (line.split_once(" -- "), line.strip_prefix("itemlm ")) {
            (Some((cargo, rest)), _) if cargo.starts_with("cargo run ") => rest,
            (_, Some(rest)) => rest,
            _ => continue,
        };
        let mut words = vec!["itemlm".to_string()];
        let (mut word, mut quoted, mut any) = (String::new(), false, false);
        for c in rest.chars() {
            match c {
                '"' => (quoted, any) = (!quoted, true),
                '#' if !quoted && !any => break,
                '>' | '|' if !quoted => break,
                c if c.is_whitespace() && !quoted => {
                    if any {
                        words.push(std::mem::take(&mut word));
                    }
                    any = false;
                }
                c => {
                    word.push(c);
                    any = true;
                }
            }
        }
        if any {
            words.push(word);
        }
        calls.push(words);
    }
    calls
}

#[test]
fn commands_in_the_pages_parse() {
    let mut wrong = Vec::new();
    let mut parsed = 0;
    // Dated experiments keep the commands that were typed then.
    for page in pages().into_iter().filter(|p| !p.starts_with("docs/experiments") && !p.ends_with("CHANGELOG.md")) {
        for (language, block) in blocks(&read(&page)) {
            if !matches!(language.as_str(), "" | "sh" | "bash" | "console") {
                continue;
            }
            for call in calls(&block).into_iter().filter(|c| !c.iter().any(|w| w.contains('…'))) {
                parsed += 1;
                if let Err(error) = itemlm::cli::command().try_get_matches_from(&call)
                    && error.use_stderr()
                {
                    let why = error.to_string();
                    let why = why.lines().next().unwrap_or_default();
                    wrong.push(format!("{}: {}: {why}", page.display(), call.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parsed > 20, "only {parsed} commands were found");
}

/// A block of TOML is a run file, perhaps without what every run file has, or a file of `align`,
/// `prepare` or `experiment`.
#[test]
fn run_files_in_the_pages_parse() {
    let mut wrong = Vec::new();
    for page in pages().into_iter().filter(|p| !p.starts_with("docs/experiments")) {
        for (_, block) in blocks(&read(&page)).into_iter().filter(|(language, _)| language == "toml") {
            let mut table: toml::Table = match block.parse() {
                Ok(table) => table,
                Err(error) => {
                    wrong.push(format!("{}: {error}", page.display()));
                    continue;
                }
            };
            if table.contains_key("axes") {
                table.entry("run").or_insert_with(|| "run.toml".into());
                table.entry("seeds").or_insert_with(|| vec![1].into());
                if let Err(error) = table.try_into::<ExperimentConfig>() {
                    wrong.push(format!("{}: {error}\n{block}", page.display()));
                }
                continue;
            }
            let of_another_file = ["split", "steps", "task", "dependencies"];
            if of_another_file.iter().any(|key| table.contains_key(*key)) {
                continue;
            }
            let align = table.contains_key("qformer");
            let needed: &[(&str, &str)] = match align {
                true => &[("data", "corpus"), ("data", "vectors"), ("qformer", "text")],
                false => &[("data", "corpus"), ("llm", "path")],
            };
            for (outer, key) in needed {
                let inner = table.entry(*outer).or_insert_with(|| toml::Table::new().into());
                let Some(inner) = inner.as_table_mut() else { continue };
                inner.entry(*key).or_insert_with(|| "x".into());
            }
            let text = toml::to_string(&table).unwrap();
            let result = match align {
                true => AlignConfig::parse(&text, &[], "block").map(drop),
                false => RunConfig::parse(&text, &[], "block").map(drop),
            };
            if let Err(error) = result {
                wrong.push(format!("{}: {error}\n{block}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn calls_of_a_block() {
    let block =
        "just llm\n$ cargo run --release -- recommend R --history \"A b\" \\\n  -k 5   # five\nitemlm inspect C > f\n";
    let expected = [&["itemlm", "recommend", "R", "--history", "A b", "-k", "5"][..], &["itemlm", "inspect", "C"]];
    assert_eq!(calls(block), expected);
}
