//! All errors of a run file at once, with their lines.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::extends::{KEY, merge};
use super::{AlignConfig, Problems, RunConfig};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1; `None` where the problem is a key that is not there, or several keys.
    pub line: Option<usize>,
    /// The problem, with the key.
    pub message: String,
}

/// Kind of a run file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunFileKind {
    /// A file of `itemlm train`.
    Train,
    /// A file of `itemlm align`: one with a table `[qformer]`.
    Align,
}

/// Keys that a file of the kind must have.
const REQUIRED: [(&[&str], &str); 3] = [
    (&["data.corpus", "llm.path"], "itemlm train"),
    (&["data.corpus", "data.vectors", "qformer.text"], "itemlm align"),
    (&["prior.ranker"], "[prior]"),
];

/// Returns the kind of a run file and all that is wrong with it; no problem for a file that is not
/// TOML but that, and no kind.
///
/// Each key is read on its own, so that one wrong key hides no other; what the keys ask of each
/// other is checked where each of them can be read.
///
/// * `inherited`: the keys of the file that it extends.
pub fn check_run_file(text: &str, inherited: &Table) -> (Option<RunFileKind>, Vec<Problem>) {
    let (spans, mut table) = match (DeTable::parse(text), text.parse::<Table>()) {
        (Ok(spans), Ok(table)) => (spans, table),
        (spans, table) => {
            let error = spans.err().or(table.err());
            let problem = error.map(|error| Problem {
                line: error.span().map(|span| line_at(text, span.start)),
                message: one_line(error.message()),
            });
            return (None, problem.into_iter().collect());
        }
    };
    let line = |path: &[String]| span_of(spans.get_ref(), path).map(|at| line_at(text, at));
    table.remove(KEY);
    if table.contains_key("qformer") || inherited.contains_key("qformer") {
        let problems = check::<AlignConfig>(&table, inherited, REQUIRED[1].0, &line, AlignConfig::problems);
        return (Some(RunFileKind::Align), problems);
    }
    (Some(RunFileKind::Train), check::<RunConfig>(&table, inherited, REQUIRED[0].0, &line, RunConfig::problems))
}

fn check<T: DeserializeOwned>(
    table: &Table,
    inherited: &Table,
    required: &[&str],
    line: &dyn Fn(&[String]) -> Option<usize>,
    values: impl Fn(&T) -> Problems,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut readable = Table::new();
    for (path, value) in leaves(table) {
        // A file with this key alone, and those that every such file has.
        let mut alone = Table::new();
        let required = required.iter().chain(if path[0] == "prior" { REQUIRED[2].0 } else { &[] });
        required.for_each(|key| insert(&mut alone, &split(key), Value::String("x".into())));
        insert(&mut alone, &path, value.clone());
        match alone.try_into::<T>() {
            Ok(_) => insert(&mut readable, &path, value),
            Err(error) => problems.push(Problem {
                line: line(&path),
                message: format!("{}: {}", path.join("."), one_line(error.message())),
            }),
        }
    }
    let own = std::mem::replace(&mut readable, inherited.clone());
    merge(&mut readable, own);
    let of_prior = if readable.contains_key("prior") { REQUIRED[2].0 } else { &[] };
    for key in required.iter().chain(of_prior) {
        let path = split(key);
        if get(table, &path).or_else(|| get(inherited, &path)).is_none() {
            problems.push(Problem { line: None, message: format!("{key} is missing") });
        }
        if get(&readable, &path).is_none() {
            insert(&mut readable, &path, Value::String("x".into()));
        }
    }
    let found = match readable.try_into::<T>() {
        Ok(config) => values(&config).into_vec(),
        Err(error) => vec![one_line(error.message())],
    };
    let keyed = |message: String| {
        let key = message.split([' ', ':']).next().unwrap_or_default();
        Problem { line: line(&split(key)), message }
    };
    problems.extend(found.into_iter().map(keyed));
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    problems
}

fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_string).collect()
}

/// Returns every key that is no table, or an empty one, with its path.
fn leaves(table: &Table) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                let below = leaves(inner).into_iter();
                found.extend(below.map(|(path, value)| ([vec![key.clone()], path].concat(), value)));
            }
            value => found.push((vec![key.clone()], value.clone())),
        }
    }
    found
}

