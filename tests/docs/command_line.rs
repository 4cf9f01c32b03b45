//! `docs/reference/command-line.md`, generated from clap's description of the command line.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};

use crate::assert_current;

const PAGE: &str = "docs/reference/command-line.md";

const HEAD: &str = "# Command line

<!-- Generated from the program; do not edit. UPDATE_DOCS=1 cargo test --release --test docs -->

This page is generated from the program itself: it says what `itemlm COMMAND --help` says.

- Exit codes: 0 done; 1 the work failed (bad data, bad model file, disk full); 2 wrong usage or wrong configuration.
- On 1 and 2 the last line on stderr is `error: ` with what failed, where, and what to do.
- `--json` prints exactly one JSON document on stdout. Progress and logs go to stderr.
  The keys are in [Files and their schemas](files.md).
- Backends are described in [Backends](../guide/backends.md).
";

#[test]
fn the_command_line_reference_is_current() {
    assert_current(PAGE, &page());
}

fn page() -> String {
    let command = itemlm::cli::command();
    let mut page = HEAD.to_string();
    let names = commands(&command).map(|c| format!("[`{0}`](#itemlm-{0})", c.get_name())).collect::<Vec<_>>();
    write!(page, "\nCommands: {}.\n", names.join(", ")).unwrap();
    for sub in commands(&command) {
        section(&mut page, sub, "itemlm");
    }
    page
}

fn commands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

fn section(page: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    write!(page, "\n## {name}\n\n{}\n\n", sentence(&about)).unwrap();
    let usage = command.clone().bin_name(&name).render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").split_whitespace().collect::<Vec<_>>().join(" ");
    write!(page, "```text\n{usage}\n```\n\n| argument | default | meaning |\n|---|---|---|\n").unwrap();
    let visible = |a: &&Arg| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version");
    let arguments: Vec<&Arg> = command.get_arguments().filter(visible).collect();
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) = arguments.into_iter().partition(|a| a.is_positional());
    for argument in positional.into_iter().chain(options) {
        row(page, argument);
    }
    for sub in commands(command) {
        section(page, sub, &name);
    }
}

fn row(page: &mut String, argument: &Arg) {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let values = argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>();
    let value = match values.is_empty() {
        true => argument.get_id().as_str().to_uppercase(),
        false => values.join(" "),
    };
    let flag = argument.get_long().map(|l| format!("--{l}")).or(argument.get_short().map(|s| format!("-{s}")));
    let many = match argument.get_action() {
        ArgAction::Append if argument.get_value_delimiter().is_none() => " …",
        _ => "",
    };
    let name = match (flag, takes_value) {
        (Some(flag), true) => format!("`{flag} {value}`{many}"),
        (Some(flag), false) => format!("`{flag}`"),
        (None, _) => format!("`{value}`{many}"),
    };
    let default = argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let default = match (takes_value, argument.is_required_set()) {
        (true, true) => "required".to_string(),
        (true, false) if !default.is_empty() => format!("`{default}`"),
        _ => String::new(),
    };
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut help = sentence(&help);
    let possible = argument.get_possible_values();
    if takes_value && possible.iter().any(|v| v.get_help().is_some()) {
        let list = possible.iter().filter(|v| !v.is_hide_set());
        let list =
            list.map(|v| format!("`{}`: {}", v.get_name(), v.get_help().map(ToString::to_string).unwrap_or_default()));
        write!(help, " {}", list.collect::<Vec<_>>().join("; ")).unwrap();
    } else if takes_value && !possible.is_empty() {
        let list = possible.iter().filter(|v| !v.is_hide_set()).map(|v| format!("`{}`", v.get_name()));
        write!(help, " One of {}.", list.collect::<Vec<_>>().join(", ")).unwrap();
    }
    let name = name.replace('|', "\\|");
    writeln!(page, "| {name} | {default} | {} |", cell(&help)).unwrap();
}

/// Returns a help text as one paragraph that ends with a full stop.
fn sentence(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.is_empty() || text.ends_with(['.', '!', '?', ':']) {
        true => text,
        false => text + ".",
    }
}

/// Returns a text that can stand in a cell of a Markdown table.
pub(crate) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