/// Sets a key, whatever is there.
fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, below @ ..] => {
            let inner = table.entry(key.clone()).or_insert_with(|| Table::new().into());
            if !inner.is_table() {
                *inner = Table::new().into();
            }
            if let Value::Table(inner) = inner {
                insert(inner, below, value);
            }
        }
    }
}

fn get<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (last, outer) = path.split_last()?;
    outer.iter().try_fold(table, |table, key| table.get(key)?.as_table())?.get(last)
}

/// Returns where in the text a key is, or the innermost table of its path that is there.
fn span_of(table: &DeTable, path: &[String]) -> Option<usize> {
    let (key, below) = path.split_first()?;
    let (name, value) = table.iter().find(|(name, _)| name.get_ref().as_ref() == key.as_str())?;
    let inner = match value.get_ref() {
        DeValue::Table(inner) => span_of(inner, below),
        _ => None,
    };
    Some(inner.unwrap_or(name.span().start))
}

fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SHIPPED, inherited_keys};

    fn messages(text: &str) -> Vec<(Option<usize>, String)> {
        check_run_file(text, &Table::new()).1.into_iter().map(|problem| (problem.line, problem.message)).collect()
    }

    #[test]
    fn all_problems_are_found_with_their_lines() {
        let text = "seed = \"x\"\n[data]\ncorpus = \"c\"\nhistory = 0\n[llm]\nlora = { rank = 0, dropout = 2 }\n\
                    [train]\nepoch = 3\nlearning_rate = -1\nbatch_size = 0\n[trian]\n[prior]\nweight = 2\n\
                    [loss]\nkind = \"mse\"\n";
        let found = messages(text);
        for (line, named) in [
            (Some(1), "seed: "),
            (Some(4), "data.history is 0"),
            (Some(6), "llm.lora: rank is 0"),
            (Some(6), "llm.lora: dropout is 2"),
            (Some(8), "train.epoch: unknown field"),
            (Some(9), "train.learning_rate is -1"),
            (Some(10), "train.batch_size is 0"),
            (Some(11), "trian: unknown field"),
            (Some(15), "loss.kind: "),
            (None, "llm.path is missing"),
            (None, "prior.ranker is missing"),
        ] {
            let is_there = |(at, message): &(Option<usize>, String)| *at == line && message.starts_with(named);
            assert!(found.iter().any(is_there), "{line:?} {named}: {found:#?}");
        }
        assert_eq!(found.len(), 11, "{found:#?}");
    }

    #[test]
    fn files_of_both_kinds() {
        let (kind, problems) = check_run_file("[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n", &Table::new());
        assert_eq!((kind, problems), (Some(RunFileKind::Train), vec![]));
        let (kind, problems) =
            check_run_file("[data]\ncorpus = \"c\"\n[qformer]\ntext = 3\nlayer = 2\n", &Table::new());
        assert_eq!(kind, Some(RunFileKind::Align));
        let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [Some(4), Some(5), None], "{problems:?}");
        let (kind, problems) = check_run_file("seed = 1\nseed = 2\n", &Table::new());
        assert_eq!((kind, problems.len(), problems[0].line), (None, 1, Some(2)), "{problems:?}");
        // What two keys say together.
        let both = "[data]\ncorpus = \"c\"\ntasks = [\"a\"]\nprompt_sets = [\"a\"]\n[llm]\npath = \"m\"\n";
        assert!(messages(both)[0].1.contains("duplicate"), "{:?}", messages(both));
    }

    /// A key that the extended file has is not missing; what both say together is checked.
    #[test]
    fn extended_files() {
        let base: Table = "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\n[loss]\nkind = \"lml\"\n".parse().unwrap();
        let check = |text: &str| check_run_file(text, &base);
        let text = "extends = \"base.toml\"\n[train]\nepochs = 3\n";
        assert_eq!(check(text), (Some(RunFileKind::Train), vec![]));
        let text = "extends = \"base.toml\"\n[prior]\nranker = \"markov\"\nin_loss = true\n[train]\nepoch = 3\n";
        let problems = check(text).1;
        let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [Some(4), Some(6)], "{problems:?}");
    }

    #[test]
    fn shipped_files_have_no_problem() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        for shipped in SHIPPED.iter().filter(|shipped| !shipped.name.contains('/')) {
            let inherited = inherited_keys(&folder.join(shipped.name).with_extension("toml")).unwrap();
            assert_eq!(check_run_file(shipped.text, &inherited).1, [], "{}", shipped.name);
        }
    }
}
